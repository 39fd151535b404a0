//! The thread that writes the database: checkpoints, votes, the marker beside it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;

use crate::disk::database::Database;
use crate::disk::engine::Writes;
use crate::disk::identity::Marker;
use crate::disk::thread::{Part, Shared, can_go_on, copy};

/// Rounds are cut here, so that the first of many waiting writes is not held up by the last.
const JOBS_PER_ROUND_MAX: usize = 256;

pub(super) struct Job {
    pub(super) writes: Writes,
    pub(super) marker: Option<Marker>,
    /// Told when it is durable, and the marker too, if there is one.
    pub(super) tell: oneshot::Sender<io::Result<()>>,
}

impl Job {
    pub(super) fn finish(self, result: io::Result<()>) {
        // Whoever gave up waiting does not need the answer.
        drop(self.tell.send(result));
    }
}

pub(super) struct Writer {
    pub(super) engine: Arc<Database>,
    pub(super) dir: PathBuf,
    pub(super) shared: Arc<Shared>,
}

/// What shares an fsync.
struct Round {
    writes: Writes,
    marker: Option<Marker>,
    waiting: Vec<oneshot::Sender<io::Result<()>>>,
}

impl Round {
    /// `first` and what waits behind it.
    fn collect(first: Job, todo: &mut UnboundedReceiver<Job>) -> Self {
        let mut round = Round { writes: first.writes, marker: first.marker, waiting: vec![first.tell] };
        for job in std::iter::from_fn(|| todo.try_recv().ok()).take(JOBS_PER_ROUND_MAX) {
            round.writes.append(job.writes);
            // The newest one says all that older ones would.
            round.marker = job.marker.or(round.marker);
            round.waiting.push(job.tell);
        }
        round
    }

    fn finish(self, result: &io::Result<()>) {
        for tell in self.waiting {
            drop(tell.send(result.as_ref().copied().map_err(copy)));
        }
    }
}

impl Writer {
    pub(super) fn run(self, mut todo: UnboundedReceiver<Job>) {
        while let Some(first) = todo.blocking_recv() {
            let round = Round::collect(first, &mut todo);
            let result = self.shared.insist(
                Part::State,
                self.engine.file(),
                || self.write(&round),
                || can_go_on(&self.dir).and_then(|()| self.engine.reopen()),
            );
            round.finish(&result);
        }
    }

    fn write(&self, round: &Round) -> io::Result<()> {
        if !round.writes.is_empty() {
            let _span = tracing::debug_span!("write to disk", bytes = round.writes.bytes()).entered();
            self.engine.write(&round.writes)?;
        }
        match &round.marker {
            Some(marker) => self.engine.write_marker(&self.dir, marker),
            None => Ok(()),
        }
    }

    #[cfg(test)]
    pub(super) async fn run_simulated(self, mut todo: UnboundedReceiver<Job>, platter: crate::sim::disk::Platter) {
        use crate::sim::fault::{Fault, SYNCED_ONE_IN};

        let mut rounds = 0;
        while let Some(first) = todo.recv().await {
            let round = Round::collect(first, &mut todo);
            rounds += 1;
            let lies = Fault::UnsyncedState.is_given() && rounds % SYNCED_ONE_IN > 0;
            let result = platter.write(round.writes.changes(), round.marker, !lies).await;
            if let Err(error) = &result {
                self.shared.set_failure(Part::State, Some(Arc::new(copy(error))));
            }
            round.finish(&result);
        }
    }
}
