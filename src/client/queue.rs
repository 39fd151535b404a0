//! The work queue of level-triggered loops: keys, not events.
//!
//! A key waits at most once, is handed to one worker at a time, and a key added while it is being worked on comes
//! again when that is done. Delays and back-off live here, so that loops need no timers of their own.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

const BACK_OFF_FIRST: Duration = Duration::from_millis(5);
const BACK_OFF_MAX: Duration = Duration::from_secs(300);

/// A cheap handle; clones share one queue.
pub struct WorkQueue<T>(Arc<Shared<T>>);

struct Shared<T> {
    state: Mutex<State<T>>,
    wake: Notify,
}

struct State<T> {
    ready: VecDeque<T>,
    /// Waiting in `ready`, or to be put there when the work at hand is done.
    dirty: HashSet<T>,
    working: HashSet<T>,
    /// Ordered by time; the number keeps equal times apart.
    delayed: BTreeMap<(Instant, u64), T>,
    delays: HashMap<T, (Instant, u64)>,
    failures: HashMap<T, u32>,
    counter: u64,
}

impl<T> Clone for WorkQueue<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Hash + Eq + Clone> Default for WorkQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Hash + Eq + Clone> WorkQueue<T> {
    pub fn new() -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            working: HashSet::new(),
            delayed: BTreeMap::new(),
            delays: HashMap::new(),
            failures: HashMap::new(),
            counter: 0,
        };
        Self(Arc::new(Shared { state: Mutex::new(state), wake: Notify::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add(&self, item: T) {
        if self.lock().add(item) {
            self.0.wake.notify_one();
        }
    }

    /// Adds after `delay`. Of several delays for one item the earliest counts.
    pub fn add_after(&self, item: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(item);
        }
        let mut state = self.lock();
        let at = Instant::now() + delay;
        if let Some(&old) = state.delays.get(&item) {
            if old.0 <= at {
                return;
            }
            state.delayed.remove(&old);
        }
        state.counter += 1;
        let slot = (at, state.counter);
        state.delayed.insert(slot, item.clone());
        state.delays.insert(item, slot);
        drop(state);
        // A sleeping worker may be waiting for a later deadline.
        self.0.wake.notify_one();
    }

    /// Adds again after a wait that doubles with each failure since the last [`forget`](Self::forget).
    pub fn retry(&self, item: T) {
        let failures = {
            let mut state = self.lock();
            let count = state.failures.entry(item.clone()).or_insert(0);
            *count = count.saturating_add(1);
            *count - 1
        };
        let delay = BACK_OFF_FIRST.saturating_mul(1_u32.checked_shl(failures.min(20)).unwrap_or(u32::MAX));
        self.add_after(item, delay.min(BACK_OFF_MAX));
    }

    /// The item went well: its next failure starts from the shortest wait.
    pub fn forget(&self, item: &T) {
        self.lock().failures.remove(item);
    }

    /// How often the item failed since the last [`forget`](Self::forget).
    pub fn failures(&self, item: &T) -> u32 {
        self.lock().failures.get(item).copied().unwrap_or(0)
    }

    /// The next item; [`done`](Self::done) must follow.
    ///
    /// # Cancel safety
    /// Nothing is taken when the future is dropped before it is ready.
    pub async fn next(&self) -> T {
        loop {
            let wake = self.0.wake.notified();
            let until = {
                let mut state = self.lock();
                state.ripen(Instant::now());
                if let Some(item) = state.ready.pop_front() {
                    state.dirty.remove(&item);
                    state.working.insert(item.clone());
                    let more = !state.ready.is_empty() || !state.delayed.is_empty();
                    drop(state);
                    if more {
                        // Wakes are not counted; pass the word on to the next worker.
                        self.0.wake.notify_one();
                    }
                    return item;
                }
                state.delayed.keys().next().map(|(at, _)| *at)
            };
            match until {
                Some(at) => tokio::select! {
                    () = wake => (),
                    () = tokio::time::sleep_until(at) => (),
                },
                None => wake.await,
            }
        }
    }

    /// The work on the item is over; it may be handed out again.
    pub fn done(&self, item: &T) {
        let mut state = self.lock();
        state.working.remove(item);
        if state.dirty.contains(item) {
            state.ready.push_back(item.clone());
            drop(state);
            self.0.wake.notify_one();
        }
    }

    /// Items that wait to be handed out now.
    pub fn len(&self) -> usize {
        self.lock().ready.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T: Hash + Eq + Clone> State<T> {
    /// True when a worker should wake.
    fn add(&mut self, item: T) -> bool {
        if !self.dirty.insert(item.clone()) || self.working.contains(&item) {
            return false;
        }
        self.ready.push_back(item);
        true
    }

    fn ripen(&mut self, now: Instant) {
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let item = entry.remove();
            self.delays.remove(&item);
            self.add(item);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_item_in_work_comes_again_only_when_done() {
        let queue = WorkQueue::new();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.next().await, "a");
        queue.add("a");
        assert!(queue.is_empty());
        queue.done(&"a");
        assert_eq!(queue.next().await, "a");
        queue.done(&"a");
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_delay_counts() {
        let queue = WorkQueue::new();
        let start = Instant::now();
        queue.add_after("a", Duration::from_secs(9));
        queue.add_after("a", Duration::from_secs(3));
        queue.add_after("a", Duration::from_secs(6));
        assert_eq!(queue.next().await, "a");
        assert_eq!(start.elapsed().as_secs(), 3);
        queue.done(&"a");
        assert!(tokio::time::timeout(Duration::from_secs(60), queue.next()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn retries_back_off_until_forgotten() {
        let queue = WorkQueue::new();
        let mut waits = Vec::new();
        for _ in 0..20 {
            let start = Instant::now();
            queue.retry("a");
            queue.next().await;
            queue.done(&"a");
            waits.push(start.elapsed());
        }
        assert!(waits[0] < Duration::from_millis(10));
        assert!(waits.windows(2).all(|w| w[0] <= w[1]));
        assert_eq!(waits[19].as_secs(), 300);
        queue.forget(&"a");
        assert_eq!(queue.failures(&"a"), 0);
    }

    #[tokio::test]
    async fn several_workers_share_the_load() {
        let queue = WorkQueue::new();
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move {
                    let item = queue.next().await;
                    queue.done(&item);
                    item
                })
            })
            .collect();
        tokio::task::yield_now().await;
        for item in 0..3 {
            queue.add(item);
        }
        let mut got = Vec::new();
        for worker in workers {
            got.push(worker.await.unwrap());
        }
        got.sort_unstable();
        assert_eq!(got, [0, 1, 2]);
    }
}
