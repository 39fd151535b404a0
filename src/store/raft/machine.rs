//! The state machine: applies what Raft has agreed on to the key space in memory, and tells watchers and readers.
//!
//! Its snapshots are checkpoints. Building one writes the keys that changed since the last one to the database, in one
//! batch with what they stand for; then Raft may purge the log. Recovery is the state tree plus the log's tail.
//!
//! A checkpoint is of a state that was frozen some time ago. So the log always reaches back by some time, and what it
//! replays after a restart is history again: watches from revisions before the restart go on. While much is written, states
//! are frozen now and then, and a checkpoint is of the oldest one.

mod ahead;
mod checkpoint;
mod state_machine;

use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use bytes::Bytes;
use openraft::StoredMembership;
use tokio::sync::{Notify, watch};

use crate::config::Config;
use crate::disk::database::Database;
use crate::disk::engine::Space;
use crate::disk::identity::{Identity, Marker, Standing};
use crate::disk::pace::Pace;
use crate::disk::records::{self, Checkpoint};
use crate::history::{Bounds, History};
use crate::metrics::Metrics;
use crate::mvcc::{self, KeySpace, Snapshot};
use crate::raft::machine::ahead::Ahead;
pub(crate) use crate::raft::machine::checkpoint::checkpoint;
use crate::raft::machine::checkpoint::{Changes, STEP_KEYS_MAX, STEPS};
use crate::raft::machine::state_machine::GIVE_BACK_AFTER_BYTES;
pub(crate) use crate::raft::machine::state_machine::{StateMachine, give_memory_back};
use crate::raft::register::{Admission, Register};
use crate::raft::{Entry, LogId, Outcome, Outcomes, Payload, SnapshotMeta, SnapshotOf, StoredMembershipOf};
use crate::watch::{self as watching, Watch, Watchers};
use crate::{MemberId, ReadError, Revision, WatchError};

pub(crate) const CHECKPOINT: &[u8] = b"checkpoint";
/// The register, as of the checkpoint.
const REGISTER: &[u8] = b"register";
/// Which of the two state trees is the one that counts. Absent: the first.
const TREE: &[u8] = b"tree";

/// What Raft agreed on up to some entry. A clone is a pointer copy, and stays as it is while writes go on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Frozen {
    space: KeySpace,
    applied: Option<LogId>,
    membership: StoredMembershipOf,
    register: Register,
}

impl Frozen {
    pub(crate) fn new(
        space: KeySpace,
        applied: Option<LogId>,
        membership: StoredMembershipOf,
        register: Register,
    ) -> Self {
        Self { space, applied, membership, register }
    }

    pub(crate) fn space(&self) -> &KeySpace {
        &self.space
    }

    pub(crate) fn register(&self) -> &Register {
        &self.register
    }

