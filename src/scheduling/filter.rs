//! Why a node will not do for a pod, in upstream's words. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration};

use crate::affinity::Affinity;
use crate::cluster::{NodeInfo, Placed};

/// Why not. Preemption helps only against what other pods take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    pub reason: String,
    pub preemption_may_help: bool,
}

fn never(reason: impl Into<String>) -> Vec<Unfit> {
    vec![Unfit { reason: reason.into(), preemption_may_help: false }]
}

fn occupied(reason: impl Into<String>) -> Unfit {
    Unfit { reason: reason.into(), preemption_may_help: true }
}

/// Empty when the node will do. Filters stop at the first that objects, as upstream's do.
pub fn unfit(wanted: &Placed, node: &NodeInfo, affinity: &Affinity) -> Vec<Unfit> {
    let pod = &wanted.pod;
    let spec = pod.spec.clone().unwrap_or_default();
    let node_spec = node.node.as_ref().and_then(|node| node.spec.clone()).unwrap_or_default();
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let unschedulable = Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    };
    if node_spec.unschedulable == Some(true) && !tolerated(&unschedulable, tolerations) {
        return never("node(s) were unschedulable");
    }
    if let Some(taint) = node_spec
        .taints
        .iter()
        .flatten()
        .find(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute") && !tolerated(taint, tolerations))
    {
        let value = taint.value.as_deref().unwrap_or_default();
        return never(format!("node(s) had untolerated taint {{{}: {value}}}", taint.key));
    }
    if !matches_node(pod, node) {
        return never("node(s) didn't match Pod's node affinity/selector");
    }
    let ports_clash = wanted
        .host_ports
        .iter()
        .any(|port| node.pods.values().any(|placed| placed.host_ports.iter().any(|taken| taken.clashes(port))));
    if ports_clash {
        return vec![occupied("node(s) didn't have free ports for the requested pod ports")];
    }
    let short = shortages(wanted, node);
    if !short.is_empty() {
        return short;
    }
    affinity.unfit(node).into_iter().collect()
}

fn shortages(wanted: &Placed, node: &NodeInfo) -> Vec<Unfit> {
    let mut short = Vec::new();
    let pods = i64::try_from(node.pods.len()).unwrap_or(i64::MAX);
    if pods + 1 > node.allocatable.get("pods") {
        short.push(occupied("Too many pods"));
    }
    for (name, amount) in wanted.requests.iter().filter(|(_, amount)| *amount > 0) {
        let allocatable = node.allocatable.get(name);
        if amount > allocatable - node.requested.get(name) {
            let reason = format!("Insufficient {name}");
            // More than the node has at all: nobody's leaving would help.
            short.push(Unfit { reason, preemption_may_help: amount <= allocatable });
        }
    }
    short
}

/// KEP-166's rules: an empty key tolerates all keys, an empty effect all effects.
pub fn tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    tolerations.iter().any(|toleration| {
        let effect = toleration.effect.as_deref().unwrap_or_default();
        let key = toleration.key.as_deref().unwrap_or_default();
        let exists = toleration.operator.as_deref() == Some("Exists");
        let same_value = toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default();
        (effect.is_empty() || effect == taint.effect)
            && ((key.is_empty() && exists) || (key == taint.key && (exists || same_value)))
    })
}

/// `nodeSelector` and required node affinity.
pub fn matches_node(pod: &Pod, node: &NodeInfo) -> bool {
    let Some(spec) = &pod.spec else { return true };
    let empty = BTreeMap::new();
    let labels = node.labels().unwrap_or(&empty);
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|selector| matches_selector(selector, node))
}

/// Any of the terms; a selector without terms matches nothing.
pub fn matches_selector(selector: &NodeSelector, node: &NodeInfo) -> bool {
    selector.node_selector_terms.iter().any(|term| matches_term(term, node))
}

