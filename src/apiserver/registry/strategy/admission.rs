//! Webhook configurations and policies: their expressions have to compile.

use mussel_api::field::{FieldErrors, Path};
use serde_json::Value;

use super::Rules;
use crate::admission::dynamic::compiled;
use crate::registry::write::Write;

/// Configurations of webhooks. Updates need a resourceVersion.
pub struct Webhooks;

impl Rules for Webhooks {
    fn allows_unconditional_update(&self) -> bool {
        false
    }

    fn validate(&self, _write: &Write<'_>, new: &Value, old: Option<&Value>) -> FieldErrors {
        let list = |object: &Value| object["webhooks"].as_array().cloned().unwrap_or_default();
        let before = old.map(&list).unwrap_or_default();
        let now = list(new);
        // What has been accepted once stays so while nobody touches it.
        let same = before.len() == now.len()
            && before.iter().zip(&now).all(|(old, new)| old["matchConditions"] == new["matchConditions"]);
        if old.is_some() && same {
            return Vec::new();
        }
        let path = Path::new("webhooks");
        now.iter().enumerate().flat_map(|(at, hook)| compiled::webhook_conditions(hook, &path.index(at)).1).collect()
    }
}

/// Policies of both kinds.
pub struct Policies;

impl Rules for Policies {
    fn validate(&self, _write: &Write<'_>, new: &Value, old: Option<&Value>) -> FieldErrors {
        if old.is_some_and(|old| old["spec"] == new["spec"]) {
            return Vec::new();
        }
        compiled::policy(new).1
    }
}
