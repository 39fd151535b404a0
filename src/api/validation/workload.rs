//! The kinds that keep pods running.

use serde_json::{Value, json};

use super::cursor::{Field, same};
use super::pod::pod_template;
use super::selector::label_selector;
use crate::field::{FieldError, FieldErrors};
use crate::names;
use crate::selector::LabelSelector;

/// A count, or a percentage with its sign; neither negative.
pub(super) fn int_or_percent(field: &Field<'_>) -> FieldErrors {
    match field.value {
        Value::String(text) => field.each_invalid(names::is_percent(text)),
        _ => field.non_negative(),
    }
}

fn percent(field: &Field<'_>) -> Option<i64> {
    field.value.as_str()?.strip_suffix('%')?.parse().ok()
}

pub(super) fn at_most_all(field: &Field<'_>) -> FieldErrors {
    match percent(field) {
        Some(number) if number > 100 => vec![field.invalid("must not be greater than 100%")],
        _ => Vec::new(),
    }
}

fn is_none_of_it(field: &Field<'_>) -> bool {
    percent(field).or(field.int()).unwrap_or_default() == 0
}

/// Selector and template of a workload whose pods run forever.
fn selector_and_template(spec: &Field<'_>, word: &str, plain_map: bool) -> FieldErrors {
    let (selector, template) = (spec.get("selector"), spec.get("template"));
    let mut errors = Vec::new();
    if selector.is_absent() {
        errors.push(selector.required(""));
    } else if plain_map {
        if selector.is_zero() {
            errors.push(selector.required(""));
        }
    } else {
        errors.extend(label_selector(&selector));
        if selector.is_zero() {
            errors.push(selector.invalid(format!("empty selector is invalid for {word}")));
        }
    }
    if template.is_absent() {
        errors.push(template.required(""));
        return errors;
    }
    errors.extend(selects(&selector, &template, plain_map));
    errors.extend(pod_template(&template));
    let policy = template.get("spec").get("restartPolicy");
    if policy.text() != "Always" {
        errors.push(policy.not_supported(&["Always"]));
    }
    let deadline = template.get("spec").get("activeDeadlineSeconds");
    if deadline.is_present() {
        let kind = if word == "daemonset" { "DaemonSet" } else { "ReplicaSet" };
        errors.push(deadline.forbidden(format!("activeDeadlineSeconds in {kind} is not Supported")));
    }
    errors
}

pub(super) fn selects(selector: &Field<'_>, template: &Field<'_>, plain_map: bool) -> FieldErrors {
    let labels = template.get("metadata").get("labels");
    let matched = if plain_map {
        selector.map().is_none_or(|s| s.iter().all(|(key, value)| labels.get(key).value == value))
    } else {
        // A malformed selector has been told already.
        LabelSelector::from_value(Some(selector.value))
            .map_or(true, |s| s.is_nothing() || s.is_empty() || s.matches(labels.map()))
    };
    if matched { Vec::new() } else { vec![labels.invalid("`selector` does not match template `labels`")] }
}

pub fn deployment_create(deployment: &Value) -> FieldErrors {
    let spec = Field::root(deployment).get("spec");
    let mut errors = spec.get("replicas").non_negative();
    errors.extend(selector_and_template(&spec, "deployment", false));
    errors.extend(deployment_strategy(&spec.get("strategy")));
    let (ready, deadline) = (spec.get("minReadySeconds"), spec.get("progressDeadlineSeconds"));
    errors.extend(ready.non_negative());
    errors.extend(spec.get("revisionHistoryLimit").non_negative());
    errors.extend(deadline.non_negative());
    if deadline.int().is_some_and(|seconds| seconds <= ready.int().unwrap_or_default()) {
        errors.push(deadline.invalid("must be greater than minReadySeconds"));
    }
    errors
}

fn deployment_strategy(strategy: &Field<'_>) -> FieldErrors {
    let rolling = strategy.get("rollingUpdate");
    match strategy.get("type").text() {
        "Recreate" if rolling.is_present() => {
            vec![rolling.forbidden("may not be specified when strategy `type` is 'Recreate'")]
        }
        "Recreate" => Vec::new(),
        "RollingUpdate" if rolling.is_absent() => {
            vec![rolling.required("this should be defaulted and never be nil")]
        }
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
            let mut errors = int_or_percent(&unavailable);
            errors.extend(int_or_percent(&surge));
            if is_none_of_it(&unavailable) && is_none_of_it(&surge) {
                errors.push(unavailable.invalid("may not be 0 when `maxSurge` is 0"));
            }
            errors.extend(at_most_all(&unavailable));
            errors
        }
        _ => vec![strategy.get("type").not_supported(&["Recreate", "RollingUpdate"])],
    }
}

