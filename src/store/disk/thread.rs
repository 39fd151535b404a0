//! The one thread that writes to the database: it gives all writes one order, and one fsync to all that wait for one.
//!
//! A round that fails is not given up. Nobody who waits for it is told anything; the engine is opened again and the same
//! writes are tried again, until the disk takes them. To Raft that is a slow disk, so that the store goes on by itself once
//! there is room again. Meanwhile [`Disk::failed`] says why nothing is written, and nothing new is accepted.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use openraft::storage::IOFlushed;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};

use crate::disk::database::Database;
use crate::disk::engine::Writes;
use crate::disk::identity::Marker;
use crate::disk::space;
use crate::metrics::Metrics;
use crate::raft::Types;

pub(crate) const DISK_THREAD: &str = "store-disk";

/// Rounds are cut here, so that the first of many waiting writes is not held up by the last.
const JOBS_PER_ROUND_MAX: usize = 256;

/// Writes that nobody waits for are kept for the next round; so many bytes are a round of their own.
const HELD_BYTES_MAX: usize = 256 << 10;

/// After an error: how long until the next try. Doubled each time up to the second.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(15);

/// The engine writes while it opens, and a full disk in the middle of that could not be undone.
pub(crate) const OPEN_FREE_BYTES_MIN: u64 = 2 << 20;

enum Then {
    /// Raft's log up to this index: told when it is durable.
    Raft(u64, IOFlushed<Types>),
    /// Told when it is durable, and the marker too, if there is one.
    Tell(Option<Marker>, oneshot::Sender<io::Result<()>>),
    /// Order is enough; a crash may forget it.
    Nothing,
}

struct Job {
    writes: Writes,
    then: Then,
}

/// The way to the disk. Cheap to clone; the database closes when the last clone is gone.
#[derive(Clone)]
pub(crate) struct Disk {
    engine: Arc<Database>,
    jobs: UnboundedSender<Job>,
    shared: Arc<Shared>,
}

pub(crate) type Failure = Option<Arc<io::Error>>;

struct Shared {
    failed: watch::Sender<Failure>,
    /// The newest log index that can be read from the database.
    written: AtomicU64,
    /// The store is stopping: what fails is not tried again.
    given_up: Mutex<bool>,
    wake: Condvar,
}

