//! Label selectors, node selectors, affinity, tolerations, spreading.

use std::collections::HashSet;

use super::cursor::Field;
use super::meta::{label_name, labels};
use crate::field::{FieldError, FieldErrors};
use crate::names;

pub fn label_selector(selector: &Field<'_>) -> FieldErrors {
    let mut errors = labels(&selector.get("matchLabels"));
    for expression in selector.list("matchExpressions") {
        let (operator, values) = (expression.get("operator"), expression.get("values"));
        match operator.text() {
            "In" | "NotIn" if values.is_zero() => {
                errors.push(values.required("must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "Exists" | "DoesNotExist" if !values.is_zero() => {
                errors.push(values.forbidden("may not be specified when `operator` is 'Exists' or 'DoesNotExist'"));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => (),
            _ => errors.push(operator.invalid("not a valid selector operator")),
        }
        errors.extend(label_name(&expression.path.child("key"), expression.get("key").text()));
        for value in values.items() {
            errors.extend(value.each_invalid(names::is_label_value(value.text())));
        }
    }
    errors
}

fn node_requirement(requirement: &Field<'_>) -> FieldErrors {
    let (operator, values) = (requirement.get("operator"), requirement.get("values"));
    let mut errors = Vec::new();
    match operator.text() {
        "In" | "NotIn" if values.is_zero() => {
            errors.push(values.required("must be specified when `operator` is 'In' or 'NotIn'"));
        }
        "Exists" | "DoesNotExist" if !values.is_zero() => {
            errors.push(values.forbidden("may not be specified when `operator` is 'Exists' or 'DoesNotExist'"));
        }
        "Gt" | "Lt" if values.count() != 1 => {
            errors.push(values.required("must be specified single value when `operator` is 'Lt' or 'Gt'"));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => (),
        _ => errors.push(operator.invalid("not a valid selector operator")),
    }
    errors.extend(label_name(&requirement.path.child("key"), requirement.get("key").text()));
    if matches!(operator.text(), "In" | "NotIn") {
        for value in values.items() {
            errors.extend(value.each_invalid(names::is_label_value(value.text())));
        }
    }
    errors
}

fn node_term(term: &Field<'_>) -> FieldErrors {
    let mut errors: FieldErrors = term.list("matchExpressions").iter().flat_map(node_requirement).collect();
    for requirement in term.list("matchFields") {
        let (key, operator, values) = (requirement.get("key"), requirement.get("operator"), requirement.get("values"));
        match operator.text() {
            "In" | "NotIn" if values.count() != 1 => {
                errors.push(
                    values
                        .required("must be only one value when `operator` is 'In' or 'NotIn' for node field selector"),
                );
            }
            "In" | "NotIn" => (),
            _ => errors.push(operator.invalid("not a valid selector operator")),
        }
        if key.text() == "metadata.name" {
            for value in values.items() {
                errors.extend(value.each_invalid(names::is_dns1123_subdomain(value.text())));
            }
        } else {
            errors.push(key.invalid("not a valid field selector key"));
        }
    }
    errors
}

pub fn node_selector(selector: &Field<'_>) -> FieldErrors {
    let terms = selector.get("nodeSelectorTerms");
    if terms.is_zero() {
        return vec![terms.required("must have at least one node selector term")];
    }
    terms.items().iter().flat_map(node_term).collect()
}

fn weight(holder: &Field<'_>) -> FieldErrors {
    let weight = holder.get("weight");
    match weight.int().unwrap_or_default() {
        1..=100 => Vec::new(),
        _ => vec![FieldError::invalid(&weight.path, weight.int().unwrap_or_default(), "must be in the range 1-100")],
    }
}

fn pod_affinity_term(term: &Field<'_>) -> FieldErrors {
    let mut errors = label_selector(&term.get("labelSelector"));
    errors.extend(label_selector(&term.get("namespaceSelector")));
    for namespace in term.list("namespaces") {
        errors.extend(namespace.each_invalid(names::is_dns1123_label(namespace.text())));
    }
    let key = term.get("topologyKey");
    if key.is_zero() {
        errors.push(key.required("can not be empty"));
    }
    errors.extend(label_name(&key.path, key.text()));
    errors
}

pub fn affinity(affinity: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    let node = affinity.get("nodeAffinity");
    let required = node.get("requiredDuringSchedulingIgnoredDuringExecution");
    if required.is_present() {
        errors.extend(node_selector(&required));
    }
    for preferred in node.list("preferredDuringSchedulingIgnoredDuringExecution") {
        errors.extend(weight(&preferred));
        errors.extend(node_term(&preferred.get("preference")));
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let rules = affinity.get(kind);
        for term in rules.list("requiredDuringSchedulingIgnoredDuringExecution") {
            errors.extend(pod_affinity_term(&term));
        }
        for preferred in rules.list("preferredDuringSchedulingIgnoredDuringExecution") {
            errors.extend(weight(&preferred));
            errors.extend(pod_affinity_term(&preferred.get("podAffinityTerm")));
        }
    }
    errors
}

pub const TAINT_EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

pub fn tolerations(list: &[Field<'_>]) -> FieldErrors {
    let mut errors = Vec::new();
    for toleration in list {
        let (key, operator) = (toleration.get("key"), toleration.get("operator"));
        let (value, effect) = (toleration.get("value"), toleration.get("effect"));
        if !key.is_zero() {
            errors.extend(label_name(&key.path, key.text()));
        }
        if key.is_zero() && operator.text() != "Exists" {
            errors.push(FieldError::invalid(
                &operator.path,
                operator.text(),
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ));
        }
        if toleration.get("tolerationSeconds").is_present() && effect.text() != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(&effect.path, effect.text(), detail));
        }
        match operator.text() {
            "" | "Equal" => {
                let messages = names::is_label_value(value.text());
                if !messages.is_empty() {
                    errors.push(FieldError::invalid(&operator.path, value.text(), messages.join(";")));
                }
            }
            "Exists" => {
                if !value.is_zero() {
                    let detail = "value must be empty when `operator` is 'Exists'";
                    errors.push(FieldError::invalid(&operator.path, toleration.value.clone(), detail));
                }
            }
            _ => errors.push(operator.not_supported(&["Equal", "Exists"])),
        }
        errors.extend(effect.none_or_one_of(&TAINT_EFFECTS));
    }
    errors
}

pub fn topology_spread(list: &[Field<'_>]) -> FieldErrors {
    let mut errors = Vec::new();
    let mut seen = HashSet::new();
    for constraint in list {
        let skew = constraint.get("maxSkew");
        if skew.int().unwrap_or_default() <= 0 {
            errors.push(FieldError::invalid(&skew.path, skew.int().unwrap_or_default(), "must be greater than zero"));
        }
        let key = constraint.get("topologyKey");
        if key.is_zero() {
            errors.push(key.required("can not be empty"));
        } else {
            errors.extend(label_name(&key.path, key.text()));
        }
        let unsatisfiable = constraint.get("whenUnsatisfiable");
        errors.extend(unsatisfiable.one_of(&["DoNotSchedule", "ScheduleAnyway"]));
        if !seen.insert((key.text(), unsatisfiable.text())) {
            let pair = format!("{{{}, {}}}", key.text(), unsatisfiable.text());
            errors.push(FieldError::duplicate(&constraint.path.child("{topologyKey, whenUnsatisfiable}"), pair));
        }
        let domains = constraint.get("minDomains");
        if domains.is_present() {
            errors.extend(domains.positive());
            if unsatisfiable.text() != "DoNotSchedule" {
                let detail =
                    format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {}", unsatisfiable.text());
                errors.push(domains.invalid(detail));
            }
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            errors.extend(constraint.get(policy).none_or_one_of(&["Honor", "Ignore"]));
        }
        errors.extend(label_selector(&constraint.get("labelSelector")));
    }
    errors
}
