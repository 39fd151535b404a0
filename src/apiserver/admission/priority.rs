//! Pods get the priority of their class, or of the default class.

use mussel_api::object::ObjectExt;
use serde_json::Value;

use super::{Attributes, Operation, Plugin};
use crate::status::Status;

pub struct Priority;

const CLASSES: &str = "priorityclasses.scheduling.k8s.io";

impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn mutate(&self, attributes: &Attributes<'_>, object: &mut Value) -> Result<(), Status> {
        if !attributes.creates("pods") || !object["spec"].is_object() {
            return Ok(());
        }
        let name = object.str_at("spec.priorityClassName").to_owned();
        let class = if name.is_empty() {
            default_class(attributes)
        } else {
            let class = attributes.view.get(CLASSES, "", &name);
            Some(class.ok_or_else(|| attributes.forbidden(&format!("no PriorityClass with name {name} was found")))?)
        };
        let (value, policy) = match &class {
            Some(class) => {
                (class["value"].as_i64().unwrap_or(0), class["preemptionPolicy"].as_str().map(str::to_owned))
            }
            None => (0, None),
        };
        let policy = policy.unwrap_or_else(|| "PreemptLowerPriority".to_owned());
        let spec = &mut object["spec"];
        if let Some(given) = spec["priority"].as_i64().filter(|given| *given != value) {
            return Err(attributes.forbidden(&format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
                 computed {value} from the given PriorityClass name"
            )));
        }
        if let Some(given) = spec["preemptionPolicy"].as_str().filter(|given| *given != policy) {
            return Err(attributes.forbidden(&format!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
                 controller computed {policy} from the given PriorityClass name"
            )));
        }
        if let Some(class) = class.filter(|_| name.is_empty()) {
            spec["priorityClassName"] = class.name().into();
        }
        spec["priority"] = value.into();
        spec["preemptionPolicy"] = policy.into();
        Ok(())
    }

    fn validate(&self, attributes: &Attributes<'_>, object: Option<&Value>) -> Result<(), Status> {
        let Some(object) =
            object.filter(|_| attributes.stored_as == CLASSES && attributes.operation != Operation::Delete)
        else {
            return Ok(());
        };
        if object["globalDefault"] == true
            && let Some(other) = default_class(attributes).filter(|other| other.name() != object.name())
        {
            return Err(attributes.forbidden(&format!(
                "PriorityClass {} is already marked as default. Only one default can exist",
                other.name()
            )));
        }
        Ok(())
    }
}

/// Of several defaults, the lowest one.
fn default_class(attributes: &Attributes<'_>) -> Option<Value> {
    let classes = attributes.view.list(CLASSES, "");
    classes.filter(|class| class["globalDefault"] == true).min_by_key(|class| class["value"].as_i64())
}
