//! Which of the nodes that would do is best. Pure; every part gives 0 to 100, weighted as upstream does.

use k8s_openapi::api::core::v1::Pod;

use crate::affinity::Attraction;
use crate::cluster::{NodeInfo, Placed};
use crate::filter::{matches_term, reluctance};
use crate::spread::crowding;
use crate::term::Namespaces;

const FULL: f64 = 100.0;
/// Images weigh between these sizes, per container.
const IMAGE_BYTES_MIN: f64 = 23e6;
const IMAGE_BYTES_MAX: f64 = 1e9;

/// The points of each of the `feasible` nodes.
pub fn scores(wanted: &Placed, feasible: &[&NodeInfo], nodes: &[&NodeInfo], namespaces: &Namespaces) -> Vec<f64> {
    let pod = &wanted.pod;
    let taints = most_is_worst(feasible.iter().map(|node| float(reluctance(pod, node))).collect());
    let likes = most_is_best(feasible.iter().map(|node| f64::from(preference(pod, node))).collect());
    let attraction = Attraction::new(wanted, nodes, namespaces);
    #[expect(clippy::cast_precision_loss, reason = "sums of weights up to 100")]
    let neighbours = stretched(feasible.iter().map(|node| attraction.of(node) as f64).collect());
    let spread = evened(crowding(wanted, feasible, nodes));
    let of = |(index, node): (usize, &&NodeInfo)| {
        least_allocated(wanted, node)
            + balanced(wanted, node)
            + 3.0 * taints[index]
            + 2.0 * likes[index]
            + 2.0 * neighbours[index]
            + 2.0 * spread[index]
            + image_locality(pod, node)
    };
    feasible.iter().enumerate().map(of).collect()
}

#[expect(clippy::cast_precision_loss, reason = "small counts")]
fn float(count: usize) -> f64 {
    count as f64
}

fn most_is_best(raw: Vec<f64>) -> Vec<f64> {
    let most = raw.iter().copied().fold(0.0, f64::max);
    raw.into_iter().map(|points| if most > 0.0 { points / most * FULL } else { 0.0 }).collect()
}

fn most_is_worst(raw: Vec<f64>) -> Vec<f64> {
    most_is_best(raw).into_iter().map(|points| FULL - points).collect()
}

/// From the least, 0, to the most, 100.
fn stretched(raw: Vec<f64>) -> Vec<f64> {
    let least = raw.iter().copied().fold(f64::INFINITY, f64::min);
    most_is_best(raw.into_iter().map(|points| points - least).collect())
}

fn evened(crowding: Vec<Option<f64>>) -> Vec<f64> {
    let known = || crowding.iter().flatten().copied();
    let (least, most) = (known().fold(f64::INFINITY, f64::min), known().fold(0.0, f64::max));
    let points = |here: f64| if most > 0.0 { (most + least - here) / most * FULL } else { FULL };
    crowding.iter().map(|here| here.map_or(0.0, points)).collect()
}

#[expect(clippy::cast_precision_loss, reason = "amounts of cpu and memory, compared roughly")]
fn share(used: i64, all: i64) -> f64 {
    if all > 0 { (used as f64 / all as f64).min(1.0) } else { 1.0 }
}

fn least_allocated(wanted: &Placed, node: &NodeInfo) -> f64 {
    let cpu = share(node.scoring.0 + wanted.scoring.0, node.allocatable.get("cpu"));
    let memory = share(node.scoring.1 + wanted.scoring.1, node.allocatable.get("memory"));
    ((1.0 - cpu) + (1.0 - memory)) / 2.0 * FULL
}

fn balanced(wanted: &Placed, node: &NodeInfo) -> f64 {
    let of = |name: &str| share(node.requested.get(name) + wanted.requests.get(name), node.allocatable.get(name));
    // The standard deviation of two values is half their distance.
    (1.0 - (of("cpu") - of("memory")).abs() / 2.0) * FULL
}