fn immutable_selector(new: &Value, old: &Value) -> FieldErrors {
    let (spec, before) = (Field::root(new).get("spec"), Field::root(old).get("spec"));
    spec.get("selector").immutable(&before.get("selector"))
}

pub fn deployment_update(new: &Value, old: &Value) -> FieldErrors {
    let mut errors = deployment_create(new);
    errors.extend(immutable_selector(new, old));
    errors
}

fn counts_status(new: &Value, fields: &[&str]) -> FieldErrors {
    let status = Field::root(new).get("status");
    let mut errors: FieldErrors = fields.iter().flat_map(|field| status.get(field).non_negative()).collect();
    let replicas = status.get("replicas").int().unwrap_or_default();
    for field in ["fullyLabeledReplicas", "readyReplicas", "availableReplicas"] {
        let field = status.get(field);
        if field.int().is_some_and(|number| number > replicas) {
            errors.push(field.invalid("cannot be greater than status.replicas"));
        }
    }
    let (ready, available) = (status.get("readyReplicas"), status.get("availableReplicas"));
    if available.int().unwrap_or_default() > ready.int().unwrap_or_default() {
        errors.push(available.invalid("cannot be greater than readyReplicas"));
    }
    errors
}

const REPLICA_COUNTS: [&str; 6] =
    ["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration", "updatedReplicas"];

pub fn deployment_status(new: &Value, _old: &Value) -> FieldErrors {
    counts_status(new, &REPLICA_COUNTS)
}

pub fn replica_set_create(set: &Value) -> FieldErrors {
    let spec = Field::root(set).get("spec");
    let mut errors = spec.get("replicas").non_negative();
    errors.extend(spec.get("minReadySeconds").non_negative());
    errors.extend(selector_and_template(&spec, "deployment", false));
    errors
}

pub fn replica_set_update(new: &Value, old: &Value) -> FieldErrors {
    let mut errors = replica_set_create(new);
    errors.extend(immutable_selector(new, old));
    errors
}

pub fn replica_set_status(new: &Value, _old: &Value) -> FieldErrors {
    counts_status(new, &REPLICA_COUNTS)
}

pub fn replication_controller_create(controller: &Value) -> FieldErrors {
    let spec = Field::root(controller).get("spec");
    let mut errors = spec.get("minReadySeconds").non_negative();
    errors.extend(spec.get("replicas").non_negative());
    errors.extend(selector_and_template(&spec, "replicationcontroller", true));
    errors
}

pub fn replication_controller_update(new: &Value, _old: &Value) -> FieldErrors {
    replication_controller_create(new)
}

pub fn replication_controller_status(new: &Value, _old: &Value) -> FieldErrors {
    counts_status(new, &REPLICA_COUNTS)
}

pub fn daemon_set_create(set: &Value) -> FieldErrors {
    let spec = Field::root(set).get("spec");
    let mut errors = selector_and_template(&spec, "daemonset", false);
    errors.extend(spec.get("minReadySeconds").non_negative());
    let strategy = spec.get("updateStrategy");
    let rolling = strategy.get("rollingUpdate");
    match strategy.get("type").text() {
        "OnDelete" => (),
        "RollingUpdate" if rolling.is_absent() => errors.push(rolling.required("")),
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
            for field in [&unavailable, &surge] {
                errors.extend(int_or_percent(field));
                errors.extend(at_most_all(field));
            }
            match (is_none_of_it(&unavailable), is_none_of_it(&surge)) {
                (true, true) => errors.push(unavailable.required("cannot be 0 when maxSurge is 0")),
                (false, false) => errors.push(surge.invalid("may not be set when maxUnavailable is non-zero")),
                _ => (),
            }
        }
        _ => errors.push(strategy.get("type").not_supported(&["RollingUpdate", "OnDelete"])),
    }
    errors.extend(spec.get("revisionHistoryLimit").non_negative());
    errors
}

pub fn daemon_set_update(new: &Value, old: &Value) -> FieldErrors {
    let mut errors = daemon_set_create(new);
    errors.extend(immutable_selector(new, old));
    errors
}

