//! Jobs whose indexes fail each for themselves (`backoffLimitPerIndex`). Pure.
//!
//! How often an index has failed is written on its newest Pod. A failed Pod therefore keeps its finalizer until its
//! successor carries the count on, or its index has failed for good.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::JobSpec;
use k8s_openapi::api::core::v1::Pod;

use super::plan::{self, FailureAction};
use crate::pods::until;

pub const FAILURE_COUNT: &str = "batch.kubernetes.io/job-index-failure-count";
const IGNORED_COUNT: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

/// What the Pods say of their indexes.
#[derive(Debug, Default, PartialEq)]
pub struct Survey {
    /// Indexes that will not be tried again.
    pub failed: BTreeSet<i32>,
    /// By index: failures so far, and when the last one was.
    tries: BTreeMap<i32, (i32, Option<Timestamp>)>,
    /// Uids of failed Pods without a successor, whose count nobody else has.
    kept: BTreeSet<String>,
}

fn count_on(pod: &Pod, key: &str) -> Option<i32> {
    pod.metadata.annotations.as_ref()?.get(key)?.parse().ok()
}

/// `None` for Jobs that do not ask for it. `failed` says which Pods count as failed, `known` which indexes have failed.
pub fn survey(
    spec: &JobSpec,
    pods: &[Arc<Pod>],
    known: BTreeSet<i32>,
    completed: &BTreeSet<i32>,
    index_of: impl Fn(&Pod) -> Option<i32>,
    has_failed: impl Fn(&Pod) -> bool,
) -> Option<Survey> {
    let limit = spec.backoff_limit_per_index?;
    let mut survey = Survey { failed: known, ..Survey::default() };
    let mut ends = Vec::new();
    for pod in pods {
        let Some(index) = index_of(pod) else { continue };
        let before = count_on(pod, FAILURE_COUNT).unwrap_or(0);
        if !has_failed(pod) {
            let entry = survey.tries.entry(index).or_default();
            entry.0 = entry.0.max(before);
            continue;
        }
        let (count, gives_up) = match plan::failure_action(spec, pod) {
            FailureAction::Ignore => (before, false),
            FailureAction::FailIndex => (before.saturating_add(1), true),
            FailureAction::Count | FailureAction::FailJob(_) => (before.saturating_add(1), before >= limit),
        };
        if gives_up && !completed.contains(&index) {
            survey.failed.insert(index);
        }
        let entry = survey.tries.entry(index).or_default();
        *entry = (entry.0.max(count), entry.1.max(ended(pod)));
        ends.push((index, count, pod));
    }
    for (index, count, pod) in ends {
        let settled = survey.failed.contains(&index) || completed.contains(&index);
        let carried_on = pods.iter().any(|other| {
            !Arc::ptr_eq(other, pod)
                && index_of(other) == Some(index)
                && count_on(other, FAILURE_COUNT).unwrap_or(0) >= count
                && other.metadata.creation_timestamp >= pod.metadata.creation_timestamp
        });
        if !settled && !carried_on {
            survey.kept.extend(pod.metadata.uid.clone());
        }
    }
    Some(survey)
}

impl Survey {
    /// The Pod has to stay for now, for the count that it carries.
    pub fn keeps(&self, pod: &Pod) -> bool {
        pod.metadata.uid.as_ref().is_some_and(|uid| self.kept.contains(uid))
    }

    pub fn failures(&self, index: i32) -> i32 {
        self.tries.get(&index).map_or(0, |(count, _)| *count)
    }

    /// How long the index has to wait for its next try.
    pub fn wait(&self, index: i32, now: Timestamp) -> Duration {
        let Some((count, Some(last))) = self.tries.get(&index) else { return Duration::ZERO };
        let back_off = plan::back_off(u32::try_from(*count).unwrap_or(0));
        until(*last, i64::try_from(back_off.as_secs()).unwrap_or(600), now)
    }
}

/// Puts the count on a Pod that is to be made.
pub fn annotate(pod: &mut Pod, failures: i32) {
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(FAILURE_COUNT.to_owned(), failures.to_string());
    annotations.remove(IGNORED_COUNT);
}

fn ended(pod: &Pod) -> Option<Timestamp> {
    let containers = pod.status.as_ref()?.container_statuses.iter().flatten();
    containers.filter_map(|c| Some(c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0)).max()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, index: i32, phase: &str, failures: i32, code: i32) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": uid, "uid": uid, "labels": {"i": index.to_string()},
                "annotations": {FAILURE_COUNT: failures.to_string()}},
                "status": {"phase": phase, "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false,
                    "restartCount": 0, "state": {"terminated": {"exitCode": code,
                        "finishedAt": "2026-01-01T00:00:00Z"}}}]}}))
            .unwrap(),
        )
    }

    fn look(limit: i32, pods: &[Arc<Pod>]) -> Survey {
        let spec: JobSpec = serde_json::from_value(json!({"backoffLimitPerIndex": limit, "completions": 4,
            "template": {"spec": {"containers": []}}, "podFailurePolicy": {"rules": [
                {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [42]}},
                {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [43]}}]}}))
        .unwrap();
        let index = |pod: &Pod| pod.metadata.labels.as_ref()?.get("i")?.parse().ok();
        let failed = |pod: &Pod| crate::pods::phase(pod) == "Failed";
        survey(&spec, pods, BTreeSet::new(), &BTreeSet::new(), index, failed).unwrap()
    }

    #[test]
    fn an_index_fails_when_its_tries_are_used_up() {
        let now: Timestamp = "2026-01-01T00:00:04Z".parse().unwrap();
        let first = pod("a", 0, "Failed", 0, 1);
        let seen = look(1, std::slice::from_ref(&first));
        assert_eq!((seen.failed.len(), seen.failures(0), seen.keeps(&first)), (0, 1, true));
        assert_eq!((seen.wait(0, now).as_secs(), seen.wait(1, now).as_secs()), (6, 0));
        // The successor has the count, so the first may go.
        let second = pod("b", 0, "Running", 1, 0);
        let seen = look(1, &[first.clone(), second]);
        assert!(seen.failed.is_empty() && !seen.keeps(&first));
        let seen = look(1, &[first.clone(), pod("b", 0, "Failed", 1, 1)]);
        assert_eq!((seen.failed, seen.kept.len()), ([0].into(), 0));
    }

    #[test]
    fn policies_give_up_at_once_or_do_not_count() {
        let seen = look(5, &[pod("a", 0, "Failed", 0, 42), pod("b", 1, "Failed", 2, 43)]);
        assert_eq!((seen.failed.clone(), seen.failures(1)), ([0].into(), 2));
    }
}
