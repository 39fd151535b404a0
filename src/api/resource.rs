//! One row per resource: everything that routing, discovery, storage, tables and OpenAPI need to know of it.

mod core;
mod fields;
mod groups;
mod metrics;
mod row;

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use serde_json::Value;

use crate::custom::Custom;
use crate::field::FieldErrors;

type Str = Cow<'static, str>;
type Strs = Cow<'static, [&'static str]>;

pub use metrics::{METRICS_GROUP, metrics};
pub use row::STANDARD as STANDARD_VERBS;

/// A resource as served at one version. Built-in rows are static; CRDs make theirs at run time.
#[derive(Clone, Debug)]
pub struct Resource {
    /// Empty for the core group.
    pub group: Str,
    pub version: Str,
    pub kind: Str,
    /// `pods`; the URL segment and the first segment of the storage key.
    pub plural: Str,
    pub singular: Str,
    pub short_names: Vec<Str>,
    pub namespaced: bool,
    /// Of `create delete deletecollection get list patch update watch`.
    pub verbs: Strs,
    pub categories: Vec<Str>,
    pub subresources: Cow<'static, [Subresource]>,
    /// Definition name in the schema: `io.k8s.api.core.v1.Pod`.
    pub schema: Str,
    /// Group and version objects are stored in, where it is not this row's own (events, autoscaling).
    pub storage: Option<(&'static str, &'static str)>,
    pub strategy: Strategy,
    /// The version of a CRD that the row comes from.
    pub custom: Option<Custom>,
}

/// `pods/log`, `deployments/scale` and so on.
#[derive(Clone, Debug)]
pub struct Subresource {
    pub name: &'static str,
    /// Group, version, kind of the body, where it is not the resource's own: `("autoscaling", "v1", "Scale")`.
    pub kind: Option<(&'static str, &'static str, &'static str)>,
    pub verbs: &'static [&'static str],
}

/// What a kind brings of its own. All functions are pure; admission and allocation are the API server's.
#[derive(Clone, Copy, Debug)]
pub struct Strategy {
    /// Writes to the resource leave `status` alone and writes to `…/status` leave all else alone.
    pub has_status: bool,
    /// `metadata.generation` counts changes of `spec`.
    pub has_generation: bool,
    /// PUT to a name that does not exist creates it (Lease, Node and a few more).
    pub create_on_update: bool,
    /// Deletion sets `deletionTimestamp` and waits (Pods); the default period in seconds.
    pub grace_seconds: Option<i64>,
    pub default: fn(&mut Value),
    pub validate_create: fn(&Value) -> FieldErrors,
    /// New, old. The common metadata rules are checked by the caller through `validation::meta`.
    pub validate_update: fn(&Value, &Value) -> FieldErrors,
    /// New, old; for the `status` subresource.
    pub validate_status: fn(&Value, &Value) -> FieldErrors,
    /// The value of a selectable field beyond metadata.name and metadata.namespace; `None` when the field is not one.
    pub select_field: fn(&Value, &str) -> Option<String>,
}

impl Resource {
    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_string() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `pods`, `deployments.apps`: as messages and storage keys name it.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.to_string() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `PodList`
    pub fn list_kind(&self) -> Cow<'_, str> {
        match &self.custom {
            Some(custom) => Cow::Borrowed(&custom.definition.names.list_kind),
            None => format!("{}List", self.kind).into(),
        }
    }

    /// Group and version that objects are stored in.
    pub fn storage_version(&self) -> (&str, &str) {
        match (&self.custom, self.storage) {
            (Some(custom), _) => (&self.group, &custom.storage().name),
            (None, Some(storage)) => storage,
            (None, None) => (&self.group, &self.version),
        }
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }
}

/// All served built-in rows, in the order of discovery.
pub fn builtin() -> &'static [Arc<Resource>] {
    static ROWS: OnceLock<Vec<Arc<Resource>>> = OnceLock::new();
    ROWS.get_or_init(|| core::rows().into_iter().chain(groups::rows()).map(Arc::new).collect())
}

pub fn by_plural(group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
    builtin().iter().find(|r| r.plural == plural && r.group == group && r.version == version).cloned()
}

pub fn by_kind(group: &str, version: &str, kind: &str) -> Option<Arc<Resource>> {
    builtin().iter().find(|r| r.kind == kind && r.group == group && r.version == version).cloned()
}

/// For kinds without defaults.
pub fn nothing(_object: &mut Value) {}

/// For kinds without rules of their own on create.
pub fn none_create(_object: &Value) -> FieldErrors {
    FieldErrors::new()
}

/// For kinds without rules of their own on update.
pub fn none_update(_new: &Value, _old: &Value) -> FieldErrors {
    FieldErrors::new()
}

/// For kinds without selectable fields of their own.
pub fn no_field(_object: &Value, _field: &str) -> Option<String> {
    None
}

/// The definition name of a kind, also of those that are no resource: `("autoscaling", "v1", "Scale")`.
pub fn schema_name(group: &str, version: &str, kind: &str) -> String {
    row::schema_name(group, version, kind)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_row_has_its_schema() {
        for row in builtin() {
            let schema = crate::schema::definition(&row.schema).unwrap_or_else(|| panic!("{} has none", row.schema));
            assert!(schema.property("metadata").is_some(), "{}", row.schema);
            assert_eq!(row.strategy.has_status, row.subresource("status").is_some(), "{}", row.schema);
            for (group, version, kind) in row.subresources.iter().filter_map(|s| s.kind) {
                let options = kind.ends_with("Options");
                assert!(options || crate::schema::definition(&schema_name(group, version, kind)).is_some(), "{kind}");
            }
            let mut sorted = row.verbs.to_vec();
            sorted.sort_unstable();
            assert_eq!(row.verbs, sorted);
        }
    }

    #[test]
    fn names_are_unique_within_a_version() {
        for (index, row) in builtin().iter().enumerate() {
            for other in &builtin()[..index] {
                let same = row.group == other.group && row.version == other.version;
                assert!(!same || (row.plural != other.plural && row.kind != other.kind), "{}", row.schema);
            }
        }
    }

    #[test]
    fn rows_are_found() {
        let pod = by_plural("", "v1", "pods").unwrap();
        assert_eq!((pod.kind.as_ref(), pod.namespaced, pod.strategy.grace_seconds), ("Pod", true, Some(30)));
        assert!(pod.subresource("exec").is_some() && pod.subresource("nope").is_none());
        assert_eq!(by_kind("apps", "v1", "Deployment").unwrap().qualified(), "deployments.apps");
        assert!(by_kind("apps", "v2", "Deployment").is_none());
        let object = json!({"spec": {"nodeName": "n"}, "status": {}});
        let select = pod.strategy.select_field;
        assert_eq!(select(&object, "spec.nodeName").as_deref(), Some("n"));
        assert_eq!(select(&object, "status.phase").as_deref(), Some(""));
        assert_eq!(select(&object, "spec.hostNetwork").as_deref(), Some("false"));
        assert_eq!(select(&object, "spec.priority"), None);
    }
}
