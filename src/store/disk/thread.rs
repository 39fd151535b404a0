//! The one thread that writes to the database: it gives all writes one order, and one fsync to all that wait for one.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use openraft::storage::IOFlushed;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use crate::disk::database::Database;
use crate::disk::engine::Writes;
use crate::disk::identity::Marker;
use crate::metrics::Metrics;
use crate::raft::Types;

/// Rounds are cut here, so that the first of many waiting writes is not held up by the last.
const JOBS_PER_ROUND_MAX: usize = 256;

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

#[derive(Default)]
struct Shared {
    failed: OnceLock<Arc<io::Error>>,
    /// The newest log index that can be read from the database.
    written: AtomicU64,
}

impl Disk {
    pub(crate) fn start(engine: Database, dir: PathBuf, metrics: Metrics) -> io::Result<Self> {
        // Unbounded, but what Raft sends is bounded by the proposals in flight, and those are bounded by the batcher.
        let (jobs, mut todo) = unbounded_channel();
        let engine = Arc::new(engine);
        let shared = Arc::new(Shared::default());
        let disk = Disk { engine: engine.clone(), jobs, shared: shared.clone() };
        std::thread::Builder::new()
            .name("store-disk".to_string())
            .stack_size(512 << 10)
            .spawn(move || run(&engine, &mut todo, &dir, &shared, &metrics))?;
        Ok(disk)
    }

    /// The same in a task, for simulations: `before_round` is awaited before each round of writes.
    #[cfg(test)]
    pub(crate) fn start_in_task<F: Future<Output = ()> + Send>(
        engine: Database,
        metrics: Metrics,
        mut before_round: impl FnMut() -> F + Send + 'static,
    ) -> Self {
        let (jobs, mut todo) = unbounded_channel();
        let engine = Arc::new(engine);
        let shared = Arc::new(Shared::default());
        let disk = Disk { engine: engine.clone(), jobs, shared: shared.clone() };
        tokio::spawn(async move {
            while let Some(first) = todo.recv().await {
                before_round().await;
                work(&engine, first, &mut todo, std::path::Path::new(""), &shared, &metrics);
            }
        });
        disk
    }

    pub(crate) fn engine(&self) -> &Database {
        &self.engine
    }

    /// The error after which nothing can be written any more.
    pub(crate) fn failed(&self) -> Option<Arc<io::Error>> {
        self.shared.failed.get().cloned()
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

fn run(
    engine: &Database,
    todo: &mut UnboundedReceiver<Job>,
    dir: &std::path::Path,
    shared: &Shared,
    metrics: &Metrics,
) {
    while let Some(first) = todo.blocking_recv() {
        work(engine, first, todo, dir, shared, metrics);
    }
}

/// One round: `first` and what waits behind it.
fn work(
    engine: &Database,
    first: Job,
    todo: &mut UnboundedReceiver<Job>,
    dir: &std::path::Path,
    shared: &Shared,
    metrics: &Metrics,
) {
    let mut writes = Writes::default();
    let mut waiting = Vec::new();
    let mut flush = false;
    let behind = std::iter::from_fn(|| todo.try_recv().ok());
    for job in std::iter::once(first).chain(behind.take(JOBS_PER_ROUND_MAX)) {
        flush |= !matches!(job.then, Then::Nothing);
        writes.append(job.writes);
        waiting.push(job.then);
    }
    let result = match shared.failed.get() {
        Some(error) => Err(copy(error)),
        None => round(engine, writes, flush, metrics),
    };
    if let Err(error) = &result {
        // The engine's memory and its file may differ from here on: only a restart makes them one again.
        if shared.failed.set(Arc::new(copy(error))).is_ok() {
            tracing::error!(file = %engine.file().display(), %error, "the store cannot write any more");
        }
    }
    for then in waiting {
        let mut result = result.as_ref().copied().map_err(copy);
        if let (Ok(()), Then::Raft(last, _)) = (&result, &then) {
            shared.written.store(*last, Ordering::Release);
        }
        if let (Ok(()), Then::Tell(Some(marker), _)) = (&result, &then) {
            result = engine.write_marker(dir, marker);
        }
        then.finish(result);
    }
}

fn round(engine: &Database, writes: Writes, flush: bool, metrics: &Metrics) -> io::Result<()> {
    if !writes.is_empty() {
        engine.write(writes)?;
    }
    if flush {
        let start = Instant::now();
        engine.flush()?;
        metrics.fsync_seconds.observe(start.elapsed().as_secs_f64());
    }
    Ok(())
}

fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
