//! One interface over the schemas of built-in kinds and of CRDs.
//!
//! The built-in schema is embedded compressed ([`components`]); what decoding, patching and applying need of it is kept
//! in memory without its descriptions (`schema/arena.rs`), loaded at first use.

mod arena;

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use self::arena::{Arena, Node, Ref};

/// A cheap handle to one schema node; `$ref` is already resolved.
#[derive(Clone)]
pub struct Schema {
    arena: Home,
    at: Ref,
}

/// Where a node lives.
#[derive(Clone)]
enum Home {
    Builtin,
    Custom(Arc<Arena>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
    /// Anything: `RawExtension`, `JSON`, `FieldsV1`.
    Any,
    IntOrString,
    Quantity,
}

/// `x-kubernetes-list-type`. Lists without one are atomic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ListType {
    Atomic,
    Set,
    Map,
}

/// `x-kubernetes-patch-strategy`, split at its commas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    pub merge: bool,
    pub replace: bool,
    pub retain_keys: bool,
}

/// The schema of a definition by its name: `io.k8s.api.core.v1.Pod`.
pub fn definition(name: &str) -> Option<Schema> {
    arena::builtin().definition(name).map(|at| Schema { arena: Home::Builtin, at })
}

/// All built-in definitions, in the order of their names.
pub fn definitions() -> impl Iterator<Item = (&'static str, Schema)> {
    arena::builtin().definitions().map(|(name, at)| (name, Schema { arena: Home::Builtin, at }))
}

/// The text of the built-in schema: OpenAPI v3 `components.schemas` with descriptions. About 1 MB; made anew each time,
/// since only OpenAPI documents need it.
pub fn components() -> String {
    arena::components()
}

/// [`components`] as it is embedded; only good for a fingerprint.
pub fn compressed() -> &'static [u8] {
    arena::COMPRESSED
}

impl Schema {
    /// The schema of a custom resource from its CRD's `openAPIV3Schema`.
    /// `apiVersion`, `kind` and `metadata` are those of every object, whatever the CRD says of them.
    pub fn custom(schema: &Value) -> Self {
        let (arena, at) = Arena::custom(schema);
        Self { arena: Home::Custom(Arc::new(arena)), at }
    }

    pub fn ty(&self) -> Type {
        self.node().ty
    }

    /// `int32`, `int64`, `double`, `byte`, `date-time`.
    pub fn format(&self) -> Option<&str> {
        self.node().format.as_deref()
    }

    pub fn property(&self, name: &str) -> Option<Schema> {
        let properties = &self.node().properties;
        let found = properties.binary_search_by(|(key, _)| (**key).cmp(name)).ok()?;
        Some(self.to(properties[found].1))
    }

    /// In the order of their names.
    pub fn properties(&self) -> impl Iterator<Item = (&str, Schema)> {
        self.node().properties.iter().map(|(name, at)| (&**name, self.to(*at)))
    }

    pub fn items(&self) -> Option<Schema> {
        self.node().items.map(|at| self.to(at))
    }

    pub fn additional_properties(&self) -> Option<Schema> {
        self.node().additional.map(|at| self.to(at))
    }

    /// What applies when the value of an `Any` is an object: `JSONSchemaPropsOrBool`.
    pub fn when_object(&self) -> Option<Schema> {
        self.node().when_object.map(|at| self.to(at))
    }

    pub fn required(&self) -> &[Arc<str>] {
        &self.node().required
    }

    pub fn preserve_unknown(&self) -> bool {
        self.node().preserve_unknown
    }

    pub fn nullable(&self) -> bool {
        self.node().nullable
    }

    pub fn embedded_resource(&self) -> bool {
        self.node().embedded_resource
    }

    pub fn default(&self) -> Option<&Value> {
        self.node().merge.as_ref()?.default.as_ref()
    }

    pub fn list_type(&self) -> ListType {
        self.node().merge.as_ref().map_or(ListType::Atomic, |m| m.list_type)
    }

    pub fn list_map_keys(&self) -> &[String] {
        self.node().merge.as_ref().map_or(&[], |m| &m.list_map_keys)
    }

    pub fn map_type_atomic(&self) -> bool {
        self.node().merge.as_ref().is_some_and(|m| m.map_atomic)
    }

