//! Between the served versions of a kind. Two families have more than one: events and autoscaling.

use mussel_api::resource::Resource;
use serde_json::{Map, Value, json};

/// The object as `resource` serves it, from the form it is stored in.
pub fn from_storage(resource: &Resource, object: Value) -> Value {
    match needed(resource) {
        None => object,
        Some(_) if &*resource.group == "events.k8s.io" => rename(object, "events.k8s.io/v1", &EVENT_FIELDS, false),
        Some(_) if &*resource.group == "autoscaling" => autoscaler_to_v1(object),
        Some(_) => object,
    }
}

/// The form an object of `resource` is stored in.
pub fn to_storage(resource: &Resource, object: Value) -> Value {
    match needed(resource) {
        None => object,
        Some(_) if &*resource.group == "events.k8s.io" => rename(object, "v1", &EVENT_FIELDS, true),
        Some(_) if &*resource.group == "autoscaling" => autoscaler_to_v2(object),
        Some(_) => object,
    }
}

/// The object of one served version in another one of the same resource.
pub fn between(from: &Resource, to: &Resource, object: Value) -> Value {
    let mut object = from_storage(to, to_storage(from, object));
    object["apiVersion"] = to.api_version().into();
    object
}

/// The storage version, when it is another than the served one.
pub fn needed(resource: &Resource) -> Option<(&'static str, &'static str)> {
    resource.storage.filter(|(group, version)| *group != resource.group || *version != resource.version)
}

/// Core's name of a field, and that of `events.k8s.io`.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn rename(mut object: Value, api_version: &str, fields: &[(&str, &str)], back: bool) -> Value {
    if let Some(map) = object.as_object_mut() {
        for (core, other) in fields {
            let (from, to) = if back { (other, core) } else { (core, other) };
            if let Some(value) = map.remove(*from) {
                map.insert((*to).to_owned(), value);
            }
        }
        map.insert("apiVersion".to_owned(), api_version.into());
    }
    object
}

/// Fields of `v2` that `v1` has no place for travel in these annotations, as upstream's do.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

fn is_cpu_utilization(metric: &Value) -> bool {
    let resource = &metric["resource"];
    metric["type"] == "Resource"
        && resource["name"] == "cpu"
        && (!resource["target"]["averageUtilization"].is_null() || !resource["current"]["averageUtilization"].is_null())
}

fn autoscaler_to_v1(mut object: Value) -> Value {
    object["apiVersion"] = "autoscaling/v1".into();
    let mut notes = Map::new();
    let mut keep = |key: &str, value: &Value| {
        if !value.is_null() && *value != json!([]) {
            notes.insert(key.to_owned(), value.to_string().into());
        }
    };
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        let metrics = spec.remove("metrics");
        let (cpu, rest): (Vec<Value>, Vec<Value>) = list(metrics).into_iter().partition(is_cpu_utilization);
        if let Some(cpu) = cpu.first() {
            let target = cpu["resource"]["target"]["averageUtilization"].clone();
            spec.insert("targetCPUUtilizationPercentage".to_owned(), target);
        }
        keep(METRICS, &Value::Array(rest));
        keep(BEHAVIOR, &spec.remove("behavior").unwrap_or_default());
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        let metrics = status.remove("currentMetrics");
        let (cpu, rest): (Vec<Value>, Vec<Value>) = list(metrics).into_iter().partition(is_cpu_utilization);
        if let Some(cpu) = cpu.first() {
            let current = cpu["resource"]["current"]["averageUtilization"].clone();
            status.insert("currentCPUUtilizationPercentage".to_owned(), current);
        }
        keep(CURRENT_METRICS, &Value::Array(rest));
        keep(CONDITIONS, &status.remove("conditions").unwrap_or_default());
    }
    if !notes.is_empty() {
        let metadata = &mut object["metadata"];
        match metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            Some(annotations) => annotations.extend(notes),
            None => metadata["annotations"] = Value::Object(notes),
        }
    }
    object
}

fn autoscaler_to_v2(mut object: Value) -> Value {
    object["apiVersion"] = "autoscaling/v2".into();
    let annotations = object.get_mut("metadata").and_then(|m| m.get_mut("annotations")).and_then(Value::as_object_mut);
    let mut take = {
        let mut notes = Map::new();
        if let Some(annotations) = annotations {
            for key in [METRICS, CURRENT_METRICS, CONDITIONS, BEHAVIOR] {
                let parsed =
                    annotations.get(key).and_then(Value::as_str).and_then(|text| serde_json::from_str(text).ok());
                if let Some(value) = parsed {
                    annotations.remove(key);
                    notes.insert(key.to_owned(), value);
                }
            }
        }
        move |key: &str| notes.remove(key)
    };
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        let mut metrics = list(take(METRICS));
        if let Some(percentage) = spec.remove("targetCPUUtilizationPercentage") {
            let target = json!({"type": "Utilization", "averageUtilization": percentage});
            metrics.insert(0, json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}));
        }
        if !metrics.is_empty() {
            spec.insert("metrics".to_owned(), metrics.into());
        }
        if let Some(behavior) = take(BEHAVIOR) {
            spec.insert("behavior".to_owned(), behavior);
        }
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        let mut metrics = list(take(CURRENT_METRICS));
        if let Some(percentage) = status.remove("currentCPUUtilizationPercentage") {
            let current = json!({"averageUtilization": percentage});
            metrics.insert(0, json!({"type": "Resource", "resource": {"name": "cpu", "current": current}}));
        }
        if !metrics.is_empty() {
            status.insert("currentMetrics".to_owned(), metrics.into());
        }
        if let Some(conditions) = take(CONDITIONS) {
            status.insert("conditions".to_owned(), conditions);
        }
    }
    object
}

fn list(value: Option<Value>) -> Vec<Value> {
    match value {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_keep_everything_under_the_other_name() {
        let core = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "a"}, "message": "m", "count": 2,
            "involvedObject": {"kind": "Pod"}, "source": {"component": "c"}, "reportingComponent": "r"});
        let there = rename(core.clone(), "events.k8s.io/v1", &EVENT_FIELDS, false);
        assert_eq!((there["note"].as_str(), there["deprecatedCount"].as_i64()), (Some("m"), Some(2)));
        assert_eq!(rename(there, "v1", &EVENT_FIELDS, true), core);
    }

    #[test]
    fn autoscalers_survive_the_way_through_v1() {
        let v2 = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "a", "annotations": {}},
            "spec": {"maxReplicas": 3, "behavior": {"scaleUp": {}}, "metrics": [
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}},
                {"type": "Pods", "pods": {"x": 1}}]},
            "status": {"conditions": [{"type": "x"}]}});
        let v1 = autoscaler_to_v1(v2.clone());
        assert_eq!(v1["spec"]["targetCPUUtilizationPercentage"], 50);
        assert_eq!(autoscaler_to_v2(v1), v2);
    }
}
