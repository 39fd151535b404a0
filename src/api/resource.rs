//! One row per resource: everything that routing, discovery, storage, tables and OpenAPI need to know of it.

use std::borrow::Cow;

use serde_json::Value;

use crate::field::FieldErrors;

type Str = Cow<'static, str>;
type Strs = Cow<'static, [&'static str]>;

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
    pub short_names: Strs,
    pub namespaced: bool,
    /// Of `create delete deletecollection get list patch update watch`.
    pub verbs: Strs,
    pub categories: Strs,
    pub subresources: Cow<'static, [Subresource]>,
    /// Definition name in the schema: `io.k8s.api.core.v1.Pod`.
    pub schema: Str,
    /// Group and version objects are stored in, where it is not this row's own (events, autoscaling).
    pub storage: Option<(&'static str, &'static str)>,
    pub strategy: Strategy,
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

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }
}
