//! The status of a Deployment: counts, and whether the rollout moves.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::plan::Bounds;
use crate::control::key_of;
use crate::pods::until;

pub fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

pub fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

pub fn condition<'a>(status: &'a DeploymentStatus, type_: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

pub fn make(type_: &str, status: bool, reason: &str, message: String) -> DeploymentCondition {
    let now = Some(Time(Timestamp::now()));
    DeploymentCondition {
        type_: type_.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: now.clone(),
        last_transition_time: now,
    }
}

/// Sets the condition; one with the same status and reason stays as it is, the time of a transition is kept while the
/// status does not change.
pub fn set(status: &mut DeploymentStatus, mut new: DeploymentCondition) {
    let list = status.conditions.get_or_insert_default();
    if let Some(old) = list.iter().find(|condition| condition.type_ == new.type_) {
        if old.status == new.status && old.reason == new.reason {
            return;
        }
        if old.status == new.status {
            new.last_transition_time.clone_from(&old.last_transition_time);
        }
    }
    list.retain(|condition| condition.type_ != new.type_);
    list.push(new);
}

pub fn remove(status: &mut DeploymentStatus, type_: &str) {
    if let Some(list) = &mut status.conditions {
        list.retain(|condition| condition.type_ != type_);
    }
}

fn deadline(deployment: &Deployment) -> Option<i64> {
    let seconds = deployment.spec.as_ref()?.progress_deadline_seconds?;
    (seconds != i32::MAX).then_some(i64::from(seconds))
}

/// Counts and the Available condition.
pub fn counts(
    deployment: &Deployment,
    new: Option<&ReplicaSet>,
    all: &[&ReplicaSet],
    bounds: &Bounds,
) -> DeploymentStatus {
    let old = deployment.status.clone().unwrap_or_default();
    let sum = |field: fn(&ReplicaSet) -> i32| all.iter().map(|set| field(set)).sum::<i32>();
    let actual = |set: &ReplicaSet| set.status.as_ref().map_or(0, |status| status.replicas);
    let total = sum(|set| set.status.as_ref().map_or(0, |status| status.replicas));
    let available = sum(available);
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: Some(total),
        updated_replicas: Some(new.map_or(0, actual)),
        ready_replicas: Some(sum(|s| s.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0))),
        available_replicas: Some(available),
        unavailable_replicas: Some((sum(replicas) - available).max(0)),
        terminating_replicas: Some(sum(|s| s.status.as_ref().and_then(|s| s.terminating_replicas).unwrap_or(0))),
        collision_count: old.collision_count,
        conditions: old.conditions,
    };
    let condition = if available >= bounds.replicas - bounds.max_unavailable {
        make("Available", true, "MinimumReplicasAvailable", "Deployment has minimum availability.".to_owned())
    } else {
        make(
            "Available",
            false,
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.".to_owned(),
        )
    };
    set(&mut status, condition);
    status
}

fn number(value: Option<i32>) -> i32 {
    value.unwrap_or(0)
}

pub fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    number(status.updated_replicas) == wanted
        && number(status.replicas) == wanted
        && number(status.available_replicas) == wanted
        && status.observed_generation >= deployment.metadata.generation
}

fn moved(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let remaining = |s: &DeploymentStatus| number(s.replicas) - number(s.updated_replicas);
    number(new.updated_replicas) > number(old.updated_replicas)
        || remaining(new) < remaining(old)
        || number(new.ready_replicas) > number(old.ready_replicas)
        || number(new.available_replicas) > number(old.available_replicas)
}

fn timed_out(deadline: i64, status: &DeploymentStatus, now: Timestamp) -> bool {
    let Some(progress) = condition(status, "Progressing") else { return false };
    match progress.reason.as_deref() {
        Some("NewReplicaSetAvailable") => false,
        Some("ProgressDeadlineExceeded") => true,
        _ => progress.last_update_time.as_ref().is_some_and(|at| until(at.0, deadline, now).is_zero()),
    }
}

