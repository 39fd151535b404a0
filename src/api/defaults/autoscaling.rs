//! HorizontalPodAutoscalers. `autoscaling/v1` has no metrics and no behavior to fill in.

use serde_json::{Value, json};

use super::{child, fill, fill_zero, made};
use crate::object::ObjectExt;

pub fn horizontal_pod_autoscaler(autoscaler: &mut Value) {
    let first_version = autoscaler.api_version() == "autoscaling/v1";
    let Some(spec) = made(autoscaler, "spec") else { return };
    fill(spec, "minReplicas", 1);
    if first_version {
        return;
    }
    fill_zero(
        spec,
        "metrics",
        json!([{
            "type": "Resource",
            "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}},
        }]),
    );
    let Some(behavior) = child(spec, "behavior") else { return };
    if let Some(up) = made(behavior, "scaleUp") {
        fill(up, "stabilizationWindowSeconds", 0);
        fill(up, "selectPolicy", "Max");
        fill_zero(
            up,
            "policies",
            json!([
                {"type": "Pods", "value": 4, "periodSeconds": 15},
                {"type": "Percent", "value": 100, "periodSeconds": 15},
            ]),
        );
    }
    if let Some(down) = made(behavior, "scaleDown") {
        fill(down, "selectPolicy", "Max");
        fill_zero(down, "policies", json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]));
    }
}
