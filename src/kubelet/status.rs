//! Computes what the API is told about a pod: phase, conditions, container statuses.
//!
//! Pure. `report.rs` sends it.

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    ContainerUser, HostIP, LinuxContainerUser, Pod, PodCondition, PodIP, PodStatus, ResourceRequirements,
    VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use mussel_cri::v1;

use crate::allocation::Pending;
use crate::observed::{Observed, Seen};
use crate::plan::{Health, restart_after_exit, should_restart};
use crate::{pod, resources};

/// The conditions that the kubelet sets; all others belong to others.
pub const OWN_CONDITIONS: [&str; 8] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    "DisruptionTarget",
    RESIZE_PENDING,
    RESIZING,
];

/// The spec asks for more than the pod was given. Taken away, not set to false, when it is not so any more.
pub const RESIZE_PENDING: &str = "PodResizePending";

/// Some container does not have yet what the spec gives it. Taken away, not set to false, when all have it.
pub const RESIZING: &str = "PodResizeInProgress";

/// What a container waits for, in the words of its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub reason: String,
    pub message: String,
}

/// An end that the kubelet itself decided: rejected, evicted, deadline exceeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub reason: String,
    pub message: String,
    /// Whether the pod was disturbed for reasons of the node, which Jobs and others treat apart.
    pub disruption: bool,
}

pub struct Inputs<'a> {
    pub pod: &'a Pod,
    pub observed: &'a Observed,
    pub waiting: &'a HashMap<String, Waiting>,
    pub health: &'a dyn Health,
    pub verdict: Option<&'a Verdict>,
    /// Why `pod` does not have the resources that its spec in the API asks for.
    pub pending: Option<&'a Pending>,
    /// The status reported before, or the API's at first.
    pub before: &'a PodStatus,
    pub host_ips: &'a [String],
    /// As in `mussel://<id>`.
    pub runtime_name: &'a str,
    /// What the container left in its termination message file or, if it asked for that, its log.
    pub message: &'a dyn Fn(&Container, &Seen) -> Option<String>,
    /// What a running container really has, where that is known.
    pub actual: &'a dyn Fn(&Seen) -> Option<ResourceRequirements>,
    /// The pod is ending and its containers will not be started again.
    pub ending: bool,
    pub now: Timestamp,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Init,
    Sidecar,
    Regular,
    Ephemeral,
}

