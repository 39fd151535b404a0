//! The thread that writes Raft's log: it gives all appends one order, and one `fdatasync` to all that wait for one.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use openraft::storage::IOFlushed;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;

use crate::disk::journal::{Encoded, Journal, Staged};
use crate::disk::pace::Pace;
use crate::disk::thread::{Part, Shared, can_go_on, copy};
use crate::metrics::Metrics;
use crate::raft::{LogId, Types};

/// Rounds are cut here, so that the first of many waiting appends is not held up by the last.
const APPENDS_PER_ROUND_MAX: usize = 256;
const BYTES_PER_ROUND_MAX: usize = 4 << 20;

pub(super) enum Job {
    /// Entries that follow each other; told when they are durable.
    Append(Vec<Encoded>, IOFlushed<Types>),
    CutBack(Option<LogId>, oneshot::Sender<io::Result<()>>),
    Purge(LogId),
}

impl Job {
    pub(super) fn finish(self, result: io::Result<()>) {
        match self {
            Job::Append(_, flushed) => flushed.io_completed(result),
            // Whoever gave up waiting does not need the answer.
            Job::CutBack(_, tell) => drop(tell.send(result)),
            Job::Purge(_) => {}
        }
    }
}

pub(super) struct Writer {
    journal: Arc<Journal>,
    dir: PathBuf,
    file: PathBuf,
    pace: Arc<Pace>,
    shared: Arc<Shared>,
    metrics: Metrics,
}

/// What shares a sync.
enum Round {
    Append(Vec<Encoded>, Vec<IOFlushed<Types>>),
    CutBack(Option<LogId>, oneshot::Sender<io::Result<()>>),
    Purge(LogId),
}

/// What was read ahead of a round's end, and begins the next.
type Ahead = Option<Job>;

impl Round {
    /// `first` and what waits behind it.
    fn collect(first: Job, todo: &mut UnboundedReceiver<Job>) -> (Self, Ahead) {
        let (mut entries, flushed) = match first {
            Job::Append(entries, flushed) => (entries, flushed),
            Job::CutBack(last, tell) => return (Self::CutBack(last, tell), None),
            Job::Purge(id) => return (Self::Purge(id), None),
        };
        let mut waiting = vec![flushed];
        let mut bytes = bytes_of(&entries);
        while waiting.len() < APPENDS_PER_ROUND_MAX && bytes < BYTES_PER_ROUND_MAX {
            match todo.try_recv() {
                Ok(Job::Append(more, flushed)) => {
                    bytes += bytes_of(&more);
                    entries.extend(more);
                    waiting.push(flushed);
                }
                Ok(other) => return (Self::Append(entries, waiting), Some(other)),
                Err(_) => break,
            }
        }
        (Self::Append(entries, waiting), None)
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Append(entries, _) => bytes_of(entries) as u64,
            Self::CutBack(..) | Self::Purge(_) => 0,
        }
    }

    fn stage(&self, journal: &Journal) -> io::Result<Option<Staged>> {
        match self {
            Self::Append(entries, _) if entries.is_empty() => Ok(None),
            Self::Append(entries, _) => journal.stage(entries).map(Some),
            Self::CutBack(last, _) => journal.stage_cut(*last).map(Some),
            Self::Purge(_) => Ok(None),
        }
    }

    fn finish(self, result: &io::Result<()>) {
        let answer = || result.as_ref().copied().map_err(copy);
        match self {
            Self::Append(_, waiting) => waiting.into_iter().for_each(|flushed| flushed.io_completed(answer())),
            Self::CutBack(_, tell) => drop(tell.send(answer())),
            Self::Purge(_) => {}
        }
    }
}

fn bytes_of(entries: &[Encoded]) -> usize {
    entries.iter().map(|(_, entry)| entry.len()).sum()
}

impl Writer {
    pub(super) fn new(
        journal: Arc<Journal>,
        dir: PathBuf,
        pace: Arc<Pace>,
        shared: Arc<Shared>,
        metrics: Metrics,
    ) -> Self {
        let file = journal.path();
        Self { journal, dir, file, pace, shared, metrics }
    }

    pub(super) fn run(self, mut todo: UnboundedReceiver<Job>) {
        let mut ahead = None;
        while let Some(first) = ahead.take().or_else(|| todo.blocking_recv()) {
            let (round, next) = Round::collect(first, &mut todo);
            ahead = next;
            let result = self.shared.insist(
                Part::Log,
                &self.file,
                || self.write(&round),
                || can_go_on(&self.dir).and_then(|()| self.journal.reopen()),
            );
            let pause = self.pace.pause(round.bytes());
            self.end(round, result);
            // Nobody waits for this who is not ahead of checkpoints by far.
            std::thread::sleep(pause);
        }
    }

    fn write(&self, round: &Round) -> io::Result<Option<Staged>> {
        let start = Instant::now();
        let staged = round.stage(&self.journal)?;
        if let Some(staged) = &staged {
            let _span = tracing::debug_span!("write to log").entered();
            staged.sync()?;
            self.metrics.fsync_seconds.observe(start.elapsed().as_secs_f64());
        }
        Ok(staged)
    }

    /// It counts, and who waits is told.
    fn end(&self, round: Round, result: io::Result<Option<Staged>>) {
        let result = result.map(|staged| {
            if let Some(staged) = staged {
                self.journal.settle(staged);
            }
            match &round {
                Round::Append(entries, _) => {
                    if let Some((id, _)) = entries.last() {
                        self.shared.written.store(id.index, Ordering::Release);
                    }
                }
                Round::CutBack(last, _) => {
                    let last = last.map_or(0, |id| id.index);
                    self.shared.written.fetch_min(last, Ordering::AcqRel);
                }
                Round::Purge(id) => self.journal.purge(*id),
            }
        });
        round.finish(&result);
    }

    #[cfg(test)]
    pub(super) async fn run_simulated(self, mut todo: UnboundedReceiver<Job>, platter: crate::sim::disk::Platter) {
        use crate::sim::fault::{Fault, SYNCED_ONE_IN};

        let mut rounds = 0;
        let mut ahead = None;
        loop {
            let first = match ahead.take() {
                Some(first) => first,
                None => match todo.recv().await {
                    Some(first) => first,
                    None => return,
                },
            };
            let (round, next) = Round::collect(first, &mut todo);
            ahead = next;
            let staged = match self.shared.failure(Part::Log) {
                Some(error) => Err(copy(&error)),
                None => round.stage(&self.journal),
            };
            rounds += 1;
            let lies = Fault::UnsyncedLog.is_given() && rounds % SYNCED_ONE_IN > 0;
            let result = match staged {
                Ok(Some(staged)) if !lies => {
                    tokio::time::sleep(platter.sync_time()).await;
                    staged.sync().map(|()| Some(staged))
                }
                other => other,
            };
            if let Err(error) = &result {
                self.shared.set_failure(Part::Log, Some(Arc::new(copy(error))));
            }
            let pause = self.pace.pause(round.bytes());
            self.end(round, result);
            tokio::time::sleep(pause).await;
        }
    }
}
