use serde_json::{Value, json};

use super::*;
use crate::decode::{self, Format, Strictness};

fn crd(schema: &Value) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "widgets.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "widgets", "singular": "widget", "kind": "Widget",
            "listKind": "WidgetList"}, "conversion": {"strategy": "None"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]},
        "status": {"acceptedNames": {"plural": "widgets", "kind": "Widget", "listKind": "WidgetList"}, "storedVersions": ["v1"]}})
}

fn custom(schema: &Value) -> Custom {
    let definition = Definition::new(crd(schema).to_string().into(), 1).unwrap();
    Custom { definition: Arc::new(definition), index: 0, revision: 1, terminating: false }
}

fn spec(properties: Value) -> Value {
    json!({"type": "object", "properties": {"spec": {"type": "object", "properties": properties}}})
}

/// What is wrong with an object of this spec.
fn errors(properties: Value, spec_value: Value) -> Vec<String> {
    let object =
        json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "a"}, "spec": spec_value});
    validate(&custom(&spec(properties)), &object).iter().map(ToString::to_string).collect()
}

#[test]
fn values_are_checked_in_upstreams_words() {
    let table = [
        (
            json!({"replicas": {"type": "integer"}}),
            json!({"replicas": "x"}),
            "spec.replicas: Invalid value: \"string\": spec.replicas in body must be of type integer: \"string\"",
        ),
        (
            json!({"a": {"type": "string"}}),
            json!({"a": null}),
            "spec.a: Invalid value: \"null\": spec.a in body must be of type string: \"null\"",
        ),
        (
            json!({"a": {"type": "integer", "minimum": 1}}),
            json!({"a": 0}),
            "spec.a: Invalid value: 0: spec.a in body should be greater than or equal to 1",
        ),
        (
            json!({"a": {"type": "integer", "maximum": 1, "exclusiveMaximum": true}}),
            json!({"a": 1}),
            "spec.a: Invalid value: 1: spec.a in body should be less than 1",
        ),
        (
            json!({"a": {"type": "string", "pattern": "^x$"}}),
            json!({"a": "y"}),
            "spec.a: Invalid value: \"y\": spec.a in body should match '^x$'",
        ),
        (
            json!({"a": {"type": "string", "minLength": 2}}),
            json!({"a": "y"}),
            "spec.a: Invalid value: \"y\": spec.a in body should be at least 2 chars long",
        ),
        (
            json!({"a": {"type": "string", "maxLength": 1}}),
            json!({"a": "yy"}),
            "spec.a: Too long: may not be more than 1 bytes",
        ),
        (
            json!({"a": {"type": "string", "enum": ["x", "y"]}}),
            json!({"a": "z"}),
            "spec.a: Unsupported value: \"z\": supported values: \"x\", \"y\"",
        ),
        (
            json!({"a": {"type": "array", "maxItems": 1, "items": {"type": "integer"}}}),
            json!({"a": [1, 2]}),
            "spec.a: Too many: 2: must have at most 1 items",
        ),
        (
            json!({"a": {"type": "array", "items": {"type": "object", "required": ["b"], "properties": {"b": {"type": "string"}}}}}),
            json!({"a": [{}]}),
            "spec.a[0].b: Required value",
        ),
        (
            json!({"a": {"type": "string", "format": "date-time"}}),
            json!({"a": "now"}),
            "spec.a: Invalid value: \"now\": spec.a in body must be of type date-time: \"now\"",
        ),
        (
            json!({"a": {"type": "integer", "multipleOf": 5}}),
            json!({"a": 7}),
            "spec.a: Invalid value: 7: spec.a in body should be a multiple of 5",
        ),
        (
            json!({"a": {"x-kubernetes-int-or-string": true}}),
            json!({"a": true}),
            "spec.a: Invalid value: \"boolean\": spec.a in body must be of type integer,string: \"boolean\"",
        ),
        (
            json!({"a": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}}),
            json!({"a": ["x", "x"]}),
            "spec.a[1]: Duplicate value: \"x\"",
        ),
        (
            json!({"a": {"type": "integer", "oneOf": [{"minimum": 5}, {"minimum": 7}]}}),
            json!({"a": 9}),
            "<nil>: Invalid value: \"\": \"spec.a\" must validate one and only one schema (oneOf). Found 2 valid alternatives",
        ),
        (
            json!({"a": {"type": "integer", "not": {"minimum": 5}}}),
            json!({"a": 9}),
            "<nil>: Invalid value: \"\": \"spec.a\" must not validate the schema (not)",
        ),
    ];
    for (schema, value, expected) in table {
        assert_eq!(errors(schema.clone(), value.clone()), [expected], "{schema} {value}");
    }
    assert!(
        errors(
            json!({"a": {"type": "integer"}, "b": {"type": "string", "nullable": true}}),
            json!({"a": 1.0, "b": null})
        )
        .is_empty()
    );
}

