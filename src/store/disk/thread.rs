//! The way to the disk: one thread writes Raft's log, another the database. So what a commit waits for, the log, does not
//! wait for checkpoints.
//!
//! A round that fails is not given up. Nobody who waits for it is told anything; the files are opened again and the same
//! writes are tried again, until the disk takes them. To Raft that is a slow disk, so that the store goes on by itself once
//! there is room again. Meanwhile [`Disk::failed`] says why nothing is written, and nothing new is accepted.

mod log;
mod state;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use openraft::storage::IOFlushed;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};

use crate::disk::database::Database;
use crate::disk::durable;
use crate::disk::engine::Writes;
use crate::disk::identity::Marker;
use crate::disk::journal::{Encoded, Journal};
use crate::disk::pace::Pace;
use crate::disk::space;
use crate::metrics::Metrics;
use crate::raft::{LogId, Types};

/// Its panics are about the database, see `last_words.rs`.
pub(crate) const DISK_THREAD: &str = "store-disk";
const LOG_THREAD: &str = "store-log";
const STACK_BYTES: usize = 512 << 10;

/// After an error: how long until the next try. Doubled each time up to the second.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(15);

/// The engine writes while it opens, and a full disk in the middle of that could not be undone.
pub(crate) const OPEN_FREE_BYTES_MIN: u64 = 2 << 20;

/// The way to the disk. Cheap to clone; the files close when the last clone is gone.
#[derive(Clone)]
pub(crate) struct Disk {
    engine: Arc<Database>,
    journal: Arc<Journal>,
    log_jobs: UnboundedSender<log::Job>,
    state_jobs: UnboundedSender<state::Job>,
    shared: Arc<Shared>,
}

pub(crate) type Failure = Option<Arc<io::Error>>;

/// Whose failure it is.
#[derive(Clone, Copy)]
enum Part {
    Log,
    State,
}

struct Shared {
    /// Of each [`Part`].
    failures: Mutex<[Failure; 2]>,
    /// The first of them.
    failed: watch::Sender<Failure>,
    /// The newest log index that is durable.
    written: AtomicU64,
    /// The store is stopping: what fails is not tried again.
    given_up: Mutex<bool>,
    wake: Condvar,
}

impl Shared {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            failures: Mutex::default(),
            failed: watch::Sender::new(None),
            written: AtomicU64::new(0),
            given_up: Mutex::new(false),
            wake: Condvar::new(),
        })
    }

    fn give_up(&self) {
        *self.given_up.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.wake.notify_all();
    }

    /// Sleeps. False when nothing is to be tried again.
    fn wait(&self, time: Duration) -> bool {
        let given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.wake.wait_timeout_while(given_up, time, |given_up| !*given_up);
        !*waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn failure(&self, part: Part) -> Failure {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)[part as usize].clone()
    }

    /// What `part` failed with before.
    fn set_failure(&self, part: Part, failure: Failure) -> Failure {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut failures[part as usize], failure);
        let first = failures.iter().flatten().next().cloned();
        if first.is_some() || before.is_some() {
            self.failed.send_replace(first);
        }
        before
    }

    /// Does `attempt`, and after each failure `recover` and `attempt`, until it works or the store stops.
    fn insist<T>(
        &self,
        part: Part,
        file: &Path,
        mut attempt: impl FnMut() -> io::Result<T>,
        mut recover: impl FnMut() -> io::Result<()>,
    ) -> io::Result<T> {
        // Given up: what comes after a hole must not be written.
        if let Some(error) = self.failure(part) {
            return Err(copy(&error));
        }
        let mut retry_after = RETRY_AFTER_MIN;
        let mut result = attempt();
        while let Err(error) = &result {
            let error = Arc::new(copy(error));
            if self.set_failure(part, Some(error.clone())).is_none() {
                tracing::error!(file = %file.display(), %error, "the store cannot write; it tries again until it can");
            }
            if !self.wait(retry_after) {
                return result;
            }
            retry_after = (retry_after * 2).min(RETRY_AFTER_MAX);
            result = recover().and_then(|()| attempt());
            if let Err(error) = &result {
                tracing::debug!(%error, "the store still cannot write");
            }
        }
        if self.set_failure(part, None).is_some() {
            tracing::info!(file = %file.display(), "the store writes again");
        }
        result
    }
}

