//! What a claim's volume looks like, and when it is over. Pure.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use mussel_api::claim::{annotation, phase};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{ASKED, FINALIZER, MADE_BY, NODE, PROVISIONER, hostname};

const DEFAULT_NODE: &str = "DEFAULT_PATH_FOR_NON_LISTED_NODES";

/// Where volumes are, by node: `nodePathMap`. The other keys of local-path-provisioner's configuration have no meaning here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Paths {
    node_path_map: Vec<NodePaths>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodePaths {
    node: String,
    paths: Vec<String>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("local volumes can be used by the pods of one node only: ReadWriteOnce and ReadWriteOncePod, not {0}")]
    AccessMode(String),
    #[error("claim.Spec.Selector is not supported")]
    Selector,
    #[error("volumeMode {0} is not supported: volumes are directories")]
    Mode(String),
    #[error("parameter {0} is not supported")]
    Parameter(String),
    #[error("config doesn't contain a path for node {0}")]
    NoPath(String),
    #[error("config doesn't contain path {path} for node {node}")]
    OtherPath { path: String, node: String },
    #[error("the volume cannot be written down: {0}")]
    Encode(String),
}

impl Paths {
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    fn of(&self, node: &str) -> &[String] {
        let listed = |name: &str| self.node_path_map.iter().find(|entry| entry.node == name);
        listed(node).or_else(|| listed(DEFAULT_NODE)).map(|entry| entry.paths.as_slice()).unwrap_or_default()
    }
}

/// A claim that we are asked to make a volume for.
pub fn wants_one(claim: &PersistentVolumeClaim) -> bool {
    let named = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).is_some_and(|name| !name.is_empty());
    annotation(&claim.metadata, ASKED) == Some(PROVISIONER)
        && !named
        && phase(claim) != "Bound"
        && claim.metadata.deletion_timestamp.is_none()
}

/// A volume of ours that we have to do something about: remove it, or let it go.
pub fn is_over(volume: &PersistentVolume) -> bool {
    if annotation(&volume.metadata, MADE_BY) != Some(PROVISIONER) {
        return false;
    }
    let held = volume.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER);
    let going = volume.metadata.deletion_timestamp.is_some();
    match (is_to_be_removed(volume), going) {
        (true, going) => !going || held,
        // Somebody deletes one that is to be kept: the volume goes, the directory stays.
        (false, true) => held && !is_bound(volume),
        (false, false) => false,
    }
}

/// Its claim is gone, and so is to be what it had.
pub fn is_to_be_removed(volume: &PersistentVolume) -> bool {
    let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    policy == Some("Delete") && phase == Some("Released")
}

fn is_bound(volume: &PersistentVolume) -> bool {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
}

