//! Backups: the whole key space at one revision in one file, and stores made from such files.
//!
//! A backup holds keys, values and revisions, and the cluster they belong to; nothing of the Raft group, so that it
//! restores on any machine. `format.rs` says what the file looks like, `restore.rs` makes a store of it.

mod format;
mod restore;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

pub use format::{Header, find, inspect};
pub use restore::{Founded, reset, restore};

use crate::disk::identity::sync_dir;
use crate::mvcc::Snapshot;

#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("write backup {}", file.display())]
    Write { file: PathBuf, source: io::Error },
    #[error("read backup {}", file.display())]
    Read { file: PathBuf, source: io::Error },
    #[error("{} is not a backup", file.display())]
    NotABackup { file: PathBuf },
    #[error("backup {} has format {found}, this version reads up to format {supported}", file.display())]
    Format { file: PathBuf, found: u32, supported: u32 },
    /// Truncated or altered.
    #[error("backup {} is damaged: {detail}", file.display())]
    Damaged { file: PathBuf, detail: String },
    #[error("the store cannot be read")]
    Store(#[from] crate::ReadError),
    #[error("backup task failed: {detail}")]
    Task { detail: String },
}

/// Writes `snapshot` to `path`, which appears only when it is whole and on disk. A file that is there is replaced.
pub(crate) fn save(snapshot: &Snapshot, header: &Header, path: &Path) -> Result<(), BackupError> {
    let failed = |source| BackupError::Write { file: path.to_path_buf(), source };
    let Some((name, dir)) = path.file_name().zip(path.parent()) else {
        return Err(failed(io::Error::from(io::ErrorKind::InvalidInput)));
    };
    let mut unfinished = name.to_os_string();
    unfinished.push(".part");
    let unfinished = dir.join(unfinished);
    let written = create(&unfinished)
        .and_then(|file| format::write(snapshot, header, file))
        .and_then(|()| fs::rename(&unfinished, path))
        .and_then(|()| sync_dir(dir));
    written.map_err(|source| {
        // It may not be there; what matters is why it is not whole.
        let _ = fs::remove_file(&unfinished);
        failed(source)
    })
}

fn create(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    // What is stored may be secret.
    File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
}
