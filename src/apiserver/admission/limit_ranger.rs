//! LimitRanges: default requests and limits for containers, and bounds for containers, pods and claims.

use mussel_api::quantity::Quantity;
use serde_json::{Map, Value, json};

use super::{Attributes, Operation, Plugin};
use crate::status::Status;

pub struct LimitRanger;

impl Plugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    fn mutate(&self, attributes: &Attributes<'_>, object: &mut Value) -> Result<(), Status> {
        if !attributes.creates("pods") {
            return Ok(());
        }
        for range in ranges(attributes) {
            for item in items(&range, "Container") {
                for list in ["containers", "initContainers"] {
                    for container in object["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                        fill(container, "limits", &item["default"]);
                        fill(container, "requests", &item["defaultRequest"]);
                    }
                }
            }
        }
        Ok(())
    }

    fn validate(&self, attributes: &Attributes<'_>, object: Option<&Value>) -> Result<(), Status> {
        let Some(object) = object else { return Ok(()) };
        let mut problems = Vec::new();
        match (attributes.stored_as, attributes.subresource, attributes.operation) {
            ("pods", "", Operation::Create) | ("pods", "resize", Operation::Update) => {
                for range in ranges(attributes) {
                    check_pod(&range, &object["spec"], &mut problems);
                }
            }
            ("persistentvolumeclaims", "", Operation::Create | Operation::Update) => {
                for range in ranges(attributes) {
                    for item in items(&range, "PersistentVolumeClaim") {
                        check(item, "PersistentVolumeClaim", &object["spec"]["resources"], &mut problems);
                    }
                }
            }
            _ => {}
        }
        match problems.as_slice() {
            [] => Ok(()),
            [one] => Err(attributes.forbidden(one)),
            many => Err(attributes.forbidden(&format!("[{}]", many.join(", ")))),
        }
    }
}

fn ranges(attributes: &Attributes<'_>) -> Vec<Value> {
    if attributes.namespace.is_empty() {
        Vec::new()
    } else {
        attributes.view.list("limitranges", attributes.namespace).collect()
    }
}

fn items<'v>(range: &'v Value, kind: &'v str) -> impl Iterator<Item = &'v Value> {
    range["spec"]["limits"].as_array().into_iter().flatten().filter(move |item| item["type"] == kind)
}

fn fill(container: &mut Value, field: &str, defaults: &Value) {
    let Some(defaults) = defaults.as_object().filter(|defaults| !defaults.is_empty()) else { return };
    if !container["resources"].is_object() {
        container["resources"] = json!({});
    }
    let list = &mut container["resources"][field];
    if !list.is_object() {
        *list = Value::Object(Map::new());
    }
    for (name, value) in defaults {
        if list[name].is_null() {
            list[name] = value.clone();
        }
    }
}

fn quantity(value: &Value) -> Option<Quantity> {
    Quantity::parse(value.as_str()?).ok()
}

