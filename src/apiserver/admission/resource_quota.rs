//! ResourceQuotas: what a namespace may hold and ask for in all.
//!
//! What is used is counted from the objects themselves at the moment of the request, not taken from the quota's status:
//! the count is then right whether or not the quota controller has caught up.

use std::collections::BTreeMap;

use mussel_api::object::ObjectExt;
use mussel_api::quantity::Quantity;
use mussel_api::selector::LabelSelector;
use serde_json::Value;

use super::{Attributes, Operation, Plugin};
use crate::status::Status;

pub struct ResourceQuota;

/// Amounts by resource name, in billionths.
type Amounts = BTreeMap<String, i128>;

const ONE: i128 = 1_000_000_000;

/// Names that bound what containers ask for; a pod must then say how much it wants.
const COMPUTE: [&str; 6] = ["cpu", "memory", "limits.cpu", "limits.memory", "requests.cpu", "requests.memory"];

impl Plugin for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    fn validate(&self, attributes: &Attributes<'_>, object: Option<&Value>) -> Result<(), Status> {
        let Some(object) = object.filter(|_| attributes.subresource.is_empty() && !attributes.namespace.is_empty())
        else {
            return Ok(());
        };
        // Pods keep their size; of the rest, only claims and services can grow.
        let counts = match attributes.operation {
            Operation::Create => true,
            Operation::Update => matches!(attributes.stored_as, "services" | "persistentvolumeclaims"),
            Operation::Delete => false,
        };
        if !counts {
            return Ok(());
        }
        for quota in attributes.view.list("resourcequotas", attributes.namespace) {
            check(attributes, &quota, object)?;
        }
        Ok(())
    }
}

fn check(attributes: &Attributes<'_>, quota: &Value, object: &Value) -> Result<(), Status> {
    let kind = attributes.stored_as;
    let hard: Amounts = amounts(&quota["spec"]["hard"]);
    if !in_scope(quota, kind, object) {
        return Ok(());
    }
    let mut wanted = usage(kind, object);
    wanted.retain(|name, _| hard.contains_key(name));
    if kind == "pods" {
        let missing = unspecified(&hard, object);
        if !missing.is_empty() {
            let why = format!("failed quota: {}: must specify {}", quota.name(), missing.join("; "));
            return Err(attributes.forbidden(&why));
        }
    }
    if let Some(old) = attributes.old {
        for (name, amount) in usage(kind, old) {
            if let Some(wanted) = wanted.get_mut(&name) {
                *wanted -= amount;
            }
        }
    }
    wanted.retain(|_, amount| *amount > 0);
    if wanted.is_empty() {
        return Ok(());
    }
    let mut used = Amounts::new();
    for other in attributes.view.list(kind, attributes.namespace) {
        if in_scope(quota, kind, &other) && !is_over(kind, &other) {
            for (name, amount) in usage(kind, &other) {
                *used.entry(name).or_default() += amount;
            }
        }
    }
    let in_use = |name: &String| used.get(name).copied().unwrap_or(0);
    let exceeded: Vec<&String> =
        wanted.iter().filter(|(name, amount)| in_use(name) + **amount > hard[*name]).map(|(name, _)| name).collect();
    if exceeded.is_empty() {
        return Ok(());
    }
    let print = |amount: &dyn Fn(&String) -> i128| {
        let list = exceeded.iter().map(|name| format!("{name}={}", Quantity::from_nano(amount(name))));
        list.collect::<Vec<_>>().join(",")
    };
    let limited: Vec<String> = exceeded
        .iter()
        .map(|name| format!("{name}={}", quota["spec"]["hard"][name.as_str()].as_str().unwrap_or_default()))
        .collect();
    Err(attributes.forbidden(&format!(
        "exceeded quota: {}, requested: {}, used: {}, limited: {}",
        quota.name(),
        print(&|name| wanted[name]),
        print(&in_use),
        limited.join(",")
    )))
}

fn amounts(list: &Value) -> Amounts {
    let entries = list.as_object().into_iter().flatten();
    entries.filter_map(|(name, value)| Some((name.clone(), nano(value)?))).collect()
}

fn nano(value: &Value) -> Option<i128> {
    Quantity::parse(value.as_str()?).ok().map(|quantity| quantity.to_nano())
}

/// Pods that are over take nothing.
fn is_over(kind: &str, object: &Value) -> bool {
    kind == "pods" && matches!(object.str_at("status.phase"), "Succeeded" | "Failed")
}

/// What one object takes of everything that quotas can bound.
fn usage(kind: &str, object: &Value) -> Amounts {
    let mut total = Amounts::new();
    let mut add = |name: String, amount: i128| *total.entry(name).or_default() += amount;
    add(format!("count/{kind}"), ONE);
    match kind {
        "pods" => {
            add("pods".to_owned(), ONE);
            for (field, prefix) in [("requests", "requests."), ("limits", "limits.")] {
                for (name, amount) in pod_total(&object["spec"], field) {
                    if field == "requests" && matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
                        add(name.clone(), amount);
                    }
                    add(format!("{prefix}{name}"), amount);
                }
            }
        }
        "services" => {
            add("services".to_owned(), ONE);
            let ports = object["spec"]["ports"].as_array().map_or(0, Vec::len);
            let ports = i128::try_from(ports).unwrap_or(0) * ONE;
            match object.str_at("spec.type") {
                "NodePort" => add("services.nodeports".to_owned(), ports),
                "LoadBalancer" => {
                    add("services.loadbalancers".to_owned(), ONE);
                    if object["spec"]["allocateLoadBalancerNodePorts"] != false {
                        add("services.nodeports".to_owned(), ports);
                    }
                }
                _ => {}
            }
        }
        "persistentvolumeclaims" => {
            add("persistentvolumeclaims".to_owned(), ONE);
            let storage = nano(&object["spec"]["resources"]["requests"]["storage"]).unwrap_or(0);
            add("requests.storage".to_owned(), storage);
            let class = object.str_at("spec.storageClassName");
            if !class.is_empty() {
                add(format!("{class}.storageclass.storage.k8s.io/persistentvolumeclaims"), ONE);
                add(format!("{class}.storageclass.storage.k8s.io/requests.storage"), storage);
            }
        }
        "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas" => add(kind.to_owned(), ONE),
        _ => {}
    }
    total
}

