//! Services and what leads to them.

use serde_json::Value;

use super::{child, fill, fill_zero, get, is_zero, items, made};

const AFFINITY_SECONDS: i64 = 10800;

/// Addresses, node ports and IP families are allocated elsewhere.
pub fn service(service: &mut Value) {
    let Some(spec) = made(service, "spec") else { return };
    fill_zero(spec, "sessionAffinity", "None");
    match get(spec, "sessionAffinity").as_str() {
        Some("None") => {
            spec.as_object_mut().and_then(|spec| spec.remove("sessionAffinityConfig"));
        }
        Some("ClientIP") => {
            if let Some(client) = made(spec, "sessionAffinityConfig").and_then(|config| made(config, "clientIP")) {
                fill(client, "timeoutSeconds", AFFINITY_SECONDS);
            }
        }
        _ => (),
    }
    fill_zero(spec, "type", "ClusterIP");
    for port in items(spec, "ports") {
        fill_zero(port, "protocol", "TCP");
        let number = get(port, "port").clone();
        fill_zero(port, "targetPort", number);
    }
    let kind = get(spec, "type").as_str().unwrap_or_default().to_owned();
    let external = matches!(kind.as_str(), "NodePort" | "LoadBalancer")
        || (kind == "ClusterIP" && !is_zero(get(spec, "externalIPs")));
    if external {
        fill_zero(spec, "externalTrafficPolicy", "Cluster");
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer" | "ClusterIP") {
        fill(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        fill(spec, "allocateLoadBalancerNodePorts", true);
        if let Some(status) = child(service, "status").and_then(|status| child(status, "loadBalancer")) {
            for ingress in items(status, "ingress") {
                if !is_zero(get(ingress, "ip")) {
                    fill(ingress, "ipMode", "VIP");
                }
            }
        }
    }
}

pub fn endpoints(endpoints: &mut Value) {
    for subset in items(endpoints, "subsets") {
        for port in items(subset, "ports") {
            fill_zero(port, "protocol", "TCP");
        }
    }
}

pub fn endpoint_slice(slice: &mut Value) {
    for port in items(slice, "ports") {
        fill(port, "name", "");
        fill(port, "protocol", "TCP");
    }
}

pub fn ingress_class(class: &mut Value) {
    if let Some(parameters) = child(class, "spec").and_then(|spec| child(spec, "parameters")) {
        fill(parameters, "scope", "Cluster");
    }
}

pub fn network_policy(policy: &mut Value) {
    let Some(spec) = made(policy, "spec") else { return };
    for rules in ["ingress", "egress"] {
        for port in items(spec, rules).flat_map(|rule| items(rule, "ports")) {
            fill(port, "protocol", "TCP");
        }
    }
    if is_zero(get(spec, "policyTypes")) {
        let egress = !is_zero(get(spec, "egress"));
        let types = if egress { &["Ingress", "Egress"][..] } else { &["Ingress"][..] };
        spec["policyTypes"] = Value::from(types);
    }
}
