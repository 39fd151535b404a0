//! What a kubelet may: what its own pods need, and no more.
//!
//! The index knows which pod is on which node and what it refers to. Objects behind a claim are looked up in the store.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::Attributes;
use super::rbac::Rule;
use crate::encryption::Snapshot;

const NO_RELATIONSHIP: &str = "no relationship found between node";

/// What a pod refers to, all in its own namespace.
#[derive(Debug, Default, PartialEq, Eq)]
struct PodRefs {
    node: Box<str>,
    service_account: Box<str>,
    secrets: Box<[Box<str>]>,
    config_maps: Box<[Box<str>]>,
    claims: Box<[Box<str>]>,
}

#[derive(Debug, Default)]
pub struct NodeIndex {
    /// By `<namespace>/<name>`.
    pods: HashMap<Box<str>, PodRefs>,
    by_node: HashMap<Box<str>, HashSet<Box<str>>>,
}

impl NodeIndex {
    pub fn clear(&mut self) {
        self.pods.clear();
        self.by_node.clear();
    }

    pub fn put(&mut self, key: &str, value: &[u8]) {
        let Ok(pod) = serde_json::from_slice::<SlimPod>(value) else { return self.remove(key) };
        let refs = pod.refs(key.rsplit('/').next().unwrap_or_default());
        if self.pods.get(key) == Some(&refs) {
            return;
        }
        self.remove(key);
        if refs.node.is_empty() {
            return;
        }
        self.by_node.entry(refs.node.clone()).or_default().insert(key.into());
        self.pods.insert(key.into(), refs);
    }

