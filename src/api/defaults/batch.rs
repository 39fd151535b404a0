//! Jobs and CronJobs.

use serde_json::Value;

use super::pod::template_of;
use super::{child, fill, fill_zero, get, is_zero, items, made};

pub fn job(job: &mut Value) {
    let labels = job
        .get("spec")
        .and_then(|spec| spec.get("template")?.get("metadata")?.get("labels"))
        .filter(|labels| !is_zero(labels))
        .cloned();
    if let Some(labels) = labels
        && let Some(metadata) = made(job, "metadata")
    {
        fill_zero(metadata, "labels", labels);
    }
    let Some(spec) = made(job, "spec") else { return };
    if get(spec, "parallelism").is_null() {
        fill(spec, "completions", 1);
    }
    fill(spec, "parallelism", 1);
    let backoff = if get(spec, "backoffLimitPerIndex").is_null() { 6 } else { i32::MAX };
    fill(spec, "backoffLimit", backoff);
    fill(spec, "completionMode", "NonIndexed");
    fill(spec, "suspend", false);
    let replacement = if get(spec, "podFailurePolicy").is_null() { "TerminatingOrFailed" } else { "Failed" };
    fill(spec, "podReplacementPolicy", replacement);
    job_spec(spec);
}

pub fn cron_job(cron: &mut Value) {
    let Some(spec) = made(cron, "spec") else { return };
    fill_zero(spec, "concurrencyPolicy", "Allow");
    fill(spec, "suspend", false);
    fill(spec, "successfulJobsHistoryLimit", 3);
    fill(spec, "failedJobsHistoryLimit", 1);
    if let Some(job) = child(spec, "jobTemplate").and_then(|template| child(template, "spec")) {
        job_spec(job);
    }
}

/// What Jobs and the Jobs of CronJobs have in common.
fn job_spec(spec: &mut Value) {
    if let Some(policy) = child(spec, "podFailurePolicy") {
        for rule in items(policy, "rules") {
            for pattern in items(rule, "onPodConditions") {
                fill_zero(pattern, "status", "True");
            }
        }
    }
    template_of(spec);
}
