//! Services and what stands behind and before them.

use serde_json::Value;

use super::age;
use super::column::{AGE, NAME, Printer, SELECTOR, text as column};
use super::text::{self, NONE, UNSET, list, number};
use crate::object::ObjectExt;

pub(super) fn core(kind: &str) -> Option<&'static Printer> {
    match kind {
        "Service" => Some(&SERVICE),
        "Endpoints" => Some(&ENDPOINTS),
        _ => None,
    }
}

pub(super) fn printer(kind: &str) -> Option<&'static Printer> {
    Some(match kind {
        "EndpointSlice" => &ENDPOINT_SLICE,
        "Ingress" => &INGRESS,
        "IngressClass" => &INGRESS_CLASS,
        "NetworkPolicy" => &NETWORK_POLICY,
        "IPAddress" => &IP_ADDRESS,
        "ServiceCIDR" => &SERVICE_CIDR,
        _ => return None,
    })
}

static SERVICE: Printer = Printer {
    columns: &[
        NAME,
        column("Type", "How the service is exposed."),
        column("Cluster-IP", "The service's address in the cluster."),
        column("External-IP", "The service's addresses outside the cluster."),
        column("Port(s)", "Ports, with their node ports."),
        AGE,
        SELECTOR,
    ],
    cells: |service, now| {
        let cluster_ip = list(service, "spec.clusterIPs").first().and_then(Value::as_str);
        vec![
            text::name(service),
            service.str_at("spec.type").into(),
            cluster_ip.unwrap_or_else(|| text::or(service, "spec.clusterIP", NONE)).into(),
            external_ip(service).into(),
            ports(service).into(),
            age::of(service, now),
            text::labels(text::map(service, "spec.selector")).into(),
        ]
    },
};

fn external_ip(service: &Value) -> String {
    let external = text::strings(list(service, "spec.externalIPs"));
    match service.str_at("spec.type") {
        "ExternalName" => service.str_at("spec.externalName").to_owned(),
        "LoadBalancer" => match (load_balancer(service), external) {
            (assigned, external) if assigned.is_empty() && external.is_empty() => "<pending>".to_owned(),
            (assigned, external) if external.is_empty() => assigned,
            (assigned, external) if assigned.is_empty() => external,
            (assigned, external) => format!("{assigned},{external}"),
        },
        _ if external.is_empty() => NONE.to_owned(),
        _ => external,
    }
}

fn load_balancer(object: &Value) -> String {
    let mut shown: Vec<&str> = Vec::new();
    for ingress in list(object, "status.loadBalancer.ingress") {
        let address = text::or(ingress, "ip", ingress.str_at("hostname"));
        if !address.is_empty() && !shown.contains(&address) {
            shown.push(address);
        }
    }
    shown.join(",")
}

fn ports(service: &Value) -> String {
    let ports: Vec<String> = list(service, "spec.ports")
        .iter()
        .map(|port| match number(port, "nodePort") {
            0 => format!("{}/{}", number(port, "port"), port.str_at("protocol")),
            node_port => format!("{}:{node_port}/{}", number(port, "port"), port.str_at("protocol")),
        })
        .collect();
    if ports.is_empty() { NONE.to_owned() } else { ports.join(",") }
}

static ENDPOINTS: Printer = Printer {
    columns: &[NAME, column("Endpoints", "Addresses and ports behind the service."), AGE],
    cells: |object, now| {
        let mut shown = Vec::new();
        for subset in list(object, "subsets") {
            let addresses = list(subset, "addresses").iter().map(|a| a.str_at("ip"));
            let ports = list(subset, "ports");
            if ports.is_empty() {
                shown.extend(addresses.clone().map(str::to_owned));
            }
            for port in ports {
                shown.extend(addresses.clone().map(|ip| host_port(ip, number(port, "port"))));
            }
        }
        vec![text::name(object), text::some(&shown, 3, NONE).into(), age::of(object, now)]
    },
};

fn host_port(ip: &str, port: i64) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

static ENDPOINT_SLICE: Printer = Printer {
    columns: &[
        NAME,
        column("AddressType", "The type of the addresses."),
        column("Ports", "The ports of every endpoint."),
        column("Endpoints", "Addresses of the endpoints."),
        AGE,
    ],
    cells: |object, now| {
        let ports: Vec<_> = list(object, "ports").iter().map(|port| text::scalar(port.get("port"), "*")).collect();
        let endpoints = list(object, "endpoints").iter().flat_map(|endpoint| list(endpoint, "addresses"));
        let endpoints: Vec<_> = endpoints.filter_map(Value::as_str).map(str::to_owned).collect();
        vec![
            text::name(object),
            object.str_at("addressType").into(),
            text::some(&ports, 3, UNSET).into(),
            text::some(&endpoints, 3, UNSET).into(),
            age::of(object, now),
        ]
    },
};

static INGRESS: Printer = Printer {
    columns: &[
        NAME,
        column("Class", "The name of the IngressClass."),
        column("Hosts", "Hosts that incoming requests are matched against."),
        column("Address", "Addresses of the load balancer."),
        column("Ports", "Ports of the load balancer."),
        AGE,
    ],
    cells: |object, now| {
        let hosts = list(object, "spec.rules").iter().map(|rule| rule.str_at("host")).filter(|host| !host.is_empty());
        let hosts: Vec<_> = hosts.map(str::to_owned).collect();
        vec![
            text::name(object),
            text::or(object, "spec.ingressClassName", NONE).into(),
            text::some(&hosts, 3, "*").into(),
            load_balancer(object).into(),
            if list(object, "spec.tls").is_empty() { "80" } else { "80, 443" }.into(),
            age::of(object, now),
        ]
    },
};

static INGRESS_CLASS: Printer = Printer {
    columns: &[
        NAME,
        column("Controller", "The controller that handles ingresses of this class."),
        column("Parameters", "Where the controller finds its parameters."),
        AGE,
    ],
    cells: |object, now| {
        let parameters = object.at("spec.parameters").map(|of| {
            let group = of.str_at("apiGroup");
            let dot = if group.is_empty() { "" } else { "." };
            format!("{}{dot}{group}/{}", of.kind(), of.str_at("name"))
        });
        vec![
            text::name(object),
            object.str_at("spec.controller").into(),
            parameters.unwrap_or_else(|| NONE.to_owned()).into(),
            age::of(object, now),
        ]
    },
};

static NETWORK_POLICY: Printer = Printer {
    columns: &[NAME, column("Pod-Selector", "The pods that the policy is for."), AGE],
    cells: |object, now| {
        vec![text::name(object), text::selector(object.at("spec.podSelector")).into(), age::of(object, now)]
    },
};

static IP_ADDRESS: Printer = Printer {
    columns: &[NAME, column("ParentRef", "The object that the address belongs to."), AGE],
    cells: |object, now| {
        let parent = object.at("spec.parentRef").map(|of| {
            let (group, namespace) = (of.str_at("group"), of.str_at("namespace"));
            let dot = if group.is_empty() { "" } else { "." };
            let slash = if namespace.is_empty() { "" } else { "/" };
            format!("{}{dot}{group}/{namespace}{slash}{}", of.str_at("resource"), of.str_at("name"))
        });
        vec![text::name(object), parent.unwrap_or_else(|| NONE.to_owned()).into(), age::of(object, now)]
    },
};

static SERVICE_CIDR: Printer = Printer {
    columns: &[NAME, column("CIDRs", "The ranges that service addresses are taken from."), AGE],
    cells: |object, now| {
        vec![text::name(object), text::strings(list(object, "spec.cidrs")).into(), age::of(object, now)]
    },
};
