//! Custom resources: definitions, their conditions, and objects of their kinds, through HTTP.

use serde_json::{Value, json};

use crate::hook_server::Hook;
use crate::support::{Answer, Cluster, Events};

pub const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
pub const CRD: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/widgets.example.com";
pub const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

pub fn version(name: &str, storage: bool, properties: Value) -> Value {
    json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": {"type": "object", "properties": {
        "spec": {"type": "object", "properties": properties},
        "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}})
}

pub fn crd(versions: Value) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "widgets.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "versions": versions,
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "shortNames": ["wd"], "categories": ["all"]}}})
}

pub fn widget(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec})
}

fn condition<'v>(crd: &'v Value, kind: &str) -> &'v Value {
    let list = crd["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().find(|condition| condition["type"] == kind).map_or(&Value::Null, |condition| &condition["status"])
}

/// Follows the CRD until it is as wanted.
async fn until(cluster: &Cluster, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut events = cluster.watch(&format!("{CRDS}?watch=1")).await;
    loop {
        let event = events.next().await.expect("the watch goes on");
        if event["type"] != "DELETED"
            && event["object"]["metadata"]["name"] == "widgets.example.com"
            && wanted(&event["object"])
        {
            return event["object"].clone();
        }
    }
}

pub async fn establish(cluster: &Cluster, crd: Value) -> Value {
    cluster.post(CRDS, crd).await.ok();
    until(cluster, |crd| condition(crd, "Established") == "True").await
}

pub async fn change_crd(cluster: &Cluster, change: impl Fn(&mut Value)) -> Value {
    loop {
        let mut crd = cluster.get(CRD).await.ok();
        change(&mut crd);
        let answer = cluster.put(CRD, crd).await;
        if answer.code != 409 {
            return answer.ok();
        }
    }
}

#[tokio::test]
async fn a_definition_is_established_and_serves_its_kind() {
    let cluster = Cluster::start().await;
    assert_eq!(cluster.get(WIDGETS).await.code, 404);
    let seen =
        establish(&cluster, crd(json!([version("v1", true, json!({"size": {"type": "integer", "default": 3}}))])))
            .await;
    assert_eq!(condition(&seen, "NamesAccepted"), "True");
    assert_eq!(seen["status"]["acceptedNames"]["listKind"], "WidgetList");
    assert_eq!(seen["status"]["storedVersions"], json!(["v1"]));

    let made = cluster.post(WIDGETS, widget("a", json!({}))).await.ok();
    assert_eq!((&made["spec"]["size"], &made["metadata"]["generation"]), (&json!(3), &json!(1)));
    let list = cluster.get(WIDGETS).await.ok();
    assert_eq!((list["kind"].as_str(), list["items"][0]["kind"].as_str()), (Some("WidgetList"), Some("Widget")));
    assert_eq!(cluster.get("/apis/example.com/v1/widgets").await.ok()["items"].as_array().map(Vec::len), Some(1));
    let (code, _, message) = cluster.post(WIDGETS, widget("b", json!({"size": "x"}))).await.refused();
    assert_eq!(code, 422);
    assert_eq!(
        message,
        "Widget.example.com \"b\" is invalid: spec.size: Invalid value: \"string\": spec.size in body must be of type \
        integer: \"string\""
    );
    let strict =
        cluster.post(&format!("{WIDGETS}?fieldValidation=Strict"), widget("b", json!({"odd": 1}))).await.refused();
    assert!(strict.2.contains("strict decoding error: unknown field \"spec.odd\""), "{}", strict.2);

    let patched = cluster.patch(&format!("{WIDGETS}/a"), "merge", json!({"spec": {"size": 5}})).await.ok();
    assert_eq!((&patched["spec"]["size"], &patched["metadata"]["generation"]), (&json!(5), &json!(2)));
    let strategic =
        cluster.patch(&format!("{WIDGETS}/a"), "strategic-merge", json!({"spec": {"size": 6}})).await.refused();
    assert_eq!(strategic.0, 415);
    assert!(
        strategic
            .2
            .ends_with("application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml")
    );
    let proto = cluster.send("GET", WIDGETS, &[("accept", "application/vnd.kubernetes.protobuf")], "").await;
    assert_eq!(proto.code, 406);
    let proto = [("content-type", "application/vnd.kubernetes.protobuf")];
    assert_eq!(cluster.send("POST", WIDGETS, &proto, "k8s\0\x0a\x15").await.code, 400);
    let discovery = [("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")];
    let groups = cluster.send("GET", "/apis", &discovery, "").await.ok();
    let group =
        groups["items"].as_array().unwrap().iter().find(|group| group["metadata"]["name"] == "example.com").unwrap();
    assert_eq!(group["versions"][0]["freshness"], "Current");
    let resource = &group["versions"][0]["resources"][0];
    assert_eq!((resource["resource"].as_str(), resource["scope"].as_str()), (Some("widgets"), Some("Namespaced")));
    assert_eq!((resource["categories"].clone(), resource["shortNames"].clone()), (json!(["all"]), json!(["wd"])));
    let json_patch = json!([{"op": "add", "path": "/spec/odd", "value": 1}]);
    let patched =
        cluster.patch(&format!("{WIDGETS}/a?fieldValidation=Strict"), "json", json_patch.clone()).await.refused();
    assert!(
        patched.0 == 422 && patched.2.contains("strict decoding error: unknown field \"spec.odd\""),
        "{}",
        patched.2
    );
    let warned = cluster.patch(&format!("{WIDGETS}/a"), "json", json_patch).await;
    assert_eq!(warned.headers["warning"], "299 - \"unknown field \\\"spec.odd\\\"\"");
    // Without a status of its own a status is a field like others.
    let put = cluster.patch(&format!("{WIDGETS}/a"), "merge", json!({"status": {"x": 1}})).await.ok();
    assert_eq!((&put["status"]["x"], &put["metadata"]["generation"]), (&json!(1), &json!(3)));
    assert_eq!(cluster.get(&format!("{WIDGETS}/a/status")).await.code, 404);
    cluster.delete(&format!("{WIDGETS}/a"), Value::Null).await.ok();
    assert_eq!(cluster.get(&format!("{WIDGETS}/a")).await.code, 404);
}

