//! The machine as openraft sees it, and how the state of another member is installed.

use std::io;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::disk::engine::{Space, Writes};
use crate::disk::records;
use crate::disk::thread::Disk;
use crate::raft::machine::checkpoint::{Checkpointer, put_heads};
use crate::raft::machine::{Frozen, Machine, TREE};
use crate::raft::{LogId, SnapshotMeta, SnapshotOf, StoredMembershipOf, Types};

/// What is written to the other state tree at once, while a snapshot is installed.
const SLICE_BYTES: usize = if cfg!(test) { 32 } else { 1 << 20 };
const SLICE_KEYS: usize = if cfg!(test) { 2 } else { 4096 };

/// Memory is given back when this much was written, or when so many keys were read.
pub(super) const GIVE_BACK_AFTER_BYTES: u64 = 32 << 20;
const GIVE_BACK_AFTER_KEYS: usize = 2000;
/// Keys by which the engine's cache is reached.
const GIVE_BACK_BY_KEYS: usize = 512;

/// The machine as openraft sees it.
pub(crate) struct StateMachine {
    pub(crate) machine: Arc<Machine>,
    pub(crate) disk: Disk,
}

/// Gives back what reading the state has left in memory, and later what writing much of it has. Ends with `stop`.
pub(crate) async fn give_memory_back(machine: Arc<Machine>, disk: Disk, stop: CancellationToken) {
    loop {
        let (map, tree) = {
            let inner = machine.lock();
            (inner.state.space.map.clone(), inner.tree)
        };
        if map.len() >= GIVE_BACK_AFTER_KEYS {
            let disk = disk.clone();
            let work = move || {
                // Scattered: neighbours, and what lies at equal distances, may all be in the same part of the cache.
                let one_in = (map.len() / GIVE_BACK_BY_KEYS).max(1) as u64;
                let scattered = |n: u64| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32).is_multiple_of(one_in);
                let keys = (0..).zip(map.keys()).filter(|(n, _)| scattered(*n)).map(|(_, key)| &key[..]);
                disk.engine().give_memory_back(tree, &keys.collect::<Vec<_>>());
            };
            // It cannot fail, and nothing hangs on it.
            let _ = tokio::task::spawn_blocking(work).await;
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = machine.much_written.notified() => {}
        }
    }
}

/// Empties a tree that does not count, a slice at a time.
async fn clear(disk: &Disk, tree: Space) -> io::Result<()> {
    loop {
        let mut writes = Writes::default();
        for record in disk.engine().scan(tree, &[]).take(SLICE_KEYS) {
            writes.remove(tree, &record?.0);
        }
        if writes.is_empty() {
            return Ok(());
        }
        disk.write(writes, None).await?;
    }
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
        let changes = inner.take_oldest(self.machine.log_bytes_max);
        Checkpointer { changes, tree: inner.tree, machine: self.machine.clone(), disk: self.disk.clone() }
    }

    /// The new state goes to the other tree, and then counts by one small write: a crash before it leaves the old
    /// state whole, and one after it the new.
    async fn install_snapshot(&mut self, _meta: &SnapshotMeta, state: Frozen) -> io::Result<()> {
        let span = tracing::info_span!("install snapshot", keys = state.space.map.len());
        self.install(state).instrument(span).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<Frozen>>> {
        let inner = self.machine.lock();
        Ok(inner.state.applied.is_some().then(|| inner.state.clone().snapshot()))
    }
}

impl StateMachine {
    async fn install(&self, state: Frozen) -> io::Result<()> {
        let machine = &self.machine;
        let _writing = machine.writing.lock().await;
        let old = machine.lock().tree;
        let new = if old == Space::State { Space::OtherState } else { Space::State };
        clear(&self.disk, new).await?;
        let (mut writes, mut bytes) = (Writes::default(), 0);
        for (key, versioned) in state.space.map.iter() {
            let record = records::encode_versioned(versioned);
            bytes += key.len() + record.len();
            writes.put(new, key, record);
            if bytes >= SLICE_BYTES {
                self.disk.write(std::mem::take(&mut writes), None).await?;
                bytes = 0;
            }
        }
        put_heads(&mut writes, &state)?;
        writes.put(Space::Meta, TREE, vec![new as u8]);
        self.disk.write(writes, Some(machine.marker_of(&state))).await?;
        machine.replace(state, new);
        clear(&self.disk, old).await
    }
}
