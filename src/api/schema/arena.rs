//! The nodes of schemas in memory. Equal nodes and names are shared: the built-in schema takes some hundred KB.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::{ListType, Type};

/// Nested deeper than this, a CRD's schema ends in "anything".
const DEPTH_MAX: usize = 64;

/// The place of a node: in its own arena, or in the built-in one when the top bit is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ref(u32);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Node {
    pub ty: Type,
    pub preserve_unknown: bool,
    pub nullable: bool,
    pub embedded_resource: bool,
    pub name: Option<Arc<str>>,
    pub format: Option<Arc<str>>,
    /// Sorted by name.
    pub properties: Arc<[(Arc<str>, Ref)]>,
    pub required: Arc<[Arc<str>]>,
    pub items: Option<Ref>,
    pub additional: Option<Ref>,
    pub when_object: Option<Ref>,
    /// How values merge; few nodes say anything of it.
    pub merge: Option<Box<Merge>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Merge {
    pub list_type: ListType,
    pub list_map_keys: Vec<String>,
    pub map_atomic: bool,
    pub patch_strategy: Option<String>,
    pub patch_merge_key: Option<String>,
    pub default: Option<Value>,
}

pub(super) struct Arena {
    nodes: Vec<Node>,
    /// Sorted by name.
    definitions: Vec<(Arc<str>, Ref)>,
}

/// A schema as OpenAPI v3 writes it; what is not here is of no concern to us.
#[derive(Deserialize, Default)]
struct Raw {
    #[serde(rename = "$ref")]
    reference: Option<String>,
    #[serde(rename = "type")]
    ty: Option<String>,
    format: Option<String>,
    #[serde(rename = "allOf", default)]
    all_of: Vec<Raw>,
    #[serde(rename = "oneOf", default)]
    one_of: Vec<Raw>,
    #[serde(default)]
    properties: BTreeMap<String, Raw>,
    items: Option<Box<Raw>>,
    #[serde(rename = "additionalProperties")]
    additional: Option<Additional>,
    #[serde(default)]
    required: Vec<String>,
    default: Option<Value>,
    #[serde(default)]
    nullable: bool,
    #[serde(rename = "x-kubernetes-preserve-unknown-fields", default)]
    preserve_unknown: bool,
    #[serde(rename = "x-kubernetes-embedded-resource", default)]
    embedded_resource: bool,
    #[serde(rename = "x-kubernetes-int-or-string", default)]
    int_or_string: bool,
    #[serde(rename = "x-kubernetes-list-type")]
    list_type: Option<String>,
    #[serde(rename = "x-kubernetes-list-map-keys", default)]
    list_map_keys: Vec<String>,
    #[serde(rename = "x-kubernetes-map-type")]
    map_type: Option<String>,
    #[serde(rename = "x-kubernetes-patch-strategy")]
    patch_strategy: Option<String>,
    #[serde(rename = "x-kubernetes-patch-merge-key")]
    patch_merge_key: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Additional {
    Any(bool),
    Of(Box<Raw>),
}

impl Ref {
    const BUILTIN: u32 = 1 << 31;

    pub fn is_builtin(self) -> bool {
        self.0 & Self::BUILTIN != 0
    }

    /// The place within the arena that it belongs to.
    pub fn inside(self) -> Self {
        Self(self.0 & !Self::BUILTIN)
    }

    fn in_builtin(self) -> Self {
        Self(self.0 | Self::BUILTIN)
    }
}

pub(super) const COMPRESSED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/schema.json.zst"));

/// The text made by the build script.
pub(super) fn components() -> String {
    let bytes = zstd::decode_all(COMPRESSED).expect("the build script's own output");
    String::from_utf8(bytes).expect("JSON is UTF-8")
}

pub(super) fn builtin() -> &'static Arena {
    static BUILTIN: OnceLock<Arena> = OnceLock::new();
    BUILTIN.get_or_init(|| {
        let text = components();
        let raw: BTreeMap<String, &RawValue> = serde_json::from_str(&text).expect("the build script's own output");
        Arena::built_in(&raw)
    })
}