/// Bounds of one item over a `resources` with requests and limits.
fn check(item: &Value, kind: &str, resources: &Value, problems: &mut Vec<String>) {
    let pairs = |field: &str| item[field].as_object().cloned().unwrap_or_default();
    for (name, min) in pairs("min") {
        let Some(bound) = quantity(&min) else { continue };
        let text = min.as_str().unwrap_or_default().to_owned();
        match quantity(&resources["requests"][&name]) {
            None => problems.push(format!("minimum {name} usage per {kind} is {text}.  No request is specified")),
            Some(request) if request.to_nano() < bound.to_nano() => {
                problems.push(format!("minimum {name} usage per {kind} is {text}, but request is {request}"));
            }
            Some(_) => {}
        }
    }
    for (name, max) in pairs("max") {
        let Some(bound) = quantity(&max) else { continue };
        let text = max.as_str().unwrap_or_default().to_owned();
        let (request, limit) = (quantity(&resources["requests"][&name]), quantity(&resources["limits"][&name]));
        // Claims have no limits.
        if kind == "PersistentVolumeClaim" {
            if let Some(request) = request.filter(|request| request.to_nano() > bound.to_nano()) {
                problems.push(format!("maximum {name} usage per {kind} is {text}, but request is {request}"));
            }
            continue;
        }
        match limit {
            None => problems.push(format!("maximum {name} usage per {kind} is {text}.  No limit is specified")),
            Some(limit) if limit.to_nano() > bound.to_nano() => {
                problems.push(format!("maximum {name} usage per {kind} is {text}, but limit is {limit}"));
            }
            Some(_) => {}
        }
    }
    for (name, ratio) in pairs("maxLimitRequestRatio") {
        let Some(bound) = quantity(&ratio) else { continue };
        let text = ratio.as_str().unwrap_or_default().to_owned();
        let (request, limit) = (quantity(&resources["requests"][&name]), quantity(&resources["limits"][&name]));
        let Some((request, limit)) = request.zip(limit).filter(|(request, _)| !request.is_zero()) else {
            problems.push(format!(
                "{name} max limit to request ratio per {kind} is {text}, but no request is specified or request is 0"
            ));
            continue;
        };
        let real = limit.to_f64() / request.to_f64();
        if real > bound.to_f64() {
            problems.push(format!(
                "{name} max limit to request ratio per {kind} is {text}, but provided ratio is {real:.6}"
            ));
        }
    }
}

fn check_pod(range: &Value, spec: &Value, problems: &mut Vec<String>) {
    for item in items(range, "Container") {
        for list in ["containers", "initContainers"] {
            for container in spec[list].as_array().into_iter().flatten() {
                check(item, "Container", &container["resources"], problems);
            }
        }
    }
    let mut pods = items(range, "Pod").peekable();
    if pods.peek().is_none() {
        return;
    }
    let total = json!({"requests": sum(spec, "requests"), "limits": sum(spec, "limits")});
    for item in pods {
        check(item, "Pod", &total, problems);
    }
}

/// What all containers ask for together; init containers run one by one, so the largest counts.
fn sum(spec: &Value, field: &str) -> Value {
    let mut total: std::collections::BTreeMap<String, i128> = std::collections::BTreeMap::new();
    for container in spec["containers"].as_array().into_iter().flatten() {
        for (name, value) in container["resources"][field].as_object().into_iter().flatten() {
            *total.entry(name.clone()).or_default() += quantity(value).map_or(0, |q| q.to_nano());
        }
    }
    for container in spec["initContainers"].as_array().into_iter().flatten() {
        for (name, value) in container["resources"][field].as_object().into_iter().flatten() {
            let entry = total.entry(name.clone()).or_default();
            *entry = (*entry).max(quantity(value).map_or(0, |q| q.to_nano()));
        }
    }
    let text = |nano: i128| Value::String(Quantity::from_nano(nano).to_string());
    Value::Object(total.into_iter().map(|(name, nano)| (name, text(nano))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_worded_as_upstream_does() {
        let item = json!({"type": "Container", "min": {"cpu": "50m"}, "max": {"cpu": "500m"}});
        let mut problems = Vec::new();
        check(&item, "Container", &json!({"requests": {"cpu": "10m"}, "limits": {"cpu": "1"}}), &mut problems);
        assert_eq!(
            problems,
            [
                "minimum cpu usage per Container is 50m, but request is 10m",
                "maximum cpu usage per Container is 500m, but limit is 1"
            ]
        );
    }

    #[test]
    fn a_pod_is_the_sum_of_its_containers() {
        let spec = json!({"containers": [{"resources": {"requests": {"cpu": "100m"}}}, {"resources": {"requests": {"cpu": "200m"}}}],
            "initContainers": [{"resources": {"requests": {"cpu": "250m"}}}]});
        assert_eq!(sum(&spec, "requests"), json!({"cpu": "300m"}));
    }
}
