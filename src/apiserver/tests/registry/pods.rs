//! Pods: status, binding, grace, eviction.

use serde_json::{Value, json};

use crate::support::{Cluster, PODS, pod};

fn binding(name: &str, node: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": {"apiVersion": "v1", "kind": "Node", "name": node}})
}

async fn bound(cluster: &Cluster, name: &str) -> String {
    cluster.post(PODS, pod(name)).await.ok();
    cluster.post(&format!("{PODS}/{name}/binding"), binding(name, "n")).await.ok();
    format!("{PODS}/{name}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_starts_pending_and_is_bound_once() {
    let cluster = Cluster::start().await;
    let mut wish = pod("p");
    wish["status"] = json!({"phase": "Running"});
    let made = cluster.post(PODS, wish).await.ok();
    assert_eq!(
        (made["status"]["phase"].as_str(), made["status"]["qosClass"].as_str()),
        (Some("Pending"), Some("BestEffort"))
    );
    assert_eq!(made["spec"]["serviceAccountName"], "default");
    assert!(made["spec"]["volumes"][0]["name"].as_str().unwrap().starts_with("kube-api-access-"));
    assert_eq!(
        (made["spec"]["priority"].as_i64(), made["spec"]["tolerations"].as_array().unwrap().len()),
        (Some(0), 2)
    );
    let at = format!("{PODS}/p");
    assert_eq!(cluster.post(&format!("{at}/binding"), binding("p", "n")).await.code, 201);
    let pod = cluster.get(&at).await.ok();
    assert_eq!(
        (pod["spec"]["nodeName"].as_str(), pod["status"]["conditions"][0]["type"].as_str()),
        (Some("n"), Some("PodScheduled"))
    );
    let (code, _, message) = cluster.post(&format!("{at}/binding"), binding("p", "m")).await.refused();
    assert_eq!(
        (code, message.as_str()),
        (409, "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n\"")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn status_is_changed_by_its_own_path() {
    let cluster = Cluster::start().await;
    let at = bound(&cluster, "p").await;
    let object = cluster.patch(&at, "merge", json!({"status": {"phase": "Running"}})).await.ok();
    assert_eq!(object["status"]["phase"], "Pending");
    let patch = json!({"status": {"phase": "Running", "podIP": "10.42.0.5"}});
    let object = cluster.patch(&format!("{at}/status"), "strategic-merge", patch).await.ok();
    assert_eq!(
        (object["status"]["phase"].as_str(), object["status"]["qosClass"].as_str()),
        (Some("Running"), Some("BestEffort"))
    );
    let listed = cluster.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn%2Cstatus.phase%3DRunning").await.ok();
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_generation_counts_changes_of_the_spec() {
    let cluster = Cluster::start().await;
    let at = bound(&cluster, "p").await;
    let mut pod = cluster.get(&at).await.ok();
    assert_eq!(pod["metadata"]["generation"], 1);
    pod["metadata"]["annotations"] = json!({"note": "x"});
    let mut pod = cluster.put(&at, pod).await.ok();
    assert_eq!(pod["metadata"]["generation"], 1);
    pod["spec"]["activeDeadlineSeconds"] = 600.into();
    assert_eq!(cluster.put(&at, pod).await.ok()["metadata"]["generation"], 2);
    let going = cluster.delete(&at, Value::Null).await.ok();
    assert_eq!(going["metadata"]["generation"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_is_graceful_once_a_pod_has_a_node() {
    let cluster = Cluster::start().await;
    cluster.post(PODS, pod("free")).await.ok();
    cluster.delete(&format!("{PODS}/free"), Value::Null).await.ok();
    assert_eq!(cluster.get(&format!("{PODS}/free")).await.code, 404);

    let at = bound(&cluster, "p").await;
    let going = cluster.delete(&at, Value::Null).await.ok();
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 30);
    let sooner = cluster.delete(&at, json!({"gracePeriodSeconds": 5})).await.ok();
    assert_eq!(sooner["metadata"]["deletionGracePeriodSeconds"], 5);
    assert!(sooner["metadata"]["deletionTimestamp"].as_str() < going["metadata"]["deletionTimestamp"].as_str());
    let uid = going["metadata"]["uid"].clone();
    let last = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": uid}});
    cluster.delete(&at, last).await.ok();
    assert_eq!(cluster.get(&at).await.code, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eviction_asks_the_budget() {
    let cluster = Cluster::start().await;
    let at = bound(&cluster, "p").await;
    let running = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    cluster.patch(&format!("{at}/status"), "merge", running).await.ok();
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "p"}}}});
    cluster.post(budgets, budget).await.ok();
    let status = json!({"status": {"observedGeneration": 1, "disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}});
    cluster.patch(&format!("{budgets}/b/status"), "merge", status).await.ok();
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    let refused = cluster.post(&format!("{at}/eviction"), eviction.clone()).await;
    assert_eq!((refused.code, refused.body["reason"].as_str()), (429, Some("TooManyRequests")));
    assert_eq!(refused.body["details"]["causes"][0]["reason"], "DisruptionBudget");
    cluster.patch(&format!("{budgets}/b/status"), "merge", json!({"status": {"disruptionsAllowed": 1}})).await.ok();
    assert_eq!(cluster.post(&format!("{at}/eviction"), eviction).await.code, 201);
    let pod = cluster.get(&at).await.ok();
    assert!(pod["metadata"]["deletionTimestamp"].is_string());
    // Jobs tell a disturbed Pod from one that failed by this.
    let conditions = pod["status"]["conditions"].as_array().unwrap();
    let target = conditions.iter().find(|c| c["type"] == "DisruptionTarget").unwrap();
    assert_eq!((target["status"].as_str(), target["reason"].as_str()), (Some("True"), Some("EvictionByEvictionAPI")));
    assert_eq!(cluster.get(&format!("{budgets}/b")).await.ok()["status"]["disruptionsAllowed"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn ephemeral_containers_are_added_only() {
    let cluster = Cluster::start().await;
    let at = bound(&cluster, "p").await;
    let patch = json!({"spec": {"ephemeralContainers": [{"name": "debug", "image": "busybox"}]}});
    let object = cluster.patch(&format!("{at}/ephemeralcontainers"), "strategic-merge", patch).await.ok();
    assert_eq!(object["spec"]["ephemeralContainers"][0]["name"], "debug");
    let (code, ..) = cluster
        .patch(&format!("{at}/ephemeralcontainers"), "merge", json!({"spec": {"ephemeralContainers": []}}))
        .await
        .refused();
    assert_eq!(code, 422);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_selects_its_own_pods() {
    let cluster = Cluster::start().await;
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}, "spec": {"template": {"spec": {
        "restartPolicy": "Never", "containers": [{"name": "c", "image": "busybox"}]}}}});
    let jobs = "/apis/batch/v1/namespaces/default/jobs";
    let job = cluster.post(jobs, job).await.ok();
    let uid = &job["metadata"]["uid"];
    assert_eq!(&job["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"], uid);
    assert_eq!(job["spec"]["template"]["metadata"]["labels"]["job-name"], "j");
    let going = cluster.delete(&format!("{jobs}/j"), Value::Null).await;
    assert!(going.headers["warning"].to_str().unwrap().contains("child pods are preserved by default"));
    assert_eq!(going.body["metadata"]["finalizers"], json!(["orphan"]));
}
