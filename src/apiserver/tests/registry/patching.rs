//! PATCH of every kind.

use serde_json::{Value, json};

use crate::support::{CONFIG_MAPS, Cluster, config_map};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn deployment() -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": 1,
        "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "one", "image": "x:1"}, {"name": "two", "image": "y:1"}]}}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_patch_works() {
    let cluster = Cluster::start().await;
    cluster.post(DEPLOYMENTS, deployment()).await.ok();
    let at = format!("{DEPLOYMENTS}/d");
    let strategic = json!({"spec": {"template": {"spec": {"containers": [{"name": "two", "image": "y:2"}]}}}});
    let object = cluster.patch(&at, "strategic-merge", strategic).await.ok();
    let containers = &object["spec"]["template"]["spec"]["containers"];
    assert_eq!(containers.as_array().unwrap().len(), 2);
    assert_eq!((containers[0]["image"].as_str(), containers[1]["image"].as_str()), (Some("x:1"), Some("y:2")));
    assert_eq!(object["metadata"]["generation"], 2);
    let object = cluster.patch(&at, "merge", json!({"metadata": {"labels": {"x": "y"}}})).await.ok();
    assert_eq!(
        (object["metadata"]["labels"]["x"].as_str(), object["metadata"]["generation"].as_i64()),
        (Some("y"), Some(2))
    );
    let replace = json!([{"op": "replace", "path": "/spec/replicas", "value": 3}]);
    assert_eq!(cluster.patch(&at, "json", replace).await.ok()["spec"]["replicas"], 3);
    let test = json!([{"op": "test", "path": "/spec/replicas", "value": 1}]);
    assert_eq!(cluster.patch(&at, "json", test).await.code, 422);
    let odd = cluster.send("PATCH", &at, &[("content-type", "application/json")], "{}").await.refused();
    assert_eq!(odd.0, 415);
    assert!(odd.2.starts_with("the body of the request was in an unknown format - accepted media types include: "));
    let stale = json!({"metadata": {"resourceVersion": "1"}, "spec": {"replicas": 9}});
    assert_eq!(cluster.patch(&at, "merge", stale).await.code, 409);
    assert_eq!(cluster.patch(&format!("{DEPLOYMENTS}/none"), "merge", json!({})).await.code, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_scale_change_their_part_alone() {
    let cluster = Cluster::start().await;
    cluster.post(DEPLOYMENTS, deployment()).await.ok();
    let at = format!("{DEPLOYMENTS}/d");
    let patch = json!({"spec": {"replicas": 5}, "status": {"replicas": 1}});
    let object = cluster.patch(&format!("{at}/status"), "merge", patch.clone()).await.ok();
    assert_eq!((object["spec"]["replicas"].as_i64(), object["status"]["replicas"].as_i64()), (Some(1), Some(1)));
    assert_eq!(object["metadata"]["generation"], 1);
    let object = cluster.patch(&at, "merge", json!({"status": {"replicas": 9}})).await.ok();
    assert_eq!(object["status"]["replicas"], 1);
    let scale = cluster.get(&format!("{at}/scale")).await.ok();
    assert_eq!((scale["kind"].as_str(), scale["status"]["selector"].as_str()), (Some("Scale"), Some("a=b")));
    let scale = cluster.patch(&format!("{at}/scale"), "merge", json!({"spec": {"replicas": 4}})).await.ok();
    assert_eq!(scale["spec"]["replicas"], 4);
    let mut stale = scale.clone();
    stale["metadata"]["resourceVersion"] = "1".into();
    assert_eq!(cluster.put(&format!("{at}/scale"), stale).await.code, 409);
    let object = cluster.get(&at).await.ok();
    assert_eq!((object["spec"]["replicas"].as_i64(), object["metadata"]["generation"].as_i64()), (Some(4), Some(2)));
    let owner = object["metadata"]["managedFields"].as_array().unwrap();
    assert!(owner.iter().any(|entry| entry["subresource"] == "scale"), "{owner:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn server_side_apply_creates_owns_and_conflicts() {
    let cluster = Cluster::start().await;
    let at = format!("{CONFIG_MAPS}/a");
    let one = format!("{at}?fieldManager=one");
    let created = cluster.patch(&one, "apply", config_map("a", "1")).await;
    assert_eq!(created.code, 201);
    let again = cluster.patch(&one, "apply", config_map("a", "1")).await;
    assert_eq!(again.code, 200);
    assert_eq!(again.body["metadata"]["resourceVersion"], created.body["metadata"]["resourceVersion"]);
    let conflict = cluster.patch(&format!("{at}?fieldManager=two"), "apply", config_map("a", "2")).await;
    assert_eq!(conflict.code, 409);
    assert_eq!(conflict.body["message"], "Apply failed with 1 conflict: conflict with \"one\": .data.key");
    assert_eq!(conflict.body["details"]["causes"][0]["reason"], "FieldManagerConflict");
    let forced = cluster.patch(&format!("{at}?fieldManager=two&force=true"), "apply", config_map("a", "2")).await.ok();
    assert_eq!(forced["data"]["key"], "2");
    let (code, _, message) = cluster.patch(&at, "apply", config_map("a", "2")).await.refused();
    assert_eq!(code, 422);
    assert!(message.contains("fieldManager: Required value: is required for apply patch"), "{message}");
    let emptied = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
    let emptied = cluster.patch(&format!("{at}?fieldManager=two"), "apply", emptied).await.ok();
    assert!(emptied["data"]["key"].is_null(), "{emptied}");
}
