//! The names under which upstream's kubelet marks sandboxes and containers in the runtime. Any kubelet and any CRI tool
//! can read them, and after a restart they are how running containers are known again.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::pod;

pub const POD_NAME: &str = "io.kubernetes.pod.name";
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub const POD_UID: &str = "io.kubernetes.pod.uid";
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
pub const TERMINATION_PATH: &str = "io.kubernetes.container.terminationMessagePath";
pub const TERMINATION_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
pub const PRE_STOP: &str = "io.kubernetes.container.preStopHandler";
pub const CONTAINER_PORTS: &str = "io.kubernetes.container.ports";
/// What the container was made with of the resources that it cannot be given anew without a restart.
pub const FIXED_RESOURCES: &str = "mussel.io/container-fixed-resources";
pub const POD_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";

fn map<const N: usize>(pairs: [(&str, String); N]) -> HashMap<String, String> {
    pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
}

pub fn sandbox_labels(pod: &Pod) -> HashMap<String, String> {
    let mut labels: HashMap<String, String> = pod.metadata.labels.clone().unwrap_or_default().into_iter().collect();
    labels.extend(map([
        (POD_NAME, pod::name(pod).into()),
        (POD_NAMESPACE, pod::namespace(pod).into()),
        (POD_UID, pod::uid(pod).into()),
    ]));
    labels
}

pub fn container_labels(pod: &Pod, container: &Container) -> HashMap<String, String> {
    map([
        (POD_NAME, pod::name(pod).into()),
        (POD_NAMESPACE, pod::namespace(pod).into()),
        (POD_UID, pod::uid(pod).into()),
        (CONTAINER_NAME, container.name.clone()),
    ])
}

pub fn container_annotations(pod: &Pod, container: &Container, restarts: i32) -> HashMap<String, String> {
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    let mut all = map([
        (CONTAINER_HASH, container_hash(container)),
        (RESTART_COUNT, restarts.to_string()),
        (TERMINATION_PATH, text(&container.termination_message_path)),
        (TERMINATION_POLICY, text(&container.termination_message_policy)),
    ]);
    if let Some(fixed) = fixed_resources(container) {
        all.insert(FIXED_RESOURCES.into(), fixed);
    }
    if let Some(grace) = pod::spec(pod).and_then(|s| s.termination_grace_period_seconds) {
        all.insert(POD_GRACE.into(), grace.to_string());
    }
    if let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref())
        && let Ok(hook) = serde_json::to_string(hook)
    {
        all.insert(PRE_STOP.into(), hook);
    }
    if let Some(ports) = container.ports.as_ref().filter(|p| !p.is_empty())
        && let Ok(ports) = serde_json::to_string(ports)
    {
        all.insert(CONTAINER_PORTS.into(), ports);
    }
    all
}

/// Requests and limits of the resources whose resize policy is to restart; `None` when there are none.
pub fn fixed_resources(container: &Container) -> Option<String> {
    let policies = container.resize_policy.iter().flatten().filter(|p| p.restart_policy == "RestartContainer");
    let amounts = |name: &str| {
        let resources = container.resources.as_ref();
        let of = |list: Option<&BTreeMap<String, Quantity>>| list.and_then(|l| l.get(name)).map(|q| q.0.clone());
        (of(resources.and_then(|r| r.requests.as_ref())), of(resources.and_then(|r| r.limits.as_ref())))
    };
    let fixed: BTreeMap<&str, _> = policies.map(|p| (p.resource_name.as_str(), amounts(&p.resource_name))).collect();
    (!fixed.is_empty()).then(|| serde_json::json!(fixed).to_string())
}

/// Changes when the container must be made anew. Only the name and the image count: all else is immutable or applied in
/// place, and so an upgrade of mussel that knows more fields restarts nothing.
pub fn container_hash(container: &Container) -> String {
    let text = serde_json::json!({"image": container.image, "name": container.name}).to_string();
    let mut hash: u32 = 0x811c_9dc5;
    for byte in text.bytes() {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    format!("{hash:x}")
}
