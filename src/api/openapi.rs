//! OpenAPI documents of the API, v3 for each group version and v2 for all of it, written from rows and schema.
//!
//! Documents are written as text, definition by definition: a tree of all of it would take tens of MB for a moment.

mod definitions;
mod operations;
mod protobuf;

use std::collections::{BTreeMap, HashSet};

use serde_json::{Map, Value, json};

use self::definitions::Definitions;
use crate::resource::{self, Resource};
use crate::schema;
use crate::version::GIT_VERSION;

/// The two forms of OpenAPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    V2,
    V3,
}

/// Where a group version's document is under `/openapi/v3/`: `api/v1`, `apis/apps/v1`.
pub fn v3_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// The paths of all built-in documents, in the order of discovery.
pub fn v3_paths() -> Vec<String> {
    let mut paths: Vec<String> = Vec::new();
    for row in resource::builtin() {
        let path = v3_path(&row.group, &row.version);
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    paths
}

/// A fingerprint of all built-in documents, for ETags and the `hash` parameter of the index: 16 hexadecimal digits.
pub fn fingerprint() -> String {
    let mut hash = Fnv::default();
    hash.add(schema::compressed());
    hash.add(GIT_VERSION.as_bytes());
    for row in resource::builtin() {
        hash.add(row.schema.as_bytes());
        row.verbs.iter().for_each(|verb| hash.add(verb.as_bytes()));
        row.subresources.iter().for_each(|sub| hash.add(sub.name.as_bytes()));
    }
    format!("{:016X}", hash.0)
}

/// The v3 document of a built-in group version.
pub fn v3(group: &str, version: &str) -> Option<Vec<u8>> {
    let of_version = |row: &&Resource| row.group == group && row.version == version;
    let rows: Vec<&Resource> = resource::builtin().iter().map(|row| &**row).filter(of_version).collect();
    (!rows.is_empty()).then(|| document(Form::V3, &rows, &BTreeMap::new()))
}

/// The v3 document of a group version of custom resources. `custom` has the schema of each row by `Resource::schema`;
/// use [`custom_definition`].
pub fn v3_custom(rows: &[&Resource], custom: &BTreeMap<String, Value>) -> Vec<u8> {
    document(Form::V3, rows, custom)
}

/// The v2 document of all built-in rows.
pub fn v2() -> Vec<u8> {
    let rows: Vec<&Resource> = resource::builtin().iter().map(|row| &**row).collect();
    document(Form::V2, &rows, &BTreeMap::new())
}

/// [`v2`] as protobuf, for the clients that read it in no other form.
pub fn v2_protobuf() -> Vec<u8> {
    // What we have just written reads back.
    let document = serde_json::from_slice(&v2()).unwrap_or_default();
    protobuf::encode(&document)
}

/// `base`, which is [`v2`]'s, with custom resources in it. What is built-in is not written anew.
pub fn v2_with(base: &[u8], rows: &[&Resource], custom: &BTreeMap<String, Value>) -> Vec<u8> {
    let mut paths = Vec::new();
    operations::write_paths(&mut paths, Form::V2, rows);
    let mut schemas = Vec::new();
    definitions::write_custom(&mut schemas, rows, custom);
    joined(base, &paths, &schemas)
}

/// `base` with more members of its paths and definitions: two JSON objects.
fn joined(base: &[u8], paths: &[u8], schemas: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(base.len() + paths.len() + schemas.len());
    let mut rest = base;
    // Both marks are members of the document itself: within texts their quotes would be escaped.
    for (mark, members) in [(&b"\"paths\":{"[..], paths), (&b",\"definitions\":{"[..], schemas)] {
        let Some(at) = rest.windows(mark.len()).position(|window| window == mark) else { continue };
        let (head, tail) = rest.split_at(at + mark.len());
        out.extend_from_slice(head);
        let members = &members[1..members.len() - 1];
        out.extend_from_slice(members);
        if !members.is_empty() && tail.first() != Some(&b'}') {
            out.push(b',');
        }
        rest = tail;
    }
    out.extend_from_slice(rest);
    out
}

/// The same for the document as protobuf, where what is appended is merged.
pub fn v2_protobuf_with(base: &[u8], rows: &[&Resource], custom: &BTreeMap<String, Value>) -> Vec<u8> {
    let mut schemas = Vec::new();
    definitions::write_custom(&mut schemas, rows, custom);
    let schemas = serde_json::from_slice(&schemas).unwrap_or_default();
    [base, &protobuf::encode_definitions(&schemas)].concat()
}

/// What somebody else's v2 document says about the paths below `prefix`: those paths, and the definitions that they use and
/// that are not `known`. What both have under one name is taken for the same.
pub fn v2_part(document: &Value, prefix: &str, known: impl Fn(&str) -> bool) -> Value {
    let below = |path: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let all = document["paths"].as_object();
    let paths: Map<String, Value> = all
        .into_iter()
        .flatten()
        .filter(|(path, _)| below(path))
        .map(|(path, item)| (path.clone(), item.clone()))
        .collect();
    let mut definitions = Map::new();
    let mut wanted: Vec<String> = Vec::new();
    paths.values().for_each(|item| references(item, &mut wanted));
    while let Some(name) = wanted.pop() {
        if known(&name) || definitions.contains_key(&name) {
            continue;
        }
        let Some(definition) = document["definitions"].get(&name) else { continue };
        references(definition, &mut wanted);
        definitions.insert(name, definition.clone());
    }
    json!({"paths": paths, "definitions": definitions})
}

/// The names of definitions that are referred to.
fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            let own = map.get("$ref").and_then(Value::as_str).and_then(|at| at.strip_prefix("#/definitions/"));
            found.extend(own.map(str::to_owned));
            map.values().for_each(|member| references(member, found));
        }
        Value::Array(list) => list.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

