//! Tables for the plan: a pod, what is seen of it, and what must be done.

use std::collections::{HashMap, HashSet};

use mussel_cri::v1;
use serde_json::json;

use super::*;
use crate::labels;

#[derive(Default)]
struct Probes {
    dead: HashSet<String>,
    unstarted: HashSet<String>,
}

impl Health for Probes {
    fn liveness_failed(&self, id: &str) -> bool {
        self.dead.contains(id)
    }
    fn startup_failed(&self, _: &str) -> bool {
        false
    }
    fn started(&self, id: &str) -> bool {
        !self.unstarted.contains(id)
    }
    fn ready(&self, _: &str) -> bool {
        true
    }
}

fn pod(policy: &str, inits: serde_json::Value, containers: &[&str]) -> Pod {
    let containers: Vec<_> = containers.iter().map(|n| json!({"name": n, "image": "x"})).collect();
    serde_json::from_value(json!({"spec": {
        "restartPolicy": policy, "initContainers": inits, "containers": containers,
    }}))
    .unwrap()
}

fn sandbox(attempt: u32, ready: bool) -> v1::PodSandboxStatus {
    v1::PodSandboxStatus {
        id: format!("s{attempt}"),
        metadata: Some(v1::PodSandboxMetadata { attempt, ..Default::default() }),
        state: i32::from(!ready),
        network: Some(v1::PodSandboxNetworkStatus { ip: "10.0.0.2".into(), ..Default::default() }),
        ..Default::default()
    }
}

/// `name=running`, `name=0` (the exit code), `name=created`.
fn seen(pod: &Pod, text: &str) -> Observed {
    let mut observed = Observed { sandboxes: vec![sandbox(0, true)], containers: Vec::new() };
    for part in text.split_whitespace() {
        let (name, state) = part.split_once('=').unwrap();
        let hash = pod::find_container(pod, name).map(|c| container_hash(&c)).unwrap_or_default();
        let (state, exit_code) = match state {
            "running" => (ContainerState::ContainerRunning, 0),
            "created" => (ContainerState::ContainerCreated, 0),
            "unknown" => (ContainerState::ContainerUnknown, 0),
            code => (ContainerState::ContainerExited, code.parse().unwrap()),
        };
        observed.containers.push(Seen {
            sandbox: "s0".into(),
            name: name.into(),
            status: v1::ContainerStatus {
                id: name.into(),
                state: state.into(),
                exit_code,
                annotations: HashMap::from([(labels::CONTAINER_HASH.to_owned(), hash)]),
                ..Default::default()
            },
        });
    }
    observed
}

fn show(plan: &Plan) -> String {
    let mut text = String::new();
    if plan.kill_pod {
        text += "kill-pod ";
    }
    if let Some(n) = plan.create_sandbox {
        text += &format!("sandbox-{n} ");
    }
    for id in plan.kill.keys() {
        text += &format!("kill-{id} ");
    }
    for which in &plan.start {
        text += &match which {
            Which::Init(i) => format!("init-{i} "),
            Which::Regular(i) => format!("start-{i} "),
            Which::Ephemeral(i) => format!("ephemeral-{i} "),
        };
    }
    text.trim_end().to_owned()
}

#[test]
fn containers_start_restart_and_stay() {
    let one_init = json!([{"name": "i", "image": "x"}]);
    let sidecar = json!([{"name": "s", "image": "x", "restartPolicy": "Always"}, {"name": "i", "image": "x"}]);
    for (policy, inits, state, expected) in [
        ("Always", json!([]), "", "start-0 start-1"),
        ("Always", json!([]), "a=running", "start-1"),
        ("Always", json!([]), "a=running b=0", "start-1"),
        ("OnFailure", json!([]), "a=running b=0", ""),
        ("OnFailure", json!([]), "a=running b=1", "start-1"),
        ("Never", json!([]), "a=running b=1", ""),
        ("Never", json!([]), "a=0 b=1", "kill-pod"),
        ("Never", json!([]), "a=running b=unknown", "kill-b start-1"),
        ("Always", one_init.clone(), "", "init-0"),
        ("Always", one_init.clone(), "i=running", ""),
        ("Always", one_init.clone(), "i=1", "init-0"),
        ("Never", one_init.clone(), "i=1", "kill-pod"),
        ("Always", one_init.clone(), "i=0", "start-0 start-1"),
        // The init container was cleaned away while the pod ran.
        ("Always", one_init, "a=running b=running", ""),
        ("Always", sidecar.clone(), "", "init-0"),
        ("Always", sidecar.clone(), "s=running", "init-1"),
        ("Always", sidecar.clone(), "s=running i=0", "start-0 start-1"),
        ("Always", sidecar.clone(), "s=1 a=running b=running", "init-0"),
        ("Never", sidecar, "s=running a=0 b=0 i=0", "kill-pod"),
    ] {
        let pod = pod(policy, inits, &["a", "b"]);
        let plan = plan(&pod, &seen(&pod, state), &Probes::default());
        assert_eq!(show(&plan), expected, "{policy} {state}");
    }
}

