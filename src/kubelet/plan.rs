//! Decides what must be done to a pod's sandbox and containers.
//!
//! Pure: equal inputs give equal plans. Back-off is not looked at here; whoever starts a container applies it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use mussel_cri::v1::ContainerState;

use crate::labels::{container_hash, fixed_resources};
use crate::observed::{Observed, Seen};
use crate::pod;

/// Why a running container must go, in the words of the `Killing` event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kill {
    pub container: String,
    pub message: String,
    pub why: Why,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    Changed,
    Liveness,
    Startup,
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    Init(usize),
    Regular(usize),
    Ephemeral(usize),
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Stop every container and the sandbox first.
    pub kill_pod: bool,
    /// Then make a new sandbox, with this attempt number.
    pub create_sandbox: Option<u32>,
    /// By container id.
    pub kill: BTreeMap<String, Kill>,
    /// In this order.
    pub start: Vec<Which>,
}

/// What the probes of running containers found, by container id.
pub trait Health {
    fn liveness_failed(&self, id: &str) -> bool;
    fn startup_failed(&self, id: &str) -> bool;
    /// Whether the container passed its startup probe, if any, and its postStart hook.
    fn started(&self, id: &str) -> bool;
    /// Whether the container may get traffic: its readiness probe says so, or it has none.
    fn ready(&self, id: &str) -> bool;
}

pub fn plan(pod: &Pod, observed: &Observed, health: &dyn Health) -> Plan {
    let mut plan = Plan::default();
    if let Some(attempt) = sandbox_needed(pod, observed) {
        plan.kill_pod = !observed.sandboxes.is_empty();
        let restartable = pod::restart_policy(pod) != "Never"
            || pod::containers(pod).iter().any(|c| container_policy(pod, c) != "Never" || has_rules(c));
        if !restartable && attempt != 0 && !observed.containers.is_empty() {
            return plan;
        }
        let to_start: Vec<Which> = (0..pod::containers(pod).len())
            .filter(|i| {
                let container = &pod::containers(pod)[*i];
                // What has done its work in an earlier sandbox is not done again.
                !observed.container(&container.name).is_some_and(|seen| is_done(pod, container, seen))
            })
            .map(Which::Regular)
            .collect();
        if to_start.is_empty() {
            return plan;
        }
        plan.create_sandbox = Some(attempt);
        plan.start = if pod::init_containers(pod).is_empty() { to_start } else { vec![Which::Init(0)] };
        return plan;
    }
    for (i, container) in pod::ephemeral_containers(pod).iter().enumerate() {
        if observed.container(&container.name).is_none() {
            plan.start.push(Which::Ephemeral(i));
        }
    }
    match init(pod, observed, health, &mut plan) {
        Init::Failed => plan.kill_pod = true,
        Init::Busy => {}
        Init::Done => regular(pod, observed, health, &mut plan),
    }
    plan
}

/// The attempt number of a new sandbox, if the present one cannot serve.
fn sandbox_needed(pod: &Pod, observed: &Observed) -> Option<u32> {
    let Some(newest) = observed.sandbox() else { return Some(0) };
    let next = newest.metadata.as_ref().map_or(0, |m| m.attempt) + 1;
    let ready = observed.sandboxes.iter().filter(|s| s.state() == mussel_cri::v1::PodSandboxState::SandboxReady);
    let without_address = !pod::host_network(pod) && observed.pod_ips().is_empty();
    (ready.count() != 1 || observed.ready_sandbox().is_none() || without_address).then_some(next)
}

enum Init {
    Done,
    Busy,
    Failed,
}

fn init(pod: &Pod, observed: &Observed, health: &dyn Health, plan: &mut Plan) -> Init {
    let inits = pod::init_containers(pod);
    // Once a regular container exists in this sandbox, all that had to come first has come.
    let past = pod::containers(pod).iter().any(|c| observed.current(&c.name).is_some());
    for (i, container) in inits.iter().enumerate() {
        let seen = observed.current(&container.name);
        if pod::is_sidecar(container) {
            match seen {
                Some(seen) if seen.is_running() => {
                    if let Some(kill) = must_go(container, seen, health) {
                        plan.kill.insert(seen.id().to_owned(), restarted(kill));
                        plan.start.push(Which::Init(i));
                        if !past {
                            return Init::Busy;
                        }
                    } else if !past && !health.started(seen.id()) {
                        return Init::Busy;
                    }
                }
                other => {
                    if let Some(seen) = other.filter(|s| s.state() == ContainerState::ContainerUnknown) {
                        plan.kill.insert(seen.id().to_owned(), unknown(container));
                    }
                    plan.start.push(Which::Init(i));
                    if !past {
                        return Init::Busy;
                    }
                }
            }
            continue;
        }
        if past {
            continue;
        }
        match seen {
            None => {
                plan.start.push(Which::Init(i));
                return Init::Busy;
            }
            Some(seen) => match seen.state() {
                ContainerState::ContainerRunning => return Init::Busy,
                ContainerState::ContainerExited if seen.status.exit_code == 0 => {}
                ContainerState::ContainerExited => {
                    if !should_restart(pod, container, seen) {
                        return Init::Failed;
                    }
                    plan.start.push(Which::Init(i));
                    return Init::Busy;
                }
                ContainerState::ContainerCreated => {
                    plan.start.push(Which::Init(i));
                    return Init::Busy;
                }
                ContainerState::ContainerUnknown => {
                    plan.kill.insert(seen.id().to_owned(), unknown(container));
                    plan.start.push(Which::Init(i));
                    return Init::Busy;
                }
            },
        }
    }
    Init::Done
}

