//! The definitions of a document: those that its rows lead to, with their kinds, and the lists of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::{Form, write};
use crate::resource::{self, Resource};

pub(super) const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
const V3_PREFIX: &str = "#/components/schemas/";
const V2_PREFIX: &str = "#/definitions/";

type Kind = (String, String, String);

pub(super) struct Definitions<'a> {
    builtin: BTreeMap<String, &'a RawValue>,
    custom: &'a BTreeMap<String, Value>,
    /// List definitions to be made: name, and the name of what is listed.
    lists: BTreeMap<String, String>,
    kinds: HashMap<String, Vec<Kind>>,
    /// What the document has, without the lists.
    wanted: BTreeSet<String>,
}

impl<'a> Definitions<'a> {
    pub fn new(components: &'a str, rows: &[&Resource], custom: &'a BTreeMap<String, Value>) -> Self {
        let builtin = serde_json::from_str(components).expect("the build script's own output");
        let mut this = Self { builtin, custom, lists: BTreeMap::new(), kinds: kinds(rows), wanted: BTreeSet::new() };
        let mut roots: Vec<String> = ["Status", "DeleteOptions", "Patch", "ListMeta", "APIResourceList"]
            .map(|name| format!("{META}{name}"))
            .into();
        for row in rows {
            roots.push(row.schema.to_string());
            if row.verbs.contains(&"list") {
                this.lists.insert(format!("{}List", row.schema), row.schema.to_string());
            }
            let bodies = row.subresources.iter().filter_map(|sub| sub.kind);
            roots.extend(bodies.map(|(group, version, kind)| resource::schema_name(group, version, kind)));
        }
        this.want(roots);
        this
    }

    /// Adds the definitions and all that they refer to.
    fn want(&mut self, mut names: Vec<String>) {
        while let Some(name) = names.pop() {
            let text = match (self.custom.get(&name), self.builtin.get(&name)) {
                (Some(custom), _) => custom.to_string(),
                (None, Some(builtin)) => builtin.get().to_owned(),
                // The options of `exec` and its like are parameters, not bodies.
                (None, None) => continue,
            };
            if !self.wanted.insert(name) {
                continue;
            }
            let references = text.split(V3_PREFIX).skip(1).filter_map(|rest| rest.split('"').next());
            names.extend(references.map(str::to_owned));
        }
    }

    pub fn write(&self, out: &mut Vec<u8>, form: Form) {
        let mut first = true;
        let names: BTreeSet<&String> = self.wanted.iter().chain(self.lists.keys()).collect();
        out.push(b'{');
        for name in names {
            let Some(mut definition) = self.definition(name) else { continue };
            if form == Form::V2 {
                if self.custom.contains_key(name) {
                    custom_v2(&mut definition);
                }
                to_v2(&mut definition);
                special_v2(name, &mut definition);
            }
            if let Some(kinds) = self.kinds.get(name) {
                let kinds: Vec<Value> = kinds
                    .iter()
                    .map(|(group, version, kind)| json!({"group": group, "kind": kind, "version": version}))
                    .collect();
                definition["x-kubernetes-group-version-kind"] = kinds.into();
            }
            let comma = if std::mem::take(&mut first) { "" } else { "," };
            write(out, format_args!("{comma}{}:{definition}", Value::from(name.as_str())));
        }
        out.push(b'}');
    }

    fn definition(&self, name: &str) -> Option<Value> {
        if let Some(custom) = self.custom.get(name) {
            return Some(custom.clone());
        }
        if let Some(builtin) = self.builtin.get(name) {
            return serde_json::from_str(builtin.get()).ok();
        }
        let item = self.lists.get(name)?;
        let kind = item.rsplit('.').next().unwrap_or_default();
        let mut properties: Map<String, Value> = object_fields();
        properties.insert("metadata".to_owned(), reference("ListMeta", "Standard list metadata."));
        properties.insert(
            "items".to_owned(),
            json!({"type": "array", "description": "The objects of the list.", "items": {"$ref": format!("{V3_PREFIX}{item}")}}),
        );
        Some(json!({
            "description": format!("{kind}List is a list of {kind}."),
            "type": "object",
            "required": ["items"],
            "properties": properties,
        }))
    }
}

/// The definitions of custom kinds alone, as an object of members: what they refer to is in the document already.
pub(super) fn write_custom(out: &mut Vec<u8>, rows: &[&Resource], custom: &BTreeMap<String, Value>) {
    let mut this = Definitions {
        builtin: BTreeMap::new(),
        custom,
        lists: BTreeMap::new(),
        kinds: kinds(rows),
        wanted: BTreeSet::new(),
    };
    for row in rows {
        this.lists.insert(format!("{}List", row.schema), row.schema.to_string());
        this.wanted.insert(row.schema.to_string());
    }
    this.write(out, Form::V2);
}