    pub fn remove(&mut self, key: &str) {
        if let Some(refs) = self.pods.remove(key)
            && let Some(keys) = self.by_node.get_mut(&refs.node)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.by_node.remove(&refs.node);
            }
        }
    }

    fn pods_of<'a>(&'a self, node: &str, namespace: &'a str) -> impl Iterator<Item = &'a PodRefs> + 'a {
        let keys = self.by_node.get(node).into_iter().flatten();
        keys.filter(move |key| key.split_once('/').is_some_and(|(ns, _)| ns == namespace))
            .filter_map(|key| self.pods.get(key))
    }

    fn claims_of<'a>(&'a self, node: &str) -> impl Iterator<Item = (&'a str, &'a str)> + 'a {
        let keys = self.by_node.get(node).into_iter().flatten();
        keys.filter_map(|key| Some((key.split_once('/')?.0, self.pods.get(key)?)))
            .flat_map(|(namespace, refs)| refs.claims.iter().map(move |claim| (namespace, &**claim)))
    }

    /// # Errors
    /// The reason, when the node authorizer does not allow it. Another authorizer still may.
    pub fn authorize(&self, node: &str, a: &Attributes, snapshot: Option<&Snapshot>) -> Result<(), String> {
        let unrelated = || Err(format!("{NO_RELATIONSHIP} '{node}' and this object"));
        let related = |found: bool| if found { Ok(()) } else { unrelated() };
        if !a.is_resource {
            return related(node_rules().iter().any(|rule| rule.allows(a)));
        }
        match (a.group.as_str(), a.resource.as_str()) {
            ("", "secrets" | "configmaps") => {
                readable_by_name(a, true)?;
                let name = a.name.as_str();
                let secret = a.resource == "secrets";
                let listed = self.pods_of(node, &a.namespace).any(|refs| {
                    let list = if secret { &refs.secrets } else { &refs.config_maps };
                    list.iter().any(|entry| &**entry == name)
                });
                related(listed || (secret && self.volume_needs_secret(node, a, snapshot)))
            }
            ("", "persistentvolumeclaims") => {
                let resizes = a.subresource == "status" && matches!(a.verb.as_str(), "get" | "update" | "patch");
                if !resizes {
                    readable_by_name(a, false)?;
                }
                let name = a.name.as_str();
                related(self.pods_of(node, &a.namespace).any(|refs| refs.claims.iter().any(|c| &**c == name)))
            }
            ("", "persistentvolumes") => {
                readable_by_name(a, false)?;
                let mut volumes = self.claims_of(node).filter_map(|(ns, claim)| volume_of(snapshot?, ns, claim));
                related(volumes.any(|volume| volume == a.name))
            }
            ("storage.k8s.io", "volumeattachments") => {
                readable_by_name(a, false)?;
                let key = format!("/registry/volumeattachments.storage.k8s.io/{}", a.name);
                let attachment = snapshot.and_then(|s| read(s, &key));
                related(attachment.is_some_and(|v| v["spec"]["nodeName"] == *node))
            }
            ("", "serviceaccounts") => {
                let reads = a.subresource.is_empty() && a.verb == "get";
                if !reads && (a.subresource != "token" || a.verb != "create") {
                    return Err("can only get service accounts and create tokens for them".to_owned());
                }
                related(self.pods_of(node, &a.namespace).any(|refs| *refs.service_account == *a.name))
            }
            ("coordination.k8s.io", "leases") => {
                if a.namespace != "kube-node-lease" {
                    return Err(format!("can only access leases in the {:?} system namespace", "kube-node-lease"));
                }
                if !matches!(a.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") {
                    return Err("can only get, create, update, patch, or delete a node lease".to_owned());
                }
                // The name of a create is in the body; NodeRestriction checks it.
                if a.verb != "create" && a.name != node {
                    return Err("can only access node lease with the same name as the requesting node".to_owned());
                }
                Ok(())
            }
            ("storage.k8s.io", "csinodes") => {
                if !matches!(a.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") {
                    return Err("can only get, create, update, patch, or delete a CSINode".to_owned());
                }
                if a.verb != "create" && a.name != node {
                    return Err("can only access CSINode with the same name as the requesting node".to_owned());
                }
                Ok(())
            }
            ("", "pods") => self.authorize_pod(node, a, snapshot),
            _ => related(node_rules().iter().any(|rule| rule.allows(a))),
        }
    }

    fn authorize_pod(&self, node: &str, a: &Attributes, snapshot: Option<&Snapshot>) -> Result<(), String> {
        match (a.subresource.as_str(), a.verb.as_str()) {
            ("", "get") => {
                let key = format!("{}/{}", a.namespace, a.name);
                let mine = self.pods.get(key.as_str()).is_some_and(|refs| *refs.node == *node);
                // An absent pod is nobody's: the kubelet must learn that it is gone.
                let gone = || snapshot.is_some_and(|s| s.get(format!("/registry/pods/{key}").as_bytes()).is_none());
                if mine || gone() { Ok(()) } else { Err(format!("{NO_RELATIONSHIP} '{node}' and this object")) }
            }
            ("", "list" | "watch") => {
                let own = a.field_selector.split(',').any(|term| {
                    term.split_once('=').is_some_and(|(field, value)| {
                        field == "spec.nodeName" && value.strip_prefix('=').unwrap_or(value) == node
                    })
                });
                if own { Ok(()) } else { Err("can only list/watch pods with spec.nodeName field selector".to_owned()) }
            }
            // Whose pod it is, is checked by NodeRestriction, which sees the object.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Ok(()),
            _ => Err(format!("{NO_RELATIONSHIP} '{node}' and this object")),
        }
    }

    /// Secrets that a persistent volume of one of the node's pods names.
    fn volume_needs_secret(&self, node: &str, a: &Attributes, snapshot: Option<&Snapshot>) -> bool {
        let Some(snapshot) = snapshot else { return false };
        self.claims_of(node).any(|(namespace, claim)| {
            let Some(name) = volume_of(snapshot, namespace, claim) else { return false };
            let volume = read(snapshot, &format!("/registry/persistentvolumes/{name}")).unwrap_or_default();
            refers_to_secret(&volume["spec"], namespace, &a.namespace, &a.name)
        })
    }
}

/// Reads must name one object; `watchable` ones may be listed and watched by that name too.
fn readable_by_name(a: &Attributes, watchable: bool) -> Result<(), String> {
    let verb_fits = a.verb == "get" || (watchable && matches!(a.verb.as_str(), "list" | "watch"));
    if !verb_fits {
        let list = if watchable {
            "can only read resources of this type"
        } else {
            "can only get individual resources of this type"
        };
        return Err(list.to_owned());
    }
    if !a.subresource.is_empty() {
        return Err("cannot read subresource".to_owned());
    }
    if a.name.is_empty() {
        return Err("No Object name found".to_owned());
    }
    Ok(())
}

fn volume_of(snapshot: &Snapshot, namespace: &str, claim: &str) -> Option<String> {
    let claim = read(snapshot, &format!("/registry/persistentvolumeclaims/{namespace}/{claim}"))?;
    let name = claim["spec"]["volumeName"].as_str().unwrap_or_default();
    (!name.is_empty()).then(|| name.to_owned())
}

