//! Claims and ingresses that name no class get the default one, when there is one.

use mussel_api::object::ObjectExt;
use serde_json::Value;

use super::{Attributes, Plugin};
use crate::status::Status;

pub struct DefaultStorageClass;

impl Plugin for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    fn mutate(&self, attributes: &Attributes<'_>, object: &mut Value) -> Result<(), Status> {
        const OLD_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
        let named = object["spec"]["storageClassName"].is_string()
            || object.annotations().is_some_and(|annotations| annotations.contains_key(OLD_ANNOTATION));
        if !attributes.creates("persistentvolumeclaims") || named || !object["spec"].is_object() {
            return Ok(());
        }
        let annotation = "storageclass.kubernetes.io/is-default-class";
        if let Some(class) = newest_default(attributes, "storageclasses.storage.k8s.io", annotation) {
            object["spec"]["storageClassName"] = class.name().into();
        }
        Ok(())
    }
}

pub struct DefaultIngressClass;

impl Plugin for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }

    fn mutate(&self, attributes: &Attributes<'_>, object: &mut Value) -> Result<(), Status> {
        const OLD_ANNOTATION: &str = "kubernetes.io/ingress.class";
        let named = object["spec"]["ingressClassName"].is_string()
            || object.annotations().is_some_and(|annotations| annotations.contains_key(OLD_ANNOTATION));
        if !attributes.creates("ingresses.networking.k8s.io") || named || !object["spec"].is_object() {
            return Ok(());
        }
        let annotation = "ingressclass.kubernetes.io/is-default-class";
        if let Some(class) = newest_default(attributes, "ingressclasses.networking.k8s.io", annotation) {
            object["spec"]["ingressClassName"] = class.name().into();
        }
        Ok(())
    }
}

/// Of several defaults, the newest one; of those, the first by name.
fn newest_default(attributes: &Attributes<'_>, resource: &str, annotation: &str) -> Option<Value> {
    let is_default = |class: &Value| {
        class.annotations().and_then(|annotations| annotations.get(annotation)).is_some_and(|value| value == "true")
    };
    let mut classes: Vec<Value> = attributes.view.list(resource, "").filter(is_default).collect();
    classes.sort_by(|a, b| {
        b.meta_str("creationTimestamp").cmp(a.meta_str("creationTimestamp")).then_with(|| a.name().cmp(b.name()))
    });
    classes.into_iter().next()
}