impl Arena {
    fn built_in(definitions: &BTreeMap<String, &RawValue>) -> Self {
        let mut builder = Builder::default();
        // Places first, so that definitions may refer to each other.
        for name in definitions.keys() {
            let name = builder.text(name);
            builder.places.insert(name, Ref(builder.nodes.len() as u32));
            builder.nodes.push(Node::empty(Type::Any));
        }
        for (index, (name, text)) in definitions.iter().enumerate() {
            let raw: Raw = serde_json::from_str(text.get()).expect("the build script's own output");
            let mut node = builder.node(&raw, 0);
            node.name = Some(builder.text(name));
            match name.rsplit('.').next() {
                Some("Quantity") => node.ty = Type::Quantity,
                Some("RawExtension" | "FieldsV1") => node.ty = Type::Any,
                _ => {}
            }
            builder.nodes[index] = node;
        }
        // A field may add to the definition it refers to; only now are all of those known.
        for (at, target, merge) in std::mem::take(&mut builder.overlays) {
            let mut node = builder.nodes[target.0 as usize].clone();
            let base = node.merge.take();
            node.merge = merge.over(base);
            builder.nodes[at.0 as usize] = node;
        }
        let mut places: Vec<_> = builder.places.into_iter().collect();
        places.sort_by(|a, b| a.0.cmp(&b.0));
        builder.nodes.shrink_to_fit();
        Self { nodes: builder.nodes, definitions: places }
    }

    pub fn custom(schema: &Value) -> (Self, Ref) {
        // An unreadable schema is one that says nothing; the CRD's own validation has reported it.
        let mut raw = Raw::deserialize(schema).unwrap_or(Raw { preserve_unknown: true, ..Raw::default() });
        raw.embedded_resource = true;
        raw.ty.get_or_insert_with(|| "object".to_owned());
        let mut builder = Builder::default();
        let root = builder.node(&raw, 0);
        let at = Ref(builder.nodes.len() as u32);
        builder.nodes.push(root);
        builder.nodes.shrink_to_fit();
        (Self { nodes: builder.nodes, definitions: Vec::new() }, at)
    }

    pub fn node(&self, at: Ref) -> &Node {
        &self.nodes[at.0 as usize]
    }

    pub fn definition(&self, name: &str) -> Option<Ref> {
        let found = self.definitions.binary_search_by(|(key, _)| (**key).cmp(name)).ok()?;
        Some(self.definitions[found].1)
    }

    pub fn definitions(&self) -> impl Iterator<Item = (&str, Ref)> {
        self.definitions.iter().map(|(name, at)| (&**name, *at))
    }
}

impl Node {
    fn empty(ty: Type) -> Self {
        Self {
            ty,
            preserve_unknown: false,
            nullable: false,
            embedded_resource: false,
            name: None,
            format: None,
            properties: Arc::new([]),
            required: Arc::new([]),
            items: None,
            additional: None,
            when_object: None,
            merge: None,
        }
    }
}

impl Merge {
    fn of(raw: &Raw) -> Self {
        Self {
            list_type: match raw.list_type.as_deref() {
                Some("map") => ListType::Map,
                Some("set") => ListType::Set,
                _ => ListType::Atomic,
            },
            list_map_keys: raw.list_map_keys.clone(),
            map_atomic: raw.map_type.as_deref() == Some("atomic"),
            patch_strategy: raw.patch_strategy.clone(),
            patch_merge_key: raw.patch_merge_key.clone(),
            default: raw.default.clone(),
        }
    }

    fn is_empty(&self) -> bool {
        self.list_type == ListType::Atomic
            && !self.map_atomic
            && self.patch_strategy.is_none()
            && self.patch_merge_key.is_none()
            && self.default.is_none()
    }

