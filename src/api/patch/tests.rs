use serde_json::json;

use super::*;
use crate::schema;

fn deployment(target: Value, patch: Value) -> Result<Value, PatchError> {
    strategic(&target, &patch, &schema::definition("io.k8s.api.apps.v1.Deployment").unwrap())
}

fn containers(list: Value) -> Value {
    json!({"spec": {"template": {"spec": {"containers": list}}}})
}

#[test]
fn json_patches_apply_whole_or_not_at_all() {
    let target = json!({"a": {"b": [1, 2]}});
    let patched =
        json(&target, br#"[{"op":"add","path":"/a/b/-","value":3},{"op":"remove","path":"/a/b/0"}]"#).unwrap();
    assert_eq!(patched, json!({"a": {"b": [2, 3]}}));
    let test = json(&target, br#"[{"op":"test","path":"/a/b","value":3}]"#).unwrap_err();
    assert_eq!(test, PatchError::Test("/a/b".into()));
    let missing = json(&target, br#"[{"op":"remove","path":"/x"}]"#).unwrap_err();
    assert_eq!(missing.to_string(), "remove operation does not apply: doc is missing path: \"/x\": missing value");
    assert!(matches!(json(&target, b"{}"), Err(PatchError::Syntax(_))));
    let many = format!("[{}]", vec![r#"{"op":"test","path":"","value":1}"#; 10_001].join(","));
    assert_eq!(json(&target, many.as_bytes()).unwrap_err(), PatchError::TooMany(10_001));
}

#[test]
fn merge_patches_follow_the_rfc() {
    let target = json!({"a": "b", "c": {"d": "e", "f": "g"}, "l": [1]});
    let patch = json!({"a": "z", "c": {"f": null, "n": {"x": null}}, "l": [2]});
    assert_eq!(merge(&target, &patch), json!({"a": "z", "c": {"d": "e", "n": {}}, "l": [2]}));
    assert_eq!(merge(&json!([1]), &json!({"a": null})), json!({}));
}

#[test]
fn lists_merge_by_their_key() {
    let target = containers(
        json!([{"name": "a", "image": "a:1", "env": [{"name": "X", "value": "1"}]}, {"name": "b", "image": "b:1"}]),
    );
    let patch = containers(json!([{"name": "b", "image": "b:2"}, {"name": "a", "env": [{"name": "Y", "value": "2"}]}]));
    let merged = deployment(target, patch).unwrap();
    assert_eq!(
        merged,
        containers(json!([
            {"name": "b", "image": "b:2"},
            {"name": "a", "image": "a:1", "env": [{"name": "Y", "value": "2"}, {"name": "X", "value": "1"}]},
        ]))
    );
}

#[test]
fn directives_delete_and_replace() {
    let target = containers(json!([{"name": "a", "image": "a"}, {"name": "b", "image": "b"}]));
    let patch = containers(json!([{"name": "a", "$patch": "delete"}]));
    assert_eq!(deployment(target.clone(), patch).unwrap(), containers(json!([{"name": "b", "image": "b"}])));
    let patch = containers(json!([{"$patch": "replace"}, {"name": "c", "image": "c"}]));
    assert_eq!(deployment(target.clone(), patch).unwrap(), containers(json!([{"name": "c", "image": "c"}])));
    let patch = json!({"spec": {"$patch": "replace", "replicas": 1}});
    assert_eq!(deployment(target.clone(), patch).unwrap(), json!({"spec": {"replicas": 1}}));
    let patch = containers(json!([{"image": "x"}]));
    let error = deployment(target, patch).unwrap_err().to_string();
    assert_eq!(error, r#"map: {"image":"x"} does not contain declared merge key: name"#);
}

#[test]
fn retain_keys_clears_the_other_arm() {
    let target = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    assert_eq!(deployment(target.clone(), patch).unwrap(), json!({"spec": {"strategy": {"type": "Recreate"}}}));
    let patch = json!({"spec": {"strategy": {"$retainKeys": ["rollingUpdate"], "type": "Recreate"}}});
    assert!(deployment(target, patch).is_err());
}

#[test]
fn primitive_lists_merge_and_lose_elements() {
    let target = json!({"metadata": {"finalizers": ["a", "b"]}});
    let patch = json!({"metadata": {"finalizers": ["c", "a"]}});
    assert_eq!(deployment(target.clone(), patch).unwrap(), json!({"metadata": {"finalizers": ["c", "a", "b"]}}));
    let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}});
    assert_eq!(deployment(target, patch).unwrap(), json!({"metadata": {"finalizers": ["b"]}}));
}

#[test]
fn the_order_of_elements_can_be_set() {
    let item = |name: &str| json!({"name": name, "image": name});
    let target = containers(json!([item("a"), item("server"), item("b")]));
    let patch = json!({"spec": {"template": {"spec": {
        "$setElementOrder/containers": [{"name": "b"}, {"name": "c"}, {"name": "a"}],
        "containers": [{"name": "c", "image": "c"}],
    }}}});
    let merged = deployment(target, patch).unwrap();
    let names: Vec<&str> = merged["spec"]["template"]["spec"]["containers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["server", "b", "c", "a"]);
}

#[test]
fn atomic_lists_and_nulls() {
    let target = containers(json!([{"name": "a", "command": ["x", "y"]}]));
    let patch = containers(json!([{"name": "a", "command": ["z"], "image": null}]));
    assert_eq!(deployment(target, patch).unwrap(), containers(json!([{"name": "a", "command": ["z"]}])));
    let patch = json!({"metadata": {"labels": {"a": "b", "c": null}}});
    assert_eq!(deployment(json!({}), patch).unwrap(), json!({"metadata": {"labels": {"a": "b"}}}));
}
