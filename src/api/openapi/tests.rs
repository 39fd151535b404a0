//! What kubectl and others look for in the documents.

use std::collections::BTreeSet;

use super::*;

fn parse(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

/// Every `$ref` within a document leads somewhere.
fn check_references(document: &Value, prefix: &str, definitions: &Value) {
    fn walk<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(reference)) = map.get("$ref") {
                    found.insert(reference);
                }
                map.values().for_each(|v| walk(v, found));
            }
            Value::Array(list) => list.iter().for_each(|v| walk(v, found)),
            _ => {}
        }
    }
    let mut found = BTreeSet::new();
    walk(document, &mut found);
    for reference in found {
        let name = reference.strip_prefix(prefix).unwrap_or_else(|| panic!("{reference}"));
        assert!(definitions.get(name).is_some(), "{name}");
    }
}

#[test]
fn explain_finds_the_kind_of_every_resource() {
    for row in resource::builtin() {
        let document = parse(&v3(&row.group, &row.version).unwrap());
        let prefix = format!("/{}", v3_path(&row.group, &row.version));
        let scope = if row.namespaced { "/namespaces/{namespace}" } else { "" };
        let path = &document["paths"][&format!("{prefix}{scope}/{}", row.plural)];
        let operation = ["get", "post"].iter().find_map(|m| path.get(m)).unwrap_or_else(|| panic!("{}", row.plural));
        let kind = json!({"group": row.group, "version": row.version, "kind": row.kind});
        assert_eq!(operation["x-kubernetes-group-version-kind"], kind);
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let of_kind = |s: &&Value| s["x-kubernetes-group-version-kind"].as_array().is_some_and(|k| k.contains(&kind));
        assert_eq!(schemas.values().filter(of_kind).count(), 1, "{kind}");
    }
    for path in v3_paths() {
        let (group, version) = path.rsplit_once('/').unwrap();
        let group = group.strip_prefix("apis/").unwrap_or_default();
        let document = parse(&v3(group, version).unwrap());
        check_references(&document, "#/components/schemas/", &document["components"]["schemas"]);
    }
    assert!(v3("apps", "v9").is_none());
}

#[test]
fn kubectl_sees_that_patches_take_field_validation_and_dry_run() {
    let document = parse(&v3("apps", "v1").unwrap());
    let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    let names: Vec<&str> = patch["parameters"].as_array().unwrap().iter().filter_map(|p| p["name"].as_str()).collect();
    assert!(names.contains(&"fieldValidation") && names.contains(&"dryRun") && names.contains(&"force"));
    let deployment = &document["components"]["schemas"]["io.k8s.api.apps.v1.DeploymentSpec"];
    assert_eq!(deployment["properties"]["strategy"]["x-kubernetes-patch-strategy"], "retainKeys");
    let scale = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"]["get"];
    assert_eq!(scale["x-kubernetes-group-version-kind"]["kind"], "Scale");
}

#[test]
fn the_v2_document_has_all_definitions() {
    let document = parse(&v2());
    check_references(&document, "#/definitions/", &document["definitions"]);
    let pod = &document["definitions"]["io.k8s.api.core.v1.Pod"];
    assert_eq!(pod["properties"]["spec"]["$ref"], "#/definitions/io.k8s.api.core.v1.PodSpec");
    assert_eq!(document["definitions"]["io.k8s.apimachinery.pkg.util.intstr.IntOrString"]["format"], "int-or-string");
    assert!(document["definitions"]["io.k8s.api.core.v1.PodList"]["properties"]["items"].is_object());
    assert!(document["paths"]["/api/v1/pods"]["get"].is_object());
}

