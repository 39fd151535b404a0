//! The database behind a narrow type. The only file that knows sled, so that its version, or itself, can change.
//!
//! One ordered key space holds three kinds of records, told apart by the first byte of the key, so that a batch is atomic
//! across them. sled recovers a prefix of what was written, in order, and a batch as a whole. Each record carries a
//! checksum over its key and value: sled checks what it reads from its file, and this checks what sled makes of it.
//!
//! Values are compressed where that saves something: fewer bytes wear out less, and the engine keeps pages as they are on
//! disk in its memory.
//!
//! sled keeps up to 16 records in a page and moves a page of more than a quarter of a segment to a file of its own, a
//! blob, which it does not make durable. So a long value is cut into chunks, small enough for any page to fit; and what
//! becomes a blob nevertheless, by very long keys, is made durable here.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use crate::OpenError;
use crate::disk::durable::{self, Deferred};
use crate::disk::lock::DirLock;

/// 20 records of this size with their keys, the most that merging makes a page hold, stay below 128 KiB.
const CHUNK_BYTES_MAX: usize = 5 << 10;

/// sled's default; fixed here because `inspect.rs` and `durable.rs` rely on it.
pub(crate) const SEGMENT_BYTES: usize = 512 << 10;

/// How long a database that this process closed may take to be free again: sled lets go of its file in the background.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(5);

/// What a scan reads at a time. Writers wait for it.
const SCAN_RECORDS: usize = 256;

/// sled's cache has 256 parts, each of which counts what it holds only after as many uses of its pages.
const CACHE_USES: usize = 65;
/// Some milliseconds for which writers wait; fewer would wait for many writers.
const CACHE_KEYS_AT_ONCE: usize = 32;

const WHOLE: u8 = 2;
const CHUNKED: u8 = 3;
/// As these, of a value that is compressed.
const PACKED_WHOLE: u8 = 4;
const PACKED_CHUNKED: u8 = 5;
const CHECKSUM_BYTES: usize = 4;

/// Shorter values gain nothing.
const PACKED_BYTES_MIN: usize = 128;
/// zstd's fastest of the usual ones: it must not hold up a write, also where the processor is a small one.
const PACK_LEVEL: i32 = 1;
/// What is longer than any value can be is damage, and no reason to reserve so much memory.
const VALUE_BYTES_MAX: usize = u16::MAX as usize * CHUNK_BYTES_MAX;

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

    pub(crate) fn bytes(&self) -> usize {
        self.0.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len)).sum()
    }

    /// Full keys, and values that replace what they held.
    #[cfg(test)]
    pub(crate) fn changes(&self) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        self.0.clone()
    }
}

pub(crate) struct Engine {
    /// Exclusive for a write until it is durable, see `durable.rs`. `None` when it could not be opened again.
    db: RwLock<Option<Open>>,
    config: sled::Config,
    /// sled's folder.
    path: PathBuf,
    /// The database's own file, for messages.
    file: PathBuf,
    /// How many chunks the long values have.
    chunks: Mutex<HashMap<Vec<u8>, u16>>,
    packer: Mutex<zstd::bulk::Compressor<'static>>,
    unpacker: Mutex<zstd::bulk::Decompressor<'static>>,
    /// What the last durable batch ended with: a database that is opened again has to have it.
    witness: Mutex<Option<(Vec<u8>, Option<Vec<u8>>)>>,
    // Dropped after the database is closed.
    _lock: DirLock,
    _closed: tokio::sync::oneshot::Sender<()>,
}

struct Open {
    db: sled::Db,
    /// The database's file once more, to sync it.
    file: File,
    /// sled's folder of blobs, and those in it that are durable.
    blobs: PathBuf,
    blobs_synced: HashSet<OsString>,
    /// Whether the file system can take room ahead, as far as is known.
    reserves: bool,
    _deferred: Deferred,
}