fn regular(pod: &Pod, observed: &Observed, health: &dyn Health, plan: &mut Plan) {
    let mut kept = 0;
    let mut starting = 0;
    for (i, container) in pod::containers(pod).iter().enumerate() {
        let seen = observed.current(&container.name).or_else(|| observed.container(&container.name));
        match seen {
            Some(seen) if seen.is_running() => {
                let Some(kill) = must_go(container, seen, health) else {
                    kept += 1;
                    continue;
                };
                let again = kill.why == Why::Changed || container_policy(pod, container) != "Never";
                if again {
                    plan.start.push(Which::Regular(i));
                    starting += 1;
                }
                plan.kill.insert(seen.id().to_owned(), if again { restarted(kill) } else { kill });
            }
            Some(seen) if !should_restart(pod, container, seen) => {}
            other => {
                if let Some(seen) = other.filter(|s| s.state() == ContainerState::ContainerUnknown) {
                    plan.kill.insert(seen.id().to_owned(), unknown(container));
                }
                plan.start.push(Which::Regular(i));
                starting += 1;
            }
        }
    }
    if kept == 0 && starting == 0 {
        plan.kill_pod = true;
        plan.start.clear();
    }
}

fn must_go(container: &Container, seen: &Seen, health: &dyn Health) -> Option<Kill> {
    let name = &container.name;
    let (message, why) = if seen.hash().is_some_and(|h| h != container_hash(container)) {
        (format!("Container {name} definition changed"), Why::Changed)
    } else if seen.fixed_resources().is_some_and(|fixed| fixed_resources(container).as_deref() != Some(fixed)) {
        (format!("Container {name} resize requires restart"), Why::Changed)
    } else if health.liveness_failed(seen.id()) {
        (format!("Container {name} failed liveness probe"), Why::Liveness)
    } else if health.startup_failed(seen.id()) {
        (format!("Container {name} failed startup probe"), Why::Startup)
    } else {
        return None;
    };
    Some(Kill { container: name.clone(), message, why })
}

fn restarted(kill: Kill) -> Kill {
    Kill { message: format!("{}, will be restarted", kill.message), ..kill }
}

fn unknown(container: &Container) -> Kill {
    let message = format!("Container is in \"unknown\" state, try killing it before restart: {}", container.name);
    Kill { container: container.name.clone(), message, why: Why::Unknown }
}

fn has_rules(container: &Container) -> bool {
    container.restart_policy_rules.as_ref().is_some_and(|r| !r.is_empty())
}

/// The pod's policy, or the container's own where it has one.
pub fn container_policy<'a>(pod: &'a Pod, container: &'a Container) -> &'a str {
    container.restart_policy.as_deref().unwrap_or_else(|| pod::restart_policy(pod))
}

/// Whether a container that does not run is to be run again.
pub fn should_restart(pod: &Pod, container: &Container, seen: &Seen) -> bool {
    if pod.metadata.deletion_timestamp.is_some() {
        return false;
    }
    match seen.state() {
        ContainerState::ContainerRunning => false,
        ContainerState::ContainerCreated | ContainerState::ContainerUnknown => true,
        ContainerState::ContainerExited => restart_after_exit(pod, container, seen.status.exit_code),
    }
}

/// The restart rules of the container, then its policy.
pub fn restart_after_exit(pod: &Pod, container: &Container, exit_code: i32) -> bool {
    for rule in container.restart_policy_rules.iter().flatten() {
        let Some(codes) = &rule.exit_codes else { continue };
        let listed = codes.values.iter().flatten().any(|c| *c == exit_code);
        let applies = match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        };
        if applies {
            return rule.action == "Restart";
        }
    }
    match container_policy(pod, container) {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        _ => true,
    }
}

fn is_done(pod: &Pod, container: &Container, seen: &Seen) -> bool {
    seen.state() == ContainerState::ContainerExited && !restart_after_exit(pod, container, seen.status.exit_code)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
