//! Namespaces stay, `Terminating`, until the namespace controller has emptied and finalized them.

use mussel_api::field::FieldErrors;
use mussel_api::object::ObjectExt;
use serde_json::{Value, json};

use super::Rules;
use crate::registry::write::{Part, Write, keep_all_but, now, set};
use crate::status::Status;

const FINALIZER: &str = "kubernetes";

pub struct Namespaces;

fn is_finalized(namespace: &Value) -> bool {
    namespace["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty)
}

impl Rules for Namespaces {
    fn prepare_create(&self, _write: &Write<'_>, new: &mut Value) -> Result<(), Status> {
        new["status"] = json!({"phase": "Active"});
        let finalizers = &mut new["spec"]["finalizers"];
        match finalizers.as_array_mut() {
            Some(list) if list.iter().any(|name| name == FINALIZER) => {}
            Some(list) => list.push(FINALIZER.into()),
            None => *finalizers = json!([FINALIZER]),
        }
        Ok(())
    }

    fn prepare_update(&self, _write: &Write<'_>, new: &mut Value, old: &Value) -> Result<(), Status> {
        set(new, "spec", old.get("spec"));
        Ok(())
    }

    fn begin_delete(&self, object: &mut Value) -> Option<bool> {
        if !object.is_deleting() {
            object.meta_mut().insert("deletionTimestamp".to_owned(), now().into());
        }
        object["status"]["phase"] = "Terminating".into();
        Some(!is_finalized(object))
    }

    fn ends(&self, new: &Value, old: &Value) -> bool {
        old.is_deleting() && new.finalizers().is_empty() && is_finalized(new)
    }

    fn returns_deleted(&self) -> bool {
        true
    }
}

/// `…/finalize`: the only way to change `spec.finalizers`.
pub struct Finalize;

impl Part for Finalize {
    fn subresource(&self) -> &'static str {
        "finalize"
    }

    fn prepare(&self, _write: &Write<'_>, new: &mut Value, old: &Value) -> Result<(), Status> {
        keep_all_but(new, old, &["spec"]);
        Ok(())
    }

    fn validate(&self, _write: &Write<'_>, _new: &Value, _old: &Value) -> FieldErrors {
        FieldErrors::new()
    }
}