fn preference(pod: &Pod, node: &NodeInfo) -> i32 {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref()?.node_affinity.as_ref());
    let preferred =
        affinity.and_then(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.as_ref());
    let matching = preferred.into_iter().flatten().filter(|term| matches_term(&term.preference, node));
    matching.map(|term| term.weight).fold(0, i32::saturating_add)
}

fn image_locality(pod: &Pod, node: &NodeInfo) -> f64 {
    let images = node.node.as_ref().and_then(|node| node.status.as_ref()?.images.as_ref());
    let has =
        |name: &str| images.into_iter().flatten().find(|image| image.names.iter().flatten().any(|known| known == name));
    let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let wanted = containers.iter().filter_map(|container| container.image.as_deref());
    #[expect(clippy::cast_precision_loss, reason = "sizes, compared roughly")]
    let bytes: f64 = wanted.filter_map(has).filter_map(|image| image.size_bytes).map(|bytes| bytes as f64).sum();
    let most = IMAGE_BYTES_MAX * float(containers.len().max(1));
    ((bytes - IMAGE_BYTES_MIN) / (most - IMAGE_BYTES_MIN)).clamp(0.0, 1.0) * FULL
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::Cluster;

    fn pod(name: &str, spec: Value) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": name, "uid": name, "namespace": "default", "labels": {"app": name}},
            "spec": spec});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn asks(cpu: &str) -> Value {
        json!({"containers": [{"name": "c", "image": "big", "resources": {"requests": {"cpu": cpu}}}]})
    }

    fn best(cluster: &Cluster, spec: Value) -> String {
        let nodes: Vec<_> = cluster.known().collect();
        let scores = scores(&Placed::new(pod("wanted", spec)), &nodes, &nodes, &Namespaces::new());
        let (index, _) = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
        nodes[index].name().to_owned()
    }

    fn cluster(second: Value) -> Cluster {
        let mut cluster = Cluster::default();
        for (name, more) in [("a", json!({})), ("b", second)] {
            let mut node = json!({"metadata": {"name": name, "labels": {"zone": name}},
                "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "9"}}});
            for (key, value) in more.as_object().unwrap() {
                if let Some(known) = node[key].as_object_mut() {
                    known.extend(value.as_object().unwrap().clone());
                }
                if node[key].is_null() {
                    node[key] = value.clone();
                }
            }
            cluster.set_node(Arc::new(serde_json::from_value(node).unwrap()));
        }
        cluster
    }

    #[test]
    fn the_better_node_wins() {
        let mut plain = cluster(json!({}));
        plain.place(pod("x", asks("2")), "a");
        assert_eq!(best(&plain, asks("1")), "b", "the emptier");

        let tainted = cluster(json!({"spec": {"taints": [{"key": "k", "effect": "PreferNoSchedule"}]}}));
        assert_eq!(best(&tainted, asks("1")), "a", "no taint against it");

        let image = json!({"status": {"images": [{"names": ["big"], "sizeBytes": 900_000_000}]}});
        assert_eq!(best(&cluster(image), asks("1")), "b", "has the image");

        let mut preferring = asks("1");
        preferring["affinity"] = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 5, "preference": {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b"]}]}}]}});
        assert_eq!(best(&cluster(json!({})), preferring), "b", "preferred");

        let mut near = asks("1");
        near["affinity"] = json!({"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 5, "podAffinityTerm": {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "x"}}}}]}});
        assert_eq!(best(&plain, near), "a", "near its friend");

        let mut spread = asks("1");
        spread["topologySpreadConstraints"] = json!([{"maxSkew": 1, "topologyKey": "zone",
            "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": {"app": "y"}}}]);
        let mut crowded = cluster(json!({}));
        crowded.place(pod("y", json!({"containers": []})), "b");
        assert_eq!(best(&crowded, spread), "a", "away from its like");
    }
}