pub fn compute(inputs: &Inputs) -> PodStatus {
    let Inputs { pod, observed, before, .. } = *inputs;
    let list = |containers: &[Container], kind: fn(&Container) -> Kind, old: Option<&Vec<ContainerStatus>>| {
        let one = |c: &Container| {
            let old = old.and_then(|l| l.iter().find(|s| s.name == c.name));
            container_status(inputs, c, kind(c), old)
        };
        let all: Vec<ContainerStatus> = containers.iter().map(one).collect();
        (!all.is_empty()).then_some(all)
    };
    let init_kind = |c: &Container| if pod::is_sidecar(c) { Kind::Sidecar } else { Kind::Init };
    let inits = list(pod::init_containers(pod), init_kind, before.init_container_statuses.as_ref());
    let regular = list(pod::containers(pod), |_| Kind::Regular, before.container_statuses.as_ref());
    let ephemeral =
        list(&pod::ephemeral_containers(pod), |_| Kind::Ephemeral, before.ephemeral_container_statuses.as_ref());
    let all_down = |l: &Option<Vec<ContainerStatus>>| l.iter().flatten().all(|s| state_of(s) != State::Running);
    let down = all_down(&inits) && all_down(&regular);

    let mut status = PodStatus {
        init_container_statuses: inits,
        container_statuses: regular,
        ephemeral_container_statuses: ephemeral,
        qos_class: before.qos_class.clone().or_else(|| Some(resources::qos(pod).as_str().to_owned())),
        start_time: before.start_time.clone().or(Some(Time(inputs.now))),
        host_ip: inputs.host_ips.first().cloned(),
        host_ips: Some(inputs.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        observed_generation: pod.metadata.generation,
        nominated_node_name: None,
        resource_claim_statuses: before.resource_claim_statuses.clone(),
        ..Default::default()
    };
    let ended_before = before.phase.as_deref().filter(|p| pod::is_terminal_phase(p));
    let computed = phase(pod, &status, inputs.ending && down);
    status.phase = Some(match (ended_before, inputs.verdict) {
        (Some(phase), _) => phase.to_owned(),
        // Failed is final for others too, so it is said only when nothing runs any more.
        (None, Some(_)) if down => "Failed".into(),
        (None, _) if pod::is_terminal_phase(computed) && !down => "Running".into(),
        (None, _) => computed.into(),
    });
    if let Some(verdict) = inputs.verdict {
        status.reason = Some(verdict.reason.clone());
        status.message = Some(verdict.message.clone());
    } else if ended_before.is_some() {
        status.reason = before.reason.clone();
        status.message = before.message.clone();
    }
    let ips = if pod::host_network(pod) { inputs.host_ips.to_vec() } else { observed.pod_ips() };
    if !ips.is_empty() {
        status.pod_ip = ips.first().cloned();
        status.pod_ips = Some(ips.into_iter().map(|ip| PodIP { ip }).collect());
    } else if inputs.ending || ended_before.is_some() {
        // The address is gone with the sandbox, but who looks at a dead pod wants to know which it was.
        status.pod_ip = before.pod_ip.clone();
        status.pod_ips = before.pod_ips.clone();
    }
    conditions(inputs, &mut status);
    status
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum State {
    Waiting,
    Running,
    Terminated,
}

fn state_of(status: &ContainerStatus) -> State {
    match &status.state {
        Some(s) if s.running.is_some() => State::Running,
        Some(s) if s.terminated.is_some() => State::Terminated,
        _ => State::Waiting,
    }
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    let waiting = ContainerStateWaiting { reason: Some(reason.into()), message };
    ContainerState { waiting: Some(waiting), ..Default::default() }
}

fn terminated(inputs: &Inputs, container: &Container, seen: &Seen) -> ContainerState {
    let status = &seen.status;
    let runtime_message = Some(status.message.clone()).filter(|m| !m.is_empty());
    let reason = match status.reason.as_str() {
        "" if status.exit_code == 0 => "Completed",
        "" => "Error",
        reason => reason,
    };
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(format!("{}://{}", inputs.runtime_name, status.id)),
            exit_code: status.exit_code,
            reason: Some(reason.to_owned()),
            message: (inputs.message)(container, seen).or(runtime_message),
            started_at: Some(Time(
                seen.started_at().or_else(|| crate::observed::time(status.created_at)).unwrap_or_default(),
            )),
            finished_at: Some(Time(seen.finished_at().unwrap_or(inputs.now))),
            signal: None,
        }),
        ..Default::default()
    }
}

fn container_status(
    inputs: &Inputs,
    container: &Container,
    kind: Kind,
    old: Option<&ContainerStatus>,
) -> ContainerStatus {
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        started: Some(false),
        last_state: Some(ContainerState::default()),
        ..Default::default()
    };
    let seen = inputs.observed.container(&container.name);
    match seen {
        Some(seen) => from_seen(inputs, container, kind, seen, old, &mut status),
        None => from_nothing(inputs, kind, old, &mut status),
    }
    // The newest failure to bring it up outranks how its last run ended.
    let down = state_of(&status) != State::Running;
    let comes_again = match (kind, seen) {
        _ if inputs.ending => false,
        (Kind::Ephemeral, Some(_)) => false,
        (Kind::Sidecar, _) | (_, None) => state_of(&status) == State::Waiting || kind == Kind::Sidecar,
        (_, Some(seen)) => should_restart(inputs.pod, container, seen),
    };
    if let Some(why) = inputs.waiting.get(&container.name)
        && down
        && comes_again
    {
        if let Some(state) = status.state.take().filter(|s| s.terminated.is_some()) {
            status.last_state = Some(state);
        }
        status.state = Some(waiting(&why.reason, Some(why.message.clone()).filter(|m| !m.is_empty())));
        status.ready = false;
    }
    status
}

