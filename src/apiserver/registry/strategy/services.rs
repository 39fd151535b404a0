//! Services: cluster addresses and node ports, reserved in the same transaction that writes the Service.
//!
//! An address is reserved by its `IPAddress` object, as upstream does; a node port by a key of our own. Either is there
//! exactly as long as the Service that has it, on every server, whatever crashes in between.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use mussel_api::field::{FieldError, FieldErrors, Path};
use mussel_api::object::{self, ObjectExt};
use mussel_store::{Precondition, Txn};
use rand::Rng;
use serde_json::{Value, json};

use super::Rules;
use crate::config::Ipv4Cidr;
use crate::encryption::Snapshot;
use crate::registry::key;
use crate::registry::write::{Write, now, set};
use crate::status::Status;

const IP_ADDRESSES: &str = "ipaddresses.networking.k8s.io";

/// Random tries before the whole range is searched.
const TRIES: usize = 16;

pub struct Services;

impl Rules for Services {
    fn prepare_create(&self, _write: &Write<'_>, new: &mut Value) -> Result<(), Status> {
        new["status"] = json!({"loadBalancer": {}});
        settle_families(new);
        settle_addresses(new);
        Ok(())
    }

    fn prepare_update(&self, _write: &Write<'_>, new: &mut Value, old: &Value) -> Result<(), Status> {
        keep_allocated(new, old);
        drop_unused(new, old);
        settle_families(new);
        settle_addresses(new);
        Ok(())
    }

    fn validate(&self, write: &Write<'_>, new: &Value, _old: Option<&Value>) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let spec = Path::new("spec");
        if is_external_name(new) || is_headless(new) && !has_selector(new) {
            return errors;
        }
        if new.str_at("spec.ipFamilyPolicy") == "RequireDualStack" {
            let path = spec.child("ipFamilyPolicy");
            let detail = "this cluster is not configured for dual-stack services";
            errors.push(FieldError::invalid(&path, "RequireDualStack", detail));
        }
        for (index, family) in list(&new["spec"]["ipFamilies"]).enumerate() {
            if family != "IPv4" {
                let path = spec.child("ipFamilies").index(index);
                errors.push(FieldError::invalid(&path, family, "not configured on this cluster"));
            }
        }
        let range = &write.call.context.config.node_port_range;
        for (index, port) in new["spec"]["ports"].as_array().into_iter().flatten().enumerate() {
            let Some(node_port) = port["nodePort"].as_i64().filter(|port| *port != 0) else { continue };
            if !u16::try_from(node_port).is_ok_and(|port| range.contains(&port)) {
                let path = spec.child("ports").index(index).child("nodePort");
                let detail = format!(
                    "provided port is not in the valid range. The range of valid ports is {}-{}",
                    range.start(),
                    range.end()
                );
                errors.push(FieldError::invalid(&path, node_port, detail));
            }
        }
        errors
    }

    fn reserve(&self, write: &Write<'_>, new: &mut Value, old: Option<&Value>, txn: &mut Txn) -> Result<(), Status> {
        reserve_address(write, new, old, txn)?;
        reserve_ports(write, new, old, txn)
    }

    fn release(&self, old: &Value, txn: &mut Txn) {
        txn.deletes.extend(address(old).map(|address| key::object(IP_ADDRESSES, "", &address.to_string())));
        txn.deletes.extend(node_ports(old).into_iter().map(key::node_port));
    }

    fn returns_deleted(&self) -> bool {
        true
    }
}

