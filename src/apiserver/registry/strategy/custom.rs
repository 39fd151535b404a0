//! Custom objects: what their CRD says, where built-in kinds have functions of their own.

use mussel_api::custom::{self, Custom};
use mussel_api::field::FieldErrors;
use mussel_api::object::ObjectExt;
use serde_json::Value;

use super::Rules;
use crate::custom::rules;
use crate::registry::write::{Write, set};
use crate::status::Status;

pub struct CustomObjects;

fn custom<'w>(write: &'w Write<'_>) -> Option<&'w Custom> {
    write.call.resource.custom.as_ref()
}

impl Rules for CustomObjects {
    /// What came with the object is dropped where status is a resource of its own.
    fn status_on_create(&self) -> bool {
        true
    }

    fn prepare_create(&self, write: &Write<'_>, new: &mut Value) -> Result<(), Status> {
        if write.call.resource.strategy.has_status {
            set(new, "status", None);
        }
        Ok(())
    }

    /// Of metadata only the record of who changed what.
    fn prepare_status(&self, _write: &Write<'_>, new: &mut Value, old: &Value) -> Result<(), Status> {
        let managed = new["metadata"].get("managedFields").cloned();
        let version = new.resource_version().to_owned();
        new["metadata"] = old["metadata"].clone();
        let metadata = new.meta_mut();
        match managed {
            Some(managed) => metadata.insert("managedFields".to_owned(), managed),
            None => metadata.remove("managedFields"),
        };
        metadata.insert("resourceVersion".to_owned(), version.into());
        Ok(())
    }

    fn validate(&self, write: &Write<'_>, new: &Value, old: Option<&Value>) -> FieldErrors {
        let Some(custom) = custom(write) else { return FieldErrors::new() };
        let errors = match old {
            Some(old) => custom::validate_update(custom, new, old),
            None => custom::validate(custom, new),
        };
        if errors.is_empty() { rules::check(custom, new, old, &write.call.request.warnings) } else { errors }
    }

    /// All but metadata; a status that is no resource of its own is part of it, one that is was put back before.
    fn counts_as_change(&self, new: &Value, old: &Value) -> bool {
        let rest = |object: &Value| {
            let mut rest = object.clone();
            set(&mut rest, "metadata", None);
            rest
        };
        rest(new) != rest(old)
    }
}