/// The names of the definitions in [`v2`].
pub fn v2_definition_names() -> HashSet<String> {
    let document: Value = serde_json::from_slice(&v2()).unwrap_or_default();
    document["definitions"].as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect()
}

/// A v2 document with a [`v2_part`] in it.
pub fn v2_merged(base: &[u8], part: &Value) -> Vec<u8> {
    joined(base, part["paths"].to_string().as_bytes(), part["definitions"].to_string().as_bytes())
}

/// The same for the document as protobuf.
pub fn v2_protobuf_merged(base: &[u8], part: &Value) -> Vec<u8> {
    [base, &protobuf::encode_definitions(&part["definitions"])].concat()
}

/// The definition of a custom kind from its CRD's `openAPIV3Schema`: with the fields that every object has, in embedded
/// objects too.
pub fn custom_definition(schema: &Value) -> Value {
    let mut schema = if schema.is_object() { schema.clone() } else { json!({}) };
    schema["type"] = "object".into();
    let own = schema.get_mut("properties").map(Value::take).unwrap_or_default();
    let mut properties = match own {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    let of_every_kind = definitions::object_fields();
    for (name, field) in of_every_kind {
        properties.insert(name, field);
    }
    schema["properties"] = Value::Object(properties);
    embed(&mut schema);
    schema
}

fn embed(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    if map.get("x-kubernetes-embedded-resource") == Some(&Value::Bool(true)) {
        let properties = map.entry("properties").or_insert_with(|| json!({}));
        if let Some(properties) = properties.as_object_mut() {
            properties.extend(definitions::object_fields());
        }
    }
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        // What is a reference ends here.
        properties.values_mut().filter(|property| property.get("allOf").is_none()).for_each(embed);
    }
    for child in ["items", "additionalProperties"] {
        if let Some(child) = map.get_mut(child) {
            embed(child);
        }
    }
}

fn document(form: Form, rows: &[&Resource], custom: &BTreeMap<String, Value>) -> Vec<u8> {
    let text = schema::components();
    let definitions = Definitions::new(&text, rows, custom);
    let info = json!({"title": "Kubernetes", "version": GIT_VERSION});
    let mut out = Vec::with_capacity(1 << 20);
    match form {
        Form::V2 => write(&mut out, format_args!("{{\"swagger\":\"2.0\",\"info\":{info},\"paths\":")),
        Form::V3 => write(&mut out, format_args!("{{\"openapi\":\"3.0.0\",\"info\":{info},\"paths\":")),
    }
    operations::write_paths(&mut out, form, rows);
    match form {
        Form::V2 => {
            write(&mut out, format_args!(",\"definitions\":"));
            definitions.write(&mut out, form);
            let token = json!({"BearerToken": {"description": "Bearer Token authentication", "in": "header",
                "name": "authorization", "type": "apiKey"}});
            write(&mut out, format_args!(",\"securityDefinitions\":{token},\"security\":[{{\"BearerToken\":[]}}]}}"));
        }
        Form::V3 => {
            write(&mut out, format_args!(",\"components\":{{\"schemas\":"));
            definitions.write(&mut out, form);
            let token = json!({"BearerToken": {"description": "Bearer Token authentication", "in": "header",
                "name": "authorization", "type": "apiKey"}});
            write(&mut out, format_args!(",\"securitySchemes\":{token}}}}}"));
        }
    }
    out
}

fn write(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    use std::io::Write;
    out.write_fmt(text).expect("memory takes all");
}

/// FNV-1a: a fingerprint needs no more.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests;