#[tokio::test]
async fn status_and_scale_are_resources_of_their_own() {
    let cluster = Cluster::start().await;
    let mut v1 = version("v1", true, json!({"replicas": {"type": "integer"}, "x": {"type": "string"}}));
    v1["subresources"] = json!({"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector"}});
    establish(&cluster, crd(json!([v1]))).await;
    let mut object = widget("a", json!({"replicas": 2}));
    object["status"] = json!({"replicas": 9});
    let made = cluster.post(WIDGETS, object).await.ok();
    assert_eq!(made.get("status"), None);
    let path = format!("{WIDGETS}/a");
    let body = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"replicas": 7}, "status": {"replicas": 2, "selector": "app=x"}});
    let set = cluster.patch(&format!("{path}/status"), "merge", body).await.ok();
    assert_eq!((&set["spec"]["replicas"], &set["status"]["replicas"]), (&json!(2), &json!(2)));
    assert_eq!((&set["metadata"]["generation"], set["metadata"].get("labels")), (&json!(1), None));
    let scale = cluster.get(&format!("{path}/scale")).await.ok();
    assert_eq!(scale["spec"]["replicas"], 2);
    assert_eq!(scale["status"], json!({"replicas": 2, "selector": "app=x"}));
    let scaled = cluster.patch(&format!("{path}/scale"), "merge", json!({"spec": {"replicas": 4}})).await.ok();
    assert_eq!(scaled["spec"]["replicas"], 4);
    let now = cluster.get(&path).await.ok();
    assert_eq!((&now["spec"]["replicas"], &now["metadata"]["generation"]), (&json!(4), &json!(2)));
    let wrong = cluster.patch(&format!("{path}/status"), "merge", json!({"status": {"replicas": -1}})).await.refused();
    assert!(wrong.2.contains("status.replicas: Invalid value: -1: should be a non-negative integer"), "{}", wrong.2);
    let kept = cluster
        .put(&path, {
            let mut o = now.clone();
            o["status"] = json!({});
            o["spec"]["x"] = "y".into();
            o
        })
        .await
        .ok();
    assert_eq!(kept["status"]["replicas"], 2, "the object's own path leaves status alone");
}

