//! Who is waiting for a node: ready to be tried, resting after a failure, or hopeless until something changes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use crate::cluster::uid;
use crate::filter::Causes;

const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// What cannot be placed is tried again after this even if nothing seemed to change, as upstream does.
const HOPELESS_MAX: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Active,
    /// Until then.
    Resting(Instant),
    /// Until one of the causes is gone, or then.
    Hopeless(Causes, Instant),
}

struct Entry {
    pod: Arc<Pod>,
    failures: u32,
    arrived: u64,
    place: Place,
    /// When it may be tried again after its last failure.
    rested: Instant,
}

#[derive(Default)]
pub struct Queue {
    entries: HashMap<String, Entry>,
    /// The highest priority first, then who came first.
    active: BTreeSet<(Reverse<i32>, u64, String)>,
    resting: BTreeMap<(Instant, u64), String>,
    arrivals: u64,
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
        let entry = Entry { pod, failures, arrived, place: Place::Active, rested: Instant::now() };
        self.entries.insert(key.clone(), entry);
        self.activate(&key);
    }

    /// Whether somebody may be tried now.
    pub fn has_next(&self) -> bool {
        !self.active.is_empty()
    }

    /// Forgets those that are not among the `living`.
    pub fn retain(&mut self, living: &HashSet<&str>) {
        let gone: Vec<_> = self.entries.keys().filter(|uid| !living.contains(uid.as_str())).cloned().collect();
        gone.iter().for_each(|uid| self.remove(uid));
    }

    pub fn remove(&mut self, uid: &str) {
        let Some(entry) = self.entries.remove(uid) else { return };
        match entry.place {
            Place::Active => drop(self.active.remove(&(Reverse(priority(&entry.pod)), entry.arrived, uid.to_owned()))),
            Place::Resting(until) | Place::Hopeless(_, until) => drop(self.resting.remove(&(until, entry.arrived))),
        }
    }

    /// The next one to try. It leaves the queue; `failed` brings it back.
    pub fn next(&mut self) -> Option<Attempt> {
        let (.., key) = self.active.pop_first()?;
        let entry = self.entries.remove(&key)?;
        Some(Attempt { pod: entry.pod, failures: entry.failures, arrived: entry.arrived })
    }

    /// No node would do. It waits until one of the causes may be gone.
    pub fn failed(&mut self, attempt: Attempt, causes: Causes, now: Instant) {
        self.rest(attempt, Place::Hopeless(causes, now + HOPELESS_MAX), now);
    }

    /// Something went wrong that has nothing to do with nodes.
    pub fn retry(&mut self, attempt: Attempt, now: Instant) {
        let place = Place::Resting(now + backoff(attempt.failures));
        self.rest(attempt, place, now);
    }

    fn rest(&mut self, attempt: Attempt, place: Place, now: Instant) {
        let (Place::Resting(until) | Place::Hopeless(_, until)) = place else { return };
        let key = uid(&attempt.pod).to_owned();
        // A newer version may have come in meanwhile.
        if self.entries.contains_key(&key) {
            return;
        }
        // One that has only failed once need not rest before a change lets it try again.
        let rested = if attempt.failures == 0 { now } else { now + backoff(attempt.failures - 1) };
        self.resting.insert((until, attempt.arrived), key.clone());
        let failures = attempt.failures.saturating_add(1);
        let entry = Entry { pod: attempt.pod, failures, arrived: attempt.arrived, place, rested };
        self.entries.insert(key, entry);
    }

    /// These have changed such that somebody may fit now.
    pub fn changed(&mut self, what: Causes, now: Instant) {
        let hopeful = |(key, entry): (&String, &Entry)| match entry.place {
            Place::Hopeless(causes, until) if causes.meet(what) => {
                Some((key.clone(), until, entry.arrived, entry.rested))
            }
            _ => None,
        };
        let hopeful: Vec<_> = self.entries.iter().filter_map(hopeful).collect();
        for (key, until, arrived, rested) in hopeful {
            self.resting.remove(&(until, arrived));
            let rests = rested > now;
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.place = if rests { Place::Resting(rested) } else { Place::Active };
            }
            if rests {
                self.resting.insert((rested, arrived), key);
            } else {
                self.activate(&key);
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
    use crate::filter::Cause;

    const ROOM: Causes = Causes::of(&[Cause::Room]);
    const NODE: Causes = Causes::of(&[Cause::Node]);

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
        queue.failed(order.next().unwrap(), ROOM, now);
        queue.changed(NODE, now);
        assert!(queue.next().is_none(), "it waits for room");
        queue.changed(ROOM, now);
        let again = queue.next().unwrap();
        assert_eq!(name(&again), "c");
        queue.failed(again, ROOM, now);
        queue.changed(ROOM, now);
        assert!(queue.next().is_none(), "the second time it rests");
        assert_eq!(queue.next_wake(), Some(now + BACKOFF_FIRST));
        queue.remove("c");

        queue.retry(order.next().unwrap(), now);
        queue.wake(now);
        assert!(queue.next().is_none());
        assert_eq!(queue.next_wake(), Some(now + BACKOFF_FIRST));
        queue.wake(now + BACKOFF_FIRST);
        assert_eq!(name(&queue.next().unwrap()), "a");
    }

    #[tokio::test(start_paused = true)]
    async fn status_changes_do_not_wake() {
        let mut queue = Queue::default();
        queue.add(pod("a", 0));
        let attempt = queue.next().unwrap();
        queue.failed(attempt, ROOM, Instant::now());
        queue.add(pod("a", 0));
        assert!(queue.next().is_none());
        assert_eq!(queue.next_wake(), Some(Instant::now() + HOPELESS_MAX));
        queue.retain(&HashSet::from(["a"]));
        assert!(queue.next_wake().is_some());
        queue.retain(&HashSet::new());
        assert_eq!(queue.next_wake(), None);
    }
}