pub fn is_ready(node: &Node) -> bool {
    let mut conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

pub fn path(volume: &PersistentVolume) -> &str {
    let Some(spec) = &volume.spec else { return "" };
    let local = spec.local.as_ref().map(|local| local.path.as_str());
    local.or_else(|| spec.host_path.as_ref().map(|source| source.path.as_str())).unwrap_or_default()
}

/// # Errors
/// Why there can be no such volume.
pub fn new(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: &Arc<Node>,
    paths: &Paths,
) -> Result<PersistentVolume, Refused> {
    let spec = claim.spec.clone().unwrap_or_default();
    let modes = spec.access_modes.unwrap_or_default();
    if let Some(mode) = modes.iter().find(|mode| !matches!(mode.as_str(), "ReadWriteOnce" | "ReadWriteOncePod")) {
        return Err(Refused::AccessMode(mode.clone()));
    }
    if spec.selector.is_some() {
        return Err(Refused::Selector);
    }
    if let Some(mode) = spec.volume_mode.filter(|mode| mode != "Filesystem") {
        return Err(Refused::Mode(mode));
    }
    let parameters = class.parameters.clone().unwrap_or_default();
    if let Some(unknown) = parameters.keys().find(|key| *key != "nodePath") {
        return Err(Refused::Parameter(unknown.clone()));
    }
    let uid = claim.metadata.uid.clone().unwrap_or_default();
    let node_name = node.metadata.name.clone().unwrap_or_default();
    let allowed = paths.of(&node_name);
    let folder = match parameters.get("nodePath") {
        Some(wanted) if allowed.contains(wanted) => wanted,
        Some(wanted) => return Err(Refused::OtherPath { path: wanted.clone(), node: node_name }),
        // Of several, a claim always gets the same: a pass that is repeated makes no second directory.
        None => {
            let hash = uid.bytes().fold(0_usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(usize::from(byte)));
            allowed.get(hash % allowed.len().max(1)).ok_or_else(|| Refused::NoPath(node_name.clone()))?
        }
    };
    let name = format!("pvc-{uid}");
    let (namespace, claim_name) = (claim.metadata.namespace.clone(), claim.metadata.name.clone());
    let path = format!(
        "{}/{name}_{}_{}",
        folder.trim_end_matches('/'),
        namespace.as_deref().unwrap_or_default(),
        claim_name.as_deref().unwrap_or_default()
    );
    let kind = annotation(&claim.metadata, "volumeType").or_else(|| annotation(&class.metadata, "defaultVolumeType"));
    let (kind, source) = match kind {
        Some("local") => ("local", json!({"path": path})),
        _ => ("hostPath", json!({"path": path, "type": "DirectoryOrCreate"})),
    };
    let mut volume: Value = json!({
        "metadata": {
            "name": name,
            "annotations": {MADE_BY: PROVISIONER, NODE: node_name},
            "finalizers": [FINALIZER],
        },
        "spec": {
            "accessModes": modes,
            "capacity": {"storage": spec.resources.and_then(|resources| resources.requests?.get("storage").cloned())},
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace,
                "name": claim_name, "uid": uid, "resourceVersion": claim.metadata.resource_version},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [hostname(node)]}]}]}},
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "storageClassName": class.metadata.name,
            "volumeMode": "Filesystem",
        },
    });
    volume["spec"][kind] = source;
    serde_json::from_value(volume).map_err(|error| Refused::Encode(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(more: Value) -> PersistentVolumeClaim {
        let mut claim = json!({"metadata": {"name": "data", "namespace": "a", "uid": "u1",
            "annotations": {ASKED: PROVISIONER}},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        for (key, value) in more.as_object().unwrap() {
            claim["spec"][key] = value.clone();
        }
        serde_json::from_value(claim).unwrap()
    }

    fn made(claim: &PersistentVolumeClaim, parameters: Value, config: &str) -> Result<PersistentVolume, Refused> {
        let class = serde_json::from_value(json!({"metadata": {"name": "local-path",
            "annotations": {"defaultVolumeType": "local"}}, "provisioner": PROVISIONER, "parameters": parameters}));
        let node = json!({"metadata": {"name": "n1", "labels": {"kubernetes.io/hostname": "host1"}}});
        let node = Arc::new(serde_json::from_value(node).unwrap());
        new(claim, &class.unwrap(), &node, &Paths::parse(config).unwrap())
    }

    const CONFIG: &str = r#"{"nodePathMap": [{"node": "DEFAULT_PATH_FOR_NON_LISTED_NODES", "paths": ["/data/"]},
        {"node": "n2", "paths": []}], "helperPod": "x"}"#;

    #[test]
    fn a_volume_is_a_directory_of_its_node() {
        let volume = serde_json::to_value(made(&claim(json!({})), Value::Null, CONFIG).unwrap()).unwrap();
        assert_eq!(volume["metadata"]["name"], "pvc-u1");
        assert_eq!(volume["spec"]["local"]["path"], "/data/pvc-u1_a_data");
        let term = &volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0];
        assert_eq!(term["values"], json!(["host1"]));
        assert_eq!(volume["spec"]["claimRef"]["uid"], "u1");
        assert_eq!(volume["spec"]["persistentVolumeReclaimPolicy"], "Delete");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |claim: &PersistentVolumeClaim, parameters: Value, config: &str| {
            made(claim, parameters, config).unwrap_err().to_string()
        };
        let plain = claim(json!({}));
        assert!(
            refused(&claim(json!({"accessModes": ["ReadWriteMany"]})), Value::Null, CONFIG).contains("ReadWriteMany")
        );
        assert!(refused(&claim(json!({"volumeMode": "Block"})), Value::Null, CONFIG).contains("Block"));
        assert!(refused(&claim(json!({"selector": {}})), Value::Null, CONFIG).contains("Selector"));
        assert!(refused(&plain, json!({"pathPattern": "x"}), CONFIG).contains("pathPattern"));
        assert!(refused(&plain, json!({"nodePath": "/other"}), CONFIG).contains("/other"));
        assert!(refused(&plain, Value::Null, r#"{"nodePathMap": [{"node": "n1", "paths": []}]}"#).contains("n1"));
        assert!(made(&plain, json!({"nodePath": "/data/"}), CONFIG).is_ok());
    }

    #[test]
    fn volumes_are_over_when_their_claim_is_gone() {
        let over = |policy: &str, phase: &str, going: bool, held: bool| {
            let mut volume = json!({"metadata": {"name": "v", "annotations": {MADE_BY: PROVISIONER}},
                "spec": {"persistentVolumeReclaimPolicy": policy}, "status": {"phase": phase}});
            if going {
                volume["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            if held {
                volume["metadata"]["finalizers"] = json!([FINALIZER]);
            }
            is_over(&serde_json::from_value(volume).unwrap())
        };
        assert!(over("Delete", "Released", false, true) && over("Delete", "Released", true, true));
        assert!(!over("Delete", "Bound", false, true) && !over("Delete", "Bound", true, true));
        assert!(!over("Retain", "Released", false, true) && over("Retain", "Released", true, true));
        assert!(!over("Delete", "Released", true, false), "what is left is somebody else's");
    }
}
