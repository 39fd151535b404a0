//! Tells the API the status of one pod, and at the very end that the pod may be forgotten.
//!
//! One task per pod. It writes only what has changed, always the newest, and tries again until the API has it.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::pod;
use crate::shared::Shared;
use crate::status::{RESIZE_PENDING, RESIZING};

const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// The parts of a status that are the kubelet's.
const OWN: [&str; 13] = [
    "containerStatuses",
    "ephemeralContainerStatuses",
    "hostIP",
    "hostIPs",
    "initContainerStatuses",
    "message",
    "observedGeneration",
    "phase",
    "podIP",
    "podIPs",
    "qosClass",
    "reason",
    "startTime",
];

struct Wanted {
    pod: Arc<Pod>,
    /// `None` until the first is computed.
    status: Option<PodStatus>,
    delete: bool,
}

/// The worker's end. The task ends when this is dropped and all has been said.
pub struct Reporter(watch::Sender<Wanted>);

impl Reporter {
    pub fn start(shared: &Arc<Shared>, pod: Arc<Pod>) -> Self {
        let known = pod.status.clone().unwrap_or_default();
        let (sender, receiver) = watch::channel(Wanted { pod, status: None, delete: false });
        shared.spawn(run(shared.clone(), receiver, known));
        Self(sender)
    }

    pub fn send(&self, pod: Arc<Pod>, status: PodStatus, delete: bool) {
        self.0.send_modify(|w| {
            w.pod = pod;
            w.status = Some(status);
            w.delete |= delete;
        });
    }
}

async fn run(shared: Arc<Shared>, mut wanted: watch::Receiver<Wanted>, mut known: PodStatus) {
    let mut wait = RETRY_FIRST;
    let mut target = String::new();
    let mut written = 0;
    loop {
        let (pod, status, delete) = {
            let now = wanted.borrow_and_update();
            (now.pod.clone(), now.status.clone(), now.delete)
        };
        let step = match status {
            Some(status) => {
                if !pod::is_static(&pod) && revision(&pod) > written {
                    notice(&mut known, &pod);
                }
                send(&shared, &pod, &status, &mut known, &mut target, &mut written, delete).await
            }
            None => Step::Done,
        };
        match step {
            Step::Gone => return,
            Step::Done => {
                wait = RETRY_FIRST;
                tokio::select! {
                    biased;
                    () = shared.stop.cancelled() => return,
                    changed = wanted.changed() => if changed.is_err() { return },
                }
            }
            Step::Retry => {
                tokio::select! {
                    biased;
                    () = shared.stop.cancelled() => return,
                    () = tokio::time::sleep(wait) => {}
                }
                wait = (wait * 2).min(RETRY_MAX);
            }
        }
    }
}

enum Step {
    Done,
    Retry,
    Gone,
}

async fn send(
    shared: &Shared,
    pod: &Pod,
    status: &PodStatus,
    known: &mut PodStatus,
    target: &mut String,
    written: &mut u64,
    delete: bool,
) -> Step {
    let (namespace, name) = (pod::namespace(pod), pod::name(pod));
    let uid = if pod::is_static(pod) {
        let Some(mirror) = shared.api_pods.get(namespace, name).filter(|p| pod::is_mirror(p)) else {
            return Step::Done;
        };
        if pod::uid(&mirror) != target {
            pod::uid(&mirror).clone_into(target);
            *known = mirror.status.clone().unwrap_or_default();
        }
        target.clone()
    } else {
        pod::uid(pod).to_owned()
    };
    let api: Api<Pod> = Api::namespaced(shared.config.client.clone(), namespace);
    let Ok(_permit) = shared.reports.acquire().await else { return Step::Gone };
    if let Some(change) = patch(known, status) {
        let body = json!({"metadata": {"uid": uid}, "status": change});
        match api.patch_status(name, &PatchParams::default(), &Patch::Strategic(body)).await {
            Ok(answer) => {
                *known = status.clone();
                *written = revision(&answer);
            }
            // A new mirror will be made and reported to.
            Err(kube::Error::Api(answer)) if answer.code == 404 && pod::is_static(pod) => return Step::Done,
            Err(kube::Error::Api(answer)) if answer.code == 404 => return Step::Gone,
            // Another pod of the same name. A static pod goes on: its new mirror is reported to.
            Err(kube::Error::Api(answer)) if is_another(&answer) && !pod::is_static(pod) => return Step::Gone,
            Err(error) => {
                tracing::warn!(%error, pod = %pod::full(pod), "cannot report the pod's status");
                return Step::Retry;
            }
        }
    }
    if !delete || pod::is_static(pod) {
        return Step::Done;
    }
    let precondition = Preconditions { uid: Some(uid), resource_version: None };
    let parameters =
        DeleteParams { grace_period_seconds: Some(0), preconditions: Some(precondition), ..DeleteParams::default() };
    match api.delete(name, &parameters).await {
        // Finalizers of others may keep the object; it is out of our hands.
        Ok(_) => Step::Gone,
        Err(kube::Error::Api(answer)) if answer.code == 404 || answer.code == 409 => Step::Gone,
        Err(error) => {
            tracing::warn!(%error, pod = %pod::full(pod), "cannot delete a pod that has ended");
            Step::Retry
        }
    }
}

/// The server refused because the object of this name has another uid.
fn is_another(answer: &kube::core::Status) -> bool {
    answer.code == 409 && answer.message.contains("UID in precondition")
}

