//! Tables for the status: a pod, what is seen of it, and what is said.

use serde_json::json;

use super::*;

struct Healthy;

impl Health for Healthy {
    fn liveness_failed(&self, _: &str) -> bool {
        false
    }
    fn startup_failed(&self, _: &str) -> bool {
        false
    }
    fn started(&self, _: &str) -> bool {
        true
    }
    fn ready(&self, _: &str) -> bool {
        true
    }
}

fn pod(policy: &str, inits: &[&str], containers: &[&str]) -> Pod {
    let list = |names: &[&str]| names.iter().map(|n| json!({"name": n, "image": "x"})).collect::<Vec<_>>();
    serde_json::from_value(json!({"metadata": {"generation": 3}, "spec": {
        "restartPolicy": policy, "initContainers": list(inits), "containers": list(containers),
    }}))
    .unwrap()
}

/// `name=running`, or `name=<exit code>`; more than one of a name is newest first.
fn seen(text: &str) -> Observed {
    let sandbox = v1::PodSandboxStatus {
        id: "s".into(),
        network: Some(v1::PodSandboxNetworkStatus { ip: "10.42.0.5".into(), ..Default::default() }),
        ..Default::default()
    };
    let mut observed = Observed { sandboxes: vec![sandbox], containers: Vec::new() };
    for (i, part) in text.split_whitespace().enumerate() {
        let (name, state) = part.split_once('=').unwrap();
        let (state, exit_code) = match state {
            "running" => (v1::ContainerState::ContainerRunning, 0),
            code => (v1::ContainerState::ContainerExited, code.parse().unwrap()),
        };
        observed.containers.push(Seen {
            sandbox: "s".into(),
            name: name.into(),
            status: v1::ContainerStatus {
                id: format!("{name}{i}"),
                state: state.into(),
                exit_code,
                created_at: 1_700_000_000_000_000_000,
                started_at: 1_700_000_000_000_000_000,
                finished_at: 1_700_000_001_000_000_000,
                ..Default::default()
            },
        });
    }
    observed
}

fn run(pod: &Pod, observed: &Observed, waiting: &[(&str, &str)], ending: bool, verdict: Option<&Verdict>) -> PodStatus {
    let waiting = waiting
        .iter()
        .map(|(name, reason)| ((*name).to_owned(), Waiting { reason: (*reason).into(), message: String::new() }))
        .collect();
    compute(&Inputs {
        pending: None,
        pod,
        observed,
        waiting: &waiting,
        health: &Healthy,
        verdict,
        before: &PodStatus::default(),
        host_ips: &["192.0.2.1".to_owned()],
        runtime_name: "mussel",
        message: &|_, _| None,
        actual: &|_| None,
        ending,
        now: Timestamp::from_second(1_700_000_100).unwrap(),
    })
}

#[test]
fn the_phase_follows_the_containers() {
    for (policy, inits, state, waiting, ending, expected) in [
        ("Always", &[][..], "", &[][..], false, "Pending"),
        ("Always", &[], "a=running", &[], false, "Pending"),
        ("Always", &[], "a=running b=running", &[], false, "Running"),
        ("Always", &[], "a=running b=1", &[], false, "Running"),
        ("Always", &[], "a=1 b=1", &[("a", "CrashLoopBackOff")], false, "Running"),
        ("OnFailure", &[], "a=0 b=0", &[], false, "Succeeded"),
        ("OnFailure", &[], "a=0 b=1", &[], false, "Running"),
        ("Never", &[], "a=0 b=1", &[], false, "Failed"),
        ("Never", &[], "a=running b=1", &[], false, "Running"),
        ("Never", &["i"], "i=1", &[], false, "Failed"),
        ("Always", &["i"], "i=1", &[], false, "Pending"),
        ("Always", &["i"], "i=running", &[], false, "Pending"),
        ("Always", &["i"], "i=0 a=running b=running", &[], false, "Running"),
        ("Always", &[], "a=0 b=0", &[], true, "Succeeded"),
        ("Always", &[], "a=137 b=0", &[], true, "Failed"),
        ("Always", &[], "", &[], true, "Failed"),
        ("Always", &[], "a=running b=0", &[], true, "Running"),
    ] {
        let pod = pod(policy, inits, &["a", "b"]);
        let status = run(&pod, &seen(state), waiting, ending, None);
        assert_eq!(status.phase.as_deref(), Some(expected), "{policy} {state} {ending}");
    }
}

