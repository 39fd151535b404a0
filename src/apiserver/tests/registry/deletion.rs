//! DELETE: finalizers, propagation, collections, namespaces.

use serde_json::{Value, json};

use crate::support::{CONFIG_MAPS, Cluster, config_map};

#[tokio::test(flavor = "multi_thread")]
async fn finalizers_hold_an_object_until_they_are_gone() {
    let cluster = Cluster::start().await;
    let mut object = config_map("a", "1");
    object["metadata"]["finalizers"] = json!(["example.com/x"]);
    cluster.post(CONFIG_MAPS, object).await.ok();
    let at = format!("{CONFIG_MAPS}/a");
    let going = cluster.delete(&at, Value::Null).await.ok();
    assert!(going["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 0);
    let again = cluster.delete(&at, Value::Null).await.ok();
    assert_eq!(again["metadata"]["resourceVersion"], going["metadata"]["resourceVersion"]);
    let more = json!({"metadata": {"finalizers": ["example.com/x", "example.com/y"]}});
    assert_eq!(cluster.patch(&at, "merge", more).await.code, 422);
    cluster.patch(&at, "merge", json!({"metadata": {"finalizers": null}})).await.ok();
    assert_eq!(cluster.get(&at).await.code, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn propagation_becomes_a_finalizer() {
    let cluster = Cluster::start().await;
    for (policy, finalizer) in [("Orphan", "orphan"), ("Foreground", "foregroundDeletion")] {
        cluster.post(CONFIG_MAPS, config_map("a", "1")).await.ok();
        let at = format!("{CONFIG_MAPS}/a");
        let going = cluster.delete(&at, json!({"propagationPolicy": policy})).await.ok();
        assert_eq!(going["metadata"]["finalizers"], json!([finalizer]));
        cluster.patch(&at, "merge", json!({"metadata": {"finalizers": []}})).await.ok();
        assert_eq!(cluster.get(&at).await.code, 404);
    }
    cluster.post(CONFIG_MAPS, config_map("a", "1")).await.ok();
    let gone = cluster.delete(&format!("{CONFIG_MAPS}/a"), json!({"propagationPolicy": "Background"})).await.ok();
    assert_eq!((gone["kind"].as_str(), gone["status"].as_str()), (Some("Status"), Some("Success")));
    assert_eq!(gone["details"]["kind"], "configmaps");
    let (code, _, message) =
        cluster.delete(&format!("{CONFIG_MAPS}/a"), json!({"propagationPolicy": "Never"})).await.refused();
    assert_eq!(code, 422);
    assert!(message.contains("propagationPolicy: Unsupported value: \"Never\""), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_is_deleted_by_selector() {
    let cluster = Cluster::start().await;
    for (name, label) in [("a", "x"), ("b", "y"), ("c", "x")] {
        let mut object = config_map(name, "1");
        object["metadata"]["labels"] = json!({"l": label});
        cluster.post(CONFIG_MAPS, object).await.ok();
    }
    let deleted = cluster.delete(&format!("{CONFIG_MAPS}?labelSelector=l%3Dx"), Value::Null).await.ok();
    assert_eq!(deleted["items"].as_array().unwrap().len(), 2);
    let left = cluster.get(CONFIG_MAPS).await.ok();
    assert_eq!(left["items"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_goes_when_it_is_finalized() {
    let cluster = Cluster::start().await;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}});
    let made = cluster.post("/api/v1/namespaces", namespace).await.ok();
    assert_eq!(
        (made["status"]["phase"].as_str(), &made["spec"]["finalizers"]),
        (Some("Active"), &json!(["kubernetes"]))
    );
    assert_eq!(made["metadata"]["labels"]["kubernetes.io/metadata.name"], "n");
    let going = cluster.delete("/api/v1/namespaces/n", Value::Null).await.ok();
    assert_eq!(going["status"]["phase"], "Terminating");
    let refused = cluster.post("/api/v1/namespaces/n/configmaps", config_map("a", "1")).await;
    assert_eq!(refused.code, 403);
    assert_eq!(refused.body["details"]["causes"][0]["reason"], "NamespaceTerminating");
    assert_eq!(
        refused.body["message"],
        "configmaps \"a\" is forbidden: unable to create new content in namespace n because it is being terminated"
    );
    let mut finalized = going.clone();
    finalized["spec"]["finalizers"] = json!([]);
    cluster.put("/api/v1/namespaces/n/finalize", finalized).await.ok();
    assert_eq!(cluster.get("/api/v1/namespaces/n").await.code, 404);
    let (code, _, message) = cluster.delete("/api/v1/namespaces/default", Value::Null).await.refused();
    assert_eq!(
        (code, message.as_str()),
        (403, "namespaces \"default\" is forbidden: this namespace may not be deleted")
    );
}