/// Adds the Progressing and ReplicaFailure conditions to fresh counts.
pub fn progress(deployment: &Deployment, new: Option<&ReplicaSet>, all: &[&ReplicaSet], status: &mut DeploymentStatus) {
    let now = Timestamp::now();
    let old = deployment.status.clone().unwrap_or_default();
    let name = new.map_or_else(|| key_of(deployment).1, |set| key_of(set).1);
    let subject = if new.is_some() { "ReplicaSet" } else { "Deployment" };
    let current = condition(&old, "Progressing").cloned();
    match deadline(deployment) {
        None => remove(status, "Progressing"),
        Some(deadline) => {
            let done_before = status.replicas == status.updated_replicas
                && current.as_ref().is_some_and(|c| c.reason.as_deref() == Some("NewReplicaSetAvailable"));
            if done_before {
                // Nothing to tell until the next rollout.
            } else if is_complete(deployment, status) {
                let message = format!("{subject} {name:?} has successfully progressed.");
                set(status, make("Progressing", true, "NewReplicaSetAvailable", message));
            } else if moved(&old, status) {
                let message = format!("{subject} {name:?} is progressing.");
                let mut condition = make("Progressing", true, "ReplicaSetUpdated", message);
                if let Some(current) = current.filter(|current| current.status == "True") {
                    condition.last_transition_time = current.last_transition_time;
                }
                // The time of the last move counts, so this one replaces even its equal.
                remove(status, "Progressing");
                set(status, condition);
            } else if timed_out(deadline, status, now) {
                let message = format!("{subject} {name:?} has timed out progressing.");
                set(status, make("Progressing", false, "ProgressDeadlineExceeded", message));
            }
        }
    }
    let failure = |set: &&ReplicaSet| {
        set.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == "ReplicaFailure").cloned()
    };
    match new.and_then(|set| failure(&set)).or_else(|| all.iter().find_map(failure)) {
        Some(c) => {
            let (reason, message) = (c.reason.unwrap_or_default(), c.message.unwrap_or_default());
            set(status, make("ReplicaFailure", c.status == "True", &reason, message));
        }
        None => remove(status, "ReplicaFailure"),
    }
}

/// When a rollout that does not move must be looked at again to be called stuck.
pub fn stuck_in(deployment: &Deployment, status: &DeploymentStatus) -> Option<Duration> {
    let deadline = deadline(deployment)?;
    let progress = condition(status, "Progressing")?;
    let over = matches!(progress.reason.as_deref(), Some("NewReplicaSetAvailable" | "ProgressDeadlineExceeded"));
    if over || is_complete(deployment, status) {
        return None;
    }
    let since = progress.last_update_time.as_ref()?.0;
    Some(until(since, deadline, Timestamp::now()) + Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment(status: serde_json::Value) -> Deployment {
        serde_json::from_value(json!({"metadata": {"name": "web", "generation": 2},
            "spec": {"replicas": 2, "progressDeadlineSeconds": 600, "selector": {}, "template": {}}, "status": status}))
        .unwrap()
    }

    fn set_of(replicas: i32, available: i32) -> ReplicaSet {
        serde_json::from_value(json!({"metadata": {"name": "web-x"}, "spec": {"replicas": replicas, "selector": {}},
            "status": {"replicas": replicas, "readyReplicas": available, "availableReplicas": available}}))
        .unwrap()
    }

    fn reason(status: &DeploymentStatus, type_: &str) -> String {
        condition(status, type_).and_then(|c| c.reason.clone()).unwrap_or_default()
    }

    #[test]
    fn conditions_follow_the_rollout() {
        let bounds = Bounds { replicas: 2, max_surge: 1, max_unavailable: 0 };
        let long_ago = json!({"conditions": [{"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated",
            "lastUpdateTime": "2020-01-01T00:00:00Z"}], "replicas": 2, "updatedReplicas": 2});
        for (before, new, progressing, availability) in [
            (json!({}), set_of(1, 0), "ReplicaSetUpdated", "MinimumReplicasUnavailable"),
            (json!({}), set_of(2, 2), "NewReplicaSetAvailable", "MinimumReplicasAvailable"),
            (long_ago, set_of(2, 0), "ProgressDeadlineExceeded", "MinimumReplicasUnavailable"),
        ] {
            let deployment = deployment(before);
            let mut status = counts(&deployment, Some(&new), &[&new], &bounds);
            progress(&deployment, Some(&new), &[&new], &mut status);
            assert_eq!(reason(&status, "Progressing"), progressing);
            assert_eq!(reason(&status, "Available"), availability);
        }
    }
}
