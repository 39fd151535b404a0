//! Memory that the allocator holds on to.

/// Gives free memory back to the system. glibc does so by itself only at the end of its heaps: what one thread has read at
/// the start and others have replaced since stays resident for ever, several times what is in use.
#[allow(unsafe_code)]
pub(crate) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call may be made at any time by any thread, and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