#[test]
fn what_was_wrong_before_may_stay() {
    let schema = custom(&spec(json!({"a": {"type": "integer", "maximum": 5}, "b": {"type": "string"},
        "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}, "v": {"type": "integer", "maximum": 5}}}}})));
    let object = |a: i64, b: &str, v: i64| json!({"metadata": {"name": "a"}, "spec": {"a": a, "b": b, "list": [{"k": "x", "v": 9}, {"k": "y", "v": v}]}});
    let old = object(9, "", 1);
    assert!(validate_update(&schema, &object(9, "changed", 2), &old).is_empty());
    let texts: Vec<String> =
        validate_update(&schema, &object(8, "", 7), &old).iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(texts[0].starts_with("spec.a:") && texts[1].starts_with("spec.list[1].v:"), "{texts:?}");
}

#[test]
fn unknown_and_duplicate_fields_are_found_and_pruned() {
    let schema = custom(&json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "known": {"type": "string"},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"closed": {"type": "object"}}},
        "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"a": {"type": "integer"}}}},
        "template": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}},
    }}}}));
    let text = br#"{"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "a", "odd": 1}, "top": 1,
        "spec": {"known": "x", "known": "y", "more": 1, "free": {"x": {"y": 1, "y": 2}, "closed": {"z": 1}}, "map": {"k": {"a": 1, "b": 2}},
            "template": {"apiVersion": "v1", "kind": "X", "metadata": {"name": "n", "odd": 2}, "spec": {}, "extra": 1}}}"#;
    let decoded = decode::decode_custom(text, Format::Json, &schema.compiled().props, Strictness::Warn).unwrap();
    assert_eq!(
        decoded.object,
        json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "a"},
        "spec": {"known": "y", "free": {"x": {"y": 2}, "closed": {}}, "map": {"k": {"a": 1}},
            "template": {"apiVersion": "v1", "kind": "X", "metadata": {"name": "n"}, "spec": {}}}})
    );
    let mut found = decoded.warnings;
    found.sort();
    assert_eq!(
        found,
        [
            "duplicate field \"spec.free.x.y\"",
            "duplicate field \"spec.known\"",
            "unknown field \"metadata.odd\"",
            "unknown field \"spec.free.closed.z\"",
            "unknown field \"spec.map.k.b\"",
            "unknown field \"spec.more\"",
            "unknown field \"spec.template.extra\"",
            "unknown field \"spec.template.metadata.odd\"",
            "unknown field \"top\"",
        ]
    );
    let strict = decode::decode_custom(text, Format::Json, &schema.compiled().props, Strictness::Strict).unwrap_err();
    assert!(strict.to_string().starts_with("strict decoding error: unknown field \"metadata.odd\""), "{strict}");
    assert!(
        decode::decode_custom(
            b"{\"metadata\": {\"labels\": 3}}",
            Format::Json,
            &schema.compiled().props,
            Strictness::Ignore
        )
        .is_err()
    );
}

#[test]
fn defaults_are_filled_in_at_every_depth() {
    let props = Props::parse(&spec(json!({
        "a": {"type": "integer", "default": 1},
        "b": {"type": "object", "default": {}, "properties": {"c": {"type": "string", "default": "x"}}},
        "list": {"type": "array", "items": {"type": "object", "properties": {"d": {"type": "boolean", "default": true}}}},
        "n": {"type": "string", "nullable": true, "default": "y"}, "gone": {"type": "string"},
    }))).unwrap();
    let mut object = json!({"spec": {"a": null, "list": [{}], "n": null, "gone": null}});
    default(&mut object, &props);
    assert_eq!(object, json!({"spec": {"a": 1, "b": {"c": "x"}, "list": [{"d": true}], "n": null}}));
    let props =
        Props::parse(&json!({"type": "object", "additionalProperties": {"type": "string", "default": "z"}})).unwrap();
    let mut map = json!({"a": null, "b": "c"});
    default(&mut map, &props);
    assert_eq!(map, json!({"a": "z", "b": "c"}));
    let props = Props::parse(&spec(json!({"a": {"type": "integer", "default": 1}}))).unwrap();
    let mut none = json!({});
    default(&mut none, &props);
    assert_eq!(none, json!({}), "nothing is made where nothing was");
}

