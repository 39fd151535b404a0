//! Questions asked of a Pod all over the kubelet, answered in one place.

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, ObjectReference, Pod, PodSpec};

pub const SOURCE: &str = "kubernetes.io/config.source";
pub const HASH: &str = "kubernetes.io/config.hash";
pub const MIRROR: &str = "kubernetes.io/config.mirror";
pub const SEEN: &str = "kubernetes.io/config.seen";

/// The longest a pod may take to end when nobody said otherwise.
const GRACE_DEFAULT: i64 = 30;

pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

/// As upstream writes a pod in messages and logs.
pub fn full(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

pub fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Whether the pod comes from a file on this node and not from the API.
pub fn is_static(pod: &Pod) -> bool {
    annotation(pod, SOURCE).is_some_and(|s| s != "api")
}

/// Whether the object only shows a static pod in the API.
pub fn is_mirror(pod: &Pod) -> bool {
    annotation(pod, MIRROR).is_some()
}

pub fn is_terminal(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_some_and(is_terminal_phase)
}

pub fn is_terminal_phase(phase: &str) -> bool {
    phase == "Failed" || phase == "Succeeded"
}

pub fn spec(pod: &Pod) -> Option<&PodSpec> {
    pod.spec.as_ref()
}

pub fn containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().map(|s| s.containers.as_slice()).unwrap_or_default()
}

pub fn init_containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().and_then(|s| s.init_containers.as_deref()).unwrap_or_default()
}

pub fn ephemeral_containers(pod: &Pod) -> Vec<Container> {
    let list = pod.spec.as_ref().and_then(|s| s.ephemeral_containers.as_deref()).unwrap_or_default();
    list.iter().map(from_ephemeral).collect()
}

/// An ephemeral container seen as an ordinary one; what only it has is its target.
pub fn from_ephemeral(e: &EphemeralContainer) -> Container {
    let e = e.clone();
    Container {
        args: e.args,
        command: e.command,
        env: e.env,
        env_from: e.env_from,
        image: e.image,
        image_pull_policy: e.image_pull_policy,
        lifecycle: e.lifecycle,
        liveness_probe: e.liveness_probe,
        name: e.name,
        ports: e.ports,
        readiness_probe: e.readiness_probe,
        resize_policy: e.resize_policy,
        resources: e.resources,
        restart_policy: e.restart_policy,
        restart_policy_rules: e.restart_policy_rules,
        security_context: e.security_context,
        startup_probe: e.startup_probe,
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        termination_message_path: e.termination_message_path,
        termination_message_policy: e.termination_message_policy,
        tty: e.tty,
        volume_devices: e.volume_devices,
        volume_mounts: e.volume_mounts,
        working_dir: e.working_dir,
    }
}

/// All containers of every kind, in the order they start.
pub fn all_containers(pod: &Pod) -> Vec<Container> {
    let mut all = init_containers(pod).to_vec();
    all.extend_from_slice(containers(pod));
    all.extend(ephemeral_containers(pod));
    all
}

pub fn find_container(pod: &Pod, container: &str) -> Option<Container> {
    all_containers(pod).into_iter().find(|c| c.name == container)
}

/// An init container that keeps running beside the regular ones.
pub fn is_sidecar(init: &Container) -> bool {
    init.restart_policy.as_deref() == Some("Always")
}

pub fn host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false)
}

pub fn restart_policy(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always")
}

/// The grace period in seconds that the pod's present state asks for.
pub fn grace_seconds(pod: &Pod) -> i64 {
    pod.metadata
        .deletion_grace_period_seconds
        .or_else(|| pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds))
        .unwrap_or(GRACE_DEFAULT)
        .max(0)
}

pub fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        ..Default::default()
    }
}

/// Points at one container of the pod, as events about containers do.
pub fn container_reference(pod: &Pod, container: &str) -> ObjectReference {
    let field = if init_containers(pod).iter().any(|c| c.name == container) {
        "initContainers"
    } else if containers(pod).iter().any(|c| c.name == container) {
        "containers"
    } else {
        "ephemeralContainers"
    };
    ObjectReference { field_path: Some(format!("spec.{field}{{{container}}}")), ..reference(pod) }
}

/// Whether the API has the pod as ready.
pub fn api_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
