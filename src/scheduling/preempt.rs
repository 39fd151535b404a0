//! Makes room for an important pod by choosing less important ones to go. Pure: it only says who.

use std::cmp::Reverse;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::affinity::Affinity;
use crate::cluster::{Cluster, NodeInfo, Placed, uid};
use crate::filter::{Unfit, unfit};
use crate::queue::priority;

#[derive(Debug, PartialEq)]
pub struct Preemption {
    pub node: String,
    pub victims: Vec<Arc<Pod>>,
}

/// The node where the least is lost, or `None` where nobody's leaving would help.
pub fn choose(wanted: &Placed, cluster: &Cluster, unfits: &[(String, Vec<Unfit>)]) -> Option<Preemption> {
    let spec = wanted.pod.spec.as_ref()?;
    if spec.preemption_policy.as_deref() == Some("Never") {
        return None;
    }
    let helpful = unfits.iter().filter(|(_, unfits)| unfits.iter().all(|unfit| unfit.preemption_may_help));
    let candidates = helpful.filter_map(|(name, _)| {
        let victims = victims(wanted, cluster, cluster.nodes.get(name)?)?;
        Some(Preemption { node: name.clone(), victims })
    });
    // As upstream: the lowest highest priority, then the lowest sum, then the fewest.
    candidates.min_by_key(|candidate| {
        let priorities = candidate.victims.iter().map(|pod| i64::from(priority(pod)));
        (priorities.clone().max().unwrap_or(i64::MIN), priorities.clone().sum::<i64>(), candidate.victims.len())
    })
}

/// Whether somebody is already leaving the node that the pod was promised.
pub fn is_under_way(pod: &Pod, cluster: &Cluster) -> bool {
    let nominated = pod.status.as_ref().and_then(|status| status.nominated_node_name.as_deref());
    let node = nominated.and_then(|name| cluster.nodes.get(name));
    node.is_some_and(|node| {
        node.pods
            .values()
            .any(|placed| placed.pod.metadata.deletion_timestamp.is_some() && priority(&placed.pod) < priority(pod))
    })
}

fn victims(wanted: &Placed, cluster: &Cluster, node: &NodeInfo) -> Option<Vec<Arc<Pod>>> {
    let mut trial = node.clone();
    let mut lower: Vec<Placed> =
        node.pods.values().filter(|placed| priority(&placed.pod) < priority(&wanted.pod)).cloned().collect();
    if lower.is_empty() {
        return None;
    }
    let fits = |trial: &NodeInfo| {
        // Affinity is judged over the whole cluster as it would be.
        let mut others = Cluster::default();
        others.nodes.clone_from(&cluster.nodes);
        others.nodes.insert(trial.name().to_owned(), trial.clone());
        unfit(wanted, trial, &Affinity::new(&wanted.pod, &others)).is_empty()
    };
    for placed in &lower {
        trial.remove(uid(&placed.pod));
    }
    if !fits(&trial) {
        return None;
    }
    // The most important, and of those the longest running, stay if they can.
    lower.sort_by_key(|placed| {
        let started = placed.pod.status.as_ref().and_then(|status| status.start_time.as_ref().map(|time| time.0));
        (Reverse(priority(&placed.pod)), started)
    });
    let mut victims = Vec::new();
    for placed in lower {
        let key = uid(&placed.pod).to_owned();
        trial.add(placed.clone());
        if !fits(&trial) {
            trial.remove(&key);
            victims.push(placed.pod);
        }
    }
    (!victims.is_empty()).then_some(victims)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, priority: i32, cpu: &str) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": name, "uid": name}, "spec": {"priority": priority,
            "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn as_little_as_possible_is_lost() {
        let mut cluster = Cluster::default();
        for name in ["a", "b"] {
            let node = json!({"metadata": {"name": name}, "status": {"allocatable": {"cpu": "2", "pods": "9"}}});
            cluster.set_node(Arc::new(serde_json::from_value(node).unwrap()));
        }
        cluster.place(pod("high", 50, "2"), "a");
        cluster.place(pod("low1", 1, "1"), "b");
        cluster.place(pod("low2", 2, "1"), "b");
        let wanted = Placed::new(pod("wanted", 100, "1"));
        let affinity = Affinity::new(&wanted.pod, &cluster);
        let unfits: Vec<_> =
            cluster.known().map(|node| (node.name().to_owned(), unfit(&wanted, node, &affinity))).collect();
        let chosen = choose(&wanted, &cluster, &unfits).unwrap();
        assert_eq!(chosen.node, "b");
        assert_eq!(chosen.victims.iter().map(|pod| uid(pod)).collect::<Vec<_>>(), ["low1"]);
        assert_eq!(choose(&Placed::new(pod("meek", 0, "1")), &cluster, &unfits), None);
    }
}
