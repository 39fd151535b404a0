//! The chance that libraries take for themselves: the keys of hash maps, and which arm of a `select!` is looked at first.
//! All of it comes from `getrandom(2)` in the end, which is defined anew here for the tests of this crate. In a process that
//! runs one world it always answers the same, so that a seed replays to the last byte.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

static FIXED: AtomicBool = AtomicBool::new(false);

/// From now on, whoever asks for chance gets none. Threads that have taken some keep it: call it before a thread is begun
/// in which nothing is left to chance.
pub(crate) fn fix() {
    FIXED.store(true, Ordering::Release);
}

// SAFETY: name and signature are libc's own. The caller owns `length` writable bytes at `buffer`.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut libc::c_void, length: usize, flags: libc::c_uint) -> isize {
    if FIXED.load(Ordering::Acquire) {
        // SAFETY: as above.
        unsafe { std::ptr::write_bytes(buffer.cast::<u8>(), 0x5a, length) };
        return length.cast_signed();
    }
    // SAFETY: the system call that the caller meant, with its own arguments.
    let answer = unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) };
    answer as isize
}
