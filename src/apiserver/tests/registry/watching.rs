//! WATCH: what comes, in which order, and when it ends.

use serde_json::{Value, json};

use crate::support::{CONFIG_MAPS, Cluster, PODS, config_map, pod};

fn labelled(name: &str, label: &str) -> Value {
    let mut object = config_map(name, "1");
    object["metadata"]["labels"] = json!({"l": label});
    object
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_come_in_order_from_any_version() {
    let cluster = Cluster::start().await;
    let start = cluster.get(CONFIG_MAPS).await.ok()["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut live = cluster.watch(&format!("{CONFIG_MAPS}?watch=true&resourceVersion={start}")).await;
    cluster.post(CONFIG_MAPS, config_map("a", "1")).await.ok();
    let updated = cluster.put(&format!("{CONFIG_MAPS}/a"), config_map("a", "2")).await.ok();
    cluster.delete(&format!("{CONFIG_MAPS}/a"), Value::Null).await.ok();
    let mut late = cluster.watch(&format!("{CONFIG_MAPS}?watch=true&resourceVersion={start}")).await;
    for events in [&mut live, &mut late] {
        assert_eq!(events.brief().await, "ADDED a");
        let modified = events.next().await.unwrap();
        assert_eq!((modified["type"].as_str(), &modified["object"]), (Some("MODIFIED"), &updated));
        let deleted = events.next().await.unwrap();
        assert_eq!((deleted["type"].as_str(), deleted["object"]["data"]["key"].as_str()), (Some("DELETED"), Some("2")));
        let version = |object: &Value| object["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
        assert!(version(&deleted["object"]) > version(&updated));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_version_the_state_comes_first() {
    let cluster = Cluster::start().await;
    cluster.post(CONFIG_MAPS, config_map("a", "1")).await.ok();
    for query in ["watch=1", "watch=1&resourceVersion=0"] {
        let mut events = cluster.watch(&format!("{CONFIG_MAPS}?{query}")).await;
        assert_eq!(events.brief().await, "ADDED a");
    }
    let query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut events = cluster.watch(&format!("{CONFIG_MAPS}?{query}")).await;
    assert_eq!(events.brief().await, "ADDED a");
    let bookmark = events.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    cluster.post(CONFIG_MAPS, config_map("b", "1")).await.ok();
    assert_eq!(events.brief().await, "ADDED b");
    let refused = cluster.get(&format!("{CONFIG_MAPS}?watch=1&sendInitialEvents=true")).await.refused();
    assert_eq!(refused.0, 422);
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_enter_and_leave_a_selection() {
    let cluster = Cluster::start().await;
    let mut events = cluster.watch(&format!("{CONFIG_MAPS}?watch=1&labelSelector=l%3Din")).await;
    cluster.post(CONFIG_MAPS, labelled("a", "out")).await.ok();
    cluster.put(&format!("{CONFIG_MAPS}/a"), labelled("a", "in")).await.ok();
    cluster.put(&format!("{CONFIG_MAPS}/a"), labelled("a", "gone")).await.ok();
    cluster.post(CONFIG_MAPS, labelled("b", "in")).await.ok();
    assert_eq!(events.brief().await, "ADDED a");
    let left = events.next().await.unwrap();
    assert_eq!(
        (left["type"].as_str(), left["object"]["metadata"]["labels"]["l"].as_str()),
        (Some("DELETED"), Some("in"))
    );
    assert_eq!(events.brief().await, "ADDED b");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_selector_follows_pods_to_their_node() {
    let cluster = Cluster::start().await;
    let mut events = cluster.watch("/api/v1/pods?watch=1&fieldSelector=spec.nodeName%3Dn").await;
    cluster.post(PODS, pod("p")).await.ok();
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    cluster.post(&format!("{PODS}/p/binding"), binding).await.ok();
    assert_eq!(events.brief().await, "ADDED p");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_at_its_timeout() {
    let cluster = Cluster::start().await;
    let mut events = cluster.watch(&format!("{CONFIG_MAPS}?watch=1&timeoutSeconds=1")).await;
    assert_eq!(events.brief().await, "end");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_watched_row_by_row() {
    let cluster = Cluster::start().await;
    cluster.post(CONFIG_MAPS, config_map("a", "1")).await.ok();
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let mut events = cluster.watch_as(&format!("{CONFIG_MAPS}?watch=1"), accept).await;
    let first = events.next().await.unwrap();
    assert_eq!((first["type"].as_str(), first["object"]["kind"].as_str()), (Some("ADDED"), Some("Table")));
    assert!(first["object"]["columnDefinitions"].is_array());
    cluster.put(&format!("{CONFIG_MAPS}/a"), config_map("a", "2")).await.ok();
    let second = events.next().await.unwrap();
    assert_eq!(second["object"]["rows"][0]["cells"][0], "a");
    assert!(second["object"]["columnDefinitions"].is_null());
}
