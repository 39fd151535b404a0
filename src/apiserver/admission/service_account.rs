//! Pods run as a service account that exists, with its token, pull secrets and the cluster's CA mounted.

use mussel_api::object::ObjectExt;
use serde_json::{Value, json};

use super::{Attributes, Plugin};
use crate::registry::names;
use crate::status::Status;

pub struct ServiceAccount;

/// Where containers find their token.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
const ENFORCE_MOUNTABLE: &str = "kubernetes.io/enforce-mountable-secrets";

impl Plugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    fn mutate(&self, attributes: &Attributes<'_>, object: &mut Value) -> Result<(), Status> {
        if !attributes.creates("pods") || !object["spec"].is_object() || is_mirror(object) {
            return Ok(());
        }
        let name = match object.str_at("spec.serviceAccountName") {
            "" => "default".to_owned(),
            name => name.to_owned(),
        };
        let Some(account) = attributes.view.get("serviceaccounts", attributes.namespace, &name) else {
            let namespace = attributes.namespace;
            return Err(attributes.forbidden(&format!(
                "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
            )));
        };
        let spec = &mut object["spec"];
        spec["serviceAccountName"] = name.as_str().into();
        spec["serviceAccount"] = name.as_str().into();
        let mounts = spec["automountServiceAccountToken"]
            .as_bool()
            .or_else(|| account["automountServiceAccountToken"].as_bool())
            .unwrap_or(true);
        if mounts {
            mount_token(spec);
        }
        if spec["imagePullSecrets"].as_array().is_none_or(Vec::is_empty)
            && let Some(secrets) = account["imagePullSecrets"].as_array().filter(|secrets| !secrets.is_empty())
        {
            spec["imagePullSecrets"] = secrets.clone().into();
        }
        Ok(())
    }

    fn validate(&self, attributes: &Attributes<'_>, object: Option<&Value>) -> Result<(), Status> {
        let Some(pod) = object.filter(|_| attributes.creates("pods")) else { return Ok(()) };
        if is_mirror(pod) {
            let spec = &pod["spec"];
            if !spec["serviceAccountName"].as_str().unwrap_or_default().is_empty() {
                return Err(attributes.forbidden("a mirror pod may not reference service accounts"));
            }
            let uses = |kind: &str| {
                spec["volumes"].as_array().into_iter().flatten().any(|volume| {
                    volume[kind].is_object()
                        || volume["projected"]["sources"]
                            .as_array()
                            .into_iter()
                            .flatten()
                            .any(|source| kind == "secret" && source["serviceAccountToken"].is_object())
                })
            };
            if uses("secret") {
                return Err(attributes.forbidden("a mirror pod may not reference secrets"));
            }
            return Ok(());
        }
        let name = pod.str_at("spec.serviceAccountName");
        let Some(account) = attributes.view.get("serviceaccounts", attributes.namespace, name) else { return Ok(()) };
        let enforced = account.annotations().and_then(|annotations| annotations.get(ENFORCE_MOUNTABLE));
        if enforced.and_then(Value::as_str) == Some("true") {
            let allowed: Vec<&str> =
                account["secrets"].as_array().into_iter().flatten().filter_map(|s| s["name"].as_str()).collect();
            for volume in pod["spec"]["volumes"].as_array().into_iter().flatten() {
                let secret = volume["secret"]["secretName"].as_str();
                if let Some(secret) = secret.filter(|secret| !allowed.contains(secret)) {
                    return Err(attributes.forbidden(&format!(
                        "volume with secret.secretName={secret:?} is not allowed because service account {name} does not \
                         reference that secret"
                    )));
                }
            }
        }
        Ok(())
    }
}

fn is_mirror(pod: &Value) -> bool {
    pod.annotations().is_some_and(|annotations| annotations.contains_key("kubernetes.io/config.mirror"))
}

/// Adds the projected volume, and its mount to every container that has nothing at that place.
fn mount_token(spec: &mut Value) {
    let existing = spec["volumes"].as_array().into_iter().flatten().filter_map(|volume| volume["name"].as_str());
    let existing = existing.into_iter().find(|name| name.starts_with(VOLUME_PREFIX)).map(str::to_owned);
    let volume = existing.clone().unwrap_or_else(|| format!("{VOLUME_PREFIX}{}", names::suffix(5)));
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        // By `get_mut`: indexing would leave a null where there is no such list.
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let mounts = &mut container["volumeMounts"];
            if !mounts.is_array() {
                *mounts = json!([]);
            }
            let Some(mounts) = mounts.as_array_mut() else { continue };
            if mounts.iter().any(|mount| mount["mountPath"] == MOUNT_PATH) {
                continue;
            }
            mounts.push(json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}));
            mounted = true;
        }
    }
    if !mounted || existing.is_some() {
        return;
    }
    let field = json!([{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]);
    let projected = json!({"name": volume, "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": field}},
    ]}});
    let volumes = &mut spec["volumes"];
    match volumes.as_array_mut() {
        Some(list) => list.push(projected),
        None => *volumes = json!([projected]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_mounted_once_per_container() {
        let mut spec = json!({"containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"name": "x", "mountPath": MOUNT_PATH}]}]});
        mount_token(&mut spec);
        let name = spec["volumes"][0]["name"].as_str().unwrap().to_owned();
        assert!(name.starts_with(VOLUME_PREFIX) && name.len() == VOLUME_PREFIX.len() + 5);
        assert_eq!(spec["containers"][0]["volumeMounts"][0]["name"], name);
        assert_eq!(spec["containers"][1]["volumeMounts"].as_array().unwrap().len(), 1);
        let again = spec.clone();
        mount_token(&mut spec);
        assert_eq!(spec, again);
    }
}
