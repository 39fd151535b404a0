//! Jobs and CronJobs.

use serde_json::Value;

use super::cursor::{Field, same};
use super::pod::pod_template;
use super::selector::label_selector;
use super::workload::selects;
use crate::field::{FieldError, FieldErrors};
use crate::names;
use crate::schedule::Schedule;

/// Jobs of CronJobs append eleven characters to the name.
const CRON_JOB_NAME_MAX: usize = 52;

pub fn job_create(job: &Value) -> FieldErrors {
    let root = Field::root(job);
    let spec = root.get("spec");
    let mut errors = Vec::new();
    let selector = spec.get("selector");
    if selector.is_absent() {
        errors.push(selector.required(""));
    } else {
        errors.extend(label_selector(&selector));
    }
    errors.extend(job_spec(&spec));
    errors.extend(selects(&selector, &spec.get("template"), false));
    if spec.get("completionMode").text() == "Indexed" {
        // Pods are named after the Job and their index.
        let name = root.get("metadata").get("name");
        let last = spec.get("completions").int().unwrap_or(1).max(1) - 1;
        for message in names::is_dns1123_label(&format!("{}-{last}", name.text())) {
            errors.push(name.invalid(format!("will not able to create pod with invalid DNS label: {message}")));
        }
    }
    errors
}

fn job_spec(spec: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        errors.extend(spec.get(field).non_negative());
    }
    let mode = spec.get("completionMode");
    let indexed = mode.text() == "Indexed";
    errors.extend(mode.none_or_one_of(&["Indexed", "NonIndexed"]));
    let completions = spec.get("completions");
    if indexed && completions.is_absent() {
        errors.push(completions.required("when completion mode is Indexed"));
    }
    if indexed {
        let parallelism = spec.get("parallelism");
        if completions.int().is_some_and(|n| n > 0) && parallelism.int().is_some_and(|n| n > 100_000) {
            errors.push(parallelism.invalid("must be less than or equal to 100000 when completion mode is Indexed"));
        }
    }
    for field in ["backoffLimitPerIndex", "maxFailedIndexes", "successPolicy"] {
        let field = spec.get(field);
        if field.is_present() && !indexed {
            errors.push(field.invalid("requires indexed completion mode"));
        }
    }
    if spec.get("maxFailedIndexes").is_present() && spec.get("backoffLimitPerIndex").is_absent() {
        errors.push(spec.get("backoffLimitPerIndex").required("when maxFailedIndexes is specified"));
    }
    let manager = spec.get("managedBy");
    if manager.is_present() {
        if manager.text().len() > 63 {
            errors.push(FieldError::too_long(&manager.path, 63));
        }
        if !manager.text().contains('/') {
            errors.push(manager.invalid("must be a domain-prefixed path (such as \"acme.io/foo\")"));
        }
    }
    errors.extend(pod_template(&spec.get("template")));
    let policy = spec.get("template").get("spec").get("restartPolicy");
    if !matches!(policy.text(), "OnFailure" | "Never") {
        errors.push(policy.required("valid values: \"OnFailure\", \"Never\""));
    }
    errors.extend(failure_policy(spec, &policy));
    let replacement = spec.get("podReplacementPolicy");
    errors.extend(replacement.none_or_one_of(&["Failed", "TerminatingOrFailed"]));
    if spec.get("podFailurePolicy").is_present() && replacement.text() == "TerminatingOrFailed" {
        errors.push(replacement.not_supported(&["Failed"]));
    }
    errors
}

fn failure_policy(spec: &Field<'_>, restart: &Field<'_>) -> FieldErrors {
    let policy = spec.get("podFailurePolicy");
    if policy.is_absent() {
        return Vec::new();
    }
    let mut errors = Vec::new();
    if restart.text() != "Never" {
        errors.push(restart.invalid("only \"Never\" is supported when podFailurePolicy is specified"));
    }
    for rule in policy.list("rules") {
        errors.extend(rule.get("action").one_of(&["Count", "FailIndex", "FailJob", "Ignore"]));
        if rule.get("action").text() == "FailIndex" && spec.get("backoffLimitPerIndex").is_absent() {
            errors.push(rule.get("action").invalid("requires the backoffLimitPerIndex to be set"));
        }
        let (codes, conditions) = (rule.get("onExitCodes"), rule.get("onPodConditions"));
        match (codes.is_present(), !conditions.is_zero()) {
            (true, true) => {
                errors.push(rule.invalid("specifying both OnExitCodes and OnPodConditions is not supported"));
            }
            (false, false) => {
                errors.push(rule.invalid("specifying one of OnExitCodes and OnPodConditions is required"))
            }
            (true, false) => {
                errors.extend(codes.get("operator").one_of(&["In", "NotIn"]));
                errors.extend(codes.get("values").not_empty());
            }
            (false, true) => {
                for pattern in conditions.items() {
                    errors.extend(pattern.get("type").not_empty());
                    errors.extend(pattern.get("status").one_of(&["False", "True", "Unknown"]));
                }
            }
        }
    }
    errors
}

