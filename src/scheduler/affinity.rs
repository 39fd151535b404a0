//! Affinity between pods: where a pod may be because of others, and where it would rather be. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::{NodeInfo, Placed};
use crate::filter::{Cause, Unfit};
use crate::term::Namespaces;

/// What a required affinity of a pod that is there is worth to one that it would have liked near.
const REQUIRED_WEIGHT: i64 = 1;

/// Values of node labels, by key: `topology.kubernetes.io/zone` → `west`.
type Domains = BTreeMap<String, BTreeSet<String>>;

/// Worked out once per pod to be scheduled.
#[derive(Default)]
pub struct Affinity {
    /// Each required term's key, with the values where it holds.
    required: Vec<(String, BTreeSet<String>)>,
    /// Nobody is there yet whom the pod requires, and it would do itself: it may be the first.
    first: bool,
    /// Where those are whom the pod does not want.
    forbidden: Domains,
    /// Where those are who do not want the pod.
    unwelcome: Domains,
}

fn mark(domains: &mut Domains, key: &str, node: &NodeInfo) {
    if let Some(value) = node.label(key) {
        domains.entry(key.to_owned()).or_default().insert(value.to_owned());
    }
}

fn within(domains: &Domains, node: &NodeInfo) -> bool {
    domains.iter().any(|(key, values)| node.label(key).is_some_and(|value| values.contains(value)))
}

impl Affinity {
    pub fn new(wanted: &Placed, nodes: &[&NodeInfo], namespaces: &Namespaces) -> Self {
        let mut affinity = Self::default();
        let own = wanted.terms.as_deref();
        let required = own.map(|terms| terms.required.as_slice()).unwrap_or_default();
        let forbidden = own.map(|terms| terms.forbidden.as_slice()).unwrap_or_default();
        affinity.required = required.iter().map(|term| (term.key.clone(), BTreeSet::new())).collect();
        for node in nodes {
            for placed in node.pods.values() {
                // One pod must satisfy all terms to count for any.
                if !required.is_empty() && required.iter().all(|term| term.means(&placed.pod, namespaces)) {
                    for (key, values) in &mut affinity.required {
                        values.extend(node.label(key).map(str::to_owned));
                    }
                }
                for term in forbidden.iter().filter(|term| term.means(&placed.pod, namespaces)) {
                    mark(&mut affinity.forbidden, &term.key, node);
                }
                for term in placed.terms.iter().flat_map(|terms| &terms.forbidden) {
                    if term.means(&wanted.pod, namespaces) {
                        mark(&mut affinity.unwelcome, &term.key, node);
                    }
                }
            }
        }
        affinity.first = affinity.required.iter().all(|(_, values)| values.is_empty())
            && required.iter().all(|term| term.means(&wanted.pod, namespaces));
        affinity
    }

    pub fn unfit(&self, node: &NodeInfo) -> Option<Unfit> {
        let satisfied = self
            .required
            .iter()
            .all(|(key, values)| node.label(key).is_some_and(|value| self.first || values.contains(value)));
        if !satisfied {
            return Some(Unfit::never("node(s) didn't match pod affinity rules", Cause::Neighbours));
        }
        if within(&self.forbidden, node) {
            return Some(Unfit::taken("node(s) didn't match pod anti-affinity rules", Cause::Neighbours));
        }
        if within(&self.unwelcome, node) {
            let reason = "node(s) didn't satisfy existing pods anti-affinity rules";
            return Some(Unfit::taken(reason, Cause::Neighbours));
        }
        None
    }
}

/// How much the pod is drawn to each domain, by its own preferences and by those of the pods that are there.
#[derive(Default)]
pub struct Attraction(BTreeMap<String, BTreeMap<String, i64>>);

