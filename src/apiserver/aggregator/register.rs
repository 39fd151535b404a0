//! The APIServices of what is served here: one for each group version, built-in or of CRDs, as `kubectl get apiservices` shows
//! them. They are made, mended and removed by the leader.

use std::collections::BTreeMap;
use std::time::Duration;

use mussel_api::object::{self, ObjectExt};
use mussel_api::resource::METRICS_GROUP;
use mussel_store::{CommitError, Freshness, Precondition, Txn};
use serde_json::{Value, json};

use super::OWN_GROUP;
use super::service::{MANAGED, RESOURCE, set_condition};
use crate::Context;
use crate::registry::{key, write::now};
use crate::status::Status;

/// Until what failed is tried again: the store had no leader, mostly.
const RETRY: Duration = Duration::from_secs(1);

/// Where a group and a version of it stand in discovery, larger first: what upstream gives those it has built in, and CRDs.
pub fn priorities(group: &str, version: &str) -> (i64, i64) {
    let of_group = match group {
        OWN_GROUP => 20_000,
        "" => return (18_000, 1),
        "apps" => 17_800,
        "events.k8s.io" => 17_750,
        "authentication.k8s.io" => 17_700,
        "authorization.k8s.io" => 17_600,
        "autoscaling" => 17_500,
        "batch" => 17_400,
        "certificates.k8s.io" => 17_300,
        "networking.k8s.io" => 17_200,
        "policy" => 17_100,
        "rbac.authorization.k8s.io" => 17_000,
        "storage.k8s.io" => 16_800,
        "apiextensions.k8s.io" | "admissionregistration.k8s.io" => 16_700,
        "scheduling.k8s.io" => 16_600,
        "coordination.k8s.io" => 16_500,
        "node.k8s.io" => 16_300,
        "discovery.k8s.io" => 16_200,
        "flowcontrol.apiserver.k8s.io" => 16_100,
        "internal.apiserver.k8s.io" => 16_000,
        "resource.k8s.io" => 15_900,
        "storagemigration.k8s.io" => 15_800,
        // As metrics-server registers itself.
        METRICS_GROUP => return (100, 100),
        // Under the names of built-in groups there are no CRDs.
        _ => return (1_000, 100),
    };
    let of_version = match (group, version) {
        ("autoscaling", "v2") => 30,
        ("flowcontrol.apiserver.k8s.io", "v1") => 21,
        (_, "v1") => 15,
        _ => 9,
    };
    (of_group, of_version)
}

/// Keeps them while this server leads.
pub async fn lead(context: &Context) {
    let mut catalog = context.catalog.changes();
    let mut table = context.aggregator.changes();
    loop {
        catalog.mark_unchanged();
        table.mark_unchanged();
        let failed = match settle(context).await {
            Ok(()) => false,
            Err(status) => {
                tracing::debug!(why = status.message, "APIServices are not written yet");
                true
            }
        };
        tokio::select! {
            changed = catalog.changed() => if changed.is_err() { return },
            changed = table.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if failed => {}
        }
    }
}

/// Writes what is not as it should be, at once; nothing when all is.
///
/// # Errors
/// When the store cannot be read or does not take it.
pub async fn settle(context: &Context) -> Result<(), Status> {
    let snapshot = context.store.snapshot(Freshness::Linearizable).await?;
    let prefix = key::prefix(RESOURCE, "");
    let mut txn = Txn::default();
    let mut missing = wanted(context);
    for (key, versioned) in snapshot.range(&prefix, &prefix) {
        let object = object::decode(&versioned.value()?, versioned.revision.0).map_err(Status::internal)?;
        let desired = missing.remove(object.name());
        let key = bytes::Bytes::copy_from_slice(key);
        match mend(&object, desired.as_ref()) {
            Mending::None => continue,
            Mending::Write(object) => txn.puts.push((key.clone(), object::encode(&object))),
            Mending::Remove => txn.deletes.push(key.clone()),
        }
        txn.preconditions.push(Precondition::At(key, versioned.revision));
    }
    for (name, mut object) in missing {
        let key = key::object(RESOURCE, "", &name);
        let metadata = object.meta_mut();
        metadata.insert("uid".to_owned(), uuid::Uuid::new_v4().to_string().into());
        metadata.insert("creationTimestamp".to_owned(), now().into());
        txn.preconditions.push(Precondition::Absent(key.clone()));
        txn.puts.push((key, object::encode(&object)));
    }
    if txn.preconditions.is_empty() {
        return Ok(());
    }
    match context.store.commit(txn).await {
        Ok(_) => Ok(()),
        // Somebody changed one of them: that wakes us.
        Err(CommitError::Refused { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// By name.
fn wanted(context: &Context) -> BTreeMap<String, Value> {
    let mut wanted = BTreeMap::new();
    for row in context.catalog.all().iter().filter(|row| row.group != OWN_GROUP) {
        let name = format!("{}.{}", row.version, row.group);
        let managed = if row.custom.is_some() { "true" } else { "onstart" };
        wanted.entry(name).or_insert_with_key(|name| local(name, &row.group, &row.version, managed));
    }
    wanted
}

fn local(name: &str, group: &str, version: &str, managed: &str) -> Value {
    let (group_priority, version_priority) = priorities(group, version);
    let mut spec =
        json!({"version": version, "groupPriorityMinimum": group_priority, "versionPriority": version_priority});
    if !group.is_empty() {
        spec["group"] = group.into();
    }
    let mut object = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": name, "labels": {MANAGED: managed}}, "spec": spec});
    set_local(&mut object);
    object
}

fn set_local(object: &mut Value) -> bool {
    set_condition(object, true, "Local", "Local APIServices are always available", &now())
}

#[derive(Debug, PartialEq)]
enum Mending {
    None,
    Write(Value),
    Remove,
}

/// What becomes of an object that is there. One with a Service is a user's, who serves the group version elsewhere; so is
/// one without our label, but that it is available is still ours to say.
fn mend(object: &Value, desired: Option<&Value>) -> Mending {
    if object["spec"]["service"].is_object() {
        return Mending::None;
    }
    let managed = object["metadata"]["labels"][MANAGED].is_string();
    let mut new = object.clone();
    match desired {
        None if managed => return Mending::Remove,
        Some(desired) if managed => new["spec"] = desired["spec"].clone(),
        _ => {}
    }
    set_local(&mut new);
    if new == *object { Mending::None } else { Mending::Write(new) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_keep_what_is_theirs() {
        let desired = local("v1.apps", "apps", "v1", "onstart");
        assert_eq!(mend(&desired, Some(&desired)), Mending::None);
        assert_eq!(mend(&desired, None), Mending::Remove);
        let mut other = desired.clone();
        other["spec"]["versionPriority"] = 7.into();
        assert_eq!(mend(&other, Some(&desired)), Mending::Write(desired.clone()));
        other["metadata"]["labels"] = json!({});
        assert_eq!(mend(&other, Some(&desired)), Mending::None);
        assert_eq!(mend(&other, None), Mending::None);
        other["metadata"]["labels"] = json!({MANAGED: "onstart"});
        other["spec"]["service"] = json!({"name": "s", "namespace": "n"});
        assert_eq!(mend(&other, Some(&desired)), Mending::None);
        assert_eq!(mend(&other, None), Mending::None);
    }
}