/// The sum over containers, or the largest init container where that is more.
fn pod_total(spec: &Value, field: &str) -> Amounts {
    let mut total = Amounts::new();
    for container in spec["containers"].as_array().into_iter().flatten() {
        for (name, amount) in amounts(&container["resources"][field]) {
            *total.entry(name).or_default() += amount;
        }
    }
    for container in spec["initContainers"].as_array().into_iter().flatten() {
        let stays = container["restartPolicy"] == "Always";
        for (name, amount) in amounts(&container["resources"][field]) {
            let entry = total.entry(name).or_default();
            *entry = if stays { *entry + amount } else { (*entry).max(amount) };
        }
    }
    for (name, amount) in amounts(&spec["overhead"]) {
        *total.entry(name).or_default() += amount;
    }
    total
}

/// `cpu for: a,b`: what containers leave open although the quota bounds it.
fn unspecified(hard: &Amounts, pod: &Value) -> Vec<String> {
    let mut missing = Vec::new();
    for bound in COMPUTE.into_iter().filter(|name| hard.contains_key(*name)) {
        let (field, name) = match bound.split_once('.') {
            Some((field, name)) => (field, name),
            None => ("requests", bound),
        };
        let lists = ["containers", "initContainers"].into_iter();
        let containers = lists.flat_map(|list| pod["spec"][list].as_array().into_iter().flatten());
        let open: Vec<&str> = containers
            .filter(|container| container["resources"][field][name].is_null())
            .filter_map(|container| container["name"].as_str())
            .collect();
        if !open.is_empty() {
            missing.push(format!("{bound} for: {}", open.join(",")));
        }
    }
    missing.sort();
    missing
}

/// Whether the quota's scopes have this object in them.
fn in_scope(quota: &Value, kind: &str, object: &Value) -> bool {
    let scopes = quota["spec"]["scopes"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let plain = scopes.map(|scope| (scope, "Exists", Vec::new()));
    let selected =
        quota["spec"]["scopeSelector"]["matchExpressions"].as_array().into_iter().flatten().map(|expression| {
            let values = expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let text = |field: &str| expression[field].as_str().unwrap_or_default();
            (text("scopeName"), text("operator"), values)
        });
    let mut all = plain.chain(selected).peekable();
    if all.peek().is_none() {
        return true;
    }
    // Every scope there is speaks of pods.
    kind == "pods" && all.all(|(scope, operator, values)| pod_in_scope(object, scope, operator, &values))
}

fn pod_in_scope(pod: &Value, scope: &str, operator: &str, values: &[&str]) -> bool {
    let class = crate::registry::qos_class(&pod["spec"]);
    let terminates = pod["spec"]["activeDeadlineSeconds"].is_i64();
    match scope {
        "BestEffort" => class == "BestEffort",
        "NotBestEffort" => class != "BestEffort",
        "Terminating" => terminates,
        "NotTerminating" => !terminates,
        "PriorityClass" => {
            let name = pod.str_at("spec.priorityClassName");
            match operator {
                "In" => values.contains(&name),
                "NotIn" => !values.contains(&name),
                "DoesNotExist" => name.is_empty(),
                _ => !name.is_empty(),
            }
        }
        "CrossNamespacePodAffinity" => crosses_namespaces(&pod["spec"]["affinity"]),
        _ => false,
    }
}

fn crosses_namespaces(affinity: &Value) -> bool {
    let crosses = |term: &Value| {
        term["namespaces"].as_array().is_some_and(|list| !list.is_empty())
            || term["namespaceSelector"].is_object()
                && LabelSelector::from_value(Some(&term["namespaceSelector"])).is_ok()
    };
    ["podAffinity", "podAntiAffinity"].into_iter().any(|kind| {
        let required =
            affinity[kind]["requiredDuringSchedulingIgnoredDuringExecution"].as_array().into_iter().flatten();
        let preferred =
            affinity[kind]["preferredDuringSchedulingIgnoredDuringExecution"].as_array().into_iter().flatten();
        required.chain(preferred.map(|weighted| &weighted["podAffinityTerm"])).any(crosses)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_count_what_they_ask_for() {
        let pod = json!({"spec": {"containers": [
            {"name": "a", "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "1"}}}, {"name": "b"}]}});
        let usage = usage("pods", &pod);
        assert_eq!((usage["cpu"], usage["requests.cpu"], usage["limits.cpu"]), (ONE / 10, ONE / 10, ONE));
        assert_eq!((usage["pods"], usage["count/pods"]), (ONE, ONE));
        let hard = amounts(&json!({"cpu": "1", "limits.memory": "1Gi", "pods": "3"}));
        assert_eq!(unspecified(&hard, &pod), ["cpu for: b", "limits.memory for: a,b"]);
    }

    #[test]
    fn scopes_select_pods() {
        let quota = json!({"spec": {"scopes": ["BestEffort"]}});
        let plain = json!({"spec": {"containers": [{"name": "a"}]}});
        assert!(in_scope(&quota, "pods", &plain) && !in_scope(&quota, "services", &plain));
        assert!(!in_scope(&json!({"spec": {"scopes": ["Terminating"]}}), "pods", &plain));
    }
}
