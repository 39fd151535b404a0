//! What a controller has done that its informers may not show yet.
//!
//! Without this, a pass that runs before the watch delivered the last pass's Pods would create them again. Deletions
//! are remembered by uid, because a Pod that is deleted gracefully changes more than once.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use mussel_client::{Change, WorkQueue};
use tokio::time::Instant;

use crate::control::Key;

/// After this long a missing event is taken for lost.
const FORGET_AFTER: Duration = Duration::from_secs(300);

#[derive(Default)]
pub struct Expectations(Mutex<HashMap<Key, Expected>>);

struct Expected {
    creations: i64,
    deletions: HashSet<String>,
    since: Instant,
}

impl Expectations {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Expected>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The informers show all that was done: a pass may act.
    pub fn met(&self, key: &Key) -> bool {
        let mut all = self.lock();
        let Some(expected) = all.get(key) else { return true };
        let met = (expected.creations <= 0 && expected.deletions.is_empty()) || expected.since.elapsed() > FORGET_AFTER;
        if met {
            all.remove(key);
        }
        met
    }

    /// To be called before the requests, because events may come before the answers.
    pub fn expect(&self, key: &Key, creations: usize, deletions: impl IntoIterator<Item = String>) {
        let mut all = self.lock();
        let entry = all.entry(key.clone()).or_insert_with(|| Expected {
            creations: 0,
            deletions: HashSet::new(),
            since: Instant::now(),
        });
        entry.creations += i64::try_from(creations).unwrap_or(i64::MAX);
        entry.deletions.extend(deletions);
        entry.since = Instant::now();
    }

    /// A creation was seen, or will never be.
    pub fn created(&self, key: &Key) {
        if let Some(expected) = self.lock().get_mut(key) {
            expected.creations -= 1;
        }
    }

    /// A deletion was seen, or will never be.
    pub fn deleted(&self, key: &Key, uid: &str) {
        if let Some(expected) = self.lock().get_mut(key) {
            expected.deletions.remove(uid);
        }
    }

    /// Takes note of what became of a Pod, and queues whose it is and whose it was: the owner that lost it to another has
    /// to look, too.
    pub fn pod_changed(&self, change: &Change<Pod>, owner: impl Fn(&Pod) -> Option<Key>, queue: &WorkQueue<Key>) {
        let uid = |pod: &Pod| pod.metadata.uid.clone().unwrap_or_default();
        match change {
            Change::Applied { old, new } => {
                if let Some(key) = owner(new) {
                    if new.metadata.deletion_timestamp.is_some() {
                        self.deleted(&key, &uid(new));
                    }
                    if old.is_none() {
                        self.created(&key);
                    }
                    queue.add(key);
                }
                if let Some(key) = old.as_deref().and_then(owner) {
                    queue.add(key);
                }
            }
            Change::Deleted(pod) => {
                if let Some(key) = owner(pod) {
                    self.deleted(&key, &uid(pod));
                    queue.add(key);
                }
            }
            Change::Resync => {}
        }
    }

    pub fn forget(&self, key: &Key) {
        self.lock().remove(key);
    }

    pub fn forget_all(&self) {
        self.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn passes_wait_until_everything_was_seen() {
        let expectations = Expectations::default();
        let key = ("a".to_owned(), "b".to_owned());
        assert!(expectations.met(&key));
        expectations.expect(&key, 2, ["u".to_owned()]);
        expectations.created(&key);
        expectations.created(&key);
        assert!(!expectations.met(&key));
        expectations.deleted(&key, "u");
        assert!(expectations.met(&key));
        expectations.expect(&key, 1, []);
        tokio::time::advance(FORGET_AFTER + Duration::from_secs(1)).await;
        assert!(expectations.met(&key));
    }
}