impl Attraction {
    pub fn new(wanted: &Placed, nodes: &[&NodeInfo], namespaces: &Namespaces) -> Self {
        let mut attraction = Self::default();
        let own = wanted.terms.as_deref().map(|terms| terms.preferred.as_slice()).unwrap_or_default();
        for node in nodes {
            for placed in node.pods.values() {
                for (weight, term) in own.iter().filter(|(_, term)| term.means(&placed.pod, namespaces)) {
                    attraction.add(&term.key, node, *weight);
                }
                let Some(theirs) = placed.terms.as_deref() else { continue };
                for (weight, term) in theirs.preferred.iter().filter(|(_, term)| term.means(&wanted.pod, namespaces)) {
                    attraction.add(&term.key, node, *weight);
                }
                for term in theirs.required.iter().filter(|term| term.means(&wanted.pod, namespaces)) {
                    attraction.add(&term.key, node, REQUIRED_WEIGHT);
                }
            }
        }
        attraction
    }

    fn add(&mut self, key: &str, node: &NodeInfo, weight: i64) {
        if let Some(value) = node.label(key) {
            *self.0.entry(key.to_owned()).or_default().entry(value.to_owned()).or_default() += weight;
        }
    }

    pub fn of(&self, node: &NodeInfo) -> i64 {
        self.0.iter().filter_map(|(key, values)| values.get(node.label(key)?)).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::Cluster;

    fn cluster() -> Cluster {
        let mut cluster = Cluster::default();
        for (name, zone) in [("a", "west"), ("b", "west"), ("c", "east")] {
            let node = json!({"metadata": {"name": name, "labels": {"zone": zone}}});
            cluster.set_node(Arc::new(serde_json::from_value(node).unwrap()));
        }
        cluster
    }

    fn pod(name: &str, app: &str, affinity: Value) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": name, "uid": name, "namespace": "default", "labels": {"app": app}},
            "spec": {"containers": [], "affinity": affinity}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn fitting(cluster: &Cluster, pod: &Arc<Pod>) -> Vec<String> {
        let nodes: Vec<_> = cluster.known().collect();
        let affinity = Affinity::new(&Placed::new(pod.clone()), &nodes, &Namespaces::new());
        nodes.iter().filter(|node| affinity.unfit(node).is_none()).map(|node| node.name().to_owned()).collect()
    }

    fn term(app: &str) -> Value {
        json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": app}}})
    }

    fn required(kind: &str, terms: &[Value]) -> Value {
        json!({kind: {"requiredDuringSchedulingIgnoredDuringExecution": terms}})
    }

    #[test]
    fn affinity_follows_and_the_first_goes_anywhere() {
        let mut cluster = cluster();
        let follower = pod("f", "db", required("podAffinity", &[term("db")]));
        assert_eq!(fitting(&cluster, &follower), ["a", "b", "c"]);
        cluster.place(pod("x", "db", json!({})), "c");
        assert_eq!(fitting(&cluster, &follower), ["c"]);
        assert!(fitting(&cluster, &pod("g", "web", required("podAffinity", &[term("cache")]))).is_empty());
        let both = pod("h", "web", required("podAffinity", &[term("db"), term("web")]));
        assert!(fitting(&cluster, &both).is_empty(), "nobody is both");
    }

    #[test]
    fn anti_affinity_works_both_ways() {
        let mut cluster = cluster();
        cluster.place(pod("x", "db", required("podAntiAffinity", &[term("web")])), "a");
        assert_eq!(fitting(&cluster, &pod("w", "web", json!({}))), ["c"]);
        assert_eq!(fitting(&cluster, &pod("o", "other", required("podAntiAffinity", &[term("db")]))), ["c"]);
    }

    #[test]
    fn preferences_of_both_sides_add_up() {
        let mut cluster = cluster();
        let preferred = |kind: &str, weight: i32, app: &str| {
            json!({kind: {"preferredDuringSchedulingIgnoredDuringExecution":
                [{"weight": weight, "podAffinityTerm": term(app)}]}})
        };
        cluster.place(pod("x", "db", preferred("podAntiAffinity", 30, "web")), "a");
        cluster.place(pod("y", "db", required("podAffinity", &[term("web")])), "c");
        let nodes: Vec<_> = cluster.known().collect();
        let wanted = Placed::new(pod("w", "web", preferred("podAffinity", 50, "db")));
        let attraction = Attraction::new(&wanted, &nodes, &Namespaces::new());
        assert_eq!(nodes.iter().map(|node| attraction.of(node)).collect::<Vec<_>>(), [20, 20, 51]);
    }
}
