//! Where a pod's volumes let it go: claims that are bound, claims that are bound once a node is chosen, and claims that
//! only one pod may have.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, TopologySelectorTerm};
use k8s_openapi::api::storage::v1::StorageClass;
use mussel_api::claim::{capacity, class_name, is_bound, is_for, phase, requested, suits};
use mussel_api::selector::LabelSelector;
use mussel_client::{Informer, Informers};

use crate::cluster::{NodeInfo, uid};
use crate::filter::{Cause, Unfit, matches_selector};
use crate::term::selector;

const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// The cluster's volumes, and those that have been promised to a claim but do not say so yet.
pub struct Volumes {
    pub claims: Informer<PersistentVolumeClaim>,
    pub volumes: Informer<PersistentVolume>,
    pub classes: Informer<StorageClass>,
    /// Names of volumes, by the uid of the pod that is being bound.
    promised: BTreeMap<String, Vec<String>>,
}

/// What one pod needs of its volumes.
#[derive(Debug, Default)]
pub struct Needs {
    bound: Vec<Arc<PersistentVolume>>,
    /// A claim says that it is bound to a volume that is not there.
    lost: bool,
    delayed: Vec<Delayed>,
    /// Names of claims that one pod may have at a time.
    exclusive: Vec<String>,
}

/// A claim that waits for its first consumer.
#[derive(Debug)]
struct Delayed {
    claim: Arc<PersistentVolumeClaim>,
    class: Arc<StorageClass>,
    /// Volumes that would do, the smallest first.
    candidates: Vec<Arc<PersistentVolume>>,
}

/// What must be done before a pod is bound.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Give the volume to the claim.
    Claim { volume: Arc<PersistentVolume>, claim: Arc<PersistentVolumeClaim> },
    /// Have a volume made on the node.
    Provision { claim: Arc<PersistentVolumeClaim> },
}

impl Volumes {
    pub fn new(informers: &Informers) -> Self {
        Self::over(informers.of(), informers.of(), informers.of())
    }

    pub fn over(
        claims: Informer<PersistentVolumeClaim>,
        volumes: Informer<PersistentVolume>,
        classes: Informer<StorageClass>,
    ) -> Self {
        Self { claims, volumes, classes, promised: BTreeMap::new() }
    }

    pub async fn synced(&self) {
        tokio::join!(self.claims.synced(), self.volumes.synced(), self.classes.synced());
    }

    /// Keeps the volumes from other claims until [`Self::settled`].
    pub fn promise(&mut self, pod: &Pod, steps: &[Step]) {
        let volumes = steps.iter().filter_map(|step| match step {
            Step::Claim { volume, .. } => volume.metadata.name.clone(),
            Step::Provision { .. } => None,
        });
        let volumes: Vec<_> = volumes.collect();
        if !volumes.is_empty() {
            self.promised.insert(uid(pod).to_owned(), volumes);
        }
    }

    pub fn settled(&mut self, pod: &str) {
        self.promised.remove(pod);
    }

    /// # Errors
    /// In upstream's words, why the pod can be nowhere.
    pub fn needs(&self, pod: &Pod) -> Result<Needs, String> {
        let mut needs = Needs::default();
        let mut immediate = false;
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        for (name, ephemeral) in claim_names(pod) {
            let Some(claim) = self.claims.get(namespace, &name) else {
                return Err(match ephemeral {
                    true => format!(
                        "waiting for ephemeral volume controller to create the persistentvolumeclaim \"{name}\""
                    ),
                    false => format!("persistentvolumeclaim \"{name}\" not found"),
                });
            };
            let spec = claim.spec.as_ref();
            let volume = spec.and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
            if phase(&claim) == "Lost" {
                return Err(format!(
                    "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume}\""
                ));
            }
            if claim.metadata.deletion_timestamp.is_some() {
                return Err(format!("persistentvolumeclaim \"{name}\" is being deleted"));
            }
            let modes = spec.and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
            if modes.iter().any(|mode| mode == "ReadWriteOncePod") {
                needs.exclusive.push(name);
            }
            if is_bound(&claim) {
                match self.volumes.get("", volume) {
                    Some(volume) => needs.bound.push(volume),
                    None => needs.lost = true,
                }
                continue;
            }
            let class = class_name(&claim).and_then(|class| self.classes.get("", class));
            let delays =
                |class: &Arc<StorageClass>| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer");
            match class.filter(|class| delays(class) && volume.is_empty()) {
                Some(class) => {
                    let candidates = self.candidates(&claim);
                    needs.delayed.push(Delayed { claim, class, candidates });
                }
                None => immediate = true,
            }
        }
        if immediate {
            return Err("pod has unbound immediate PersistentVolumeClaims".to_owned());
        }
        // The smallest first, so that a large volume is left for a large claim.
        needs.delayed.sort_by_key(|delayed| requested(&delayed.claim));
        Ok(needs)
    }