impl Open {
    fn sync(&mut self) -> io::Result<()> {
        let mut found = HashSet::new();
        for blob in fs::read_dir(&self.blobs)? {
            found.insert(blob?.file_name());
        }
        if found.iter().any(|blob| !self.blobs_synced.contains(blob)) {
            for blob in found.difference(&self.blobs_synced) {
                match File::open(self.blobs.join(blob)) {
                    Ok(file) => file.sync_all()?,
                    // Removed meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            File::open(&self.blobs)?.sync_all()?;
        }
        self.blobs_synced = found;
        // Only a saving: without room for it the batch is on disk all the same.
        if self.reserves
            && durable::reserve_segment(&self.file).is_err_and(|error| error.kind() == io::ErrorKind::Unsupported)
        {
            self.reserves = false;
        }
        self.file.sync_data()
    }
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
        let engine_error = |source| OpenError::Engine { file: file.clone(), source };
        let packer = zstd::bulk::Compressor::new(PACK_LEVEL).map_err(engine_error)?;
        let unpacker = zstd::bulk::Decompressor::new().map_err(engine_error)?;
        let open = open(&config, &path, &file)?;
        let (closed, on_closed) = tokio::sync::oneshot::channel();
        let engine = Engine {
            db: RwLock::new(Some(open)),
            config,
            path,
            file,
            chunks: Mutex::default(),
            packer: Mutex::new(packer),
            unpacker: Mutex::new(unpacker),
            witness: Mutex::default(),
            _lock: lock,
            _closed: closed,
        };
        engine.count_chunks().map_err(|e| engine.corrupt(e.to_string()))?;
        engine.settle().map_err(|source| OpenError::Engine { file: engine.file.clone(), source })?;
        Ok((engine, on_closed))
    }

    /// Closes the database and opens it again, after an error that left sled unusable. What was durable before is
    /// there again; what was not may or may not be, as after a crash.
    ///
    /// # Errors
    /// The database stays closed: reads and writes fail until a later call succeeds.
    pub(crate) fn reopen(&self) -> io::Result<()> {
        let mut slot = self.db.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = slot.take() {
            // sled ends a failing close with a panic.
            if panic::catch_unwind(AssertUnwindSafe(|| drop(open))).is_err() {
                tracing::warn!(file = %self.file.display(), "the engine did not close cleanly");
            }
        }
        // After a failed write-back the kernel has pages in memory that the disk does not have.
        durable::forget_cached(&File::open(&self.file)?);
        let open = open(&self.config, &self.path, &self.file).map_err(|error| match error {
            OpenError::Engine { source, .. } | OpenError::NotWritable { source, .. } => source,
            other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
        })?;
        *slot = Some(open);
        drop(slot);
        self.count_chunks()?;
        self.settle()?;
        let witness = self.witness.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((full_key, value)) = witness
            && self.get_full(&full_key)? != value
        {
            return Err(self.damaged(&full_key, "is not what was written last"));
        }
        Ok(())
    }

    pub(crate) fn corrupt(&self, detail: impl Into<String>) -> OpenError {
        OpenError::Corrupt { file: self.file.clone(), detail: detail.into() }
    }

    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    fn read(&self) -> RwLockReadGuard<'_, Option<Open>> {
        self.db.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_chunks(&self) -> io::Result<()> {
        let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        chunks.clear();
        for key in opened(&self.read())?.db.scan_prefix([CHUNKS]).keys() {
            let key = key.map_err(|error| io_error(error, &self.file))?;
            let Some((full_key, index)) = key.get(1..).and_then(|key| key.split_last_chunk()) else {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "chunk key is too short"));
            };
            let count = chunks.entry(full_key.to_vec()).or_default();
            *count = (*count).max(u16::from_be_bytes(*index) + 1);
        }
        Ok(())
    }

    pub(crate) fn get(&self, space: Space, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.get_full(&space.key(key))
    }

    fn get_full(&self, full_key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let guard = self.read();
        let db = &opened(&guard)?.db;
        match db.get(full_key).map_err(|error| io_error(error, &self.file))? {
            Some(record) => self.whole(db, full_key, &record).map(Some),
            None => Ok(None),
        }
    }

    /// All records of `space` from `start` on, in key order. Records that change meanwhile may be seen before or after.
    pub(crate) fn scan(&self, space: Space, start: &[u8]) -> Scan<'_> {
        Scan { engine: self, next: Some(space.key(start)), end: vec![space as u8 + 1], read: VecDeque::new() }
    }

    /// Has later reads come from the disk, as far as they do not come from the engine's own cache.
    pub(crate) fn forget_cached(&self) {
        if let Ok(open) = opened(&self.read()) {
            durable::forget_cached(&open.file);
        }
    }

    /// Has sled's cache shrink to its size. By itself it counts so late that it may hold all there is. `keys` of `space` are
    /// the way to its parts: a few hundred, spread over the space.
    pub(crate) fn shrink_cache(&self, space: Space, keys: &[&[u8]]) {
        for some in keys.chunks(CACHE_KEYS_AT_ONCE) {
            let guard = self.read();
            let Ok(open) = opened(&guard) else { return };
            for key in some {
                let full_key = space.key(key);
                for _ in 0..CACHE_USES {
                    // Errors are met, and told, by who wants the record.
                    let _ = open.db.get(&full_key);
                }
            }
        }
    }

    /// Reads some records from `start` on, of all spaces, and says which are damaged.
    pub(crate) fn read_slice(&self, start: &[u8]) -> Slice {
        let mut slice = Slice::default();
        let guard = self.read();
        // Closed after an error: there is nothing to be found out now.
        let Ok(open) = opened(&guard) else { return slice };
        for record in open.db.range(start..).take(SCAN_RECORDS) {
            let read = record.map_err(|error| io_error(error, &self.file)).and_then(|(full_key, record)| {
                slice.next = Some([&full_key[..], &[0]].concat());
                slice.records += 1;
                slice.bytes += (full_key.len() + record.len()) as u64;
                // Chunks are looked at with the record that they belong to.
                if full_key.first() == Some(&CHUNKS) {
                    Ok(())
                } else {
                    self.whole(&open.db, &full_key, &record).map(drop)
                }
            });
            if let Err(error) = read {
                slice.damaged.push(error);
            }
        }
        if slice.records < SCAN_RECORDS {
            slice.next = None;
        }
        slice
    }

    fn whole(&self, db: &sled::Db, full_key: &[u8], record: &[u8]) -> io::Result<Vec<u8>> {
        let damaged = |what| self.damaged(full_key, what);
        let Some((form, rest)) = record.split_first() else { return Err(damaged("is empty")) };
        let Some((sum, body)) = rest.split_first_chunk::<CHECKSUM_BYTES>() else { return Err(damaged("is too short")) };
        let stored = match *form {
            WHOLE | PACKED_WHOLE => Cow::Borrowed(body),
            CHUNKED | PACKED_CHUNKED => {
                let count =
                    body.try_into().map(u16::from_be_bytes).map_err(|_| damaged("has a damaged chunk count"))?;
                let mut value = Vec::with_capacity(usize::from(count) * CHUNK_BYTES_MAX);
                for index in 0..count {
                    let chunk = db.get(chunk_key(full_key, index)).map_err(|error| io_error(error, &self.file))?;
                    value.extend_from_slice(&chunk.ok_or_else(|| damaged("misses a chunk"))?);
                }
                Cow::Owned(value)
            }
            _ => return Err(damaged("has no known form")),
        };
        let value = match *form {
            PACKED_WHOLE | PACKED_CHUNKED => self.unpack(&stored).ok_or_else(|| damaged("is not as it was packed"))?,
            _ => stored.into_owned(),
        };
        if checksum(full_key, &value) != *sum {
            return Err(damaged("does not match its checksum"));
        }
        Ok(value)
    }

    /// `value` behind its length and compressed, if that is shorter by enough to be worth the work of reading it.
    fn pack(&self, value: &[u8]) -> Option<Vec<u8>> {
        if value.len() < PACKED_BYTES_MIN || value.len() > VALUE_BYTES_MAX {
            return None;
        }
        let compressed = self.packer.lock().unwrap_or_else(PoisonError::into_inner).compress(value).ok()?;
        let length = u32::try_from(value.len()).ok()?;
        (compressed.len() < value.len() - value.len() / 8).then(|| [&length.to_le_bytes()[..], &compressed].concat())
    }

    fn unpack(&self, packed: &[u8]) -> Option<Vec<u8>> {
        let (length, compressed) = packed.split_first_chunk()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok().filter(|length| *length <= VALUE_BYTES_MAX)?;
        let value = self.unpacker.lock().unwrap_or_else(PoisonError::into_inner).decompress(compressed, length).ok()?;
        (value.len() == length).then_some(value)
    }

    fn damaged(&self, full_key: &[u8], what: &str) -> io::Error {
        let detail = format!("{}: record {} {what}", self.file.display(), name(full_key));
        io::Error::new(io::ErrorKind::InvalidData, detail)
    }

    /// Applies all changes or none. They are durable when this returns.
    ///
    /// # Errors
    /// The changes may or may not be there, and sled takes no more of them: [`Engine::reopen`] it.
    pub(crate) fn write(&self, writes: &Writes) -> io::Result<()> {
        let mut slot = self.db.write().unwrap_or_else(PoisonError::into_inner);
        let open = slot.as_mut().ok_or_else(closed)?;
        let batch = self.batch(writes)?;
        // sled meets some errors with a panic.
        let written = panic::catch_unwind(AssertUnwindSafe(|| {
            open.db.apply_batch(batch)?;
            open.db.flush()
        }));
        match written {
            Ok(Ok(_)) => open.sync()?,
            Ok(Err(error)) => return Err(io_error(error, &self.file)),
            Err(_) => return Err(io::Error::other("the engine gave up writing")),
        }
        if let Some(last) = writes.0.last() {
            *self.witness.lock().unwrap_or_else(PoisonError::into_inner) = Some(last.clone());
        }
        Ok(())
    }

    /// Makes durable what sled has written by itself, as it does while it opens. The next batch relies on it, see `tail.rs`.
    pub(crate) fn settle(&self) -> io::Result<()> {
        let mut slot = self.db.write().unwrap_or_else(PoisonError::into_inner);
        let open = slot.as_mut().ok_or_else(closed)?;
        open.db.flush().map_err(|error| io_error(error, &self.file))?;
        open.sync()
    }

    fn batch(&self, writes: &Writes) -> io::Result<sled::Batch> {
        let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut batch = sled::Batch::default();
        for (full_key, value) in &writes.0 {
            let chunks_before = chunks.remove(full_key).unwrap_or(0);
            let chunks_now = match value {
                None => {
                    batch.remove(full_key.as_slice());
                    0
                }
                Some(value) => {
                    let packed = self.pack(value);
                    let (whole, chunked) =
                        if packed.is_some() { (PACKED_WHOLE, PACKED_CHUNKED) } else { (WHOLE, CHUNKED) };
                    let stored = packed.as_deref().unwrap_or(value);
                    let sum = checksum(full_key, value);
                    if stored.len() <= CHUNK_BYTES_MAX {
                        batch.insert(full_key.as_slice(), [&[whole], &sum[..], stored].concat());
                        0
                    } else {
                        let count = u16::try_from(stored.len().div_ceil(CHUNK_BYTES_MAX))
                            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "value is too long"))?;
                        for (index, chunk) in (0..).zip(stored.chunks(CHUNK_BYTES_MAX)) {
                            batch.insert(chunk_key(full_key, index), chunk);
                        }
                        batch.insert(full_key.as_slice(), [&[chunked], &sum[..], &count.to_be_bytes()].concat());
                        chunks.insert(full_key.clone(), count);
                        count
                    }
                }
            };
            for index in chunks_now..chunks_before {
                batch.remove(chunk_key(full_key, index));
            }
        }
        Ok(batch)
    }

    pub(crate) fn bytes_on_disk(&self) -> io::Result<u64> {
        opened(&self.read())?.db.size_on_disk().map_err(|error| io_error(error, &self.file))
    }
}

