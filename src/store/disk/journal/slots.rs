//! The files that segments are in. A file is used again and again: what is written over needs no room and no change of the
//! file system's own records, so that making it durable is one write.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::durable;
use crate::disk::identity::sync_dir;

/// Where a journal lives.
#[derive(Clone)]
pub(crate) enum Place {
    Directory(PathBuf),
    #[cfg(test)]
    Simulated(crate::sim::disk::Platter),
}

/// One file. A clone is the same one.
#[derive(Clone)]
pub(super) enum Slot {
    File(Arc<File>, u32),
    #[cfg(test)]
    Simulated(crate::sim::disk::Platter, u32),
}

impl Place {
    /// Those that are there.
    pub(super) fn slots(&self) -> io::Result<Vec<Slot>> {
        match self {
            Self::Directory(dir) => {
                let mut numbers = Vec::new();
                for entry in fs::read_dir(dir)? {
                    if let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) {
                        numbers.push(number);
                    }
                }
                numbers.sort_unstable();
                numbers.into_iter().map(|number| open(dir, number)).collect()
            }
            #[cfg(test)]
            Self::Simulated(platter) => {
                Ok((0..platter.log_files()?).map(|number| Slot::Simulated(platter.clone(), number)).collect())
            }
        }
    }

    /// A new one, named `number`, with room for `bytes`. It is durable that it is there.
    pub(super) fn create(&self, number: u32, bytes: u64) -> io::Result<Slot> {
        match self {
            Self::Directory(dir) => {
                let path = dir.join(number.to_string());
                let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
                let made = durable::fill(&file, bytes).and_then(|()| file.sync_all()).and_then(|()| sync_dir(dir));
                if let Err(error) = made {
                    // Half of a file would take room that others need.
                    let _ = fs::remove_file(&path);
                    return Err(error);
                }
                // The kernel has it in large pieces, and would write a whole piece for each small append.
                durable::forget_cached(&file);
                Ok(Slot::File(Arc::new(file), number))
            }
            #[cfg(test)]
            Self::Simulated(platter) => {
                platter.create_log_file(number, bytes)?;
                Ok(Slot::Simulated(platter.clone(), number))
            }
        }
    }

    pub(super) fn remove(&self, slot: &Slot) -> io::Result<()> {
        match self {
            Self::Directory(dir) => fs::remove_file(dir.join(slot.number().to_string())),
            // There is room enough, and what is left of it is to be put up with when it is opened again.
            #[cfg(test)]
            Self::Simulated(_) => Ok(()),
        }
    }

    /// Opened once more, with nothing of it in memory: after an error the kernel may have there what the disk does not.
    pub(super) fn reopen(&self, slot: &Slot) -> io::Result<Slot> {
        match self {
            Self::Directory(dir) => open(dir, slot.number()),
            #[cfg(test)]
            Self::Simulated(_) => Ok(slot.clone()),
        }
    }

    /// For messages, as is [`Place::name`].
    pub(super) fn path(&self) -> PathBuf {
        match self {
            Self::Directory(dir) => dir.clone(),
            #[cfg(test)]
            Self::Simulated(_) => PathBuf::from("simulated"),
        }
    }

    pub(super) fn name(&self, slot: &Slot) -> PathBuf {
        self.path().join(slot.number().to_string())
    }
}

fn open(dir: &Path, number: u32) -> io::Result<Slot> {
    let file = File::options().read(true).write(true).open(dir.join(number.to_string()))?;
    // A process that was killed may have left writes that only the kernel has.
    file.sync_data()?;
    durable::forget_cached(&file);
    Ok(Slot::File(Arc::new(file), number))
}

impl Slot {
    pub(super) fn number(&self) -> u32 {
        match self {
            Self::File(_, number) => *number,
            #[cfg(test)]
            Self::Simulated(_, number) => *number,
        }
    }

    pub(super) fn bytes(&self) -> io::Result<u64> {
        match self {
            Self::File(file, _) => Ok(file.metadata()?.len()),
            #[cfg(test)]
            Self::Simulated(platter, number) => platter.with_log_file(*number, |file| file.len() as u64),
        }
    }

    /// Fewer bytes than asked for are there at the end of the file only.
    pub(super) fn read(&self, at: u64, length: usize) -> io::Result<Vec<u8>> {
        match self {
            Self::File(file, _) => {
                let mut bytes = vec![0; length];
                let mut read = 0;
                while read < length {
                    match file.read_at(&mut bytes[read..], at + read as u64)? {
                        0 => break,
                        more => read += more,
                    }
                }
                bytes.truncate(read);
                Ok(bytes)
            }
            #[cfg(test)]
            Self::Simulated(platter, number) => platter.with_log_file(*number, |file| {
                let from = file.len().min(at as usize);
                file[from..file.len().min(from + length)].to_vec()
            }),
        }
    }

    /// Not durable before [`Slot::sync`].
    pub(super) fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::File(file, _) => file.write_all_at(bytes, at),
            #[cfg(test)]
            Self::Simulated(platter, number) => platter.write_log_file(*number, at, bytes),
        }
    }

    pub(super) fn forget_cached(&self) {
        match self {
            Self::File(file, _) => durable::forget_cached(file),
            #[cfg(test)]
            Self::Simulated(..) => {}
        }
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        match self {
            Self::File(file, _) => file.sync_data(),
            #[cfg(test)]
            Self::Simulated(platter, _) => platter.sync_log(),
        }
    }
}
