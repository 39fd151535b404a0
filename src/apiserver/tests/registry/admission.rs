//! Admission plugins, through the API.

use serde_json::json;

use crate::support::{Cluster, PODS, account, pod};

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_needs_its_service_account() {
    let cluster = Cluster::start().await;
    let mut wish = pod("p");
    wish["spec"]["serviceAccountName"] = "robot".into();
    let (code, _, message) = cluster.post(PODS, wish.clone()).await.refused();
    assert_eq!(
        (code, message.as_str()),
        (
            403,
            "pods \"p\" is forbidden: error looking up service account default/robot: serviceaccount \"robot\" not found"
        )
    );
    let mut robot = account("robot");
    robot["automountServiceAccountToken"] = false.into();
    robot["imagePullSecrets"] = json!([{"name": "pull"}]);
    cluster.post("/api/v1/namespaces/default/serviceaccounts", robot).await.ok();
    let made = cluster.post(PODS, wish).await.ok();
    assert!(made["spec"]["volumes"].is_null());
    assert_eq!(made["spec"]["imagePullSecrets"][0]["name"], "pull");
}

#[tokio::test(flavor = "multi_thread")]
async fn priorities_come_from_classes() {
    let cluster = Cluster::start().await;
    let mut wish = pod("p");
    wish["spec"]["priorityClassName"] = "none".into();
    let (code, _, message) = cluster.post(PODS, wish.clone()).await.refused();
    assert_eq!((code, message.as_str()), (403, "pods \"p\" is forbidden: no PriorityClass with name none was found"));
    wish["spec"]["priorityClassName"] = "system-node-critical".into();
    assert_eq!(cluster.post(PODS, wish).await.ok()["spec"]["priority"], 2_000_001_000_i64);
}