/// Others write, too: the node controller marks the pods of a node that was silent as not ready.
fn notice(known: &mut PodStatus, pod: &Pod) {
    let theirs = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let Some(theirs) = theirs.into_iter().find(|condition| condition.type_ == "Ready") else { return };
    for ours in known.conditions.iter_mut().flatten().filter(|condition| condition.type_ == "Ready") {
        if ours.status != theirs.status {
            *ours = theirs.clone();
        }
    }
}

/// Which of two states of a pod is the newer one; they may be compared (KEP-5504).
fn revision(pod: &Pod) -> u64 {
    pod.metadata.resource_version.as_ref().and_then(|version| version.parse().ok()).unwrap_or_default()
}

/// What a strategic merge patch must hold to make `known` into `wanted`. Conditions of others stay.
fn patch(known: &PodStatus, wanted: &PodStatus) -> Option<Value> {
    let as_map = |status: &PodStatus| match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let (old, new) = (as_map(known), as_map(wanted));
    let mut change = Map::new();
    for key in OWN {
        match (old.get(key), new.get(key)) {
            (old, Some(value)) if old != Some(value) => {
                let value = match (key, value) {
                    // Merged by address otherwise, and a former address would stay.
                    ("podIPs" | "hostIPs", Value::Array(list)) => {
                        let mut list = list.clone();
                        list.insert(0, json!({"$patch": "replace"}));
                        Value::Array(list)
                    }
                    _ => value.clone(),
                };
                change.insert(key.to_owned(), value);
            }
            (Some(_), None) => {
                change.insert(key.to_owned(), Value::Null);
            }
            _ => {}
        }
    }
    let empty: Vec<PodCondition> = Vec::new();
    let before = known.conditions.as_ref().unwrap_or(&empty);
    let conditions: Vec<Value> = wanted
        .conditions
        .iter()
        .flatten()
        .filter(|c| !before.iter().any(|b| same(b, c)))
        .filter_map(|c| {
            let mut value = serde_json::to_value(c).ok()?;
            // What is no longer said must be taken back, or the old reason would stay.
            if let Some(old) = before.iter().find(|b| b.type_ == c.type_) {
                for (key, was) in [("reason", &old.reason), ("message", &old.message)] {
                    if was.is_some() && value.get(key).is_none() {
                        value[key] = Value::Null;
                    }
                }
            }
            Some(value)
        })
        .collect();
    let gone = |b: &&PodCondition| {
        [RESIZE_PENDING, RESIZING].contains(&b.type_.as_str())
            && !wanted.conditions.iter().flatten().any(|c| c.type_ == b.type_)
    };
    let conditions: Vec<Value> = conditions
        .into_iter()
        .chain(before.iter().filter(gone).map(|b| json!({"type": b.type_, "$patch": "delete"})))
        .collect();
    if !conditions.is_empty() {
        change.insert("conditions".into(), Value::Array(conditions));
    }
    (!change.is_empty()).then_some(Value::Object(change))
}

fn same(a: &PodCondition, b: &PodCondition) -> bool {
    let key = |c: &PodCondition| {
        (c.type_.clone(), c.status.clone(), c.reason.clone(), c.message.clone(), c.observed_generation)
    };
    key(a) == key(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namesake_ends_the_report_and_a_race_does_not() {
        let conflict = |message: &str| serde_json::from_value(json!({"code": 409, "message": message})).unwrap();
        assert!(is_another(&conflict(
            "Operation cannot be fulfilled on pods \"a\": Precondition failed: UID in precondition: 1, UID in object meta: 2"
        )));
        assert!(!is_another(&conflict("Operation cannot be fulfilled on pods \"uid\": the object has been modified")));
    }

    #[test]
    fn what_others_said_is_said_anew() {
        let pod = |ready: &str| -> Pod {
            serde_json::from_value(json!({"status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": ready}, {"type": "ContainersReady", "status": "True"}]}}))
            .unwrap()
        };
        let ours = pod("True").status.unwrap();
        let mut known = ours.clone();
        notice(&mut known, &pod("True"));
        assert_eq!(patch(&known, &ours), None);
        notice(&mut known, &pod("False"));
        assert_eq!(patch(&known, &ours).unwrap(), json!({"conditions": [{"type": "Ready", "status": "True"}]}));
    }

    #[test]
    fn the_end_of_a_resize_takes_its_condition_away() {
        let status = |value: Value| serde_json::from_value::<PodStatus>(value).unwrap();
        let old =
            status(json!({"conditions": [{"type": RESIZING, "status": "True"}, {"type": "Other", "status": "True"}]}));
        assert_eq!(
            patch(&old, &status(json!({}))).unwrap(),
            json!({"conditions": [{"type": RESIZING, "$patch": "delete"}]})
        );
    }

    #[test]
    fn only_changes_are_sent() {
        let status = |value: Value| serde_json::from_value::<PodStatus>(value).unwrap();
        let old = status(json!({"phase": "Pending", "reason": "x", "podIPs": [{"ip": "1"}],
            "conditions": [{"type": "Ready", "status": "False", "reason": "r"}, {"type": "Other", "status": "True"}]}));
        assert_eq!(patch(&old, &old), None);
        let new = status(json!({"phase": "Running", "podIPs": [{"ip": "2"}],
            "conditions": [{"type": "Ready", "status": "True"}]}));
        assert_eq!(
            patch(&old, &new).unwrap(),
            json!({"phase": "Running", "reason": null, "podIPs": [{"$patch": "replace"}, {"ip": "2"}],
                "conditions": [{"type": "Ready", "status": "True", "reason": null}]})
        );
    }
}