    fn candidates(&self, claim: &PersistentVolumeClaim) -> Vec<Arc<PersistentVolume>> {
        let labels = claim.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        let labels = labels.map_or_else(LabelSelector::everything, selector);
        let promised = |volume: &PersistentVolume| {
            let name = volume.metadata.name.as_deref().unwrap_or_default();
            self.promised.values().flatten().any(|other| other == name)
        };
        let mut candidates = self.volumes.list();
        candidates.retain(|volume| suits(volume, claim, &labels) && !promised(volume));
        candidates.sort_by_key(|volume| (!is_for(volume, claim), capacity(volume)));
        candidates
    }
}

impl Needs {
    /// Whether another pod has a claim that only one may have.
    pub fn taken(&self, pod: &Pod, nodes: &[&NodeInfo]) -> bool {
        !self.exclusive.is_empty()
            && nodes.iter().flat_map(|node| node.pods.values()).any(|placed| {
                placed.pod.metadata.namespace == pod.metadata.namespace
                    && uid(&placed.pod) != uid(pod)
                    && claim_names(&placed.pod).iter().any(|(name, _)| self.exclusive.contains(name))
            })
    }

    pub fn unfit(&self, node: &NodeInfo) -> Option<Unfit> {
        let never = |reason: &str| Some(Unfit::never(reason, Cause::Volumes));
        if self.lost {
            return never("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)");
        }
        if !self.bound.iter().all(|volume| reachable(volume, node)) {
            return never("node(s) didn't match PersistentVolume's node affinity");
        }
        match self.steps(node) {
            Some(_) => None,
            None => never("node(s) didn't find available persistent volumes to bind"),
        }
    }

    /// How the claims that wait get their volumes when the pod goes to the node; `None` when they cannot.
    pub fn steps(&self, node: &NodeInfo) -> Option<Vec<Step>> {
        let mut used = BTreeSet::new();
        let step = |delayed: &Delayed| {
            let free = delayed.candidates.iter().find(|volume| {
                reachable(volume, node) && !used.contains(volume.metadata.name.as_deref().unwrap_or_default())
            });
            if let Some(volume) = free {
                used.insert(volume.metadata.name.clone().unwrap_or_default());
                return Some(Step::Claim { volume: volume.clone(), claim: delayed.claim.clone() });
            }
            let makes = delayed.class.provisioner != NO_PROVISIONER
                && allows(delayed.class.allowed_topologies.as_deref().unwrap_or_default(), node);
            makes.then(|| Step::Provision { claim: delayed.claim.clone() })
        };
        self.delayed.iter().map(step).collect()
    }
}

/// With whether the claim belongs to a generic ephemeral volume.
fn claim_names(pod: &Pod) -> Vec<(String, bool)> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let names = volumes.filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some((claim.claim_name.clone(), false)),
        (None, Some(_)) => {
            Some((format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), volume.name), true))
        }
        (None, None) => None,
    });
    names.collect()
}

fn reachable(volume: &PersistentVolume, node: &NodeInfo) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref()?.required.as_ref());
    affinity.is_none_or(|selector| matches_selector(selector, node))
}

