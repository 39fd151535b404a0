//! Makes room for an important pod by choosing less important ones to go. Pure: it only says who.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use crate::cluster::{Cluster, NodeInfo, Placed, uid};
use crate::filter::{Rules, Unfit, counted, unfit};
use crate::queue::priority;
use crate::term::{labels, selector};
use crate::volumes::Needs;

pub const REASON: &str = "PreemptionByScheduler";

#[derive(Debug, PartialEq)]
pub struct Preemption {
    pub node: String,
    pub victims: Vec<Arc<Pod>>,
    /// How many of them must not be disturbed, by a disruption budget.
    violations: usize,
}

/// The node where the least is lost.
///
/// # Errors
/// In upstream's words, why nobody's leaving would help.
pub fn choose(
    wanted: &Placed,
    cluster: &Cluster,
    volumes: &Needs,
    budgets: &[Arc<PodDisruptionBudget>],
    unfits: &[(String, Vec<Unfit>)],
) -> Result<Preemption, String> {
    let pod = &wanted.pod;
    if pod.spec.as_ref().and_then(|spec| spec.preemption_policy.as_deref()) == Some("Never") {
        return Err("not eligible due to preemptionPolicy=Never.".to_owned());
    }
    if is_under_way(pod, cluster) {
        return Err("not eligible due to a terminating pod on the nominated node.".to_owned());
    }
    let mut candidates = Vec::new();
    let mut reasons = Vec::new();
    for (name, why) in unfits {
        let node = cluster.nodes.get(name).filter(|_| why.iter().all(|unfit| unfit.preemption_may_help));
        match node.map(|node| victims(wanted, cluster, volumes, budgets, node)) {
            None => reasons.push("Preemption is not helpful for scheduling".to_owned()),
            Some(Err(why)) => reasons.extend(why),
            Some(Ok(candidate)) => candidates.push(candidate),
        }
    }
    let best = candidates.into_iter().min_by_key(|candidate| {
        let priorities = candidate.victims.iter().map(|pod| priority(pod));
        let most = priorities.clone().max().unwrap_or(i32::MIN);
        // Counted from the lowest possible, so that one pod more is always worse.
        let sum: i64 = priorities.map(|priority| i64::from(priority) - i64::from(i32::MIN)).sum();
        let important = candidate.victims.iter().filter(|pod| priority(pod) == most);
        let youngest = important.map(|pod| started(pod)).min();
        (candidate.violations, most, sum, candidate.victims.len(), Reverse(youngest))
    });
    best.ok_or_else(|| {
        format!("0/{} nodes are available: {}.", unfits.len(), counted(reasons.iter().map(String::as_str)))
    })
}

fn started(pod: &Pod) -> Option<jiff::Timestamp> {
    pod.status.as_ref().and_then(|status| status.start_time.as_ref().map(|time| time.0))
}

/// Whether somebody is already leaving, for the pod, the node that it was promised.
fn is_under_way(pod: &Pod, cluster: &Cluster) -> bool {
    let leaving = |placed: &Placed| {
        let conditions = placed.pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        placed.pod.metadata.deletion_timestamp.is_some()
            && priority(&placed.pod) < priority(pod)
            && conditions.into_iter().any(|c| c.type_ == "DisruptionTarget" && c.reason.as_deref() == Some(REASON))
    };
    let node = cluster.nomination(uid(pod)).and_then(|name| cluster.nodes.get(name));
    node.is_some_and(|node| node.pods.values().any(leaving))
}

fn victims(
    wanted: &Placed,
    cluster: &Cluster,
    volumes: &Needs,
    budgets: &[Arc<PodDisruptionBudget>],
    node: &NodeInfo,
) -> Result<Preemption, Vec<String>> {
    // With those that come first anyway.
    let mut trial = cluster.as_promised(node, &wanted.pod).unwrap_or_else(|| node.clone());
    let mut lower: Vec<Placed> =
        node.pods.values().filter(|placed| priority(&placed.pod) < priority(&wanted.pod)).cloned().collect();
    if lower.is_empty() {
        return Err(vec!["No preemption victims found for incoming pod".to_owned()]);
    }
    // Neighbours are judged over the whole cluster as it would be.
    let why_not = |trial: &NodeInfo| {
        let name = trial.name();
        let nodes: Vec<_> = cluster.known().map(|node| if node.name() == name { trial } else { node }).collect();
        unfit(wanted, trial, &Rules::new(wanted, &nodes, &cluster.namespaces, volumes))
    };
    for placed in &lower {
        trial.remove(uid(&placed.pod));
    }
    let still = why_not(&trial);
    if !still.is_empty() {
        return Err(still.into_iter().map(|unfit| unfit.reason).collect());
    }
    // The most important, and of those the longest running, stay if they can; before all, those that must not be
    // disturbed.
    lower.sort_by_key(|placed| (Reverse(priority(&placed.pod)), started(&placed.pod)));
    let protected = protected(&lower, budgets);
    let (first, then): (Vec<_>, Vec<_>) = lower.into_iter().zip(protected).partition(|(_, protected)| *protected);
    let (mut gone, mut violations) = (Vec::new(), 0);
    for (placed, protected) in first.into_iter().chain(then) {
        trial.add(placed.clone());
        if !why_not(&trial).is_empty() {
            trial.remove(uid(&placed.pod));
            gone.push(placed.pod);
            violations += usize::from(protected);
        }
    }
    if gone.is_empty() {
        return Err(vec!["No preemption victims found for incoming pod".to_owned()]);
    }
    Ok(Preemption { node: node.name().to_owned(), victims: gone, violations })
}

