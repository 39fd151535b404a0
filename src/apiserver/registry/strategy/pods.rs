//! Pods: initial status, quality of service, grace, and the parts that have endpoints of their own.

use mussel_api::field::FieldErrors;
use mussel_api::object::ObjectExt;
use mussel_api::qos::qos_class;
use serde_json::{Map, Value, json};

use super::Rules;
use crate::registry::write::{Part, Write, keep_all_but, now, set};
use crate::status::Status;

pub struct Pods;

impl Rules for Pods {
    fn prepare_create(&self, _write: &Write<'_>, new: &mut Value) -> Result<(), Status> {
        new["status"] = json!({"phase": "Pending", "qosClass": qos_class(&new["spec"])});
        if new["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
            new["status"]["conditions"] = json!([{"type": "PodScheduled", "status": "False",
                "reason": "SchedulingGated", "message": "Scheduling is blocked due to non-empty scheduling gates",
                "lastProbeTime": null, "lastTransitionTime": now()}]);
        }
        Ok(())
    }

    fn finish(&self, _write: &Write<'_>, new: &mut Value, old: Option<&Value>) -> Result<(), Status> {
        // Admission may have set resources; the class is fixed from then on.
        if old.is_none() {
            new["status"]["qosClass"] = qos_class(&new["spec"]).into();
        }
        Ok(())
    }

    fn prepare_status(&self, _write: &Write<'_>, new: &mut Value, old: &Value) -> Result<(), Status> {
        // Kubelets have no business with these.
        let owners = old["metadata"].get("ownerReferences").cloned();
        set(&mut new["metadata"], "ownerReferences", owners.as_ref());
        if new["status"].is_object()
            && let Some(class) = old["status"].get("qosClass")
        {
            new["status"]["qosClass"] = class.clone();
        }
        Ok(())
    }

    fn grace_seconds(&self, object: &Value, requested: Option<i64>) -> Option<i64> {
        let seconds = requested.or_else(|| object["spec"]["terminationGracePeriodSeconds"].as_i64()).unwrap_or(30);
        let never_ran = object.str_at("spec.nodeName").is_empty();
        let is_over = matches!(object.str_at("status.phase"), "Succeeded" | "Failed");
        if never_ran || is_over {
            return Some(0);
        }
        // Negative means: at once, but not without the kubelet.
        Some(if seconds < 0 { 1 } else { seconds })
    }

    fn returns_deleted(&self) -> bool {
        true
    }
}

/// Sets a condition; the transition time changes with the status only.
pub fn set_condition(object: &mut Value, condition: Value) {
    if !object["status"].is_object() {
        object["status"] = json!({});
    }
    let conditions = &mut object["status"]["conditions"];
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Some(list) = conditions.as_array_mut() else { return };
    match list.iter_mut().find(|known| known["type"] == condition["type"]) {
        Some(known) => *known = condition,
        None => list.push(condition),
    }
}

/// `…/ephemeralcontainers`: they are added, never changed or removed.
pub struct EphemeralContainers;

impl Part for EphemeralContainers {
    fn subresource(&self) -> &'static str {
        "ephemeralcontainers"
    }

    fn prepare(&self, _write: &Write<'_>, new: &mut Value, old: &Value) -> Result<(), Status> {
        let containers = new["spec"].get("ephemeralContainers").cloned();
        keep_all_but(new, old, &[]);
        set(&mut new["spec"], "ephemeralContainers", containers.as_ref());
        Ok(())
    }

    fn validate(&self, _write: &Write<'_>, new: &Value, old: &Value) -> FieldErrors {
        mussel_api::validation::pod_ephemeral_containers_update(new, old)
    }
}

/// `…/resize`: the containers' resources and resize policies.
pub struct Resize;

impl Part for Resize {
    fn subresource(&self) -> &'static str {
        "resize"
    }

    fn prepare(&self, _write: &Write<'_>, new: &mut Value, old: &Value) -> Result<(), Status> {
        let wanted = new["spec"].clone();
        keep_all_but(new, old, &[]);
        set(&mut new["spec"], "resources", wanted.get("resources"));
        for list in ["containers", "initContainers"] {
            let by_name: Map<String, Value> = wanted[list]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|container| Some((container["name"].as_str()?.to_owned(), container.clone())))
                .collect();
            for container in new["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                let Some(wanted) = container["name"].as_str().and_then(|name| by_name.get(name)) else { continue };
                for field in ["resources", "resizePolicy"] {
                    set(container, field, wanted.get(field));
                }
            }
        }
        Ok(())
    }

    fn validate(&self, _write: &Write<'_>, new: &Value, old: &Value) -> FieldErrors {
        use mussel_api::field::{FieldError, Path};
        let path = Path::new("spec").child("containers");
        let (was, is) = (qos_class(&old["spec"]), qos_class(&new["spec"]));
        let mut errors = mussel_api::validation::pod_resize_update(new, old);
        if was != is {
            errors.push(FieldError::invalid(&path, is, "Pod QOS Class may not change as a result of resizing"));
        }
        errors
    }
}