/// What [`Engine::read_slice`] found.
#[derive(Debug, Default)]
pub(crate) struct Slice {
    /// Where to go on; `None` at the end.
    pub(crate) next: Option<Vec<u8>>,
    pub(crate) records: usize,
    pub(crate) bytes: u64,
    pub(crate) damaged: Vec<io::Error>,
}

/// Reads a bounded number of records at a time, so that no writer waits for a whole scan.
pub(crate) struct Scan<'a> {
    engine: &'a Engine,
    /// Where to go on; `None` at the end.
    next: Option<Vec<u8>>,
    end: Vec<u8>,
    read: VecDeque<io::Result<(Vec<u8>, Vec<u8>)>>,
}

impl Iterator for Scan<'_> {
    /// The key within its space, and the value.
    type Item = io::Result<(Vec<u8>, Vec<u8>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.read.is_empty() {
            self.fill();
        }
        self.read.pop_front()
    }
}

impl Scan<'_> {
    fn fill(&mut self) {
        let Some(start) = self.next.take() else { return };
        let guard = self.engine.read();
        let open = match opened(&guard) {
            Ok(open) => open,
            Err(error) => return self.read.push_back(Err(error)),
        };
        for record in open.db.range(start..self.end.clone()).take(SCAN_RECORDS) {
            let read = record.map_err(|error| io_error(error, &self.engine.file)).and_then(|(full_key, record)| {
                let value = self.engine.whole(&open.db, &full_key, &record)?;
                // The key that follows at once.
                self.next = Some([&full_key[..], &[0]].concat());
                Ok((full_key[1..].to_vec(), value))
            });
            let failed = read.is_err();
            self.read.push_back(read);
            if failed {
                self.next = None;
                return;
            }
        }
        if self.read.len() < SCAN_RECORDS {
            self.next = None;
        }
    }
}

