//! Pods of a runtime class take over its overhead and where it may be scheduled.

use mussel_api::object::ObjectExt;
use serde_json::{Value, json};

use super::{Attributes, Plugin};
use crate::status::Status;

pub struct RuntimeClass;

impl Plugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    fn mutate(&self, attributes: &Attributes<'_>, object: &mut Value) -> Result<(), Status> {
        if !attributes.creates("pods") {
            return Ok(());
        }
        let name = object.str_at("spec.runtimeClassName").to_owned();
        if name.is_empty() {
            if object["spec"]["overhead"].as_object().is_some_and(|overhead| !overhead.is_empty()) {
                return Err(attributes
                    .forbidden("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"));
            }
            return Ok(());
        }
        let Some(class) = attributes.view.get("runtimeclasses.node.k8s.io", "", &name) else {
            return Err(attributes.forbidden(&format!("pod rejected: RuntimeClass {name:?} not found")));
        };
        let spec = &mut object["spec"];
        let overhead = &class["overhead"]["podFixed"];
        if overhead.is_object() {
            if spec["overhead"].is_object() && spec["overhead"] != *overhead {
                return Err(
                    attributes.forbidden("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")
                );
            }
            spec["overhead"] = overhead.clone();
        }
        let scheduling = &class["scheduling"];
        for (key, value) in scheduling["nodeSelector"].as_object().into_iter().flatten() {
            let selector = &mut spec["nodeSelector"];
            if !selector.is_object() {
                *selector = json!({});
            }
            match selector.get(key) {
                Some(other) if other != value => {
                    return Err(attributes.forbidden(&format!(
                        "pod rejected: conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                        value.as_str().unwrap_or_default(),
                        other.as_str().unwrap_or_default()
                    )));
                }
                _ => selector[key] = value.clone(),
            }
        }
        if let Some(more) = scheduling["tolerations"].as_array() {
            let mut tolerations = spec["tolerations"].as_array().cloned().unwrap_or_default();
            for toleration in more {
                if !tolerations.contains(toleration) {
                    tolerations.push(toleration.clone());
                }
            }
            spec["tolerations"] = tolerations.into();
        }
        Ok(())
    }
}
