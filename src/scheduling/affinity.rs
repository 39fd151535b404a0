//! Affinity between pods and even spreading: what depends on pods of other nodes. Worked out once per pod to be scheduled.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm, TopologySpreadConstraint};
use mussel_api::selector::LabelSelector;

use crate::cluster::{Cluster, NodeInfo};
use crate::filter::{Unfit, matches_node};

/// A topology key with one of its values: `("topology.kubernetes.io/zone", "west")`.
type Domain = (String, String);

#[derive(Default)]
pub struct Affinity {
    /// For each required affinity term: its key and the domains in which it holds; `None`: the pod may be the first.
    required: Vec<(String, Option<Vec<String>>)>,
    /// Domains in which the pod, or a pod that is there, does not want them together.
    forbidden: Vec<Domain>,
    spread: Vec<Spread>,
}

struct Spread {
    key: String,
    max_skew: i64,
    counts: HashMap<String, i64>,
    lowest: i64,
    /// Whether the pod itself counts.
    own: i64,
}

impl Affinity {
    pub fn new(pod: &Pod, cluster: &Cluster) -> Self {
        let mut affinity = Self::default();
        let terms = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.affinity.clone()).unwrap_or_default();
        let own = terms(pod);
        let wanted = own.pod_affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution);
        for term in wanted.iter().flatten() {
            let domains = domains_with(term, pod, cluster);
            // The first of a group would wait for itself for ever.
            let first = domains.is_empty() && term_matches(term, pod, pod);
            affinity.required.push((term.topology_key.clone(), (!first).then_some(domains)));
        }
        let unwanted = own.pod_anti_affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution);
        for term in unwanted.iter().flatten() {
            let domains = domains_with(term, pod, cluster);
            affinity.forbidden.extend(domains.into_iter().map(|value| (term.topology_key.clone(), value)));
        }
        // Those that are there have a say too.
        for node in cluster.known() {
            for placed in node.pods.values() {
                let theirs = placed.pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
                let theirs = theirs.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
                let theirs = theirs.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
                for term in theirs.into_iter().flatten() {
                    if let Some(value) = node.labels().and_then(|labels| labels.get(&term.topology_key))
                        && term_matches(term, &placed.pod, pod)
                    {
                        affinity.forbidden.push((term.topology_key.clone(), value.clone()));
                    }
                }
            }
        }
        let constraints = pod.spec.as_ref().and_then(|spec| spec.topology_spread_constraints.as_ref());
        for constraint in constraints.into_iter().flatten().filter(|c| c.when_unsatisfiable == "DoNotSchedule") {
            affinity.spread.push(Spread::new(constraint, pod, cluster));
        }
        affinity
    }

    pub fn unfit(&self, node: &NodeInfo) -> Option<Unfit> {
        let empty = BTreeMap::new();
        let labels = node.labels().unwrap_or(&empty);
        let because =
            |reason: &str, preemption_may_help| Some(Unfit { reason: reason.to_owned(), preemption_may_help });
        for spread in &self.spread {
            let Some(value) = labels.get(&spread.key) else {
                return because("node(s) didn't match pod topology spread constraints (missing required label)", false);
            };
            let here = spread.counts.get(value).copied().unwrap_or(0);
            if here + spread.own - spread.lowest > spread.max_skew {
                return because("node(s) didn't match pod topology spread constraints", true);
            }
        }
        for (key, domains) in &self.required {
            let holds = match (labels.get(key), domains) {
                (Some(_), None) => true,
                (Some(value), Some(domains)) => domains.contains(value),
                (None, _) => false,
            };
            if !holds {
                return because("node(s) didn't match pod affinity rules", false);
            }
        }
        if self.forbidden.iter().any(|(key, value)| labels.get(key) == Some(value)) {
            return because("node(s) didn't match pod anti-affinity rules", true);
        }
        None
    }
}

