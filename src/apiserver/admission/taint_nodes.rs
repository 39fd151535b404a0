//! A node that registers is not scheduled to before it is known to be ready.

use serde_json::{Value, json};

use super::{Attributes, Plugin};
use crate::status::Status;

pub struct TaintNodesByCondition;

const NOT_READY: &str = "node.kubernetes.io/not-ready";

impl Plugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    fn mutate(&self, attributes: &Attributes<'_>, object: &mut Value) -> Result<(), Status> {
        if !attributes.creates("nodes") {
            return Ok(());
        }
        if !object["spec"].is_object() {
            object["spec"] = json!({});
        }
        let taints = &mut object["spec"]["taints"];
        if !taints.is_array() {
            *taints = json!([]);
        }
        if let Some(list) = taints.as_array_mut()
            && !list.iter().any(|taint| taint["key"] == NOT_READY && taint["effect"] == "NoSchedule")
        {
            list.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
        }
        Ok(())
    }
}
