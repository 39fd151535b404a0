//! Admission of custom resources: rules in CEL of their definitions, webhooks, policies.

use serde_json::{Value, json};

use crate::custom::{CRD, CRDS, WIDGETS, change_crd, crd, establish, version, widget};
use crate::hook_server::{Hook, configure, hook, patch};
use crate::policies::enforce;
use crate::support::Cluster;

fn on_widgets(versions: &[&str]) -> Value {
    json!([{"operations": ["*"], "apiGroups": ["example.com"], "apiVersions": versions, "resources": ["widgets", "widgets/scale"]}])
}

fn ruled(rules: Value) -> Value {
    let mut spec = json!({"size": {"type": "integer"}, "max": {"type": "integer"}, "name": {"type": "string",
        "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "a name is for ever"}]}});
    spec = json!([version("v1", true, spec)]);
    spec[0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["x-kubernetes-validations"] = rules;
    crd(spec)
}

#[tokio::test]
async fn rules_in_cel_are_compiled_with_a_definition_and_hold_for_its_objects() {
    let cluster = Cluster::start().await;
    let (code, _, message) = cluster.post(CRDS, ruled(json!([{"rule": "self.sise < 3"}]))).await.refused();
    assert_eq!(code, 422);
    assert!(
        message.contains(
            "spec.versions[0].schema.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule: Invalid value"
        ) && message.contains("undefined field 'sise'"),
        "{message}"
    );
    let rules = json!([{"rule": "!has(self.max) || self.size <= self.max",
        "messageExpression": "'size %d is over %d'.format([self.size, self.max])"}]);
    establish(&cluster, ruled(rules)).await;
    let (code, reason, message) = cluster.post(WIDGETS, widget("a", json!({"size": 5, "max": 3}))).await.refused();
    assert_eq!((code, reason.as_str()), (422, "Invalid"));
    assert!(message.contains("is invalid: spec: Invalid value: \"object\": size 5 is over 3"), "{message}");
    let made = widget("a", json!({"size": 2, "max": 3, "name": "one"}));
    cluster.post(WIDGETS, made).await.ok();
    let path = format!("{WIDGETS}/a");
    let renamed = cluster.patch(&path, "merge", json!({"spec": {"name": "two"}})).await.refused();
    assert!(renamed.2.contains("spec.name: Invalid value: \"string\": a name is for ever"), "{}", renamed.2);
    cluster.patch(&path, "merge", json!({"spec": {"size": 3}})).await.ok();

    // An object that broke a rule before the rule was there may be changed elsewhere.
    change_crd(&cluster, |crd| {
        let schema = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        schema["properties"]["size"]["x-kubernetes-validations"] = json!([{"rule": "self > 10"}]);
    })
    .await;
    cluster.patch(&path, "merge", json!({"metadata": {"labels": {"a": "b"}}})).await.ok();
    let (code, _, message) = cluster.patch(&path, "merge", json!({"spec": {"size": 1}})).await.refused();
    assert_eq!(code, 422);
    assert!(message.contains("spec.size: Invalid value: \"integer\": failed rule: self > 10"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_and_policies_are_asked_about_custom_objects() {
    let cluster = Cluster::start().await;
    let spec = || json!({"size": {"type": "integer"}, "added": {"type": "string", "default": "by default"}, "count": {"type": "integer"}});
    let mut versions = json!([version("v1", true, spec()), version("v2", false, spec())]);
    for version in versions.as_array_mut().unwrap() {
        version["subresources"] =
            json!({"scale": {"specReplicasPath": ".spec.count", "statusReplicasPath": ".status.count"}});
    }
    establish(&cluster, crd(versions)).await;
    let server = Hook::start(&["h2"], |path, request| {
        Some(match path {
            "/add" => patch(json!([{"op": "add", "path": "/spec/size", "value": 7},
                {"op": "add", "path": "/spec/unknown", "value": true}, {"op": "remove", "path": "/spec/added"}])),
            _ if request["object"]["spec"]["size"] == 13 || request["object"]["spec"]["replicas"] == 13 => {
                json!({"allowed": false, "status": {"message": "13 is bad"}})
            }
            _ => json!({"allowed": true}),
        })
    })
    .await;
    let mut adds = hook("adds", &server.at("/add"));
    adds["rules"] = on_widgets(&["v1"]);
    adds["rules"][0]["operations"] = json!(["CREATE"]);
    adds["rules"][0]["resources"] = json!(["widgets"]);
    configure(&cluster, "Mutating", "m", json!([adds])).await;
    // What a webhook adds is pruned and defaulted by the schema.
    let made = cluster.post(WIDGETS, widget("a", json!({"count": 1}))).await.ok();
    assert_eq!(made["spec"], json!({"count": 1, "size": 7, "added": "by default"}));
    // By another version, seen as the one that is asked for.
    let v2 = WIDGETS.replace("/v1/", "/v2/");
    let mut other = widget("b", json!({}));
    other["apiVersion"] = "example.com/v2".into();
    let made = cluster.post(&v2, other).await.ok();
    assert_eq!((&made["apiVersion"], &made["spec"]["size"]), (&json!("example.com/v2"), &json!(7)));
    let (_, request) = server.requests().pop().unwrap();
    assert_eq!(request["object"]["apiVersion"], "example.com/v1");
    assert_eq!(request["requestKind"]["version"], "v2");

    let mut denies = hook("denies", &server.at("/deny"));
    denies["rules"] = on_widgets(&["v1"]);
    configure(&cluster, "Validating", "v", json!([denies])).await;
    let path = format!("{WIDGETS}/a");
    let bad = cluster.patch(&path, "merge", json!({"spec": {"size": 13}})).await.refused();
    assert_eq!(bad.2, "admission webhook \"denies.example.com\" denied the request: 13 is bad");
    // A scale is shown as one, by the paths of the kind.
    let scale = |replicas: i64| json!({"spec": {"replicas": replicas}});
    assert_eq!(cluster.patch(&format!("{path}/scale"), "merge", scale(13)).await.refused().2, bad.2);
    cluster.patch(&format!("{path}/scale"), "merge", scale(4)).await.ok();
    assert_eq!(cluster.get(&path).await.ok()["spec"]["count"], 4);

    let rules = json!({"matchConstraints": {"resourceRules": on_widgets(&["v1"])},
        "validations": [{"expression": "!has(object.spec.size) || object.spec.size < 100", "message": "too large"}]});
    enforce(&cluster, "Validating", "p", rules, json!({})).await;
    let large = cluster.patch(&path, "merge", json!({"spec": {"size": 100}})).await.refused();
    assert_eq!(
        large.2,
        "widgets.example.com \"a\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'p' denied request: too large"
    );
    // A definition is an object like others to them.
    let mut on_crds = hook("crds", &server.at("/never"));
    on_crds["rules"] = json!([{"operations": ["DELETE"], "apiGroups": ["apiextensions.k8s.io"], "apiVersions": ["*"],
        "resources": ["customresourcedefinitions"]}]);
    configure(&cluster, "Validating", "c", json!([on_crds])).await;
    server.forget();
    cluster.delete(CRD, Value::Null).await.ok();
    assert_eq!(server.requests().iter().filter(|(path, _)| path == "/never").count(), 1);
}