fn list(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn is_external_name(service: &Value) -> bool {
    service.str_at("spec.type") == "ExternalName"
}

fn is_headless(service: &Value) -> bool {
    service.str_at("spec.clusterIP") == "None"
}

fn has_selector(service: &Value) -> bool {
    service["spec"]["selector"].as_object().is_some_and(|selector| !selector.is_empty())
}

fn needs_node_ports(service: &Value) -> bool {
    match service.str_at("spec.type") {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

/// May have node ports, even if none are allocated for it.
fn keeps_node_ports(service: &Value) -> bool {
    matches!(service.str_at("spec.type"), "NodePort" | "LoadBalancer")
}

fn needs_health_port(service: &Value) -> bool {
    service.str_at("spec.type") == "LoadBalancer" && service.str_at("spec.externalTrafficPolicy") == "Local"
}

/// The cluster address it has.
fn address(service: &Value) -> Option<Ipv4Addr> {
    if is_external_name(service) { None } else { service.str_at("spec.clusterIP").parse().ok() }
}

fn node_ports(service: &Value) -> BTreeSet<u16> {
    if !keeps_node_ports(service) {
        return BTreeSet::new();
    }
    let ports = service["spec"]["ports"].as_array().into_iter().flatten().map(|port| &port["nodePort"]);
    let health = &service["spec"]["healthCheckNodePort"];
    let all = ports.chain(std::iter::once(health)).filter_map(Value::as_u64);
    all.filter_map(|port| u16::try_from(port).ok()).filter(|port| *port != 0).collect()
}

/// This cluster has IPv4. A headless Service without a selector may hold endpoints of any family.
fn settle_families(service: &mut Value) {
    let spec = &mut service["spec"];
    if !spec.is_object() {
        return;
    }
    if is_external_name_spec(spec) {
        for field in ["ipFamilies", "ipFamilyPolicy", "clusterIP", "clusterIPs"] {
            set(spec, field, None);
        }
        return;
    }
    let selectorless = spec["clusterIP"] == "None" && spec["selector"].as_object().is_none_or(|s| s.is_empty());
    let given: Vec<String> = list(&spec["ipFamilies"]).map(str::to_owned).collect();
    if selectorless {
        if spec["ipFamilyPolicy"].is_null() {
            spec["ipFamilyPolicy"] = if given.len() == 1 { "SingleStack" } else { "RequireDualStack" }.into();
        }
        if spec["ipFamilyPolicy"] != "SingleStack" && given.len() < 2 {
            let first = given.first().map_or("IPv4", String::as_str);
            let second = if first == "IPv4" { "IPv6" } else { "IPv4" };
            spec["ipFamilies"] = json!([first, second]);
        } else if given.is_empty() {
            spec["ipFamilies"] = json!(["IPv4"]);
        }
        return;
    }
    if spec["ipFamilyPolicy"].is_null() {
        spec["ipFamilyPolicy"] = "SingleStack".into();
    }
    if given.is_empty() {
        spec["ipFamilies"] = json!(["IPv4"]);
    }
}

fn is_external_name_spec(spec: &Value) -> bool {
    spec["type"] == "ExternalName"
}

/// `clusterIP` and `clusterIPs` say the same.
fn settle_addresses(service: &mut Value) {
    let spec = &mut service["spec"];
    if !spec.is_object() || is_external_name_spec(spec) {
        return;
    }
    let first = list(&spec["clusterIPs"]).next().map(str::to_owned);
    let single = spec["clusterIP"].as_str().filter(|address| !address.is_empty()).map(str::to_owned);
    match (single, first) {
        (Some(single), None) => spec["clusterIPs"] = json!([single]),
        (None, Some(first)) => spec["clusterIP"] = first.into(),
        _ => {}
    }
}

/// An update that leaves allocated values out keeps them.
fn keep_allocated(new: &mut Value, old: &Value) {
    if !is_external_name(old) && !is_external_name(new) {
        let absent = |value: &Value| value.as_str().is_none_or(str::is_empty);
        let no_list = new["spec"]["clusterIPs"].as_array().is_none_or(Vec::is_empty);
        if absent(&new["spec"]["clusterIP"]) && no_list {
            for field in ["clusterIP", "clusterIPs"] {
                set(&mut new["spec"], field, old["spec"].get(field));
            }
        } else if no_list && new["spec"]["clusterIP"] == old["spec"]["clusterIP"] {
            set(&mut new["spec"], "clusterIPs", old["spec"].get("clusterIPs"));
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if new["spec"][field].is_null() {
                set(&mut new["spec"], field, old["spec"].get(field));
            }
        }
    }
    if keeps_node_ports(old) && keeps_node_ports(new) {
        let same = |a: &Value, b: &Value| a["port"] == b["port"] && a["protocol"] == b["protocol"];
        let before = old["spec"]["ports"].as_array().cloned().unwrap_or_default();
        let mut used: BTreeSet<i64> = new["spec"]["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|port| port["nodePort"].as_i64())
            .collect();
        for port in new["spec"].get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            if port["nodePort"].as_i64().unwrap_or(0) != 0 {
                continue;
            }
            let known = before.iter().find(|known| same(known, port)).and_then(|known| known["nodePort"].as_i64());
            if let Some(known) = known.filter(|known| *known != 0 && used.insert(*known)) {
                port["nodePort"] = known.into();
            }
        }
    }
    if needs_health_port(old) && needs_health_port(new) && new["spec"]["healthCheckNodePort"].as_i64().unwrap_or(0) == 0
    {
        set(&mut new["spec"], "healthCheckNodePort", old["spec"].get("healthCheckNodePort"));
    }
}

/// A change of type takes away what only the old type had, where the client left it as it was.
fn drop_unused(new: &mut Value, old: &Value) {
    if keeps_node_ports(old) && !keeps_node_ports(new) {
        let before: BTreeSet<u16> = node_ports(old);
        for port in new["spec"].get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            let known =
                port["nodePort"].as_u64().and_then(|p| u16::try_from(p).ok()).is_some_and(|p| before.contains(&p));
            if known {
                set(port, "nodePort", None);
            }
        }
        for field in ["externalTrafficPolicy", "allocateLoadBalancerNodePorts"] {
            if new["spec"][field] == old["spec"][field] {
                set(&mut new["spec"], field, None);
            }
        }
    }
    if needs_health_port(old)
        && !needs_health_port(new)
        && new["spec"]["healthCheckNodePort"] == old["spec"]["healthCheckNodePort"]
    {
        set(&mut new["spec"], "healthCheckNodePort", None);
    }
    if old.str_at("spec.type") == "LoadBalancer" && new.str_at("spec.type") != "LoadBalancer" {
        new["status"] = json!({"loadBalancer": {}});
        if new["spec"]["allocateLoadBalancerNodePorts"] == old["spec"]["allocateLoadBalancerNodePorts"] {
            set(&mut new["spec"], "allocateLoadBalancerNodePorts", None);
        }
        if new["spec"]["loadBalancerClass"] == old["spec"]["loadBalancerClass"] {
            set(&mut new["spec"], "loadBalancerClass", None);
        }
    }
}

fn reserve_address(write: &Write<'_>, new: &mut Value, old: Option<&Value>, txn: &mut Txn) -> Result<(), Status> {
    let before = old.and_then(address);
    if !is_external_name(new) && !is_headless(new) {
        let snapshot = write.view.snapshot();
        let cidr = write.call.context.config.service_cidr;
        let wanted = new.str_at("spec.clusterIP").to_owned();
        let taken = |address: Ipv4Addr| snapshot.get(&key::object(IP_ADDRESSES, "", &address.to_string())).is_some();
        let address = if wanted.is_empty() {
            free_address(cidr, taken)
                .ok_or_else(|| Status::internal("failed to allocate a serviceIP: range is full"))?
        } else {
            let refuse = |why: String| {
                let path = Path::new("spec").child("clusterIPs");
                let detail = format!("failed to allocate IP {wanted}: {why}");
                let error = FieldError::invalid(&path, json!([wanted]), detail);
                write.call.invalid(new.name(), &vec![error])
            };
            let address: Ipv4Addr = wanted.parse().map_err(|_| refuse("not an IPv4 address".to_owned()))?;
            if Some(address) != before {
                let offset = cidr.offset(address).map(u64::from);
                if !offset.is_some_and(|offset| offset > 0 && offset + 1 < cidr.size()) {
                    return Err(refuse(format!(
                        "the provided IP ({wanted}) is not in the valid range. The range of valid IPs is {cidr}"
                    )));
                }
                if taken(address) {
                    return Err(refuse("provided IP is already allocated".to_owned()));
                }
            }
            address
        };
        let text = address.to_string();
        if Some(address) != before {
            let key = key::object(IP_ADDRESSES, "", &text);
            txn.preconditions.push(Precondition::Absent(key.clone()));
            txn.puts.push((key, object::encode(&ip_address(&text, new))));
        }
        new["spec"]["clusterIP"] = text.as_str().into();
        new["spec"]["clusterIPs"] = json!([text]);
    }
    let after = address(new);
    if let Some(before) = before.filter(|before| Some(*before) != after) {
        txn.deletes.push(key::object(IP_ADDRESSES, "", &before.to_string()));
    }
    Ok(())
}

/// The object that reserves an address.
pub fn ip_address(address: &str, service: &Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {"name": address, "uid": uuid::Uuid::new_v4().to_string(), "creationTimestamp": now(), "generation": 1,
            "labels": {"ipaddress.kubernetes.io/ip-family": "IPv4",
                "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}},
        "spec": {"parentRef": {"group": "", "resource": "services", "namespace": service.namespace(), "name": service.name()}}})
}

/// A random address; the lowest ones are left to those who ask for a particular one, as long as others are free.
fn free_address(cidr: Ipv4Cidr, taken: impl Fn(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
    let last = u32::try_from(cidr.size().checked_sub(2)?).ok()?;
    let band = if last < 16 { 0 } else { (last / 16).clamp(16, 256) };
    let mut random = rand::rng();
    if band < last {
        for _ in 0..TRIES {
            let address = cidr.nth(random.random_range(band + 1..=last))?;
            if !taken(address) {
                return Some(address);
            }
        }
    }
    let upper_first = (band + 1..=last).chain(1..=band.min(last));
    upper_first.filter_map(|offset| cidr.nth(offset)).find(|address| !taken(*address))
}

fn reserve_ports(write: &Write<'_>, new: &mut Value, old: Option<&Value>, txn: &mut Txn) -> Result<(), Status> {
    let before = old.map(node_ports).unwrap_or_default();
    let snapshot = write.view.snapshot();
    let owner = key::object("services", new.namespace(), new.name());
    let mut mine: BTreeSet<u16> = node_ports(new);
    for (index, port) in new["spec"]["ports"].as_array().into_iter().flatten().enumerate() {
        let given = port["nodePort"].as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
        let Some(given) = given.filter(|given| keeps_node_ports(new) && !before.contains(given)) else { continue };
        if snapshot.get(&key::node_port(given)).is_some() {
            let path = Path::new("spec").child("ports").index(index).child("nodePort");
            let error = FieldError::invalid(&path, given, "provided port is already allocated");
            return Err(write.call.invalid(new.name(), &vec![error]));
        }
    }
    if needs_node_ports(new) {
        let range = write.call.context.config.node_port_range.clone();
        let mut by_port: Vec<(i64, String, u16)> = Vec::new();
        for port in new["spec"].get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            let (number, protocol) =
                (port["port"].as_i64().unwrap_or(0), port["protocol"].as_str().unwrap_or("TCP").to_owned());
            let given = port["nodePort"].as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
            let node_port = match given {
                Some(given) => given,
                None => {
                    // The same port over another protocol shares the number.
                    let shared = by_port
                        .iter()
                        .find(|(known, other, _)| *known == number && *other != protocol)
                        .map(|(_, _, node_port)| *node_port);
                    let node_port = shared
                        .or_else(|| free_port(&range, snapshot, &mine))
                        .ok_or_else(|| Status::internal("failed to allocate a nodePort: range is full"))?;
                    port["nodePort"] = node_port.into();
                    node_port
                }
            };
            mine.insert(node_port);
            by_port.push((number, protocol, node_port));
        }
    }
    if needs_health_port(new) && new["spec"]["healthCheckNodePort"].as_i64().unwrap_or(0) == 0 {
        let range = &write.call.context.config.node_port_range;
        let health = free_port(range, snapshot, &mine)
            .ok_or_else(|| Status::internal("failed to allocate a HealthCheck NodePort: range is full"))?;
        new["spec"]["healthCheckNodePort"] = health.into();
        mine.insert(health);
    }
    for port in mine.difference(&before) {
        let key = key::node_port(*port);
        txn.preconditions.push(Precondition::Absent(key.clone()));
        txn.puts.push((key, owner.clone()));
    }
    for port in before.difference(&mine) {
        txn.deletes.push(key::node_port(*port));
    }
    Ok(())
}

fn free_port(range: &std::ops::RangeInclusive<u16>, snapshot: &Snapshot, mine: &BTreeSet<u16>) -> Option<u16> {
    let is_free = |port: u16| !mine.contains(&port) && snapshot.get(&key::node_port(port)).is_none();
    let mut random = rand::rng();
    (0..TRIES)
        .map(|_| random.random_range(range.clone()))
        .find(|port| is_free(*port))
        .or_else(|| range.clone().find(|port| is_free(*port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_low_band_is_used_last() {
        let cidr: Ipv4Cidr = "10.43.0.0/16".parse().unwrap();
        for _ in 0..50 {
            assert!(cidr.offset(free_address(cidr, |_| false).unwrap()).unwrap() > 256);
        }
        let low = free_address(cidr, |address| cidr.offset(address).unwrap() > 256).unwrap();
        assert_eq!(low, Ipv4Addr::new(10, 43, 0, 1));
        assert_eq!(free_address(cidr, |_| true), None);
    }

    #[test]
    fn updates_keep_what_was_allocated() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9"],
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30001}]}});
        let mut new = json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}, {"port": 81, "protocol": "TCP"}]}});
        keep_allocated(&mut new, &old);
        assert_eq!(new["spec"]["clusterIP"], "10.43.0.9");
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30001);
        assert!(new["spec"]["ports"][1]["nodePort"].is_null());
        let mut cluster_ip = old.clone();
        cluster_ip["spec"]["type"] = "ClusterIP".into();
        drop_unused(&mut cluster_ip, &old);
        assert!(cluster_ip["spec"]["ports"][0]["nodePort"].is_null());
    }
}
