//! The handle that others hold. `opening.rs` opens what is on disk, `start.rs` starts what works on it.

pub(crate) mod opening;
mod start;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backup::{self, BackupError};
use crate::batch::{Proposal, txn_bytes};
use crate::disk::durable;
use crate::disk::engine::Writes;
use crate::disk::identity::Marker;
use crate::disk::thread::Disk;
use crate::group::Group;
use crate::group::join::Joined;
use crate::group::read::ReadAnswer;
use crate::metrics::Metrics;
use crate::mvcc::{self, Snapshot};
use crate::raft::Raft;
use crate::raft::machine::Machine;
pub(crate) use crate::store::opening::{Beginning, Opened};
pub(crate) use crate::store::start::start;
use crate::watch::Watch;
use crate::wire::link::Chain;
use crate::wire::serve::Complaints;
use crate::{CommitError, Config, Freshness, OpenError, ReadError, Revision, Txn, WatchError};

/// How long parts that are told to stop may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the disk may take to say how large the database is.
const SIZE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a leader that stops may take to hand over.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);

/// A replicated, versioned key space. A clone is another handle to the same store.
#[derive(Clone)]
pub struct Store {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) group: Arc<Group>,
    pub(crate) machine: Arc<Machine>,
    pub(crate) raft: Raft,
    disk: Mutex<Option<Disk>>,
    proposals: mpsc::Sender<Proposal>,
    reads: mpsc::Sender<ReadAnswer>,
    leader: watch::Receiver<bool>,
    pub(crate) joined: watch::Receiver<Joined>,
    pub(crate) complaints: Complaints,
    leader_timeout: Duration,
    txn_bytes_max: usize,
    pub(crate) metrics: Metrics,
    stop: CancellationToken,
    tasks: TaskTracker,
    closed: Mutex<Option<oneshot::Receiver<()>>>,
}

impl Shared {
    fn give_up(&self) {
        if let Some(disk) = self.disk.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            disk.give_up();
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop.cancel();
        self.machine.stop();
        self.give_up();
    }
}

impl Store {
    /// Opens the store in `config.dir`, or founds a new one there, as a group of one.
    ///
    /// A member that is a group by itself leads and has applied everything that was ever acknowledged when this returns.
    /// One of several returns at once, so that [`Store::serve_peer`] can be called: commits and linearizable reads wait
    /// for a leader then.
    ///
    /// # Errors
    /// All leave the disk as it was. `Locked`: another process has it. `Lost`, `Corrupt`, `Removed`, `NotJoined`: see
    /// there.
    pub async fn open(config: Config) -> Result<Store, OpenError> {
        Self::begin(config, Beginning::Open).await
    }

    pub(crate) async fn begin(config: Config, beginning: Beginning) -> Result<Store, OpenError> {
        if !durable::is_in_force() {
            return Err(OpenError::FlushNotDurable);
        }
        let metrics = Metrics::default();
        let opening = config.clone();
        let opening_metrics = metrics.clone();
        let opening_beginning = beginning.clone();
        // The database is read with blocking calls.
        let task =
            tokio::task::spawn_blocking(move || opening::open_disk(&opening, &opening_beginning, opening_metrics));
        let opened = task.await.map_err(|e| OpenError::Raft { detail: e.to_string() })??;
        start(config, beginning, metrics, opened).await
    }

    /// Applies `txn` as a whole, or not at all. It is durable when this returns `Ok`, and every read that starts later
    /// sees it. The revision is the new one, or the current one if `txn` changed nothing. May be called on any member.
    /// Without a leader it waits for one, for [`crate::Timing::leader_timeout`] or a little more.
    ///
    /// # Cancel safety
    /// Not cancel-safe: a dropped call may or may not be applied.
    pub async fn commit(&self, txn: Txn) -> Result<Revision, CommitError> {
        let shared = &self.shared;
        let bytes = txn_bytes(&txn);
        if bytes > shared.txn_bytes_max {
            return Err(CommitError::TooLarge { bytes, bytes_max: shared.txn_bytes_max });
        }
        // What cannot hold need not be written down to be refused, where there is nobody else who could know better.
        if self.is_alone()
            && let snapshot = shared.machine.newest()
            && let Some((index, current)) = mvcc::refusal(snapshot.map(), &txn)
        {
            shared.metrics.refused.inc();
            return Err(CommitError::Refused { index, current });
        }
        if let Some(error) = self.failed() {
            return Err(CommitError::Unwritable(error));
        }
        let start = Instant::now();
        let (answer, answered) = oneshot::channel();
        let deadline = tokio::time::Instant::now() + shared.leader_timeout;
        shared.proposals.send(Proposal { txn, deadline, answer }).await.map_err(|_| CommitError::Stopped)?;
        let result = {
            let _pending = Pending::new(&shared.metrics);
            answered.await.unwrap_or(Err(CommitError::Stopped))
        };
        shared.metrics.commit_seconds.observe(start.elapsed().as_secs_f64());
        match &result {
            Ok(_) => {}
            Err(CommitError::Refused { .. }) => drop(shared.metrics.refused.inc()),
            Err(_) => drop(shared.metrics.failed.inc()),
        }
        result
    }

    /// This member is the whole group: what it has applied is what is committed.
    fn is_alone(&self) -> bool {
        let shared = &self.shared;
        // By what is in the log, too: a member that starts has applied old entries only, and those may say so.
        *shared.leader.borrow() && shared.group.sole_voter.load(Ordering::Acquire) && shared.machine.is_sole_voter()
    }

