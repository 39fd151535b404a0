//! Volumes and claims are not removed while they are in use.

use mussel_api::object::ObjectExt;
use serde_json::Value;

use super::{Attributes, Plugin};
use crate::status::Status;

pub struct StorageObjectInUseProtection;

impl Plugin for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    fn mutate(&self, attributes: &Attributes<'_>, object: &mut Value) -> Result<(), Status> {
        let finalizer = if attributes.creates("persistentvolumeclaims") {
            "kubernetes.io/pvc-protection"
        } else if attributes.creates("persistentvolumes") {
            "kubernetes.io/pv-protection"
        } else {
            return Ok(());
        };
        if !object.finalizers().contains(&finalizer) {
            let mut finalizers: Vec<Value> = object.finalizers().into_iter().map(Value::from).collect();
            finalizers.push(finalizer.into());
            object.meta_mut().insert("finalizers".to_owned(), finalizers.into());
        }
        Ok(())
    }
}
