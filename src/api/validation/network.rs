//! Ingresses, network policies, address ranges.

use std::net::IpAddr;

use serde_json::Value;

use super::container::port_or_name;
use super::cursor::Field;
use super::selector::label_selector;
use crate::field::{FieldError, FieldErrors};
use crate::names;

pub fn ingress_create(ingress: &Value) -> FieldErrors {
    let spec = Field::root(ingress).get("spec");
    let (default, rules) = (spec.get("defaultBackend"), spec.get("rules"));
    let mut errors = Vec::new();
    if rules.is_zero() && default.is_absent() {
        errors.push(spec.invalid("either `defaultBackend` or `rules` must be specified"));
    }
    if default.is_present() {
        errors.extend(backend(&default));
    }
    for rule in rules.items() {
        let host = rule.get("host");
        if !host.is_zero() {
            if host.text().parse::<IpAddr>().is_ok() {
                errors.push(host.invalid("must be a DNS name, not an IP address"));
            }
            errors.extend(host.each_invalid(hostname(host.text())));
        }
        let http = rule.get("http");
        if http.is_absent() {
            continue;
        }
        let paths = http.get("paths");
        if paths.is_zero() {
            errors.push(paths.required(""));
        }
        for path in paths.items() {
            errors.extend(http_path(&path));
        }
    }
    for tls in spec.list("tls") {
        for host in tls.list("hosts") {
            errors.extend(host.each_invalid(hostname(host.text())));
        }
    }
    let class = spec.get("ingressClassName");
    if class.is_present() {
        errors.extend(class.each_invalid(names::is_dns1123_subdomain(class.text())));
    }
    errors
}

fn hostname(host: &str) -> Vec<String> {
    if host.contains('*') { names::is_wildcard_dns1123_subdomain(host) } else { names::is_dns1123_subdomain(host) }
}

fn http_path(entry: &Field<'_>) -> FieldErrors {
    let (path, kind) = (entry.get("path"), entry.get("pathType"));
    let mut errors = Vec::new();
    match kind.text() {
        "Exact" | "Prefix" => {
            if !path.text().starts_with('/') {
                errors.push(FieldError::invalid(&path.path, path.text(), "must be an absolute path"));
            }
            for bad in ["//", "/./", "/../", "%2f", "%2F"] {
                if path.text().contains(bad) {
                    errors.push(path.invalid(format!("must not contain '{bad}'")));
                }
            }
            for bad in ["/..", "/."] {
                if path.text().ends_with(bad) {
                    errors.push(path.invalid(format!("cannot end with '{bad}'")));
                }
            }
        }
        "ImplementationSpecific" => {
            if !path.is_zero() && !path.text().starts_with('/') {
                errors.push(path.invalid("must be an absolute path"));
            }
        }
        "" => errors.push(kind.required("pathType must be specified")),
        _ => errors.push(kind.not_supported(&["Exact", "ImplementationSpecific", "Prefix"])),
    }
    errors.extend(backend(&entry.get("backend")));
    errors
}

fn backend(backend: &Field<'_>) -> FieldErrors {
    let (resource, service) = (backend.get("resource"), backend.get("service"));
    match (resource.is_present(), service.is_present()) {
        (true, true) => vec![FieldError::invalid(&backend.path, "", "cannot set both resource and service backends")],
        (false, false) => vec![backend.required("resource or service backend is required")],
        (true, false) => {
            let mut errors = resource.get("name").not_empty();
            errors.extend(resource.get("kind").not_empty());
            errors
        }
        (false, true) => {
            let (name, port) = (service.get("name"), service.get("port"));
            let mut errors = Vec::new();
            if name.is_zero() {
                errors.push(name.required(""));
            } else {
                errors.extend(name.each_invalid(names::is_dns1035_label(name.text())));
            }
            match (port.get("name").is_zero(), port.get("number").is_zero()) {
                (true, true) => errors.push(port.required("port name or number is required")),
                (false, false) => {
                    errors.push(FieldError::invalid(&backend.path, "", "cannot set both port name & port number"));
                }
                (false, true) => {
                    let name = port.get("name");
                    errors.extend(name.each_invalid(names::is_port_name(name.text())));
                }
                (true, false) => {
                    let number = port.get("number");
                    errors.extend(number.each_invalid(names::is_port_number(number.int().unwrap_or_default())));
                }
            }
            errors
        }
    }
}

pub fn ingress_update(new: &Value, _old: &Value) -> FieldErrors {
    ingress_create(new)
}

pub fn ingress_class_create(class: &Value) -> FieldErrors {
    let spec = Field::root(class).get("spec");
    let controller = spec.get("controller");
    let mut errors = Vec::new();
    if controller.is_zero() {
        errors.push(controller.required(""));
    } else if !controller.text().contains('/') {
        errors.push(controller.invalid("must be a domain-prefixed path (such as \"acme.io/foo\")"));
    }
    let parameters = spec.get("parameters");
    if parameters.is_present() {
        errors.extend(parameters.get("kind").not_empty());
        errors.extend(parameters.get("name").not_empty());
        let (scope, namespace) = (parameters.get("scope"), parameters.get("namespace"));
        errors.extend(scope.one_of(&["Cluster", "Namespace"]));
        match scope.text() {
            "Namespace" if namespace.is_zero() => {
                errors.push(namespace.required("`parameters.scope` is set to 'Namespace'"));
            }
            "Cluster" if !namespace.is_zero() => {
                errors.push(namespace.forbidden("`parameters.scope` is set to 'Cluster'"));
            }
            _ => (),
        }
    }
    errors
}