impl Disk {
    pub(crate) fn start(
        engine: Database,
        journal: Journal,
        pace: Arc<Pace>,
        dir: PathBuf,
        metrics: Metrics,
    ) -> io::Result<Self> {
        let (disk, log_todo, state_todo) = Self::new(engine, journal);
        let shared = disk.shared.clone();
        let log = log::Writer::new(disk.journal.clone(), dir.clone(), pace, shared.clone(), metrics);
        let state = state::Writer { engine: disk.engine.clone(), dir, shared };
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.to_string()).stack_size(STACK_BYTES).spawn(work).map(drop)
        };
        spawn(LOG_THREAD, Box::new(move || log.run(log_todo)))?;
        spawn(DISK_THREAD, Box::new(move || state.run(state_todo)))?;
        Ok(disk)
    }

    fn new(engine: Database, journal: Journal) -> (Self, UnboundedReceiver<log::Job>, UnboundedReceiver<state::Job>) {
        // Unbounded, but what Raft sends is bounded by the proposals in flight, and those are bounded by the batcher; of
        // checkpoints there is one at a time.
        let (log_jobs, log_todo) = unbounded_channel();
        let (state_jobs, state_todo) = unbounded_channel();
        let (engine, journal) = (Arc::new(engine), Arc::new(journal));
        (Disk { engine, journal, log_jobs, state_jobs, shared: Shared::new() }, log_todo, state_todo)
    }

    /// The same in tasks, on a simulated disk.
    #[cfg(test)]
    pub(crate) fn start_simulated(
        platter: crate::sim::disk::Platter,
        journal: Journal,
        pace: Arc<Pace>,
        metrics: Metrics,
    ) -> Self {
        let (disk, log_todo, state_todo) = Self::new(Database::Simulated(platter.clone()), journal);
        // Trying again would block the simulation, and does not help against a power cut.
        disk.shared.give_up();
        let log = log::Writer::new(disk.journal.clone(), PathBuf::new(), pace, disk.shared.clone(), metrics);
        let state = state::Writer { engine: disk.engine.clone(), dir: PathBuf::new(), shared: disk.shared.clone() };
        tokio::spawn(log.run_simulated(log_todo, platter.clone()));
        tokio::spawn(state.run_simulated(state_todo, platter));
        disk
    }

    pub(crate) fn engine(&self) -> &Database {
        &self.engine
    }

    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    pub(crate) fn bytes_on_disk(&self) -> io::Result<u64> {
        Ok(self.engine.bytes_on_disk()? + self.journal.bytes_on_disk()?)
    }

    /// Why nothing can be written at the moment.
    pub(crate) fn failed(&self) -> Failure {
        self.shared.failed.borrow().clone()
    }

    /// Changes when writing fails, and when it works again.
    pub(crate) fn failures(&self) -> watch::Receiver<Failure> {
        self.shared.failed.subscribe()
    }

    /// The newest log index that is durable, of those that were appended since the start.
    pub(crate) fn written(&self) -> u64 {
        self.shared.written.load(Ordering::Acquire)
    }

    /// Appends to the log.
    pub(crate) fn append(&self, entries: Vec<Encoded>, flushed: IOFlushed<Types>) {
        self.send_log(log::Job::Append(entries, flushed));
    }

    /// Has entries after `last` not count any more. It is durable when this returns.
    pub(crate) async fn cut_back(&self, last: Option<LogId>) -> io::Result<()> {
        let (tell, told) = oneshot::channel();
        self.send_log(log::Job::CutBack(last, tell));
        told.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Has entries up to `id` not be read any more. Forgotten by a crash, it is repeated after the next checkpoint.
    pub(crate) fn purge(&self, id: LogId) {
        self.send_log(log::Job::Purge(id));
    }

    /// Writes to the database and makes durable; then also replaces the marker file.
    pub(crate) async fn write(&self, writes: Writes, marker: Option<Marker>) -> io::Result<()> {
        let (tell, told) = oneshot::channel();
        if let Err(error) = self.state_jobs.send(state::Job { writes, marker, tell }) {
            error.0.finish(Err(stopped()));
        }
        told.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// From now on whoever waits for a write that fails is told so, and none is tried twice: the store is stopping.
    pub(crate) fn give_up(&self) {
        self.shared.give_up();
    }

    fn send_log(&self, job: log::Job) {
        if let Err(error) = self.log_jobs.send(job) {
            error.0.finish(Err(stopped()));
        }
    }
}

fn stopped() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the store's disk thread has stopped")
}

/// Files are opened again only where the engine has room to do so, and the file system is to be trusted.
fn can_go_on(dir: &Path) -> io::Result<()> {
    match space::free_bytes(dir)? {
        free if free < OPEN_FREE_BYTES_MIN => Err(io::Error::from(io::ErrorKind::StorageFull)),
        _ => durable::prove_writable(dir),
    }
}

fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
