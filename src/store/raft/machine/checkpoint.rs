//! When a checkpoint is made, of which state, and how it is written.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use openraft::RaftSnapshotBuilder;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::config::Config;
use crate::disk::engine::{Space, Writes};
use crate::disk::identity::Marker;
use crate::disk::records;
use crate::disk::thread::Disk;
use crate::raft::machine::ahead::Ahead;
use crate::raft::machine::{CHECKPOINT, Frozen, GIVE_BACK_AFTER_BYTES, Inner, Machine, REGISTER};
use crate::raft::{Raft, SnapshotOf, Types};

/// A state is frozen after this part of what the log may hold, or so many keys.
pub(super) const STEPS: u64 = 2;
pub(super) const STEP_KEYS_MAX: usize = 4096;

/// A checkpoint that was asked for and is not there after this long is asked for again.
const CHECKPOINT_ASKED_AGAIN: Duration = Duration::from_millis(200);

/// A state, and the keys in which it differs from the one before.
#[derive(Debug)]
pub(super) struct Changes {
    pub(super) state: Frozen,
    pub(super) keys: HashSet<Bytes>,
    /// What the Txns between the two have in keys and values.
    pub(super) bytes: u64,
}

impl Changes {
    /// As one with what came next.
    fn join(&mut self, next: Changes) {
        self.state = next.state;
        self.keys.extend(next.keys);
        self.bytes += next.bytes;
    }
}

impl Inner {
    fn newest(&mut self) -> Changes {
        Changes {
            state: self.state.clone(),
            keys: std::mem::take(&mut self.changed),
            bytes: std::mem::take(&mut self.bytes_since_frozen),
        }
    }

    pub(super) fn freeze(&mut self) {
        let newest = self.newest();
        self.frozen.push_back(newest);
    }

    /// Whether the log would still hold enough without what the oldest frozen state covers.
    pub(super) fn can_spare_oldest(&self, log_bytes_max: u64) -> bool {
        self.frozen.iter().skip(1).map(|changes| changes.bytes).sum::<u64>() >= log_bytes_max
    }

    /// What a checkpoint is to be of now.
    pub(super) fn take_oldest(&mut self, log_bytes_max: u64) -> Changes {
        let Some(mut oldest) = self.frozen.pop_front() else { return self.newest() };
        // Several at once, when checkpoints do not keep up.
        while self.can_spare_oldest(log_bytes_max)
            && let Some(next) = self.frozen.pop_front()
        {
            oldest.join(next);
        }
        if self.frozen.is_empty() {
            self.freeze();
        }
        oldest
    }
}

impl Machine {
    /// The first checkpoint will be of the state as it is now, or an older one.
    pub(crate) fn freeze(&self) {
        self.lock().freeze();
    }

    /// Has the next checkpoint be of the newest state that is frozen.
    pub(crate) fn take_all_frozen(&self) {
        let mut inner = self.lock();
        let all = std::mem::take(&mut inner.frozen).into_iter().reduce(|mut older, newer| {
            older.join(newer);
            older
        });
        inner.frozen.extend(all);
        inner.note_next = true;
    }

    /// Has Raft hear of each checkpoint's end this much later than others do.
    #[cfg(test)]
    pub(crate) fn lets_raft_wait(&self, time: Duration) {
        self.lock().lingering = time;
    }

    #[cfg(test)]
    async fn linger(&self) {
        let time = self.lock().lingering;
        tokio::time::sleep(time).await;
    }

    /// Whether the next checkpoint should not wait.
    pub(crate) fn is_very_dirty(&self) -> bool {
        self.lock().can_spare_oldest(self.log_bytes_max)
    }

    pub(super) fn marker_of(&self, state: &Frozen) -> Marker {
        Marker { checkpointed: state.applied.map_or(0, |id| id.index), ..self.marker() }
    }
}

