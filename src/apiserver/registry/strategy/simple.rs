//! Kinds that differ from the ordinary in one point.

use mussel_api::object::ObjectExt;
use serde_json::Value;

use super::{Rules, changed_beside_metadata};

/// Nothing special.
pub struct Plain;

impl Rules for Plain {}

/// DELETE answers with the object.
pub struct ReturnsDeleted;

impl Rules for ReturnsDeleted {
    fn returns_deleted(&self) -> bool {
        true
    }
}

/// Updates need a resourceVersion.
pub struct Conditional;

impl Rules for Conditional {
    fn allows_unconditional_update(&self) -> bool {
        false
    }
}

/// Dependents stay unless told otherwise.
pub struct Orphans;

impl Rules for Orphans {
    fn orphans_by_default(&self) -> bool {
        true
    }
}

/// Annotations raise the generation too: `kubectl rollout` keeps its notes there.
pub struct Deployments;

impl Rules for Deployments {
    fn counts_as_change(&self, new: &Value, old: &Value) -> bool {
        changed_beside_metadata(new, old) || new.annotations() != old.annotations()
    }
}
