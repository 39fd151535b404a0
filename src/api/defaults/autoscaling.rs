//! HorizontalPodAutoscalers, as `autoscaling/v2` has them.

use serde_json::{Value, json};

use super::{child, fill, fill_zero, made};

pub fn horizontal_pod_autoscaler(autoscaler: &mut Value) {
    let Some(spec) = made(autoscaler, "spec") else { return };
    fill(spec, "minReplicas", 1);
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