#[test]
fn what_is_open_stays_open_within_its_lists() {
    let items = json!({"type": "object", "properties": {"a": {"type": "object", "properties": {}}}});
    let open =
        Props::parse(&json!({"type": "array", "x-kubernetes-preserve-unknown-fields": true, "items": items})).unwrap();
    let mut list = json!([{"x": 1, "a": {"y": 2}}]);
    coerce_part(&mut list, &open).unwrap();
    assert_eq!(list, json!([{"x": 1, "a": {}}]));
    let closed = Props::parse(&json!({"type": "array", "items": items})).unwrap();
    coerce_part(&mut list, &closed).unwrap();
    assert_eq!(list, json!([{"a": {}}]));
    let any = Props::parse(&json!({"type": "object", "additionalProperties": true})).unwrap();
    let mut map = json!({"a": 1, "b": {"c": 2}});
    coerce_part(&mut map, &any).unwrap();
    assert_eq!(map, json!({"a": 1, "b": {}}), "as upstream: what is within is unknown");
}

#[test]
fn what_generators_write_is_understood() {
    let quantity = r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$";
    let schema = json!({"type": "object", "description": "A.", "required": ["spec"], "properties": {
        "apiVersion": {"type": "string", "description": "B."}, "kind": {"type": "string", "description": "C."}, "metadata": {"type": "object"},
        "spec": {"type": "object", "properties": {
            "cpu": {"anyOf": [{"type": "integer"}, {"type": "string"}], "pattern": quantity, "x-kubernetes-int-or-string": true},
            "limits": {"type": "object", "additionalProperties": {"anyOf": [{"type": "integer"}, {"type": "string"}], "pattern": quantity, "x-kubernetes-int-or-string": true}},
            "port": {"allOf": [{"anyOf": [{"type": "integer"}, {"type": "string"}]}, {"minLength": 1}], "x-kubernetes-int-or-string": true},
            "raw": {"x-kubernetes-preserve-unknown-fields": true},
            "ref": {"type": "object", "x-kubernetes-map-type": "atomic", "default": {}, "properties": {"name": {"type": "string", "default": ""}}},
            "one": {"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": {"a": {"type": "string"}, "b": {"type": "string"}}},
            "conditions": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"], "items": {"type": "object",
                "required": ["type"], "properties": {"type": {"type": "string", "maxLength": 316, "pattern": "^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$"},
                    "lastTransitionTime": {"type": "string", "format": "date-time"}, "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0}}}},
        }, "x-kubernetes-validations": [{"rule": "has(self.cpu)", "message": "cpu"}]}}});
    let errors = crate::validation::crd_create(&crd(&schema));
    assert_eq!(errors, [], "{errors:?}");
    let custom = custom(&schema);
    let object = |spec: Value| json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "a"}, "spec": spec});
    let good = object(
        json!({"cpu": "100m", "limits": {"x": 2, "y": "1Gi"}, "port": "http", "raw": [{"a": 1}], "one": {"a": "x"},
        "conditions": [{"type": "Ready", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}),
    );
    let errors = validate(&custom, &good);
    assert_eq!(errors, [], "{errors:?}");
    let decoded = decode::check_custom(good.clone(), &custom.compiled().props, Strictness::Strict).unwrap();
    assert_eq!(decoded.object, good);
    for bad in [
        json!({"cpu": "much"}),
        json!({"limits": {"x": true}}),
        json!({"port": ""}),
        json!({"one": {}}),
        json!({"one": {"a": "", "b": ""}}),
    ] {
        assert!(!validate(&custom, &object(bad.clone())).is_empty(), "{bad}");
    }
}

#[test]
fn duplicates_in_yaml_are_told_with_their_line() {
    let text = b"\napiVersion: v1\nspec:\n  foo: a\n  foo: b\n";
    assert_eq!(
        decode::yaml_duplicate(text).unwrap(),
        "error converting YAML to JSON: yaml: unmarshal errors:\n  line 5: key \"foo\" already set in map"
    );
    assert_eq!(decode::yaml_duplicate(b"a: 1\nb: 2\n"), None);
}

#[test]
fn crds_are_refused_in_upstreams_words() {
    let good = crd(&spec(json!({"a": {"type": "integer"}})));
    let check = |change: &dyn Fn(&mut Value)| -> Vec<String> {
        let mut crd = good.clone();
        change(&mut crd);
        crate::validation::crd_create(&crd).iter().map(ToString::to_string).collect()
    };
    assert_eq!(check(&|_| ()), [""; 0]);
    let root = "spec.validation.openAPIV3Schema";
    let a = format!("{root}.properties[spec].properties[a]");
    let schema = |crd: &mut Value, value: Value| {
        crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["a"] = value;
    };
    type Change<'c> = Box<dyn Fn(&mut Value) + 'c>;
    let table: Vec<(Change<'_>, String)> = vec![
        (Box::new(|c| c["metadata"]["name"] = "x.example.com".into()),
            "metadata.name: Invalid value: \"x.example.com\": must be spec.names.plural+\".\"+spec.group".into()),
        (Box::new(|c| c["spec"]["versions"][0]["storage"] = false.into()), "must have exactly one version marked as storage version".into()),
        (Box::new(|c| c["spec"]["scope"] = "Other".into()),
            "spec.scope: Unsupported value: \"Other\": supported values: \"Cluster\", \"Namespaced\"".into()),
        (Box::new(|c| schema(c, json!({}))), format!("{a}.type: Required value: must not be empty for specified object fields")),
        (Box::new(|c| schema(c, json!({"type": "string", "pattern": "("}))), format!("{a}.pattern: Invalid value: \"(\": must be a valid regular expression")),
        (Box::new(|c| schema(c, json!({"type": "integer", "default": "x"}))),
            format!("{a}.default: Invalid value: \"string\": {a}.default in body must be of type integer: \"string\"")),
        (Box::new(|c| schema(c, json!({"type": "object", "anyOf": [{"type": "object"}]}))), format!("{a}.anyOf[0].type: Forbidden: must be empty to be structural")),
        (Box::new(|c| schema(c, json!({"type": "object", "anyOf": [{"required": ["x"], "properties": {"x": {}}}]}))),
            format!("{a}.properties[x]: Required value: because it is defined in {a}.anyOf[0].properties[x]")),
        (Box::new(|c| schema(c, json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object", "properties": {"k": {"type": "string"}}}}))),
            format!("{a}.items.properties[k].default: Required value: this property is in x-kubernetes-list-map-keys")),
        (Box::new(|c| c["spec"]["group"] = "x.k8s.io".into()),
            "metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups must have approval annotation".into()),
        (Box::new(|c| c["spec"]["versions"][0]["additionalPrinterColumns"] = json!([{"name": "A", "type": "string", "jsonPath": "a"}])),
            "spec.additionalPrinterColumns[0].JSONPath: Invalid value: \"a\": must be a simple json path starting with .".into()),
        (Box::new(|c| c["spec"]["versions"][0]["selectableFields"] = json!([{"jsonPath": ".spec.b"}])),
            "spec.selectableFields[0].jsonPath: Invalid value: \".spec.b\": is an invalid path".into()),
        (Box::new(|c| c["spec"]["preserveUnknownFields"] = true.into()), "spec.preserveUnknownFields: Invalid value: true: cannot set to true".into()),
        (Box::new(|c| c["spec"]["conversion"] = json!({"strategy": "Webhook"})), "spec.conversion.webhookClientConfig: Required value: required when".into()),
    ];
    for (change, expected) in table {
        let errors = check(&change);
        assert!(errors.iter().any(|error| error.contains(&expected)), "{expected}\n{errors:?}");
    }
}

#[test]
fn columns_show_what_their_paths_find() {
    let mut crd = crd(&spec(json!({"size": {"type": "integer"}})));
    crd["spec"]["versions"][0]["additionalPrinterColumns"] = json!([
        {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
        {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status", "priority": 1},
        {"name": "Made", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        {"name": "List", "type": "string", "jsonPath": ".spec.list"},
        {"name": "None", "type": "boolean", "jsonPath": ".spec.none"},
    ]);
    let definition = Arc::new(Definition::new(crd.to_string().into(), 1).unwrap());
    let row = super::rows(&definition, 1, false).remove(0);
    let object = json!({"metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"size": 3, "list": ["x"]},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    let now = "2026-01-01T01:00:00Z".parse().unwrap();
    assert_eq!(json!(crate::table::row(&row, &object, now)), json!(["a", 3, "True", "60m", "[\"x\"]", null]));
    let columns = crate::table::columns(&row);
    assert_eq!((columns[2]["name"].as_str(), columns[2]["priority"].as_i64()), (Some("Ready"), Some(1)));
}
