//! Admission webhooks, through the API, against a webhook that this test plays.

use serde_json::{Value, json};

use crate::hook_server::{Hook, configurations, configure, hook, patch};
use crate::support::{CONFIG_MAPS, Cluster, PODS, config_map, pod};

const ANY: &[&str] = &["h2", "http/1.1"];

/// Denies what has `deny` among its data, adds what the path says.
fn usual(path: &str, request: &Value) -> Option<Value> {
    let object = if request["object"].is_null() { &request["oldObject"] } else { &request["object"] };
    Some(match path {
        "/deny" | "/slow" if object["data"]["key"] == "deny" => {
            json!({"allowed": false, "status": {"message": "this map is bad", "reason": "Ugly", "code": 403}})
        }
        "/deny" | "/slow" | "/allow" => json!({"allowed": true, "warnings": ["looked at it"]}),
        "/never" => json!({"allowed": false}),
        "/wrong-uid" => json!({"allowed": true, "uid": "x"}),
        "/first" => patch(json!([{"op": "add", "path": "/data/first", "value": "1"}])),
        "/second" if object["data"]["first"] == "1" => {
            patch(json!([{"op": "add", "path": "/data/second", "value": "2"}]))
        }
        "/second" => json!({"allowed": true}),
        "/count" => {
            let count = object["metadata"]["annotations"]["count"].as_str().unwrap_or("").len();
            patch(json!([{"op": "add", "path": "/metadata/annotations", "value": {"count": "x".repeat(count + 1)}}]))
        }
        "/init" => patch(json!([{"op": "add", "path": "/spec/initContainers",
            "value": [{"name": "i", "image": "busybox", "junk": 1}]}])),
        "/strip" => patch(json!([{"op": "replace", "path": "/metadata/namespace", "value": "other"}])),
        _ => return None,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_validating_webhook_denies_writes_and_deletions() {
    let cluster = Cluster::start().await;
    let server = Hook::start(ANY, usual).await;
    cluster.post(CONFIG_MAPS, config_map("before", "deny")).await.ok();
    configure(&cluster, "Validating", "v", json!([hook("a", &server.at("/deny"))])).await;
    let answer = cluster.post(CONFIG_MAPS, config_map("a", "deny")).await;
    let message = "admission webhook \"a.example.com\" denied the request: this map is bad";
    assert_eq!(answer.refused(), (403, "Ugly".to_owned(), message.to_owned()));
    let answer = cluster.post(CONFIG_MAPS, config_map("b", "fine")).await;
    let warning = answer.headers.get("warning").map(|value| value.to_str().unwrap().to_owned());
    assert_eq!(warning.as_deref(), Some("299 - \"looked at it\""));
    answer.ok();
    let path = format!("{CONFIG_MAPS}/b");
    assert_eq!(cluster.patch(&path, "merge", json!({"data": {"key": "deny"}})).await.refused().2, message);
    assert_eq!(cluster.put(&path, config_map("b", "deny")).await.refused().2, message);
    assert_eq!(cluster.delete(&format!("{CONFIG_MAPS}/before"), Value::Null).await.refused().2, message);
    assert_eq!(cluster.delete(CONFIG_MAPS, Value::Null).await.refused().2, message);
    let version = server.versions.lock().unwrap()[0];
    assert_eq!(version, http::Version::HTTP_2);

    // The collection was gone through up to the one that is kept.
    cluster.post(CONFIG_MAPS, config_map("b", "fine")).await.ok();

    // What was asked, on the way of a patch with dry run.
    server.forget();
    let path = format!("{path}?dryRun=All&fieldManager=m");
    cluster.patch(&path, "merge", json!({"data": {"key": "new"}})).await.ok();
    let (_, request) = server.requests().remove(0);
    for (pointer, value) in [
        ("/operation", json!("UPDATE")),
        ("/name", json!("b")),
        ("/namespace", json!("default")),
        ("/kind", json!({"group": "", "version": "v1", "kind": "ConfigMap"})),
        ("/requestResource", json!({"group": "", "version": "v1", "resource": "configmaps"})),
        ("/object/data/key", json!("new")),
        ("/object/kind", json!("ConfigMap")),
        ("/oldObject/data/key", json!("fine")),
        ("/userInfo/username", json!("system:admin")),
        ("/dryRun", json!(true)),
        (
            "/options",
            json!({"kind": "UpdateOptions", "apiVersion": "meta.k8s.io/v1", "fieldManager": "m", "dryRun": ["All"]}),
        ),
    ] {
        assert_eq!(request.pointer(pointer), Some(&value), "{pointer}");
    }
    server.forget();
    cluster.delete(&format!("{CONFIG_MAPS}/b"), json!({"gracePeriodSeconds": 0})).await.ok();
    let (_, request) = server.requests().remove(0);
    assert_eq!((&request["operation"], &request["object"]), (&json!("DELETE"), &Value::Null));
    assert_eq!(request["oldObject"]["data"]["key"], "fine");
    assert_eq!(request["options"]["gracePeriodSeconds"], 0);

    // Gone at once, with the configuration.
    cluster.delete(&configurations("Validating"), Value::Null).await.ok();
    cluster.post(CONFIG_MAPS, config_map("a", "deny")).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn mutating_webhooks_run_in_the_order_of_their_names() {
    let cluster = Cluster::start().await;
    let server = Hook::start(&["http/1.1"], usual).await;
    let client = server.service(&cluster, "/second").await;
    configure(&cluster, "Mutating", "b", json!([hook("b", &client)])).await;
    configure(&cluster, "Mutating", "a", json!([hook("a", &server.at("/first"))])).await;
    let made = cluster.post(CONFIG_MAPS, config_map("m", "x")).await.ok();
    assert_eq!(made["data"], json!({"key": "x", "first": "1", "second": "2"}));
    assert_eq!(server.versions.lock().unwrap()[0], http::Version::HTTP_11);

    let made = cluster.post(CONFIG_MAPS, json!({"metadata": {"generateName": "g-"}, "data": {}})).await.ok();
    assert!(made["metadata"]["name"].as_str().unwrap().starts_with("g-"), "{made}");
    let (_, request) = server.requests().pop().unwrap();
    assert!(request["name"].is_null() && request["object"]["metadata"]["name"].is_null(), "{request}");
    assert_eq!(request["object"]["metadata"]["generateName"], "g-");
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_that_ask_for_it_are_called_again_after_a_change() {
    let cluster = Cluster::start().await;
    let server = Hook::start(ANY, usual).await;
    let mut again = hook("a", &server.at("/count"));
    again["reinvocationPolicy"] = "IfNeeded".into();
    configure(&cluster, "Mutating", "a", json!([again, hook("b", &server.at("/first"))])).await;
    let made = cluster.post(CONFIG_MAPS, config_map("m", "x")).await.ok();
    assert_eq!(made["metadata"]["annotations"]["count"], "xx");
    let paths: Vec<String> = server.requests().into_iter().map(|(path, _)| path).collect();
    assert_eq!(paths, ["/count", "/first", "/count"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_webhook_adds_is_pruned_and_defaulted() {
    let cluster = Cluster::start().await;
    let server = Hook::start(ANY, usual).await;
    let mut add = hook("a", &server.at("/init"));
    add["rules"][0]["resources"] = json!(["pods"]);
    let strip = hook("b", &server.at("/strip"));
    configure(&cluster, "Mutating", "a", json!([add, strip])).await;
    let made = cluster.post(PODS, pod("p")).await.ok();
    let init = &made["spec"]["initContainers"][0];
    assert_eq!((&init["terminationMessagePolicy"], &init["junk"]), (&json!("File"), &Value::Null));
    let (code, _, message) = cluster.post(CONFIG_MAPS, config_map("m", "x")).await.refused();
    assert_eq!(
        (code, message.as_str()),
        (400, "the namespace of the provided object does not match the namespace sent on the request")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_judged_by_the_failure_policy() {
    let cluster = Cluster::start().await;
    let server = Hook::start(ANY, usual).await;
    let slow = |seconds: i64, policy: &str| {
        let mut hook = hook("a", &server.at("/slow"));
        hook["timeoutSeconds"] = seconds.into();
        hook["failurePolicy"] = policy.into();
        hook
    };
    let mut no_ca = hook("a", &server.at("/allow"));
    no_ca["clientConfig"]["caBundle"] = Value::Null;
    let mut no_service = hook("a", &json!({"service": {"namespace": "default", "name": "none"}}));
    no_service["timeoutSeconds"] = 1.into();
    let slow_url = format!("https://{}/slow?timeout=1s", server.address);
    let table = [
        (slow(1, "Fail"), Some(format!("failed to call webhook: Post \"{slow_url}\": context deadline exceeded"))),
        (slow(1, "Ignore"), None),
        (slow(10, "Fail"), None),
        (
            hook("a", &server.at("/nothing")),
            Some("failed to call webhook: the server could not find the requested resource".to_owned()),
        ),
        (no_ca, Some("x509: certificate signed by unknown authority".to_owned())),
        (no_service, Some("failed to call webhook: service \"none\" not found".to_owned())),
        (
            hook("a", &server.at("/wrong-uid")),
            Some("received invalid webhook response: expected response.uid=".to_owned()),
        ),
    ];
    for (at, (hook, expected)) in table.into_iter().enumerate() {
        configure(&cluster, "Validating", "v", json!([hook])).await;
        let answer = cluster.post(CONFIG_MAPS, config_map(&format!("m{at}"), "x")).await;
        match expected {
            None => {
                answer.ok();
            }
            Some(text) => {
                let (code, reason, message) = answer.refused();
                assert_eq!((code, reason.as_str()), (500, "InternalError"), "{message}");
                assert!(
                    message.starts_with("Internal error occurred: failed calling webhook \"a.example.com\": "),
                    "{message}"
                );
                assert!(message.contains(&text), "{message}");
            }
        }
        cluster.delete(&format!("{}/v", configurations("Validating")), Value::Null).await.ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_and_selectors_choose() {
    let cluster = Cluster::start().await;
    let server = Hook::start(ANY, usual).await;
    let labels = json!({"metadata": {"name": "exempt", "labels": {"hook": "off"}}});
    cluster.post("/api/v1/namespaces", labels).await.ok();
    let mut all = hook("a", &server.at("/never"));
    all["rules"] = json!([{"operations": ["CREATE"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"], "scope": "Namespaced"}]);
    all["namespaceSelector"] = json!({"matchExpressions": [{"key": "hook", "operator": "NotIn", "values": ["off"]}]});
    all["objectSelector"] = json!({"matchExpressions": [{"key": "skip", "operator": "DoesNotExist"}]});
    configure(&cluster, "Validating", "v", json!([all])).await;
    let denied = "admission webhook \"a.example.com\" denied the request without explanation";
    assert_eq!(cluster.post(CONFIG_MAPS, config_map("a", "x")).await.refused().2, denied);
    cluster.post("/api/v1/namespaces/exempt/configmaps", config_map("a", "x")).await.ok();
    let mut skipped = config_map("a", "x");
    skipped["metadata"]["labels"] = json!({"skip": "me"});
    cluster.post(CONFIG_MAPS, skipped).await.ok();
    // Not in a namespace, not a creation, and what rules are made of.
    cluster.post("/api/v1/namespaces", json!({"metadata": {"name": "n"}})).await.ok();
    cluster.patch(&format!("{CONFIG_MAPS}/a"), "merge", json!({"data": {"key": "y"}})).await.ok();
    configure(&cluster, "Mutating", "m", json!([])).await;
    // Subresources that are created.
    let token = json!({"spec": {"audiences": ["x"]}});
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    assert_eq!(cluster.post(path, token.clone()).await.refused().2, denied);
    let (_, request) = server.requests().pop().unwrap();
    assert_eq!(request["kind"]["kind"], "TokenRequest");
    assert_eq!((&request["subResource"], &request["name"]), (&json!("token"), &json!("default")));
    let attach = format!("{PODS}/p/attach?container=c&stdout=true");
    cluster
        .patch(
            &format!("{}/v", configurations("Validating")),
            "json",
            json!([{"op": "replace", "path": "/webhooks/0/rules/0/operations", "value": ["CONNECT"]},
            {"op": "remove", "path": "/webhooks/0/objectSelector"}]),
        )
        .await
        .ok();
    assert_eq!(cluster.get(&attach).await.refused().2, denied);
    let (_, request) = server.requests().pop().unwrap();
    assert_eq!(
        request["object"],
        json!({"kind": "PodAttachOptions", "apiVersion": "v1", "container": "c", "stdout": true})
    );
    cluster.post(CONFIG_MAPS, config_map("b", "x")).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn equivalent_versions_are_converted_for_the_webhook() {
    let cluster = Cluster::start().await;
    let server = Hook::start(ANY, |_, request| {
        let target = &request["object"]["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"];
        let value = target.as_i64().unwrap_or(0) + 1;
        let path = "/spec/metrics/0/resource/target/averageUtilization";
        Some(patch(json!([{"op": "replace", "path": path, "value": value}])))
    })
    .await;
    let mut hook = hook("a", &server.at("/"));
    hook["rules"] = json!([{"operations": ["*"], "apiGroups": ["autoscaling"], "apiVersions": ["v2"], "resources": ["horizontalpodautoscalers"]}]);
    configure(&cluster, "Mutating", "m", json!([hook])).await;
    let scaler = json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
        "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50,
            "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}}});
    let path = "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers";
    let made = cluster.post(path, scaler.clone()).await.ok();
    assert_eq!(made["spec"]["targetCPUUtilizationPercentage"], 51);
    let (_, request) = server.requests().pop().unwrap();
    assert_eq!((&request["kind"]["version"], &request["requestKind"]["version"]), (&json!("v2"), &json!("v1")));
    let exact = json!([{"op": "replace", "path": "/webhooks/0/matchPolicy", "value": "Exact"}]);
    cluster.patch(&format!("{}/m", configurations("Mutating")), "json", exact).await.ok();
    let mut other = scaler;
    other["metadata"]["name"] = "i".into();
    assert_eq!(cluster.post(path, other).await.ok()["spec"]["targetCPUUtilizationPercentage"], 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scale_is_shown_as_a_scale() {
    let cluster = Cluster::start().await;
    let server =
        Hook::start(ANY, |_, _| Some(patch(json!([{"op": "replace", "path": "/spec/replicas", "value": 7}])))).await;
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": 1,
        "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod("p")["spec"]}}});
    let path = "/apis/apps/v1/namespaces/default/deployments";
    cluster.post(path, deployment).await.ok();
    let mut hook = hook("a", &server.at("/"));
    hook["rules"] = json!([{"operations": ["*"], "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments/scale"]}]);
    configure(&cluster, "Mutating", "m", json!([hook])).await;
    let scale = cluster.patch(&format!("{path}/d/scale"), "merge", json!({"spec": {"replicas": 3}})).await.ok();
    assert_eq!(scale["spec"]["replicas"], 7);
    let (_, request) = server.requests().pop().unwrap();
    assert_eq!(request["kind"], json!({"group": "autoscaling", "version": "v1", "kind": "Scale"}));
    assert_eq!(
        (&request["object"]["spec"]["replicas"], &request["oldObject"]["spec"]["replicas"]),
        (&json!(3), &json!(1))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn dry_runs_do_not_reach_webhooks_with_side_effects_and_locks_are_not_held() {
    let cluster = Cluster::start().await;
    let other = cluster.as_user("system:admin", &["system:masters"]);
    let handle = tokio::runtime::Handle::current();
    // A webhook for Services that makes a Service itself.
    let server = Hook::start(ANY, move |_, request| {
        if request["object"]["metadata"]["name"] == "outer" {
            let inner =
                json!({"metadata": {"name": "inner"}, "spec": {"ports": [{"port": 1}], "selector": {"a": "b"}}});
            tokio::task::block_in_place(|| {
                handle.block_on(other.post("/api/v1/namespaces/default/services", inner)).ok();
            });
        }
        Some(json!({"allowed": true}))
    })
    .await;
    let mut services = hook("a", &server.at("/"));
    services["rules"][0]["resources"] = json!(["services"]);
    configure(&cluster, "Validating", "v", json!([services])).await;
    let outer = json!({"metadata": {"name": "outer"}, "spec": {"ports": [{"port": 1}], "selector": {"a": "b"}}});
    let made = cluster.post("/api/v1/namespaces/default/services", outer).await.ok();
    let names: Vec<Value> = server.requests().into_iter().map(|(_, request)| request["name"].clone()).collect();
    assert_eq!(names, ["outer", "inner"], "each is asked about once");
    let (_, shown) = server.requests().remove(0);
    assert_eq!(shown["object"]["spec"]["clusterIP"], made["spec"]["clusterIP"], "what was admitted is what was made");
}