/// Why any container of the pod, an init container too, does not run yet.
fn not_yet(pod: &Pod) -> &'static str {
    if pod::init_containers(pod).is_empty() { "ContainerCreating" } else { "PodInitializing" }
}

fn from_seen(
    inputs: &Inputs,
    container: &Container,
    kind: Kind,
    seen: &Seen,
    old: Option<&ContainerStatus>,
    status: &mut ContainerStatus,
) {
    let cri = &seen.status;
    status.container_id = Some(format!("{}://{}", inputs.runtime_name, cri.id));
    if let Some(image) = cri.image.as_ref().map(|i| &i.image).filter(|i| !i.is_empty() && !i.starts_with("sha256:")) {
        status.image = image.clone();
    }
    status.image_id = cri.image_ref.clone();
    status.restart_count = seen.restart_count();
    status.state = Some(match seen.state() {
        v1::ContainerState::ContainerRunning => ContainerState {
            running: Some(ContainerStateRunning {
                started_at: Some(Time(
                    seen.started_at().or_else(|| crate::observed::time(cri.created_at)).unwrap_or(inputs.now),
                )),
            }),
            ..Default::default()
        },
        v1::ContainerState::ContainerExited => terminated(inputs, container, seen),
        // Made but not started: its start failed, or is under way.
        _ => waiting(not_yet(inputs.pod), None),
    });
    if let Some(previous) = inputs.observed.previous(&container.name) {
        status.last_state = Some(terminated(inputs, container, previous));
    } else if let Some(old) = old.filter(|o| o.container_id == status.container_id)
        && old.last_state.is_some()
    {
        status.last_state.clone_from(&old.last_state);
    } else if let Some(old) = old.filter(|o| o.container_id != status.container_id) {
        // The dead container was cleaned away before we looked again.
        let ended = old.state.clone().filter(|s| s.terminated.is_some());
        status.last_state = ended.or_else(|| old.last_state.clone()).or_else(|| status.last_state.take());
    }
    let running = seen.is_running();
    match kind {
        Kind::Init => {
            status.started = Some(running);
            status.ready = seen.state() == v1::ContainerState::ContainerExited && cri.exit_code == 0;
        }
        Kind::Ephemeral => status.started = Some(running),
        Kind::Sidecar | Kind::Regular => {
            let started = running && inputs.health.started(seen.id());
            status.started = Some(started);
            status.ready = started && inputs.health.ready(seen.id());
        }
    }
    if kind == Kind::Ephemeral {
        status.started = None;
    }
    if running && kind != Kind::Ephemeral {
        status.resources = (inputs.actual)(seen).or_else(|| Some(container.resources.clone().unwrap_or_default()));
        status.allocated_resources =
            container.resources.as_ref().and_then(|r| r.requests.clone()).filter(|r| !r.is_empty());
    }
    let mounts: Vec<VolumeMountStatus> = container
        .volume_mounts
        .iter()
        .flatten()
        .map(|m| VolumeMountStatus {
            mount_path: m.mount_path.clone(),
            name: m.name.clone(),
            read_only: m.read_only.filter(|r| *r),
            recursive_read_only: m
                .read_only
                .filter(|r| *r)
                .map(|_| m.recursive_read_only.clone().unwrap_or_else(|| "Disabled".into())),
            ..Default::default()
        })
        .collect();
    status.volume_mounts = (!mounts.is_empty()).then_some(mounts);
    status.user = cri.user.as_ref().and_then(|u| u.linux.as_ref()).map(|linux| ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: linux.uid,
            gid: linux.gid,
            supplemental_groups: Some(linux.supplemental_groups.clone()).filter(|g| !g.is_empty()),
        }),
    });
}