fn open(config: &sled::Config, path: &Path, file: &Path) -> Result<Open, OpenError> {
    let engine_error = |source| OpenError::Engine { file: file.to_path_buf(), source };
    // A process that was killed may have left writes that only the kernel has. sled is about to build on them.
    match File::open(file) {
        Ok(file) => file.sync_all().map_err(engine_error)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(engine_error(error)),
    }
    let start = Instant::now();
    #[cfg(panic = "abort")]
    let _opening = crate::disk::last_words::Opening::of(file);
    let opened = loop {
        // sled meets some kinds of damage with a panic. It is at the top of a call that has changed nothing of ours.
        let opened = panic::catch_unwind(AssertUnwindSafe(|| config.open()));
        match &opened {
            // Nobody else can have it: the directory's lock is ours.
            Ok(Err(error)) if is_locked(error) && start.elapsed() < CLOSING_TIMEOUT => {
                std::thread::sleep(Duration::from_millis(2));
            }
            _ => break opened,
        }
    };
    let db = match opened {
        Ok(Ok(db)) => db,
        Ok(Err(error)) => return Err(open_error(error, file, path)),
        Err(_) => {
            let detail = "the engine gave up reading it".to_string();
            return Err(OpenError::Corrupt { file: file.to_path_buf(), detail });
        }
    };
    let file = File::open(file).map_err(engine_error)?;
    let deferred = durable::defer(&file).map_err(engine_error)?;
    Ok(Open { db, file, blobs: path.join("blobs"), blobs_synced: HashSet::new(), reserves: true, _deferred: deferred })
}

