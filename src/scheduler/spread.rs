//! Even spreading of like pods over zones and nodes. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, TopologySpreadConstraint};
use mussel_api::selector::LabelSelector;

use crate::cluster::{NodeInfo, Placed};
use crate::filter::{Cause, Unfit, matches_node, untolerated};
use crate::term::{labels, selector, with_keys};

/// What pods of one controller get when they do not say how to be spread: nodes first, zones a little.
const UNASKED: [(&str, i64); 2] = [("kubernetes.io/hostname", 3), ("topology.kubernetes.io/zone", 5)];

/// Which pods count.
enum Like {
    Selected(LabelSelector),
    /// Of the controller with this uid.
    Owned(String),
}

impl Like {
    fn means(&self, other: &Pod) -> bool {
        match self {
            Self::Selected(selector) => selector.matches_map(labels(other)),
            Self::Owned(uid) => controller(other) == Some(uid),
        }
    }
}

fn controller(pod: &Pod) -> Option<&str> {
    let owner = pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))?;
    Some(&owner.uid)
}

struct Constraint {
    key: String,
    max_skew: i64,
    min_domains: usize,
    like: Like,
    honour_affinity: bool,
    honour_taints: bool,
}

impl Constraint {
    fn of(constraint: &TopologySpreadConstraint, pod: &Pod) -> Self {
        let like = constraint.label_selector.as_ref().map_or_else(LabelSelector::nothing, |spec| {
            selector(&with_keys(spec, constraint.match_label_keys.as_deref(), "In", pod))
        });
        Self {
            key: constraint.topology_key.clone(),
            max_skew: i64::from(constraint.max_skew),
            min_domains: constraint.min_domains.and_then(|min| usize::try_from(min).ok()).unwrap_or(0),
            like: Like::Selected(like),
            honour_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honour_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
        }
    }

    /// How many like pods there are in each domain that the pod could be in.
    fn count(&self, pod: &Pod, nodes: &[&NodeInfo]) -> BTreeMap<String, i64> {
        let mut counts = BTreeMap::new();
        for node in nodes {
            let Some(value) = node.label(&self.key) else { continue };
            if (self.honour_affinity && !matches_node(pod, node)) || (self.honour_taints && untolerated(pod, node)) {
                continue;
            }
            let here = node.pods.values().filter(|placed| self.counts(pod, &placed.pod)).count();
            *counts.entry(value.to_owned()).or_default() += i64::try_from(here).unwrap_or(i64::MAX);
        }
        counts
    }

    fn counts(&self, pod: &Pod, other: &Pod) -> bool {
        other.metadata.namespace == pod.metadata.namespace
            && other.metadata.deletion_timestamp.is_none()
            && self.like.means(other)
    }
}

fn asked<'a>(pod: &'a Pod, when_unsatisfiable: &'a str) -> impl Iterator<Item = Constraint> + 'a {
    let constraints = pod.spec.iter().flat_map(|spec| spec.topology_spread_constraints.iter().flatten());
    let of_kind = constraints.filter(move |constraint| constraint.when_unsatisfiable == when_unsatisfiable);
    of_kind.map(|constraint| Constraint::of(constraint, pod))
}

/// Nodes without one of the keys are in no domain.
fn in_domains<'a>(constraints: &[Constraint], nodes: &[&'a NodeInfo]) -> Vec<&'a NodeInfo> {
    let has_all = |node: &NodeInfo| constraints.iter().all(|constraint| node.label(&constraint.key).is_some());
    nodes.iter().copied().filter(|node| has_all(node)).collect()
}

/// The constraints that must hold.
#[derive(Default)]
pub struct Spread(Vec<Hard>);

struct Hard {
    key: String,
    max_skew: i64,
    counts: BTreeMap<String, i64>,
    lowest: i64,
    /// Whether the pod itself counts.
    own: i64,
}

impl Spread {
    pub fn new(wanted: &Placed, nodes: &[&NodeInfo]) -> Self {
        let constraints: Vec<_> = asked(&wanted.pod, "DoNotSchedule").collect();
        if constraints.is_empty() {
            return Self::default();
        }
        let nodes = in_domains(&constraints, nodes);
        let hard = constraints.into_iter().map(|constraint| {
            let counts = constraint.count(&wanted.pod, &nodes);
            let too_few = counts.len() < constraint.min_domains;
            Hard {
                lowest: if too_few { 0 } else { counts.values().copied().min().unwrap_or(0) },
                own: i64::from(constraint.like.means(&wanted.pod)),
                max_skew: constraint.max_skew,
                key: constraint.key,
                counts,
            }
        });
        Self(hard.collect())
    }

    pub fn unfit(&self, node: &NodeInfo) -> Option<Unfit> {
        for hard in &self.0 {
            let Some(value) = node.label(&hard.key) else {
                let reason = "node(s) didn't match pod topology spread constraints (missing required label)";
                return Some(Unfit::never(reason, Cause::Node));
            };
            let here = hard.counts.get(value).copied().unwrap_or(0);
            if here + hard.own - hard.lowest > hard.max_skew {
                return Some(Unfit::taken("node(s) didn't match pod topology spread constraints", Cause::Neighbours));
            }
        }
        None
    }
}

