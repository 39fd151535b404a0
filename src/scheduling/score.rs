//! Which of the nodes that would do is best. Pure; every part gives 0 to 100.

use k8s_openapi::api::core::v1::Pod;

use crate::affinity::term_matches;
use crate::cluster::{NodeInfo, Placed};
use crate::filter::{matches_term, tolerated};

const FULL: f64 = 100.0;
/// Images weigh between these sizes.
const IMAGE_BYTES_MIN: f64 = 23e6;
const IMAGE_BYTES_MAX: f64 = 1e9;

/// Upstream's parts with upstream's weights, as far as they tell nodes of this size apart.
pub fn score(wanted: &Placed, node: &NodeInfo) -> f64 {
    let (least, balanced) = utilization(wanted, node);
    least
        + balanced
        + 3.0 * taints(&wanted.pod, node)
        + 2.0 * node_affinity(&wanted.pod, node)
        + 2.0 * pod_affinity(&wanted.pod, node)
        + image_locality(&wanted.pod, node)
}

#[expect(clippy::cast_precision_loss, reason = "amounts of cpu and memory, compared roughly")]
fn utilization(wanted: &Placed, node: &NodeInfo) -> (f64, f64) {
    let share = |used: i64, all: i64| if all > 0 { (used as f64 / all as f64).min(1.0) } else { 1.0 };
    let cpu = share(node.scoring.0 + wanted.scoring.0, node.allocatable.get("cpu"));
    let memory = share(node.scoring.1 + wanted.scoring.1, node.allocatable.get("memory"));
    let least = ((1.0 - cpu) + (1.0 - memory)) / 2.0 * FULL;
    // The standard deviation of two values is half their distance.
    (least, (1.0 - (cpu - memory).abs() / 2.0) * FULL)
}

fn taints(pod: &Pod, node: &NodeInfo) -> f64 {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let taints = node.node.as_ref().and_then(|node| node.spec.as_ref()?.taints.as_ref());
    let unwelcome = taints
        .into_iter()
        .flatten()
        .filter(|taint| taint.effect == "PreferNoSchedule" && !tolerated(taint, tolerations));
    #[expect(clippy::cast_precision_loss, reason = "a handful of taints")]
    let count = unwelcome.count() as f64;
    FULL / (1.0 + count)
}

fn node_affinity(pod: &Pod, node: &NodeInfo) -> f64 {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref()?.node_affinity.as_ref());
    let preferred =
        affinity.and_then(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.as_ref());
    let (mut weight, mut all) = (0, 0);
    for term in preferred.into_iter().flatten() {
        all += term.weight;
        if matches_term(&term.preference, node) {
            weight += term.weight;
        }
    }
    if all == 0 { 0.0 } else { f64::from(weight) / f64::from(all) * FULL }
}

/// Preferred affinity, seen from this node alone.
fn pod_affinity(pod: &Pod, node: &NodeInfo) -> f64 {
    let Some(affinity) = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref()) else { return 0.0 };
    let wanted =
        affinity.pod_affinity.as_ref().and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let unwanted = affinity
        .pod_anti_affinity
        .as_ref()
        .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let signed =
        wanted.into_iter().flatten().map(|term| (1, term)).chain(unwanted.into_iter().flatten().map(|term| (-1, term)));
    let (mut sum, mut all) = (0, 0);
    for (sign, term) in signed {
        all += term.weight;
        if node.pods.values().any(|placed| term_matches(&term.pod_affinity_term, pod, &placed.pod)) {
            sum += sign * term.weight;
        }
    }
    if all == 0 { 0.0 } else { f64::from(sum) / f64::from(all) * FULL }
}

fn image_locality(pod: &Pod, node: &NodeInfo) -> f64 {
    let images = node.node.as_ref().and_then(|node| node.status.as_ref()?.images.as_ref());
    let has =
        |name: &str| images.into_iter().flatten().find(|image| image.names.iter().flatten().any(|known| known == name));
    let wanted = pod.spec.iter().flat_map(|spec| &spec.containers).filter_map(|container| container.image.as_deref());
    #[expect(clippy::cast_precision_loss, reason = "sizes, compared roughly")]
    let bytes: f64 = wanted.filter_map(has).filter_map(|image| image.size_bytes).map(|bytes| bytes as f64).sum();
    ((bytes - IMAGE_BYTES_MIN) / (IMAGE_BYTES_MAX - IMAGE_BYTES_MIN)).clamp(0.0, 1.0) * FULL
}
