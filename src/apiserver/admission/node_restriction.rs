//! Kubelets change their own node and the pods bound to it, and nothing else.

use mussel_api::object::ObjectExt;
use serde_json::{Map, Value};

use super::{Attributes, Operation, Plugin};
use crate::status::Status;

pub struct NodeRestriction;

/// Labels under these domains are the cluster's; kubelets may set the listed ones only.
const RESERVED: [&str; 2] = ["kubernetes.io", "k8s.io"];
const ALLOWED: [&str; 11] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];
const ALLOWED_PREFIXES: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
const RESTRICTED: &str = "node-restriction.kubernetes.io";

impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn validate(&self, attributes: &Attributes<'_>, object: Option<&Value>) -> Result<(), Status> {
        let Some(node) = attributes.user.node_name() else { return Ok(()) };
        match (attributes.stored_as, attributes.subresource) {
            ("pods", "") => pod(attributes, node, object),
            ("pods", "status") => pod_status(attributes, node, object),
            ("nodes", _) => own_node(attributes, node, object),
            ("leases.coordination.k8s.io", "") => lease(attributes, node),
            ("csinodes.storage.k8s.io", "") if attributes.name != node => {
                Err(attributes.forbidden("can only access CSINode with the same name as the requesting node"))
            }
            _ => Ok(()),
        }
    }
}

fn pod(attributes: &Attributes<'_>, node: &str, object: Option<&Value>) -> Result<(), Status> {
    match (attributes.operation, object) {
        (Operation::Create, Some(pod)) => {
            let is_mirror = pod.annotations().is_some_and(|a| a.contains_key("kubernetes.io/config.mirror"));
            if !is_mirror {
                return Err(attributes.forbidden(&format!(
                    "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"
                )));
            }
            if pod.str_at("spec.nodeName") != node {
                return Err(attributes
                    .forbidden(&format!("node {node:?} can only create pods with spec.nodeName set to itself")));
            }
            Ok(())
        }
        (Operation::Delete, _) => {
            let bound = attributes.old.map(|pod| pod.str_at("spec.nodeName")).unwrap_or_default();
            if bound == node {
                return Ok(());
            }
            Err(attributes.forbidden(&format!("node {node:?} can only delete pods with spec.nodeName set to itself")))
        }
        (Operation::Update, _) => Err(attributes.forbidden(&format!(
            "unexpected operation \"UPDATE\", node {node:?} can only create and delete mirror pods"
        ))),
        _ => Ok(()),
    }
}

fn pod_status(attributes: &Attributes<'_>, node: &str, object: Option<&Value>) -> Result<(), Status> {
    let Some(old) = attributes.old else { return Ok(()) };
    if old.str_at("spec.nodeName") != node {
        return Err(attributes.forbidden(&format!(
            "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
        )));
    }
    if object.is_some_and(|new| new.labels() != old.labels()) {
        return Err(attributes.forbidden(&format!("node {node:?} cannot update labels through pod status")));
    }
    Ok(())
}

fn own_node(attributes: &Attributes<'_>, node: &str, object: Option<&Value>) -> Result<(), Status> {
    let name =
        if attributes.name.is_empty() { object.map(ObjectExt::name).unwrap_or_default() } else { attributes.name };
    if name != node {
        return Err(attributes.forbidden(&format!("node {node:?} is not allowed to modify node {name:?}")));
    }
    let Some(new) = object else { return Ok(()) };
    let empty = Map::new();
    let before = attributes.old.and_then(|old| old.labels()).unwrap_or(&empty);
    let after = new.labels().unwrap_or(&empty);
    let changed = after.iter().filter(|(key, value)| before.get(*key) != Some(value)).map(|(key, _)| key);
    let removed = before.keys().filter(|key| !after.contains_key(*key));
    let mut bad: Vec<&str> = changed.chain(removed).map(String::as_str).filter(|key| !may_label(key)).collect();
    bad.sort_unstable();
    if !bad.is_empty() {
        let list = bad.join(", ");
        return Err(attributes.forbidden(&match attributes.operation {
            Operation::Create => format!("is not allowed to set the following labels: {list}"),
            _ => format!("is not allowed to modify labels: {list}"),
        }));
    }
    if let Some(old) = attributes.old {
        if attributes.subresource.is_empty() && new["spec"]["taints"] != old["spec"]["taints"] {
            return Err(attributes.forbidden(&format!("node {node:?} is not allowed to modify taints")));
        }
        if new["metadata"]["ownerReferences"] != old["metadata"]["ownerReferences"] {
            return Err(attributes.forbidden(&format!("node {node:?} is not allowed to modify ownerReferences")));
        }
    }
    Ok(())
}

fn may_label(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else { return true };
    let within = |parent: &str| domain == parent || domain.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'));
    if within(RESTRICTED) {
        return false;
    }
    !RESERVED.into_iter().any(within) || ALLOWED.contains(&key) || ALLOWED_PREFIXES.into_iter().any(within)
}

fn lease(attributes: &Attributes<'_>, node: &str) -> Result<(), Status> {
    if attributes.namespace != "kube-node-lease" {
        return Err(attributes.forbidden("can only access leases in the \"kube-node-lease\" system namespace"));
    }
    if attributes.name != node {
        return Err(attributes.forbidden("can only access node lease with the same name as the requesting node"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelets_label_themselves_within_bounds() {
        for key in ["kubernetes.io/arch", "example.com/x", "plain", "node.kubernetes.io/x", "a.kubelet.kubernetes.io/y"]
        {
            assert!(may_label(key), "{key}");
        }
        for key in ["node-role.kubernetes.io/control-plane", "node-restriction.kubernetes.io/x", "k8s.io/x"] {
            assert!(!may_label(key), "{key}");
        }
    }
}
