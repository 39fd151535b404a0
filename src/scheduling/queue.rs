//! Who is waiting for a node: ready to be tried, resting after a failure, or hopeless until something changes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use crate::cluster::uid;

const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// What cannot be placed is tried again after this even if nothing seemed to change, as upstream does.
const HOPELESS_MAX: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Active,
    /// Until then.
    Resting(Instant),
    Hopeless(Instant),
}

struct Entry {
    pod: Arc<Pod>,
    failures: u32,
    arrived: u64,
    place: Place,
}

#[derive(Default)]
pub struct Queue {
    entries: HashMap<String, Entry>,
    /// The highest priority first, then who came first.
    active: BTreeSet<(Reverse<i32>, u64, String)>,
    resting: BTreeMap<(Instant, u64), String>,
    arrivals: u64,
    /// Something changed while a pod was being tried: its failure may be out of date.
    changes: u64,
}

impl Queue {
    /// A pod that wants a node, or has changed while it waits.
    pub fn add(&mut self, pod: Arc<Pod>) {
        let key = uid(&pod).to_owned();
        let (failures, arrived) = match self.entries.get(&key) {
            Some(known) => {
                // Its status changes with each attempt; only what it asks for can make a difference.
                if known.pod.spec == pod.spec && known.pod.metadata.labels == pod.metadata.labels {
                    if let Some(known) = self.entries.get_mut(&key) {
                        known.pod = pod;
                    }
                    return;
                }
                (known.failures, known.arrived)
            }
            None => {
                self.arrivals += 1;
                (0, self.arrivals)
            }
        };
        self.remove(&key);
        self.entries.insert(key.clone(), Entry { pod, failures, arrived, place: Place::Active });
        self.activate(&key);
    }

    pub fn remove(&mut self, uid: &str) {
        let Some(entry) = self.entries.remove(uid) else { return };
        match entry.place {
            Place::Active => drop(self.active.remove(&(Reverse(priority(&entry.pod)), entry.arrived, uid.to_owned()))),
            Place::Resting(until) | Place::Hopeless(until) => drop(self.resting.remove(&(until, entry.arrived))),
        }
    }

    /// The next one to try. It leaves the queue; `failed` brings it back.
    pub fn next(&mut self) -> Option<Attempt> {
        let (.., key) = self.active.pop_first()?;
        let entry = self.entries.remove(&key)?;
        Some(Attempt { pod: entry.pod, failures: entry.failures, arrived: entry.arrived, changes: self.changes })
    }

    /// No node would do. It waits until something changes.
    pub fn failed(&mut self, attempt: Attempt, now: Instant) {
        // What changed since the attempt began may be what it needs.
        let place = match attempt.changes == self.changes {
            true => Place::Hopeless(now + HOPELESS_MAX),
            false => Place::Resting(now + backoff(attempt.failures)),
        };
        self.rest(attempt, place);
    }

    /// Something went wrong that has nothing to do with nodes.
    pub fn retry(&mut self, attempt: Attempt, now: Instant) {
        let place = Place::Resting(now + backoff(attempt.failures));
        self.rest(attempt, place);
    }

    fn rest(&mut self, attempt: Attempt, place: Place) {
        let (Place::Resting(until) | Place::Hopeless(until)) = place else { return };
        let key = uid(&attempt.pod).to_owned();
        // A newer version may have come in meanwhile.
        if self.entries.contains_key(&key) {
            return;
        }
        self.resting.insert((until, attempt.arrived), key.clone());
        let entry = Entry { pod: attempt.pod, failures: attempt.failures + 1, arrived: attempt.arrived, place };
        self.entries.insert(key, entry);
    }

    /// A node or a pod has changed such that somebody may fit now.
    pub fn something_changed(&mut self, now: Instant) {
        self.changes += 1;
        let hopeless: Vec<String> = self
            .entries
            .iter()
            .filter(|(_, entry)| matches!(entry.place, Place::Hopeless(_)))
            .map(|(key, _)| key.clone())
            .collect();
        for key in hopeless {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            if let Place::Hopeless(until) = entry.place {
                self.resting.remove(&(until, entry.arrived));
            }
            // One that has only failed once need not rest before it may try again.
            let rest = if entry.failures <= 1 { Duration::ZERO } else { backoff(entry.failures - 1) };
            if rest.is_zero() {
                entry.place = Place::Active;
                self.activate(&key);
            } else {
                entry.place = Place::Resting(now + rest);
                self.resting.insert((now + rest, entry.arrived), key);
            }
        }
    }

    /// When the first of those at rest has rested enough.
    pub fn next_wake(&self) -> Option<Instant> {
        self.resting.keys().next().map(|(until, _)| *until)
    }

    /// Lets those try again that have rested enough.
    pub fn wake(&mut self, now: Instant) {
        while let Some(((until, _), _)) = self.resting.first_key_value() {
            if *until > now {
                return;
            }
            if let Some((_, key)) = self.resting.pop_first()
                && let Some(entry) = self.entries.get_mut(&key)
            {
                entry.place = Place::Active;
                self.activate(&key);
            }
        }
    }

    fn activate(&mut self, key: &str) {
        if let Some(entry) = self.entries.get(key) {
            self.active.insert((Reverse(priority(&entry.pod)), entry.arrived, key.to_owned()));
        }
    }
}

/// A pod that is being tried.
pub struct Attempt {
    pub pod: Arc<Pod>,
    failures: u32,
    arrived: u64,
    changes: u64,
}

pub fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0)
}

fn backoff(failures: u32) -> Duration {
    BACKOFF_FIRST.saturating_mul(1 << failures.min(8)).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, priority: i32) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": name, "uid": name}, "spec": {"priority": priority, "containers": []}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn name(attempt: &Attempt) -> &str {
        attempt.pod.metadata.name.as_deref().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn important_pods_come_first_and_failures_rest() {
        let mut queue = Queue::default();
        for (name, priority) in [("a", 0), ("b", 0), ("c", 9)] {
            queue.add(pod(name, priority));
        }
        let order: Vec<_> = (0..3).map(|_| queue.next().unwrap()).collect();
        assert_eq!(order.iter().map(name).collect::<Vec<_>>(), ["c", "a", "b"]);
        let now = Instant::now();
        let mut order = order.into_iter();
        queue.failed(order.next().unwrap(), now);
        assert!(queue.next().is_none(), "it waits for a change");
        queue.something_changed(now);
        assert_eq!(name(&queue.next().unwrap()), "c");

        queue.retry(order.next().unwrap(), now);
        queue.wake(now);
        assert!(queue.next().is_none());
        assert_eq!(queue.next_wake(), Some(now + BACKOFF_FIRST));
        queue.wake(now + BACKOFF_FIRST);
        assert_eq!(name(&queue.next().unwrap()), "a");
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_during_the_attempt_is_not_missed() {
        let mut queue = Queue::default();
        queue.add(pod("a", 0));
        let attempt = queue.next().unwrap();
        queue.something_changed(Instant::now());
        queue.failed(attempt, Instant::now());
        assert_eq!(queue.next_wake(), Some(Instant::now() + BACKOFF_FIRST));
    }

    #[tokio::test(start_paused = true)]
    async fn status_changes_do_not_wake() {
        let mut queue = Queue::default();
        queue.add(pod("a", 0));
        let attempt = queue.next().unwrap();
        queue.failed(attempt, Instant::now());
        queue.add(pod("a", 0));
        assert!(queue.next().is_none());
        queue.remove("a");
        assert_eq!(queue.next_wake(), None);
    }
}
