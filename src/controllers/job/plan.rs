//! What a Job does next, from numbers alone. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::batch::v1::{JobSpec, PodFailurePolicyRule};
use k8s_openapi::api::core::v1::Pod;

const BACK_OFF_FIRST: Duration = Duration::from_secs(10);
const BACK_OFF_MAX: Duration = Duration::from_secs(600);

/// Finished for good, one way or the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Succeeded { reason: &'static str, message: String },
    Failed { reason: &'static str, message: String },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub active: i32,
    pub succeeded: i32,
    pub failed: i32,
    /// Indexes that have failed for good.
    pub failed_indexes: i32,
    /// Restarts of containers in Pods that are kept, for `restartPolicy: OnFailure`.
    pub restarts: i32,
}

/// `age` is the time since the Job started.
pub fn verdict(spec: &JobSpec, counts: &Counts, completed: &BTreeSet<i32>, age: Option<Duration>) -> Option<Verdict> {
    let limit = spec.backoff_limit.unwrap_or(6);
    let restarts = spec.template.spec.as_ref().is_some_and(|s| s.restart_policy.as_deref() == Some("OnFailure"));
    let too_many_restarts = restarts && if limit == 0 { counts.restarts > 0 } else { counts.restarts >= limit };
    let failed = |reason, message: &str| Some(Verdict::Failed { reason, message: message.to_owned() });
    if counts.failed > limit || too_many_restarts {
        return failed("BackoffLimitExceeded", "Job has reached the specified backoff limit");
    }
    if spec.max_failed_indexes.is_some_and(|max| counts.failed_indexes > max) {
        return failed("MaxFailedIndexesExceeded", "Job has exceeded the specified maximal number of failed indexes");
    }
    if let (Some(deadline), Some(age)) = (spec.active_deadline_seconds, age)
        && age >= Duration::from_secs(u64::try_from(deadline).unwrap_or(0))
    {
        return failed("DeadlineExceeded", "Job was active longer than specified deadline");
    }
    if is_indexed(spec) {
        for rule in spec.success_policy.iter().flat_map(|policy| &policy.rules) {
            let wanted = rule.succeeded_indexes.as_deref().map(parse_indexes);
            let hits = completed.iter().filter(|i| wanted.as_ref().is_none_or(|w| w.contains(i))).count();
            let needed = match (rule.succeeded_count, &wanted) {
                (Some(count), _) => usize::try_from(count).unwrap_or(usize::MAX),
                (None, Some(wanted)) => wanted.len(),
                (None, None) => usize::MAX,
            };
            if hits >= needed {
                let message = "Matched rules at index 0".to_owned();
                return Some(Verdict::Succeeded { reason: "SuccessPolicy", message });
            }
        }
    }
    let ended = counts.succeeded.saturating_add(counts.failed_indexes);
    if counts.failed_indexes > 0 && spec.completions.is_some_and(|completions| ended >= completions) {
        return failed("FailedIndexes", "Job has failed indexes");
    }
    let complete = match spec.completions {
        None => counts.succeeded > 0 && counts.active == 0,
        Some(completions) if is_indexed(spec) => completed.len() >= usize::try_from(completions).unwrap_or(0),
        Some(completions) => counts.succeeded >= completions,
    };
    complete.then(|| Verdict::Succeeded {
        reason: "CompletionsReached",
        message: "Reached expected number of succeeded pods".to_owned(),
    })
}

pub fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

/// How many Pods should be active.
pub fn wanted_active(spec: &JobSpec, counts: &Counts) -> i32 {
    let parallelism = spec.parallelism.unwrap_or(1);
    match spec.completions {
        None if counts.succeeded > 0 => counts.active.min(parallelism),
        None => parallelism,
        Some(completions) => (completions - counts.succeeded - counts.failed_indexes).clamp(0, parallelism.max(0)),
    }
}

/// How long after the last failure the next Pod may start.
pub fn back_off(consecutive_failures: u32) -> Duration {
    match consecutive_failures {
        0 => Duration::ZERO,
        n => BACK_OFF_FIRST.saturating_mul(1 << (n - 1).min(6)).min(BACK_OFF_MAX),
    }
}

/// What the failure policy says of a failed Pod; counting is the default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FailureAction {
    Count,
    Ignore,
    FailIndex,
    FailJob(String),
}

pub fn failure_action(spec: &JobSpec, pod: &Pod) -> FailureAction {
    let rules = spec.pod_failure_policy.iter().flat_map(|policy| &policy.rules);
    for (index, rule) in rules.enumerate() {
        let Some(why) = rule_matches(rule, pod) else { continue };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        return match rule.action.as_str() {
            "Ignore" => FailureAction::Ignore,
            "FailIndex" => FailureAction::FailIndex,
            "FailJob" => FailureAction::FailJob(
                why.replace("{pod}", &format!("pod {namespace}/{name}")).replace("{rule}", &index.to_string()),
            ),
            _ => FailureAction::Count,
        };
    }
    FailureAction::Count
}

fn rule_matches(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    if let Some(codes) = &rule.on_exit_codes {
        let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
        for container in all.filter(|c| codes.container_name.as_ref().is_none_or(|name| *name == c.name)) {
            let Some(ended) = container.state.as_ref().and_then(|state| state.terminated.as_ref()) else { continue };
            let listed = codes.values.contains(&ended.exit_code);
            if ended.exit_code != 0 && listed == (codes.operator == "In") {
                return Some(format!(
                    "Container {} for {{pod}} failed with exit code {} matching {} rule at index {{rule}}",
                    container.name, ended.exit_code, rule.action
                ));
            }
        }
        return None;
    }
    for pattern in rule.on_pod_conditions.iter().flatten() {
        let wanted = pattern.status.as_deref().unwrap_or("True");
        let found = status.conditions.iter().flatten().any(|c| c.type_ == pattern.type_ && c.status == wanted);
        if found {
            return Some(
                format!("{{pod}} has condition {} matching {} rule at index {{rule}}", pattern.type_, rule.action)
                    .replacen("{pod}", "{pod}", 1),
            );
        }
    }
    None
}

