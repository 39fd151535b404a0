//! Bodies as clients send them, and what becomes of them.

use serde_json::json;

use super::*;
use crate::schema::{Schema, definition};

fn pod() -> Schema {
    definition("io.k8s.api.core.v1.Pod").unwrap()
}

fn strict(body: &str) -> Result<Value, String> {
    read(body, "io.k8s.api.core.v1.Pod")
}

fn read(body: &str, name: &str) -> Result<Value, String> {
    decode(body.as_bytes(), Format::Json, &definition(name).unwrap(), Strictness::Strict)
        .map(|d| d.object)
        .map_err(|e| e.to_string())
}

#[test]
fn unknown_and_duplicate_fields_are_named_with_their_place() {
    let body = r#"{"kind":"Pod","apiVersion":"v1","foo":1,"metadata":{"name":"a","name":"b","labels":{"x":"1","x":"2"}},
        "spec":{"containers":[{"name":"c","bar":{"deep":[1]},"ports":[{"nope":1}]}]}}"#;
    assert_eq!(
        strict(body).unwrap_err(),
        "strict decoding error: unknown field \"foo\", duplicate field \"metadata.name\", duplicate field \
         \"metadata.labels.x\", unknown field \"spec.containers[0].bar\", unknown field \
         \"spec.containers[0].ports[0].nope\""
    );
    let warned = decode(body.as_bytes(), Format::Json, &pod(), Strictness::Warn).unwrap();
    assert_eq!(warned.warnings.len(), 5);
    let ignored = decode(body.as_bytes(), Format::Json, &pod(), Strictness::Ignore).unwrap();
    assert!(ignored.warnings.is_empty());
    assert_eq!(ignored.object, warned.object);
    assert_eq!(
        ignored.object,
        json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "b", "labels": {"x": "2"}},
            "spec": {"containers": [{"name": "c", "ports": [{}]}]}})
    );
}

#[test]
fn type_errors_read_as_gos() {
    for (body, text) in [
        (
            r#"{"spec":{"containers":[{"ports":[{"containerPort":"80"}]}]}}"#,
            "json: cannot unmarshal string into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32",
        ),
        (
            r#"{"spec":{"containers":[{"ports":[{"containerPort":3000000000}]}]}}"#,
            "json: cannot unmarshal number 3000000000 into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32",
        ),
        (
            r#"{"metadata":{"labels":{"a":1}}}"#,
            "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
        ),
        (
            r#"{"spec":{"containers":{}}}"#,
            "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
        ),
        (r#"{"spec":[]}"#, "json: cannot unmarshal array into Go struct field Pod.spec of type v1.PodSpec"),
        ("[]", "json: cannot unmarshal array into Go value of type v1.Pod"),
        (
            r#"{"spec":{"containers":[{"resources":{"limits":{"cpu":"a lot"}}}]}}"#,
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        (
            r#"{"metadata":{"creationTimestamp":"yesterday"}}"#,
            "parsing time \"yesterday\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"yesterday\" as \"2006\"",
        ),
    ] {
        assert_eq!(strict(body).unwrap_err(), text, "{body}");
    }
    let secret = read(r#"{"data":{"a":"b_d="}}"#, "io.k8s.api.core.v1.Secret");
    assert_eq!(secret.unwrap_err(), "illegal base64 data at input byte 1");
}

#[test]
fn syntax_errors_read_as_gos() {
    for (body, text) in [
        ("", "unexpected end of JSON input"),
        ("{\"a\":", "unexpected end of JSON input"),
        ("{a:1}", "invalid character 'a' looking for beginning of object key string"),
        ("{\"kind\":\"a\"} x", "invalid character 'x' after top-level value"),
        ("{\"kind\" 1}", "invalid character '1' after object key"),
        ("nope", "invalid character 'o' in literal"),
        ("<xml/>", "invalid character '<' looking for beginning of value"),
    ] {
        assert_eq!(strict(body).unwrap_err(), format!("couldn't get version/kind; json parse error: {text}"), "{body}");
    }
    let deep = format!("{{\"metadata\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(strict(&deep).is_err());
    let deep = "[".repeat(100_000);
    assert!(parse(deep.as_bytes(), Format::Json).is_err() && parse(deep.as_bytes(), Format::Yaml).is_err());
}

#[test]
fn values_become_canonical() {
    let body = r#"{"metadata":{"name":null,"creationTimestamp":"2024-05-06T07:08:09.123+02:00","labels":{"a":null}},
        "spec":{"containers":[{"name":"c","args":[null],"resources":{"limits":{"cpu":2,"memory":"1024Mi"},
        "requests":{"cpu":"1000m"}},"livenessProbe":{"httpGet":{"port":"web"}},"command":null}]},"status":null}"#;
    assert_eq!(
        strict(body).unwrap(),
        json!({"metadata": {"creationTimestamp": "2024-05-06T05:08:09Z", "labels": {"a": ""}},
            "spec": {"containers": [{"name": "c", "args": [""], "resources": {"limits": {"cpu": "2", "memory": "1Gi"},
            "requests": {"cpu": "1"}}, "livenessProbe": {"httpGet": {"port": "web"}}}]}})
    );
    let lease = read(r#"{"spec":{"renewTime":"2024-05-06T07:08:09Z"}}"#, "io.k8s.api.coordination.v1.Lease").unwrap();
    assert_eq!(lease["spec"]["renewTime"], "2024-05-06T07:08:09.000000Z");
}

#[test]
fn yaml_is_read_like_json() {
    let body = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels: &l\n    x: \"1\"\n  annotations: *l\nspec:\n  \
        terminationGracePeriodSeconds: 5.0\n  containers:\n  - name: c\n    name: d\n    foo: bar\n    ports:\n    - containerPort: 80\n";
    let decoded = decode(body.as_bytes(), Format::Yaml, &pod(), Strictness::Warn).unwrap();
    assert_eq!(
        decoded.warnings,
        ["duplicate field \"spec.containers[0].name\"", "unknown field \"spec.containers[0].foo\""]
    );
    assert_eq!(
        decoded.object,
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"x": "1"}, "annotations": {"x": "1"}},
            "spec": {"terminationGracePeriodSeconds": 5, "containers": [{"name": "d", "ports": [{"containerPort": 80}]}]}})
    );
    let error = decode(b"a: [1\nb: 2", Format::Yaml, &pod(), Strictness::Warn).unwrap_err();
    assert!(error.to_string().starts_with("error converting YAML to JSON: yaml: "), "{error}");
    let error = decode(b"metadata:\n  labels:\n    a: 1", Format::Yaml, &pod(), Strictness::Warn).unwrap_err();
    assert!(matches!(error, DecodeError::Type(_)), "{error}");
    assert_eq!(parse(b"a: {b: [1, 2.5, ~]}", Format::Yaml).unwrap(), json!({"a": {"b": [1, 2.5, null]}}));
}

