//! Why a node will not do for a pod, in upstream's words. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration};

use crate::affinity::Affinity;
use crate::cluster::{NodeInfo, Placed};
use crate::spread::Spread;
use crate::term::Namespaces;
use crate::volumes::Needs;

/// What must change before the answer can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The node itself.
    Node,
    /// What the node has left.
    Room,
    /// Who else is where.
    Neighbours,
    Volumes,
}

/// A set of causes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Causes(u8);

impl Causes {
    pub const fn of(causes: &[Cause]) -> Self {
        let (mut set, mut index) = (0, 0);
        while index < causes.len() {
            set |= 1 << causes[index] as u8;
            index += 1;
        }
        Self(set)
    }

    pub fn add(&mut self, cause: Cause) {
        self.0 |= 1 << cause as u8;
    }

    pub fn meet(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// Why not. Preemption helps only against what other pods take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    pub reason: String,
    pub preemption_may_help: bool,
    pub cause: Cause,
}

impl Unfit {
    pub fn never(reason: impl Into<String>, cause: Cause) -> Self {
        Self { reason: reason.into(), preemption_may_help: false, cause }
    }

    pub fn taken(reason: impl Into<String>, cause: Cause) -> Self {
        Self { reason: reason.into(), preemption_may_help: true, cause }
    }
}

/// What a pod's place depends on beyond the node itself, worked out once for all nodes.
pub struct Rules<'a> {
    affinity: Affinity,
    spread: Spread,
    volumes: &'a Needs,
    /// Another pod has a claim that only one may have.
    claim_taken: bool,
}

impl<'a> Rules<'a> {
    pub fn new(wanted: &Placed, nodes: &[&NodeInfo], namespaces: &Namespaces, volumes: &'a Needs) -> Self {
        Self {
            affinity: Affinity::new(wanted, nodes, namespaces),
            spread: Spread::new(wanted, nodes),
            claim_taken: volumes.taken(&wanted.pod, nodes),
            volumes,
        }
    }
}

/// Empty when the node will do. Filters stop at the first that objects, as upstream's do.
pub fn unfit(wanted: &Placed, node: &NodeInfo, rules: &Rules<'_>) -> Vec<Unfit> {
    let pod = &wanted.pod;
    let never = |reason: &str| vec![Unfit::never(reason, Cause::Node)];
    if cordoned(pod, node) {
        return never("node(s) were unschedulable");
    }
    if untolerated(pod, node) {
        return never("node(s) had untolerated taint(s)");
    }
    if !matches_node(pod, node) {
        return never("node(s) didn't match Pod's node affinity/selector");
    }
    let ports_clash = wanted
        .host_ports
        .iter()
        .any(|port| node.pods.values().any(|placed| placed.host_ports.iter().any(|taken| taken.clashes(port))));
    if ports_clash {
        return vec![Unfit::taken("node(s) didn't have free ports for the requested pod ports", Cause::Room)];
    }
    let short = shortages(wanted, node);
    if !short.is_empty() {
        return short;
    }
    if rules.claim_taken {
        let reason = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
        return vec![Unfit::taken(reason, Cause::Room)];
    }
    let last = rules.volumes.unfit(node).or_else(|| rules.spread.unfit(node)).or_else(|| rules.affinity.unfit(node));
    last.into_iter().collect()
}

fn tolerations(pod: &Pod) -> &[Toleration] {
    pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default()
}

fn cordoned(pod: &Pod, node: &NodeInfo) -> bool {
    let spec = node.node.as_ref().and_then(|node| node.spec.as_ref());
    if spec.and_then(|spec| spec.unschedulable) != Some(true) {
        return false;
    }
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    };
    !tolerated(&taint, tolerations(pod))
}

/// Whether a taint keeps the pod off the node.
pub fn untolerated(pod: &Pod, node: &NodeInfo) -> bool {
    taints(node)
        .any(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute") && !tolerated(taint, tolerations(pod)))
}

/// How many taints would rather not have the pod on the node.
pub fn reluctance(pod: &Pod, node: &NodeInfo) -> usize {
    taints(node).filter(|taint| taint.effect == "PreferNoSchedule" && !tolerated(taint, tolerations(pod))).count()
}

fn taints(node: &NodeInfo) -> impl Iterator<Item = &Taint> {
    let spec = node.node.as_ref().and_then(|node| node.spec.as_ref());
    spec.into_iter().flat_map(|spec| spec.taints.iter().flatten())
}

fn shortages(wanted: &Placed, node: &NodeInfo) -> Vec<Unfit> {
    let mut short = Vec::new();
    let pods = i64::try_from(node.pods.len()).unwrap_or(i64::MAX);
    if pods + 1 > node.allocatable.get("pods") {
        short.push(Unfit::taken("Too many pods", Cause::Room));
    }
    for (name, amount) in wanted.requests.iter().filter(|(_, amount)| *amount > 0) {
        let allocatable = node.allocatable.get(name);
        if amount > allocatable - node.requested.get(name) {
            // More than the node has at all: nobody's leaving would help.
            let unfit = if amount <= allocatable { Unfit::taken } else { Unfit::never };
            short.push(unfit(format!("Insufficient {name}"), Cause::Room));
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
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| node.label(key) == Some(value));
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
    let field = |key: &str| (key == "metadata.name").then(|| node.name());
    expressions.iter().all(|requirement| holds(requirement, node.label(&requirement.key)))
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

/// `2 Insufficient cpu, 1 Too many pods`, sorted.
pub fn counted<'a>(reasons: impl Iterator<Item = &'a str>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    reasons.for_each(|reason| *counts.entry(reason).or_default() += 1);
    let mut counted: Vec<String> = counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    counted.sort();
    counted.join(", ")
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
        let nodes: Vec<_> = cluster.known().collect();
        let (namespaces, volumes) = (Namespaces::new(), Needs::default());
        let rules = Rules::new(&wanted, &nodes, &namespaces, &volumes);
        unfit(&wanted, nodes[0], &rules).into_iter().map(|unfit| unfit.reason).collect()
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
        assert_eq!(reasons(&tainted, json!({"containers": []})), ["node(s) had untolerated taint(s)"]);
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
    fn reasons_are_counted() {
        let reasons = ["Insufficient cpu", "node(s) were unschedulable", "Insufficient cpu"];
        assert_eq!(counted(reasons.into_iter()), "1 node(s) were unschedulable, 2 Insufficient cpu");
    }

    #[test]
    fn host_ports_clash_by_address_and_protocol() {
        let with = |ip: &str, protocol: &str| {
            json!({"containers": [{"name": "c", "ports":
                [{"containerPort": 80, "hostPort": 80, "hostIP": ip, "protocol": protocol}]}]})
        };
        let mut cluster = node(json!({}), json!({}));
        cluster.place(pod("first", with("127.0.0.1", "TCP")), "a");
        for (ip, protocol, free) in
            [("127.0.0.1", "TCP", false), ("", "TCP", false), ("127.0.0.2", "TCP", true), ("127.0.0.1", "UDP", true)]
        {
            assert_eq!(reasons(&cluster, with(ip, protocol)).is_empty(), free, "{ip} {protocol}");
        }
    }
}
