//! Services, endpoints and their slices.

use std::collections::HashSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::container::port_or_name;
use super::cursor::{Field, too_many};
use super::meta::labels;
use crate::field::{FieldError, FieldErrors};
use crate::names;

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const AFFINITY_SECONDS_MAX: i64 = 86400;

/// Allocated addresses and node ports are checked by the allocators.
pub fn service_create(service: &Value) -> FieldErrors {
    let spec = Field::root(service).get("spec");
    let kind = spec.get("type");
    let ports = spec.get("ports");
    let address = spec.get("clusterIP");
    let headless = address.text() == "None";
    let mut errors = Vec::new();
    if ports.is_zero() && !headless && kind.text() != "ExternalName" {
        errors.push(ports.required(""));
    }
    match kind.text() {
        "LoadBalancer" | "NodePort" => {
            if kind.text() == "LoadBalancer" {
                for port in ports.items() {
                    let number = port.get("port");
                    if number.int() == Some(10250) {
                        let detail = "may not expose port 10250 externally since it is used by kubelet";
                        errors.push(FieldError::invalid(&port.path, 10250, detail));
                    }
                }
            }
            if headless {
                let path = spec.path.child("clusterIPs").index(0);
                let detail = format!("may not be set to 'None' for {} services", kind.text());
                errors.push(FieldError::invalid(&path, "None", detail));
            }
        }
        "ExternalName" => {
            let addresses = spec.get("clusterIPs");
            if !addresses.is_zero() || !address.is_zero() {
                errors.push(addresses.forbidden("may not be set for ExternalName services"));
            }
            for field in ["ipFamilies", "ipFamilyPolicy"] {
                if !spec.get(field).is_zero() {
                    errors.push(spec.get(field).forbidden("may not be set for ExternalName services"));
                }
            }
            let name = spec.get("externalName");
            let target = name.text().strip_suffix('.').unwrap_or(name.text());
            if target.is_empty() {
                errors.push(name.required(""));
            } else {
                errors.extend(name.each_invalid(names::is_dns1123_subdomain(target)));
            }
        }
        _ => (),
    }
    errors.extend(service_ports(&ports));
    errors.extend(labels(&spec.get("selector")));
    errors.extend(affinity(&spec));
    for ip in spec.list("externalIPs") {
        let messages = names::is_ip(ip.text());
        if messages.is_empty() {
            errors.extend(special_ip(&ip));
        }
        errors.extend(ip.each_invalid(messages));
    }
    errors.extend(kind.one_of(&["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]));
    if kind.text() == "ClusterIP" {
        for port in ports.items() {
            let node = port.get("nodePort");
            if !node.is_zero() {
                errors.push(node.forbidden("may not be used when `type` is 'ClusterIP'"));
            }
        }
    }
    errors.extend(repeated_ports(&ports));
    errors.extend(balancer(&spec));
    errors.extend(traffic(&spec));
    for (at, ip) in spec.list("clusterIPs").iter().enumerate() {
        if ip.text() != "None" || at > 0 {
            errors.extend(ip.each_invalid(names::is_ip(ip.text())));
        }
    }
    if spec.get("clusterIPs").is_zero() && !address.is_zero() && !headless {
        errors.extend(address.each_invalid(names::is_ip(address.text())));
    }
    for family in spec.list("ipFamilies") {
        errors.extend(family.one_of(&["IPv4", "IPv6"]));
    }
    errors.extend(spec.get("ipFamilyPolicy").none_or_one_of(&["SingleStack", "PreferDualStack", "RequireDualStack"]));
    errors
}

fn service_ports(ports: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    let mut taken = HashSet::new();
    for port in ports.items() {
        let name = port.get("name");
        if name.is_zero() {
            if ports.count() > 1 {
                errors.push(name.required(""));
            }
        } else {
            errors.extend(name.each_invalid(names::is_dns1123_label(name.text())));
            if !taken.insert(name.text()) {
                errors.push(name.duplicate());
            }
        }
        let number = port.get("port");
        let value = number.int().unwrap_or_default();
        errors.extend(names::is_port_number(value).into_iter().map(|m| FieldError::invalid(&number.path, value, m)));
        errors.extend(port.get("protocol").one_of(&PROTOCOLS));
        errors.extend(port_or_name(&port.get("targetPort")));
        let application = port.get("appProtocol");
        if application.is_present() {
            errors.extend(application.each_invalid(names::is_qualified_name(application.text())));
        }
        let node = port.get("nodePort");
        if !node.is_zero() {
            errors.extend(node.each_invalid(names::is_port_number(node.int().unwrap_or_default())));
        }
    }
    errors
}

fn repeated_ports(ports: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    let mut taken = HashSet::new();
    let mut nodes = HashSet::new();
    for port in ports.items() {
        let (protocol, number) = (port.get("protocol").text(), port.get("port").int().unwrap_or_default());
        if !taken.insert((protocol, number)) {
            let shown = json!({"protocol": protocol, "port": number, "targetPort": 0});
            errors.push(FieldError::duplicate(&port.path, shown));
        }
        let node = port.get("nodePort");
        if !node.is_zero() && !nodes.insert((protocol, node.int())) {
            let shown = json!({"protocol": protocol, "port": 0, "targetPort": 0, "nodePort": node.int()});
            errors.push(FieldError::duplicate(&node.path, shown));
        }
    }
    errors
}

fn affinity(spec: &Field<'_>) -> FieldErrors {
    let affinity = spec.get("sessionAffinity");
    let mut errors = affinity.one_of(&["ClientIP", "None"]);
    let config = spec.get("sessionAffinityConfig");
    match affinity.text() {
        "ClientIP" => {
            let seconds = config.get("clientIP").get("timeoutSeconds");
            match seconds.int() {
                None => errors.push(config.required("when session affinity type is ClientIP")),
                Some(number) if !(1..=AFFINITY_SECONDS_MAX).contains(&number) => {
                    errors.push(seconds.invalid(format!("must be greater than 0 and less than {AFFINITY_SECONDS_MAX}")))
                }
                Some(_) => (),
            }
        }
        "None" if config.is_present() => {
            errors.push(config.forbidden("must not be set when session affinity is None"));
        }
        _ => (),
    }
    errors
}

fn balancer(spec: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    let is_balancer = spec.get("type").text() == "LoadBalancer";
    let ranges = spec.get("loadBalancerSourceRanges");
    if !ranges.is_zero() && !is_balancer {
        errors.push(ranges.forbidden("may only be used when `type` is 'LoadBalancer'"));
    }
    for range in ranges.items() {
        errors.extend(range.each_invalid(names::is_cidr(range.text().trim())));
    }
    let allocate = spec.get("allocateLoadBalancerNodePorts");
    if is_balancer && allocate.is_absent() {
        errors.push(allocate.required(""));
    }
    for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
        let field = spec.get(field);
        if field.is_present() && !is_balancer {
            errors.push(field.forbidden("may only be used when `type` is 'LoadBalancer'"));
        }
    }
    let class = spec.get("loadBalancerClass");
    if class.is_present() {
        errors.extend(class.each_invalid(names::is_qualified_name(class.text())));
    }
    errors
}

fn traffic(spec: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    let kind = spec.get("type").text();
    let external =
        matches!(kind, "LoadBalancer" | "NodePort") || kind == "ClusterIP" && !spec.get("externalIPs").is_zero();
    let policy = spec.get("externalTrafficPolicy");
    if external {
        errors.extend(policy.one_of(&["Cluster", "Local"]));
    } else if !policy.is_zero() {
        errors.push(policy.invalid("may only be set for externally-accessible services"));
    }
    let check = spec.get("healthCheckNodePort");
    let checked = kind == "LoadBalancer" && policy.text() == "Local";
    if !check.is_zero() && !checked {
        errors.push(
            check.invalid("may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"),
        );
    }
    let internal = spec.get("internalTrafficPolicy");
    if kind != "ExternalName" && internal.is_absent() {
        errors.push(internal.required(""));
    }
    errors.extend(internal.none_or_one_of(&["Cluster", "Local"]));
    errors.extend(spec.get("trafficDistribution").none_or_one_of(&["PreferClose", "PreferSameNode", "PreferSameZone"]));
    errors
}

fn special_ip(ip: &Field<'_>) -> FieldErrors {
    let Ok(address) = ip.text().parse::<IpAddr>() else { return Vec::new() };
    let link_local = |v4: bool, multicast: bool| match (v4, multicast) {
        (_, false) => "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
        (_, true) => "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
    };
    let (unicast, multicast) = match address {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.segments()[0] & 0xffc0 == 0xfe80, v6.segments()[0] & 0xff0f == 0xff02),
    };
    let mut errors = Vec::new();
    if address.is_unspecified() {
        errors.push(ip.invalid(format!("may not be unspecified ({address})")));
    }
    if address.is_loopback() {
        errors.push(ip.invalid("may not be in the loopback range (127.0.0.0/8, ::1/128)"));
    }
    if unicast {
        errors.push(ip.invalid(link_local(address.is_ipv4(), false)));
    }
    if multicast {
        errors.push(ip.invalid(link_local(address.is_ipv4(), true)));
    }
    errors
}

pub fn service_update(new: &Value, old: &Value) -> FieldErrors {
    let (spec, before) = (Field::root(new).get("spec"), Field::root(old).get("spec"));
    let mut errors = Vec::new();
    let external = |spec: &Field<'_>| spec.get("type").text() == "ExternalName";
    if !external(&spec) && !external(&before) {
        let had = before.get("clusterIP");
        if !had.is_zero() && spec.get("clusterIP").value != had.value {
            let path = spec.path.child("clusterIPs").index(0);
            errors.push(FieldError::invalid(&path, spec.get("clusterIP").value.clone(), "may not change once set"));
        }
    }
    errors.extend(service_create(new));
    errors
}

pub fn service_status(new: &Value, _old: &Value) -> FieldErrors {
    let root = Field::root(new);
    let balancer = root.get("status").get("loadBalancer");
    let mut errors = Vec::new();
    if !balancer.get("ingress").is_zero() && root.get("spec").get("type").text() != "LoadBalancer" {
        errors.push(balancer.get("ingress").forbidden("may only be used when `spec.type` is \"LoadBalancer\""));
    }
    for ingress in balancer.list("ingress") {
        let (ip, hostname) = (ingress.get("ip"), ingress.get("hostname"));
        if !ip.is_zero() {
            errors.extend(ip.each_invalid(names::is_ip(ip.text())));
        }
        if !hostname.is_zero() {
            errors.extend(hostname.each_invalid(names::is_dns1123_subdomain(hostname.text())));
            if hostname.text().parse::<IpAddr>().is_ok() {
                errors.push(hostname.invalid("must be a DNS name, not an IP address"));
            }
        }
    }
    errors
}

pub fn endpoints_create(endpoints: &Value) -> FieldErrors {
    let mut errors = Vec::new();
    for subset in Field::root(endpoints).list("subsets") {
        if subset.get("addresses").is_zero() && subset.get("notReadyAddresses").is_zero() {
            errors.push(subset.required("must specify `addresses` or `notReadyAddresses`"));
        }
        for list in ["addresses", "notReadyAddresses"] {
            for address in subset.list(list) {
                let ip = address.get("ip");
                let messages = names::is_ip(ip.text());
                if messages.is_empty() {
                    errors.extend(special_ip(&ip));
                }
                errors.extend(ip.each_invalid(messages));
                let hostname = address.get("hostname");
                if !hostname.is_zero() {
                    errors.extend(hostname.each_invalid(names::is_dns1123_label(hostname.text())));
                }
            }
        }
        let ports = subset.list("ports");
        for port in &ports {
            let name = port.get("name");
            if name.is_zero() {
                if ports.len() > 1 {
                    errors.push(name.required(""));
                }
            } else {
                errors.extend(name.each_invalid(names::is_dns1123_label(name.text())));
            }
            let number = port.get("port");
            errors.extend(number.each_invalid(names::is_port_number(number.int().unwrap_or_default())));
            errors.extend(port.get("protocol").one_of(&PROTOCOLS));
        }
    }
    errors
}

pub fn endpoints_update(new: &Value, _old: &Value) -> FieldErrors {
    endpoints_create(new)
}

pub fn endpoint_slice_create(slice: &Value) -> FieldErrors {
    let root = Field::root(slice);
    let kind = root.get("addressType");
    let mut errors = kind.one_of(&["FQDN", "IPv4", "IPv6"]);
    let endpoints = root.get("endpoints");
    if endpoints.count() > 1000 {
        errors.push(too_many(&endpoints, endpoints.count(), 1000));
        return errors;
    }
    for endpoint in endpoints.items() {
        let addresses = endpoint.get("addresses");
        match addresses.count() {
            0 => errors.push(addresses.required("must contain at least 1 address")),
            count if count > 100 => errors.push(too_many(&addresses, count, 100)),
            _ => (),
        }
        for address in addresses.items() {
            match kind.text() {
                "IPv4" if address.text().parse::<std::net::Ipv4Addr>().is_err() => {
                    errors.push(address.invalid("must be a valid IPv4 address"));
                }
                "IPv6" if address.text().parse::<std::net::Ipv6Addr>().is_err() => {
                    errors.push(address.invalid("must be a valid IPv6 address"));
                }
                "FQDN" => errors.extend(address.each_invalid(names::is_dns1123_subdomain(address.text()))),
                _ => errors.extend(special_ip(&address)),
            }
        }
        for (field, check) in [
            ("nodeName", names::is_dns1123_subdomain as fn(&str) -> Vec<String>),
            ("hostname", names::is_dns1123_label),
        ] {
            let field = endpoint.get(field);
            if field.is_present() {
                errors.extend(field.each_invalid(check(field.text())));
            }
        }
        let topology = endpoint.get("deprecatedTopology");
        errors.extend(labels(&topology));
    }
    errors.extend(slice_ports(&root.get("ports")));
    errors
}

fn slice_ports(ports: &Field<'_>) -> FieldErrors {
    if ports.count() > 20000 {
        return vec![too_many(ports, ports.count(), 20000)];
    }
    let mut errors = Vec::new();
    let mut taken = HashSet::new();
    for port in ports.items() {
        let name = port.get("name");
        if !name.is_zero() {
            errors.extend(name.each_invalid(names::is_dns1123_label(name.text())));
        }
        if !taken.insert(name.text()) {
            errors.push(name.duplicate());
        }
        errors.extend(port.get("protocol").one_of(&PROTOCOLS));
        let application = port.get("appProtocol");
        if application.is_present() {
            errors.extend(application.each_invalid(names::is_qualified_name(application.text())));
        }
    }
    errors
}

pub fn endpoint_slice_update(new: &Value, old: &Value) -> FieldErrors {
    let mut errors = endpoint_slice_create(new);
    errors.extend(Field::root(new).get("addressType").immutable(&Field::root(old).get("addressType")));
    errors
}
