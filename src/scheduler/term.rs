//! Terms of affinity between pods, made ready to be asked often.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector as LabelSelectorSpec, LabelSelectorRequirement};
use mussel_api::selector::LabelSelector;

/// The labels of each namespace.
pub type Namespaces = HashMap<String, BTreeMap<String, String>>;

/// "Near to, or far from, pods like these", near being the same value of the node label `key`.
#[derive(Clone, Debug)]
pub struct Term {
    pub key: String,
    namespaces: Vec<String>,
    namespace_selector: Option<LabelSelector>,
    selector: LabelSelector,
}

impl Term {
    fn new(term: &PodAffinityTerm, of: &Pod) -> Self {
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.extend(of.metadata.namespace.clone());
        }
        let namespace_selector = term.namespace_selector.as_ref().map(selector);
        let spec = term.label_selector.as_ref().map(|spec| {
            let same = with_keys(spec, term.match_label_keys.as_deref(), "In", of);
            with_keys(&same, term.mismatch_label_keys.as_deref(), "NotIn", of)
        });
        Self {
            key: term.topology_key.clone(),
            namespaces,
            namespace_selector,
            selector: spec.as_ref().map_or_else(LabelSelector::nothing, selector),
        }
    }

    /// Whether `other` is one of the pods that the term is about.
    pub fn means(&self, other: &Pod, namespaces: &Namespaces) -> bool {
        let namespace = other.metadata.namespace.as_deref().unwrap_or_default();
        let in_namespace = self.namespaces.iter().any(|name| name == namespace)
            || self
                .namespace_selector
                .as_ref()
                .is_some_and(|selector| selector.matches_map(namespaces.get(namespace).unwrap_or(&BTreeMap::new())));
        in_namespace && self.selector.matches_map(labels(other))
    }
}

/// All that a pod says about other pods. Few pods say anything.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    pub required: Vec<Term>,
    pub forbidden: Vec<Term>,
    /// Negative weights are dislikes.
    pub preferred: Vec<(i64, Term)>,
}

impl Terms {
    pub fn of(pod: &Pod) -> Option<Box<Self>> {
        let affinity = pod.spec.as_ref()?.affinity.as_ref()?;
        let (near, far) = (affinity.pod_affinity.as_ref(), affinity.pod_anti_affinity.as_ref());
        let required = near.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
        let forbidden = far.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
        let liked = near.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
        let disliked = far.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
        let liked = liked.into_iter().flatten().map(|term| (1, term));
        let disliked = disliked.into_iter().flatten().map(|term| (-1, term));
        let terms = Self {
            required: required.into_iter().flatten().map(|term| Term::new(term, pod)).collect(),
            forbidden: forbidden.into_iter().flatten().map(|term| Term::new(term, pod)).collect(),
            preferred: liked
                .chain(disliked)
                .map(|(sign, term)| (sign * i64::from(term.weight), Term::new(&term.pod_affinity_term, pod)))
                .collect(),
        };
        let empty = terms.required.is_empty() && terms.forbidden.is_empty() && terms.preferred.is_empty();
        (!empty).then(|| Box::new(terms))
    }
}

/// A selector that does not parse was refused by the API server; here it selects nothing.
pub fn selector(spec: &LabelSelectorSpec) -> LabelSelector {
    LabelSelector::from_spec(spec).unwrap_or_else(|_| LabelSelector::nothing())
}

/// The selector narrowed by the pod's own values of `keys` (KEP-3243, KEP-3633).
pub fn with_keys(spec: &LabelSelectorSpec, keys: Option<&[String]>, operator: &str, of: &Pod) -> LabelSelectorSpec {
    let mut spec = spec.clone();
    for key in keys.unwrap_or_default() {
        let Some(value) = labels(of).get(key) else { continue };
        spec.match_expressions.get_or_insert_default().push(LabelSelectorRequirement {
            key: key.clone(),
            operator: operator.to_owned(),
            values: Some(vec![value.clone()]),
        });
    }
    spec
}

pub fn labels(pod: &Pod) -> &BTreeMap<String, String> {
    const NONE: &BTreeMap<String, String> = &BTreeMap::new();
    pod.metadata.labels.as_ref().unwrap_or(NONE)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(namespace: &str, labels: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"namespace": namespace, "labels": labels}})).unwrap()
    }

    fn means(term: Value, other: &Pod) -> bool {
        let term: PodAffinityTerm = serde_json::from_value(term).unwrap();
        let namespaces = Namespaces::from([("shop".to_owned(), [("team".to_owned(), "red".to_owned())].into())]);
        Term::new(&term, &pod("own", json!({"app": "web", "hash": "1"}))).means(other, &namespaces)
    }

    #[test]
    fn terms_look_into_the_namespaces_they_name() {
        let all = json!({"app": "web"});
        let term = |more: Value| {
            let mut term = json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "web"}}});
            term.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            term
        };
        for (more, namespace, expected) in [
            (json!({}), "own", true),
            (json!({}), "shop", false),
            (json!({"namespaces": ["shop"]}), "shop", true),
            (json!({"namespaces": ["shop"]}), "own", false),
            (json!({"namespaceSelector": {}}), "unheard-of", true),
            (json!({"namespaceSelector": {"matchLabels": {"team": "red"}}}), "shop", true),
            (json!({"namespaceSelector": {"matchLabels": {"team": "red"}}}), "own", false),
            (json!({"namespaceSelector": {"matchLabels": {"team": "red"}}, "namespaces": ["own"]}), "own", true),
        ] {
            assert_eq!(means(term(more.clone()), &pod(namespace, all.clone())), expected, "{more} {namespace}");
        }
        let other = |hash: &str| pod("own", json!({"app": "web", "hash": hash}));
        assert!(means(term(json!({"matchLabelKeys": ["hash"]})), &other("1")));
        assert!(!means(term(json!({"matchLabelKeys": ["hash"]})), &other("2")));
        assert!(!means(term(json!({"mismatchLabelKeys": ["hash"]})), &other("1")));
        assert!(!means(json!({"topologyKey": "zone"}), &pod("own", all)), "no selector means nobody");
    }
}
