//! Disruption budgets and autoscalers.

use serde_json::Value;

use super::cursor::Field;
use super::selector::label_selector;
use super::workload::{at_most_all, int_or_percent};
use crate::field::{FieldError, FieldErrors};
use crate::names;

pub fn pod_disruption_budget_create(budget: &Value) -> FieldErrors {
    let spec = Field::root(budget).get("spec");
    let (least, most) = (spec.get("minAvailable"), spec.get("maxUnavailable"));
    let mut errors = Vec::new();
    if least.is_present() && most.is_present() {
        errors.push(spec.invalid("minAvailable and maxUnavailable cannot be both set"));
    }
    for field in [least, most] {
        if field.is_present() {
            errors.extend(int_or_percent(&field));
            errors.extend(at_most_all(&field));
        }
    }
    errors.extend(label_selector(&spec.get("selector")));
    errors.extend(spec.get("unhealthyPodEvictionPolicy").none_or_one_of(&["AlwaysAllow", "IfHealthyBudget"]));
    errors
}

pub fn pod_disruption_budget_update(new: &Value, _old: &Value) -> FieldErrors {
    pod_disruption_budget_create(new)
}

pub fn pod_disruption_budget_status(new: &Value, _old: &Value) -> FieldErrors {
    let status = Field::root(new).get("status");
    const COUNTS: [&str; 4] = ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"];
    COUNTS.iter().flat_map(|field| status.get(field).non_negative()).collect()
}

pub fn horizontal_pod_autoscaler_create(autoscaler: &Value) -> FieldErrors {
    let spec = Field::root(autoscaler).get("spec");
    let (least, most) = (spec.get("minReplicas"), spec.get("maxReplicas"));
    let mut errors = Vec::new();
    if least.int().is_some_and(|replicas| replicas < 1) {
        errors.push(least.invalid("must be greater than or equal to 1"));
    }
    let max = most.int().unwrap_or_default();
    if max < 1 {
        errors.push(FieldError::invalid(&most.path, max, "must be greater than 0"));
    }
    if least.int().is_some_and(|least| max < least) {
        errors.push(FieldError::invalid(&most.path, max, "must be greater than or equal to `minReplicas`"));
    }
    let target = spec.get("scaleTargetRef");
    for field in ["kind", "name"] {
        let field = target.get(field);
        if field.is_zero() {
            errors.push(field.required(""));
        } else {
            errors.extend(field.each_invalid(names::is_path_segment_name(field.text())));
        }
    }
    for metric in spec.list("metrics") {
        errors.extend(metric_source(&metric));
    }
    let behavior = spec.get("behavior");
    for direction in ["scaleUp", "scaleDown"] {
        let rules = behavior.get(direction);
        if rules.is_present() {
            errors.extend(scaling_rules(&rules));
        }
    }
    errors
}

fn metric_source(metric: &Field<'_>) -> FieldErrors {
    const TYPES: [(&str, &str); 5] = [
        ("ContainerResource", "containerResource"),
        ("External", "external"),
        ("Object", "object"),
        ("Pods", "pods"),
        ("Resource", "resource"),
    ];
    let kind = metric.get("type");
    let names: Vec<&str> = TYPES.iter().map(|(name, _)| *name).collect();
    let mut errors = Vec::new();
    if kind.is_zero() {
        errors.push(kind.required("must specify a metric source type"));
        return errors;
    }
    let Some((_, field)) = TYPES.iter().find(|(name, _)| *name == kind.text()) else {
        return vec![kind.not_supported(&names)];
    };
    let source = metric.get(field);
    if source.is_absent() {
        return vec![source.required("must populate information for the given metric source")];
    }
    if matches!(*field, "resource" | "containerResource") {
        errors.extend(source.get("name").not_empty());
    }
    let target = source.get("target");
    errors.extend(target.get("type").one_of(&["AverageValue", "Utilization", "Value"]));
    let utilization = target.get("averageUtilization");
    if utilization.int().is_some_and(|percent| percent < 1) {
        errors.push(utilization.invalid("must be greater than 0"));
    }
    errors
}

fn scaling_rules(rules: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    let window = rules.get("stabilizationWindowSeconds");
    errors.extend(window.non_negative());
    if window.int().is_some_and(|seconds| seconds > 3600) {
        errors.push(window.invalid("must be less than or equal to 3600"));
    }
    errors.extend(rules.get("selectPolicy").none_or_one_of(&["Disabled", "Max", "Min"]));
    let policies = rules.get("policies");
    if policies.is_zero() {
        errors.push(policies.required("must specify at least one Policy"));
    }
    for policy in policies.items() {
        errors.extend(policy.get("type").one_of(&["Percent", "Pods"]));
        errors.extend(policy.get("value").positive());
        let period = policy.get("periodSeconds");
        errors.extend(period.positive());
        if period.int().is_some_and(|seconds| seconds > 1800) {
            errors.push(period.invalid("must be less than or equal to 1800"));
        }
    }
    errors
}

pub fn horizontal_pod_autoscaler_update(new: &Value, _old: &Value) -> FieldErrors {
    horizontal_pod_autoscaler_create(new)
}
