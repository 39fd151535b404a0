//! The handle that others hold, and how a store starts and stops.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use openraft::{ReadPolicy, SnapshotPolicy};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backup::{self, BackupError};
use crate::batch::{Batcher, Proposal, txn_bytes};
use crate::disk::engine::{Engine, Space, Writes};
use crate::disk::identity::{self, Identity, Marker};
use crate::disk::lock::DirLock;
use crate::disk::thread::{Disk, OPEN_FREE_BYTES_MIN};
use crate::disk::{durable, inspect, scrub, space};
use crate::metrics::Metrics;
use crate::mvcc::{self, Snapshot};
use crate::raft::log::LogStore;
use crate::raft::machine::{Machine, StateMachine};
use crate::raft::network::Alone;
use crate::raft::{Member, Raft};
use crate::watch::Watch;
use crate::{CommitError, Config, Freshness, OpenError, ReadError, Revision, Txn, WatchError};

/// Txns that wait to be put into an entry. Whoever comes then waits too.
const PROPOSALS_MAX: usize = 1024;

/// How long parts that are told to stop may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A replicated, versioned key space. A clone is another handle to the same store.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    machine: Arc<Machine>,
    raft: Raft,
    disk: Mutex<Option<Disk>>,
    proposals: mpsc::Sender<Proposal>,
    leader: watch::Receiver<bool>,
    /// This member is the whole group: what it has applied is what is committed.
    alone: Arc<AtomicBool>,
    cluster: u128,
    txn_bytes_max: usize,
    metrics: Metrics,
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
    /// Opens the store in `config.dir`, or founds a new one there, as a Raft group of one. Returns once it leads and has
    /// applied everything that was ever acknowledged.
    ///
    /// # Errors
    /// All leave the disk as it was. `Locked`: another process has it. `Lost`, `Corrupt`: see there.
    pub async fn open(config: Config) -> Result<Store, OpenError> {
        if !durable::is_in_force() {
            return Err(OpenError::FlushNotDurable);
        }
        let metrics = Metrics::default();
        let opening = config.clone();
        let opening_metrics = metrics.clone();
        // The database is read with blocking calls.
        let task = tokio::task::spawn_blocking(move || open_disk(&opening, opening_metrics));
        let opened = task.await.map_err(|e| OpenError::Raft { detail: e.to_string() })??;
        start(config, metrics, opened).await
    }

    /// Applies `txn` as a whole, or not at all. It is durable when this returns `Ok`, and every read that starts later
    /// sees it. The revision is the new one, or the current one if `txn` changed nothing.
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
        if shared.alone.load(Ordering::Acquire)
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
        shared.proposals.send(Proposal { txn, answer }).await.map_err(|_| CommitError::Stopped)?;
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

    /// The newest state, as fresh as asked for. Never touches the disk.
    pub async fn snapshot(&self, freshness: Freshness) -> Result<Snapshot, ReadError> {
        let shared = &self.shared;
        if shared.stop.is_cancelled() {
            return Err(ReadError::Stopped);
        }
        if freshness == Freshness::Linearizable && !shared.alone.load(Ordering::Acquire) {
            shared.raft.ensure_linearizable(ReadPolicy::ReadIndex).await.map_err(|error| match error {
                openraft::errors::RaftError::APIError(_) => ReadError::NoLeader,
                openraft::errors::RaftError::Fatal(_) => ReadError::Stopped,
            })?;
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
            cluster: format!("{:032x}", self.shared.cluster),
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

    /// Stops everything and closes the database; the directory can be opened again when this returns. Commits that
    /// wait end with `Stopped`. Works for all handles.
    pub async fn shutdown(self) {
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
            drop(shared.disk.lock().unwrap_or_else(PoisonError::into_inner).take());
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

struct Opened {
    disk: Disk,
    closed: oneshot::Receiver<()>,
    log: LogStore,
    machine: Arc<Machine>,
    identity: Identity,
}

fn open_disk(config: &Config, metrics: Metrics) -> Result<Opened, OpenError> {
    let dir = config.dir.as_path();
    create_dir(dir)?;
    let lock = DirLock::take(dir)?;
    let marker = identity::read(dir)?;
    if let Some(marker) = &marker
        && !dir.join("sled").join("db").exists()
    {
        let detail = format!("is gone (it had log index {})", marker.checkpointed);
        return Err(OpenError::Lost { dir: dir.to_path_buf(), detail });
    }
    inspect::inspect(&dir.join("sled").join("db"), dir, marker.is_some())?;
    // Before the engine writes anything: a full disk in the middle of its own recovery could not be undone.
    let free = space::free_bytes(dir).map_err(|source| OpenError::NotWritable { dir: dir.to_path_buf(), source })?;
    if free < OPEN_FREE_BYTES_MIN {
        let source = io::Error::from(io::ErrorKind::StorageFull);
        return Err(OpenError::NotWritable { dir: dir.to_path_buf(), source });
    }

    let (engine, closed) = Engine::open(dir, config.cache_bytes, lock)?;
    let identity = settle_identity(dir, &engine, marker)?;
    let file = engine.file().to_path_buf();
    let damaged = |source: io::Error| match source.kind() {
        io::ErrorKind::InvalidData => OpenError::Corrupt { file: file.clone(), detail: source.to_string() },
        _ => OpenError::Engine { file: file.clone(), source },
    };
    let disk = Disk::start(engine, dir.to_path_buf(), metrics.clone()).map_err(damaged)?;
    let recover = || -> Result<(Arc<Machine>, LogStore), OpenError> {
        let machine = Machine::open(&disk, config, metrics).map_err(damaged)?;
        let log = LogStore::open(disk.clone(), machine.applied_index()).map_err(damaged)?;
        if let Some(marker) = marker
            && machine.applied_index().load(Ordering::Acquire) < marker.checkpointed
        {
            let detail = format!("goes back behind log index {}, which was on disk", marker.checkpointed);
            return Err(OpenError::Lost { dir: dir.to_path_buf(), detail });
        }
        Ok((machine, log))
    };
    match recover() {
        Ok((machine, log)) => Ok(Opened { disk, closed, log, machine, identity }),
        Err(error) => {
            drop(disk);
            // The lock is free again when the caller hears of it. This resolves by being dropped.
            let _ = closed.blocking_recv();
            Err(error)
        }
    }
}

fn create_dir(dir: &Path) -> Result<(), OpenError> {
    use std::os::unix::fs::DirBuilderExt;
    // What is stored may be secret.
    let created = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    created.map_err(|source| OpenError::Create { dir: dir.to_path_buf(), source })
}

/// Holds the database's identity against the marker's. A fresh directory gets both, the database first: a marker alone
/// always means that a database was lost.
fn settle_identity(dir: &Path, engine: &Engine, marker: Option<Marker>) -> Result<Identity, OpenError> {
    let read = |source| OpenError::Engine { file: engine.file().to_path_buf(), source };
    let write = |source| OpenError::Write { file: dir.join("identity"), source };
    let record = engine.get(Space::Meta, identity::RECORD).map_err(read)?;
    let stored = match &record {
        Some(record) => Some(Identity::from_record(record).ok_or_else(|| engine.corrupt("its identity is damaged"))?),
        None => None,
    };
    match (stored, marker) {
        (Some(stored), Some(marker)) if stored == marker.identity => Ok(stored),
        (Some(_), Some(_)) => {
            let detail = "belongs to another cluster or member".to_string();
            Err(OpenError::Lost { dir: dir.to_path_buf(), detail })
        }
        (None, Some(_)) => {
            let detail = "is empty".to_string();
            Err(OpenError::Lost { dir: dir.to_path_buf(), detail })
        }
        // The first start ended between the two.
        (Some(identity), None) => {
            identity::write(dir, &Marker { identity, checkpointed: 0 }).map_err(write)?;
            Ok(identity)
        }
        (None, None) => {
            let identity = Identity::found().map_err(write)?;
            let mut writes = Writes::default();
            identity.record(&mut writes);
            engine.write(&writes).map_err(read)?;
            identity::sync_dir(&dir.join("sled")).map_err(write)?;
            identity::write(dir, &Marker { identity, checkpointed: 0 }).map_err(write)?;
            Ok(identity)
        }
    }
}

fn raft_config() -> openraft::Config {
    openraft::Config {
        cluster_name: "mussel".to_string(),
        heartbeat_interval: 100,
        election_timeout_min: 500,
        election_timeout_max: 1000,
        // A lone member has nobody to hear from or to beat for; a tick would only wake the processor.
        enable_tick: false,
        enable_heartbeat: false,
        enable_pre_vote: Some(true),
        // A leader's state may be behind what it acknowledged until its new term's first entry is applied.
        enable_leader_restore: Some(false),
        // Checkpoints are ours to time; what they hold is purged from the log at once.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: 0,
        ..openraft::Config::default()
    }
}

async fn start(config: Config, metrics: Metrics, opened: Opened) -> Result<Store, OpenError> {
    let Opened { disk, closed, log, machine, identity } = opened;
    let failed = |detail: String| OpenError::Raft { detail };
    let raft_config = raft_config().validate().map_err(|e| failed(e.to_string()))?;
    let state_machine = StateMachine { machine: machine.clone(), disk: disk.clone(), identity };
    let raft = Raft::new(identity.member, Arc::new(raft_config), Alone, log, state_machine)
        .await
        .map_err(|e| failed(e.to_string()))?;
    if !raft.is_initialized().await.map_err(|e| failed(e.to_string()))? {
        let members = std::collections::BTreeMap::from([(identity.member, Member::default())]);
        raft.initialize(members).await.map_err(|e| failed(e.to_string()))?;
    }
    if !raft.is_leader() {
        raft.trigger().elect(false).await.map_err(|e| failed(e.to_string()))?;
    }
    // The new term's first entry is applied after everything that was acknowledged in older terms.
    raft.wait(Some(Duration::from_secs(30)))
        .metrics(|m| m.current_leader == Some(identity.member), "leadership")
        .await
        .map_err(|e| failed(e.to_string()))?;
    raft.ensure_linearizable(ReadPolicy::ReadIndex).await.map_err(|e| failed(e.to_string()))?;

    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let (proposals, proposed) = mpsc::channel(PROPOSALS_MAX);
    let batcher = Batcher {
        proposals: proposed,
        raft: raft.clone(),
        disk: disk.clone(),
        dir: config.dir.clone(),
        free_bytes_min: config.free_bytes_min,
    };
    tasks.spawn(batcher.run(stop.clone()));
    tasks.spawn(checkpoint(machine.clone(), raft.clone(), config.checkpoint_interval, stop.clone()));
    tasks.spawn(scrub::run(disk.clone(), metrics.clone(), config.scrub_interval, stop.clone()));
    let alone = Arc::new(AtomicBool::new(true));
    let (leads, leader) = watch::channel(true);
    tasks.spawn(follow(raft.clone(), identity.member, leads, alone.clone(), metrics.clone(), stop.clone()));
    if let Ok(bytes) = disk.engine().bytes_on_disk() {
        metrics.db_bytes.set(bytes as i64);
    }
    tracing::info!(
        dir = %config.dir.display(),
        revision = machine.revision().0,
        keys = machine.newest().len(),
        "store is open"
    );
    Ok(Store {
        shared: Arc::new(Shared {
            machine,
            raft,
            disk: Mutex::new(Some(disk)),
            proposals,
            leader,
            alone,
            cluster: identity.cluster,
            txn_bytes_max: config.txn_bytes_max,
            metrics,
            stop,
            tasks,
            closed: Mutex::new(Some(closed)),
        }),
    })
}

/// Checkpoints some time after the first change, so that a key that changes often is written once; or at once when the
/// log has grown long.
async fn checkpoint(machine: Arc<Machine>, raft: Raft, interval: Duration, stop: CancellationToken) {
    machine.freeze();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = machine.dirty.notified() => {}
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = machine.very_dirty.notified() => {}
            () = tokio::time::sleep(interval) => {}
        }
        if let Err(error) = raft.trigger().snapshot().await {
            tracing::error!(%error, "no checkpoint: raft has stopped");
            return;
        }
    }
}

/// Keeps what others want to know of the group up to date.
async fn follow(
    raft: Raft,
    member: u64,
    leads: watch::Sender<bool>,
    alone: Arc<AtomicBool>,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let mut group = raft.server_metrics();
    let mut leader = None;
    loop {
        {
            let now = group.borrow_and_update();
            let leading = now.current_leader == Some(member) && now.state.is_leader();
            let only = now.membership_config.voter_ids().eq([member]);
            alone.store(leading && only, Ordering::Release);
            leads.send_if_modified(|leads| std::mem::replace(leads, leading) != leading);
            metrics.has_leader.set(now.current_leader.is_some().into());
            metrics.is_leader.set(leading.into());
            if now.current_leader.is_some() && now.current_leader != leader {
                leader = now.current_leader;
                metrics.leader_changes.inc();
            }
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            // Cancel-safe: a change that was not seen stays unseen.
            changed = group.changed() => if changed.is_err() {
                alone.store(false, Ordering::Release);
                leads.send_replace(false);
                return;
            },
        }
    }
}
