//! The database behind a narrow type. The only place that knows sled, so that its version, or itself, can change: `writes.rs`
//! is what is written, `form.rs` how a record looks, `scan.rs` reads many.
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

mod form;
mod scan;
#[cfg(test)]
mod tests;
mod writes;

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use crate::OpenError;
use crate::disk::durable::{self, Deferred};
pub(crate) use crate::disk::engine::form::Packer;
pub(crate) use crate::disk::engine::scan::Slice;
use crate::disk::engine::writes::CHUNKS;
pub(crate) use crate::disk::engine::writes::{Record, Space, Writes};
use crate::disk::lock::DirLock;

/// sled's default; fixed here because `inspect.rs` and `durable.rs` rely on it.
pub(crate) const SEGMENT_BYTES: usize = 512 << 10;

/// How long a database that this process closed may take to be free again: sled lets go of its file in the background.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(5);

/// sled's cache has 256 parts, each of which counts what it holds only after as many uses of its pages.
const CACHE_USES: usize = 65;
/// Some milliseconds for which writers wait; fewer would wait for many writers.
const CACHE_KEYS_AT_ONCE: usize = 32;

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
    packer: Mutex<Packer>,
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
        let packer = Packer::new().map_err(engine_error)?;
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
        if let Some(last) = writes.witness() {
            *self.witness.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
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

    pub(crate) fn bytes_on_disk(&self) -> io::Result<u64> {
        opened(&self.read())?.db.size_on_disk().map_err(|error| io_error(error, &self.file))
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
