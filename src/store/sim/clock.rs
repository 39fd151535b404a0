//! The wall clock, which leaps both ways in a simulated world. Nothing that the group agrees on may hang on it.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicI64, Ordering};

static AHEAD_SECONDS: AtomicI64 = AtomicI64::new(0);

/// From now on the wall clock of this process is `seconds` ahead of the real one, or behind it.
pub(crate) fn leap(seconds: i64) {
    AHEAD_SECONDS.store(seconds, Ordering::Relaxed);
}

// SAFETY: name and signature are libc's own. The caller owns what `time` points to.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    // SAFETY: the system call that the caller meant, with its own arguments.
    let answer = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) };
    if answer == 0 && clock == libc::CLOCK_REALTIME {
        // SAFETY: the kernel has just written there.
        unsafe { (*time).tv_sec += AHEAD_SECONDS.load(Ordering::Relaxed) as libc::time_t };
    }
    answer as libc::c_int
}

#[test]
fn the_wall_clock_leaps() {
    use std::time::{Duration, SystemTime};
    // Other tests of this process read no wall clock.
    let before = SystemTime::now();
    leap(-1_000_000);
    let behind = SystemTime::now();
    leap(0);
    assert!(before.duration_since(behind).unwrap() > Duration::from_secs(900_000));
}
