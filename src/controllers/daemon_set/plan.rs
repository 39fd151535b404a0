//! Which nodes a DaemonSet runs on, and the Pod it puts there. Pure.

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec};
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodTemplateSpec, Taint,
    Toleration,
};

use super::HASH;
use crate::node_lifecycle::tolerates;
use crate::owner::Owner;
use crate::pods;

/// Taints that daemons stand, because they are often what mends them. The last is for host-network Pods only.
const TOLERATED: [(&str, &str); 7] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
    ("node.kubernetes.io/network-unavailable", "NoSchedule"),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// A Pod should be started here.
    pub run: bool,
    /// A Pod that is here may stay.
    pub keep: bool,
}

pub fn fit(template: &PodTemplateSpec, node: &Node) -> Fit {
    let Some(spec) = &template.spec else { return Fit { run: false, keep: false } };
    let name = node.metadata.name.as_deref().unwrap_or_default();
    if spec.node_name.as_deref().is_some_and(|wanted| !wanted.is_empty() && wanted != name) {
        return Fit { run: false, keep: false };
    }
    let labels = node.metadata.labels.as_ref();
    let label = |key: &str| labels.and_then(|labels| labels.get(key)).map(String::as_str);
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| label(key) == Some(value));
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let affine = required
        .is_none_or(|selector| selector.node_selector_terms.iter().any(|term| term_matches(term, name, &label)));
    if !selected || !affine {
        return Fit { run: false, keep: false };
    }
    let tolerations = tolerations(template);
    let stands = |taint: &Taint| tolerations.iter().any(|toleration| tolerates(toleration, taint));
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    Fit {
        run: taints.iter().filter(|t| t.effect == "NoSchedule" || t.effect == "NoExecute").all(stands),
        keep: taints.iter().filter(|t| t.effect == "NoExecute").all(stands),
    }
}

fn term_matches<'a>(term: &NodeSelectorTerm, name: &'a str, label: &impl Fn(&str) -> Option<&'a str>) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        // An empty term selects nothing.
        return false;
    }
    expressions.iter().all(|r| requirement_matches(r, label(&r.key)))
        && fields.iter().all(|r| r.key == "metadata.name" && requirement_matches(r, Some(name)))
}

fn requirement_matches(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|v| v == value));
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
    let bound = number(values.first().map(String::as_str));
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => number(value).zip(bound).is_some_and(|(value, bound)| value > bound),
        "Lt" => number(value).zip(bound).is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

fn tolerations(template: &PodTemplateSpec) -> Vec<Toleration> {
    let spec = template.spec.clone().unwrap_or_default();
    let host = spec.host_network == Some(true);
    let mut all = spec.tolerations.unwrap_or_default();
    for (key, effect) in TOLERATED.iter().take(if host { 7 } else { 6 }) {
        let toleration = Toleration {
            key: Some((*key).to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some((*effect).to_owned()),
            ..Toleration::default()
        };
        if !all.contains(&toleration) {
            all.push(toleration);
        }
    }
    all
}

/// The Pod for one node: the scheduler binds it, but has no choice.
pub fn pod_for(set: &DaemonSet, spec: &DaemonSetSpec, owner: &Owner, node: &str, hash: &str) -> Pod {
    let mut pod = pods::from_template(&spec.template, &owner.reference(), &owner.namespace);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(HASH.to_owned(), hash.to_owned());
    if let Some(generation) = set.metadata.generation {
        labels.insert("pod-template-generation".to_owned(), generation.to_string());
    }
    let pod_spec = pod.spec.get_or_insert_default();
    pod_spec.tolerations = Some(tolerations(&spec.template));
    let affinity: &mut NodeAffinity =
        pod_spec.affinity.get_or_insert_with(Affinity::default).node_affinity.get_or_insert_default();
    let term = NodeSelectorTerm {
        match_fields: Some(vec![NodeSelectorRequirement {
            key: "metadata.name".to_owned(),
            operator: "In".to_owned(),
            values: Some(vec![node.to_owned()]),
        }]),
        match_expressions: None,
    };
    affinity.required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![term] });
    pod
}

/// The node a daemon Pod is on or for.
pub fn target_node(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    if let Some(node) = spec.node_name.clone().filter(|node| !node.is_empty()) {
        return Some(node);
    }
    let required = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &required.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let fields = terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    fields.filter(|field| field.key == "metadata.name").find_map(|field| field.values.as_ref()?.first().cloned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(spec: serde_json::Value) -> PodTemplateSpec {
        serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap()
    }

    fn node(taints: serde_json::Value) -> Node {
        serde_json::from_value(
            json!({"metadata": {"name": "n", "labels": {"disk": "ssd", "size": "5"}}, "spec": {"taints": taints}}),
        )
        .unwrap()
    }

    #[test]
    fn nodes_fit_by_selector_affinity_and_taints() {
        let term = |key: &str, operator: &str, value: &str| {
            json!({"containers": [], "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                {"nodeSelectorTerms": [{"matchExpressions": [{"key": key, "operator": operator, "values": [value]}]}]}}}})
        };
        let sick = json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"},
            {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]);
        let own = |effect: &str| json!([{"key": "own", "effect": effect}]);
        for (spec, taints, run, keep) in [
            (json!({"containers": []}), json!([]), true, true),
            (json!({"containers": [], "nodeSelector": {"disk": "hdd"}}), json!([]), false, false),
            (term("disk", "In", "ssd"), json!([]), true, true),
            (term("disk", "NotIn", "ssd"), json!([]), false, false),
            (term("size", "Gt", "4"), json!([]), true, true),
            (json!({"containers": []}), sick, true, true),
            (json!({"containers": []}), own("NoSchedule"), false, true),
            (json!({"containers": []}), own("NoExecute"), false, false),
            (json!({"containers": []}), own("PreferNoSchedule"), true, true),
        ] {
            assert_eq!(fit(&template(spec.clone()), &node(taints.clone())), Fit { run, keep }, "{spec} {taints}");
        }
    }

    #[test]
    fn a_daemon_pod_is_for_one_node() {
        let set: DaemonSet = serde_json::from_value(json!({"metadata": {"name": "d", "namespace": "a", "uid": "u"},
            "spec": {"selector": {}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}}}}))
        .unwrap();
        let pod = pod_for(&set, set.spec.as_ref().unwrap(), &Owner::of(&set), "n", "h");
        assert_eq!(target_node(&pod).as_deref(), Some("n"));
        assert_eq!(pod.metadata.labels.unwrap()[HASH], "h");
        assert_eq!(pod.spec.unwrap().tolerations.unwrap().len(), 6);
    }
}