pub fn daemon_set_status(new: &Value, _old: &Value) -> FieldErrors {
    const COUNTS: [&str; 9] = [
        "currentNumberScheduled",
        "numberMisscheduled",
        "desiredNumberScheduled",
        "numberReady",
        "observedGeneration",
        "updatedNumberScheduled",
        "numberAvailable",
        "numberUnavailable",
        "collisionCount",
    ];
    let status = Field::root(new).get("status");
    COUNTS.iter().flat_map(|field| status.get(field).non_negative()).collect()
}

pub fn stateful_set_create(set: &Value) -> FieldErrors {
    let spec = Field::root(set).get("spec");
    let mut errors = Vec::new();
    let management = spec.get("podManagementPolicy");
    match management.text() {
        "" => errors.push(management.required("")),
        "OrderedReady" | "Parallel" => (),
        _ => errors.push(management.invalid("must be 'OrderedReady' or 'Parallel'")),
    }
    let strategy = spec.get("updateStrategy");
    let (kind, rolling) = (strategy.get("type"), strategy.get("rollingUpdate"));
    match kind.text() {
        "" => errors.push(kind.required("")),
        "OnDelete" if rolling.is_present() => {
            errors.push(rolling.invalid("only allowed for updateStrategy 'RollingUpdate'"));
        }
        "OnDelete" => (),
        "RollingUpdate" => {
            errors.extend(rolling.get("partition").non_negative());
            let unavailable = rolling.get("maxUnavailable");
            if unavailable.is_present() {
                errors.extend(int_or_percent(&unavailable));
                if is_none_of_it(&unavailable) {
                    errors.push(unavailable.invalid("cannot be 0"));
                }
                errors.extend(at_most_all(&unavailable));
            }
        }
        _ => errors.push(kind.invalid("must be 'RollingUpdate' or 'OnDelete'")),
    }
    let retention = spec.get("persistentVolumeClaimRetentionPolicy");
    if retention.is_present() {
        for field in ["whenDeleted", "whenScaled"] {
            errors.extend(retention.get(field).one_of(&["Delete", "Retain"]));
        }
    }
    errors.extend(spec.get("replicas").non_negative());
    errors.extend(spec.get("minReadySeconds").non_negative());
    errors.extend(spec.get("ordinals").get("start").non_negative());
    let service = spec.get("serviceName");
    if !service.is_zero() {
        errors.extend(service.each_invalid(names::is_dns1035_label(service.text())));
    }
    let with_claims = with_claims(set);
    errors.extend(selector_and_template(&Field::root(&with_claims).get("spec"), "statefulset", false));
    errors
}

/// The set with the volumes that its pods get from claims of their own, which its template may mount.
fn with_claims(set: &Value) -> Value {
    let mut set = set.clone();
    let claims = set["spec"]["volumeClaimTemplates"].as_array().cloned().unwrap_or_default();
    let Some(pod) = set.pointer_mut("/spec/template/spec").and_then(Value::as_object_mut) else { return set };
    // Last, so that the places of the others stay.
    let volumes = pod.entry("volumes").or_insert(Value::Null);
    let mut all = volumes.as_array().cloned().unwrap_or_default();
    for name in claims.iter().filter_map(|claim| claim.pointer("/metadata/name")?.as_str()) {
        if !all.iter().any(|volume| volume["name"] == name) {
            all.push(json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
        }
    }
    *volumes = Value::Array(all);
    set
}

pub fn stateful_set_update(new: &Value, old: &Value) -> FieldErrors {
    const MUTABLE: [&str; 7] = [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    let mut errors = stateful_set_create(new);
    let (spec, before) = (Field::root(new).get("spec"), Field::root(old).get("spec"));
    let fixed = |spec: &Field<'_>| {
        let mut fixed = spec.map().cloned().unwrap_or_default();
        fixed.retain(|field, _| !MUTABLE.contains(&field.as_str()));
        // The claims' status is not the user's.
        for claim in fixed.get_mut("volumeClaimTemplates").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(claim) = claim.as_object_mut() {
                claim.remove("status");
            }
        }
        Value::Object(fixed)
    };
    if !same(&fixed(&spec), &fixed(&before)) {
        errors.push(FieldError::forbidden(
            &spec.path,
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
             'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        ));
    }
    errors
}

pub fn stateful_set_status(new: &Value, _old: &Value) -> FieldErrors {
    counts_status(new, &["replicas", "readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"])
}