impl Spread {
    fn new(constraint: &TopologySpreadConstraint, pod: &Pod, cluster: &Cluster) -> Self {
        let selector = constraint.label_selector.as_ref().and_then(|spec| LabelSelector::from_spec(spec).ok());
        let selector = selector.unwrap_or_else(LabelSelector::nothing);
        let counts_for = |other: &Pod| {
            other.metadata.namespace == pod.metadata.namespace
                && other.metadata.deletion_timestamp.is_none()
                && selector.matches_map(other.metadata.labels.as_ref().unwrap_or(&BTreeMap::new()))
        };
        let mut counts: HashMap<String, i64> = HashMap::new();
        for node in cluster.known() {
            let honour = constraint.node_affinity_policy.as_deref() != Some("Ignore");
            let Some(value) = node.labels().and_then(|labels| labels.get(&constraint.topology_key)) else { continue };
            if honour && !matches_node(pod, node) {
                continue;
            }
            let here = node.pods.values().filter(|placed| counts_for(&placed.pod)).count();
            *counts.entry(value.clone()).or_default() += i64::try_from(here).unwrap_or(i64::MAX);
        }
        let too_few =
            constraint.min_domains.is_some_and(|min| i64::from(min) > i64::try_from(counts.len()).unwrap_or(0));
        let lowest = if too_few { 0 } else { counts.values().copied().min().unwrap_or(0) };
        let own = i64::from(selector.matches_map(pod.metadata.labels.as_ref().unwrap_or(&BTreeMap::new())));
        Self { key: constraint.topology_key.clone(), max_skew: i64::from(constraint.max_skew), counts, lowest, own }
    }
}

/// The values of the term's topology key on nodes with a pod that it means.
fn domains_with(term: &PodAffinityTerm, of: &Pod, cluster: &Cluster) -> Vec<String> {
    let mut domains: Vec<String> = cluster
        .known()
        .filter(|node| node.pods.values().any(|placed| term_matches(term, of, &placed.pod)))
        .filter_map(|node| node.labels()?.get(&term.topology_key).cloned())
        .collect();
    domains.sort();
    domains.dedup();
    domains
}

/// Whether a term of `of` means `other`.
pub fn term_matches(term: &PodAffinityTerm, of: &Pod, other: &Pod) -> bool {
    let namespace = other.metadata.namespace.as_deref().unwrap_or_default();
    let listed = term.namespaces.as_deref().unwrap_or_default();
    let in_namespace = match &term.namespace_selector {
        // An empty selector means all namespaces.
        Some(selector) if selector.match_labels.is_none() && selector.match_expressions.is_none() => true,
        Some(_) => listed.iter().any(|name| name == namespace),
        None if listed.is_empty() => other.metadata.namespace == of.metadata.namespace,
        None => listed.iter().any(|name| name == namespace),
    };
    let empty = BTreeMap::new();
    let labels = other.metadata.labels.as_ref().unwrap_or(&empty);
    let selector = term.label_selector.as_ref().and_then(|spec| LabelSelector::from_spec(spec).ok());
    in_namespace && selector.is_some_and(|selector| selector.matches_map(labels))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    fn cluster() -> Cluster {
        let mut cluster = Cluster::default();
        for (name, zone) in [("a", "west"), ("b", "west"), ("c", "east")] {
            let node = json!({"metadata": {"name": name, "labels": {"zone": zone}}});
            cluster.set_node(Arc::new(serde_json::from_value(node).unwrap()));
        }
        cluster
    }

    fn pod(name: &str, app: &str, spec: Value) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": name, "uid": name, "namespace": "default", "labels": {"app": app}},
            "spec": spec});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn fitting(cluster: &Cluster, pod: &Pod) -> Vec<String> {
        let affinity = Affinity::new(pod, cluster);
        cluster.known().filter(|node| affinity.unfit(node).is_none()).map(|node| node.name().to_owned()).collect()
    }

    fn term(kind: &str, app: &str) -> Value {
        json!({"containers": [], "affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution":
            [{"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": app}}}]}}})
    }

    #[test]
    fn affinity_follows_and_the_first_goes_anywhere() {
        let mut cluster = cluster();
        let follower = pod("f", "db", term("podAffinity", "db"));
        assert_eq!(fitting(&cluster, &follower), ["a", "b", "c"]);
        cluster.place(pod("x", "db", json!({"containers": []})), "c");
        assert_eq!(fitting(&cluster, &follower), ["c"]);
        assert!(fitting(&cluster, &pod("g", "web", term("podAffinity", "cache"))).is_empty());
    }

    #[test]
    fn anti_affinity_works_both_ways() {
        let mut cluster = cluster();
        cluster.place(pod("x", "db", term("podAntiAffinity", "web")), "a");
        assert_eq!(fitting(&cluster, &pod("w", "web", json!({"containers": []}))), ["c"]);
        assert_eq!(fitting(&cluster, &pod("o", "other", term("podAntiAffinity", "db"))), ["c"]);
    }

    #[test]
    fn pods_are_spread() {
        let mut cluster = cluster();
        let spec = json!({"containers": [], "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]});
        cluster.place(pod("1", "web", json!({"containers": []})), "a");
        assert_eq!(fitting(&cluster, &pod("2", "web", spec)), ["c"]);
    }
}
