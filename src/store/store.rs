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
use crate::disk::database::Database;
use crate::disk::engine::{Engine, Space, Writes};
use crate::disk::identity::{self, Identity, Marker, Standing};
use crate::disk::lock::DirLock;
use crate::disk::thread::{Disk, OPEN_FREE_BYTES_MIN};
use crate::disk::{durable, inspect, scrub, space};
use crate::group::Group;
use crate::group::join::Joined;
use crate::group::read::{READS_MAX, ReadAnswer};
use crate::metrics::Metrics;
use crate::mvcc::{self, Snapshot};
use crate::raft::log::LogStore;
use crate::raft::machine::{Machine, StateMachine, give_memory_back};
use crate::raft::network::Network;
use crate::raft::{Member, Raft};
use crate::watch::Watch;
use crate::wire::link::{Chain, Links};
use crate::wire::serve::Complaints;
use crate::{ClusterId, CommitError, Config, Freshness, OpenError, ReadError, Revision, Timing, Txn, WatchError};

/// How often this member was started: tells its proposals of one start from those of another.
const SESSION: &[u8] = b"session";

/// What to do with a directory that has no data.
#[derive(Clone, Debug)]
pub(crate) enum Beginning {
    /// Found a cluster.
    Open,
    Join {
        cluster: ClusterId,
        seeds: Vec<String>,
    },
}

/// Txns that wait to be put into an entry. Whoever comes then waits too.
const PROPOSALS_MAX: usize = 1024;

/// How long parts that are told to stop may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A checkpoint that was asked for and is not there after this long is asked for again.
const CHECKPOINT_ASKED_AGAIN: Duration = Duration::from_millis(200);

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
        let task = tokio::task::spawn_blocking(move || open_disk(&opening, &opening_beginning, opening_metrics));
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

pub(crate) struct Opened {
    pub(crate) disk: Disk,
    pub(crate) closed: oneshot::Receiver<()>,
    pub(crate) log: LogStore,
    pub(crate) machine: Arc<Machine>,
    pub(crate) identity: Identity,
    pub(crate) session: u64,
}