#[test]
fn custom_kinds_join_in() {
    let mut row = (*resource::by_kind("apps", "v1", "Deployment").unwrap()).clone();
    row.group = "stable.example.com".into();
    row.kind = "CronTab".into();
    row.plural = "crontabs".into();
    row.schema = "com.example.stable.v1.CronTab".into();
    let schema = json!({"type": "object", "properties": {"metadata": {"type": "object"}, "spec": {"type": "object",
        "properties": {"default": {"type": "string", "nullable": true, "default": "x"}}}}});
    let custom = BTreeMap::from([(row.schema.to_string(), custom_definition(&schema))]);
    let document = parse(&v3_custom(&[&row], &custom));
    check_references(&document, "#/components/schemas/", &document["components"]["schemas"]);
    let document = parse(&v2_with(&v2(), &[&row], &custom));
    check_references(&document, "#/definitions/", &document["definitions"]);
    let definition = &document["definitions"]["com.example.stable.v1.CronTab"];
    assert_eq!(definition["x-kubernetes-group-version-kind"][0]["group"], "stable.example.com");
    assert_eq!(definition["properties"]["spec"]["properties"]["default"], json!({}));
    assert!(definition["properties"]["metadata"]["$ref"].is_string());
}

#[test]
fn the_fingerprint_is_stable() {
    assert_eq!(fingerprint(), fingerprint());
    assert_eq!(fingerprint().len(), 16);
}

#[test]
fn custom_kinds_are_put_into_the_documents() {
    let version = |name: &str, schema: Value| json!({"name": name, "served": true, "storage": name == "v1", "schema": {"openAPIV3Schema": schema}});
    let closed = json!({"type": "object", "description": "A widget.", "properties": {"spec": {"type": "object", "properties": {
        "a": {"type": "string", "nullable": true}, "template": {"type": "object", "x-kubernetes-embedded-resource": true}}}}});
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"spec": {"type": "object"}}});
    let names = json!({"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "Widgets"});
    let crd = json!({"metadata": {"name": "widgets.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced", "names": names,
        "versions": [version("v1", closed), version("v2", open)]}, "status": {"acceptedNames": names}});
    let definition = std::sync::Arc::new(crate::custom::Definition::new(crd.to_string().into(), 1).unwrap());
    let rows = crate::custom::rows(&definition, 1, false);
    let rows: Vec<&Resource> = rows.iter().collect();
    let custom: BTreeMap<String, Value> =
        (0..2).map(|at| (rows[at].schema.to_string(), custom_definition(&definition.schema(at)))).collect();

    let v3 = parse(&v3_custom(&rows[..1], &custom));
    let widget = &v3["components"]["schemas"]["com.example.v1.Widget"];
    assert_eq!(
        widget["x-kubernetes-group-version-kind"],
        json!([{"group": "example.com", "version": "v1", "kind": "Widget"}])
    );
    assert_eq!(
        (widget["description"].as_str(), widget["properties"]["kind"]["type"].as_str()),
        (Some("A widget."), Some("string"))
    );
    assert!(widget["properties"]["spec"]["properties"]["template"]["properties"]["metadata"].is_object());
    let list = &v3["components"]["schemas"]["com.example.v1.WidgetList"]["x-kubernetes-group-version-kind"][0];
    assert_eq!(list["kind"], "Widgets");
    check_references(&v3, "#/components/schemas/", &v3["components"]["schemas"]);

    let base = v2();
    let all = parse(&v2_with(&base, &rows, &custom));
    check_references(&all, "#/definitions/", &all["definitions"]);
    assert_eq!(all["definitions"]["com.example.v1.Widget"]["properties"]["spec"]["properties"]["a"], json!({}));
    let open = all["definitions"]["com.example.v2.Widget"].as_object().unwrap();
    assert_eq!(open.keys().collect::<Vec<_>>(), ["type", "x-kubernetes-group-version-kind"]);
    assert!(all["paths"]["/apis/example.com/v1/namespaces/{namespace}/widgets"]["post"].is_object());
    assert!(all["definitions"]["io.k8s.api.core.v1.Pod"].is_object() && all["paths"]["/api/v1/nodes"].is_object());
    assert_eq!(parse(&v2_with(&base, &[], &BTreeMap::new())), parse(&base));
}