    /// The newest state, as fresh as asked for. Never touches the disk.
    pub async fn snapshot(&self, freshness: Freshness) -> Result<Snapshot, ReadError> {
        let shared = &self.shared;
        if shared.stop.is_cancelled() {
            return Err(ReadError::Stopped);
        }
        if freshness == Freshness::Linearizable && !self.is_alone() {
            let (answer, answered) = oneshot::channel();
            shared.reads.send(answer).await.map_err(|_| ReadError::Stopped)?;
            answered.await.unwrap_or(Err(ReadError::Stopped))?;
        }
        Ok(shared.machine.newest())
    }

    /// The state as it was at `revision`. Takes time in proportion to what changed since.
    pub fn snapshot_at(&self, revision: Revision) -> Result<Snapshot, ReadError> {
        self.shared.machine.snapshot_at(revision)
    }

    /// Waits until this member has applied `revision`.
    pub async fn wait_for(&self, revision: Revision) -> Result<(), ReadError> {
        let mut revisions = self.shared.machine.revisions();
        tokio::select! {
            () = self.shared.stop.cancelled() => Err(ReadError::Stopped),
            reached = revisions.wait_for(|applied| *applied >= revision) => {
                reached.map(drop).map_err(|_| ReadError::Stopped)
            }
        }
    }

    /// Commits after `after` that change a key under `prefix`.
    pub fn watch(&self, prefix: Bytes, after: Revision) -> Result<Watch, WatchError> {
        self.shared.machine.watch(prefix, after)
    }

    /// Whether this member leads.
    pub fn leader(&self) -> watch::Receiver<bool> {
        self.shared.leader.clone()
    }

    /// The newest revision that this member has applied.
    pub fn revision(&self) -> Revision {
        self.shared.machine.revision()
    }

    /// Writes the newest state, with every write that was acknowledged before the call, to the file `path`. Writes go on
    /// meanwhile. `node` and `version` are for people who look at the file. The file is there as a whole, and on disk,
    /// when this returns `Ok`; else it is as it was.
    ///
    /// # Cancel safety
    /// The file is written also when the call is dropped.
    pub async fn backup(
        &self,
        path: impl Into<PathBuf>,
        node: &str,
        version: &str,
    ) -> Result<backup::Header, BackupError> {
        let path = path.into();
        let snapshot = self.snapshot(Freshness::Linearizable).await?;
        let header = backup::Header {
            cluster: format!("{:032x}", self.shared.group.identity.cluster),
            revision: snapshot.revision().0,
            keys: snapshot.len() as u64,
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            node: node.to_string(),
            version: version.to_string(),
        };
        let task = tokio::task::spawn_blocking(move || {
            backup::save(&snapshot, &header, &path)?;
            Ok(header)
        });
        task.await.map_err(|error| BackupError::Task { detail: error.to_string() })?
    }

    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Why nothing can be written at the moment, if that is so. The store tries by itself until it can again.
    pub fn failed(&self) -> Option<Arc<io::Error>> {
        self.shared.disk.lock().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(Disk::failed)
    }

    /// What the database takes up on disk: now, or when it was last looked at if the disk does not answer.
    pub(crate) async fn db_bytes(&self) -> u64 {
        let shared = &self.shared;
        let disk = shared.disk.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(disk) = disk {
            // It waits for a write that is under way.
            let reading = tokio::task::spawn_blocking(move || disk.bytes_on_disk());
            if let Ok(Ok(Ok(bytes))) = tokio::time::timeout(SIZE_TIMEOUT, reading).await {
                shared.metrics.db_bytes.set(bytes as i64);
            }
        }
        shared.metrics.db_bytes.get().try_into().unwrap_or(0)
    }

    /// Lets another member lead before this one goes. Does nothing on a member that does not lead, or is alone.
    pub async fn hand_over(&self) {
        let shared = &self.shared;
        if *shared.leader.borrow() && shared.group.membership().voter_ids().count() > 1 {
            match tokio::time::timeout(HAND_OVER_TIMEOUT, shared.group.lead_transfer(None)).await {
                Ok(Ok(leader)) => tracing::info!(leader = format!("{leader:016x}"), "leadership is handed over"),
                Ok(Err(error)) => tracing::warn!(error = %Chain(&error), "leadership is not handed over"),
                Err(_) => tracing::warn!("leadership is not handed over in time"),
            }
        }
    }

    /// Stops everything and closes the database; the directory can be opened again when this returns. Commits that
    /// wait end with `Stopped`. Works for all handles. A leader hands over first, so that the others need no election.
    pub async fn shutdown(self) {
        self.hand_over().await;
        let shared = &self.shared;
        shared.stop.cancel();
        shared.machine.stop();
        shared.give_up();
        shared.tasks.close();
        let stopping = async {
            shared.tasks.wait().await;
            if let Err(error) = shared.raft.shutdown().await {
                tracing::warn!(%error, "raft did not stop cleanly");
            }
            let disk = shared.disk.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(disk) = disk
                && disk.written() > 0
            {
                let marker = Marker { closed: Some(disk.written()), ..shared.machine.marker() };
                if let Err(error) = disk.write(Writes::default(), Some(marker)).await {
                    tracing::warn!(%error, "the store's end is not noted");
                }
            }
            let closed = shared.closed.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(closed) = closed {
                // It resolves by being dropped.
                let _ = closed.await;
            }
        };
        if tokio::time::timeout(STOP_TIMEOUT, stopping).await.is_err() {
            tracing::warn!("the store did not close its database in time");
        }
    }
}

/// Counts a waiting commit, also when its caller gives up.
struct Pending<'a>(&'a Metrics);

impl<'a> Pending<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.pending.inc();
        Self(metrics)
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.pending.dec();
    }
}
