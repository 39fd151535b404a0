//! Who is told of which commits. A commit costs in proportion to the watchers that it concerns, not to all of them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::metrics::Metrics;
use crate::raft::machine::Machine;
use crate::{Commit, Event, Revision, WatchError};

/// All watchers, found by prefix: for each length that any prefix has, a key is looked up once.
#[derive(Debug, Default)]
pub(crate) struct Watchers {
    by_prefix: HashMap<Bytes, Vec<Watcher>>,
    lengths: BTreeMap<usize, usize>,
    next_id: u64,
}

#[derive(Debug)]
struct Watcher {
    id: u64,
    after: Revision,
    queue: mpsc::Sender<Commit>,
    too_slow: Arc<AtomicBool>,
}

impl Watchers {
    fn add(&mut self, prefix: Bytes, after: Revision, queue: mpsc::Sender<Commit>, too_slow: Arc<AtomicBool>) -> u64 {
        self.next_id += 1;
        let watcher = Watcher { id: self.next_id, after, queue, too_slow };
        *self.lengths.entry(prefix.len()).or_default() += 1;
        self.by_prefix.entry(prefix).or_default().push(watcher);
        self.next_id
    }

    pub(crate) fn remove(&mut self, prefix: &Bytes, id: u64, metrics: &Metrics) {
        let Some(watchers) = self.by_prefix.get_mut(prefix) else { return };
        let before = watchers.len();
        watchers.retain(|watcher| watcher.id != id);
        let removed = before - watchers.len();
        if watchers.is_empty() {
            self.by_prefix.remove(prefix);
        }
        self.uncount(prefix.len(), removed, metrics);
    }

    fn uncount(&mut self, length: usize, removed: usize, metrics: &Metrics) {
        metrics.watchers.dec_by(removed as i64);
        if let Some(count) = self.lengths.get_mut(&length) {
            *count -= removed.min(*count);
            if *count == 0 {
                self.lengths.remove(&length);
            }
        }
    }

    /// Queues `commit` for everyone whom it concerns. Never waits: a full queue ends its watcher.
    pub(crate) fn tell(&mut self, commit: &Commit, metrics: &Metrics) {
        // Events by prefix, each list shared by the watchers of that prefix.
        let mut concerned: BTreeMap<&[u8], Vec<usize>> = BTreeMap::new();
        for (index, event) in commit.events.iter().enumerate() {
            for length in self.lengths.range(..=event.key.len()).map(|(length, _)| *length) {
                let prefix = &event.key[..length];
                if self.by_prefix.contains_key(prefix) {
                    concerned.entry(prefix).or_default().push(index);
                }
            }
        }
        for (prefix, indexes) in concerned {
            let part = part(commit, &indexes);
            let Some(watchers) = self.by_prefix.get_mut(prefix) else { continue };
            let before = watchers.len();
            watchers.retain(|watcher| {
                if commit.revision <= watcher.after {
                    return true;
                }
                match watcher.queue.try_send(part.clone()) {
                    Ok(()) => true,
                    Err(mpsc::error::TrySendError::Full(_)) => {
                        watcher.too_slow.store(true, Ordering::Release);
                        metrics.watchers_cut_off.inc();
                        false
                    }
                    Err(mpsc::error::TrySendError::Closed(_)) => false,
                }
            });
            let removed = before - watchers.len();
            if removed > 0 {
                if watchers.is_empty() {
                    self.by_prefix.remove(prefix);
                }
                self.uncount(prefix.len(), removed, metrics);
            }
        }
    }

    /// Ends all watches: the state jumped, or the store stops.
    pub(crate) fn end_all(&mut self, too_slow: bool, metrics: &Metrics) {
        for watcher in self.by_prefix.drain().flat_map(|(_, watchers)| watchers) {
            watcher.too_slow.store(too_slow, Ordering::Release);
            metrics.watchers.dec();
        }
        self.lengths.clear();
    }
}

/// The events of `commit` at `indexes`, which are not empty.
fn part(commit: &Commit, indexes: &[usize]) -> Commit {
    if indexes.len() == commit.events.len() {
        return commit.clone();
    }
    let events: Vec<Event> = indexes.iter().filter_map(|index| commit.events.get(*index).cloned()).collect();
    Commit { revision: commit.revision, events: Arc::from(events) }
}

/// What of `commit` concerns `prefix`, if anything.
pub(crate) fn restrict(commit: &Commit, prefix: &[u8]) -> Option<Commit> {
    let concerned = commit.events.iter().enumerate().filter(|(_, event)| event.key.starts_with(prefix));
    let indexes: Vec<usize> = concerned.map(|(index, _)| index).collect();
    (!indexes.is_empty()).then(|| part(commit, &indexes))
}

/// Commits that concern one prefix, in revision order, each once. Dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    prefix: Bytes,
    id: u64,
    /// What had happened already when the watch began.
    backlog: VecDeque<Commit>,
    queue: mpsc::Receiver<Commit>,
    too_slow: Arc<AtomicBool>,
    delivered: Revision,
    machine: Weak<Machine>,
}

impl Watch {
    pub(crate) fn new(
        watchers: &mut Watchers,
        machine: Weak<Machine>,
        prefix: Bytes,
        after: Revision,
        now: Revision,
        backlog: VecDeque<Commit>,
        commits_max: usize,
    ) -> Self {
        let (sender, queue) = mpsc::channel(commits_max.max(1));
        let too_slow = Arc::new(AtomicBool::new(false));
        let id = watchers.add(prefix.clone(), after.max(now), sender, too_slow.clone());
        Self { prefix, id, backlog, queue, too_slow, delivered: after, machine }
    }

    /// The next commit with a change under the prefix; waits for it.
    ///
    /// # Errors
    /// `TooSlow` after the commits that were still queued; `Stopped` when the store stops. Both are final.
    ///
    /// # Cancel safety
    /// Cancel-safe: a commit that was not returned is returned by the next call.
    pub async fn next(&mut self) -> Result<Commit, WatchError> {
        let commit = match self.backlog.pop_front() {
            Some(commit) => commit,
            None => match self.queue.recv().await {
                Some(commit) => commit,
                None if self.too_slow.load(Ordering::Acquire) => return Err(WatchError::TooSlow),
                None => return Err(WatchError::Stopped),
            },
        };
        self.delivered = self.delivered.max(commit.revision);
        Ok(commit)
    }

    /// All events up to here were returned by [`Watch::next`].
    pub fn progress(&self) -> Revision {
        let Some(machine) = self.machine.upgrade() else { return self.delivered };
        // In this order: whatever was published before is queued already, and whatever is queued later is newer.
        let published = machine.revision();
        let open = !self.queue.is_closed();
        if open && self.backlog.is_empty() && self.queue.is_empty() {
            self.delivered.max(published)
        } else {
            self.delivered
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(machine) = self.machine.upgrade() {
            machine.unwatch(&self.prefix, self.id);
        }
    }
}
