//! Descriptors whose readiness tokio watches.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Registers a non-blocking descriptor with the reactor.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd returns the same open descriptor until it is dropped, which AsyncFd does after deregistering,
    // and AsyncFd<OwnedFd> is never given out mutably here.
    #[allow(unsafe_code)]
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}
