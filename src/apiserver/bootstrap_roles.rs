//! The roles and bindings that every cluster has. Written at start, and mended: what was taken away comes back, what was
//! added stays, unless the object's `rbac.authorization.kubernetes.io/autoupdate` annotation is not `true`.

mod cluster;
mod controllers;

use bytes::Bytes;
use mussel_api::object;
use mussel_store::{CommitError, Freshness, Precondition, ReadError, Txn};
use serde_json::{Value, json};

use crate::authz::Rule;
use crate::encryption::{Snapshot, Storage, Versioned};

const API_VERSION: &str = "rbac.authorization.k8s.io/v1";
const GROUP: &str = "rbac.authorization.k8s.io";
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    #[error("the store cannot be read")]
    Read(#[from] ReadError),
    #[error("the store cannot be written")]
    Commit(#[from] CommitError),
}

/// A role before it is an object. Words are separated by spaces; the core group is written `core`.
struct RoleSpec {
    name: String,
    rules: Vec<Rule>,
    labels: &'static [(&'static str, &'static str)],
    /// Cluster roles with this label set to `true` make up this role.
    aggregates: Option<&'static str>,
}

fn role(name: impl Into<String>, rules: Vec<Rule>) -> RoleSpec {
    RoleSpec { name: name.into(), rules, labels: &[], aggregates: None }
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().map(|word| if word == "core" { "" } else { word }).collect()
}

fn rule(verbs: &str, groups: &str, resources: &str) -> Rule {
    Rule::new(&words(verbs), &words(groups), &words(resources))
}

fn events() -> Rule {
    rule("create patch update", "core events.k8s.io", "events")
}

const READ: &str = "get list watch";
const WRITE: &str = "create delete deletecollection patch update";
const READ_WRITE: &str = "create delete deletecollection get list patch update watch";

/// A subject in a few words: `User x`, `Group x`, `ServiceAccount namespace/name`.
fn subject(text: &str) -> Value {
    let (kind, name) = text.split_once(' ').unwrap_or(("User", text));
    match (kind, name.split_once('/')) {
        ("ServiceAccount", Some((namespace, name))) => json!({"kind": kind, "name": name, "namespace": namespace}),
        _ => json!({"kind": kind, "apiGroup": GROUP, "name": name}),
    }
}

/// One object as it should be.
fn wanted() -> Vec<Value> {
    let mut objects = Vec::new();
    for spec in cluster::roles().into_iter().chain(controllers::roles()) {
        let mut object = base("ClusterRole", "", &spec.name);
        for (key, value) in spec.labels {
            object["metadata"]["labels"][*key] = (*value).into();
        }
        if let Some(label) = spec.aggregates {
            object["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
        }
        object["rules"] = json!(spec.rules);
        objects.push(object);
    }
    for (name, subjects) in cluster::bindings().into_iter().chain(controllers::bindings()) {
        let mut object = base("ClusterRoleBinding", "", &name);
        object["roleRef"] = json!({"apiGroup": GROUP, "kind": "ClusterRole", "name": name});
        if !subjects.is_empty() {
            object["subjects"] = subjects.iter().map(|text| subject(text)).collect();
        }
        objects.push(object);
    }
    for (namespace, spec) in cluster::namespaced_roles() {
        let mut object = base("Role", namespace, &spec.name);
        object["rules"] = json!(spec.rules);
        objects.push(object);
    }
    for (namespace, name, role, subjects) in cluster::namespaced_bindings() {
        let mut object = base("RoleBinding", namespace, name);
        object["roleRef"] = json!({"apiGroup": GROUP, "kind": "Role", "name": role});
        object["subjects"] = subjects.iter().map(|text| subject(text)).collect();
        objects.push(object);
    }
    objects
}

fn base(kind: &str, namespace: &str, name: &str) -> Value {
    let mut object = json!({
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {
            "name": name,
            "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
            "annotations": {AUTOUPDATE: "true"},
        },
    });
    if !namespace.is_empty() {
        object["metadata"]["namespace"] = namespace.into();
    }
    object
}

fn key(object: &Value) -> Bytes {
    let plural = match object["kind"].as_str().unwrap_or_default() {
        "ClusterRole" => "clusterroles",
        "ClusterRoleBinding" => "clusterrolebindings",
        "Role" => "roles",
        _ => "rolebindings",
    };
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("/registry/{plural}.{GROUP}/{namespace}/{name}").into(),
        None => format!("/registry/{plural}.{GROUP}/{name}").into(),
    }
}

/// Brings the store up to what this version wants, in one transaction. Does nothing when all is well.
///
/// # Errors
/// When the store cannot be read or written. A race with another server's start is tried again.
pub async fn reconcile(store: &Storage) -> Result<(), BootstrapError> {
    loop {
        let snapshot = store.snapshot(Freshness::Linearizable).await?;
        let txn = plan(&snapshot, wanted(), jiff::Timestamp::now());
        if txn.puts.is_empty() {
            return Ok(());
        }
        let count = txn.puts.len();
        match store.commit(txn).await {
            Ok(_) => {
                tracing::info!(count, "wrote default roles and bindings");
                return Ok(());
            }
            Err(CommitError::Refused { .. }) => continue,
            Err(error) => return Err(error.into()),
        }
    }
}

fn plan(snapshot: &Snapshot, wanted: Vec<Value>, now: jiff::Timestamp) -> Txn {
    let mut txn = Txn::default();
    for mut object in wanted {
        let key = key(&object);
        match snapshot.get(&key) {
            None => {
                let created = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
                object["metadata"]["uid"] = uuid::Uuid::new_v4().to_string().into();
                object["metadata"]["creationTimestamp"] = created.into();
                txn.preconditions.push(Precondition::Absent(key.clone()));
                txn.puts.push((key, object::encode(&object)));
            }
            Some(stored) => {
                let Some(current) = read(&stored) else { continue };
                if let Some(mended) = mend(&current, &object) {
                    txn.preconditions.push(Precondition::At(key.clone(), stored.revision));
                    txn.puts.push((key, object::encode(&mended)));
                }
            }
        }
    }
    txn
}

/// `None` for what is no object, which is left alone.
fn read(stored: &Versioned<'_>) -> Option<Value> {
    serde_json::from_slice(&stored.value().ok()?).ok()
}

/// The stored object with what it lacks added; `None` when it lacks nothing or is not to be touched.
fn mend(current: &Value, wanted: &Value) -> Option<Value> {
    if current["metadata"]["annotations"][AUTOUPDATE] != "true" {
        return None;
    }
    let mut mended = current.clone();
    for field in ["labels", "annotations"] {
        for (key, value) in wanted["metadata"][field].as_object().into_iter().flatten() {
            if current["metadata"][field].get(key).is_none() {
                mended["metadata"][field][key] = value.clone();
            }
        }
    }
    for field in ["roleRef", "aggregationRule"] {
        if wanted[field].is_object() && wanted[field] != current[field] {
            mended[field] = wanted[field].clone();
        }
    }
    for field in ["rules", "subjects"] {
        let missing: Vec<Value> = wanted[field]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|entry| !current[field].as_array().is_some_and(|list| list.contains(entry)))
            .cloned()
            .collect();
        if !missing.is_empty() {
            match mended[field].as_array_mut() {
                Some(list) => list.extend(missing),
                None => mended[field] = Value::Array(missing),
            }
        }
    }
    (mended != *current).then_some(mended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_binding_has_its_role_and_no_name_comes_twice() {
        let all = wanted();
        let mut keys: Vec<Bytes> = all.iter().map(key).collect();
        keys.sort();
        let count = keys.len();
        keys.dedup();
        assert_eq!(keys.len(), count);
        for binding in all.iter().filter(|o| o["roleRef"].is_object()) {
            let mut role =
                json!({"kind": binding["roleRef"]["kind"], "metadata": {"name": binding["roleRef"]["name"]}});
            if binding["roleRef"]["kind"] == "Role" {
                role["metadata"]["namespace"] = binding["metadata"]["namespace"].clone();
            }
            assert!(keys.contains(&key(&role)), "{binding}");
        }
    }

    #[test]
    fn what_was_taken_away_comes_back_and_what_was_added_stays() {
        let wanted = wanted().into_iter().find(|o| o["metadata"]["name"] == "system:basic-user").unwrap();
        let mut current = wanted.clone();
        assert_eq!(mend(&current, &wanted), None);
        current["rules"] = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
        let mended = mend(&current, &wanted).unwrap();
        assert_eq!(mended["rules"].as_array().unwrap().len(), 1 + wanted["rules"].as_array().unwrap().len());
        current["metadata"]["annotations"][AUTOUPDATE] = "false".into();
        assert_eq!(mend(&current, &wanted), None);
    }
}