    pub(crate) fn content(&self) -> Snapshot {
        Snapshot::new(self.space.map.clone(), self.space.revision)
    }

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

/// The applied state and all who look at it.
#[derive(Debug)]
pub(crate) struct Machine {
    inner: Mutex<Inner>,
    /// The newest state, apart from `inner`, so that readers never wait for a commit's watchers to be told.
    newest: RwLock<Snapshot>,
    revision: watch::Sender<Revision>,
    applied_index: Arc<AtomicU64>,
    /// The same, to wait for.
    applied: watch::Sender<u64>,
    /// The newest checkpoint that is on disk.
    checkpointed: watch::Sender<u64>,
    identity: Identity,
    standing: watch::Sender<Standing>,
    /// This member is the only voter, by what it has applied.
    sole_voter: AtomicBool,
    /// Held by whoever writes the state tree.
    writing: tokio::sync::Mutex<()>,
    /// Something changed since the last checkpoint.
    pub(crate) dirty: Notify,
    /// So much changed that the next checkpoint should not wait.
    pub(crate) very_dirty: Notify,
    /// Checkpoints have written so much that memory may be given back.
    much_written: Notify,
    pace: Arc<Pace>,
    log_bytes_max: u64,
    watch_commits_max: usize,
    metrics: Metrics,
}

#[derive(Debug)]
struct Inner {
    state: Frozen,
    history: History,
    watchers: Watchers,
    /// What the next checkpoints will be of, oldest first.
    frozen: VecDeque<Changes>,
    /// Keys that differ from the last of `frozen`, or from the last checkpoint if there is none.
    changed: HashSet<Bytes>,
    bytes_since_frozen: u64,
    ahead: Option<Ahead>,
    /// What checkpoints have covered since the marker last told of one.
    bytes_since_noted: u64,
    /// The next checkpoint is noted in the marker in any case.
    note_next: bool,
    #[cfg(test)]
    lingering: std::time::Duration,
    /// The state tree that counts.
    tree: Space,
    /// What checkpoints have written since memory was last given back.
    bytes_since_given_back: u64,
    stopped: bool,
}

impl Machine {
    /// Reads the last checkpoint back.
    pub(crate) fn open(
        engine: &Database,
        config: &Config,
        identity: Identity,
        standing: Standing,
        metrics: Metrics,
    ) -> io::Result<Arc<Self>> {
        let mut state = Frozen::default();
        let checkpoint = match engine.get(Space::Meta, CHECKPOINT)? {
            Some(record) => Some(records::decode_checkpoint(&record)?),
            None => None,
        };
        if let Some(record) = engine.get(Space::Meta, REGISTER)? {
            state.register = records::decode_register(&record)?;
        }
        let tree = match engine.get(Space::Meta, TREE)? {
            Some(record) if record == [Space::OtherState as u8] => Space::OtherState,
            _ => Space::State,
        };
        for record in engine.scan(tree, &[]) {
            let (key, record) = record?;
            state.space.insert(key.into(), records::decode_versioned(&record)?);
        }
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
            frozen: VecDeque::new(),
            changed: HashSet::new(),
            bytes_since_frozen: 0,
            ahead: None,
            bytes_since_noted: 0,
            note_next: false,
            #[cfg(test)]
            lingering: std::time::Duration::ZERO,
            tree,
            bytes_since_given_back: 0,
            stopped: false,
            state: state.clone(),
        };
        let applied = state.applied.map_or(0, |id| id.index);
        Ok(Arc::new(Self {
            inner: Mutex::new(inner),
            applied_index: Arc::new(AtomicU64::new(applied)),
            applied: watch::Sender::new(applied),
            checkpointed: watch::Sender::new(applied),
            identity,
            standing: watch::Sender::new(standing),
            sole_voter: AtomicBool::new(is_sole_voter(&state.membership, identity.member)),
            writing: tokio::sync::Mutex::default(),
            newest: RwLock::new(Snapshot::new(state.space.map, revision)),
            revision: watch::Sender::new(revision),
            dirty: Notify::new(),
            very_dirty: Notify::new(),
            much_written: Notify::new(),
            pace: Arc::new(Pace::new(config.log_bytes_max)),
            log_bytes_max: config.log_bytes_max,
            watch_commits_max: config.watch_commits_max,
            metrics,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far checkpoints are behind.
    pub(crate) fn pace(&self) -> Arc<Pace> {
        self.pace.clone()
    }

    pub(crate) fn applied_id(&self) -> Option<LogId> {
        self.lock().state.applied
    }

    pub(crate) fn applied_index(&self) -> Arc<AtomicU64> {
        self.applied_index.clone()
    }

    /// The index of the last entry that was applied.
    pub(crate) fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// The index up to which the state tree on disk goes.
    pub(crate) fn checkpointed(&self) -> watch::Receiver<u64> {
        self.checkpointed.subscribe()
    }

    pub(crate) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Takes note of what others, or the disk, know of this member. It never comes back from being removed.
    pub(crate) fn stands(&self, standing: Standing) {
        self.standing.send_if_modified(|now| {
            *now != Standing::Removed && *now != standing && {
                *now = standing;
                true
            }
        });
    }

    /// What the identity file has to say now.
    pub(crate) fn marker(&self) -> Marker {
        let (checkpointed, standing) = (*self.checkpointed.borrow(), *self.standing.borrow());
        Marker { identity: self.identity, checkpointed, standing, closed: None }
    }

    pub(crate) fn is_sole_voter(&self) -> bool {
        self.sole_voter.load(Ordering::Acquire)
    }

    pub(crate) fn is_removed(&self, member: MemberId) -> bool {
        self.lock().state.register.removed.contains(&member)
    }

    pub(crate) fn membership(&self) -> StoredMembershipOf {
        self.lock().state.membership.clone()
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
        let _span = tracing::debug_span!("apply", index = entry.log_id.index).entered();
        let start = Instant::now();
        let mut guard = self.lock();
        let inner = &mut *guard;
        inner.state.applied = Some(entry.log_id);
        let mut outcomes = Outcomes::default();
        let mut commits = Vec::new();
        match &entry.payload {
            Payload::Blank => {}
            Payload::Membership(membership) => {
                let state = &mut inner.state;
                state.register.follow(state.membership.membership(), membership);
                state.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                self.follow_membership(state);
            }
            Payload::Normal(batch) => {
                let state = &mut inner.state;
                let admission = match batch.id {
                    Some(id) => state.register.admit(id, state.membership.membership()),
                    None => Admission::Apply,
                };
                outcomes.0.reserve(batch.txns.len());
                for (index, txn) in batch.txns.iter().enumerate() {
                    let before = match &admission {
                        Admission::Apply => None,
                        Admission::Repeat(session) => session.committed.get(index).copied().flatten(),
                        Admission::Stale => {
                            outcomes.0.push(Outcome::Stale);
                            continue;
                        }
                    };
                    if let Some(revision) = before {
                        outcomes.0.push(Outcome::Committed(revision));
                        continue;
                    }
                    let (outcome, commit) = state.space.apply(txn);
                    if let Some(commit) = commit {
                        inner.changed.extend(commit.events.iter().map(|event| event.key.clone()));
                        commits.push(commit);
                    }
                    let bytes = crate::batch::txn_bytes(txn) as u64;
                    inner.bytes_since_frozen += bytes;
                    self.pace.applied(bytes);
                    outcomes.0.push(outcome);
                }
                if let Some(id) = batch.id
                    && admission != Admission::Stale
                {
                    state.register.remember(id, &outcomes.0);
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
        if inner.bytes_since_frozen >= self.log_bytes_max.div_ceil(STEPS) || inner.changed.len() >= STEP_KEYS_MAX {
            inner.freeze();
        }
        let very_dirty = inner.can_spare_oldest(self.log_bytes_max);
        self.applied_index.store(entry.log_id.index, Ordering::Release);
        // Within the lock: published revisions never go back.
        self.revision.send_if_modified(|published| std::mem::replace(published, revision) != revision);
        self.applied.send_replace(entry.log_id.index);
        drop(guard);
        self.dirty.notify_one();
        if very_dirty {
            self.very_dirty.notify_one();
        }
        self.metrics.apply_seconds.observe(start.elapsed().as_secs_f64());
        outcomes
    }

    /// What this member is by what it has applied.
    fn follow_membership(&self, state: &Frozen) {
        let own = self.identity.member;
        self.sole_voter.store(is_sole_voter(&state.membership, own), Ordering::Release);
        if state.register.removed.contains(&own) {
            self.stands(Standing::Removed);
        } else if state.membership.voter_ids().any(|voter| voter == own) {
            self.stands(Standing::Member);
        }
    }

    fn replace(&self, state: Frozen, tree: Space) {
        let mut inner = self.lock();
        let revision = state.space.revision;
        inner.history.reset(revision);
        inner.watchers.end_all(true, &self.metrics);
        // It is on disk as a whole.
        self.pace.all_covered();
        inner.changed.clear();
        inner.bytes_since_frozen = 0;
        if !std::mem::take(&mut inner.frozen).is_empty() {
            inner.frozen.push_back(Changes { state: state.clone(), keys: HashSet::new(), bytes: 0 });
        }
        inner.tree = tree;
        self.metrics.keys.set(state.space.map.len() as i64);
        self.metrics.revision.set(revision.0 as i64);
        *self.newest.write().unwrap_or_else(PoisonError::into_inner) = Snapshot::new(state.space.map.clone(), revision);
        let applied = state.applied.map_or(0, |id| id.index);
        self.applied_index.store(applied, Ordering::Release);
        self.follow_membership(&state);
        inner.state = state;
        self.revision.send_if_modified(|published| std::mem::replace(published, revision) != revision);
        self.applied.send_replace(applied);
        self.checkpointed.send_replace(applied);
    }
}

fn is_sole_voter(membership: &StoredMembershipOf, member: MemberId) -> bool {
    membership.voter_ids().eq([member])
}
