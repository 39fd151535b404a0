//! Makes sled's flush mean what it says, at the price of one `fdatasync`.
//!
//! On Linux sled 0.34 ends each write of its log with `sync_file_range(2)`, which commits neither file metadata nor the
//! disk's write cache: after a power cut the whole database was gone, and opened as empty without an error. When the call
//! answers `ENOSYS`, sled uses `File::sync_all` instead. So this crate defines the symbol, and the linker prefers it to
//! libc's.
//!
//! A batch is two writes of the log, its manifest and its records, and each would cost an `fsync`. So for files that the
//! engine has [`defer`]red, the call answers that all is well, and the engine makes both durable by one `fdatasync` before
//! it says that a batch is written. Two things keep that safe:
//! - sled takes nothing of a batch for stable before all of it is written, and the engine starts no batch before the last
//!   one is durable. So what sled notes as stable in a segment's header is durable before the header is written.
//! - The write that holds a segment's header is never deferred. Segments are reused on the word of such headers only.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{PoisonError, RwLock};

use libc::{c_int, c_uint};

use crate::disk::engine::SEGMENT_BYTES;

/// Device and inode of the files whose owner syncs them itself.
static DEFERRED: RwLock<Vec<(u64, u64)>> = RwLock::new(Vec::new());

/// While this lives, its owner is the one who makes the file durable.
#[derive(Debug)]
pub(crate) struct Deferred((u64, u64));

pub(crate) fn defer(file: &File) -> io::Result<Deferred> {
    let metadata = file.metadata()?;
    let id = (metadata.dev(), metadata.ino());
    DEFERRED.write().unwrap_or_else(PoisonError::into_inner).push(id);
    Ok(Deferred(id))
}

impl Drop for Deferred {
    fn drop(&mut self) {
        let mut deferred = DEFERRED.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(position) = deferred.iter().position(|id| *id == self.0) {
            deferred.swap_remove(position);
        }
    }
}

fn is_deferred(fd: c_int) -> bool {
    // SAFETY: all-zero is a valid stat, and the call only fills it.
    let (answer, stat) = unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        (libc::fstat(fd, &mut stat), stat)
    };
    #[allow(clippy::unnecessary_cast)] // The field types differ between architectures.
    let id = (stat.st_dev as u64, stat.st_ino as u64);
    answer == 0 && DEFERRED.read().unwrap_or_else(PoisonError::into_inner).contains(&id)
}

// SAFETY: the name and signature are libc's own; a caller must already be prepared for ENOSYS, as old kernels gave it.
#[unsafe(no_mangle)]
pub extern "C" fn sync_file_range(fd: c_int, offset: i64, _count: i64, _flags: c_uint) -> c_int {
    let begins_segment = offset % SEGMENT_BYTES as i64 == 0;
    if !begins_segment && is_deferred(fd) {
        return 0;
    }
    // SAFETY: __errno_location always returns the calling thread's errno.
    unsafe { *libc::__errno_location() = libc::ENOSYS };
    -1
}

/// Whether the definition above is the one that sled reaches. A lost override would be silent data loss, so that the
/// store refuses to open without it.
pub(crate) fn is_in_force() -> bool {
    // SAFETY: file descriptor -1 is never valid; libc's own function would answer EBADF and change nothing.
    let answer = unsafe { libc::sync_file_range(-1, 0, 0, 0) };
    answer == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS)
}

/// Forgets what the kernel has cached of `file` and has on disk, so that it is read from the disk again.
pub(crate) fn forget_cached(file: &File) {
    use std::os::fd::AsRawFd;
    // SAFETY: the call takes no memory of ours. It is advice: whether it was taken changes only where bytes come from.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

/// Takes room for `file` up to the end of the segment that it ends in. What is appended there later changes neither the
/// file's length nor, after the first write to a block, where it lies: its `fdatasync` then writes nothing else.
///
/// # Errors
/// When there is no room, or the file system cannot do that. The file is as good as it was.
pub(crate) fn reserve_segment(file: &File) -> io::Result<()> {
    let length = file.metadata()?.len();
    let missing = length.next_multiple_of(SEGMENT_BYTES as u64) - length;
    if missing == 0 { Ok(()) } else { allocate(file, length, missing) }
}

/// As long as `bytes` from now on, and zero. Room alone is not enough: on ext4 the first write to a block that was only
/// reserved changes the file system's own records, and where its journal has been given up after an error, that change is
/// lost without a word (`fdatasync` succeeds, the block reads as zeros once it is mounted again).
pub(crate) fn fill(file: &File, bytes: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    static PIECE: [u8; 64 << 10] = [0; 64 << 10];

    match allocate(file, 0, bytes) {
        Err(error) if error.kind() != io::ErrorKind::Unsupported => return Err(error),
        _ => {}
    }
    let mut at = 0;
    while at < bytes {
        let piece = PIECE.len().min(usize::try_from(bytes - at).unwrap_or(PIECE.len()));
        file.write_all_at(&PIECE[..piece], at)?;
        at += piece as u64;
    }
    Ok(())
}

/// Whether the file system of `dir` still takes changes and makes them durable. After an error in its own records ext4 has
/// given up its journal: what is written to blocks that are there still works, and so does `fdatasync`, which then says
/// nothing of what the journal should have had.
///
/// # Errors
/// It does not.
pub(crate) fn prove_writable(dir: &Path) -> io::Result<()> {
    let path = dir.join("probe");
    let file = File::create(&path)?;
    file.set_len(1)?;
    file.sync_all()?;
    drop(file);
    std::fs::remove_file(&path)
}

fn allocate(file: &File, from: u64, bytes: u64) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let range = |number: u64| libc::off64_t::try_from(number).map_err(io::Error::other);
    // SAFETY: the call takes no memory of ours, and leaves what the file holds as it is.
    match unsafe { libc::fallocate64(file.as_raw_fd(), 0, range(from)?, range(bytes)?) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn room_is_taken_up_to_the_end_of_a_segment() {
        use std::os::unix::fs::FileExt;
        let file = tempfile::tempfile().unwrap();
        reserve_segment(&file).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 0);
        file.write_all_at(b"some", SEGMENT_BYTES as u64).unwrap();
        for _ in 0..2 {
            match reserve_segment(&file) {
                Ok(()) => assert_eq!(file.metadata().unwrap().len(), 2 * SEGMENT_BYTES as u64),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::Unsupported),
            }
        }
        let mut bytes = [1; 4];
        file.read_exact_at(&mut bytes, SEGMENT_BYTES as u64).unwrap();
        assert_eq!(&bytes, b"some");
    }

    #[test]
    fn the_override_is_linked_into_this_binary() {
        assert!(is_in_force());
    }

    #[test]
    fn only_deferred_files_are_and_never_a_segments_header() {
        let file = tempfile::tempfile().unwrap();
        let fd = file.as_raw_fd();
        assert_eq!(sync_file_range(fd, 4096, 10, 0), -1);
        let deferred = defer(&file).unwrap();
        assert_eq!(sync_file_range(fd, 4096, 10, 0), 0);
        assert_eq!(sync_file_range(fd, 3 * SEGMENT_BYTES as i64, 10, 0), -1);
        assert_eq!(sync_file_range(tempfile::tempfile().unwrap().as_raw_fd(), 4096, 10, 0), -1);
        drop(deferred);
        assert_eq!(sync_file_range(fd, 4096, 10, 0), -1);
    }
}
