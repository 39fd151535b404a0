//! The database behind a narrow type. The only file that knows sled, so that its version, or itself, can change.
//!
//! One ordered key space holds three kinds of records, told apart by the first byte of the key, so that a batch is atomic
//! across them. sled recovers a prefix of what was written, in order, and a batch as a whole.
//!
//! sled keeps up to 16 records in a page and moves a page that outgrows its segment to a file of its own, which it does
//! not make durable. So a long value is cut into chunks, small enough for any page to fit.

use std::collections::HashMap;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::OpenError;
use crate::disk::lock::DirLock;

/// 17 records of this size, the most a page holds before it splits, stay below the segment size of 512 KiB.
const CHUNK_BYTES_MAX: usize = 24 << 10;

/// sled's default; fixed here because `inspect.rs` relies on it.
pub(crate) const SEGMENT_BYTES: usize = 512 << 10;

/// How long a database that this process closed may take to be free again: sled lets go of its file in the background.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(5);

const WHOLE: u8 = 0;
const CHUNKED: u8 = 1;

/// The kinds of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Space {
    /// By log index, big-endian.
    Log = b'l',
    /// Vote, purge mark, checkpoint, identity.
    Meta = b'm',
    /// By the caller's keys.
    State = b's',
    /// As `State`. One of the two counts; a snapshot is installed into the other.
    OtherState = b't',
}

const CHUNKS: u8 = b'x';

impl Space {
    fn key(self, key: &[u8]) -> Vec<u8> {
        [&[self as u8], key].concat()
    }
}

fn chunk_key(full_key: &[u8], chunk: u16) -> Vec<u8> {
    [&[CHUNKS], full_key, &chunk.to_be_bytes()].concat()
}

/// Changes that are applied together, in order; the last change of a key counts.
#[derive(Debug, Default)]
pub(crate) struct Writes(Vec<(Vec<u8>, Option<Vec<u8>>)>);

impl Writes {
    pub(crate) fn put(&mut self, space: Space, key: &[u8], value: Vec<u8>) {
        self.0.push((space.key(key), Some(value)));
    }

    pub(crate) fn remove(&mut self, space: Space, key: &[u8]) {
        self.0.push((space.key(key), None));
    }

    pub(crate) fn append(&mut self, mut other: Writes) {
        self.0.append(&mut other.0);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Full keys, and values that replace what they held.
    #[cfg(test)]
    pub(crate) fn into_changes(self) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        self.0
    }
}

pub(crate) struct Engine {
    db: sled::Db,
    /// The database's own file, for messages.
    file: PathBuf,
    /// How many chunks the long values have.
    chunks: Mutex<HashMap<Vec<u8>, u16>>,
    // Dropped after the database is closed.
    _lock: DirLock,
    _closed: tokio::sync::oneshot::Sender<()>,
}

impl Engine {
    /// Opens or creates the database in `dir`. The receiver resolves once it is closed and `lock` is free again.
    pub(crate) fn open(
        dir: &Path,
        cache_bytes: u64,
        lock: DirLock,
    ) -> Result<(Engine, tokio::sync::oneshot::Receiver<()>), OpenError> {
        let path = dir.join("sled");
        let file = path.join("db");
        let config = sled::Config::new()
            .path(&path)
            .cache_capacity(cache_bytes)
            .segment_size(SEGMENT_BYTES)
            .flush_every_ms(None)
            .mode(sled::Mode::LowSpace);
        let start = Instant::now();
        let opened = loop {
            // sled meets some kinds of damage with a panic. It is at the top of a call that has changed nothing of ours.
            let opened = panic::catch_unwind(AssertUnwindSafe(|| config.open()));
            match &opened {
                // Nobody else can have it: `lock` is ours.
                Ok(Err(error)) if is_locked(error) && start.elapsed() < CLOSING_TIMEOUT => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                _ => break opened,
            }
        };
        let db = match opened {
            Ok(Ok(db)) => db,
            Ok(Err(error)) => return Err(open_error(error, &file, &path)),
            Err(_) => return Err(OpenError::Corrupt { file, detail: "the engine gave up reading it".to_string() }),
        };
        let (closed, on_closed) = tokio::sync::oneshot::channel();
        let engine = Engine { db, file, chunks: Mutex::default(), _lock: lock, _closed: closed };
        engine.count_chunks().map_err(|e| engine.corrupt(e.to_string()))?;
        Ok((engine, on_closed))
    }

