//! Embeds the schema of the built-in kinds: k8s-openapi's own, with what it lacks taken from `schema/facts.tsv`, as one
//! OpenAPI v3 `components.schemas` object, compressed.

use std::{env, error::Error, fs, path::PathBuf};

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

include!("build/types.rs");

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build/types.rs");
    println!("cargo::rerun-if-changed=schema/facts.tsv");
    let mut generator = SchemaSettings::openapi3().into_generator();
    macro_rules! add {
        ($path:path) => {
            generator.subschema_for::<$path>();
        };
    }
    each_type!(add);
    let mut definitions = generator.take_definitions(true);
    for (name, definition) in &mut definitions {
        tidy(definition);
        as_upstream(name, definition);
    }
    for line in fs::read_to_string("schema/facts.tsv")?.lines().skip(1) {
        add_fact(&mut definitions, line)?;
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let json = serde_json::to_vec(&definitions)?;
    fs::write(out.join("schema.json.zst"), zstd::encode_all(json.as_slice(), 19)?)?;
    Ok(())
}

/// Drops what is only of Rust: `nullable`, `title`.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.get("nullable") == Some(&Value::Bool(true)) {
                map.remove("nullable");
            }
            map.values_mut().for_each(tidy);
        }
        Value::Array(list) => list.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// Where the crate's schema differs from upstream's.
fn as_upstream(name: &str, definition: &mut Value) {
    match name {
        "io.k8s.apimachinery.pkg.api.resource.Quantity" => {
            definition["oneOf"] = json!([{"type": "string"}, {"type": "number"}]);
        }
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => {
            definition["format"] = "int-or-string".into();
            definition["oneOf"] = json!([{"type": "integer"}, {"type": "string"}]);
        }
        "io.k8s.api.events.v1.Event" => definition["required"] = json!(["eventTime"]),
        _ if name.contains(".JSON") && name.starts_with("io.k8s.apiextensions-apiserver") => {
            // `JSON` and the unions are not only objects.
            if let (Some(definition), false) = (definition.as_object_mut(), name.ends_with("JSONSchemaProps")) {
                definition.remove("type");
            }
        }
        _ => {}
    }
    let Some(definition) = definition.as_object_mut() else { return };
    definition.remove("x-kubernetes-int-or-string");
    // Kinds have all of their metadata optional: the crate only says that its Rust field is no Option.
    let is_kind =
        ["apiVersion", "kind"].iter().all(|p| definition.get("properties").is_some_and(|all| all.get(p).is_some()));
    if let Some(Value::Array(required)) = definition.get_mut("required") {
        let optional = if is_kind && name != "io.k8s.api.core.v1.Event" { "metadata" } else { "" };
        let named_source = is_named_source(name);
        required.retain(|field| field != optional && !(named_source && field == "name"));
        if required.is_empty() {
            definition.remove("required");
        }
    }
}

/// Types that embed Go's `LocalObjectReference`, whose name may be empty.
fn is_named_source(definition: &str) -> bool {
    let Some(name) = definition.strip_prefix("io.k8s.api.core.v1.") else { return false };
    let source = name.strip_prefix("ConfigMap").or_else(|| name.strip_prefix("Secret"));
    name == "LocalObjectReference"
        || source.is_some_and(|s| matches!(s, "EnvSource" | "KeySelector" | "Projection" | "VolumeSource"))
}

fn add_fact(definitions: &mut Map<String, Value>, line: &str) -> Result<(), Box<dyn Error>> {
    let columns: Vec<&str> = line.split('\t').collect();
    let [name, field, list_type, list_map_keys, map_type, strategy, merge_key, default, unions] = columns[..] else {
        return Err(format!("schema/facts.tsv: not nine columns: {line}").into());
    };
    let definition = definitions.get_mut(name).ok_or_else(|| format!("schema/facts.tsv: no definition {name}"))?;
    let node = match field {
        "." => definition,
        field => definition["properties"]
            .get_mut(field)
            .ok_or_else(|| format!("schema/facts.tsv: {name} has no field {field}"))?,
    };
    let is_number = node["type"] == "integer";
    let node = node.as_object_mut().ok_or("a schema is no object")?;
    let mut put = |key: &str, value: &str| {
        if !value.is_empty() {
            node.insert(key.to_owned(), value.into());
        }
    };
    put("x-kubernetes-list-type", list_type);
    put("x-kubernetes-map-type", map_type);
    put("x-kubernetes-patch-strategy", strategy);
    put("x-kubernetes-patch-merge-key", merge_key);
    if !list_map_keys.is_empty() {
        let keys: Vec<&str> = list_map_keys.split(',').collect();
        node.insert("x-kubernetes-list-map-keys".to_owned(), json!(keys));
    }
    if !default.is_empty() {
        let value = if is_number { default.parse::<i64>()?.into() } else { Value::from(default) };
        node.insert("default".to_owned(), value);
    }
    if !unions.is_empty() {
        node.insert("x-kubernetes-unions".to_owned(), serde_json::from_str(unions)?);
    }
    Ok(())
}
