//! CustomResourceDefinitions: which versions were ever stored, and an end that waits for their objects.

use mussel_api::field::FieldErrors;
use mussel_api::object::ObjectExt;
use serde_json::{Value, json};

use super::Rules;
use crate::custom::{FINALIZER, conditions, rules};
use crate::registry::write::{Write, now};
use crate::status::Status;

pub struct Definitions;

impl Rules for Definitions {
    fn prepare_create(&self, _write: &Write<'_>, new: &mut Value) -> Result<(), Status> {
        new["status"] = json!({"conditions": [], "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": []});
        note_stored(new);
        Ok(())
    }

    fn prepare_update(&self, _write: &Write<'_>, new: &mut Value, _old: &Value) -> Result<(), Status> {
        note_stored(new);
        Ok(())
    }

    fn validate(&self, _write: &Write<'_>, new: &Value, old: Option<&Value>) -> FieldErrors {
        rules::check_definition(new, old)
    }

    fn begin_delete(&self, object: &mut Value) -> Option<bool> {
        if !object.is_deleting() {
            let metadata = object.meta_mut();
            metadata.insert("deletionTimestamp".to_owned(), now().into());
            metadata.insert("deletionGracePeriodSeconds".to_owned(), 0.into());
            let mut finalizers: Vec<Value> = object.finalizers().into_iter().map(Value::from).collect();
            if !finalizers.iter().any(|name| name == FINALIZER) {
                finalizers.push(FINALIZER.into());
            }
            object.meta_mut().insert("finalizers".to_owned(), finalizers.into());
            conditions::set(
                &mut object["status"],
                "Terminating",
                true,
                "InstanceDeletionPending",
                "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
                &now(),
            );
        }
        Some(false)
    }

    fn allows_unconditional_update(&self) -> bool {
        false
    }
}

/// The storage version joins those of which there may be objects.
fn note_stored(crd: &mut Value) {
    let versions = crd["spec"]["versions"].as_array().into_iter().flatten();
    let storage = versions.filter(|version| version["storage"] == true).find_map(|version| version["name"].as_str());
    let Some(storage) = storage.map(str::to_owned) else { return };
    let stored = &mut crd["status"]["storedVersions"];
    match stored.as_array_mut() {
        Some(list) if list.iter().any(|one| *one == storage) => {}
        Some(list) => list.push(storage.into()),
        None => *stored = json!([storage]),
    }
}
