//! Keeps logs short: so many bytes a file, so many files a container, the old ones compressed by nobody.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::cri::Cri;

#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Cri(#[from] crate::cri::CriError),
}

/// Whether a container's log directory holds a file that is due.
pub fn has_long(dir: &Path, bytes_max: u64) -> bool {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|e| e.path().extension().is_some_and(|x| x == "log"))
        .any(|e| e.metadata().is_ok_and(|m| m.len() > bytes_max))
}

/// Moves the log aside and has the runtime open a new one. On failure it is moved back.
pub async fn rotate(cri: &Cri, id: &str, log: &Path, bytes_max: u64, files_max: usize) -> Result<(), RotateError> {
    if fs::metadata(log)?.len() <= bytes_max {
        return Ok(());
    }
    let mut aside = log.as_os_str().to_owned();
    aside.push(Timestamp::now().strftime(".%Y%m%d-%H%M%S").to_string());
    let aside = PathBuf::from(aside);
    fs::rename(log, &aside)?;
    if let Err(error) = cri.reopen_log(id).await {
        fs::rename(&aside, log)?;
        return Err(error.into());
    }
    let mut old = rotated(log)?;
    old.sort();
    // The current file counts too.
    let surplus = old.len().saturating_sub(files_max.saturating_sub(1));
    for path in old.into_iter().take(surplus) {
        fs::remove_file(path)?;
    }
    Ok(())
}

fn rotated(log: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name()) else { return Ok(Vec::new()) };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            found.push(entry.path());
        }
    }
    Ok(found)
}