fn opened(slot: &Option<Open>) -> io::Result<&Open> {
    slot.as_ref().ok_or_else(closed)
}

fn closed() -> io::Error {
    io::Error::other("the database is closed after an error")
}

fn checksum(full_key: &[u8], value: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut crc = crc32fast::Hasher::new();
    crc.update(full_key);
    crc.update(value);
    crc.finalize().to_le_bytes()
}

/// A key for messages. Keys are no secret, values may be.
fn name(full_key: &[u8]) -> String {
    match full_key.split_first() {
        Some((b'l', index)) => match index.try_into() {
            Ok(index) => format!("log entry {}", u64::from_be_bytes(index)),
            Err(_) => "of the log".to_string(),
        },
        Some((b's' | b't', key)) => format!("key {}", String::from_utf8_lossy(key).escape_debug()),
        Some((b'm', key)) => format!("field {}", String::from_utf8_lossy(key).escape_debug()),
        _ => String::from_utf8_lossy(full_key).escape_debug().to_string(),
    }
}

fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().contains("could not acquire lock"))
}

fn io_error(error: sled::Error, file: &Path) -> io::Error {
    match error {
        sled::Error::Io(error) => error,
        sled::Error::Corruption { at, .. } => {
            // sled shows where only in its debug form.
            let at = at.map_or_else(String::new, |at| format!(" at {at:?}"));
            let detail = format!("{}: a page{at} does not match its checksum", file.display());
            io::Error::new(io::ErrorKind::InvalidData, detail)
        }
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

    /// Does not compress.
    fn noise(length: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ length as u64;
        let next = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        (0..length).map(next).collect()
    }

    #[test]
    fn long_values_come_back_whole_and_leave_no_chunk_behind() {
        let dir = tempfile::tempdir().unwrap();
        let long = noise(100_000);
        let engine = open(dir.path());
        let mut writes = Writes::default();
        writes.put(Space::State, b"a", long.clone());
        writes.put(Space::State, b"b", b"short".to_vec());
        writes.put(Space::Log, b"a", b"other".to_vec());
        engine.write(&writes).unwrap();
        drop(engine);

        let engine = open(dir.path());
        assert_eq!(engine.get(Space::State, b"a").unwrap(), Some(long.clone()));
        let all: Vec<_> = engine.scan(Space::State, b"").collect::<io::Result<_>>().unwrap();
        assert_eq!(all, [(b"a".to_vec(), long), (b"b".to_vec(), b"short".to_vec())]);
        assert_eq!(engine.get(Space::Log, b"a").unwrap(), Some(b"other".to_vec()));
        let mut writes = Writes::default();
        writes.put(Space::State, b"a", b"now short".to_vec());
        engine.write(&writes).unwrap();
        assert_eq!(engine.get(Space::State, b"a").unwrap(), Some(b"now short".to_vec()));
        assert_eq!(raw(&engine).scan_prefix([CHUNKS]).count(), 0);
    }

    #[test]
    fn values_are_compressed_where_that_helps() {
        let dir = tempfile::tempdir().unwrap();
        let engine = open(dir.path());
        let similar: Vec<u8> = (0..2000).flat_map(|n| format!("{{\"number\": {}}}", n % 7).into_bytes()).collect();
        let values =
            [Vec::new(), similar[..127].to_vec(), similar[..1000].to_vec(), similar, noise(1000), noise(20_000)];
        let stored: Vec<_> = values
            .iter()
            .map(|value| {
                let mut writes = Writes::default();
                writes.put(Space::State, b"k", value.clone());
                engine.write(&writes).unwrap();
                assert_eq!(engine.get(Space::State, b"k").unwrap().as_ref(), Some(value));
                let db = raw(&engine);
                let chunks: usize = db.scan_prefix([CHUNKS]).values().map(|chunk| chunk.unwrap().len()).sum();
                chunks + db.get(Space::State.key(b"k")).unwrap().unwrap().len()
            })
            .collect();
        assert!(stored[2] < 200 && stored[3] < 2000, "{stored:?}");
        assert_eq!((stored[0], stored[1], stored[4]), (5, 132, 1005));
        assert!(stored[5] < 20_020, "{stored:?}");
    }

    fn raw(engine: &Engine) -> sled::Db {
        engine.read().as_ref().unwrap().db.clone()
    }

    #[test]
    fn a_scan_sees_all_records_once_whatever_it_reads_at_a_time() {
        for count in [0, 1, SCAN_RECORDS, SCAN_RECORDS + 1, 3 * SCAN_RECORDS] {
            let dir = tempfile::tempdir().unwrap();
            let engine = open(dir.path());
            let mut writes = Writes::default();
            writes.put(Space::Log, b"before", Vec::new());
            for n in 0..count as u32 {
                writes.put(Space::State, &n.to_be_bytes(), n.to_le_bytes().to_vec());
            }
            engine.write(&writes).unwrap();
            let all: Vec<_> = engine.scan(Space::State, b"").collect::<io::Result<_>>().unwrap();
            let expected: Vec<_> =
                (0..count as u32).map(|n| (n.to_be_bytes().to_vec(), n.to_le_bytes().to_vec())).collect();
            assert_eq!(all, expected);
        }
    }

    #[test]
    fn a_record_that_changed_by_itself_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let engine = open(dir.path());
        let mut writes = Writes::default();
        writes.put(Space::State, b"/pods/a", b"value".to_vec());
        writes.put(Space::State, b"/pods/b", vec![1; 1000]);
        writes.put(Space::Log, &7u64.to_be_bytes(), noise(60_000));
        engine.write(&writes).unwrap();
        let db = raw(&engine);
        for (full_key, named) in [
            (Space::State.key(b"/pods/b"), "key /pods/b"),
            (Space::State.key(b"/pods/a"), "key /pods/a"),
            (chunk_key(&Space::Log.key(&7u64.to_be_bytes()), 1), "log entry 7"),
        ] {
            let mut record = db.get(&full_key).unwrap().unwrap().to_vec();
            *record.last_mut().unwrap() ^= 1;
            db.insert(&full_key, record).unwrap();
            let error = engine
                .scan(if named.starts_with("key") { Space::State } else { Space::Log }, b"")
                .last()
                .unwrap()
                .unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(error.to_string().contains(named) && error.to_string().contains("sled/db"), "{error}");
            let slice = engine.read_slice(b"");
            assert!(slice.damaged.iter().any(|error| error.to_string().contains(named)), "{slice:?}");
        }
    }

    #[test]
    fn no_page_becomes_a_blob_whatever_the_values() {
        let dir = tempfile::tempdir().unwrap();
        let engine = open(dir.path());
        let blobs = || fs::read_dir(dir.path().join("sled/blobs")).unwrap().count();
        for n in 0..600u32 {
            let mut writes = Writes::default();
            let key = format!("/registry/{:0>300}", n * 7919 % 400);
            match n % 5 {
                0 => writes.remove(Space::State, key.as_bytes()),
                _ => writes.put(Space::State, key.as_bytes(), noise([100, 5000, 5120, 60_000, 5121][n as usize % 5])),
            }
            engine.write(&writes).unwrap();
            assert_eq!(blobs(), 0, "at {n}");
        }
    }

    #[test]
    fn a_database_opened_again_has_what_was_durable() {
        let dir = tempfile::tempdir().unwrap();
        let engine = open(dir.path());
        for n in 0..50u8 {
            let mut writes = Writes::default();
            writes.put(Space::State, &[n % 7], noise(30_000 + usize::from(n)));
            engine.write(&writes).unwrap();
            if n % 10 == 9 {
                engine.reopen().unwrap();
                assert_eq!(engine.get(Space::State, &[n % 7]).unwrap(), Some(noise(30_000 + usize::from(n))));
            }
        }
    }
}
