//! Why a store does not open. Every variant leaves what is on disk as it was.

use std::io;
use std::path::PathBuf;

use crate::{ClusterId, MemberId};

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("create store directory {}", dir.display())]
    Create { dir: PathBuf, source: io::Error },
    #[error("store directory {} is not writable", dir.display())]
    NotWritable { dir: PathBuf, source: io::Error },
    #[error("store directory {} is in use by {}; stop it first", dir.display(), holder(.pid))]
    Locked { dir: PathBuf, pid: Option<u32> },
    #[error("read {}", file.display())]
    Read { file: PathBuf, source: io::Error },
    #[error("write {}", file.display())]
    Write { file: PathBuf, source: io::Error },
    #[error("store file {} is corrupt: {detail}; restore it from a backup, or move it away to start empty", file.display())]
    Corrupt { file: PathBuf, detail: String },
    #[error(
        "store directory {} belongs to a member that had data, but its database {}; restore it from a backup, or remove the directory to start empty",
        dir.display(),
        detail
    )]
    Lost { dir: PathBuf, detail: String },
    #[error(
        "store file {} has format {found}, this version reads formats {oldest} to {newest}; start the version that wrote it, or a newer one",
        file.display()
    )]
    Format { file: PathBuf, found: u32, oldest: u32, newest: u32 },
    #[error("this binary cannot make writes durable: sync_file_range is not overridden")]
    FlushNotDurable,
    #[error("open database {}", file.display())]
    Engine { file: PathBuf, source: io::Error },
    /// Final: nothing of the group is to be had with this directory any more.
    #[error("store directory {} belongs to member {member:016x}, which was removed from its cluster; remove the directory to join anew", dir.display())]
    Removed { dir: PathBuf, member: MemberId },
    #[error("store directory {} belongs to cluster {found}, not to {wanted}", dir.display())]
    OtherCluster { dir: PathBuf, found: ClusterId, wanted: ClusterId },
    /// The member never became one; only [`crate::Store::join`] can go on.
    #[error("store directory {} belongs to a member that has not finished joining its cluster", dir.display())]
    NotJoined { dir: PathBuf },
    #[error("store directory {} belongs to a member of a group, and no way to the others is configured", dir.display())]
    NoTransport { dir: PathBuf },
    #[error("start raft: {detail}")]
    Raft { detail: String },
}

fn holder(pid: &Option<u32>) -> String {
    match pid {
        Some(pid) => format!("process {pid}"),
        None => "another process".to_string(),
    }
}
