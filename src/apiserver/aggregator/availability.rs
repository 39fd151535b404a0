//! Whether extension servers can be reached: the condition `Available`, written by the leader for all.
//!
//! One task for each APIService with a Service. It looks again when something changes that the outcome hangs on, and after a
//! while, because nobody tells when a server stops answering while its pod stays ready.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use mussel_api::object;
use mussel_store::{CommitError, Freshness, Precondition, Revision, Txn};
use serde_json::Value;
use tokio::task::{AbortHandle, JoinSet};

use super::proxy::{ReachError, fetch};
use super::service::{ApiService, RESOURCE, Remote, set_condition};
use crate::Context;
use crate::outbound::endpoints::{self, Behind, ServiceError};
use crate::registry::{key, view::View, write::now};
use crate::status::Status;

/// Until a server that answered is asked again.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// Until one that did not is, at first and at last.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Keeps the conditions while this server leads.
pub async fn lead(context: &Arc<Context>) {
    let mut changes = context.aggregator.changes();
    let mut tasks = JoinSet::new();
    let mut running: HashMap<String, (Remote, AbortHandle)> = HashMap::new();
    loop {
        changes.mark_unchanged();
        let table = context.aggregator.table();
        running.retain(|name, (remote, task)| {
            let stays = table.get(name).is_some_and(|service| service.remote.as_ref() == Some(&*remote));
            if !stays {
                task.abort();
            }
            stays
        });
        for service in table.values() {
            let Some(remote) = &service.remote else { continue };
            running.entry(service.name.clone()).or_insert_with(|| {
                let (context, service) = (Arc::clone(context), Arc::clone(service));
                (remote.clone(), tasks.spawn(async move { keep(&context, &service).await }))
            });
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
        }
    }
}

/// One APIService, as long as its spec stays.
async fn keep(context: &Context, service: &ApiService) {
    let Some(remote) = &service.remote else { return };
    let mut failures = 0_u32;
    loop {
        let Ok(snapshot) = context.store.snapshot(Freshness::Local).await else { return };
        let view = View::new(snapshot);
        let way = endpoints::resolve(&view, &remote.namespace, &remote.service, remote.port);
        let verdict = look(context, service, remote, &way).await;
        let available = verdict.reason == "Passed";
        let written = write(context, &service.name, remote, &verdict).await;
        if let Err(status) = &written {
            tracing::debug!(apiservice = service.name, why = status.message, "the condition is not written yet");
        }
        // What has no endpoint is told by an event when it has.
        let wait = if written.is_err() || (!available && way.is_ok()) {
            failures = failures.saturating_add(1);
            RETRY_FIRST.saturating_mul(1 << failures.min(10)).min(RETRY_MAX)
        } else {
            failures = 0;
            LOOK_AGAIN
        };
        let moved = pin!(moved(context, remote, view.revision(), &way));
        tokio::select! {
            () = moved => failures = 0,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    reason: &'static str,
    message: String,
}

async fn look(context: &Context, service: &ApiService, remote: &Remote, way: &Result<Behind, ServiceError>) -> Verdict {
    if let Some(verdict) = obstacle(remote, way) {
        return verdict;
    }
    match fetch(context, remote, &service.path(), "application/json, */*").await {
        Ok(_) => Verdict { reason: "Passed", message: "all checks passed".to_owned() },
        Err(ReachError::Service(error)) => {
            obstacle(remote, &Err(error)).unwrap_or(Verdict { reason: "MissingEndpoints", message: String::new() })
        }
        Err(error) => Verdict { reason: "FailedDiscoveryCheck", message: error.to_string() },
    }
}

/// Why there is nobody to ask, in upstream's words.
fn obstacle(remote: &Remote, way: &Result<Behind, ServiceError>) -> Option<Verdict> {
    let (name, namespace) = (&remote.service, &remote.namespace);
    let (reason, message) = match way.as_ref().err()? {
        ServiceError::NoService(_) => ("ServiceNotFound", format!("service/{name} in {namespace:?} is not present")),
        ServiceError::NoPort { port, .. } => {
            ("ServicePortError", format!("service/{name} in {namespace:?} is not listening on port {port}"))
        }
        ServiceError::NoSlices(_) => {
            ("EndpointsNotFound", format!("cannot find endpointslices for service/{name} in {namespace:?}"))
        }
        ServiceError::NoEndpoints { port_name, .. } => (
            "MissingEndpoints",
            format!(
                "endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"
            ),
        ),
    };
    Some(Verdict { reason, message })
}

async fn write(context: &Context, name: &str, remote: &Remote, verdict: &Verdict) -> Result<(), Status> {
    let key = key::object(RESOURCE, "", name);
    loop {
        let snapshot = context.store.snapshot(Freshness::Local).await?;
        let Some(versioned) = snapshot.get(&key) else { return Ok(()) };
        let mut object: Value = object::decode(&versioned.value()?, versioned.revision.0).map_err(Status::internal)?;
        // The verdict is about what the spec said.
        if ApiService::of(&object, 0).remote.as_ref() != Some(remote) {
            return Ok(());
        }
        let available = verdict.reason == "Passed";
        if !set_condition(&mut object, available, verdict.reason, &verdict.message, &now()) {
            return Ok(());
        }
        let txn = Txn {
            preconditions: vec![Precondition::At(key.clone(), versioned.revision)],
            puts: vec![(key.clone(), object::encode(&object))],
            deletes: Vec::new(),
        };
        match context.store.commit(txn).await {
            Ok(_) => {
                tracing::info!(
                    apiservice = name,
                    available,
                    reason = verdict.reason,
                    "an APIService's availability changed"
                );
                return Ok(());
            }
            Err(CommitError::Refused { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Returns when the Service leads somewhere else than it did at `after`.
async fn moved(context: &Context, remote: &Remote, after: Revision, before: &Result<Behind, ServiceError>) {
    let service = key::object("services", &remote.namespace, &remote.service);
    let slices = key::prefix("endpointslices.discovery.k8s.io", &remote.namespace);
    let (Ok(mut service), Ok(mut slices)) = (context.store.watch(service, after), context.store.watch(slices, after))
    else {
        // From further back than the store remembers: look now.
        return;
    };
    loop {
        let seen = tokio::select! {
            commit = service.next() => commit.is_ok(),
            commit = slices.next() => commit.is_ok(),
        };
        if !seen {
            return;
        }
        let Ok(snapshot) = context.store.snapshot(Freshness::Local).await else { return };
        let now = endpoints::resolve(&View::new(snapshot), &remote.namespace, &remote.service, remote.port);
        if now != *before {
            return;
        }
    }
}
