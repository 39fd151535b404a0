//! Writes into the status of validating policies what a look with the types of the matched resources finds wrong with
//! them. It changes nothing of what they do.

use std::collections::BTreeSet;
use std::sync::Arc;

use mussel_api::object::{self, ObjectExt};
use mussel_api::resource::Resource;
use mussel_api::schema;
use mussel_cel::Type;
use mussel_store::{CommitError, Freshness, Precondition, Txn, WatchError};
use serde_json::{Value, json};

use super::dynamic::compiled::policy_of;
use crate::Context;
use crate::cel::admission::object_type;
use crate::encryption::StorageWatchError;
use crate::registry::key;

const POLICIES: &str = "validatingadmissionpolicies.admissionregistration.k8s.io";

/// Upstream looks at no more kinds than these.
const KINDS_MAX: usize = 10;

/// How long to wait before a failed pass is tried again.
const RETRY: std::time::Duration = std::time::Duration::from_secs(1);

/// Starts the task that keeps the statuses, on the leader.
pub fn start(context: &Arc<Context>) {
    let context = Arc::clone(context);
    let tasks = context.tasks.clone();
    tasks.spawn(async move {
        let stop = context.stop.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = run(&context) => {}
        }
    });
}

async fn run(context: &Context) {
    let mut leader = context.store.leader();
    loop {
        // An error means that the store is closed.
        if leader.wait_for(|leads| *leads).await.is_err() {
            return;
        }
        match pass(context).await {
            Ok(revision) => {
                let Ok(mut watch) = context.store.watch(key::prefix(POLICIES, ""), revision) else { return };
                tokio::select! {
                    changed = watch.next() => match changed {
                        Ok(_) => {}
                        Err(StorageWatchError::Store(WatchError::Stopped)) => return,
                        Err(error) => tracing::debug!(%error, "policies are looked at again"),
                    },
                    _ = leader.changed() => {}
                }
            }
            Err(error) => {
                tracing::debug!(error, "policies are not type-checked yet");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Looks at all policies whose status is behind. Returns the revision that was looked at.
async fn pass(context: &Context) -> Result<mussel_store::Revision, String> {
    let snapshot = context.store.snapshot(Freshness::Local).await.map_err(|error| error.to_string())?;
    let prefix = key::prefix(POLICIES, "");
    for (key, stored) in snapshot.range(&prefix, &prefix) {
        let value = stored.value().map_err(|error| error.to_string())?;
        let Ok(mut policy) = object::decode(&value, stored.revision.0) else { continue };
        if policy["status"]["observedGeneration"] == policy.generation() || policy.is_deleting() {
            continue;
        }
        let warnings = check(context, &policy);
        policy["status"]["observedGeneration"] = policy.generation().into();
        policy["status"]["typeChecking"] =
            if warnings.is_empty() { json!({}) } else { json!({"expressionWarnings": warnings}) };
        let txn = Txn {
            preconditions: vec![Precondition::At(key.clone(), stored.revision)],
            puts: vec![(key.clone(), object::encode(&policy))],
            ..Txn::default()
        };
        match context.store.commit(txn).await {
            // Somebody else was faster: the change will wake us.
            Ok(_) | Err(CommitError::Refused { .. }) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(snapshot.revision())
}

/// The `expressionWarnings` of a policy.
fn check(context: &Context, policy: &Value) -> Vec<Value> {
    let kind = &policy["spec"]["paramKind"];
    let params = kind["apiVersion"].as_str().and_then(|api_version| {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        context.catalog.by_kind(group, version, kind["kind"].as_str()?)
    });
    let params = params.and_then(|row| type_of(&row)).unwrap_or(Type::Dyn);
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    for row in kinds(context, policy) {
        let Some(object) = type_of(&row) else { continue };
        let (_, errors) = policy_of(policy, object, params.clone());
        for error in errors {
            let path = error.path.to_string();
            // Only what does not fit the types: the rest has been refused before.
            let Some(issues) = error.detail.strip_prefix("compilation failed: ") else { continue };
            if !path.starts_with("spec.validations[") {
                continue;
            }
            let text = format!("{}, Kind={}: {issues}\n", row.api_version(), row.kind);
            match found.iter_mut().find(|(known, _)| *known == path) {
                Some((_, texts)) => texts.push(text),
                None => found.push((path, vec![text])),
            }
        }
    }
    found.into_iter().map(|(path, texts)| json!({"fieldRef": path, "warning": texts.join("\n")})).collect()
}

fn type_of(row: &Resource) -> Option<Type> {
    schema::definition(&row.schema).map(|schema| object_type(&schema))
}

/// The resources that a policy names, without wildcards.
fn kinds(context: &Context, policy: &Value) -> Vec<Arc<Resource>> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for rule in policy["spec"]["matchConstraints"]["resourceRules"].as_array().into_iter().flatten() {
        let texts = |field: &str| -> Vec<&str> {
            rule[field].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
        };
        let (groups, versions) = (texts("apiGroups"), texts("apiVersions"));
        if groups.iter().chain(&versions).any(|text| text.contains('*')) {
            continue;
        }
        for resource in texts("resources").into_iter().filter(|text| !text.contains(['*', '/'])) {
            for group in &groups {
                for version in &versions {
                    let row = context.catalog.by_plural(group, version, resource);
                    if let Some(row) = row
                        && found.len() < KINDS_MAX
                        && seen.insert((row.api_version(), row.kind.to_string()))
                    {
                        found.push(row);
                    }
                }
            }
        }
    }
    found.sort_by_key(|row| (row.group.to_string(), row.version.to_string(), row.kind.to_string()));
    found
}
