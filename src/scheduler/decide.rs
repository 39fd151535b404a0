//! Decides where a pod goes, or what to say when it can go nowhere. Pure but for the dice.

use std::sync::Arc;

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use rand::seq::IndexedRandom;

use crate::cluster::{Cluster, NodeInfo, Placed, uid};
use crate::filter::{Cause, Causes, Rules, Unfit, counted, unfit};
use crate::preempt::{self, Preemption};
use crate::score::scores;
use crate::volumes::{Needs, Step, Volumes};

#[derive(Debug)]
pub enum Decision {
    /// After the steps for its volumes.
    Bind { node: String, steps: Vec<Step> },
    Wait {
        /// As upstream puts it.
        message: String,
        /// What must change first.
        causes: Causes,
        preemption: Option<Preemption>,
        /// Nothing speaks for the node that it was promised any more.
        promise_broken: bool,
    },
}

/// `preempting` says that others are being told to go for this pod already.
pub fn decide(
    wanted: &Placed,
    cluster: &Cluster,
    volumes: &Volumes,
    budgets: &[Arc<PodDisruptionBudget>],
    preempting: bool,
) -> Decision {
    let nodes: Vec<&NodeInfo> = cluster.known().collect();
    if nodes.is_empty() {
        return Decision::Wait {
            message: "no nodes available to schedule pods".to_owned(),
            causes: Causes::of(&[Cause::Node]),
            preemption: None,
            promise_broken: false,
        };
    }
    let needs = match volumes.needs(&wanted.pod) {
        Ok(needs) => needs,
        Err(why) => {
            let count = nodes.len();
            let unhelpful = format!("0/{count} nodes are available: {count} Preemption is not helpful for scheduling.");
            return Decision::Wait {
                message: format!("0/{count} nodes are available: {why}. preemption: {unhelpful}"),
                causes: Causes::of(&[Cause::Volumes]),
                preemption: None,
                promise_broken: false,
            };
        }
    };
    let rules = Rules::new(wanted, &nodes, &cluster.namespaces, &needs);
    let mut unfits: Vec<(String, Vec<Unfit>)> = Vec::new();
    let mut feasible: Vec<&NodeInfo> = Vec::new();
    for node in &nodes {
        let mut why = unfit(wanted, node, &rules);
        if why.is_empty()
            && let Some(promised) = cluster.as_promised(node, &wanted.pod)
        {
            why = unfit(wanted, &promised, &rules);
        }
        if why.is_empty() {
            feasible.push(node);
        } else {
            unfits.push((node.name().to_owned(), why));
        }
    }
    match best(wanted, &feasible, &nodes, cluster) {
        Some(node) => Decision::Bind { node: node.name().to_owned(), steps: needs.steps(node).unwrap_or_default() },
        None => nowhere(wanted, cluster, &needs, budgets, &unfits, preempting),
    }
}

fn best<'a>(
    wanted: &Placed,
    feasible: &[&'a NodeInfo],
    nodes: &[&NodeInfo],
    cluster: &Cluster,
) -> Option<&'a NodeInfo> {
    if let [only] = feasible {
        return Some(only);
    }
    let promised = cluster.nomination(uid(&wanted.pod));
    if let Some(node) = feasible.iter().find(|node| Some(node.name()) == promised) {
        return Some(node);
    }
    let scores = scores(wanted, feasible, nodes, &cluster.namespaces);
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let equals: Vec<&NodeInfo> =
        feasible.iter().zip(&scores).filter(|(_, points)| **points >= top).map(|(node, _)| *node).collect();
    // Among equals by chance, so that nodes fill evenly.
    equals.choose(&mut rand::rng()).copied()
}

fn nowhere(
    wanted: &Placed,
    cluster: &Cluster,
    needs: &Needs,
    budgets: &[Arc<PodDisruptionBudget>],
    unfits: &[(String, Vec<Unfit>)],
    preempting: bool,
) -> Decision {
    let all = || unfits.iter().flat_map(|(_, why)| why);
    let mut message =
        format!("0/{} nodes are available: {}.", unfits.len(), counted(all().map(|unfit| unfit.reason.as_str())));
    let mut causes = Causes::default();
    all().for_each(|unfit| causes.add(unfit.cause));
    // A node that changes, or a new one, may do whatever the trouble was.
    causes.add(Cause::Node);
    let (mut preemption, mut promise_broken) = (None, false);
    if !preempting {
        match preempt::choose(wanted, cluster, needs, budgets, unfits) {
            Ok(chosen) => preemption = Some(chosen),
            Err(why) => {
                promise_broken = why.starts_with("0/") && cluster.nomination(uid(&wanted.pod)).is_some();
                message.push_str(&format!(" preemption: {why}"));
            }
        }
    }
    Decision::Wait { message, causes, preemption, promise_broken }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use mussel_client::Informer;
    use serde_json::json;

    use super::*;

    fn pod(name: &str, priority: i32, cpu: &str) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": name, "uid": name}, "spec": {"priority": priority,
            "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn told(cluster: &Cluster, pod: Arc<Pod>) -> String {
        let volumes = Volumes::over(Informer::fixed([]), Informer::fixed([]), Informer::fixed([]));
        match decide(&Placed::new(pod), cluster, &volumes, &[], false) {
            Decision::Bind { node, .. } => node,
            Decision::Wait { message, preemption, .. } => match preemption {
                Some(preemption) => format!("{message} ({} leave {})", preemption.victims.len(), preemption.node),
                None => message,
            },
        }
    }

    #[test]
    fn what_the_user_is_told() {
        let mut cluster = Cluster::default();
        assert_eq!(told(&cluster, pod("p", 0, "1")), "no nodes available to schedule pods");
        let node = json!({"metadata": {"name": "a"}, "status": {"allocatable": {"cpu": "2", "pods": "9"}}});
        cluster.set_node(Arc::new(serde_json::from_value(node).unwrap()));
        assert_eq!(told(&cluster, pod("p", 0, "1")), "a");
        cluster.place(pod("other", 0, "1500m"), "a");
        assert_eq!(
            told(&cluster, pod("p", 0, "1")),
            "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: \
             1 No preemption victims found for incoming pod."
        );
        assert_eq!(told(&cluster, pod("p", 9, "1")), "0/1 nodes are available: 1 Insufficient cpu. (1 leave a)");
        cluster.take_away("other");
        cluster.nominate(pod("q", 5, "1500m"), "a");
        assert_eq!(told(&cluster, pod("q", 5, "1500m")), "a");
        assert_eq!(told(&cluster, pod("p", 9, "1")), "a", "more important than q");
        assert!(told(&cluster, pod("p", 1, "1")).contains("1 Insufficient cpu"), "the room is promised to q");
    }
}