fn read(snapshot: &Snapshot, key: &str) -> Option<Value> {
    serde_json::from_slice(&snapshot.get(key.as_bytes())?.value().ok()?).ok()
}

/// Any `…SecretRef` in a volume source; a reference without a namespace means the claim's.
fn refers_to_secret(value: &Value, default_namespace: &str, namespace: &str, name: &str) -> bool {
    let Some(map) = value.as_object() else { return false };
    map.iter().any(|(key, value)| {
        let is_reference = key == "secretRef" || key.ends_with("SecretRef");
        let place = value["namespace"].as_str().unwrap_or(default_namespace);
        (is_reference && value["name"] == name && place == namespace)
            || refers_to_secret(value, default_namespace, namespace, name)
    })
}

/// What every kubelet may, whatever runs on it; the body of the cluster role `system:node`.
pub fn node_rules() -> &'static [Rule] {
    static RULES: std::sync::OnceLock<Vec<Rule>> = std::sync::OnceLock::new();
    RULES.get_or_init(|| {
        let read = &["get", "list", "watch"];
        let write = &["update", "patch"];
        vec![
            Rule::new(&["create"], &["authentication.k8s.io"], &["tokenreviews"]),
            Rule::new(&["create"], &["authorization.k8s.io"], &["localsubjectaccessreviews", "subjectaccessreviews"]),
            Rule::new(read, &[""], &["services"]),
            Rule::new(&["create", "get", "list", "watch"], &[""], &["nodes"]),
            Rule::new(write, &[""], &["nodes/status"]),
            Rule::new(write, &[""], &["nodes"]),
            Rule::new(read, &[""], &["pods"]),
            Rule::new(&["create", "delete"], &[""], &["pods"]),
            Rule::new(write, &[""], &["pods/status"]),
            Rule::new(&["create"], &[""], &["pods/eviction"]),
            Rule::new(read, &[""], &["configmaps", "secrets"]),
            Rule::new(&["get"], &[""], &["persistentvolumeclaims", "persistentvolumes"]),
            Rule::new(&["get"], &[""], &["endpoints"]),
            Rule::new(&["create", "get", "list", "watch"], &["certificates.k8s.io"], &["certificatesigningrequests"]),
            Rule::new(&["create", "delete", "get", "patch", "update"], &["coordination.k8s.io"], &["leases"]),
            Rule::new(&["get"], &["storage.k8s.io"], &["volumeattachments"]),
            Rule::new(&["create"], &[""], &["serviceaccounts/token"]),
            Rule::new(&["get"], &[""], &["serviceaccounts"]),
            Rule::new(&["get", "patch", "update"], &[""], &["persistentvolumeclaims/status"]),
            Rule::new(read, &["storage.k8s.io"], &["csidrivers"]),
            Rule::new(&["create", "delete", "get", "patch", "update"], &["storage.k8s.io"], &["csinodes"]),
            Rule::new(&["create", "patch", "update"], &["", "events.k8s.io"], &["events"]),
            Rule::new(read, &["node.k8s.io"], &["runtimeclasses"]),
            Rule::new(&["get"], &["resource.k8s.io"], &["resourceclaims"]),
            Rule::new(
                &["create", "deletecollection", "get", "list", "patch", "update", "watch"],
                &["resource.k8s.io"],
                &["resourceslices"],
            ),
        ]
    })
}

// Only what is needed of a pod; the rest is skipped while parsing.

#[derive(Default, serde::Deserialize)]
struct SlimPod {
    #[serde(default)]
    spec: Value,
}