/// The runtime knows no such container: it was never made, or it was cleaned away.
fn from_nothing(inputs: &Inputs, kind: Kind, old: Option<&ContainerStatus>, status: &mut ContainerStatus) {
    status.state = Some(waiting(not_yet(inputs.pod), None));
    let Some(old) = old else { return };
    status.restart_count = old.restart_count;
    if let Some(state) = old.state.clone().filter(|s| s.terminated.is_some()) {
        let ready = old.ready;
        *status = ContainerStatus { state: Some(state), ..old.clone() };
        status.ready = ready && kind == Kind::Init;
        status.started = Some(false);
        return;
    }
    status.last_state = old.last_state.clone().or_else(|| status.last_state.take());
    if old.state.as_ref().is_some_and(|s| s.running.is_some()) {
        let lost = ContainerState {
            terminated: Some(ContainerStateTerminated {
                exit_code: 137,
                reason: Some("ContainerStatusUnknown".into()),
                message: Some(
                    "The container could not be located when the pod was deleted.  The container used to be Running"
                        .into(),
                ),
                ..Default::default()
            }),
            ..Default::default()
        };
        if inputs.ending {
            status.state = Some(lost);
        } else {
            status.last_state = Some(lost);
            status.restart_count += 1;
        }
    }
}

/// `ended`: nothing runs and nothing will be started.
fn phase(pod: &Pod, status: &PodStatus, ended: bool) -> &'static str {
    let exit = |s: &Option<ContainerState>| s.as_ref().and_then(|s| s.terminated.as_ref()).map(|t| t.exit_code);
    let mut pending_init = 0;
    let mut failed_init = 0;
    for (container, s) in pod::init_containers(pod).iter().zip(status.init_container_statuses.iter().flatten()) {
        if pod::is_sidecar(container) {
            if s.started != Some(true) && state_of(s) != State::Terminated {
                pending_init += 1;
            }
            continue;
        }
        match state_of(s) {
            State::Running => pending_init += 1,
            State::Terminated => failed_init += i32::from(exit(&s.state).is_some_and(|c| c != 0)),
            State::Waiting => match exit(&s.last_state) {
                Some(code) if code != 0 => failed_init += 1,
                _ => pending_init += 1,
            },
        }
    }
    let (mut waiting, mut running, mut stopped, mut succeeded, mut again) = (0, 0, 0, 0, 0);
    for (container, s) in pod::containers(pod).iter().zip(status.container_statuses.iter().flatten()) {
        match state_of(s) {
            State::Running => running += 1,
            State::Terminated => {
                stopped += 1;
                let code = exit(&s.state).unwrap_or(1);
                succeeded += i32::from(code == 0);
                again += i32::from(restart_after_exit(pod, container, code));
            }
            State::Waiting if exit(&s.last_state).is_some() => {
                stopped += 1;
                again += 1;
            }
            State::Waiting => waiting += 1,
        }
    }
    let total = pod::containers(pod).len();
    if ended {
        // Whatever never came to run cannot have succeeded.
        return if stopped == succeeded && usize::try_from(stopped).unwrap_or(0) == total && failed_init == 0 {
            "Succeeded"
        } else {
            "Failed"
        };
    }
    let started_any = running + stopped > 0;
    if failed_init > 0 && pod::restart_policy(pod) == "Never" {
        return "Failed";
    }
    match () {
        () if (pending_init > 0 || failed_init > 0) && !started_any => "Pending",
        () if waiting > 0 => "Pending",
        () if running > 0 => "Running",
        () if stopped > 0 && again > 0 => "Running",
        () if stopped > 0 && stopped == succeeded => "Succeeded",
        () if stopped > 0 => "Failed",
        () => "Pending",
    }
}