fn condition<'a>(status: &'a PodStatus, type_: &str) -> &'a PodCondition {
    status.conditions.as_ref().unwrap().iter().find(|c| c.type_ == type_).unwrap()
}

#[test]
fn conditions_say_what_is_missing() {
    let status = run(&pod("Always", &["i"], &["a"]), &seen("i=running"), &[], false, None);
    let initialized = condition(&status, "Initialized");
    assert_eq!(initialized.reason.as_deref(), Some("ContainersNotInitialized"));
    assert_eq!(initialized.message.as_deref(), Some("containers with incomplete status: [i]"));
    let ready = condition(&status, "Ready");
    assert_eq!(ready.message.as_deref(), Some("containers with unready status: [a]"));
    assert_eq!(condition(&status, "PodReadyToStartContainers").status, "True");
    assert_eq!(ready.observed_generation, Some(3));

    let status = run(&pod("Always", &[], &["a"]), &seen("a=running"), &[], false, None);
    assert_eq!(condition(&status, "Ready").status, "True");
    assert_eq!(status.pod_ip.as_deref(), Some("10.42.0.5"));

    let status = run(&pod("Never", &[], &["a"]), &seen("a=0"), &[], false, None);
    assert_eq!(condition(&status, "Ready").reason.as_deref(), Some("PodCompleted"));

    let mut gated = pod("Always", &[], &["a"]);
    gated.spec.as_mut().unwrap().readiness_gates = serde_json::from_value(json!([{"conditionType": "x/y"}])).unwrap();
    let status = run(&gated, &seen("a=running"), &[], false, None);
    assert_eq!(condition(&status, "Ready").reason.as_deref(), Some("ReadinessGatesNotReady"));
    assert_eq!(condition(&status, "ContainersReady").status, "True");
}

#[test]
fn a_crashing_container_waits_and_remembers() {
    let status = run(&pod("Always", &[], &["a"]), &seen("a=3 a=4"), &[("a", "CrashLoopBackOff")], false, None);
    let container = &status.container_statuses.unwrap()[0];
    let waiting = container.state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
    let last = container.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (3, Some("Error")));
    assert_eq!(last.container_id.as_deref(), Some("mussel://a0"));

    let status = run(&pod("Always", &[], &["a"]), &seen("a=running a=4"), &[], false, None);
    let container = &status.container_statuses.unwrap()[0];
    assert!(container.ready && container.started == Some(true));
    assert_eq!(container.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 4);
}

#[test]
fn an_evicted_pod_fails_when_nothing_runs_any_more() {
    let verdict = Verdict { reason: "Evicted".into(), message: "m".into(), disruption: true };
    let pod = pod("Always", &[], &["a"]);
    let status = run(&pod, &seen("a=running"), &[], true, Some(&verdict));
    assert_eq!(status.phase.as_deref(), Some("Running"));
    let status = run(&pod, &seen("a=137"), &[], true, Some(&verdict));
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("Evicted")));
    assert_eq!(condition(&status, "DisruptionTarget").reason.as_deref(), Some("TerminationByKubelet"));
}

#[test]
fn a_container_that_never_was_says_why() {
    let status = run(&pod("Always", &[], &["a"]), &seen(""), &[("a", "ErrImagePull")], false, None);
    let state = status.container_statuses.as_ref().unwrap()[0].state.clone().unwrap();
    assert_eq!(state.waiting.unwrap().reason.as_deref(), Some("ErrImagePull"));
    // Init containers, too, wait for the pod to be initialized.
    let status = run(&pod("Always", &["i"], &["a"]), &seen(""), &[], false, None);
    for list in [status.container_statuses, status.init_container_statuses] {
        let state = list.unwrap()[0].state.clone().unwrap();
        assert_eq!(state.waiting.unwrap().reason.as_deref(), Some("PodInitializing"));
    }
}
