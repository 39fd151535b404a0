//! Tells users, in pods' statuses and events, what became of their pods.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use mussel_client::event::{EventType, Recorder, reference};
use serde_json::{Value, json};

use crate::cluster::uid;
use crate::preempt::{Preemption, REASON};

/// The scheduler that is asked for by default.
pub const NAME: &str = "default-scheduler";

pub fn names(pod: &Pod) -> (String, String) {
    (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default())
}

/// What becomes of `nominatedNodeName`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nomination {
    Same,
    Set(String),
    Cleared,
}

/// A patch that says why the pod has no node; `None` when its status says so already.
pub fn not_scheduled(pod: &Pod, reason: &str, message: &str, nomination: &Nomination) -> Option<Value> {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let said = conditions.into_iter().flatten().find(|condition| condition.type_ == "PodScheduled");
    let nominated = status.and_then(|status| status.nominated_node_name.as_deref());
    let mut patch = json!({"status": {}});
    match nomination {
        Nomination::Set(node) if nominated != Some(node) => patch["status"]["nominatedNodeName"] = json!(node),
        Nomination::Cleared if nominated.is_some() => patch["status"]["nominatedNodeName"] = Value::Null,
        _ => {}
    }
    let repeats = said.is_some_and(|condition| {
        condition.status == "False"
            && condition.reason.as_deref() == Some(reason)
            && condition.message.as_deref() == Some(message)
            && condition.observed_generation == pod.metadata.generation
    });
    if !repeats {
        let mut condition = json!({"type": "PodScheduled", "status": "False", "reason": reason, "message": message,
            "lastProbeTime": null, "observedGeneration": pod.metadata.generation});
        if said.is_none_or(|condition| condition.status != "False") {
            condition["lastTransitionTime"] = json!(now());
        }
        patch["status"]["conditions"] = json!([condition]);
    }
    patch["status"].as_object().is_some_and(|status| !status.is_empty()).then_some(patch)
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

pub async fn write(client: kube::Client, namespace: &str, name: &str, patch: Value) {
    let api: Api<Pod> = Api::namespaced(client, namespace);
    if let Err(error) = api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
        tracing::debug!(pod = name, namespace, %error, "status of an unschedulable pod is not written");
    }
}

/// Makes the victims go, and withdraws what less important pods were promised.
pub async fn preempt(client: kube::Client, recorder: Recorder, pod: &Pod, preemption: Preemption, robbed: Vec<Value>) {
    for victim in preemption.victims {
        let (namespace, name) = names(&victim);
        if victim.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
        let condition = json!({"metadata": {"uid": victim.metadata.uid}, "status": {"conditions": [{
            "type": "DisruptionTarget", "status": "True", "reason": REASON, "lastTransitionTime": now(),
            "message": format!("{NAME}: preempting to accommodate a higher priority pod"),
            "observedGeneration": victim.metadata.generation,
        }]}});
        let marked = api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(condition)).await;
        let preconditions = Preconditions { uid: victim.metadata.uid.clone(), resource_version: None };
        let delete = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let done = match marked {
            Ok(_) => api.delete(&name, &delete).await.map(drop),
            Err(error) => Err(error),
        };
        match done {
            Ok(()) => {
                let message = format!("Preempted by pod {} on node {}", uid(pod), preemption.node);
                recorder.event(reference(victim.as_ref()), EventType::Normal, "Preempted", message);
            }
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => tracing::warn!(pod = name, namespace, %error, "victim of preemption stays"),
        }
    }
    for patch in robbed {
        let text = |field: &str| patch["metadata"][field].as_str().unwrap_or_default().to_owned();
        write(client.clone(), &text("namespace"), &text("name"), patch).await;
    }
}

/// For [`preempt`]: the pod has no promise any more.
pub fn withdrawn(pod: &Pod) -> Value {
    json!({"metadata": {"namespace": pod.metadata.namespace, "name": pod.metadata.name, "uid": pod.metadata.uid},
        "status": {"nominatedNodeName": null}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_already_is_not_said_again() {
        let pod = |condition: Value| -> Pod {
            serde_json::from_value(json!({"metadata": {"generation": 1}, "status": {"conditions": [condition]}}))
                .unwrap()
        };
        let mut condition = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "why", "observedGeneration": 1});
        let said = pod(condition.clone());
        assert_eq!(not_scheduled(&said, "Unschedulable", "why", &Nomination::Same), None);
        assert_eq!(not_scheduled(&said, "Unschedulable", "why", &Nomination::Cleared), None);
        let patch = not_scheduled(&said, "Unschedulable", "why", &Nomination::Set("a".to_owned())).unwrap();
        assert_eq!(patch, json!({"status": {"nominatedNodeName": "a"}}));
        let other = not_scheduled(&said, "Unschedulable", "other", &Nomination::Same).unwrap();
        assert!(other["status"]["conditions"][0]["lastTransitionTime"].is_null(), "it was false before");
        condition["status"] = json!("True");
        let first = not_scheduled(&pod(condition), "Unschedulable", "why", &Nomination::Same).unwrap();
        assert!(first["status"]["conditions"][0]["lastTransitionTime"].is_string());
    }
}
