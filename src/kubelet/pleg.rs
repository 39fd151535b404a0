//! Tells workers what happens in the runtime: its event stream, and a relist in case something was missed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::labels;
use crate::observed::time;
use crate::shared::Shared;

/// A safety net only, when the runtime sends events.
const RELIST_WITH_EVENTS: Duration = Duration::from_secs(60);
/// All there is, when it does not.
const RELIST_ALONE: Duration = Duration::from_secs(1);
const RECONNECT: Duration = Duration::from_secs(1);

type Snapshot = HashMap<String, HashSet<(String, i32)>>;

pub async fn run(shared: Arc<Shared>) {
    let mut known: Option<Snapshot> = None;
    loop {
        let opened = tokio::select! {
            opened = shared.cri.events() => opened,
            () = shared.stop.cancelled() => return,
        };
        let mut events = match opened {
            Ok(events) => Some(events),
            Err(error) if error.0.code() == tonic::Code::Unimplemented => None,
            Err(error) => {
                tracing::warn!(%error, "the runtime sends no events");
                known = relist(&shared, known).await;
                tokio::select! {
                    () = tokio::time::sleep(RECONNECT) => continue,
                    () = shared.stop.cancelled() => return,
                }
            }
        };
        let period = if events.is_some() { RELIST_WITH_EVENTS } else { RELIST_ALONE };
        // What happened before the stream stood.
        known = relist(&shared, known).await;
        let mut next = Instant::now() + period;
        loop {
            let event = async {
                match &mut events {
                    Some(events) => events.message().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = shared.stop.cancelled() => return,
                event = event => match event {
                    Ok(Some(event)) => {
                        let uid = event.pod_sandbox_status.as_ref().and_then(|s| s.metadata.as_ref()).map(|m| m.uid.as_str());
                        tracing::trace!(?uid, id = event.container_id, at = ?time(event.created_at), "runtime event");
                        match uid {
                            Some(uid) if !uid.is_empty() => shared.registry.wake(uid),
                            // A container whose sandbox is gone: find out whose it was.
                            _ => next = Instant::now(),
                        }
                    }
                    Ok(None) | Err(_) => break,
                },
                () = sleep_until(next) => {
                    known = relist(&shared, known).await;
                    next = Instant::now() + period;
                }
            }
        }
    }
}

/// Wakes the pods in which something differs from what was seen last.
async fn relist(shared: &Shared, known: Option<Snapshot>) -> Option<Snapshot> {
    let listed = tokio::try_join!(shared.cri.sandboxes(HashMap::new()), shared.cri.containers(HashMap::new()));
    let (sandboxes, containers) = match listed {
        Ok(listed) => listed,
        Err(error) => {
            tracing::warn!(%error, "cannot list what the runtime has");
            return known;
        }
    };
    let mut now = Snapshot::new();
    for sandbox in sandboxes {
        if let Some(uid) = sandbox.labels.get(labels::POD_UID) {
            now.entry(uid.clone()).or_default().insert((sandbox.id, sandbox.state));
        }
    }
    for container in containers {
        if let Some(uid) = container.labels.get(labels::POD_UID) {
            now.entry(uid.clone()).or_default().insert((container.id, container.state));
        }
    }
    if let Some(known) = &known {
        let uids: HashSet<&String> = known.keys().chain(now.keys()).collect();
        for uid in uids {
            if known.get(uid) != now.get(uid) {
                shared.registry.wake(uid);
            }
        }
    }
    Some(now)
}
