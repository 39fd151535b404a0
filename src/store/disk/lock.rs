//! One process per store directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::OpenError;

/// Held for as long as the database is open. The kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct DirLock(File);

impl Drop for DirLock {
    fn drop(&mut self) {
        // Closing the file is not enough while a child that is just being started has a copy of it. What fails here ends with
        // that child's exec.
        let _ = self.0.unlock();
    }
}

impl DirLock {
    pub(crate) fn take(dir: &Path) -> Result<Self, OpenError> {
        let path = dir.join("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|source| OpenError::NotWritable { dir: dir.to_path_buf(), source })?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // Who holds it is a courtesy; that it is held is what matters.
                let _ = (&mut file).take(32).read_to_string(&mut text);
                return Err(OpenError::Locked { dir: dir.to_path_buf(), pid: text.trim().parse().ok() });
            }
            Err(TryLockError::Error(source)) => return Err(OpenError::NotWritable { dir: dir.to_path_buf(), source }),
        }
        let write = |file: &mut File| -> std::io::Result<()> {
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            writeln!(file, "{}", std::process::id())
        };
        write(&mut file).map_err(|source| OpenError::NotWritable { dir: dir.to_path_buf(), source })?;
        Ok(Self(file))
    }
}