#[test]
fn what_has_no_schema_stays_as_it_is() {
    let body = r#"{"kind":"ControllerRevision","revision":1,"data":{"spec":{"x":null,"y":[1,{"z":1.5}]}}}"#;
    let object = read(body, "io.k8s.api.apps.v1.ControllerRevision").unwrap();
    assert_eq!(object["data"], json!({"spec": {"x": null, "y": [1, {"z": 1.5}]}}));
    let crd = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition";
    let body = r#"{"spec":{"versions":[{"schema":{"openAPIV3Schema":{"properties":{"a":{"default":null,"enum":["x",1],
        "additionalProperties":{"type":"string","nope":1},"items":{"type":"string"}},"b":{"additionalProperties":true}}}}}]}}"#;
    let at = "spec.versions[0].schema.openAPIV3Schema.properties.a.additionalProperties.nope";
    assert_eq!(read(body, crd).unwrap_err(), format!("strict decoding error: unknown field \"{at}\""));
}

#[test]
fn custom_resources_are_pruned_but_not_type_checked() {
    let schema = Schema::custom(&json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "size": {"type": "integer"}, "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}}));
    let body = r#"{"apiVersion":"x/v1","kind":"X","metadata":{"name":"x","nope":1},
        "spec":{"size":"three","other":1,"free":{"any":[null]}}}"#;
    let decoded = decode(body.as_bytes(), Format::Json, &schema, Strictness::Warn).unwrap();
    assert_eq!(decoded.warnings, ["unknown field \"metadata.nope\"", "unknown field \"spec.other\""]);
    assert_eq!(decoded.object["spec"], json!({"size": "three", "free": {"any": [null]}}));
}

#[test]
fn a_checked_value_equals_a_decoded_body() {
    let value = json!({"metadata": {"name": "a", "x": null}, "spec": {"bogus": 1, "replicas": 2.0}});
    let deployment = definition("io.k8s.api.apps.v1.Deployment").unwrap();
    let error = check(value, &deployment, Strictness::Strict).unwrap_err();
    assert_eq!(
        error.to_string(),
        "json: cannot unmarshal number 2.0 into Go struct field DeploymentSpec.spec.replicas of type int32"
    );
    let value = json!({"metadata": {"name": "a"}, "spec": {"bogus": 1}});
    let checked = check(value, &deployment, Strictness::Warn).unwrap();
    assert_eq!(checked.warnings, ["unknown field \"spec.bogus\""]);
    assert_eq!(checked.object, json!({"metadata": {"name": "a"}, "spec": {}}));
}
