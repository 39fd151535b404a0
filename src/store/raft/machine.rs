//! The state machine: applies what Raft has agreed on to the key space in memory, and tells watchers and readers.
//!
//! Its snapshots are checkpoints. Building one writes the keys that changed since the last one to the database, in one
//! batch with what they stand for; then Raft may purge the log. Recovery is the state tree plus the log's tail.
//!
//! A checkpoint is of the state as it was frozen when the one before was made. So the log always reaches back by some
//! time, and what it replays after a restart is history again: watches from revisions before the restart go on.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{RaftSnapshotBuilder, StoredMembership};
use tokio::sync::{Notify, watch};

use crate::config::Config;
use crate::disk::engine::{Space, Writes};
use crate::disk::identity::{Identity, Marker};
use crate::disk::records::{self, Checkpoint};
use crate::disk::thread::Disk;
use crate::history::{Bounds, History};
use crate::metrics::Metrics;
use crate::mvcc::{self, KeySpace, Snapshot};
use crate::raft::{Entry, LogId, Outcomes, Payload, SnapshotMeta, SnapshotOf, StoredMembershipOf, Types};
use crate::watch::{self as watching, Watch, Watchers};
use crate::{ReadError, Revision, WatchError};

pub(crate) const CHECKPOINT: &[u8] = b"checkpoint";

/// What Raft agreed on up to some entry. A clone is a pointer copy, and stays as it is while writes go on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Frozen {
    space: KeySpace,
    applied: Option<LogId>,
    membership: StoredMembershipOf,
}

impl Frozen {
    fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            applied: self.applied,
            membership: self.membership.clone(),
            revision: self.space.revision,
            keys: self.space.map.len() as u64,
            digest: self.space.digest,
        }
    }

    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() }
    }

    fn snapshot(self) -> SnapshotOf<Frozen> {
        openraft::Snapshot { meta: self.meta(), snapshot: self }
    }
}

/// A state, and the keys in which it differs from the checkpoint before.
#[derive(Debug)]
struct Changes {
    state: Frozen,
    keys: HashSet<Bytes>,
}

/// The applied state and all who look at it.
#[derive(Debug)]
pub(crate) struct Machine {
    inner: Mutex<Inner>,
    /// The newest state, apart from `inner`, so that readers never wait for a commit's watchers to be told.
    newest: RwLock<Snapshot>,
    revision: watch::Sender<Revision>,
    applied_index: Arc<AtomicU64>,
    /// Something changed since the last checkpoint.
    pub(crate) dirty: Notify,
    /// So much changed that the next checkpoint should not wait.
    pub(crate) very_dirty: Notify,
    log_bytes_max: u64,
    watch_commits_max: usize,
    metrics: Metrics,
}

#[derive(Debug)]
struct Inner {
    state: Frozen,
    history: History,
    watchers: Watchers,
    /// What the next checkpoint will be of.
    frozen: Option<Changes>,
    /// Keys that differ from `frozen`, or from the last checkpoint if there is none.
    changed: HashSet<Bytes>,
    bytes_since_checkpoint: u64,
    has_checkpoint: bool,
    stopped: bool,
}

