//! The kubelet between an API server and a runtime that live in memory.

mod fake;

use fake::{NODE, Node};
use serde_json::{Value, json};

fn pod(name: &str, spec: Value) -> Value {
    let mut spec = spec;
    spec["nodeName"] = NODE.into();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": spec})
}

fn is(path: &'static str, wanted: &'static str) -> impl Fn(Option<&Value>) -> bool {
    move |object| object.and_then(|o| o.pointer(path)).and_then(Value::as_str) == Some(wanted)
}

fn condition<'a>(pod: &'a Value, type_: &str) -> &'a Value {
    let all = pod["status"]["conditions"].as_array().unwrap();
    all.iter().find(|c| c["type"] == type_).unwrap()
}

fn ready(object: Option<&Value>) -> bool {
    object.is_some_and(|o| {
        o["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|c| c["type"] == "Ready" && c["status"] == "True")
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_runs_sees_its_configuration_and_ends() {
    let Some(mut node) = Node::new() else { return };
    let api = node.api.clone();
    api.put("configmaps", json!({"metadata": {"name": "cm", "namespace": "default"}, "data": {"key": "value"}}));
    api.put(
        "services",
        json!({"metadata": {"name": "web", "namespace": "default"},
        "spec": {"clusterIP": "10.43.0.9", "ports": [{"port": 80, "protocol": "TCP"}]}}),
    );
    api.put("pods", pod("p", json!({
        "serviceAccountName": "default",
        "containers": [{
            "name": "c", "image": "busybox", "command": ["echo", "$(FROM_MAP)"],
            "env": [
                {"name": "FROM_MAP", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "key"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            ],
            "volumeMounts": [{"name": "all", "mountPath": "/all"}, {"name": "d", "mountPath": "/d", "subPath": "sub"}],
        }],
        "volumes": [
            {"name": "all", "projected": {"sources": [
                {"configMap": {"name": "cm"}},
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
            ]}},
            {"name": "d", "emptyDir": {}},
        ],
    })));
    node.start();
    let running = api.until("pods", "default", "p", ready).await.unwrap();
    assert_eq!(running["status"]["phase"], "Running");
    assert_eq!(running["status"]["podIP"], "10.42.0.7");
    assert_eq!(running["status"]["hostIP"], "192.0.2.1");
    assert_eq!(running["status"]["qosClass"], "BestEffort");
    assert_eq!(running["status"]["containerStatuses"][0]["containerID"], "fake://container1");
    assert_eq!(condition(&running, "PodReadyToStartContainers")["status"], "True");

    let config = node.runtime.config("c").unwrap();
    assert_eq!(config.command, ["echo", "value"]);
    let env = |name: &str| config.envs.iter().find(|e| e.key == name).map(|e| e.value.clone());
    assert_eq!(env("IP").as_deref(), Some("10.42.0.7"));
    assert_eq!(env("WEB_SERVICE_HOST").as_deref(), Some("10.43.0.9"));
    let mount = |path: &str| config.mounts.iter().find(|m| m.container_path == path).unwrap().clone();
    let read = |file: &str| std::fs::read_to_string(format!("{}/{file}", mount("/all").host_path)).unwrap();
    assert_eq!((read("key"), read("token")), ("value".into(), "the-token".into()));
    assert!(mount("/all").readonly && !mount("/d").readonly);
    let hosts = std::fs::read_to_string(mount("/etc/hosts").host_path).unwrap();
    assert!(hosts.contains("10.42.0.7\tp\n"), "{hosts}");

    // A change of the ConfigMap reaches the file.
    let file = format!("{}/key", mount("/all").host_path);
    api.put("configmaps", json!({"metadata": {"name": "cm", "namespace": "default"}, "data": {"key": "other"}}));
    tokio::time::timeout(std::time::Duration::from_secs(10), async {
        while std::fs::read_to_string(&file).unwrap() != "other" {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();

    api.delete("pods", "default", "p", 1);
    api.until("pods", "default", "p", |object| object.is_none()).await;
    tokio::time::timeout(std::time::Duration::from_secs(10), async {
        while !node.runtime.is_empty() || node.dir.path().join("logs").read_dir().unwrap().next().is_some() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert!(node.dir.path().join("kubelet/pods").read_dir().unwrap().next().is_none());
    assert!(node.dir.path().join("kubelet/checkpoints/pods").read_dir().unwrap().next().is_none());
    let object = api.get("nodes", "", NODE).unwrap();
    assert_eq!(object["metadata"]["labels"]["kubernetes.io/hostname"], NODE);
    assert_eq!(api.get("leases", "kube-node-lease", NODE).unwrap()["spec"]["holderIdentity"], NODE);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashing_container_backs_off_and_a_finished_one_stays() {
    let Some(mut node) = Node::new() else { return };
    let api = node.api.clone();
    api.put("pods", pod("crash", json!({"containers": [{"name": "crasher", "image": "busybox"}]})));
    api.put(
        "pods",
        pod("once", json!({"restartPolicy": "Never", "containers": [{"name": "worker", "image": "busybox"}]})),
    );
    node.start();
    node.runtime.exit("crasher", 1).await;
    node.runtime.exit("crasher", 2).await;
    let reason = "/status/containerStatuses/0/state/waiting/reason";
    let crashed = api.until("pods", "default", "crash", is(reason, "CrashLoopBackOff")).await.unwrap();
    let status = &crashed["status"]["containerStatuses"][0];
    assert_eq!(status["restartCount"], 1);
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 2);
    let message = status["state"]["waiting"]["message"].as_str().unwrap();
    assert!(message.starts_with("back-off 10s restarting failed container=crasher pod=crash_default("), "{message}");
    assert_eq!(crashed["status"]["phase"], "Running");

    node.runtime.exit("worker", 0).await;
    let done = api.until("pods", "default", "once", is("/status/phase", "Succeeded")).await.unwrap();
    assert_eq!(done["status"]["containerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
    assert_eq!(condition(&done, "Ready")["reason"], "PodCompleted");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn init_containers_come_first_and_a_missing_image_is_told() {
    let Some(mut node) = Node::new() else { return };
    let api = node.api.clone();
    api.put(
        "pods",
        pod(
            "p",
            json!({
                "initContainers": [{"name": "first", "image": "busybox"}],
                "containers": [{"name": "main", "image": "busybox"}],
            }),
        ),
    );
    api.put("pods", pod("bad", json!({"containers": [{"name": "c", "image": "missing"}]})));
    node.start();
    let phase = "/status/initContainerStatuses/0/state/running/startedAt";
    let started = |object: Option<&Value>| object.is_some_and(|o| o.pointer(phase).is_some());
    let waiting = api.until("pods", "default", "p", started).await.unwrap();
    assert_eq!(waiting["status"]["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
    assert!(node.runtime.config("main").is_none());
    node.runtime.exit("first", 0).await;
    api.until("pods", "default", "p", ready).await;

    let reason = "/status/containerStatuses/0/state/waiting/reason";
    let bad = api.until("pods", "default", "bad", is(reason, "ImagePullBackOff")).await.unwrap();
    let message = bad["status"]["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap();
    assert!(
        message.starts_with("Back-off pulling image \"missing\": ErrImagePull: rpc error: code = NotFound"),
        "{message}"
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_touches_nothing_that_runs() {
    let Some(mut node) = Node::new() else { return };
    let api = node.api.clone();
    api.put("pods", pod("p", json!({"containers": [{"name": "c", "image": "busybox"}]})));
    node.start();
    let before = api.until("pods", "default", "p", ready).await.unwrap();
    node.stop().await;
    node.start();
    // Another pod shows that the second start has done its work.
    api.put("pods", pod("q", json!({"containers": [{"name": "d", "image": "busybox"}]})));
    api.until("pods", "default", "q", ready).await;
    let after = api.get("pods", "default", "p").unwrap();
    assert_eq!(before["status"]["containerStatuses"], after["status"]["containerStatuses"]);
    assert_eq!(node.runtime.made(), 2);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn static_pods_run_and_are_mirrored() {
    let Some(mut node) = Node::new() else { return };
    let api = node.api.clone();
    let manifests = node.dir.path().join("manifests");
    std::fs::create_dir_all(&manifests).unwrap();
    node.start();
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: s}\nspec:\n  containers: [{name: c, image: busybox}]\n";
    api.until("nodes", "", NODE, |node| node.is_some()).await;
    std::fs::write(manifests.join("s.yaml"), text).unwrap();
    let mirror = api.until("pods", "default", "s-node1", ready).await.unwrap();
    assert!(mirror["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string());
    std::fs::remove_file(manifests.join("s.yaml")).unwrap();
    api.until("pods", "default", "s-node1", |object| object.is_none()).await;
    assert!(api.list("pods").is_empty());
    node.stop().await;
}
