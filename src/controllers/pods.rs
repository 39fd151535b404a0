//! Pods as controllers see them: is it alive, ready, available; which one goes first; how one is made and deleted.

use std::cmp::{Ordering, Reverse};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod, PodCondition, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client};
use mussel_client::{EventType, Recorder};

use crate::error::{Error, is_not_found, text};

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

pub fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Neither finished nor on its way out.
pub fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_none()
}

pub fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|ready| ready.status == "True")
}

fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|ready| ready.status == "True")?;
    ready.last_transition_time.as_ref().map(|time| time.0)
}

/// How long until a ready Pod has been ready for `min_ready_seconds`; zero when it is available, `None` when it is
/// not even ready.
pub fn available_in(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
    if !is_ready(pod) {
        return None;
    }
    if min_ready_seconds <= 0 {
        return Some(Duration::ZERO);
    }
    let since = ready_since(pod)?;
    Some(until(since, i64::from(min_ready_seconds), now))
}

pub fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    available_in(pod, min_ready_seconds, now) == Some(Duration::ZERO)
}

/// From `now` until `seconds` after `start`; zero when that is past.
pub fn until(start: Timestamp, seconds: i64, now: Timestamp) -> Duration {
    let passed = now.as_millisecond().saturating_sub(start.as_millisecond());
    let left = seconds.saturating_mul(1000).saturating_sub(passed);
    Duration::from_millis(u64::try_from(left).unwrap_or(0))
}

/// The order in which surplus Pods go: the first loses least. `neighbours` is how many related Pods share its node.
pub fn deletion_order(a: (&Pod, usize), b: (&Pod, usize)) -> Ordering {
    let assigned =
        |pod: &Pod| pod.spec.as_ref().is_some_and(|spec| !spec.node_name.as_deref().unwrap_or("").is_empty());
    let progress = |pod: &Pod| match phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let cost = |pod: &Pod| {
        let annotation = pod.metadata.annotations.as_ref()?.get("controller.kubernetes.io/pod-deletion-cost")?;
        annotation.parse::<i32>().ok()
    };
    let restarts = |pod: &Pod| {
        let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
        statuses.map(|list| list.iter().map(|s| s.restart_count).max().unwrap_or(0)).unwrap_or(0)
    };
    let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let ((a, a_neighbours), (b, b_neighbours)) = (a, b);
    assigned(a)
        .cmp(&assigned(b))
        .then_with(|| progress(a).cmp(&progress(b)))
        .then_with(|| is_ready(a).cmp(&is_ready(b)))
        .then_with(|| cost(a).unwrap_or(0).cmp(&cost(b).unwrap_or(0)))
        .then_with(|| Reverse(a_neighbours).cmp(&Reverse(b_neighbours)))
        .then_with(|| Reverse(ready_since(a)).cmp(&Reverse(ready_since(b))))
        .then_with(|| Reverse(restarts(a)).cmp(&Reverse(restarts(b))))
        .then_with(|| Reverse(created(a)).cmp(&Reverse(created(b))))
        .then_with(|| a.metadata.uid.cmp(&b.metadata.uid))
}

/// A Pod as the template says, owned by `owner`; named by the server.
pub fn from_template(template: &PodTemplateSpec, owner: &OwnerReference, namespace: &str) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    // A prefix that makes every name invalid helps nobody.
    let prefix: String = owner.name.chars().take(57).collect();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{prefix}-")),
            namespace: Some(namespace.to_owned()),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner.clone()]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Makes and deletes Pods, and tells about it on the object they are for.
#[derive(Clone)]
pub struct PodControl {
    pub client: Client,
    pub recorder: Recorder,
}

impl PodControl {
    fn api(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub async fn create(&self, pod: &Pod, about: &ObjectReference) -> Result<Pod, kube::Error> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        match self.api(namespace).create(&PostParams::default(), pod).await {
            Ok(created) => {
                let name = created.metadata.name.as_deref().unwrap_or_default();
                self.recorder.event(
                    about.clone(),
                    EventType::Normal,
                    "SuccessfulCreate",
                    format!("Created pod: {name}"),
                );
                Ok(created)
            }
            Err(error) => {
                if !is_terminating(&error) {
                    let message = format!("Error creating: {}", text(&error));
                    self.recorder.event(about.clone(), EventType::Warning, "FailedCreate", message);
                }
                Err(error)
            }
        }
    }