impl Machine {
    /// Reads the last checkpoint back.
    pub(crate) fn open(disk: &Disk, config: &Config, metrics: Metrics) -> io::Result<Arc<Self>> {
        let engine = disk.engine();
        let mut state = Frozen::default();
        let checkpoint = match engine.get(Space::Meta, CHECKPOINT)? {
            Some(record) => Some(records::decode_checkpoint(&record)?),
            None => None,
        };
        for record in engine.scan(Space::State, &[]) {
            let (key, record) = record?;
            state.space.insert(key.into(), records::decode_versioned(&record)?);
        }
        let has_checkpoint = checkpoint.is_some();
        let checkpoint = checkpoint.unwrap_or_default();
        if (checkpoint.keys, checkpoint.digest) != (state.space.map.len() as u64, state.space.digest) {
            let detail = format!("{} keys were written, {} others are there", checkpoint.keys, state.space.map.len());
            return Err(io::Error::new(io::ErrorKind::InvalidData, detail));
        }
        state.space.revision = checkpoint.revision;
        state.applied = checkpoint.applied;
        state.membership = checkpoint.membership;

        let revision = state.space.revision;
        metrics.keys.set(state.space.map.len() as i64);
        metrics.revision.set(revision.0 as i64);
        let inner = Inner {
            history: History::new(
                revision,
                Bounds {
                    bytes: config.history_bytes_max,
                    revisions: config.history_revisions_max,
                    age: config.history_age_max,
                },
            ),
            watchers: Watchers::default(),
            frozen: None,
            changed: HashSet::new(),
            bytes_since_checkpoint: 0,
            has_checkpoint,
            stopped: false,
            state: state.clone(),
        };
        Ok(Arc::new(Self {
            inner: Mutex::new(inner),
            applied_index: Arc::new(AtomicU64::new(state.applied.map_or(0, |id| id.index))),
            newest: RwLock::new(Snapshot::new(state.space.map, revision)),
            revision: watch::Sender::new(revision),
            dirty: Notify::new(),
            very_dirty: Notify::new(),
            log_bytes_max: config.log_bytes_max,
            watch_commits_max: config.watch_commits_max,
            metrics,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn applied_index(&self) -> Arc<AtomicU64> {
        self.applied_index.clone()
    }

    pub(crate) fn revision(&self) -> Revision {
        *self.revision.borrow()
    }

    pub(crate) fn revisions(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }

    pub(crate) fn newest(&self) -> Snapshot {
        self.newest.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn snapshot_at(&self, revision: Revision) -> Result<Snapshot, ReadError> {
        let (mut map, undone) = {
            let inner = self.lock();
            let newest = inner.state.space.revision;
            if revision > newest {
                return Err(ReadError::Future { requested: revision, newest });
            }
            let oldest = inner.history.floor();
            if revision < oldest {
                return Err(ReadError::Compacted { requested: revision, oldest });
            }
            (inner.state.space.map.clone(), inner.history.after(revision).cloned().collect::<Vec<_>>())
        };
        mvcc::undo(&mut map, &undone);
        Ok(Snapshot::new(map, revision))
    }

    pub(crate) fn watch(self: &Arc<Self>, prefix: Bytes, after: Revision) -> Result<Watch, WatchError> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        if inner.stopped {
            return Err(WatchError::Stopped);
        }
        let oldest = inner.history.floor();
        if after < oldest {
            return Err(WatchError::Compacted { requested: after, oldest });
        }
        let backlog: VecDeque<_> =
            inner.history.after(after).filter_map(|commit| watching::restrict(commit, &prefix)).collect();
        self.metrics.watchers.inc();
        let machine = Arc::downgrade(self);
        let now = inner.state.space.revision;
        Ok(Watch::new(&mut inner.watchers, machine, prefix, after, now, backlog, self.watch_commits_max))
    }

    pub(crate) fn unwatch(&self, prefix: &Bytes, id: u64) {
        self.lock().watchers.remove(prefix, id, &self.metrics);
    }

    /// Ends all watches. New ones are refused.
    pub(crate) fn stop(&self) {
        let mut inner = self.lock();
        inner.stopped = true;
        inner.watchers.end_all(false, &self.metrics);
    }

    /// Applies an entry of a log that no Raft runs on any more.
    pub(crate) fn replay(&self, entry: &Entry) {
        if self.lock().state.applied.is_none_or(|applied| applied < entry.log_id) {
            self.apply(entry);
        }
    }

    /// Applies one entry. Readers see it before watchers hear of it, and both have happened when this returns.
    fn apply(&self, entry: &Entry) -> Outcomes {
        let start = Instant::now();
        let mut guard = self.lock();
        let inner = &mut *guard;
        inner.state.applied = Some(entry.log_id);
        let mut outcomes = Outcomes::default();
        let mut commits = Vec::new();
        match &entry.payload {
            Payload::Blank => {}
            Payload::Membership(membership) => {
                inner.state.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
            }
            Payload::Normal(batch) => {
                outcomes.0.reserve(batch.0.len());
                for txn in batch.0.iter() {
                    let (outcome, commit) = inner.state.space.apply(txn);
                    if let Some(commit) = commit {
                        inner.changed.extend(commit.events.iter().map(|event| event.key.clone()));
                        commits.push(commit);
                    }
                    inner.bytes_since_checkpoint += crate::batch::txn_bytes(txn) as u64;
                    outcomes.0.push(outcome);
                }
            }
        }
        let revision = inner.state.space.revision;
        let map = inner.state.space.map.clone();
        self.metrics.keys.set(map.len() as i64);
        self.metrics.revision.set(revision.0 as i64);
        *self.newest.write().unwrap_or_else(PoisonError::into_inner) = Snapshot::new(map, revision);
        // Only now: who hears of a change and reads has to see it.
        for commit in commits {
            inner.watchers.tell(&commit, &self.metrics);
            inner.history.push(start, commit);
            self.metrics.commits.inc();
        }
        let very_dirty = inner.bytes_since_checkpoint >= self.log_bytes_max;
        self.applied_index.store(entry.log_id.index, Ordering::Release);
        // Within the lock: published revisions never go back.
        self.revision.send_if_modified(|published| std::mem::replace(published, revision) != revision);
        drop(guard);
        self.dirty.notify_one();
        if very_dirty {
            self.very_dirty.notify_one();
        }
        self.metrics.apply_seconds.observe(start.elapsed().as_secs_f64());
        outcomes
    }

    /// Fixes what the next checkpoint will be of.
    pub(crate) fn freeze(&self) {
        let mut inner = self.lock();
        let mut keys = std::mem::take(&mut inner.changed);
        if let Some(frozen) = inner.frozen.take() {
            keys.extend(frozen.keys);
        }
        inner.frozen = Some(Changes { state: inner.state.clone(), keys });
        inner.bytes_since_checkpoint = 0;
    }

    fn replace(&self, state: Frozen) {
        let mut inner = self.lock();
        let revision = state.space.revision;
        inner.history.reset(revision);
        inner.watchers.end_all(true, &self.metrics);
        // It is on disk as a whole.
        inner.frozen = None;
        inner.changed.clear();
        inner.bytes_since_checkpoint = 0;
        inner.has_checkpoint = true;
        *self.newest.write().unwrap_or_else(PoisonError::into_inner) = Snapshot::new(state.space.map.clone(), revision);
        self.applied_index.store(state.applied.map_or(0, |id| id.index), Ordering::Release);
        inner.state = state;
        self.revision.send_if_modified(|published| std::mem::replace(published, revision) != revision);
    }
}

/// The machine as openraft sees it.
pub(crate) struct StateMachine {
    pub(crate) machine: Arc<Machine>,
    pub(crate) disk: Disk,
    pub(crate) identity: Identity,
}

fn marker(identity: Identity, state: &Frozen) -> Marker {
    Marker { identity, checkpointed: state.applied.map_or(0, |id| id.index) }
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotData = Frozen;
    type SnapshotBuilder = Checkpointer;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembershipOf)> {
        let inner = self.machine.lock();
        Ok((inner.state.applied, inner.state.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + Send,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let outcomes = self.machine.apply(&entry);
            if let Some(responder) = responder {
                responder.send(outcomes);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Checkpointer {
        let mut inner = self.machine.lock();
        let newest =
            |inner: &mut Inner| Changes { state: inner.state.clone(), keys: std::mem::take(&mut inner.changed) };
        let changes = match inner.frozen.take() {
            Some(frozen) => {
                inner.frozen = Some(newest(&mut inner));
                frozen
            }
            None => newest(&mut inner),
        };
        inner.bytes_since_checkpoint = 0;
        Checkpointer { changes, machine: self.machine.clone(), disk: self.disk.clone(), identity: self.identity }
    }

    async fn install_snapshot(&mut self, _meta: &SnapshotMeta, state: Frozen) -> io::Result<()> {
        let mut writes = Writes::default();
        for record in self.disk.engine().scan(Space::State, &[]) {
            let (key, _) = record?;
            if !state.space.map.contains_key(key.as_slice()) {
                writes.remove(Space::State, &key);
            }
        }
        for (key, versioned) in state.space.map.iter() {
            writes.put(Space::State, key, records::encode_versioned(versioned));
        }
        writes.put(Space::Meta, CHECKPOINT, records::encode_checkpoint(&state.checkpoint())?);
        self.disk.write(writes, Some(marker(self.identity, &state))).await?;
        self.machine.replace(state);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<Frozen>>> {
        let inner = self.machine.lock();
        Ok(inner.has_checkpoint.then(|| inner.state.clone().snapshot()))
    }
}

/// Writes one checkpoint, while writes go on.
pub(crate) struct Checkpointer {
    changes: Changes,
    machine: Arc<Machine>,
    disk: Disk,
    identity: Identity,
}

impl RaftSnapshotBuilder<Types> for Checkpointer {
    type SnapshotData = Frozen;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<Frozen>> {
        let start = Instant::now();
        let Changes { state, keys } = &mut self.changes;
        let mut writes = Writes::default();
        for key in keys.iter() {
            match state.space.map.get(key) {
                Some(versioned) => writes.put(Space::State, key, records::encode_versioned(versioned)),
                None => writes.remove(Space::State, key),
            }
        }
        writes.put(Space::Meta, CHECKPOINT, records::encode_checkpoint(&state.checkpoint())?);
        let written = self.disk.write(writes, Some(marker(self.identity, state))).await;
        let metrics = &self.machine.metrics;
        let mut inner = self.machine.lock();
        match written {
            Ok(()) => {
                inner.has_checkpoint = true;
                metrics.checkpoint_seconds.observe(start.elapsed().as_secs_f64());
                if let Ok(bytes) = self.disk.engine().bytes_on_disk() {
                    metrics.db_bytes.set(bytes as i64);
                }
                tracing::debug!(keys = keys.len(), revision = state.space.revision.0, "checkpoint written");
                Ok(state.clone().snapshot())
            }
            Err(error) => {
                match &mut inner.frozen {
                    Some(frozen) => frozen.keys.extend(keys.drain()),
                    None => inner.changed.extend(keys.drain()),
                }
                Err(error)
            }
        }
    }
}
