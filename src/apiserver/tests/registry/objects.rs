//! Create, get, update: metadata, errors, dry run, field validation, forms.

use serde_json::json;

use crate::support::{CONFIG_MAPS, Cluster, config_map};

#[tokio::test(flavor = "multi_thread")]
async fn a_new_object_gets_what_the_server_owns() {
    let cluster = Cluster::start().await;
    let mut wish = config_map("a", "1");
    wish["metadata"]["uid"] = "mine".into();
    wish["metadata"]["creationTimestamp"] = "2001-01-01T00:00:00Z".into();
    let answer = cluster.post(CONFIG_MAPS, wish).await;
    assert_eq!(answer.code, 201);
    let made = answer.ok();
    let metadata = &made["metadata"];
    assert_eq!(metadata["uid"].as_str().unwrap().len(), 36);
    assert_ne!(metadata["creationTimestamp"], "2001-01-01T00:00:00Z");
    assert_eq!(metadata["namespace"], "default");
    assert_eq!(metadata["managedFields"][0]["manager"], "test");
    assert_eq!(cluster.get(&format!("{CONFIG_MAPS}/a")).await.ok(), made);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_made_up_on_request() {
    let cluster = Cluster::start().await;
    let mut wish = config_map("", "1");
    wish["metadata"] = json!({"generateName": "x-"});
    let name = cluster.post(CONFIG_MAPS, wish.clone()).await.ok()["metadata"]["name"].as_str().unwrap().to_owned();
    assert!(name.starts_with("x-") && name.len() == 7, "{name}");
    wish["metadata"] = json!({});
    let (code, _, message) = cluster.post(CONFIG_MAPS, wish).await.refused();
    assert_eq!(code, 422);
    assert!(message.contains("metadata.name: Required value: name or generateName is required"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_worded_as_upstreams() {
    let cluster = Cluster::start().await;
    cluster.post(CONFIG_MAPS, config_map("a", "1")).await.ok();
    let at = format!("{CONFIG_MAPS}/a");
    let mut stale = config_map("a", "2");
    stale["metadata"]["resourceVersion"] = "1".into();
    let mut elsewhere = config_map("b", "2");
    elsewhere["metadata"]["namespace"] = "other".into();
    let cases = [
        (cluster.get(&format!("{CONFIG_MAPS}/b")).await, 404, "NotFound", "configmaps \"b\" not found"),
        (
            cluster.post(CONFIG_MAPS, config_map("a", "1")).await,
            409,
            "AlreadyExists",
            "configmaps \"a\" already exists",
        ),
        (
            cluster.put(&at, stale).await,
            409,
            "Conflict",
            "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to \
             the latest version and try again",
        ),
        (
            cluster.put(&at, config_map("b", "1")).await,
            400,
            "BadRequest",
            "the name of the object (b) does not match the name on the URL (a)",
        ),
        (
            cluster.post(CONFIG_MAPS, elsewhere).await,
            400,
            "BadRequest",
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        (
            cluster.post("/api/v1/namespaces/nowhere/configmaps", config_map("a", "1")).await,
            404,
            "NotFound",
            "namespaces \"nowhere\" not found",
        ),
        (
            cluster
                .post(CONFIG_MAPS, json!({"apiVersion": "apps/v1", "kind": "ConfigMap", "metadata": {"name": "x"}}))
                .await,
            400,
            "BadRequest",
            "the API version in the data (apps/v1) does not match the expected API version (v1)",
        ),
        (
            cluster.delete(&at, json!({"preconditions": {"uid": "x"}})).await,
            409,
            "Conflict",
            "Operation cannot be fulfilled on configmaps \"a\": Precondition failed: UID in precondition: x, UID in object meta: ",
        ),
    ];
    for (answer, code, reason, message) in cases {
        let refusal = answer.refused();
        assert_eq!((refusal.0, refusal.1.as_str()), (code, reason), "{}", refusal.2);
        assert!(refusal.2.starts_with(message), "{}", refusal.2);
    }
    let broken = cluster.send("POST", CONFIG_MAPS, &[("content-type", "application/json")], "{\"a\": ").await.refused();
    assert_eq!(broken.0, 400);
    assert!(broken.2.starts_with("the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: "), "{}", broken.2);
    let unknown = cluster.send("POST", CONFIG_MAPS, &[("content-type", "text/plain")], "x").await.refused();
    assert_eq!((unknown.0, unknown.1.as_str()), (415, "UnsupportedMediaType"));
    let unwanted = cluster.send("GET", &at, &[("accept", "application/vnd.kubernetes.protobuf")], "").await.refused();
    assert_eq!(unwanted.0, 406);
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_replace_and_no_change_is_no_write() {
    let cluster = Cluster::start().await;
    let first = cluster.post(CONFIG_MAPS, config_map("a", "1")).await.ok();
    let at = format!("{CONFIG_MAPS}/a");
    let second = cluster.put(&at, config_map("a", "2")).await.ok();
    assert_eq!(second["metadata"]["uid"], first["metadata"]["uid"]);
    assert_ne!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let third = cluster.put(&at, second.clone()).await.ok();
    assert_eq!(third["metadata"]["resourceVersion"], second["metadata"]["resourceVersion"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_changes_nothing() {
    let cluster = Cluster::start().await;
    let before = cluster.store.revision();
    let made = cluster.post(&format!("{CONFIG_MAPS}?dryRun=All"), config_map("a", "1")).await;
    assert_eq!(made.code, 201);
    assert!(made.ok()["metadata"]["uid"].is_string());
    assert_eq!(cluster.get(&format!("{CONFIG_MAPS}/a")).await.code, 404);
    cluster.post(CONFIG_MAPS, config_map("a", "1")).await.ok();
    cluster.put(&format!("{CONFIG_MAPS}/a?dryRun=All"), config_map("a", "2")).await.ok();
    cluster.delete(&format!("{CONFIG_MAPS}/a?dryRun=All"), json!(null)).await.ok();
    assert_eq!(cluster.get(&format!("{CONFIG_MAPS}/a")).await.ok()["data"]["key"], "1");
    assert!(cluster.store.revision() > before);
    let (code, _, message) = cluster.post(&format!("{CONFIG_MAPS}?dryRun=Some"), config_map("b", "1")).await.refused();
    assert_eq!(code, 422);
    assert!(message.contains("dryRun: Unsupported value: \"Some\": supported values: \"All\""), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_fields_are_dropped_warned_of_or_refused() {
    let cluster = Cluster::start().await;
    let mut wish = config_map("a", "1");
    wish["extra"] = 1.into();
    let warned = cluster.post(CONFIG_MAPS, wish.clone()).await;
    assert_eq!(warned.headers["warning"], "299 - \"unknown field \\\"extra\\\"\"");
    assert!(warned.ok()["extra"].is_null());
    wish["metadata"]["name"] = "b".into();
    let silent = cluster.post(&format!("{CONFIG_MAPS}?fieldValidation=Ignore"), wish.clone()).await;
    assert!(silent.headers.get("warning").is_none());
    wish["metadata"]["name"] = "c".into();
    let (code, _, message) = cluster.post(&format!("{CONFIG_MAPS}?fieldValidation=Strict"), wish).await.refused();
    assert_eq!(code, 400);
    assert_eq!(
        message,
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"extra\""
    );
    assert_eq!(cluster.get(&format!("{CONFIG_MAPS}/c")).await.code, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn yaml_goes_in_and_out() {
    let cluster = Cluster::start().await;
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: text\ndata:\n  key: 'on'\n";
    cluster.send("POST", CONFIG_MAPS, &[("content-type", "application/yaml")], yaml).await.ok();
    let out = cluster.send("GET", &format!("{CONFIG_MAPS}/text"), &[("accept", "application/yaml")], "").await;
    assert_eq!(out.headers["content-type"], "application/yaml");
    assert!(out.body.as_str().unwrap().contains("kind: ConfigMap"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_cluster_has_its_objects() {
    let cluster = Cluster::start().await;
    for path in [
        "/api/v1/namespaces/kube-system",
        "/api/v1/namespaces/kube-node-lease",
        "/apis/scheduling.k8s.io/v1/priorityclasses/system-node-critical",
        "/api/v1/namespaces/default/endpoints/kubernetes",
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes",
        "/apis/apiregistration.k8s.io/v1/apiservices/v1.apps",
        "/apis/networking.k8s.io/v1/ipaddresses/10.43.0.1",
    ] {
        assert_eq!(cluster.get(path).await.code, 200, "{path}");
    }
    let service = cluster.get("/api/v1/namespaces/default/services/kubernetes").await.ok();
    assert_eq!(service["spec"]["clusterIP"], "10.43.0.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_served_in_both_groups() {
    let cluster = Cluster::start().await;
    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "reason": "Tested", "message": "m",
        "type": "Normal", "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}, "count": 1,
        "source": {"component": "test"}});
    cluster.post("/api/v1/namespaces/default/events", event).await.ok();
    let other = cluster.get("/apis/events.k8s.io/v1/namespaces/default/events/e").await.ok();
    assert_eq!(other["apiVersion"], "events.k8s.io/v1");
    assert_eq!((other["note"].as_str(), other["regarding"]["name"].as_str()), (Some("m"), Some("p")));
    let list = cluster.get("/apis/events.k8s.io/v1/events").await.ok();
    assert_eq!(list["items"][0]["note"], "m");
    let selected = cluster.get("/api/v1/events?fieldSelector=involvedObject.name=p,reason=Tested").await.ok();
    assert_eq!(selected["items"].as_array().unwrap().len(), 1);
}