/// Checkpoints some time after the first change, so that a key that changes often is written once; or at once when the
/// log has grown long.
pub(crate) async fn checkpoint(machine: Arc<Machine>, raft: Raft, config: Config, stop: CancellationToken) {
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
        // It hears of it in a moment; to ask too early costs much more.
        let heard = raft.wait(Some(CHECKPOINT_ASKED_AGAIN));
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            // An error is that it has not, in all that time.
            _ = heard.metrics(|raft| raft.snapshot.is_some_and(|id| id.index >= done), "heard") => {}
        }
        // Others may lag a little, and are better served with entries than with everything.
        let others = machine.membership().membership().nodes().count() > 1;
        let purge = done.saturating_sub(if others { config.log_entries_kept } else { 0 });
        if purge > 0 && raft.trigger().purge_log(purge).await.is_err() {
            return;
        }
    }
}

/// The records beside a state tree that say what it stands for.
pub(super) fn put_heads(writes: &mut Writes, state: &Frozen) -> io::Result<()> {
    writes.put(Space::Meta, CHECKPOINT, records::encode_checkpoint(&state.checkpoint())?);
    writes.put(Space::Meta, REGISTER, records::encode_register(&state.register)?);
    Ok(())
}

/// Writes one checkpoint, while writes go on.
pub(crate) struct Checkpointer {
    pub(super) changes: Changes,
    /// The tree that counted when the checkpoint was begun.
    pub(super) tree: Space,
    pub(super) machine: Arc<Machine>,
    pub(super) disk: Disk,
}

impl RaftSnapshotBuilder<Types> for Checkpointer {
    type SnapshotData = Frozen;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<Frozen>> {
        let span = tracing::debug_span!("checkpoint", keys = self.changes.keys.len());
        let built = self.write().instrument(span).await;
        #[cfg(test)]
        self.machine.linger().await;
        built
    }
}

impl Checkpointer {
    async fn write(&mut self) -> io::Result<SnapshotOf<Frozen>> {
        let start = Instant::now();
        let machine = self.machine.clone();
        let _writing = machine.writing.lock().await;
        let ahead = {
            let mut inner = machine.lock();
            if inner.tree != self.tree {
                // A snapshot was installed meanwhile. It is newer, and a checkpoint of itself.
                return Ok(inner.state.clone().snapshot());
            }
            inner.ahead.take()
        };
        let Changes { state, keys, bytes: covered } = &mut self.changes;
        let mut writes = Writes::default();
        Ahead::put_all(ahead, &mut writes, self.tree, state, keys);
        put_heads(&mut writes, state)?;
        let bytes = writes.bytes() as u64;
        let noted = {
            let mut inner = machine.lock();
            inner.bytes_since_noted += *covered;
            inner.note_next || inner.bytes_since_noted >= machine.log_bytes_max
        };
        // What the marker says is what must be there at least: it need not be written each time.
        let marker = noted.then(|| machine.marker_of(state));
        let (written, ()) = tokio::join!(self.disk.write(writes, marker), machine.pack_ahead(self.tree, &self.disk));
        if let Err(error) = written {
            let mut inner = machine.lock();
            match inner.frozen.front_mut() {
                Some(next) => {
                    next.keys.extend(keys.drain());
                    next.bytes += *covered;
                }
                None => {
                    inner.changed.extend(keys.drain());
                    inner.bytes_since_frozen += *covered;
                }
            }
            return Err(error);
        }
        self.machine.pace.covered(*covered, start.elapsed());
        let metrics = &self.machine.metrics;
        metrics.checkpoint_seconds.observe(start.elapsed().as_secs_f64());
        if let Ok(bytes) = self.disk.bytes_on_disk() {
            metrics.db_bytes.set(bytes as i64);
        }
        tracing::debug!(keys = keys.len(), revision = state.space.revision.0, "checkpoint written");
        let mut inner = self.machine.lock();
        if noted {
            inner.bytes_since_noted = 0;
            inner.note_next = false;
        }
        self.machine.checkpointed.send_replace(state.applied.map_or(0, |id| id.index));
        inner.bytes_since_given_back += bytes;
        if inner.bytes_since_given_back >= GIVE_BACK_AFTER_BYTES {
            inner.bytes_since_given_back = 0;
            self.machine.much_written.notify_one();
        }
        Ok(state.clone().snapshot())
    }
}