/// Whose leaving would break a disruption budget, if all before it left too.
fn protected(pods: &[Placed], budgets: &[Arc<PodDisruptionBudget>]) -> Vec<bool> {
    let mut left: BTreeMap<usize, i32> = BTreeMap::new();
    let of = |placed: &Placed| {
        let mut breaks = false;
        for (index, budget) in budgets.iter().enumerate() {
            let selects = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref()).map(selector);
            let meant = budget.metadata.namespace == placed.pod.metadata.namespace
                && selects.is_some_and(|selector| selector.matches_map(labels(&placed.pod)));
            let status = budget.status.as_ref();
            let disrupted = status.and_then(|status| status.disrupted_pods.as_ref());
            let name = placed.pod.metadata.name.as_deref().unwrap_or_default();
            if !meant || disrupted.is_some_and(|pods| pods.contains_key(name)) {
                continue;
            }
            let left = left.entry(index).or_insert(status.and_then(|status| status.disruptions_allowed).unwrap_or(0));
            *left -= 1;
            breaks |= *left < 0;
        }
        breaks
    };
    pods.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::term::Namespaces;

    fn pod(name: &str, priority: i32, cpu: &str) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": name, "uid": name, "labels": {"app": name}}, "spec": {
            "priority": priority, "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn cluster(nodes: &[(&str, &[Arc<Pod>])]) -> Cluster {
        let mut cluster = Cluster::default();
        for (name, pods) in nodes {
            let node = json!({"metadata": {"name": name}, "status": {"allocatable": {"cpu": "2", "pods": "9"}}});
            cluster.set_node(Arc::new(serde_json::from_value(node).unwrap()));
            pods.iter().for_each(|pod| cluster.place(pod.clone(), name));
        }
        cluster
    }

    fn chosen(cluster: &Cluster, pod: Arc<Pod>, budgets: &[Arc<PodDisruptionBudget>]) -> Result<String, String> {
        let wanted = Placed::new(pod);
        let nodes: Vec<_> = cluster.known().collect();
        let (namespaces, needs) = (Namespaces::new(), Needs::default());
        let rules = Rules::new(&wanted, &nodes, &namespaces, &needs);
        let unfits: Vec<_> = nodes.iter().map(|node| (node.name().to_owned(), unfit(&wanted, node, &rules))).collect();
        let preemption = choose(&wanted, cluster, &needs, budgets, &unfits)?;
        let victims: Vec<_> = preemption.victims.iter().map(|pod| uid(pod)).collect();
        Ok(format!("{}: {}", preemption.node, victims.join(" ")))
    }

    #[test]
    fn as_little_as_possible_is_lost() {
        let nodes = [("a", &[pod("high", 50, "2")][..]), ("b", &[pod("low1", 1, "1"), pod("low2", 2, "1")])];
        let cluster = cluster(&nodes);
        assert_eq!(chosen(&cluster, pod("wanted", 100, "1"), &[]), Ok("b: low1".to_owned()));
        assert_eq!(chosen(&cluster, pod("wanted", 100, "2"), &[]), Ok("b: low2 low1".to_owned()));
        let none = "0/2 nodes are available: 2 No preemption victims found for incoming pod.";
        assert_eq!(chosen(&cluster, pod("meek", 0, "1"), &[]), Err(none.to_owned()));
        let unhelpful = "0/2 nodes are available: 2 Preemption is not helpful for scheduling.";
        assert_eq!(chosen(&cluster, pod("huge", 100, "3"), &[]), Err(unhelpful.to_owned()));
        assert_eq!(
            chosen(&cluster, pod("middle", 2, "2"), &[]),
            Err("0/2 nodes are available: 1 Insufficient cpu, 1 No preemption victims found for incoming pod."
                .to_owned())
        );
    }

    #[test]
    fn budgets_are_kept_where_they_can() {
        let cluster = cluster(&[("a", &[pod("x", 1, "1"), pod("y", 2, "1")])]);
        let budget = json!({"metadata": {"name": "x"}, "spec": {"selector": {"matchLabels": {"app": "x"}}},
            "status": {"disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}});
        let budget: Arc<PodDisruptionBudget> = Arc::new(serde_json::from_value(budget).unwrap());
        assert_eq!(chosen(&cluster, pod("wanted", 100, "1"), &[]), Ok("a: x".to_owned()));
        assert_eq!(chosen(&cluster, pod("wanted", 100, "1"), &[budget]), Ok("a: y".to_owned()));
    }

    #[test]
    fn one_preemption_at_a_time() {
        let mut leaving = (*pod("low", 1, "2")).clone();
        leaving.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        leaving.status = serde_json::from_value(json!({"conditions":
            [{"type": "DisruptionTarget", "status": "True", "reason": REASON}]}))
        .unwrap();
        let mut cluster = cluster(&[("a", &[Arc::new(leaving)]), ("b", &[pod("other", 1, "2")])]);
        let wanted = pod("wanted", 100, "1");
        cluster.nominate(wanted.clone(), "a");
        let waits = "not eligible due to a terminating pod on the nominated node.";
        assert_eq!(chosen(&cluster, wanted, &[]), Err(waits.to_owned()));
    }
}
