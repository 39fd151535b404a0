//! Makes sled's flush mean what it says.
//!
//! On Linux sled 0.34 ends a flush with `sync_file_range(2)`, which commits neither file metadata nor the disk's write
//! cache: after a power cut the whole database was gone, and opened as empty without an error. When the call answers
//! `ENOSYS`, sled uses `File::sync_all` instead. So this crate defines the symbol, and the linker prefers it to libc's.

#![allow(unsafe_code)]

use libc::{c_int, c_uint};

// SAFETY: the name and signature are libc's own; a caller must already be prepared for ENOSYS, as old kernels gave it.
#[unsafe(no_mangle)]
pub extern "C" fn sync_file_range(_fd: c_int, _offset: i64, _count: i64, _flags: c_uint) -> c_int {
    // SAFETY: __errno_location always returns the calling thread's errno.
    unsafe { *libc::__errno_location() = libc::ENOSYS };
    -1
}

/// Whether the definition above is the one that sled reaches. A lost override would be silent data loss, so that the
/// store refuses to open without it.
pub(crate) fn is_in_force() -> bool {
    // SAFETY: file descriptor -1 is never valid; libc's own function would answer EBADF and change nothing.
    let answer = unsafe { libc::sync_file_range(-1, 0, 0, 0) };
    answer == -1 && std::io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_override_is_linked_into_this_binary() {
        assert!(super::is_in_force());
    }
}
