use serde_json::json;

use super::*;
use crate::schema;

fn schema() -> Schema {
    schema::definition("io.k8s.api.apps.v1.Deployment").unwrap()
}

fn manager(name: &str, operation: Operation, second: i64) -> Manager<'_> {
    Manager { name, operation, api_version: "apps/v1", subresource: "", time: Timestamp::from_second(second).unwrap() }
}

fn web(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "default"}, "spec": spec})
}

fn apply_as(name: &str, live: Option<&Value>, applied: &Value, force: bool) -> Result<Value, ApplyError> {
    super::apply(live, applied, &manager(name, Operation::Apply, 1), force, &schema())
}

fn owners(object: &Value) -> Vec<(String, Value)> {
    let list = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    list.into_iter().map(|e| (e["manager"].as_str().unwrap().to_owned(), e["fieldsV1"].clone())).collect()
}

#[test]
fn applied_fields_are_owned() {
    let applied = web(json!({"replicas": 2, "template": {"metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "a", "image": "a", "ports": [{"containerPort": 80}], "args": ["x"]}]}}}));
    let object = apply_as("me", None, &applied, false).unwrap();
    assert_eq!(
        owners(&object),
        [(
            "me".to_owned(),
            json!({"f:spec": {"f:replicas": {}, "f:template": {"f:metadata": {"f:labels": {"f:app": {}}},
                "f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:name": {}, "f:image": {}, "f:args": {},
                    "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}}}}}})
        )]
    );
    assert_eq!(object["metadata"]["managedFields"][0]["time"], "1970-01-01T00:00:01Z");
    assert_eq!(object["metadata"]["managedFields"][0]["operation"], "Apply");
}

#[test]
fn what_is_applied_no_more_goes_unless_another_owns_it() {
    let first = web(json!({"replicas": 2, "paused": true, "template": {"spec": {"containers": [
        {"name": "a", "image": "a"}, {"name": "b", "image": "b"}], "securityContext": {"runAsUser": 1}}}}));
    let live = apply_as("me", None, &first, false).unwrap();
    let live = apply_as("other", Some(&live), &web(json!({"paused": true})), false).unwrap();
    let second = web(json!({"template": {"spec": {"containers": [{"name": "a", "image": "a2"}]}}}));
    let object = apply_as("me", Some(&live), &second, false).unwrap();
    assert_eq!(
        object["spec"],
        json!({"paused": true, "template": {"spec": {"containers": [{"name": "a", "image": "a2"}]}}})
    );
    let names: Vec<String> = owners(&object).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["me", "other"]);
}

#[test]
fn conflicts_are_told_and_can_be_forced() {
    let mut live = web(json!({"replicas": 1, "paused": false}));
    let csa = manager("kubectl-client-side-apply", Operation::Update, 0);
    track_update(None, &mut live, &csa, &schema());
    let error = apply_as("me", Some(&live), &web(json!({"replicas": 2})), false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using apps/v1: .spec.replicas"
    );
    let error = apply_as("me", Some(&live), &web(json!({"replicas": 2, "paused": true})), false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"kubectl-client-side-apply\" using apps/v1:\n- .spec.paused\n- .spec.replicas"
    );
    // Saying the same is no conflict: both own it.
    let shared = apply_as("me", Some(&live), &web(json!({"replicas": 1})), false).unwrap();
    assert_eq!(owners(&shared).len(), 2);
    let forced = apply_as("me", Some(&live), &web(json!({"replicas": 2})), true).unwrap();
    assert_eq!(
        owners(&forced),
        [
            ("me".to_owned(), json!({"f:spec": {"f:replicas": {}}})),
            ("kubectl-client-side-apply".to_owned(), json!({"f:spec": {"f:paused": {}}})),
        ]
    );
}

#[test]
fn updates_own_what_they_change_and_keep_their_time_otherwise() {
    let mut live = web(json!({"replicas": 1, "template": {"metadata": {"labels": {"a": "b"}}}}));
    track_update(None, &mut live, &manager("creator", Operation::Update, 0), &schema());
    assert_eq!(
        owners(&live),
        [(
            "creator".to_owned(),
            json!({"f:spec": {"f:replicas": {}, "f:template": {"f:metadata": {"f:labels": {".": {}, "f:a": {}}}}}})
        )]
    );
    let mut same = live.clone();
    same["metadata"].as_object_mut().unwrap().remove("managedFields");
    track_update(Some(&live), &mut same, &manager("noop", Operation::Update, 9), &schema());
    assert_eq!(same, live);
    let mut scaled = live.clone();
    scaled["spec"]["replicas"] = 3.into();
    scaled["status"] = json!({"replicas": 3});
    track_update(Some(&live), &mut scaled, &manager("scaler", Operation::Update, 9), &schema());
    assert_eq!(owners(&scaled)[1], ("scaler".to_owned(), json!({"f:spec": {"f:replicas": {}}})));
    assert_eq!(owners(&scaled)[0].1["f:spec"].get("f:replicas"), None);
    let mut reset = scaled.clone();
    reset["metadata"]["managedFields"] = json!([{}]);
    track_update(Some(&scaled), &mut reset, &manager("scaler", Operation::Update, 9), &schema());
    assert_eq!(reset["metadata"].get("managedFields"), None);
}

#[test]
fn status_writers_own_status_only() {
    let mut live = web(json!({"replicas": 1}));
    track_update(None, &mut live, &manager("creator", Operation::Update, 0), &schema());
    let mut new = live.clone();
    new["status"] = json!({"conditions": [{"type": "Available", "status": "True"}]});
    new["spec"]["replicas"] = 7.into();
    let status = Manager { subresource: "status", ..manager("controller", Operation::Update, 1) };
    track_update(Some(&live), &mut new, &status, &schema());
    assert_eq!(
        owners(&new)[1].1,
        json!({"f:status": {"f:conditions": {".": {}, "k:{\"type\":\"Available\"}": {".": {}, "f:type": {}, "f:status": {}}}}})
    );
    assert_eq!(new["metadata"]["managedFields"][1]["subresource"], "status");
}

#[test]
fn many_updaters_become_ancient() {
    let mut object = web(json!({}));
    track_update(None, &mut object, &manager("m00", Operation::Update, 0), &schema());
    for n in 0..15 {
        let live = object.clone();
        let name = format!("m{n:02}");
        object.meta_mut().entry("labels").or_insert(json!({}))[&name] = "x".into();
        let live = if n == 0 { None } else { Some(&live) };
        track_update(live, &mut object, &manager(&name, Operation::Update, n), &schema());
    }
    let names: Vec<String> = owners(&object).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), 10);
    assert_eq!(names[0], "ancient-changes");
}

#[test]
fn misfits_are_refused() {
    let twice = web(json!({"template": {"spec": {"containers": [{"name": "a"}, {"name": "a"}]}}}));
    assert_eq!(
        apply_as("me", None, &twice, false).unwrap_err().to_string(),
        "failed to create typed patch object (default/web; apps/v1, Kind=Deployment): .spec.template.spec.containers: \
         duplicate entries for key [name=\"a\"]"
    );
    let unknown = web(json!({"foo": 1}));
    assert!(
        apply_as("me", None, &unknown, false)
            .unwrap_err()
            .to_string()
            .ends_with(".spec.foo: field not declared in schema")
    );
}

#[test]
fn first_apply_on_an_untracked_object_conflicts_with_what_was_there() {
    let live = web(json!({"replicas": 1}));
    let error = apply_as("me", Some(&live), &web(json!({"replicas": 2})), false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using apps/v1: .spec.replicas"
    );
    let same = apply_as("me", Some(&live), &web(json!({"replicas": 1})), false).unwrap();
    assert_eq!(owners(&same).len(), 2);
}

#[test]
fn applied_order_wins_and_live_elements_keep_their_place() {
    let item = |name: &str| json!({"name": name, "image": name});
    let list = |names: &[&str]| {
        web(json!({"template": {"spec": {"containers": names.iter().map(|n| item(n)).collect::<Vec<_>>()}}}))
    };
    let mut live = list(&["a", "sidecar", "b"]);
    track_update(None, &mut live, &manager("creator", Operation::Update, 0), &schema());
    let names = |object: &Value| -> String {
        let list = object["spec"]["template"]["spec"]["containers"].as_array().unwrap().clone();
        list.iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
    };
    for (applied, merged) in [
        (&["a", "b"][..], "a sidecar b"),
        (&["b", "a"], "sidecar b a"),
        (&["c", "a"], "c a sidecar b"),
        (&["a", "c"], "a sidecar b c"),
    ] {
        let object = apply_as("me", Some(&live), &list(applied), false).unwrap();
        assert_eq!(names(&object), merged, "{applied:?}");
    }
}