impl Shared {
    fn new() -> Arc<Self> {
        Arc::new(Self {
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
}

impl Disk {
    pub(crate) fn start(engine: Database, dir: PathBuf, metrics: Metrics) -> io::Result<Self> {
        // Unbounded, but what Raft sends is bounded by the proposals in flight, and those are bounded by the batcher.
        let (jobs, mut todo) = unbounded_channel();
        let engine = Arc::new(engine);
        let shared = Shared::new();
        let disk = Disk { engine: engine.clone(), jobs, shared: shared.clone() };
        let mut writer = Writer { engine, dir, shared, metrics, held: Writes::default() };
        std::thread::Builder::new().name(DISK_THREAD.to_string()).stack_size(512 << 10).spawn(move || {
            while let Some(first) = todo.blocking_recv() {
                writer.work(first, &mut todo);
            }
        })?;
        Ok(disk)
    }

    /// The same in a task, on a simulated disk.
    #[cfg(test)]
    pub(crate) fn start_simulated(platter: crate::sim::disk::Platter, metrics: Metrics) -> Self {
        let (jobs, mut todo) = unbounded_channel();
        let engine = Arc::new(Database::Simulated(platter.clone()));
        let shared = Shared::new();
        // Trying again would block the simulation, and does not help against a power cut.
        shared.give_up();
        let disk = Disk { engine: engine.clone(), jobs, shared: shared.clone() };
        let mut writer = Writer { engine, dir: PathBuf::new(), shared, metrics, held: Writes::default() };
        tokio::spawn(async move {
            while let Some(first) = todo.recv().await {
                let Some(round) = writer.collect(first, &mut todo) else { continue };
                let result = platter.write(round.writes.changes(), round.marker).await;
                if let Err(error) = &result {
                    writer.shared.failed.send_replace(Some(Arc::new(copy(error))));
                }
                writer.tell(round.waiting, &result);
            }
        });
        disk
    }

    pub(crate) fn engine(&self) -> &Database {
        &self.engine
    }

    /// Why nothing can be written at the moment.
    pub(crate) fn failed(&self) -> Failure {
        self.shared.failed.borrow().clone()
    }

    /// Changes when writing fails, and when it works again.
    pub(crate) fn failures(&self) -> watch::Receiver<Failure> {
        self.shared.failed.subscribe()
    }

    pub(crate) fn written(&self) -> u64 {
        self.shared.written.load(Ordering::Acquire)
    }

    /// Entries after `index` are no longer in the database.
    pub(crate) fn truncated(&self, index: u64) {
        self.shared.written.fetch_min(index, Ordering::AcqRel);
    }

    /// Appends to the log up to index `last`.
    pub(crate) fn append(&self, writes: Writes, last: u64, flushed: IOFlushed<Types>) {
        self.send(Job { writes, then: Then::Raft(last, flushed) });
    }

    /// Writes and makes durable; then also replaces the marker file.
    pub(crate) async fn write(&self, writes: Writes, marker: Option<Marker>) -> io::Result<()> {
        let (tell, told) = oneshot::channel();
        self.send(Job { writes, then: Then::Tell(marker, tell) });
        told.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Writes after all that was sent before, and before all that is sent later.
    pub(crate) fn write_unflushed(&self, writes: Writes) {
        self.send(Job { writes, then: Then::Nothing });
    }

    /// From now on whoever waits for a write that fails is told so, and none is tried twice: the store is stopping.
    pub(crate) fn give_up(&self) {
        self.shared.give_up();
    }

    fn send(&self, job: Job) {
        if let Err(error) = self.jobs.send(job) {
            error.0.then.finish(Err(stopped()));
        }
    }
}

impl Then {
    fn finish(self, result: io::Result<()>) {
        match self {
            Then::Raft(_, flushed) => flushed.io_completed(result),
            // Whoever gave up waiting does not need the answer.
            Then::Tell(_, tell) => drop(tell.send(result)),
            Then::Nothing => {}
        }
    }
}

fn stopped() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the store's disk thread has stopped")
}

struct Writer {
    engine: Arc<Database>,
    dir: PathBuf,
    shared: Arc<Shared>,
    metrics: Metrics,
    /// Nobody waits for these, so that they may share the next round's fsync.
    held: Writes,
}

/// What shares an fsync.
struct Round {
    writes: Writes,
    marker: Option<Marker>,
    waiting: Vec<Then>,
}

impl Writer {
    /// `first` and what waits behind it.
    fn work(&mut self, first: Job, todo: &mut UnboundedReceiver<Job>) {
        if let Some(round) = self.collect(first, todo) {
            let result = self.insist(&round.writes, round.marker);
            self.tell(round.waiting, &result);
        }
    }

    /// `None` while nobody waits for what there is.
    fn collect(&mut self, first: Job, todo: &mut UnboundedReceiver<Job>) -> Option<Round> {
        let mut writes = std::mem::take(&mut self.held);
        let mut waiting = Vec::new();
        let mut durable = writes.bytes() > HELD_BYTES_MAX;
        let behind = std::iter::from_fn(|| todo.try_recv().ok());
        for job in std::iter::once(first).chain(behind.take(JOBS_PER_ROUND_MAX)) {
            durable |= !matches!(job.then, Then::Nothing);
            writes.append(job.writes);
            waiting.push(job.then);
        }
        if !durable {
            self.held = writes;
            return None;
        }
        // The newest one says all that older ones would.
        let marker = waiting.iter().rev().find_map(|then| match then {
            Then::Tell(marker, _) => *marker,
            _ => None,
        });
        Some(Round { writes, marker, waiting })
    }

    fn tell(&self, waiting: Vec<Then>, result: &io::Result<()>) {
        for then in waiting {
            if let (Ok(()), Then::Raft(last, _)) = (result, &then) {
                self.shared.written.store(*last, Ordering::Release);
            }
            then.finish(result.as_ref().copied().map_err(copy));
        }
    }

    /// Writes until it works, or until the store stops.
    fn insist(&mut self, writes: &Writes, marker: Option<Marker>) -> io::Result<()> {
        // Given up: what comes after a hole must not be written.
        if let Some(error) = self.shared.failed.borrow().as_ref() {
            return Err(copy(error));
        }
        let mut retry_after = RETRY_AFTER_MIN;
        let mut result = self.round(writes, marker);
        while let Err(error) = &result {
            let error = Arc::new(copy(error));
            let first = self.shared.failed.send_replace(Some(error.clone())).is_none();
            if first {
                let file = self.engine.file().display();
                tracing::error!(%file, %error, "the store cannot write; it tries again until it can");
            }
            if !self.shared.wait(retry_after) {
                return result;
            }
            retry_after = (retry_after * 2).min(RETRY_AFTER_MAX);
            result = reopen(&self.engine, &self.dir).and_then(|()| self.round(writes, marker));
            if let Err(error) = &result {
                tracing::debug!(%error, "the store still cannot write");
            }
        }
        if self.shared.failed.send_replace(None).is_some() {
            tracing::info!(file = %self.engine.file().display(), "the store writes again");
        }
        result
    }

    fn round(&self, writes: &Writes, marker: Option<Marker>) -> io::Result<()> {
        if !writes.is_empty() {
            let _span = tracing::debug_span!("write to disk", bytes = writes.bytes()).entered();
            let start = Instant::now();
            self.engine.write(writes)?;
            self.metrics.fsync_seconds.observe(start.elapsed().as_secs_f64());
        }
        match marker {
            Some(marker) => self.engine.write_marker(&self.dir, &marker),
            None => Ok(()),
        }
    }
}

fn reopen(engine: &Database, dir: &Path) -> io::Result<()> {
    if space::free_bytes(dir)? < OPEN_FREE_BYTES_MIN {
        return Err(io::Error::from(io::ErrorKind::StorageFull));
    }
    engine.reopen()
}

fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