#[tokio::test(flavor = "multi_thread")]
async fn limit_ranges_fill_in_and_bound() {
    let cluster = Cluster::start().await;
    let range = json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "l"}, "spec": {"limits": [
        {"type": "Container", "default": {"cpu": "200m"}, "defaultRequest": {"cpu": "100m"}, "max": {"cpu": "500m"}}]}});
    cluster.post("/api/v1/namespaces/default/limitranges", range).await.ok();
    let made = cluster.post(PODS, pod("p")).await.ok();
    assert_eq!(
        made["spec"]["containers"][0]["resources"],
        json!({"limits": {"cpu": "200m"}, "requests": {"cpu": "100m"}})
    );
    assert_eq!(made["status"]["qosClass"], "Burstable");
    let mut wish = pod("q");
    wish["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "1"}});
    let (code, _, message) = cluster.post(PODS, wish).await.refused();
    assert_eq!(
        (code, message.as_str()),
        (403, "pods \"q\" is forbidden: maximum cpu usage per Container is 500m, but limit is 1")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn kubelets_keep_to_their_node() {
    let cluster = Cluster::start().await;
    let kubelet = cluster.as_user("system:node:n", &["system:nodes"]);
    let node =
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "status": {"capacity": {"cpu": "2"}}});
    let made = kubelet.post("/api/v1/nodes", node.clone()).await.ok();
    assert_eq!(made["spec"]["taints"][0]["key"], "node.kubernetes.io/not-ready");
    assert_eq!(made["status"]["capacity"]["cpu"], "2");
    let mut other = node;
    other["metadata"]["name"] = "m".into();
    assert_eq!(kubelet.post("/api/v1/nodes", other).await.code, 403);
    let label = json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": "true"}}});
    let (code, _, message) = kubelet.patch("/api/v1/nodes/n", "merge", label).await.refused();
    assert_eq!(code, 403);
    assert!(message.contains("is not allowed to modify labels: node-role.kubernetes.io/control-plane"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taint_that_evicts_knows_since_when() {
    let cluster = Cluster::start().await;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}});
    cluster.post("/api/v1/nodes", node).await.ok();
    let taints =
        json!({"spec": {"taints": [{"key": "a", "effect": "NoExecute"}, {"key": "b", "effect": "NoSchedule"}]}});
    let node = cluster.patch("/api/v1/nodes/n", "merge", taints).await.ok();
    let since = node["spec"]["taints"][0]["timeAdded"].clone();
    assert!(since.is_string() && node["spec"]["taints"][1]["timeAdded"].is_null(), "{node}");
    let labels = json!({"metadata": {"labels": {"x": "y"}}});
    assert_eq!(cluster.patch("/api/v1/nodes/n", "merge", labels).await.ok()["spec"]["taints"][0]["timeAdded"], since);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_grants_what_they_do_not_hold() {
    let cluster = Cluster::start().await;
    let roles = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles";
    let role = |name: &str, resource: &str| {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name},
            "rules": [{"apiGroups": ["", "rbac.authorization.k8s.io"], "resources": [resource, "roles"], "verbs": ["get", "create"]}]})
    };
    cluster.post(roles, role("some", "pods")).await.ok();
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "some"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "some"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "dev"}]});
    cluster.post("/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", binding).await.ok();
    let dev = cluster.as_user("dev", &[]);
    // The authorizer follows the store; the binding is seen within moments.
    while dev.get(&format!("{roles}/some")).await.code == 403 {
        tokio::task::yield_now().await;
    }
    dev.post(roles, role("same", "pods")).await.ok();
    let refused = dev.post(roles, role("more", "secrets")).await.refused();
    assert_eq!(refused.0, 403, "{}", refused.2);
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_and_volumes_are_protected() {
    let cluster = Cluster::start().await;
    let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "provisioner": "x",
        "metadata": {"name": "std", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}});
    cluster.post("/apis/storage.k8s.io/v1/storageclasses", class).await.ok();
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let made = cluster.post("/api/v1/namespaces/default/persistentvolumeclaims", claim).await.ok();
    assert_eq!(made["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
    assert_eq!(
        (made["spec"]["storageClassName"].as_str(), made["status"]["phase"].as_str()),
        (Some("std"), Some("Pending"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_count_what_is_there() {
    let cluster = Cluster::start().await;
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {"pods": "1"}}});
    cluster.post("/api/v1/namespaces/default/resourcequotas", quota).await.ok();
    cluster.post(PODS, pod("a")).await.ok();
    let (code, _, message) = cluster.post(PODS, pod("b")).await.refused();
    assert_eq!(
        (code, message.as_str()),
        (403, "pods \"b\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1")
    );
    cluster.delete(&format!("{PODS}/a"), json!(null)).await.ok();
    cluster.post(PODS, pod("b")).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_holds_against_many_at_once() {
    let cluster = Cluster::start().await;
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {"pods": "3"}}});
    cluster.post(quotas, quota).await.ok();
    let names: Vec<String> = (0..40).map(|n| format!("p{n}")).collect();
    let answers = futures::future::join_all(names.iter().map(|name| cluster.post(PODS, pod(name)))).await;
    let mut codes: Vec<u16> = answers.iter().map(|answer| answer.code).collect();
    codes.sort_unstable();
    assert_eq!((&codes[..4], codes[39]), (&[201, 201, 201, 403][..], 403));
    // What is taken shows in the status at once.
    let status = cluster.get(&format!("{quotas}/q")).await.ok()["status"].clone();
    assert_eq!(status, json!({"hard": {"pods": "3"}, "used": {"pods": "3"}}));
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_enforce_pod_security() {
    let cluster = Cluster::start().await;
    let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "restricted"}}});
    cluster.patch("/api/v1/namespaces/default", "merge", labels).await.ok();
    let mut wish = pod("p");
    wish["spec"]["hostNetwork"] = true.into();
    let (code, _, message) = cluster.post(PODS, wish).await.refused();
    assert_eq!(
        (code, message.as_str()),
        (403, "pods \"p\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)")
    );
    let warned = cluster.post(PODS, pod("p")).await;
    assert!(warned.headers["warning"].to_str().unwrap().contains("would violate PodSecurity"), "{:?}", warned.headers);
}
