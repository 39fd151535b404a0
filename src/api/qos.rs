//! Quality of service: who is throttled and killed first when a node runs out.

use serde_json::Value;

use crate::quantity::Quantity;

/// `Guaranteed`, `Burstable` or `BestEffort`, by the CPU and memory that containers ask for.
pub fn qos_class(spec: &Value) -> &'static str {
    const COUNTED: [&str; 2] = ["cpu", "memory"];
    let amount = |list: &Value, name: &str| -> Option<Quantity> {
        let quantity = Quantity::parse(list[name].as_str()?).ok()?;
        (!quantity.is_zero()).then_some(quantity)
    };
    let mut any = false;
    let mut guaranteed = true;
    let mut look = |resources: &Value| {
        for name in COUNTED {
            let (request, limit) = (amount(&resources["requests"], name), amount(&resources["limits"], name));
            any |= request.is_some() || limit.is_some();
            guaranteed &= match (request, limit) {
                (Some(request), Some(limit)) => request.to_nano() == limit.to_nano(),
                (None, Some(_)) => true,
                _ => false,
            };
        }
    };
    if spec["resources"].is_object() {
        look(&spec["resources"]);
    } else {
        for list in ["initContainers", "containers"] {
            for container in spec[list].as_array().into_iter().flatten() {
                look(&container["resources"]);
            }
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn quality_of_service_follows_from_requests_and_limits() {
        let class = |resources: Value| qos_class(&json!({"containers": [{"resources": resources}]}));
        assert_eq!(class(json!({})), "BestEffort");
        assert_eq!(class(json!({"requests": {"cpu": "1"}})), "Burstable");
        let all = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(class(json!({"requests": all, "limits": {"cpu": "1000m", "memory": "1024Mi"}})), "Guaranteed");
        assert_eq!(class(json!({"limits": all})), "Guaranteed");
        assert_eq!(class(json!({"limits": {"cpu": "1"}})), "Burstable");
    }
}