    /// What a field says, and where it is silent, what the definition says.
    fn over(mut self, base: Option<Box<Self>>) -> Option<Box<Self>> {
        if let Some(base) = base {
            self.map_atomic |= base.map_atomic;
            self.patch_strategy = self.patch_strategy.or(base.patch_strategy);
            self.patch_merge_key = self.patch_merge_key.or(base.patch_merge_key);
            self.default = self.default.or(base.default);
        }
        (!self.is_empty()).then(|| Box::new(self))
    }
}

#[derive(Default)]
struct Builder {
    nodes: Vec<Node>,
    places: HashMap<Arc<str>, Ref>,
    shared: HashMap<Node, Ref>,
    texts: HashSet<Arc<str>>,
    overlays: Vec<(Ref, Ref, Merge)>,
}

impl Builder {
    fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(found) = self.texts.get(text) {
            return found.clone();
        }
        let text: Arc<str> = text.into();
        self.texts.insert(text.clone());
        text
    }

    fn place(&mut self, raw: &Raw, depth: usize) -> Ref {
        if depth > DEPTH_MAX {
            return self.add(Node::empty(Type::Any));
        }
        let reference = raw.reference.as_deref().or_else(|| raw.all_of.first()?.reference.as_deref());
        let target = reference.and_then(|r| r.rsplit('/').next()).and_then(|name| self.places.get(name).copied());
        let Some(target) = target else {
            let node = self.node(raw, depth);
            return self.add(node);
        };
        let merge = Merge::of(raw);
        if merge.is_empty() {
            return target;
        }
        let at = Ref(self.nodes.len() as u32);
        self.nodes.push(Node::empty(Type::Any));
        self.overlays.push((at, target, merge));
        at
    }

    fn add(&mut self, node: Node) -> Ref {
        if let Some(at) = self.shared.get(&node) {
            return *at;
        }
        let at = Ref(self.nodes.len() as u32);
        self.nodes.push(node.clone());
        self.shared.insert(node, at);
        at
    }

    fn node(&mut self, raw: &Raw, depth: usize) -> Node {
        let int_or_string = raw.int_or_string || raw.format.as_deref() == Some("int-or-string");
        let ty = match raw.ty.as_deref() {
            _ if int_or_string => Type::IntOrString,
            Some("object") => Type::Object,
            Some("array") => Type::Array,
            Some("string") => Type::String,
            Some("integer") => Type::Integer,
            Some("number") => Type::Number,
            Some("boolean") => Type::Boolean,
            _ if !raw.properties.is_empty() => Type::Object,
            _ => Type::Any,
        };
        let mut properties = BTreeMap::new();
        for (name, property) in &raw.properties {
            let name = self.text(name);
            properties.insert(name, self.place(property, depth + 1));
        }
        if raw.embedded_resource {
            self.add_object_fields(&mut properties);
        }
        let additional = match &raw.additional {
            Some(Additional::Of(of)) => Some(self.place(of, depth + 1)),
            Some(Additional::Any(true)) => Some(self.add(Node::empty(Type::Any))),
            Some(Additional::Any(false)) | None => None,
        };
        let when_object = raw.one_of.iter().find(|one| one.reference.is_some());
        let merge = Merge::of(raw);
        Node {
            ty,
            preserve_unknown: raw.preserve_unknown || (ty == Type::Any && depth > 0),
            nullable: raw.nullable,
            embedded_resource: raw.embedded_resource,
            name: None,
            format: raw.format.as_deref().map(|format| self.text(format)),
            properties: properties.into_iter().collect(),
            required: raw.required.iter().map(|name| self.text(name)).collect(),
            items: raw.items.as_ref().map(|items| self.place(items, depth + 1)),
            additional,
            when_object: when_object.map(|one| self.place(one, depth + 1)),
            merge: (!merge.is_empty()).then(|| Box::new(merge)),
        }
    }

    fn add_object_fields(&mut self, properties: &mut BTreeMap<Arc<str>, Ref>) {
        let string = self.add(Node::empty(Type::String));
        properties.insert(self.text("apiVersion"), string);
        properties.insert(self.text("kind"), string);
        if let Some(meta) = builtin().definition("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta") {
            properties.insert(self.text("metadata"), meta.in_builtin());
        }
    }
}