/// `apiVersion`, `kind` and `metadata` as every object has them.
pub(super) fn object_fields() -> Map<String, Value> {
    let text = |description: &str| json!({"type": "string", "description": description});
    let mut fields = Map::new();
    fields.insert(
        "apiVersion".to_owned(),
        text(
            "The versioned schema of this representation of an object. Servers convert recognized schemas to the latest \
             internal value, and may reject unrecognized values.",
        ),
    );
    fields.insert(
        "kind".to_owned(),
        text("The REST resource that this object represents, in CamelCase. Cannot be updated."),
    );
    fields.insert("metadata".to_owned(), reference("ObjectMeta", "Standard object metadata."));
    fields
}

fn reference(name: &str, description: &str) -> Value {
    json!({"description": description, "allOf": [{"$ref": format!("{V3_PREFIX}{META}{name}")}]})
}

/// Which kinds a definition stands for: `x-kubernetes-group-version-kind`.
fn kinds(rows: &[&Resource]) -> HashMap<String, Vec<Kind>> {
    let mut kinds: HashMap<String, Vec<Kind>> = HashMap::new();
    let mut versions = BTreeSet::new();
    for row in resource::builtin().iter().map(|row| &**row).chain(rows.iter().copied()) {
        let (group, version) = (row.group.to_string(), row.version.to_string());
        versions.insert((group.clone(), version.clone()));
        let one = |kind: String| vec![(group.clone(), version.clone(), kind)];
        kinds.insert(row.schema.to_string(), one(row.kind.to_string()));
        if row.verbs.contains(&"list") {
            kinds.insert(format!("{}List", row.schema), one(row.list_kind().into_owned()));
        }
    }
    for (group, version, kind) in
        [("autoscaling", "v1", "Scale"), ("policy", "v1", "Eviction"), ("authentication.k8s.io", "v1", "TokenRequest")]
    {
        let kind = (group.to_owned(), version.to_owned(), kind.to_owned());
        kinds.insert(resource::schema_name(&kind.0, &kind.1, &kind.2), vec![kind]);
    }
    let of_all = |kind: &str| versions.iter().map(|(g, v)| (g.clone(), v.clone(), kind.to_owned())).collect();
    kinds.insert(format!("{META}DeleteOptions"), of_all("DeleteOptions"));
    for kind in ["Status", "APIResourceList"] {
        kinds.insert(format!("{META}{kind}"), vec![(String::new(), "v1".to_owned(), kind.to_owned())]);
    }
    kinds
}

/// From v3 to what v2 can say.
fn to_v2(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    for only_v3 in ["default", "nullable", "oneOf", "anyOf", "not"] {
        map.remove(only_v3);
    }
    // Around a reference v3 needs an allOf, to say more beside it.
    let inner = map.remove("allOf").and_then(|all| all.get(0).and_then(|one| one.get("$ref").cloned()));
    if let Some(reference) = inner {
        map.insert("$ref".to_owned(), reference);
    }
    if let Some(Value::String(reference)) = map.get_mut("$ref") {
        *reference = reference.replacen(V3_PREFIX, V2_PREFIX, 1);
    }
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        properties.values_mut().for_each(to_v2);
    }
    for child in ["items", "additionalProperties"] {
        if let Some(child) = map.get_mut(child) {
            to_v2(child);
        }
    }
}

/// What kubectl can read of a custom schema in v2. One that is open at its root is published as nothing but an object, or
/// else kubectl would take it for closed.
fn custom_v2(schema: &mut Value) {
    if schema["x-kubernetes-preserve-unknown-fields"] == true {
        *schema = json!({"type": "object"});
        return;
    }
    without_nullable(schema);
}

fn without_nullable(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    if map.get("nullable") == Some(&Value::Bool(true)) {
        for field in ["type", "items", "properties", "additionalProperties"] {
            map.remove(field);
        }
    }
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        properties.values_mut().for_each(without_nullable);
    }
    for child in ["items", "additionalProperties"] {
        if let Some(child) = map.get_mut(child) {
            without_nullable(child);
        }
    }
}

fn special_v2(name: &str, definition: &mut Value) {
    if matches!(name.rsplit('.').next(), Some("IntOrString" | "Quantity")) {
        definition["type"] = "string".into();
    }
}
