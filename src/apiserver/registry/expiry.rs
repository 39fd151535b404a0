//! Events are kept for a while: an hour, unless configured otherwise.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use mussel_api::object::{self, ObjectExt};
use mussel_store::{CommitError, Freshness, Precondition, Txn};

use super::key;
use crate::Context;

/// How often old events are looked for. An event may so live a little longer; a pass without old events writes nothing.
const PERIOD: Duration = Duration::from_secs(5 * 60);

/// Deletions in one transaction.
const BATCH: usize = 200;

/// Starts the task that removes old events. It works on the leader only, so that servers do not get into each other's way.
pub fn start(context: &Arc<Context>) {
    let context = Arc::clone(context);
    let tasks = context.tasks.clone();
    tasks.spawn(async move {
        loop {
            tokio::select! {
                () = context.stop.cancelled() => return,
                () = tokio::time::sleep(PERIOD) => {}
            }
            if *context.store.leader().borrow()
                && let Err(error) = expire(&context, Timestamp::now()).await
            {
                tracing::warn!(%error, "old events are not removed yet");
            }
        }
    });
}

/// Removes the events that were last written before the time to live. A write renews an event's life.
pub async fn expire(context: &Context, now: Timestamp) -> Result<usize, CommitError> {
    let Ok(snapshot) = context.store.snapshot(Freshness::Local).await else { return Ok(0) };
    let seconds = i64::try_from(context.config.event_ttl.as_secs()).unwrap_or(i64::MAX);
    let prefix = key::prefix("events", "");
    let mut doomed = Vec::new();
    for (key, versioned) in snapshot.range(&prefix, &prefix) {
        let Some(event) = versioned.value().ok().and_then(|value| object::decode(&value, versioned.revision.0).ok())
        else {
            continue;
        };
        let newest = ["lastTimestamp", "eventTime", "firstTimestamp"]
            .into_iter()
            .filter_map(|field| event[field].as_str())
            .chain(event["series"]["lastObservedTime"].as_str())
            .chain(std::iter::once(event.meta_str("creationTimestamp")))
            .filter_map(|text| text.parse::<Timestamp>().ok())
            .max();
        if newest.is_none_or(|newest| now.as_second() - newest.as_second() > seconds) {
            doomed.push((key.clone(), versioned.revision));
        }
    }
    let count = doomed.len();
    for batch in doomed.chunks(BATCH) {
        let txn = Txn {
            preconditions: batch.iter().map(|(key, revision)| Precondition::At(key.clone(), *revision)).collect(),
            puts: Vec::new(),
            deletes: batch.iter().map(|(key, _)| key.clone()).collect(),
        };
        match context.store.commit(txn).await {
            // An event was written in between; the next pass sees it.
            Ok(_) | Err(CommitError::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}
