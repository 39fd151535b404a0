//! What a ResourceQuota counts: how much one object takes, and which objects are in a quota's scope.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::object::ObjectExt;
use crate::qos::qos_class;
use crate::quantity::Quantity;
use crate::selector::LabelSelector;

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, Quantity>;

/// The kind, as stored, whose objects a quota's resource name counts; `None` for names that nothing is counted for.
pub fn counted_kind(name: &str) -> Option<&str> {
    if let Some(kind) = name.strip_prefix("count/") {
        return Some(kind);
    }
    match name {
        "configmaps"
        | "secrets"
        | "replicationcontrollers"
        | "resourcequotas"
        | "services"
        | "persistentvolumeclaims"
        | "pods" => Some(name),
        "services.nodeports" | "services.loadbalancers" => Some("services"),
        "requests.storage" => Some("persistentvolumeclaims"),
        _ if name.contains(".storageclass.storage.k8s.io/") => Some("persistentvolumeclaims"),
        "cpu" | "memory" | "ephemeral-storage" => Some("pods"),
        _ if name.starts_with("requests.") || name.starts_with("limits.") => Some("pods"),
        _ => None,
    }
}

/// A list of amounts as objects write it; what is no quantity is left out.
pub fn amounts(list: &Value) -> Amounts {
    let entries = list.as_object().into_iter().flatten();
    entries.filter_map(|(name, value)| Some((name.clone(), read(value)?))).collect()
}

fn read(value: &Value) -> Option<Quantity> {
    Quantity::parse(value.as_str()?).ok()
}

/// Pods that are over take nothing.
pub fn is_over(kind: &str, object: &Value) -> bool {
    kind == "pods" && matches!(object.str_at("status.phase"), "Succeeded" | "Failed")
}

/// What one object takes of everything that quotas can bound. `kind` is the name it is stored under: `deployments.apps`.
pub fn usage(kind: &str, object: &Value) -> Amounts {
    let one = Quantity::from_milli(1000);
    let mut total = Amounts::new();
    let mut add = |name: String, amount: Quantity| *total.entry(name).or_default() += amount;
    add(format!("count/{kind}"), one);
    match kind {
        "pods" => {
            add("pods".to_owned(), one);
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
            add("services".to_owned(), one);
            let ports = object["spec"]["ports"].as_array().map_or(0, Vec::len);
            let ports = one.times(i64::try_from(ports).unwrap_or(0));
            match object.str_at("spec.type") {
                "NodePort" => add("services.nodeports".to_owned(), ports),
                "LoadBalancer" => {
                    add("services.loadbalancers".to_owned(), one);
                    if object["spec"]["allocateLoadBalancerNodePorts"] != false {
                        add("services.nodeports".to_owned(), ports);
                    }
                }
                _ => {}
            }
        }
        "persistentvolumeclaims" => {
            add("persistentvolumeclaims".to_owned(), one);
            let storage = read(&object["spec"]["resources"]["requests"]["storage"]).unwrap_or(Quantity::ZERO);
            add("requests.storage".to_owned(), storage);
            let class = object.str_at("spec.storageClassName");
            if !class.is_empty() {
                add(format!("{class}.storageclass.storage.k8s.io/persistentvolumeclaims"), one);
                add(format!("{class}.storageclass.storage.k8s.io/requests.storage"), storage);
            }
        }
        "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas" => add(kind.to_owned(), one),
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

/// Whether the quota's scopes have this object in them.
pub fn in_scope(quota: &Value, kind: &str, object: &Value) -> bool {
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
    let class = qos_class(&pod["spec"]);
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
    fn names_tell_what_they_count() {
        for (name, kind) in [
            ("count/deployments.apps", Some("deployments.apps")),
            ("requests.storage", Some("persistentvolumeclaims")),
            ("gold.storageclass.storage.k8s.io/requests.storage", Some("persistentvolumeclaims")),
            ("requests.example.com/dongle", Some("pods")),
            ("services.nodeports", Some("services")),
            ("memory", Some("pods")),
            ("bananas", None),
        ] {
            assert_eq!(counted_kind(name), kind, "{name}");
        }
    }

    #[test]
    fn pods_count_what_they_ask_for() {
        let pod = json!({"spec": {"containers": [
            {"name": "a", "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "1"}}}, {"name": "b"}]}});
        let usage = usage("pods", &pod);
        let text = |name: &str| usage[name].to_string();
        assert_eq!([text("cpu"), text("requests.cpu"), text("limits.cpu")], ["100m", "100m", "1"]);
        assert_eq!([text("pods"), text("count/pods")], ["1", "1"]);
    }

    #[test]
    fn amounts_keep_the_form_they_were_written_in() {
        let container = json!({"resources": {"requests": {"memory": "252Mi"}}});
        let pod = json!({"spec": {"containers": [container, container]}});
        assert_eq!(usage("pods", &pod)["requests.memory"].to_string(), "504Mi");
    }

    #[test]
    fn scopes_select_pods() {
        let quota = json!({"spec": {"scopes": ["BestEffort"]}});
        let plain = json!({"spec": {"containers": [{"name": "a"}]}});
        assert!(in_scope(&quota, "pods", &plain) && !in_scope(&quota, "services", &plain));
        assert!(!in_scope(&json!({"spec": {"scopes": ["Terminating"]}}), "pods", &plain));
    }
}