    pub fn patch_strategy(&self) -> Option<PatchStrategy> {
        let mut strategy = PatchStrategy::default();
        for part in self.node().merge.as_ref()?.patch_strategy.as_deref()?.split(',') {
            match part {
                "merge" => strategy.merge = true,
                "replace" => strategy.replace = true,
                "retainKeys" => strategy.retain_keys = true,
                _ => {}
            }
        }
        Some(strategy)
    }

    pub fn patch_merge_key(&self) -> Option<&str> {
        self.node().merge.as_ref()?.patch_merge_key.as_deref()
    }

    /// The definition's name when the node is one.
    pub fn name(&self) -> Option<&str> {
        self.node().name.as_deref()
    }

    /// A node of the built-in schema, not of a CRD.
    pub fn is_builtin(&self) -> bool {
        matches!(self.arena, Home::Builtin)
    }

    fn node(&self) -> &Node {
        match &self.arena {
            Home::Builtin => arena::builtin().node(self.at),
            Home::Custom(arena) => arena.node(self.at),
        }
    }

    fn to(&self, at: Ref) -> Self {
        let arena = if at.is_builtin() { Home::Builtin } else { self.arena.clone() };
        Self { arena, at: at.inside() }
    }
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Schema({:?} {})", self.ty(), self.name().unwrap_or("-"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(root: &str, path: &str) -> Schema {
        path.split('.').fold(definition(root).unwrap(), |schema, step| match step {
            "*" => schema.items().or_else(|| schema.additional_properties()).unwrap(),
            name => schema.property(name).unwrap_or_else(|| panic!("{name} of {path}")),
        })
    }

    #[test]
    fn facts_are_joined_to_the_crates_schema() {
        let pod = "io.k8s.api.core.v1.Pod";
        let ports = at(pod, "spec.containers.*.ports");
        assert_eq!(ports.ty(), Type::Array);
        assert_eq!(ports.list_type(), ListType::Map);
        assert_eq!(ports.list_map_keys(), ["containerPort", "protocol"]);
        assert_eq!(ports.patch_merge_key(), Some("containerPort"));
        assert_eq!(at(pod, "spec.containers.*.ports.*.protocol").default(), Some(&json!("TCP")));
        assert_eq!(at(pod, "spec.containers.*.ports.*.containerPort").format(), Some("int32"));
        assert_eq!(at(pod, "spec.containers.*.resources.limits.*").ty(), Type::Quantity);
        assert_eq!(at(pod, "spec.containers.*.livenessProbe.httpGet.port").ty(), Type::IntOrString);
        assert!(at(pod, "spec.nodeSelector").map_type_atomic());
        assert_eq!(at(pod, "spec.volumes").patch_strategy().map(|s| (s.merge, s.retain_keys)), Some((true, true)));
        let strategy = at("io.k8s.api.apps.v1.Deployment", "spec.strategy");
        assert_eq!(strategy.name(), Some("io.k8s.api.apps.v1.DeploymentStrategy"));
        assert!(strategy.patch_strategy().unwrap().retain_keys && strategy.property("rollingUpdate").is_some());
        assert!(at("io.k8s.api.apps.v1.Deployment", "spec.selector").map_type_atomic());
        assert!(definition(pod).unwrap().required().is_empty());
        assert_eq!(at(pod, "metadata.managedFields.*.fieldsV1").ty(), Type::Any);
        assert_eq!(at("io.k8s.api.apps.v1.ControllerRevision", "data").ty(), Type::Any);
    }

    #[test]
    fn a_custom_schema_has_the_metadata_of_every_object() {
        let schema = Schema::custom(&json!({"type": "object", "properties": {
        "metadata": {"type": "object"},
        "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
            "size": {"type": "integer", "format": "int32", "default": 3},
            "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
        }}}}));
        let meta = schema.property("metadata").unwrap();
        assert!(meta.is_builtin() && meta.property("labels").is_some());
        assert_eq!(schema.property("kind").unwrap().ty(), Type::String);
        let spec = schema.property("spec").unwrap();
        assert!(!spec.is_builtin() && spec.preserve_unknown());
        assert_eq!(spec.property("size").unwrap().default(), Some(&json!(3)));
        assert_eq!(spec.property("tags").unwrap().list_type(), ListType::Set);
        assert_eq!(spec.property("port").unwrap().ty(), Type::IntOrString);
    }
}