fn open_disk(config: &Config, beginning: &Beginning, metrics: Metrics) -> Result<Opened, OpenError> {
    let dir = config.dir.as_path();
    create_dir(dir)?;
    let lock = DirLock::take(dir)?;
    let marker = identity::read(dir)?;
    if let Some(marker) = &marker {
        admit(config, beginning, marker)?;
    }
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
    if let Some(marker) = &marker {
        identity::upgrade(dir, marker).map_err(|source| OpenError::Write { file: dir.join("identity"), source })?;
    }
    let (identity, standing) = settle_identity(dir, &engine, marker, beginning)?;
    let session =
        next_session(&engine).map_err(|source| OpenError::Engine { file: engine.file().to_path_buf(), source })?;
    let file = engine.file().to_path_buf();
    let damaged = |source: io::Error| match source.kind() {
        io::ErrorKind::InvalidData => OpenError::Corrupt { file: file.clone(), detail: source.to_string() },
        _ => OpenError::Engine { file: file.clone(), source },
    };
    let disk = Disk::start(Database::Engine(Box::new(engine)), dir.to_path_buf(), metrics.clone()).map_err(damaged)?;
    let recover = || -> Result<(Arc<Machine>, LogStore), OpenError> {
        let machine = Machine::open(&disk, config, identity, standing, metrics).map_err(damaged)?;
        let log = LogStore::open(disk.clone(), machine.applied_index()).map_err(damaged)?;
        // Reading may have finished what a crash had interrupted inside the engine.
        disk.engine().settle().map_err(damaged)?;
        if let Some(marker) = marker
            && machine.applied_index().load(Ordering::Acquire) < marker.checkpointed
        {
            let detail = format!("goes back behind log index {}, which was on disk", marker.checkpointed);
            return Err(OpenError::Lost { dir: dir.to_path_buf(), detail });
        }
        if let Some(marker) = marker
            && let Some(closed) = marker.closed
        {
            let end = log.last_index().max(machine.applied_index().load(Ordering::Acquire));
            if end < closed {
                let detail = format!("is damaged: its log ends at {end}, and ended at {closed} when it was closed");
                return Err(OpenError::Lost { dir: dir.to_path_buf(), detail });
            }
            // From now on it may end anywhere again: Raft takes back what was not committed.
            identity::write(dir, &Marker { closed: None, ..marker })
                .map_err(|source| OpenError::Write { file: dir.join("identity"), source })?;
        }
        let membership = machine.membership();
        if membership.voter_ids().any(|voter| voter == identity.member) {
            machine.stands(Standing::Member);
        } else if standing == Standing::Joining && matches!(beginning, Beginning::Open) {
            return Err(OpenError::NotJoined { dir: dir.to_path_buf() });
        }
        if config.peer.is_none() && membership.membership().nodes().count() > 1 {
            return Err(OpenError::NoTransport { dir: dir.to_path_buf() });
        }
        Ok((machine, log))
    };
    match recover() {
        Ok((machine, log)) => Ok(Opened { disk, closed, log, machine, identity, session }),
        Err(error) => {
            disk.give_up();
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

/// Whether a directory with data may be opened as it is asked for.
fn admit(config: &Config, beginning: &Beginning, marker: &Marker) -> Result<(), OpenError> {
    let dir = config.dir.clone();
    let Identity { cluster, member } = marker.identity;
    if let Beginning::Join { cluster: wanted, .. } = beginning
        && wanted.0 != cluster
    {
        return Err(OpenError::OtherCluster { dir, found: ClusterId(cluster), wanted: *wanted });
    }
    if marker.standing == Standing::Removed {
        return Err(OpenError::Removed { dir, member });
    }
    Ok(())
}

/// Counts this start. On disk when it returns.
fn next_session(engine: &Engine) -> io::Result<u64> {
    let last = match engine.get(Space::Meta, SESSION)? {
        Some(record) => record
            .as_slice()
            .try_into()
            .map(u64::from_le_bytes)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the count of starts is damaged"))?,
        None => 0,
    };
    let mut writes = Writes::default();
    writes.put(Space::Meta, SESSION, (last + 1).to_le_bytes().to_vec());
    engine.write(&writes)?;
    Ok(last + 1)
}

/// Holds the database's identity against the marker's. A fresh directory gets both, the database first: a marker alone
/// always means that a database was lost.
fn settle_identity(
    dir: &Path,
    engine: &Engine,
    marker: Option<Marker>,
    beginning: &Beginning,
) -> Result<(Identity, Standing), OpenError> {
    let read = |source| OpenError::Engine { file: engine.file().to_path_buf(), source };
    let write = |source| OpenError::Write { file: dir.join("identity"), source };
    let record = engine.get(Space::Meta, identity::RECORD).map_err(read)?;
    let stored = match &record {
        Some(record) => Some(Identity::from_record(record).ok_or_else(|| engine.corrupt("its identity is damaged"))?),
        None => None,
    };
    match (stored, marker) {
        (Some(stored), Some(marker)) if stored == marker.identity => Ok((stored, marker.standing)),
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
            let standing = begins_as(beginning);
            let marker = Marker { identity, checkpointed: 0, standing, closed: None };
            if let Beginning::Join { cluster: wanted, .. } = beginning
                && wanted.0 != identity.cluster
            {
                let found = ClusterId(identity.cluster);
                return Err(OpenError::OtherCluster { dir: dir.to_path_buf(), found, wanted: *wanted });
            }
            identity::write(dir, &marker).map_err(write)?;
            Ok((identity, standing))
        }
        (None, None) => {
            let identity = match beginning {
                Beginning::Open => Identity::found(),
                Beginning::Join { cluster, .. } => Identity::join(cluster.0),
            };
            let (identity, standing) = (identity.map_err(write)?, begins_as(beginning));
            let mut writes = Writes::default();
            identity.record(&mut writes);
            engine.write(&writes).map_err(read)?;
            identity::sync_dir(&dir.join("sled")).map_err(write)?;
            identity::write(dir, &Marker { identity, checkpointed: 0, standing, closed: None }).map_err(write)?;
            Ok((identity, standing))
        }
    }
}

fn begins_as(beginning: &Beginning) -> Standing {
    match beginning {
        Beginning::Open => Standing::Member,
        Beginning::Join { .. } => Standing::Joining,
    }
}

fn raft_config(timing: &Timing) -> openraft::Config {
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    openraft::Config {
        cluster_name: "mussel".to_string(),
        heartbeat_interval: milliseconds(timing.heartbeat_interval),
        election_timeout_min: milliseconds(timing.election_timeout_min),
        election_timeout_max: milliseconds(timing.election_timeout_max),
        // A lone member has nobody to hear from or to beat for; a tick would only wake the processor.
        enable_tick: false,
        enable_heartbeat: false,
        enable_pre_vote: Some(true),
        // A leader's state may be behind what it acknowledged until its new term's first entry is applied.
        enable_leader_restore: Some(false),
        // Checkpoints are ours to time, and so is what is purged from the log after them.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        ..openraft::Config::default()
    }
}

/// How the group knows this member.
fn own_record(config: &Config) -> Member {
    config
        .peer
        .as_ref()
        .map_or_else(Member::default, |peer| Member { name: peer.name.clone(), address: peer.address.clone() })
}

pub(crate) async fn start(
    config: Config,
    beginning: Beginning,
    metrics: Metrics,
    opened: Opened,
) -> Result<Store, OpenError> {
    let Opened { disk, closed, log, machine, identity, session } = opened;
    let failed = |detail: String| OpenError::Raft { detail };
    let raft_config = raft_config(&config.timing).validate().map_err(|e| failed(e.to_string()))?;
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let links = Links::new(
        ClusterId(identity.cluster),
        identity.member,
        config.wire_versions,
        config.peer.as_ref().map(|peer| peer.transport.clone()),
        config.timing.connect_timeout,
        tasks.clone(),
        stop.clone(),
        metrics.clone(),
    );
    let network = Network { own: identity.member, links: links.clone(), metrics: metrics.clone() };
    let state_machine = StateMachine { machine: machine.clone(), disk: disk.clone() };
    let raft = Raft::new(identity.member, Arc::new(raft_config), network, log, state_machine)
        .await
        .map_err(|e| failed(e.to_string()))?;
    let joining = *machine.standing().borrow() == Standing::Joining;
    if !joining && !raft.is_initialized().await.map_err(|e| failed(e.to_string()))? {
        let members = std::collections::BTreeMap::from([(identity.member, own_record(&config))]);
        raft.initialize(members).await.map_err(|e| failed(e.to_string()))?;
    }
    // Not from the metrics, which are a moment late.
    let lone = raft.with_raft_state(move |state| state.membership_state.effective().voter_ids().eq([identity.member]));
    let lone = lone.await.map_err(|e| failed(e.to_string()))?;
    if lone {
        if !raft.is_leader() {
            raft.trigger().elect(false).await.map_err(|e| failed(e.to_string()))?;
        }
        // The new term's first entry is applied after everything that was acknowledged in older terms.
        raft.wait(Some(Duration::from_secs(30)))
            .metrics(|m| m.current_leader == Some(identity.member), "leadership")
            .await
            .map_err(|e| failed(e.to_string()))?;
        raft.ensure_linearizable(ReadPolicy::ReadIndex).await.map_err(|e| failed(e.to_string()))?;
        // These are what the tasks below go by.
        let mut group = raft.server_metrics();
        while !(group.borrow_watched().state.is_leader() && group.borrow_watched().current_leader.is_some()) {
            group.changed().await.map_err(|_| failed("it ended".to_string()))?;
        }
    }

    let group = Arc::new(Group {
        identity,
        raft: raft.clone(),
        machine: machine.clone(),
        links,
        timing: config.timing,
        versions: config.wire_versions,
        metrics: metrics.clone(),
        dir: config.dir.clone(),
        free_bytes_min: config.free_bytes_min,
        failures: disk.failures(),
        record: Mutex::new(config.peer.is_some().then(|| own_record(&config))),
        changing: tokio::sync::Mutex::default(),
        sole_voter: AtomicBool::new(lone),
        noted: watch::Sender::new(if joining { Standing::Joining } else { Standing::Member }),
        heard: Mutex::new(tokio::time::Instant::now()),
        stop: stop.clone(),
    });
    let (proposals, proposed) = mpsc::channel(PROPOSALS_MAX);
    tasks.spawn(Batcher { proposals: proposed, group: group.clone(), session }.run());
    let (reads, asked) = mpsc::channel(READS_MAX);
    tasks.spawn(group.clone().answer_reads(asked));
    tasks.spawn(checkpoint(machine.clone(), raft.clone(), config.clone(), stop.clone()));
    tasks.spawn(scrub::run(disk.clone(), metrics.clone(), config.scrub_interval, stop.clone()));
    let (leads, leader) = watch::channel(lone);
    tasks.spawn(group.clone().keep(leads));
    tasks.spawn(group.clone().promote());
    tasks.spawn(group.clone().note_standing(disk.clone()));
    tasks.spawn(give_memory_back(machine.clone(), disk.clone(), stop.clone()));
    let (tell_joined, joined) = watch::channel((!joining).then_some(Ok(())));
    if joining && let Beginning::Join { seeds, .. } = beginning {
        tasks.spawn(group.clone().join(seeds, tell_joined));
    }
    if let Ok(bytes) = disk.engine().bytes_on_disk() {
        metrics.db_bytes.set(bytes as i64);
    }
    tracing::info!(
        dir = %config.dir.display(),
        member = format!("{:016x}", identity.member),
        revision = machine.revision().0,
        keys = machine.newest().len(),
        "store is open"
    );
    Ok(Store {
        shared: Arc::new(Shared {
            group,
            machine,
            raft,
            disk: Mutex::new(Some(disk)),
            proposals,
            reads,
            leader,
            joined,
            complaints: Complaints::default(),
            leader_timeout: config.timing.leader_timeout,
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
async fn checkpoint(machine: Arc<Machine>, raft: Raft, config: Config, stop: CancellationToken) {
    machine.freeze();
    loop {
        if !machine.is_very_dirty() {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = machine.dirty.notified() => {}
            }
        }
        let due = tokio::time::Instant::now() + config.checkpoint_interval;
        while !machine.is_very_dirty() {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = machine.very_dirty.notified() => {}
                () = tokio::time::sleep_until(due) => {
                    machine.take_all_frozen();
                    break;
                }
            }
        }
        let mut checkpointed = machine.checkpointed();
        checkpointed.borrow_and_update();
        let done = loop {
            if let Err(error) = raft.trigger().snapshot().await {
                tracing::error!(%error, "no checkpoint: raft has stopped");
                return;
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = checkpointed.changed() => break *checkpointed.borrow(),
                // Raft drops what it is asked for while it has not heard of the last one's end.
                () = tokio::time::sleep(CHECKPOINT_ASKED_AGAIN) => {}
            }
        };
        // Others may lag a little, and are better served with entries than with everything.
        let others = machine.membership().membership().nodes().count() > 1;
        let purge = done.saturating_sub(if others { config.log_entries_kept } else { 0 });
        if purge > 0 && raft.trigger().purge_log(purge).await.is_err() {
            return;
        }
    }
}
