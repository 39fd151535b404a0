//! The leader's part: conditions and accepted names of CRDs, and the end of those that are deleted.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use mussel_api::object::{self, ObjectExt};
use mussel_store::{CommitError, Freshness, Precondition, Revision, Txn};
use serde_json::Value;
use tokio::task::JoinSet;

use super::{Entry, FINALIZER, conditions, crd_key};
use crate::registry::{key, purge, write::now};
use crate::status::Status;
use crate::{ApiServer, Context};

/// Until what failed is tried again: the store had no leader, mostly.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until the server stops; acts while this server leads.
pub async fn run(server: ApiServer) {
    let stop = server.context().stop.clone();
    let mut leader = server.context().store.leader();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            // An error means that the store has stopped.
            led = leader.wait_for(|leads| *leads) => if led.is_err() { return },
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = leader.wait_for(|leads| !*leads) => {}
            () = lead(&server) => return,
        }
    }
}

/// One term. Ends when it is dropped.
async fn lead(server: &ApiServer) {
    let context = server.context();
    let mut changes = context.catalog.changes();
    let mut ending: HashSet<String> = HashSet::new();
    let mut ends = JoinSet::new();
    loop {
        let customs = context.catalog.customs();
        let mut failed = false;
        let mut groups: BTreeMap<&str, Vec<&Arc<Entry>>> = BTreeMap::new();
        for entry in customs.entries().values() {
            groups.entry(&entry.group).or_default().push(entry);
            let is_ours = entry.deleting && entry.finalizers.iter().any(|name| name == FINALIZER);
            if is_ours && ending.insert(entry.name.clone()) {
                let (server, entry) = (server.clone(), Arc::clone(entry));
                ends.spawn(async move { (entry.name.clone(), end(&server, &entry).await) });
            }
        }
        for outcome in join_all(groups.into_values().map(|group| settle(context, group))).await {
            if let Err(status) = outcome {
                tracing::debug!(why = status.message, "conditions of a custom resource definition are not written yet");
                failed = true;
            }
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            Some(ended) = ends.join_next(), if !ends.is_empty() => {
                if let Ok((name, outcome)) = ended {
                    if let Err(status) = outcome {
                        tracing::warn!(crd = name, why = status.message, "a deleted custom resource definition is not gone yet");
                        tokio::time::sleep(RETRY).await;
                    }
                    ending.remove(&name);
                }
            }
            () = tokio::time::sleep(RETRY), if failed => {}
        }
    }
}

/// Writes the status of the first CRD of a group that lacks something; the write itself wakes for the next one.
async fn settle(context: &Context, group: Vec<&Arc<Entry>>) -> Result<(), Status> {
    for entry in &group {
        if entry.deleting {
            continue;
        }
        let others = group.iter().filter(|other| other.name != entry.name).map(|other| other.as_ref());
        let Some(status) = conditions::status(entry, others, &now()) else { continue };
        // With all CRDs of the group as they are: names are given once.
        let mut txn = Txn::default();
        txn.preconditions.push(Precondition::At(crd_key(&entry.name), Revision(entry.revision)));
        for other in group.iter().filter(|other| other.name != entry.name) {
            txn.preconditions.push(Precondition::At(crd_key(&other.name), Revision(other.revision)));
        }
        let snapshot = context.store.snapshot(Freshness::Local).await?;
        let key = crd_key(&entry.name);
        let Some(versioned) = snapshot.get(&key).filter(|found| found.revision.0 == entry.revision) else {
            return Ok(());
        };
        let mut crd = object::decode(&versioned.value()?, versioned.revision.0).map_err(Status::internal)?;
        crd["status"] = status;
        txn.puts.push((key, object::encode(&crd)));
        return match context.store.commit(txn).await {
            // Somebody changed one of them: that wakes us.
            Ok(_) | Err(CommitError::Refused { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        };
    }
    Ok(())
}

/// Deletes all objects of a deleted CRD, waits until they are gone, and lets the CRD go.
async fn end(server: &ApiServer, entry: &Entry) -> Result<(), Status> {
    let context = server.context();
    let in_progress = |crd: &mut Value| {
        // A failure is told until it is over.
        if conditions::reason(&crd["status"], "Terminating") != "InstanceDeletionFailed" {
            let message = "CustomResource deletion is in progress";
            conditions::set(&mut crd["status"], "Terminating", true, "InstanceDeletionInProgress", message, &now());
        }
    };
    if !change(context, &entry.name, in_progress).await? {
        return Ok(());
    }
    if let Some(row) = entry.storage_row() {
        let prefix = key::prefix(&entry.name, "");
        loop {
            let purged = purge::purge(&server.0.registry, row).await;
            if let Err(status) = &purged {
                let message = format!("could not delete instances: {}", status.message);
                let failed = |crd: &mut Value| {
                    conditions::set(
                        &mut crd["status"],
                        "Terminating",
                        true,
                        "InstanceDeletionFailed",
                        &message,
                        &now(),
                    );
                };
                change(context, &entry.name, failed).await?;
            }
            let (remaining, seen) = purged?;
            if remaining == 0 {
                break;
            }
            // Finalizers of the objects; their end is a change in the store.
            let mut watch = context.store.watch(prefix.clone(), seen)?;
            watch.next().await.map_err(Status::internal)?;
        }
    }
    change(context, &entry.name, |crd| {
        let done = "removed all instances";
        conditions::set(&mut crd["status"], "Terminating", false, "InstanceDeletionCompleted", done, &now());
        let kept: Vec<Value> =
            crd.finalizers().into_iter().filter(|name| *name != FINALIZER).map(Value::from).collect();
        if kept.is_empty() {
            crd.meta_mut().remove("finalizers");
        } else {
            crd.meta_mut().insert("finalizers".to_owned(), kept.into());
        }
    })
    .await?;
    tracing::info!(crd = entry.name, "custom resource definition is gone");
    Ok(())
}

/// Changes a CRD that is being deleted; without finalizers it goes. `false` when it is gone already.
async fn change(context: &Context, name: &str, make: impl Fn(&mut Value)) -> Result<bool, Status> {
    loop {
        let snapshot = context.store.snapshot(Freshness::Linearizable).await?;
        let key = crd_key(name);
        let Some(versioned) = snapshot.get(&key) else { return Ok(false) };
        let mut crd = object::decode(&versioned.value()?, versioned.revision.0).map_err(Status::internal)?;
        if !crd.is_deleting() {
            return Ok(false);
        }
        let before = crd.clone();
        make(&mut crd);
        if crd == before {
            return Ok(true);
        }
        let mut txn = Txn { preconditions: vec![Precondition::At(key.clone(), versioned.revision)], ..Txn::default() };
        if crd.finalizers().is_empty() {
            txn.deletes.push(key);
        } else {
            txn.puts.push((key, object::encode(&crd)));
        }
        match context.store.commit(txn).await {
            Ok(_) => return Ok(true),
            Err(CommitError::Refused { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
