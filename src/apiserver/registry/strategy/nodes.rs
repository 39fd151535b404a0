//! Nodes bring their status when they register, and know since when a taint evicts.

use serde_json::Value;

use super::Rules;
use crate::registry::write::{Write, now};
use crate::status::Status;

pub struct Nodes;

impl Rules for Nodes {
    fn status_on_create(&self) -> bool {
        true
    }

    /// Tolerations with a time count from when the taint came; whoever sets one by hand does not say when that was.
    fn finish(&self, _write: &Write<'_>, new: &mut Value, _old: Option<&Value>) -> Result<(), Status> {
        let taints = new.get_mut("spec").and_then(|spec| spec.get_mut("taints")).and_then(Value::as_array_mut);
        for taint in taints.into_iter().flatten().filter(|taint| taint["effect"] == "NoExecute") {
            if taint.get("timeAdded").is_none_or(Value::is_null) {
                taint["timeAdded"] = now().into();
            }
        }
        Ok(())
    }
}
