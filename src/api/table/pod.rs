//! Pods: what STATUS, READY and RESTARTS say is worked out from phase, conditions and container states.

use jiff::Timestamp;
use serde_json::Value;

use super::age;
use super::column::{AGE, NAME, Printer, text as column};
use super::text::{self, NONE, condition, flag, list, number};
use crate::object::ObjectExt;

pub(super) fn printer(kind: &str) -> Option<&'static Printer> {
    match kind {
        "Pod" => Some(&POD),
        "PodTemplate" => Some(&POD_TEMPLATE),
        _ => None,
    }
}

static POD: Printer = Printer {
    columns: &[
        NAME,
        column("Ready", "Containers that are ready, of all that should run."),
        column("Status", "Phase of the Pod, or the reason for which it is not what it should be."),
        column("Restarts", "How often containers were restarted, and when last."),
        AGE,
        column("IP", "Address of the Pod.").wide(),
        column("Node", "Node that the Pod was assigned to.").wide(),
        column("Nominated Node", "Node on which the scheduler makes room for the Pod.").wide(),
        column("Readiness Gates", "Conditions of the readiness gates that are true.").wide(),
    ],
    cells: pod,
};

static POD_TEMPLATE: Printer = Printer {
    columns: &[
        NAME,
        column("Containers", "Names of each container in the template."),
        column("Images", "Images referenced by each container in the template."),
        column("Pod Labels", "The labels for the pod template."),
    ],
    cells: |object, _| {
        let [names, images] = text::containers(object, "template.spec");
        vec![text::name(object), names, images, text::labels(text::map(object, "template.metadata.labels")).into()]
    },
};

/// Restarts counted so far, and when the last one was.
#[derive(Default)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += number(status, "restartCount");
        self.last = self.last.max(age::parse(status.str_at("lastState.terminated.finishedAt")));
    }
}

fn pod(pod: &Value, now: Timestamp) -> Vec<Value> {
    let init_containers = list(pod, "spec.initContainers");
    let is_sidecar =
        |name: &str| init_containers.iter().any(|c| c.str_at("name") == name && c.str_at("restartPolicy") == "Always");
    let sidecars = init_containers.iter().filter(|c| c.str_at("restartPolicy") == "Always").count();
    let total = list(pod, "spec.containers").len() + sidecars;
    let mut ready = 0;
    let mut reason = text::or(pod, "status.reason", pod.str_at("status.phase")).to_owned();
    let gated = |c: &Value| c.str_at("type") == "PodScheduled" && c.str_at("reason") == "SchedulingGated";
    if list(pod, "status.conditions").iter().any(gated) {
        reason = "SchedulingGated".to_owned();
    }

    let (mut restarts, mut sidecar_restarts) = (Restarts::default(), Restarts::default());
    let mut initializing = false;
    for (index, status) in list(pod, "status.initContainerStatuses").iter().enumerate() {
        restarts.add(status);
        let sidecar = is_sidecar(status.str_at("name"));
        if sidecar {
            sidecar_restarts.add(status);
        }
        let terminated = status.at("state.terminated");
        if terminated.is_some_and(|t| number(t, "exitCode") == 0) {
            continue;
        }
        if sidecar && flag(status, "started") {
            ready += usize::from(flag(status, "ready"));
            continue;
        }
        let waiting = status.str_at("state.waiting.reason");
        reason = match terminated {
            Some(terminated) => format!("Init:{}", end_of(terminated)),
            None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
            None => format!("Init:{index}/{}", init_containers.len()),
        };
        initializing = true;
        break;
    }

    if !initializing || condition(pod, "Initialized") == "True" {
        restarts = sidecar_restarts;
        let mut running = false;
        for status in list(pod, "status.containerStatuses").iter().rev() {
            restarts.add(status);
            let waiting = status.str_at("state.waiting.reason");
            if !waiting.is_empty() {
                reason = waiting.to_owned();
            } else if let Some(terminated) = status.at("state.terminated") {
                reason = end_of(terminated);
            } else if flag(status, "ready") && status.at("state.running").is_some() {
                running = true;
                ready += 1;
            }
        }
        if reason == "Completed" && running {
            reason = if condition(pod, "Ready") == "True" { "Running" } else { "NotReady" }.to_owned();
        }
    }
    if pod.is_deleting() {
        if pod.str_at("status.reason") == "NodeLost" {
            reason = "Unknown".to_owned();
        } else if !matches!(pod.str_at("status.phase"), "Succeeded" | "Failed") {
            reason = "Terminating".to_owned();
        }
    }

    let restarts = match restarts.last {
        Some(last) if restarts.count != 0 => {
            format!("{} ({} ago)", restarts.count, age::human_duration(now.as_second() - last.as_second()))
        }
        _ => restarts.count.to_string(),
    };
    let address = list(pod, "status.podIPs").first().map(|ip| ip.str_at("ip")).filter(|ip| !ip.is_empty());
    vec![
        text::name(pod),
        format!("{ready}/{total}").into(),
        reason.into(),
        restarts.into(),
        age::of(pod, now),
        address.unwrap_or_else(|| text::or(pod, "status.podIP", NONE)).into(),
        text::or(pod, "spec.nodeName", NONE).into(),
        text::or(pod, "status.nominatedNodeName", NONE).into(),
        readiness_gates(pod).into(),
    ]
}

fn end_of(terminated: &Value) -> String {
    match (terminated.str_at("reason"), number(terminated, "signal")) {
        ("", 0) => format!("ExitCode:{}", number(terminated, "exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn readiness_gates(pod: &Value) -> String {
    let gates = list(pod, "spec.readinessGates");
    let met = gates.iter().filter(|gate| condition(pod, gate.str_at("conditionType")) == "True").count();
    if gates.is_empty() { NONE.to_owned() } else { format!("{met}/{}", gates.len()) }
}