pub fn matches_term(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let label = |key: &str| node.labels().and_then(|labels| labels.get(key)).map(String::as_str);
    let field = |key: &str| (key == "metadata.name").then(|| node.name());
    expressions.iter().all(|requirement| holds(requirement, label(&requirement.key)))
        && fields.iter().all(|requirement| holds(requirement, field(&requirement.key)))
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let among = |value: &str| values.iter().any(|candidate| candidate == value);
    let number = |text: &str| text.parse::<i64>().ok();
    let bound = values.first().and_then(|text| number(text));
    match requirement.operator.as_str() {
        "In" => value.is_some_and(among),
        "NotIn" => !value.is_some_and(among),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => value.and_then(number).zip(bound).is_some_and(|(value, bound)| value > bound),
        "Lt" => value.and_then(number).zip(bound).is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

/// `0/3 nodes are available: 1 Insufficient cpu, 2 Too many pods.`
pub fn message(nodes: usize, unfits: &[Vec<Unfit>]) -> String {
    if nodes == 0 {
        return "no nodes available to schedule pods".to_owned();
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for unfit in unfits.iter().flatten() {
        *counts.entry(&unfit.reason).or_default() += 1;
    }
    let mut reasons: Vec<String> = counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    reasons.sort();
    format!("0/{nodes} nodes are available: {}.", reasons.join(", "))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::Cluster;

    fn node(spec: Value, labels: Value) -> Cluster {
        let mut cluster = Cluster::default();
        let node = json!({"metadata": {"name": "a", "labels": labels}, "spec": spec,
            "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "2"}}});
        cluster.set_node(Arc::new(serde_json::from_value(node).unwrap()));
        cluster
    }

    fn pod(name: &str, spec: Value) -> Arc<Pod> {
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name, "uid": name}, "spec": spec})).unwrap())
    }

    fn reasons(cluster: &Cluster, spec: Value) -> Vec<String> {
        let wanted = Placed::new(pod("wanted", spec));
        let affinity = Affinity::new(&wanted.pod, cluster);
        unfit(&wanted, &cluster.nodes["a"], &affinity).into_iter().map(|unfit| unfit.reason).collect()
    }

    #[test]
    fn each_filter_objects_in_upstreams_words() {
        let plain = node(json!({}), json!({"disk": "ssd"}));
        assert_eq!(reasons(&plain, json!({"containers": []})), Vec::<String>::new());
        let asks = |cpu: &str| json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]});
        assert_eq!(reasons(&plain, asks("3")), ["Insufficient cpu"]);
        assert_eq!(
            reasons(&plain, json!({"nodeSelector": {"disk": "hdd"}, "containers": []})),
            ["node(s) didn't match Pod's node affinity/selector"]
        );
        let cordoned = node(json!({"unschedulable": true}), json!({}));
        assert_eq!(reasons(&cordoned, json!({"containers": []})), ["node(s) were unschedulable"]);
        let tainted = node(json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}), json!({}));
        assert_eq!(reasons(&tainted, json!({"containers": []})), ["node(s) had untolerated taint {k: v}"]);
        let tolerating = json!({"containers": [], "tolerations": [{"key": "k", "operator": "Exists"}]});
        assert_eq!(reasons(&tainted, tolerating), Vec::<String>::new());
    }

    #[test]
    fn pods_take_room_and_ports() {
        let mut cluster = node(json!({}), json!({}));
        let with_port = json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}],
            "resources": {"requests": {"cpu": "1500m"}}}]});
        cluster.place(pod("first", with_port.clone()), "a");
        assert_eq!(reasons(&cluster, with_port), ["node(s) didn't have free ports for the requested pod ports"]);
        let asks = json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]});
        assert_eq!(reasons(&cluster, asks), ["Insufficient cpu"]);
        cluster.place(pod("second", json!({"containers": []})), "a");
        assert_eq!(reasons(&cluster, json!({"containers": []})), ["Too many pods"]);
        cluster.take_away("second");
        assert_eq!(reasons(&cluster, json!({"containers": []})), Vec::<String>::new());
    }

    #[test]
    fn affinity_terms_use_labels_and_names() {
        let cluster = node(json!({}), json!({"gen": "7"}));
        let with = |term: Value| {
            json!({"containers": [], "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                {"nodeSelectorTerms": [term]}}}})
        };
        let expression = |op: &str, values: Value| {
            with(json!({"matchExpressions": [{"key": "gen", "operator": op, "values": values}]}))
        };
        assert!(reasons(&cluster, expression("Gt", json!(["6"]))).is_empty());
        assert!(!reasons(&cluster, expression("Lt", json!(["6"]))).is_empty());
        assert!(!reasons(&cluster, expression("DoesNotExist", json!([]))).is_empty());
        let field =
            |name: &str| with(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]}));
        assert!(reasons(&cluster, field("a")).is_empty());
        assert!(!reasons(&cluster, field("b")).is_empty());
    }

    #[test]
    fn the_message_counts_reasons() {
        let unfits = [
            vec![occupied("Insufficient cpu")],
            never("node(s) were unschedulable"),
            vec![occupied("Insufficient cpu")],
        ];
        assert_eq!(message(3, &unfits), "0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient cpu.");
        assert_eq!(message(0, &[]), "no nodes available to schedule pods");
    }
}
