//! Network namespaces to test in.

#![allow(dead_code, reason = "each test file uses its part")]

pub mod api;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use mussel_network::host;
use mussel_network::iptables::Iptables;
use nix::sched::{CloneFlags, setns, unshare};

pub fn may_make_networks() -> bool {
    let may = nix::unistd::geteuid().is_root() && Iptables::find().is_ok();
    if !may {
        eprintln!("skipped: needs root and iptables");
    }
    may
}

/// Runs the test in a thread with a network of its own, or says why it cannot.
pub fn in_new_network(test: impl AsyncFnOnce() + Send + 'static) {
    if !may_make_networks() {
        return;
    }
    let thread = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            host::tune_kernel();
            test().await;
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// The network namespace of a pod, and a way to run something in it.
pub struct Sandbox(OwnedFd);

impl Sandbox {
    pub fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            Self(std::fs::File::open("/proc/thread-self/ns/net").unwrap().into())
        };
        thread::spawn(make).join().unwrap()
    }

    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }

    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let netns = self.0.try_clone().unwrap();
        let body = move || {
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        thread::spawn(body).join().unwrap()
    }

    /// Answers each datagram to the port with `name`.
    pub fn serve_udp(&self, port: u16, name: &'static str) {
        let socket = self.run(move || UdpSocket::bind(("0.0.0.0", port)).unwrap());
        thread::spawn(move || {
            let mut question = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut question) {
                let _ = socket.send_to(name.as_bytes(), from);
            }
        });
    }

    /// Answers each connection to the port with `name` and the address it came from.
    pub fn serve(&self, port: u16, name: &'static str) {
        let listener = self.run(move || TcpListener::bind(("0.0.0.0", port)).unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let from = stream.peer_addr().unwrap().ip();
                let _ = stream.write_all(format!("{name} {from}").as_bytes());
            }
        });
    }
}

/// What `socket` hears when it says something to the address.
pub fn ask_udp(socket: &UdpSocket, address: &str) -> Result<String, std::io::ErrorKind> {
    socket.send_to(b"?", address).map_err(|error| error.kind())?;
    let mut answer = [0; 64];
    let length = socket.recv(&mut answer).map_err(|error| error.kind())?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

pub fn ask(address: &str) -> Result<String, std::io::ErrorKind> {
    let address: SocketAddr = address.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).map_err(|error| error.kind())?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|error| error.kind())?;
    Ok(text)
}