/// `1,3-5,7`; what is no number is left out.
pub fn parse_indexes(text: &str) -> BTreeSet<i32> {
    /// An upper bound of what the API allows; a range beyond it is a mistake, not a request for memory.
    const INDEXES_MAX: i32 = 100_000;
    let mut indexes = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.trim().parse::<i32>(), last.trim().parse::<i32>()) {
            indexes.extend(first.max(0)..=last.min(INDEXES_MAX));
        }
    }
    indexes
}

pub fn format_indexes(indexes: &BTreeSet<i32>) -> String {
    let mut ranges: Vec<(i32, i32)> = Vec::new();
    for &index in indexes {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == index => *last = index,
            _ => ranges.push((index, index)),
        }
    }
    let text = |(first, last): &(i32, i32)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    };
    ranges.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(extra: serde_json::Value) -> JobSpec {
        let mut spec = json!({"template": {"spec": {"containers": [], "restartPolicy": "Never"}}});
        for (key, value) in extra.as_object().unwrap() {
            spec[key] = value.clone();
        }
        serde_json::from_value(spec).unwrap()
    }

    fn counts(active: i32, succeeded: i32, failed: i32) -> Counts {
        Counts { active, succeeded, failed, failed_indexes: 0, restarts: 0 }
    }

    #[test]
    fn jobs_end_as_their_numbers_say() {
        let age = Some(Duration::from_secs(30));
        for (spec_json, counts, expected) in [
            (json!({"completions": 3}), counts(1, 2, 0), None),
            (json!({"completions": 3}), counts(0, 3, 0), Some("CompletionsReached")),
            (json!({"completions": 1, "backoffLimit": 2}), counts(0, 0, 2), None),
            (json!({"completions": 1, "backoffLimit": 2}), counts(0, 0, 3), Some("BackoffLimitExceeded")),
            (json!({"completions": 1, "activeDeadlineSeconds": 30}), counts(1, 0, 0), Some("DeadlineExceeded")),
            (json!({}), counts(1, 1, 0), None),
            (json!({}), counts(0, 1, 0), Some("CompletionsReached")),
        ] {
            let verdict = verdict(&spec(spec_json.clone()), &counts, &BTreeSet::new(), age);
            let reason = verdict.map(|v| match v {
                Verdict::Succeeded { reason, .. } | Verdict::Failed { reason, .. } => reason,
            });
            assert_eq!(reason, expected, "{spec_json} {counts:?}");
        }
    }

    #[test]
    fn failed_indexes_fail_the_job_at_the_end_or_when_there_are_too_many() {
        let none = BTreeSet::new();
        let reason = |extra: serde_json::Value, succeeded, failed_indexes| {
            let counts = Counts { failed_indexes, ..counts(0, succeeded, failed_indexes) };
            match verdict(&spec(extra), &counts, &none, None) {
                Some(Verdict::Failed { reason, .. }) => reason,
                other => panic!("{other:?}"),
            }
        };
        let indexed = json!({"completionMode": "Indexed", "completions": 4, "backoffLimit": i32::MAX});
        assert_eq!(reason(indexed.clone(), 2, 2), "FailedIndexes");
        let mut bounded = indexed;
        bounded["maxFailedIndexes"] = json!(1);
        assert_eq!(reason(bounded, 0, 2), "MaxFailedIndexesExceeded");
    }

    #[test]
    fn as_many_run_as_are_needed() {
        for (extra, counts, expected) in [
            (json!({"completions": 5, "parallelism": 2}), counts(0, 0, 0), 2),
            (json!({"completions": 5, "parallelism": 2}), counts(0, 4, 0), 1),
            (json!({"completions": 5, "parallelism": 0}), counts(0, 0, 0), 0),
            (json!({"parallelism": 3}), counts(0, 0, 0), 3),
            (json!({"parallelism": 3}), counts(2, 1, 0), 2),
        ] {
            assert_eq!(wanted_active(&spec(extra.clone()), &counts), expected, "{extra} {counts:?}");
        }
        assert_eq!([0, 1, 2, 20].map(|n| back_off(n).as_secs()), [0, 10, 20, 600]);
    }

    #[test]
    fn indexes_read_and_write_as_ranges() {
        for text in ["", "0", "0,1", "1,3-5,7", "0-9"] {
            assert_eq!(format_indexes(&parse_indexes(text)), text);
        }
    }

    #[test]
    fn failure_policies_pick_the_first_rule() {
        let spec = spec(json!({"podFailurePolicy": {"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
            {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}]}}));
        let pod = |code: i32, condition: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "a"}, "status": {
                "conditions": [{"type": condition, "status": "True"}],
                "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"terminated": {"exitCode": code}}}]}}))
            .unwrap()
        };
        assert_eq!(failure_action(&spec, &pod(42, "DisruptionTarget")), FailureAction::Ignore);
        assert_eq!(failure_action(&spec, &pod(1, "Ready")), FailureAction::Count);
        let message = "Container c for pod a/p failed with exit code 42 matching FailJob rule at index 1";
        assert_eq!(failure_action(&spec, &pod(42, "Ready")), FailureAction::FailJob(message.to_owned()));
    }
}