fn allows(topologies: &[TopologySelectorTerm], node: &NodeInfo) -> bool {
    topologies.is_empty()
        || topologies.iter().any(|term| {
            term.match_label_expressions.iter().flatten().all(|expression| {
                node.label(&expression.key).is_some_and(|value| expression.values.iter().any(|v| v == value))
            })
        })
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::Cluster;

    fn objects<T: DeserializeOwned>(list: Value) -> Vec<T> {
        serde_json::from_value(list).unwrap()
    }

    fn world() -> Volumes {
        let claim = |name: &str, class: &str, size: &str, volume: Value| {
            json!({"metadata": {"name": name, "namespace": "default", "uid": name},
                "spec": {"storageClassName": class, "accessModes": ["ReadWriteOnce"], "volumeName": volume,
                    "resources": {"requests": {"storage": size}}},
                "status": {"phase": if volume.is_null() { "Pending" } else { "Bound" }}})
        };
        let on = |node: &str| {
            json!({"required": {"nodeSelectorTerms":
                [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}})
        };
        let volume = |name: &str, size: &str, node: &str| {
            json!({"metadata": {"name": name}, "spec": {"storageClassName": "local", "capacity": {"storage": size},
                "accessModes": ["ReadWriteOnce"], "nodeAffinity": on(node)}, "status": {"phase": "Available"}})
        };
        let mut used = volume("v9", "1Gi", "b");
        used["status"]["phase"] = json!("Bound");
        let class = |name: &str, provisioner: &str, mode: &str| json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode});
        let mut single = claim("single", "made", "1Gi", Value::Null);
        single["spec"]["accessModes"] = json!(["ReadWriteOncePod"]);
        Volumes {
            claims: Informer::fixed(objects::<PersistentVolumeClaim>(json!([
                claim("bound", "local", "1Gi", json!("v9")),
                claim("now", "eager", "1Gi", Value::Null),
                claim("small", "local", "1Gi", Value::Null),
                claim("large", "local", "5Gi", Value::Null),
                claim("made", "made", "5Gi", Value::Null),
                single,
            ]))),
            volumes: Informer::fixed(objects::<PersistentVolume>(json!([
                volume("v1", "2Gi", "a"),
                volume("v2", "8Gi", "a"),
                volume("v3", "2Gi", "b"),
                used,
            ]))),
            classes: Informer::fixed(objects::<StorageClass>(json!([
                class("eager", "x", "Immediate"),
                class("local", NO_PROVISIONER, "WaitForFirstConsumer"),
                class("made", "x", "WaitForFirstConsumer"),
            ]))),
            promised: BTreeMap::new(),
        }
    }

    fn pod(name: &str, claims: &[&str]) -> Arc<Pod> {
        let volumes: Vec<_> =
            claims.iter().map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}})).collect();
        let pod = json!({"metadata": {"name": name, "uid": name, "namespace": "default"},
            "spec": {"containers": [], "volumes": volumes}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn cluster() -> Cluster {
        let mut cluster = Cluster::default();
        for name in ["a", "b"] {
            let node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}});
            cluster.set_node(Arc::new(serde_json::from_value(node).unwrap()));
        }
        cluster
    }

    /// For each node, what would be done, or why not.
    fn outcome(volumes: &Volumes, claims: &[&str]) -> Vec<String> {
        let needs = match volumes.needs(&pod("p", claims)) {
            Ok(needs) => needs,
            Err(why) => return vec![why],
        };
        let of = |node: &NodeInfo| match needs.unfit(node) {
            Some(unfit) => unfit.reason,
            None => {
                let steps = needs.steps(node).unwrap().into_iter().map(|step| match step {
                    Step::Claim { volume, .. } => volume.metadata.name.clone().unwrap(),
                    Step::Provision { claim } => format!("make {}", claim.metadata.name.clone().unwrap()),
                });
                steps.collect::<Vec<_>>().join(" ")
            }
        };
        cluster().known().map(of).collect()
    }

    #[test]
    fn claims_say_where_a_pod_may_go() {
        let mut volumes = world();
        assert_eq!(outcome(&volumes, &["none"]), ["persistentvolumeclaim \"none\" not found"]);
        assert_eq!(outcome(&volumes, &["now"]), ["pod has unbound immediate PersistentVolumeClaims"]);
        assert_eq!(outcome(&volumes, &["bound"]), ["node(s) didn't match PersistentVolume's node affinity", ""]);
        let none = "node(s) didn't find available persistent volumes to bind";
        assert_eq!(outcome(&volumes, &["large", "small"]), ["v1 v2", none]);
        assert_eq!(outcome(&volumes, &["small"]), ["v1", "v3"]);
        assert_eq!(outcome(&volumes, &["made"]), ["make made", "make made"]);

        let needs = volumes.needs(&pod("q", &["small"])).unwrap();
        let steps = needs.steps(cluster().known().next().unwrap()).unwrap();
        volumes.promise(&pod("q", &[]), &steps);
        assert_eq!(outcome(&volumes, &["small"]), ["v2", "v3"], "v1 is promised to q");
        volumes.settled("q");
        assert_eq!(outcome(&volumes, &["small"]), ["v1", "v3"]);
    }

    #[test]
    fn some_claims_are_for_one_pod() {
        let volumes = world();
        let mut cluster = cluster();
        let needs = volumes.needs(&pod("second", &["single"])).unwrap();
        assert!(!needs.taken(&pod("second", &["single"]), &cluster.known().collect::<Vec<_>>()));
        cluster.place(pod("first", &["single"]), "a");
        assert!(needs.taken(&pod("second", &["single"]), &cluster.known().collect::<Vec<_>>()));
    }
}