fn conditions(inputs: &Inputs, status: &mut PodStatus) {
    let pod = inputs.pod;
    let phase = status.phase.clone().unwrap_or_default();
    let old = inputs.before.conditions.clone().unwrap_or_default();
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    let sidecars: Vec<&ContainerStatus> = pod::init_containers(pod)
        .iter()
        .zip(status.init_container_statuses.iter().flatten())
        .filter(|(c, _)| pod::is_sidecar(c))
        .map(|(_, s)| s)
        .collect();

    let serving = sidecars.iter().copied().chain(containers);
    let unready: Vec<&str> = serving.filter(|s| !s.ready).map(|s| s.name.as_str()).collect();
    let containers_ready = match phase.as_str() {
        "Succeeded" => (false, "PodCompleted", String::new()),
        "Failed" => (false, "PodFailed", String::new()),
        _ if !unready.is_empty() => {
            (false, "ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" ")))
        }
        _ => (true, "", String::new()),
    };
    let ready = if containers_ready.0 { gates(pod, &old) } else { containers_ready.clone() };

    let incomplete: Vec<&str> = pod::init_containers(pod)
        .iter()
        .zip(status.init_container_statuses.iter().flatten())
        .filter(|(c, s)| if pod::is_sidecar(c) { s.started != Some(true) } else { !s.ready })
        .map(|(_, s)| s.name.as_str())
        .collect();
    let begun = containers.iter().any(|s| s.container_id.is_some());
    let initialized = match phase.as_str() {
        "Succeeded" => (true, "PodCompleted", String::new()),
        _ if incomplete.is_empty() || begun => (true, "", String::new()),
        _ => (
            false,
            "ContainersNotInitialized",
            format!("containers with incomplete status: [{}]", incomplete.join(" ")),
        ),
    };
    let has_address = pod::host_network(pod) || !inputs.observed.pod_ips().is_empty();
    let sandbox = inputs.observed.ready_sandbox().is_some() && has_address;
    let ready_to_start = (sandbox, "", String::new());

    let mut own = vec![
        ("PodReadyToStartContainers", ready_to_start),
        ("Initialized", initialized),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", (true, "", String::new())),
    ];
    if let Some(verdict) = inputs.verdict.filter(|v| v.disruption) {
        own.push(("DisruptionTarget", (true, "TerminationByKubelet", verdict.message.clone())));
    }
    if !inputs.ending && resizing(inputs, status) {
        own.push((RESIZING, (true, "", String::new())));
    }
    if let Some(pending) = inputs.pending.filter(|_| !inputs.ending) {
        own.push((RESIZE_PENDING, (true, pending.reason, pending.message.clone())));
    }
    let mut conditions = Vec::new();
    for (type_, (is, reason, message)) in own {
        let is = if is { "True" } else { "False" };
        let before = old.iter().find(|c| c.type_ == type_);
        let since = before.filter(|c| c.status == is).and_then(|c| c.last_transition_time.clone());
        conditions.push(PodCondition {
            type_: type_.into(),
            status: is.into(),
            reason: Some(reason.to_owned()).filter(|r| !r.is_empty()),
            message: Some(message).filter(|m| !m.is_empty()),
            last_transition_time: since.or(Some(Time(inputs.now))),
            observed_generation: pod.metadata.generation,
            last_probe_time: None,
        });
    }
    status.conditions = Some(conditions);
}

fn resizing(inputs: &Inputs, status: &PodStatus) -> bool {
    let pod = inputs.pod;
    let regular = pod::containers(pod).iter().zip(status.container_statuses.iter().flatten());
    let inits = pod::init_containers(pod).iter().zip(status.init_container_statuses.iter().flatten());
    regular.chain(inits.filter(|(c, _)| pod::is_sidecar(c))).any(|(container, status)| {
        let running = state_of(status) == State::Running;
        running && status.resources.as_ref() != Some(&container.resources.clone().unwrap_or_default())
    })
}

/// Readiness gates: conditions that others set.
fn gates(pod: &Pod, old: &[PodCondition]) -> (bool, &'static str, String) {
    let from_api = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    let mut missing = Vec::new();
    for gate in pod::spec(pod).and_then(|s| s.readiness_gates.as_ref()).into_iter().flatten() {
        let wanted = &gate.condition_type;
        let found = from_api.into_iter().flatten().chain(old).find(|c| c.type_ == *wanted).map(|c| c.status.as_str());
        match found {
            Some("True") => {}
            Some(other) => {
                missing.push(format!("the status of pod readiness gate \"{wanted}\" is not \"True\", but {other}"));
            }
            None => missing.push(format!("corresponding condition of pod readiness gate \"{wanted}\" does not exist.")),
        }
    }
    if missing.is_empty() { (true, "", String::new()) } else { (false, "ReadinessGatesNotReady", missing.join(", ")) }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