    pub(crate) fn corrupt(&self, detail: impl Into<String>) -> OpenError {
        OpenError::Corrupt { file: self.file.clone(), detail: detail.into() }
    }

    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    fn count_chunks(&self) -> io::Result<()> {
        let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        for key in self.db.scan_prefix([CHUNKS]).keys() {
            let key = key.map_err(io_error)?;
            let Some((full_key, index)) = key.get(1..).and_then(|key| key.split_last_chunk()) else {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "chunk key is too short"));
            };
            let count = chunks.entry(full_key.to_vec()).or_default();
            *count = (*count).max(u16::from_be_bytes(*index) + 1);
        }
        Ok(())
    }

    pub(crate) fn get(&self, space: Space, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let full_key = space.key(key);
        match self.db.get(&full_key).map_err(io_error)? {
            Some(record) => self.whole(&full_key, &record).map(Some),
            None => Ok(None),
        }
    }

    /// All records of `space` from `start` on, in key order.
    pub(crate) fn scan(&self, space: Space, start: &[u8]) -> impl Iterator<Item = io::Result<(Vec<u8>, Vec<u8>)>> + '_ {
        self.db.range(space.key(start)..vec![space as u8 + 1]).map(|record| {
            let (full_key, record) = record.map_err(io_error)?;
            let value = self.whole(&full_key, &record)?;
            Ok((full_key[1..].to_vec(), value))
        })
    }

    fn whole(&self, full_key: &[u8], record: &[u8]) -> io::Result<Vec<u8>> {
        let invalid = |detail| io::Error::new(io::ErrorKind::InvalidData, detail);
        match record.split_first() {
            Some((&WHOLE, value)) => Ok(value.to_vec()),
            Some((&CHUNKED, count)) => {
                let count = count.try_into().map(u16::from_be_bytes).map_err(|_| invalid("chunk count is damaged"))?;
                let mut value = Vec::with_capacity(usize::from(count) * CHUNK_BYTES_MAX);
                for index in 0..count {
                    let chunk = self.db.get(chunk_key(full_key, index)).map_err(io_error)?;
                    value.extend_from_slice(&chunk.ok_or_else(|| invalid("a chunk of a long value is missing"))?);
                }
                Ok(value)
            }
            _ => Err(invalid("record has no known form")),
        }
    }

    /// Applies all changes or none. They are durable after the next [`Engine::flush`].
    pub(crate) fn write(&self, writes: Writes) -> io::Result<()> {
        let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut batch = sled::Batch::default();
        for (full_key, value) in writes.0 {
            let chunks_before = chunks.remove(&full_key).unwrap_or(0);
            let chunks_now = match value {
                None => {
                    batch.remove(full_key.as_slice());
                    0
                }
                Some(value) if value.len() <= CHUNK_BYTES_MAX => {
                    batch.insert(full_key.as_slice(), [&[WHOLE], value.as_slice()].concat());
                    0
                }
                Some(value) => {
                    let count = u16::try_from(value.len().div_ceil(CHUNK_BYTES_MAX))
                        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "value is too long"))?;
                    for (index, chunk) in (0..).zip(value.chunks(CHUNK_BYTES_MAX)) {
                        batch.insert(chunk_key(&full_key, index), chunk);
                    }
                    batch.insert(full_key.as_slice(), [&[CHUNKED][..], &count.to_be_bytes()].concat());
                    chunks.insert(full_key.clone(), count);
                    count
                }
            };
            for index in chunks_now..chunks_before {
                batch.remove(chunk_key(&full_key, index));
            }
        }
        self.db.apply_batch(batch).map_err(io_error)
    }

    /// Everything written before is on disk when this returns.
    pub(crate) fn flush(&self) -> io::Result<()> {
        self.db.flush().map(drop).map_err(io_error)
    }

    pub(crate) fn bytes_on_disk(&self) -> io::Result<u64> {
        self.db.size_on_disk().map_err(io_error)
    }
}

fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().contains("could not acquire lock"))
}

fn io_error(error: sled::Error) -> io::Error {
    match error {
        sled::Error::Io(error) => error,
        sled::Error::Corruption { .. } => io::Error::new(io::ErrorKind::InvalidData, "the engine found a damaged page"),
        other => io::Error::other(other.to_string()),
    }
}

fn open_error(error: sled::Error, file: &Path, path: &Path) -> OpenError {
    match error {
        sled::Error::Io(source) if source.kind() == io::ErrorKind::PermissionDenied => {
            OpenError::NotWritable { dir: path.to_path_buf(), source }
        }
        sled::Error::Io(source) if source.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            OpenError::NotWritable { dir: path.to_path_buf(), source }
        }
        sled::Error::Io(source) => OpenError::Engine { file: file.to_path_buf(), source },
        other => OpenError::Corrupt { file: file.to_path_buf(), detail: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path) -> Engine {
        Engine::open(dir, 1 << 20, DirLock::take(dir).unwrap()).unwrap().0
    }

    #[test]
    fn long_values_come_back_whole_and_leave_no_chunk_behind() {
        let dir = tempfile::tempdir().unwrap();
        let long: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        let engine = open(dir.path());
        let mut writes = Writes::default();
        writes.put(Space::State, b"a", long.clone());
        writes.put(Space::State, b"b", b"short".to_vec());
        writes.put(Space::Log, b"a", b"other".to_vec());
        engine.write(writes).unwrap();
        engine.flush().unwrap();
        drop(engine);

        let engine = open(dir.path());
        assert_eq!(engine.get(Space::State, b"a").unwrap(), Some(long.clone()));
        let all: Vec<_> = engine.scan(Space::State, b"").collect::<io::Result<_>>().unwrap();
        assert_eq!(all, [(b"a".to_vec(), long), (b"b".to_vec(), b"short".to_vec())]);
        assert_eq!(engine.get(Space::Log, b"a").unwrap(), Some(b"other".to_vec()));
        let mut writes = Writes::default();
        writes.put(Space::State, b"a", b"now short".to_vec());
        engine.write(writes).unwrap();
        assert_eq!(engine.get(Space::State, b"a").unwrap(), Some(b"now short".to_vec()));
        assert_eq!(engine.db.scan_prefix([CHUNKS]).count(), 0);
    }
}