pub fn job_update(new: &Value, old: &Value) -> FieldErrors {
    let (spec, before) = (Field::root(new).get("spec"), Field::root(old).get("spec"));
    let mut errors = job_create(new);
    let completions = spec.get("completions");
    if !same(completions.value, before.get("completions").value) {
        let elastic = spec.get("completionMode").text() == "Indexed"
            && completions.is_present()
            && before.get("completions").is_present();
        if !elastic {
            errors.push(completions.invalid("field is immutable"));
        } else if completions.value != spec.get("parallelism").value {
            errors.push(completions.invalid("can only be modified in tandem with spec.parallelism"));
        }
    }
    errors.extend(spec.get("selector").immutable(&before.get("selector")));
    errors.extend(template_update(new, old));
    for field in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"] {
        errors.extend(spec.get(field).immutable(&before.get(field)));
    }
    errors
}

/// Where and with what the pods will run may change while the Job has not started.
fn template_update(new: &Value, old: &Value) -> FieldErrors {
    let (root, before) = (Field::root(new), Field::root(old));
    let template = root.get("spec").get("template");
    let mut allowed = before.get("spec").get("template").value.clone();
    let suspended = before.get("spec").get("suspend").flag() && before.get("status").get("startTime").is_absent();
    if suspended {
        let mut take = |from: &str, fields: &[&str]| {
            let Some(target) = allowed.get_mut(from).and_then(Value::as_object_mut) else { return };
            for field in fields {
                match template.get(from).get(field).value {
                    Value::Null => target.remove(*field),
                    value => target.insert((*field).to_owned(), value.clone()),
                };
            }
        };
        take("metadata", &["annotations", "labels"]);
        take("spec", &["nodeSelector", "affinity", "tolerations", "schedulingGates"]);
    }
    if same(template.value, &allowed) { Vec::new() } else { vec![template.invalid("field is immutable")] }
}

pub fn job_status(new: &Value, _old: &Value) -> FieldErrors {
    let status = Field::root(new).get("status");
    ["active", "succeeded", "failed", "ready"].iter().flat_map(|field| status.get(field).non_negative()).collect()
}

pub fn cron_job_create(cron: &Value) -> FieldErrors {
    let root = Field::root(cron);
    let name = root.get("metadata").get("name");
    let mut errors = cron_job_spec(&root.get("spec"));
    if name.text().len() > CRON_JOB_NAME_MAX {
        errors.push(name.invalid(format!("must be no more than {CRON_JOB_NAME_MAX} characters")));
    }
    errors
}

pub fn cron_job_update(new: &Value, _old: &Value) -> FieldErrors {
    cron_job_spec(&Field::root(new).get("spec"))
}

fn cron_job_spec(spec: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    let schedule = spec.get("schedule");
    if schedule.is_zero() {
        errors.push(schedule.required(""));
    } else if schedule.text().contains("TZ") {
        errors.push(schedule.invalid("cannot use TZ or CRON_TZ in schedule, use timeZone field instead"));
    } else if let Err(error) = Schedule::parse(schedule.text()) {
        errors.push(schedule.invalid(error.to_string()));
    }
    errors.extend(spec.get("startingDeadlineSeconds").non_negative());
    errors.extend(spec.get("concurrencyPolicy").one_of(&["Allow", "Forbid", "Replace"]));
    let zone = spec.get("timeZone");
    if zone.is_present() {
        if zone.is_zero() {
            errors.push(zone.invalid("must be nil or non-empty value"));
        } else if zone.text().eq_ignore_ascii_case("local") {
            errors.push(
                zone.invalid("timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones"),
            );
        } else if jiff::tz::TimeZone::get(zone.text()).is_err() {
            errors.push(zone.invalid(format!("unknown time zone {}", zone.text())));
        }
    }
    for field in ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        errors.extend(spec.get(field).non_negative());
    }
    let template = spec.get("jobTemplate").get("spec");
    if template.get("manualSelector").flag() {
        errors.push(template.get("manualSelector").not_supported(&["nil", "false"]));
    }
    errors.extend(job_spec(&template));
    errors
}
