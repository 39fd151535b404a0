//! The loop that every controller is: informers feed keys into a queue, workers reconcile one key at a time.

use std::future::Future;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use kube::Resource;
use mussel_client::informer::Kind;
use mussel_client::{Change, Informer, WorkQueue};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Outcome};

/// A pass that takes longer hangs on something; it is dropped and tried again.
const PASS_MAX: Duration = Duration::from_secs(120);
/// How long passes under way may take to end when the controller stops.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// Namespace (empty for cluster-scoped objects) and name.
pub type Key = (String, String);

pub fn key_of<K: Resource>(object: &K) -> Key {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// Hands every change to `on`. After a gap in the changes, `resync` is called instead, and has to queue everything.
pub async fn follow<K: Kind>(
    informer: Informer<K>,
    stop: CancellationToken,
    mut on: impl FnMut(&Change<K>),
    resync: impl Fn(),
) {
    let mut changes = informer.changes();
    loop {
        let change = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            change = changes.next() => change,
        };
        match change {
            None => return,
            Some(Change::Resync) => resync(),
            Some(change) => on(&change),
        }
    }
}

/// Follows the kind a controller is for: every change queues the object's own key.
pub async fn follow_keys<K: Kind>(informer: Informer<K>, queue: WorkQueue<Key>, stop: CancellationToken) {
    let add = |change: &Change<K>| {
        let (Change::Applied { new: object, .. } | Change::Deleted(object)) = change else { return };
        queue.add(key_of(&**object));
    };
    follow(informer.clone(), stop, add, || queue_all(&informer, &queue)).await;
}

pub fn queue_all<K: Kind>(informer: &Informer<K>, queue: &WorkQueue<Key>) {
    for object in informer.list() {
        queue.add(key_of(&*object));
    }
}

/// Works the queue off with at most `workers` keys at the same time, until `stop`.
pub async fn work<F, Fut>(
    name: &'static str,
    queue: WorkQueue<Key>,
    workers: usize,
    stop: CancellationToken,
    reconcile: F,
) where
    F: Fn(Key) -> Fut,
    Fut: Future<Output = Outcome>,
{
    let mut passes = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some((key, outcome)) = passes.next(), if !passes.is_empty() => settle(name, &queue, key, outcome),
            key = queue.next(), if passes.len() < workers => passes.push(async {
                let pass = tokio::time::timeout(PASS_MAX, reconcile(key.clone())).await;
                let outcome = pass.unwrap_or_else(|_| Err(Error::Unfinished("pass took too long".to_owned())));
                (key, outcome)
            }),
        }
    }
    let _ = tokio::time::timeout(DRAIN_MAX, async { while passes.next().await.is_some() {} }).await;
}

fn settle(name: &str, queue: &WorkQueue<Key>, key: Key, outcome: Outcome) {
    match outcome {
        Ok(next) => {
            queue.forget(&key);
            if let Some(wait) = next {
                // Never sooner than a moment, so that a deadline that just passed cannot spin.
                queue.add_after(key.clone(), wait.max(Duration::from_millis(10)));
            }
        }
        Err(error) => {
            let (namespace, object) = (&key.0, &key.1);
            if error.is_conflict() || queue.failures(&key) < 2 {
                tracing::debug!(controller = name, namespace, object, error = %Chain(&error), "pass failed");
            } else {
                tracing::warn!(controller = name, namespace, object, error = %Chain(&error), "pass failed");
            }
            queue.retry(key.clone());
        }
    }
    queue.done(&key);
}

/// An error with its causes.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}