/// How crowded with like pods each of the `feasible` nodes is, less being better; `None` for a node outside the
/// domains that the pod asked for.
pub fn crowding(wanted: &Placed, feasible: &[&NodeInfo], nodes: &[&NodeInfo]) -> Vec<Option<f64>> {
    let pod = &wanted.pod;
    let mut constraints: Vec<_> = asked(pod, "ScheduleAnyway").collect();
    let unasked =
        pod.spec.as_ref().and_then(|spec| spec.topology_spread_constraints.as_ref()).is_none_or(Vec::is_empty);
    if unasked && let Some(owner) = controller(pod) {
        constraints.extend(UNASKED.map(|(key, max_skew)| Constraint {
            key: key.to_owned(),
            max_skew,
            min_domains: 0,
            like: Like::Owned(owner.to_owned()),
            honour_affinity: true,
            honour_taints: false,
        }));
        // Most small clusters have no zones.
        constraints.retain(|constraint| feasible.iter().any(|node| node.label(&constraint.key).is_some()));
    }
    let countable = if unasked { nodes.to_vec() } else { in_domains(&constraints, nodes) };
    let counted: Vec<_> = constraints.iter().map(|constraint| constraint.count(pod, &countable)).collect();
    let of = |node: &&NodeInfo| {
        let mut sum = 0.0;
        for (constraint, counts) in constraints.iter().zip(&counted) {
            let Some(value) = node.label(&constraint.key) else {
                if unasked {
                    continue;
                }
                return None;
            };
            let here = counts.get(value).copied().unwrap_or(0);
            #[expect(clippy::cast_precision_loss, reason = "counts of pods and domains")]
            // Few domains weigh less than many: each of them has more pods anyway.
            let (here, weight) = (here as f64, (counts.len() as f64 + 2.0).ln());
            sum += here * weight + f64::from(i32::try_from(constraint.max_skew - 1).unwrap_or(0));
        }
        Some(sum)
    };
    feasible.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::Cluster;

    fn cluster() -> Cluster {
        let mut cluster = Cluster::default();
        for (name, zone, taint) in [
            ("a", "west", json!([])),
            ("b", "west", json!([])),
            ("c", "east", json!([])),
            ("d", "north", json!([{"key": "k", "effect": "NoSchedule"}])),
        ] {
            let node = json!({"metadata": {"name": name, "labels": {"zone": zone, "kubernetes.io/hostname": name}},
                "spec": {"taints": taint}});
            cluster.set_node(Arc::new(serde_json::from_value(node).unwrap()));
        }
        cluster
    }

    fn pod(name: &str, spec: Value) -> Arc<Pod> {
        let owner = json!([{"apiVersion": "v1", "kind": "R", "name": "r", "uid": "r", "controller": true}]);
        let pod = json!({"metadata": {"name": name, "uid": name, "namespace": "default", "labels": {"app": "web"},
            "ownerReferences": owner}, "spec": spec});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn plain(name: &str) -> Arc<Pod> {
        pod(name, json!({"containers": []}))
    }

    fn constrained(more: Value) -> Arc<Pod> {
        let mut constraint = json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": "web"}}});
        constraint.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        pod("wanted", json!({"containers": [], "topologySpreadConstraints": [constraint]}))
    }

    fn fitting(cluster: &Cluster, pod: Arc<Pod>) -> Vec<String> {
        let nodes: Vec<_> = cluster.known().collect();
        let spread = Spread::new(&Placed::new(pod), &nodes);
        nodes.iter().filter(|node| spread.unfit(node).is_none()).map(|node| node.name().to_owned()).collect()
    }

    #[test]
    fn the_skew_is_kept() {
        let mut cluster = cluster();
        cluster.place(plain("1"), "a");
        assert_eq!(fitting(&cluster, constrained(json!({}))), ["c", "d"]);
        cluster.place(plain("2"), "c");
        // The tainted zone counts as empty, unless taints are honoured.
        assert_eq!(fitting(&cluster, constrained(json!({}))), ["d"]);
        let honouring = json!({"nodeTaintsPolicy": "Honor"});
        assert_eq!(fitting(&cluster, constrained(honouring)), ["a", "b", "c", "d"]);
        let many = json!({"nodeTaintsPolicy": "Honor", "minDomains": 5});
        assert_eq!(fitting(&cluster, constrained(many)), ["d"]);
        assert!(fitting(&cluster, constrained(json!({"topologyKey": "rack"}))).is_empty());
    }

    #[test]
    fn the_pods_of_a_controller_part_unasked() {
        let mut cluster = cluster();
        cluster.place(plain("1"), "a");
        let nodes: Vec<_> = cluster.known().collect();
        let crowding = crowding(&Placed::new(plain("2")), &nodes, &nodes);
        assert!(crowding[0] > crowding[1] && crowding[1] == crowding[2], "{crowding:?}");
    }
}