    /// True when the Pod was there to be deleted.
    pub async fn delete(&self, pod: &Pod, about: &ObjectReference) -> Result<bool, Error> {
        let (namespace, name) = crate::control::key_of(pod);
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None }),
            ..DeleteParams::default()
        };
        match self.api(&namespace).delete(&name, &params).await {
            Ok(_) => {
                let message = format!("Deleted pod: {name}");
                self.recorder.event(about.clone(), EventType::Normal, "SuccessfulDelete", message);
                Ok(true)
            }
            Err(error) if is_not_found(&error) => Ok(false),
            Err(error) => {
                let message = format!("Error deleting: {}", text(&error));
                self.recorder.event(about.clone(), EventType::Warning, "FailedDelete", message);
                Err(error.into())
            }
        }
    }

    /// Creates the Pods in batches of 1, 2, 4 and so on, and stops after a batch with an error: what fails for one (a
    /// quota, a broken template) fails for all. Answers the Pods that were made, and the first error.
    pub async fn create_batches(&self, pods: &[Pod], about: &ObjectReference) -> (Vec<Pod>, Option<kube::Error>) {
        let mut made = Vec::new();
        let mut rest = pods;
        let mut batch = 1;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(batch.min(rest.len()));
            let results = futures::future::join_all(now.iter().map(|pod| self.create(pod, about))).await;
            let mut failure = None;
            for result in results {
                match result {
                    Ok(pod) => made.push(pod),
                    Err(error) => failure = failure.or(Some(error)),
                }
            }
            if failure.is_some() {
                return (made, failure);
            }
            rest = later;
            batch *= 2;
        }
        (made, None)
    }
}

/// The namespace is going away; nothing more will ever be made in it.
pub fn is_terminating(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status)
        if status.details.as_ref().is_some_and(|d| d.causes.iter().any(|c| c.reason == "NamespaceTerminating")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, spec: serde_json::Value, status: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name, "uid": name}, "spec": spec, "status": status}))
            .unwrap()
    }

    #[test]
    fn pods_that_lose_least_go_first() {
        let on_node = json!({"nodeName": "n", "containers": []});
        let ready = |since: &str| json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": since}]});
        let expected = [
            (pod("unassigned", json!({"containers": []}), json!({"phase": "Pending"})), 0),
            (pod("pending", on_node.clone(), json!({"phase": "Pending"})), 0),
            (pod("not-ready", on_node.clone(), json!({"phase": "Running"})), 0),
            (pod("crowded", on_node.clone(), ready("2026-01-01T00:00:00Z")), 2),
            (pod("young", on_node.clone(), ready("2026-01-02T00:00:00Z")), 1),
            (pod("old", on_node, ready("2026-01-01T00:00:00Z")), 1),
        ];
        let mut sorted: Vec<_> = expected.iter().rev().map(|(pod, rank)| (pod, *rank)).collect();
        sorted.sort_by(|a, b| deletion_order(*a, *b));
        let names =
            |list: &[(&Pod, usize)]| list.iter().map(|(p, _)| p.metadata.name.clone().unwrap()).collect::<Vec<_>>();
        assert_eq!(names(&sorted), names(&expected.iter().map(|(p, r)| (p, *r)).collect::<Vec<_>>()));
    }

    #[test]
    fn a_pod_is_available_after_its_minimum() {
        let since = json!({"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        let pod = pod("a", json!({"containers": []}), since);
        let now: Timestamp = "2026-01-01T00:00:04Z".parse().unwrap();
        assert!(is_available(&pod, 0, now));
        assert!(is_available(&pod, 4, now));
        assert_eq!(available_in(&pod, 10, now), Some(Duration::from_secs(6)));
    }
}