#[tokio::test]
async fn stored_objects_follow_a_changed_schema() {
    let cluster = Cluster::start().await;
    establish(
        &cluster,
        crd(json!([version("v1", true, json!({"a": {"type": "string"}, "gone": {"type": "string"}}))])),
    )
    .await;
    cluster.post(WIDGETS, widget("old", json!({"a": "x", "gone": "y"}))).await.ok();
    let mut events = cluster.watch(&format!("{WIDGETS}?watch=1")).await;
    assert_eq!(events.brief().await, "ADDED old");
    change_crd(&cluster, |crd| {
        crd["spec"]["versions"] = json!([
            version("v1", false, json!({"a": {"type": "string"}, "b": {"type": "integer", "default": 1}})),
            version("v2", true, json!({"a": {"type": "string"}, "b": {"type": "integer"}, "c": {"type": "string"}})),
        ]);
    })
    .await;
    assert_eq!(events.brief().await, "end", "a watch does not outlive its definition");
    let old = cluster.get(&format!("{WIDGETS}/old")).await.ok();
    assert_eq!(old["spec"], json!({"a": "x", "b": 1}), "pruned and defaulted as it is read");
    let listed = cluster.get(WIDGETS).await.ok();
    assert_eq!(listed["items"][0]["spec"], old["spec"]);
    let v2 = "/apis/example.com/v2/namespaces/default/widgets";
    let as_v2 = cluster.get(&format!("{v2}/old")).await.ok();
    assert_eq!((as_v2["apiVersion"].as_str(), &as_v2["spec"]["b"]), (Some("example.com/v2"), &json!(1)));
    let mut events = cluster.watch(&format!("{v2}?watch=1")).await;
    let seen = events.next().await.unwrap();
    assert_eq!(seen["object"]["apiVersion"], "example.com/v2");
    // Written through one version, read through the other; what only the stored one knows stays.
    let mut new = widget("new", json!({"a": "z", "c": "only v2"}));
    new["apiVersion"] = "example.com/v2".into();
    cluster.post(v2, new).await.ok();
    let as_v1 = cluster.get(&format!("{WIDGETS}/new")).await.ok();
    assert_eq!((as_v1["apiVersion"].as_str(), as_v1["spec"].get("c")), (Some("example.com/v1"), None));
    assert_eq!(cluster.get(&format!("{v2}/new")).await.ok()["spec"]["c"], "only v2");
    assert_eq!(cluster.get(CRD).await.ok()["status"]["storedVersions"], json!(["v1", "v2"]));
    let refused =
        cluster.patch(&format!("{CRD}/status"), "merge", json!({"status": {"storedVersions": ["v1"]}})).await.refused();
    assert!(refused.2.contains("status.storedVersions"), "{}", refused.2);
}