#[test]
fn a_sidecar_that_has_not_started_holds_up_the_rest() {
    let pod = pod("Always", json!([{"name": "s", "image": "x", "restartPolicy": "Always"}]), &["a"]);
    let probes = Probes { unstarted: HashSet::from(["s".to_owned()]), ..Default::default() };
    assert_eq!(show(&plan(&pod, &seen(&pod, "s=running"), &probes)), "");
}

#[test]
fn sandboxes_come_and_go() {
    let pod = pod("Always", json!([]), &["a"]);
    let never = self::pod("Never", json!([]), &["a"]);
    let plan = |pod: &Pod, observed: &Observed| show(&super::plan(pod, observed, &Probes::default()));
    assert_eq!(plan(&pod, &Observed::default()), "sandbox-0 start-0");
    let mut lost = seen(&pod, "a=255");
    lost.sandboxes = vec![sandbox(0, false)];
    assert_eq!(plan(&pod, &lost), "kill-pod sandbox-1 start-0");
    assert_eq!(plan(&never, &lost), "kill-pod");
    let mut no_address = seen(&pod, "a=running");
    no_address.sandboxes[0].network = None;
    assert_eq!(plan(&pod, &no_address), "kill-pod sandbox-1 start-0");
}

#[test]
fn a_dead_or_changed_container_is_replaced() {
    let pod = pod("Always", json!([]), &["a"]);
    let probes = Probes { dead: HashSet::from(["a".to_owned()]), ..Default::default() };
    let result = plan(&pod, &seen(&pod, "a=running"), &probes);
    assert_eq!(show(&result), "kill-a start-0");
    assert_eq!(result.kill["a"].message, "Container a failed liveness probe, will be restarted");
    let mut changed = pod.clone();
    changed.spec.as_mut().unwrap().containers[0].image = Some("y".into());
    let result = plan(&changed, &seen(&pod, "a=running"), &Probes::default());
    assert_eq!(result.kill["a"].message, "Container a definition changed, will be restarted");
}

#[test]
fn restart_rules_come_before_the_policy() {
    let mut pod = pod("Never", json!([]), &["a"]);
    let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    let container = &mut pod.spec.as_mut().unwrap().containers[0];
    container.restart_policy_rules = serde_json::from_value(rules).unwrap();
    let container = pod::containers(&pod)[0].clone();
    assert!(restart_after_exit(&pod, &container, 42));
    assert!(!restart_after_exit(&pod, &container, 1));
}

#[test]
fn a_resize_restarts_only_where_the_policy_says_so() {
    let sized = |memory: &str, cpu: &str| -> Pod {
        serde_json::from_value(json!({"spec": {"containers": [{"name": "a", "image": "x",
            "resources": {"requests": {"memory": memory, "cpu": cpu}}, "resizePolicy": [
                {"resourceName": "memory", "restartPolicy": "RestartContainer"},
                {"resourceName": "cpu", "restartPolicy": "NotRequired"}]}]}}))
        .unwrap()
    };
    let before = sized("64Mi", "100m");
    let mut observed = seen(&before, "a=running");
    let fixed = labels::fixed_resources(&pod::containers(&before)[0]).unwrap();
    observed.containers[0].status.annotations.insert(labels::FIXED_RESOURCES.to_owned(), fixed);
    for (pod, expected) in
        [(sized("64Mi", "100m"), ""), (sized("64Mi", "200m"), ""), (sized("128Mi", "100m"), "kill-a start-0")]
    {
        assert_eq!(show(&plan(&pod, &observed, &Probes::default())), expected);
    }
}
