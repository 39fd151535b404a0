//! LIST: pages, versions, selectors, tables.

use serde_json::{Value, json};

use crate::support::{CONFIG_MAPS, Cluster, config_map};

async fn filled(count: usize) -> Cluster {
    let cluster = Cluster::start().await;
    for index in 0..count {
        let mut object = config_map(&format!("c{index:02}"), "1");
        object["metadata"]["labels"] = serde_json::json!({"even": (index % 2 == 0).to_string()});
        cluster.post(CONFIG_MAPS, object).await.ok();
    }
    cluster
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_of_one_moment() {
    let cluster = filled(5).await;
    let first = cluster.get(&format!("{CONFIG_MAPS}?limit=2")).await.ok();
    assert_eq!(first["kind"], "ConfigMapList");
    assert_eq!(names(&first), ["c00", "c01"]);
    assert!(first["items"][0]["kind"].is_null() && first["items"][0]["metadata"]["resourceVersion"].is_string());
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    cluster.delete(&format!("{CONFIG_MAPS}/c03"), Value::Null).await.ok();
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = cluster.get(&format!("{CONFIG_MAPS}?limit=10&continue={token}")).await.ok();
    assert_eq!(names(&second), ["c02", "c03", "c04"]);
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    assert!(second["metadata"]["continue"].is_null());
    let bad = cluster.get(&format!("{CONFIG_MAPS}?continue=xx")).await.refused();
    assert_eq!(bad.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_page_token_can_be_gone_on_with() {
    let few = |config: mussel_store::Config| mussel_store::Config { history_revisions_max: 8, ..config };
    let cluster = Cluster::start_with(few, |_| {}).await;
    for name in ["a", "b", "c"] {
        cluster.post(CONFIG_MAPS, config_map(name, "1")).await.ok();
    }
    let first = cluster.get(&format!("{CONFIG_MAPS}?limit=1")).await.ok();
    let version = first["metadata"]["resourceVersion"].as_str().unwrap();
    for value in 0..20 {
        cluster.put(&format!("{CONFIG_MAPS}/b"), config_map("b", &format!("v{value}"))).await.ok();
    }
    let token = first["metadata"]["continue"].as_str().unwrap();
    let expired = cluster.get(&format!("{CONFIG_MAPS}?limit=1&continue={token}")).await;
    assert_eq!((expired.code, expired.body["reason"].as_str()), (410, Some("Expired")));
    let token = expired.body["metadata"]["continue"].as_str().unwrap();
    let rest = cluster.get(&format!("{CONFIG_MAPS}?continue={token}")).await.ok();
    assert_eq!(names(&rest), ["b", "c"]);
    let exact =
        cluster.get(&format!("{CONFIG_MAPS}?resourceVersion={version}&resourceVersionMatch=Exact")).await.refused();
    assert_eq!((exact.0, exact.2.as_str()), (410, "The resourceVersion for the provided list is too old."));
    let mut watch = cluster.watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion={version}")).await;
    let event = watch.next().await.unwrap();
    assert_eq!((event["type"].as_str(), event["object"]["code"].as_i64()), (Some("ERROR"), Some(410)));
    assert!(watch.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_select_the_moment() {
    let cluster = filled(2).await;
    let list = cluster.get(CONFIG_MAPS).await.ok();
    let version: u64 = list["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    cluster.post(CONFIG_MAPS, config_map("later", "1")).await.ok();
    let exact = cluster.get(&format!("{CONFIG_MAPS}?resourceVersion={version}&resourceVersionMatch=Exact")).await.ok();
    assert_eq!(names(&exact), ["c00", "c01"]);
    let newer = cluster.get(&format!("{CONFIG_MAPS}?resourceVersion={version}")).await.ok();
    assert_eq!(names(&newer), ["c00", "c01", "later"]);
    assert_eq!(names(&cluster.get(&format!("{CONFIG_MAPS}?resourceVersion=0")).await.ok()).len(), 3);
    let (code, reason, message) = cluster.get(&format!("{CONFIG_MAPS}?resourceVersion=999999")).await.refused();
    assert_eq!((code, reason.as_str()), (504, "Timeout"));
    assert!(message.contains("Too large resource version: 999999, current: "), "{message}");
    let (code, _, message) = cluster.get(&format!("{CONFIG_MAPS}?resourceVersionMatch=Exact")).await.refused();
    assert_eq!(code, 422);
    assert!(message.contains("resourceVersionMatch is forbidden unless resourceVersion is provided"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn selectors_select() {
    let cluster = filled(4).await;
    let by_label = cluster.get(&format!("{CONFIG_MAPS}?labelSelector=even%3Dtrue")).await.ok();
    assert_eq!(names(&by_label), ["c00", "c02"]);
    let paged = cluster.get(&format!("{CONFIG_MAPS}?labelSelector=even%3Dtrue&limit=1")).await.ok();
    assert_eq!(names(&paged), ["c00"]);
    assert!(paged["metadata"]["remainingItemCount"].is_null() && paged["metadata"]["continue"].is_string());
    let by_name = cluster.get(&format!("{CONFIG_MAPS}?fieldSelector=metadata.name%3Dc01")).await.ok();
    assert_eq!(names(&by_name), ["c01"]);
    let across =
        cluster.get("/api/v1/configmaps?fieldSelector=metadata.name!=c01,metadata.namespace=default").await.ok();
    assert_eq!(names(&across), ["c00", "c02", "c03"]);
    let bad = cluster.get(&format!("{CONFIG_MAPS}?fieldSelector=data.key%3D1")).await.refused();
    assert_eq!((bad.0, bad.1.as_str()), (400, "BadRequest"));
    assert_eq!(cluster.get(&format!("{CONFIG_MAPS}?labelSelector=a%20b")).await.code, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_and_metadata_are_other_forms_of_the_same() {
    let cluster = filled(1).await;
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")];
    let table = cluster.send("GET", CONFIG_MAPS, &accept, "").await.ok();
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["rows"][0]["cells"][0], "c00");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(table["columnDefinitions"][0]["name"], "Name");
    let one = cluster.send("GET", &format!("{CONFIG_MAPS}/c00?includeObject=Object"), &accept, "").await.ok();
    assert_eq!(one["rows"][0]["object"]["data"]["key"], "1");
    let accept = [("accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io")];
    let list = cluster.send("GET", CONFIG_MAPS, &accept, "").await.ok();
    assert_eq!((list["kind"].as_str(), names(&list)), (Some("PartialObjectMetadataList"), vec!["c00"]));
    assert!(list["items"][0]["data"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn reviews_have_no_other_shape() {
    let cluster = Cluster::start().await;
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"nonResourceAttributes": {"path": "/", "verb": "get"}}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io"), ("content-type", "application/json")];
    let (code, reason, _) = cluster.send("POST", path, &table, review.to_string()).await.refused();
    assert_eq!((code, reason.as_str()), (406, "NotAcceptable"));
    assert_eq!(cluster.post(path, review).await.ok()["status"]["allowed"], true);
}