#[tokio::test]
async fn a_deleted_definition_takes_its_objects_along() {
    let cluster = Cluster::start().await;
    establish(&cluster, crd(json!([version("v1", true, json!({}))]))).await;
    for n in 0..20 {
        cluster.post(WIDGETS, widget(&format!("w{n}"), json!({}))).await.ok();
    }
    let mut held = widget("held", json!({}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    cluster.post(WIDGETS, held).await.ok();
    let deleted = cluster.delete(CRD, Value::Null).await.ok();
    assert_eq!(deleted["metadata"]["finalizers"], json!(["customresourcecleanup.apiextensions.k8s.io"]));
    assert_eq!(condition(&deleted, "Terminating"), "True");
    let create = cluster.post(WIDGETS, widget("late", json!({}))).await.refused();
    assert_eq!(
        (create.0, create.2.as_str()),
        (405, "create not allowed while custom resource definition is terminating")
    );
    let mut events = cluster.watch(&format!("{WIDGETS}?watch=1")).await;
    loop {
        let list = cluster.get(WIDGETS).await.ok();
        let items = list["items"].as_array().unwrap();
        if let [only] = items.as_slice()
            && only["metadata"]["deletionTimestamp"].is_string()
        {
            break;
        }
        events.next().await;
    }
    let mut crds = cluster.watch(&format!("{CRDS}?watch=1")).await;
    cluster.patch(&format!("{WIDGETS}/held"), "merge", json!({"metadata": {"finalizers": null}})).await.ok();
    while crds.brief().await != "DELETED widgets.example.com" {}
    assert_eq!(cluster.get(CRD).await.code, 404);
    assert_eq!(cluster.get(WIDGETS).await.code, 404);
    let mut last = String::new();
    loop {
        let brief = events.brief().await;
        if brief == "end" {
            break;
        }
        last = brief;
    }
    assert_eq!(last, "DELETED held", "a watch sees the last object go, and ends");
    // The same definition again starts empty.
    establish(&cluster, crd(json!([version("v1", true, json!({}))]))).await;
    assert_eq!(cluster.get(WIDGETS).await.ok()["items"], json!([]));
}

#[tokio::test]
async fn names_are_given_once_in_a_group() {
    let cluster = Cluster::start().await;
    establish(&cluster, crd(json!([version("v1", true, json!({}))]))).await;
    let mut other = crd(json!([version("v1", true, json!({}))]));
    other["metadata"]["name"] = "gadgets.example.com".into();
    other["spec"]["names"] = json!({"plural": "gadgets", "kind": "Gadget", "shortNames": ["wd"]});
    cluster.post(CRDS, other).await.ok();
    let mut events = cluster.watch(&format!("{CRDS}?watch=1&fieldSelector=metadata.name=gadgets.example.com")).await;
    let seen = loop {
        let event = events.next().await.unwrap();
        if condition(&event["object"], "NamesAccepted") == "False" {
            break event["object"].clone();
        }
    };
    assert_eq!(condition(&seen, "Established"), "False");
    assert_eq!(cluster.get("/apis/example.com/v1/gadgets").await.code, 404);
    // Nor is a built-in name given away, and least of all are built-in objects.
    let mut thief = crd(json!([version("v1", true, json!({}))]));
    thief["metadata"] = json!({"name": "ingresses.networking.k8s.io", "annotations": {"api-approved.kubernetes.io": "unapproved, a test"}});
    thief["spec"]["group"] = "networking.k8s.io".into();
    thief["spec"]["names"] = json!({"plural": "ingresses", "kind": "Mine"});
    cluster.post(CRDS, thief).await.ok();
    let mut thefts =
        cluster.watch(&format!("{CRDS}?watch=1&fieldSelector=metadata.name=ingresses.networking.k8s.io")).await;
    while condition(&thefts.next().await.unwrap()["object"], "NamesAccepted") != "False" {}
    let ingress = json!({"metadata": {"name": "kept"}, "spec": {"defaultBackend": {"service": {"name": "a", "port": {"number": 1}}}}});
    let ingresses = "/apis/networking.k8s.io/v1/namespaces/default/ingresses";
    cluster.post(ingresses, ingress).await.ok();
    cluster.delete(&format!("{CRDS}/ingresses.networking.k8s.io"), Value::Null).await.ok();
    while thefts.next().await.unwrap()["type"] != "DELETED" {}
    assert_eq!(cluster.get(&format!("{ingresses}/kept")).await.code, 200);
    // The name is free when its owner is gone.
    cluster.delete(CRD, Value::Null).await.ok();
    loop {
        let event = events.next().await.unwrap();
        if condition(&event["object"], "Established") == "True" {
            break;
        }
    }
    assert_eq!(cluster.get("/apis/example.com/v1/gadgets").await.code, 200);
}

#[tokio::test]
async fn fields_and_labels_select() {
    let cluster = Cluster::start().await;
    let mut v1 = version("v1", true, json!({"color": {"type": "string"}, "on": {"type": "boolean"}}));
    v1["selectableFields"] = json!([{"jsonPath": ".spec.color"}, {"jsonPath": ".spec.on"}]);
    establish(&cluster, crd(json!([v1]))).await;
    for (name, color) in [("a", "red"), ("b", "blue"), ("c", "red")] {
        cluster.post(WIDGETS, widget(name, json!({"color": color, "on": name == "a"}))).await.ok();
    }
    let names = |answer: Answer| -> Vec<String> {
        let list = answer.ok();
        let items = list["items"].as_array().unwrap().iter();
        items.map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(cluster.get(&format!("{WIDGETS}?fieldSelector=spec.color%3Dred")).await), ["a", "c"]);
    assert_eq!(names(cluster.get(&format!("{WIDGETS}?fieldSelector=spec.color%3Dred,spec.on%3Dtrue")).await), ["a"]);
    assert_eq!(names(cluster.get(&format!("{WIDGETS}?fieldSelector=spec.color%21%3Dred")).await), ["b"]);
    let refused = cluster.get(&format!("{WIDGETS}?fieldSelector=spec.size%3D1")).await.refused();
    assert_eq!((refused.0, refused.2.as_str()), (400, "field label not supported: spec.size"));
    let mut events: Events = cluster.watch(&format!("{WIDGETS}?watch=1&fieldSelector=spec.color%3Dblue")).await;
    assert_eq!(events.brief().await, "ADDED b");
    cluster.patch(&format!("{WIDGETS}/a"), "merge", json!({"spec": {"color": "blue"}})).await.ok();
    assert_eq!(events.brief().await, "ADDED a");
    cluster.patch(&format!("{WIDGETS}/b"), "merge", json!({"spec": {"color": "red"}})).await.ok();
    assert_eq!(events.brief().await, "DELETED b");
    let gone = cluster.send("DELETE", &format!("{WIDGETS}?fieldSelector=spec.color%3Dred"), &[], "").await;
    gone.ok();
    assert_eq!(names(cluster.get(WIDGETS).await), ["a"]);
}

#[tokio::test]
async fn apply_knows_the_lists_of_a_custom_schema() {
    let cluster = Cluster::start().await;
    let properties = json!({"ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"],
        "items": {"type": "object", "required": ["port"], "properties": {"port": {"type": "integer"}, "name": {"type": "string"}}}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    establish(&cluster, crd(json!([version("v1", true, properties)]))).await;
    let path = format!("{WIDGETS}/a");
    let port = |port: u16, name: &str| json!({"port": port, "name": name});
    let apply = |manager: &'static str, spec: Value, more: &'static str| {
        let (cluster, path) = (&cluster, &path);
        async move { cluster.patch(&format!("{path}?fieldManager={manager}{more}"), "apply", widget("a", spec)).await }
    };
    apply("one", json!({"ports": [port(80, "http")]}), "").await.ok();
    let both = apply("two", json!({"ports": [port(443, "https")]}), "").await.ok();
    assert_eq!(both["spec"]["ports"].as_array().map(Vec::len), Some(2));
    let conflict = apply("two", json!({"ports": [port(80, "mine")]}), "").await.refused();
    assert_eq!(conflict.0, 409);
    assert!(conflict.2.contains("conflict with \"one\""), "{}", conflict.2);
    let forced = apply("two", json!({"ports": [port(80, "mine")]}), "&force=true").await.ok();
    assert_eq!(forced["spec"]["ports"], json!([port(80, "mine")]));
    let unknown = apply("one", json!({"odd": 1}), "&fieldValidation=Strict").await.refused();
    assert!(unknown.2.contains(".spec.odd: field not declared in schema"), "{}", unknown.2);
    let mut odd = widget("a", json!({}));
    odd["metadata"]["odd"] = 1.into();
    let unknown =
        cluster.patch(&format!("{path}?fieldManager=one&fieldValidation=Strict"), "apply", odd).await.refused();
    assert!(unknown.2.contains(".metadata.odd: field not declared in schema"), "{}", unknown.2);
    let twice = "apiVersion: example.com/v1\nkind: Widget\nmetadata:\n  name: a\nspec:\n  free:\n    x: 1\n    x: 2\n";
    let kind = [("content-type", "application/apply-patch+yaml")];
    let twice = cluster.send("PATCH", &format!("{path}?fieldManager=one"), &kind, twice).await.refused();
    assert!(twice.2.contains("line 8: key \"x\" already set in map"), "{}", twice.2);
}

#[tokio::test]
async fn every_server_serves_what_one_was_told() {
    let one = Cluster::start().await;
    let two = one.another(|_| ()).await;
    one.post(CRDS, crd(json!([version("v1", true, json!({"a": {"type": "string"}}))]))).await.ok();
    until(&one, |crd| condition(crd, "Established") == "True").await;
    two.post(WIDGETS, widget("a", json!({"a": "x"}))).await.ok();
    change_crd(&one, |crd| crd["spec"]["versions"][0] = version("v1", true, json!({"b": {"type": "string"}}))).await;
    // Whichever server it goes through, the object is written by the schema in force.
    let made = two.post(WIDGETS, widget("b", json!({"a": "x", "b": "y"}))).await.ok();
    assert_eq!(made["spec"], json!({"b": "y"}));
    assert_eq!(two.get(&format!("{WIDGETS}/a")).await.ok()["spec"], json!({}));
}

#[tokio::test]
async fn tables_have_the_columns_of_the_definition() {
    let cluster = Cluster::start().await;
    let mut v1 = version("v1", true, json!({"size": {"type": "integer"}}));
    v1["additionalPrinterColumns"] =
        json!([{"name": "Size", "type": "integer", "jsonPath": ".spec.size", "priority": 1}]);
    establish(&cluster, crd(json!([v1]))).await;
    cluster.post(WIDGETS, widget("a", json!({"size": 3}))).await.ok();
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = cluster.send("GET", WIDGETS, &accept, "").await.ok();
    assert_eq!(table["rows"][0]["cells"], json!(["a", 3]));
    assert_eq!(
        (table["columnDefinitions"][1]["name"].as_str(), table["columnDefinitions"][1]["priority"].as_i64()),
        (Some("Size"), Some(1))
    );
}

/// `v1` calls the field `size`, `v2` calls it `length`.
fn rename(path: &str, request: &Value) -> Option<Value> {
    if path == "/broken" {
        return Some(json!({"result": {"status": "Failure", "message": "out of order"}}));
    }
    let wanted = request["desiredAPIVersion"].as_str()?;
    let (from, to) = if wanted.ends_with("v2") { ("size", "length") } else { ("length", "size") };
    let convert = |object: &Value| {
        let mut object = object.clone();
        object["apiVersion"] = wanted.into();
        if let Some(spec) = object["spec"].as_object_mut()
            && let Some(value) = spec.remove(from)
        {
            spec.insert(to.to_owned(), value);
        }
        object
    };
    let converted: Vec<Value> = request["objects"].as_array()?.iter().map(convert).collect();
    Some(json!({"result": {"status": "Success"}, "convertedObjects": converted}))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_converts_between_versions() {
    let cluster = Cluster::start().await;
    let hook = Hook::start(&["h2", "http/1.1"], rename).await;
    let mut v1 = version("v1", true, json!({"size": {"type": "integer"}}));
    let mut v2 = version("v2", false, json!({"length": {"type": "integer"}}));
    v1["selectableFields"] = json!([{"jsonPath": ".spec.size"}]);
    v2["selectableFields"] = json!([{"jsonPath": ".spec.length"}]);
    let mut definition = crd(json!([v1, v2]));
    definition["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {"clientConfig": hook.at("/convert"), "conversionReviewVersions": ["v1"]}});
    establish(&cluster, definition).await;
    let in_v2 = "/apis/example.com/v2/namespaces/default/widgets";
    cluster.post(WIDGETS, widget("one", json!({"size": 1}))).await.ok();
    let mut two = widget("two", json!({"length": 2}));
    two["apiVersion"] = "example.com/v2".into();
    let made = cluster.post(in_v2, two).await.ok();
    assert_eq!((made["apiVersion"].as_str(), &made["spec"]), (Some("example.com/v2"), &json!({"length": 2})));
    assert_eq!(cluster.get(&format!("{WIDGETS}/two")).await.ok()["spec"], json!({"size": 2}));
    hook.forget();
    let list = cluster.get(in_v2).await.ok();
    assert_eq!(list["items"][0]["spec"], json!({"length": 1}));
    assert_eq!(list["items"].as_array().map(Vec::len), Some(2));
    assert_eq!(hook.requests().len(), 1, "one question for all objects of a list");
    let page = cluster.get(&format!("{in_v2}?limit=1")).await.ok();
    assert_eq!(page["metadata"]["remainingItemCount"], 1);
    let selected = cluster.get(&format!("{in_v2}?fieldSelector=spec.length%3D2")).await.ok();
    assert_eq!(selected["items"][0]["metadata"]["name"], "two");

    let mut events = cluster.watch(&format!("{in_v2}?watch=1")).await;
    assert_eq!((events.brief().await, events.brief().await), ("ADDED one".into(), "ADDED two".into()));
    cluster.patch(&format!("{in_v2}/one"), "merge", json!({"spec": {"length": 5}})).await.ok();
    let event = events.next().await.unwrap();
    assert_eq!((event["type"].as_str(), &event["object"]["spec"]), (Some("MODIFIED"), &json!({"length": 5})));
    assert_eq!(cluster.get(&format!("{WIDGETS}/one")).await.ok()["spec"], json!({"size": 5}));
    cluster.delete(&format!("{in_v2}/two"), Value::Null).await.ok();
    assert_eq!(events.next().await.unwrap()["object"]["spec"], json!({"length": 2}));

    // The storage version changes; objects stored before are converted as they are read.
    change_crd(&cluster, |crd| {
        crd["spec"]["versions"][0]["storage"] = false.into();
        crd["spec"]["versions"][1]["storage"] = true.into();
    })
    .await;
    assert_eq!(cluster.get(&format!("{in_v2}/one")).await.ok()["spec"], json!({"length": 5}));
    assert_eq!(cluster.get(&format!("{WIDGETS}/one")).await.ok()["spec"], json!({"size": 5}));
    // A write that changes nothing brings the object to the new version.
    let one = cluster.get(&format!("{in_v2}/one")).await.ok();
    cluster.put(&format!("{in_v2}/one"), one).await.ok();
    hook.forget();
    cluster.get(&format!("{in_v2}/one")).await.ok();
    assert_eq!(hook.requests().len(), 0);

    let broken = hook.at("/broken");
    change_crd(&cluster, |crd| crd["spec"]["conversion"]["webhook"]["clientConfig"] = broken.clone()).await;
    let (code, _, message) = cluster.get(&format!("{WIDGETS}/one")).await.refused();
    assert_eq!(code, 500);
    assert_eq!(message, "conversion webhook for example.com/v2, Kind=Widget failed: out of order");
    // Its end needs no webhook, whatever version objects are stored in.
    change_crd(&cluster, |crd| {
        crd["spec"]["versions"][0]["storage"] = true.into();
        crd["spec"]["versions"][1]["storage"] = false.into();
    })
    .await;
    let mut crds = cluster.watch(&format!("{CRDS}?watch=1")).await;
    cluster.delete(CRD, Value::Null).await.ok();
    while crds.brief().await != "DELETED widgets.example.com" {}
}

#[tokio::test]
async fn documents_follow_a_definition() {
    let cluster = Cluster::start().await;
    let before = cluster.get("/openapi/v2").await.ok();
    assert_eq!(cluster.get("/openapi/v3/apis/example.com/v1").await.code, 404);
    let mut v1 = version("v1", true, json!({"size": {"type": "integer", "description": "How large."}}));
    v1["schema"]["openAPIV3Schema"]["description"] = "A widget.".into();
    establish(&cluster, crd(json!([v1]))).await;
    let index = cluster.get("/openapi/v3").await.ok();
    let url = index["paths"]["apis/example.com/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    let document = cluster.get(&url).await.ok();
    let schema = &document["components"]["schemas"]["com.example.v1.Widget"];
    assert_eq!(schema["properties"]["spec"]["properties"]["size"]["description"], "How large.");
    let v2 = cluster.get("/openapi/v2").await.ok();
    assert_eq!(v2["definitions"]["com.example.v1.Widget"]["description"], "A widget.");
    let proto = [("accept", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf")];
    let proto = cluster.send("GET", "/openapi/v2", &proto, "").await;
    assert!(proto.body.as_str().unwrap().contains("com.example.v1.Widget"));
    let list = cluster.get("/apis/example.com/v1").await.ok();
    assert_eq!(
        (list["resources"][0]["name"].as_str(), list["resources"][0]["shortNames"][0].as_str()),
        (Some("widgets"), Some("wd"))
    );
    change_crd(&cluster, |crd| {
        let properties = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
        properties["spec"]["properties"]["size"]["description"] = "How long.".into();
    })
    .await;
    let index = cluster.get("/openapi/v3").await.ok();
    assert_ne!(index["paths"]["apis/example.com/v1"]["serverRelativeURL"].as_str(), Some(url.as_str()));
    cluster.delete(CRD, Value::Null).await.ok();
    let mut crds = cluster.watch(&format!("{CRDS}?watch=1")).await;
    loop {
        let code = cluster.get(CRD).await.code;
        if code == 404 {
            break;
        }
        crds.next().await;
    }
    assert_eq!(cluster.get("/openapi/v2").await.ok(), before);
}
