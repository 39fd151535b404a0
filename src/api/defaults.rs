//! What upstream fills in where a manifest says nothing. One function per kind; a repeat changes nothing.

mod admission;
mod autoscaling;
mod batch;
mod config;
mod container;
mod pod;
mod rbac;
mod service;
mod storage;
mod workload;

use serde_json::{Map, Value};

pub use admission::{
    mutating_admission_policy, mutating_admission_policy_binding, mutating_webhook_configuration,
    validating_admission_policy, validating_admission_policy_binding, validating_webhook_configuration,
};
pub use autoscaling::horizontal_pod_autoscaler;
pub use batch::{cron_job, job};
pub use config::{
    api_service, custom_resource_definition, flow_schema, limit_range, namespace, node, priority_class,
    priority_level_configuration, secret, token_request,
};
pub use container::image_pull_policy;
pub use pod::{pod, pod_spec, pod_template};
pub use rbac::{cluster_role_binding, role_binding};
pub use service::{endpoint_slice, endpoints, ingress_class, network_policy, service};
pub use storage::{csi_driver, persistent_volume, persistent_volume_claim, storage_class};
pub use workload::{daemon_set, deployment, replica_set, replication_controller, stateful_set};

/// What an absent value reads as.
static NULL: Value = Value::Null;

/// The member `key`, `Null` where there is none.
fn get<'a>(value: &'a Value, key: &str) -> &'a Value {
    value.get(key).unwrap_or(&NULL)
}

/// The member `key` when it is an object.
fn child<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    value.get_mut(key).filter(|child| child.is_object())
}

/// The member `key`, made an empty object when absent. `None` when `value` is no object or the member is of another type.
fn made<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    let member = value.as_object_mut()?.entry(key).or_insert(Value::Null);
    if member.is_null() {
        *member = Value::Object(Map::new());
    }
    member.is_object().then_some(member)
}

/// The elements of the list `key`, none when absent.
fn items<'a>(value: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> {
    value.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten()
}

/// Sets a field that upstream holds by pointer: only absence counts as unset.
fn fill(value: &mut Value, key: &str, default: impl Into<Value>) {
    if let Some(map) = value.as_object_mut()
        && map.get(key).is_none_or(Value::is_null)
    {
        map.insert(key.to_owned(), default.into());
    }
}

/// Sets a field that upstream holds by value: the zero value counts as unset too.
fn fill_zero(value: &mut Value, key: &str, default: impl Into<Value>) {
    if let Some(map) = value.as_object_mut()
        && map.get(key).is_none_or(is_zero)
    {
        map.insert(key.to_owned(), default.into());
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

#[cfg(test)]
mod tests;
