//! The inside of a sandbox's network namespace.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

use crate::netlink::{Netlink, NetlinkError};

#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("open network namespace {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("start a thread for the network namespace")]
    Thread(#[source] io::Error),
    #[error("enter the network namespace")]
    Enter(#[source] io::Error),
    #[error("the thread in the network namespace ended early")]
    Ended,
    #[error("inside the sandbox: {0}")]
    Netlink(#[from] NetlinkError),
}

/// What the pod's interface gets.
pub struct Inside {
    /// The interface's name until it becomes eth0.
    pub peer: String,
    pub mtu: u32,
    pub address: IpAddr,
    pub prefix: u8,
    pub gateway: IpAddr,
}

pub fn open(path: &Path) -> Result<OwnedFd, SandboxError> {
    File::open(path).map(OwnedFd::from).map_err(|source| SandboxError::Open { path: path.to_owned(), source })
}

/// Sets the interface up and returns its hardware address.
pub async fn configure(netns: OwnedFd, inside: Inside) -> Result<String, SandboxError> {
    within(netns, async move || set_up(&inside).await).await
}

/// Sets the loopback interface of a network namespace up, which plugins of others leave to the runtime.
///
/// # Errors
/// When there is no such namespace, or it cannot be entered.
pub async fn loopback_up(path: &Path) -> Result<(), SandboxError> {
    let up = async || {
        let netlink = Netlink::open()?;
        netlink.up(netlink.require("lo").await?).await
    };
    within(open(path)?, up).await
}

/// Does something inside a network namespace.
async fn within<T: Send + 'static>(
    netns: OwnedFd,
    work: impl AsyncFnOnce() -> Result<T, NetlinkError> + Send + 'static,
) -> Result<T, SandboxError> {
    let (reply, answer) = oneshot::channel();
    // A namespace belongs to a thread; this one is thrown away afterwards, so nothing else ever runs in the pod's.
    let body = move || {
        let _ = reply.send(enter(&netns, work));
    };
    thread::Builder::new()
        .name("pod-netns".to_owned())
        .stack_size(256 << 10)
        .spawn(body)
        .map_err(SandboxError::Thread)?;
    answer.await.map_err(|_| SandboxError::Ended)?
}

fn enter<T>(netns: &OwnedFd, work: impl AsyncFnOnce() -> Result<T, NetlinkError>) -> Result<T, SandboxError> {
    setns(netns, CloneFlags::CLONE_NEWNET).map_err(|errno| SandboxError::Enter(errno.into()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(SandboxError::Thread)?;
    Ok(runtime.block_on(work())?)
}

async fn set_up(inside: &Inside) -> Result<String, NetlinkError> {
    let netlink = Netlink::open()?;
    let loopback = netlink.require("lo").await?;
    netlink.up(loopback).await?;
    let index = netlink.rename(&inside.peer, "eth0").await?;
    netlink.set_mtu(index, inside.mtu).await?;
    netlink.ensure_address(index, inside.address, inside.prefix).await?;
    netlink.up(index).await?;
    netlink.add_default_route(inside.gateway).await?;
    netlink.mac("eth0").await
}