pub fn ingress_class_update(new: &Value, old: &Value) -> FieldErrors {
    let (spec, before) = (Field::root(new).get("spec"), Field::root(old).get("spec"));
    let mut errors = ingress_class_create(new);
    errors.extend(spec.get("controller").immutable(&before.get("controller")));
    errors
}

pub fn network_policy_create(policy: &Value) -> FieldErrors {
    let spec = Field::root(policy).get("spec");
    let mut errors = label_selector(&spec.get("podSelector"));
    for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
        for rule in spec.list(rules) {
            for port in rule.list("ports") {
                errors.extend(policy_port(&port));
            }
            for peer in rule.list(peers) {
                errors.extend(policy_peer(&peer));
            }
        }
    }
    let types = spec.get("policyTypes");
    if types.count() > 2 {
        errors.push(types.invalid("may not specify more than two policyTypes"));
        return errors;
    }
    for kind in types.items() {
        if !matches!(kind.text(), "Ingress" | "Egress") {
            errors.push(kind.not_supported(&["Egress", "Ingress"]));
        }
    }
    errors
}

fn policy_port(port: &Field<'_>) -> FieldErrors {
    let mut errors = port.get("protocol").none_or_one_of(&["SCTP", "TCP", "UDP"]);
    let (number, end) = (port.get("port"), port.get("endPort"));
    if number.is_present() {
        errors.extend(port_or_name(&number));
        if let Some(last) = end.int() {
            match number.int() {
                Some(first) if last < first => {
                    errors.push(end.invalid("must be greater than or equal to `port`"));
                }
                Some(_) => errors.extend(end.each_invalid(names::is_port_number(last))),
                None => errors.push(end.invalid("may not be specified when `port` is non-numeric")),
            }
        }
    } else if end.is_present() {
        errors.push(end.invalid("may not be specified when `port` is not specified"));
    }
    errors
}

fn policy_peer(peer: &Field<'_>) -> FieldErrors {
    let (pods, namespaces, block) = (peer.get("podSelector"), peer.get("namespaceSelector"), peer.get("ipBlock"));
    let mut errors = label_selector(&pods);
    errors.extend(label_selector(&namespaces));
    let selectors = pods.is_present() || namespaces.is_present();
    if !selectors && block.is_absent() {
        errors.push(peer.required("must specify a peer"));
    } else if selectors && block.is_present() {
        errors.push(peer.forbidden("may not specify both ipBlock and another peer"));
    }
    if block.is_present() {
        errors.extend(ip_block(&block));
    }
    errors
}

fn ip_block(block: &Field<'_>) -> FieldErrors {
    let cidr = block.get("cidr");
    if cidr.is_zero() {
        return vec![cidr.required("")];
    }
    let mut errors = cidr.each_invalid(names::is_cidr(cidr.text()));
    let Some((outer, length)) = names::parse_cidr(cidr.text()) else { return errors };
    for except in block.list("except") {
        let Some((inner, inner_length)) = names::parse_cidr(except.text()) else {
            errors.extend(except.each_invalid(names::is_cidr(except.text())));
            continue;
        };
        if inner_length <= length || !within(outer, length, inner) {
            errors.push(except.invalid("must be a strict subset of `cidr`"));
        }
    }
    errors
}

fn within(outer: IpAddr, length: u8, inner: IpAddr) -> bool {
    let shift = |bits: u32| bits.saturating_sub(u32::from(length));
    match (outer, inner) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).checked_shr(shift(32)).unwrap_or(0) == 0,
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).checked_shr(shift(128)).unwrap_or(0) == 0,
        _ => false,
    }
}

pub fn network_policy_update(new: &Value, _old: &Value) -> FieldErrors {
    network_policy_create(new)
}

pub fn service_cidr_create(range: &Value) -> FieldErrors {
    let cidrs = Field::root(range).get("spec").get("cidrs");
    match cidrs.count() {
        0 => vec![cidrs.required("at least one CIDR required")],
        1 | 2 => cidrs.items().iter().flat_map(|cidr| cidr.each_invalid(names::is_cidr(cidr.text()))).collect(),
        _ => vec![cidrs.invalid("may only hold up to 2 values")],
    }
}

pub fn service_cidr_update(new: &Value, old: &Value) -> FieldErrors {
    Field::root(new).get("spec").get("cidrs").immutable(&Field::root(old).get("spec").get("cidrs"))
}

pub fn ip_address_create(address: &Value) -> FieldErrors {
    let root = Field::root(address);
    let name = root.get("metadata").get("name");
    let mut errors = name.each_invalid(names::is_ip(name.text()));
    let parent = root.get("spec").get("parentRef");
    if parent.is_absent() {
        errors.push(parent.required(""));
    } else {
        errors.extend(parent.get("resource").not_empty());
        errors.extend(parent.get("name").not_empty());
    }
    errors
}

pub fn ip_address_update(new: &Value, old: &Value) -> FieldErrors {
    Field::root(new).get("spec").get("parentRef").immutable(&Field::root(old).get("spec").get("parentRef"))
}
