//! One end of a `SOCK_SEQPACKET` connection: whole messages with descriptors, in blocking or non-blocking calls.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::sys::socket::{
    self, AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
};

use super::protocol::{FDS_MAX, MESSAGE_BYTES_MAX};

/// Sends one message. `WouldBlock` when the peer does not keep up.
pub fn send(fd: &impl AsRawFd, message: &[u8], fds: &[RawFd]) -> io::Result<()> {
    let iov = [IoSlice::new(message)];
    let rights = [ControlMessage::ScmRights(fds)];
    let control: &[ControlMessage] = if fds.is_empty() { &[] } else { &rights };
    socket::sendmsg::<()>(fd.as_raw_fd(), &iov, control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives one message into `buffer`; an empty one means that the peer has gone.
pub fn receive(fd: &impl AsRawFd, buffer: &mut Vec<u8>) -> io::Result<Vec<OwnedFd>> {
    buffer.resize(MESSAGE_BYTES_MAX, 0);
    let mut control = nix::cmsg_space!([RawFd; FDS_MAX]);
    let mut iov = [IoSliceMut::new(buffer)];
    let received = socket::recvmsg::<()>(fd.as_raw_fd(), &mut iov, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = message {
            // SAFETY: the kernel has just made these descriptors for us, and nobody else knows them.
            #[allow(unsafe_code)]
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let (bytes, truncated) = (received.bytes, received.flags.contains(MsgFlags::MSG_TRUNC));
    if truncated {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message is too long"));
    }
    buffer.truncate(bytes);
    Ok(fds)
}

/// The address of `dir/name`. It goes through a descriptor of `dir`, because addresses end at 107 bytes and paths do
/// not.
fn address(dir: &std::fs::File, name: &str) -> io::Result<UnixAddr> {
    Ok(UnixAddr::new(Path::new(&format!("/proc/self/fd/{}/{name}", dir.as_raw_fd())))?)
}

fn new_socket(kind: SockType) -> io::Result<OwnedFd> {
    Ok(socket::socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?)
}

/// Listens on `dir/name`, replacing what a dead predecessor left.
pub fn listen(dir: &Path, name: &str, kind: SockType) -> io::Result<OwnedFd> {
    let handle = std::fs::File::open(dir)?;
    match std::fs::remove_file(dir.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = new_socket(kind)?;
    socket::bind(listener.as_raw_fd(), &address(&handle, name)?)?;
    socket::listen(&listener, Backlog::new(16)?)?;
    Ok(listener)
}

/// Accepts one connection, non-blocking.
pub fn accept(listener: &impl AsRawFd) -> io::Result<OwnedFd> {
    let fd = socket::accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
    // SAFETY: accept4 has just made this descriptor for us.
    #[allow(unsafe_code)]
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Connects to the shim that listens in `dir`.
pub fn connect(dir: &Path, name: &str) -> io::Result<OwnedFd> {
    let handle = std::fs::File::open(dir)?;
    let stream = new_socket(SockType::SeqPacket)?;
    socket::connect(stream.as_raw_fd(), &address(&handle, name)?)?;
    Ok(stream)
}

/// Takes the descriptor that a container runtime sends over a console socket.
pub fn receive_console(stream: &impl AsRawFd) -> io::Result<OwnedFd> {
    let mut buffer = Vec::new();
    receive(stream, &mut buffer)?.pop().ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "no terminal came"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn messages_keep_their_bounds_and_carry_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("a".repeat(120));
        std::fs::create_dir(&long).unwrap();
        let listener = listen(&long, "s", SockType::SeqPacket).unwrap();
        let client = connect(&long, "s").unwrap();
        let server = accept(&listener).unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        send(&client, b"one", &[write.as_raw_fd()]).unwrap();
        send(&client, b"two", &[]).unwrap();
        drop(write);
        let mut buffer = Vec::new();
        let fds = receive(&server, &mut buffer).unwrap();
        assert_eq!((buffer.as_slice(), fds.len()), (b"one".as_slice(), 1));
        std::fs::File::from(fds.into_iter().next().unwrap()).write_all(b"x").unwrap();
        assert!(receive(&server, &mut buffer).unwrap().is_empty());
        assert_eq!(buffer, b"two");
        let mut text = String::new();
        std::fs::File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
        drop(client);
        receive(&server, &mut buffer).unwrap();
        assert!(buffer.is_empty());
    }
}