impl SlimPod {
    fn refs(&self, pod_name: &str) -> PodRefs {
        let spec = &self.spec;
        let text = |value: &Value| -> Box<str> { value.as_str().unwrap_or_default().into() };
        let mut refs = PodRefs {
            node: text(&spec["nodeName"]),
            service_account: text(&spec["serviceAccountName"]),
            ..PodRefs::default()
        };
        let mut secrets = HashSet::new();
        let mut config_maps = HashSet::new();
        let mut claims = HashSet::new();
        // A generic ephemeral volume's claim is named after the pod and the volume.
        let ephemeral: Vec<Value> = (spec["volumes"].as_array().into_iter().flatten())
            .filter(|volume| volume["ephemeral"].is_object())
            .map(|volume| format!("{pod_name}-{}", volume["name"].as_str().unwrap_or_default()).into())
            .collect();
        fn each(value: &Value) -> impl Iterator<Item = &Value> {
            value.as_array().into_iter().flatten()
        }
        fn add<'a>(set: &mut HashSet<&'a str>, value: &'a Value) {
            set.extend(value.as_str().filter(|name| !name.is_empty()));
        }
        for entry in each(&spec["imagePullSecrets"]) {
            add(&mut secrets, &entry["name"]);
        }
        for list in ["containers", "initContainers", "ephemeralContainers"] {
            for container in each(&spec[list]) {
                for from in each(&container["envFrom"]) {
                    add(&mut secrets, &from["secretRef"]["name"]);
                    add(&mut config_maps, &from["configMapRef"]["name"]);
                }
                for variable in each(&container["env"]) {
                    add(&mut secrets, &variable["valueFrom"]["secretKeyRef"]["name"]);
                    add(&mut config_maps, &variable["valueFrom"]["configMapKeyRef"]["name"]);
                }
            }
        }
        for volume in each(&spec["volumes"]) {
            add(&mut secrets, &volume["secret"]["secretName"]);
            add(&mut config_maps, &volume["configMap"]["name"]);
            add(&mut claims, &volume["persistentVolumeClaim"]["claimName"]);
            for source in each(&volume["projected"]["sources"]) {
                add(&mut secrets, &source["secret"]["name"]);
                add(&mut config_maps, &source["configMap"]["name"]);
            }
            for (_, source) in volume.as_object().into_iter().flatten() {
                for key in ["secretRef", "nodePublishSecretRef"] {
                    add(&mut secrets, &source[key]["name"]);
                }
                add(&mut secrets, &source["secretName"]);
            }
        }
        for claim in &ephemeral {
            add(&mut claims, claim);
        }
        // Sorted, so that equal references compare equal.
        let boxed = |set: HashSet<&str>| {
            set.into_iter().map(Box::from).collect::<std::collections::BTreeSet<Box<str>>>().into_iter().collect()
        };
        refs.secrets = boxed(secrets);
        refs.config_maps = boxed(config_maps);
        refs.claims = boxed(claims);
        refs
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::handler::UserInfo;

    #[test]
    fn a_node_sees_what_its_pods_refer_to() {
        let mut index = NodeIndex::default();
        let pod = json!({"spec": {"nodeName": "n1", "serviceAccountName": "sa",
            "imagePullSecrets": [{"name": "pull"}],
            "containers": [{"envFrom": [{"configMapRef": {"name": "cm"}}],
                "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "env", "key": "k"}}}]}],
            "volumes": [{"name": "v", "secret": {"secretName": "vol"}},
                {"name": "e", "ephemeral": {"volumeClaimTemplate": {}}},
                {"name": "p", "projected": {"sources": [{"configMap": {"name": "proj"}}]}}]}});
        index.put("a/web", pod.to_string().as_bytes());
        let user = UserInfo::new("system:node:n1", &["system:nodes"]);
        let check = |node: &str, verb: &str, resource: &str, namespace: &str, name: &str| {
            let a = Attributes::resource(&user, verb, "", resource, namespace, name);
            index.authorize(node, &a, None).is_ok()
        };
        for name in ["pull", "env", "vol"] {
            assert!(check("n1", "get", "secrets", "a", name), "{name}");
            assert!(!check("n2", "get", "secrets", "a", name), "{name}");
            assert!(!check("n1", "get", "secrets", "b", name), "{name}");
        }
        assert!(check("n1", "watch", "configmaps", "a", "cm") && check("n1", "get", "configmaps", "a", "proj"));
        assert!(!check("n1", "list", "secrets", "a", ""));
        assert!(!check("n1", "delete", "secrets", "a", "vol"));
        assert!(check("n1", "get", "persistentvolumeclaims", "a", "web-e"));
        assert!(check("n1", "get", "pods", "a", "web") && !check("n2", "get", "pods", "a", "web"));
        assert!(!check("n1", "list", "pods", "", ""));
        assert!(check("n1", "get", "nodes", "", "n1") && check("n1", "list", "services", "", ""));
        index.remove("a/web");
        assert!(index.authorize("n1", &Attributes::resource(&user, "get", "", "secrets", "a", "vol"), None).is_err());
    }
}
