//! Decides which nodes answer for which Service. Pure: equal objects give equal plans.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::{LOCAL, SLICE_SERVICE};
use crate::control::{Key, key_of};
use crate::pods;

/// With this label on any node, only nodes with it answer.
const ENABLE: &str = "svccontroller.k3s.cattle.io/enablelb";
/// On nodes and Services: only nodes of the Service's pool answer.
const POOL: &str = "svccontroller.k3s.cattle.io/lbpool";
const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Sorted, in the order of the Service's families.
    pub ips: Vec<String>,
    /// Why there are none.
    pub why: Option<String>,
}

pub fn is_ours(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    spec.type_.as_deref() == Some("LoadBalancer") && spec.load_balancer_class.is_none()
}

pub fn is_local(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.external_traffic_policy.as_deref() == Some(LOCAL))
}

/// The addresses that the Service's status names.
pub fn published(service: &Service) -> Vec<String> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    status.iter().flat_map(|status| status.ingress.iter().flatten()).filter_map(|ingress| ingress.ip.clone()).collect()
}

/// What matters of a node here.
#[derive(Debug, PartialEq, Eq)]
pub struct Place<'a> {
    name: &'a str,
    external: Vec<&'a str>,
    internal: Vec<&'a str>,
    enabled: bool,
    pool: Option<&'a str>,
    /// Ready, and not to be left out.
    usable: bool,
}

pub fn place(node: &Node) -> Place<'_> {
    let status = node.status.as_ref();
    let of = |kind: &str| -> Vec<&str> {
        let addresses = status.iter().flat_map(|status| status.addresses.iter().flatten());
        addresses.filter(|address| address.type_ == kind).map(|address| address.address.as_str()).collect()
    };
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    let mut conditions = status.iter().flat_map(|status| status.conditions.iter().flatten());
    Place {
        name: node.metadata.name.as_deref().unwrap_or_default(),
        external: of("ExternalIP"),
        internal: of("InternalIP"),
        enabled: label(ENABLE) == Some("true"),
        pool: label(POOL),
        usable: conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
            && label(EXCLUDE).is_none(),
    }
}

pub fn has_address(node: &Node, ip: &str) -> bool {
    let place = place(node);
    place.external.contains(&ip) || place.internal.contains(&ip)
}

/// Ports of its node that a pod takes: protocol and number.
pub fn host_ports(pod: &Pod) -> impl Iterator<Item = (&str, i32)> {
    let containers = pod.spec.iter().flat_map(|spec| {
        let beside = spec.init_containers.iter().flatten();
        spec.containers.iter().chain(beside.filter(|container| container.restart_policy.as_deref() == Some("Always")))
    });
    containers.flat_map(|container| container.ports.iter().flatten()).filter_map(|port| {
        let elsewhere = port.host_ip.as_deref().is_some_and(|ip| ip.starts_with("127."));
        let number = port.host_port.filter(|number| *number > 0 && !elsewhere)?;
        Some((port.protocol.as_deref().unwrap_or("TCP"), number))
    })
}

/// By node, protocol and number: who has the port.
type Taken<'a> = BTreeMap<(&'a str, &'a str, i32), String>;

pub fn plan(
    services: &[Arc<Service>],
    nodes: &[Arc<Node>],
    pods: &[Arc<Pod>],
    slices: &[Arc<EndpointSlice>],
    reserved: &[u16],
) -> BTreeMap<Key, Verdict> {
    let places: Vec<Place<'_>> = nodes.iter().map(|node| place(node)).collect();
    let some_are_enabled = places.iter().any(|place| place.enabled);
    let mut taken = Taken::new();
    for place in &places {
        for port in reserved {
            taken.insert((place.name, "TCP", i32::from(*port)), "mussel itself".to_owned());
        }
    }
    let mut by_pods = Taken::new();
    for pod in pods.iter().filter(|pod| !pods::is_terminal(pod)) {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
        let (namespace, name) = key_of(&**pod);
        for (protocol, port) in host_ports(pod) {
            by_pods.entry((node, protocol, port)).or_insert_with(|| format!("pod {namespace}/{name}"));
        }
    }
    let mut ours: Vec<&Arc<Service>> =
        services.iter().filter(|service| is_ours(service) && service.metadata.deletion_timestamp.is_none()).collect();
    // Who has addresses keeps them; else who was first.
    ours.sort_by_key(|service| {
        let created = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (published(service).is_empty(), created, key_of(&***service))
    });
    let mut verdicts = BTreeMap::new();
    for service in ours {
        verdicts.insert(key_of(&**service), verdict(service, &places, some_are_enabled, &mut taken, &by_pods, slices));
    }
    verdicts
}

fn verdict<'a>(
    service: &'a Service,
    places: &'a [Place<'a>],
    some_are_enabled: bool,
    taken: &mut Taken<'a>,
    by_pods: &Taken<'_>,
    slices: &[Arc<EndpointSlice>],
) -> Verdict {
    let pool = service.metadata.labels.as_ref().and_then(|labels| labels.get(POOL)).map(String::as_str);
    let may = |place: &&Place<'_>| {
        place.usable && (place.enabled || pool.is_none() && !some_are_enabled) && (pool.is_none() || place.pool == pool)
    };
    let spec = service.spec.as_ref();
    let ports: Vec<(&str, i32)> = spec
        .iter()
        .flat_map(|spec| spec.ports.iter().flatten())
        .map(|port| (port.protocol.as_deref().unwrap_or("TCP"), port.port))
        .collect();
    let before = published(service);
    let mut why = None;
    let mut chosen: Vec<&Place<'_>> = Vec::new();
    for place in places.iter().filter(may) {
        let answers = place.external.iter().chain(&place.internal).any(|ip| before.iter().any(|known| known == ip));
        let clash = ports.iter().find_map(|(protocol, port)| {
            let port_here = (place.name, *protocol, *port);
            // A pod that came later to a port of a Service that answers there does not take it away.
            let by = taken.get(&port_here).or_else(|| by_pods.get(&port_here).filter(|_| !answers));
            by.map(|by| format!("port {port}/{protocol} of node {} is taken by {by}", place.name))
        });
        if let Some(clash) = clash {
            why.get_or_insert(clash);
            continue;
        }
        let (namespace, name) = key_of(service);
        for (protocol, port) in &ports {
            taken.insert((place.name, *protocol, *port), format!("service {namespace}/{name}"));
        }
        chosen.push(place);
    }
    if is_local(service) {
        let with_endpoints = nodes_with_endpoints(service, slices);
        let ports_are_ours = !chosen.is_empty();
        chosen.retain(|place| with_endpoints.contains(place.name));
        if ports_are_ours && chosen.is_empty() {
            why = Some("no node has a ready endpoint, and externalTrafficPolicy is Local".to_owned());
        }
    }
    let external: BTreeSet<&str> = chosen.iter().flat_map(|place| place.external.iter().copied()).collect();
    let internal: BTreeSet<&str> = chosen.iter().flat_map(|place| place.internal.iter().copied()).collect();
    let ips = if external.is_empty() { internal } else { external };
    let families = spec.and_then(|spec| spec.ip_families.clone()).unwrap_or_default();
    let mut sorted = Vec::new();
    for family in &families {
        let fits = |ip: &&&str| ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4() == (family == "IPv4"));
        sorted.extend(ips.iter().filter(fits).map(|ip| (*ip).to_owned()));
    }
    Verdict { why: why.filter(|_| sorted.is_empty()), ips: sorted }
}

fn nodes_with_endpoints<'a>(service: &Service, slices: &'a [Arc<EndpointSlice>]) -> BTreeSet<&'a str> {
    let (namespace, name) = key_of(service);
    let of_service = |slice: &&Arc<EndpointSlice>| {
        let label = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SLICE_SERVICE));
        slice.metadata.namespace.as_deref() == Some(&namespace) && label == Some(&name)
    };
    let endpoints = slices.iter().filter(of_service).flat_map(|slice| slice.endpoints.iter().flatten());
    let ready = |condition: Option<bool>| condition.unwrap_or(true);
    endpoints
        .filter(|endpoint| endpoint.conditions.as_ref().is_none_or(|conditions| ready(conditions.ready)))
        .filter_map(|endpoint| endpoint.node_name.as_deref())
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read<K: serde::de::DeserializeOwned>(values: impl IntoIterator<Item = Value>) -> Vec<Arc<K>> {
        values.into_iter().map(|value| Arc::new(serde_json::from_value(value).unwrap())).collect()
    }

    fn node(name: &str, internal: &str, external: Option<&str>, labels: Value) -> Value {
        let mut addresses = vec![json!({"type": "InternalIP", "address": internal})];
        addresses.extend(external.map(|ip| json!({"type": "ExternalIP", "address": ip})));
        json!({"metadata": {"name": name, "labels": labels}, "status": {"addresses": addresses,
            "conditions": [{"type": "Ready", "status": "True"}]}})
    }

    fn service(name: &str, port: u16, created: u8, more: Value) -> Value {
        let mut service = json!({"metadata": {"name": name, "namespace": "a",
            "creationTimestamp": format!("2026-01-01T00:00:{created:02}Z")},
            "spec": {"type": "LoadBalancer", "ipFamilies": ["IPv4"], "ports": [{"port": port, "protocol": "TCP"}]}});
        for (key, value) in more.as_object().unwrap() {
            match key.as_str() {
                "labels" => service["metadata"]["labels"] = value.clone(),
                "status" => service["status"] = value.clone(),
                key => service["spec"][key] = value.clone(),
            }
        }
        service
    }

    fn two() -> Vec<Value> {
        vec![node("one", "192.0.2.1", None, json!({})), node("two", "192.0.2.2", None, json!({}))]
    }

    fn planned(services: Vec<Value>, nodes: Vec<Value>, pods: Vec<Value>, slices: Vec<Value>) -> Vec<String> {
        let verdicts = plan(&read(services), &read(nodes), &read(pods), &read(slices), &[6443]);
        let text = |((_, name), verdict): (&Key, &Verdict)| match &verdict.why {
            Some(why) => format!("{name}: {why}"),
            None => format!("{name}: {}", verdict.ips.join(" ")),
        };
        verdicts.iter().map(text).collect()
    }

    #[test]
    fn all_nodes_answer_with_their_external_addresses_if_any_has_one() {
        let web = || vec![service("web", 80, 1, json!({}))];
        assert_eq!(planned(web(), two(), vec![], vec![]), ["web: 192.0.2.1 192.0.2.2"]);
        let mut nodes = two();
        nodes[1] = node("two", "192.0.2.2", Some("203.0.113.2"), json!({}));
        assert_eq!(planned(web(), nodes.clone(), vec![], vec![]), ["web: 203.0.113.2"]);
        nodes[1]["status"]["conditions"][0]["status"] = json!("Unknown");
        assert_eq!(planned(web(), nodes, vec![], vec![]), ["web: 192.0.2.1"]);
        let other = service("web", 80, 1, json!({"loadBalancerClass": "example.com/lb"}));
        assert_eq!(planned(vec![other], two(), vec![], vec![]), Vec::<String>::new());
    }

    #[test]
    fn labels_choose_nodes() {
        let enabled = |pool: &str| json!({ENABLE: "true", POOL: pool});
        let nodes = || {
            vec![
                node("one", "192.0.2.1", None, enabled("in")),
                node("two", "192.0.2.2", None, enabled("out")),
                node("three", "192.0.2.3", None, json!({})),
            ]
        };
        let of_pool = |name: &str, created| service(name, 80, created, json!({"labels": {POOL: name}}));
        assert_eq!(
            planned(vec![service("web", 80, 1, json!({}))], nodes(), vec![], vec![]),
            ["web: 192.0.2.1 192.0.2.2"]
        );
        assert_eq!(
            planned(vec![of_pool("in", 1), of_pool("out", 2)], nodes(), vec![], vec![]),
            ["in: 192.0.2.1", "out: 192.0.2.2"],
            "different nodes may give the same port to different Services"
        );
        let mut nodes = two();
        nodes[0]["metadata"]["labels"] = json!({EXCLUDE: ""});
        assert_eq!(planned(vec![service("web", 80, 1, json!({}))], nodes, vec![], vec![]), ["web: 192.0.2.2"]);
    }

    #[test]
    fn a_port_belongs_to_who_was_first() {
        let (early, late) = (service("early", 80, 1, json!({})), service("a-late", 80, 2, json!({})));
        assert_eq!(
            planned(vec![late.clone(), early.clone()], two(), vec![], vec![]),
            ["a-late: port 80/TCP of node one is taken by service a/early", "early: 192.0.2.1 192.0.2.2"]
        );
        // Who has it keeps it, also from an older one that wants it now.
        let has = json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}});
        let verdicts = planned(vec![early, service("a-late", 80, 2, has.clone())], two(), vec![], vec![]);
        assert_eq!(verdicts[0], "a-late: 192.0.2.1 192.0.2.2");
        let pod = json!({"metadata": {"name": "p", "namespace": "b"}, "spec": {"nodeName": "one", "containers": [
            {"name": "c", "ports": [{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}]}]}});
        assert_eq!(
            planned(vec![service("web", 80, 1, json!({}))], two(), vec![pod.clone()], vec![]),
            ["web: 192.0.2.2"]
        );
        assert_eq!(planned(vec![service("web", 80, 1, has)], two(), vec![pod], vec![]), ["web: 192.0.2.1 192.0.2.2"]);
        assert!(planned(vec![service("api", 6443, 1, json!({}))], two(), vec![], vec![])[0].contains("mussel itself"));
    }

    #[test]
    fn with_local_traffic_only_nodes_with_endpoints_answer() {
        let local = || service("web", 80, 1, json!({"externalTrafficPolicy": "Local"}));
        let slice = json!({"metadata": {"name": "web-1", "namespace": "a", "labels": {SLICE_SERVICE: "web"}},
            "addressType": "IPv4", "endpoints": [
                {"addresses": ["10.42.0.5"], "nodeName": "two", "conditions": {"ready": true}},
                {"addresses": ["10.42.0.6"], "nodeName": "one", "conditions": {"ready": false}}]});
        assert_eq!(planned(vec![local()], two(), vec![], vec![slice]), ["web: 192.0.2.2"]);
        assert!(planned(vec![local()], two(), vec![], vec![])[0].contains("no node has a ready endpoint"));
    }
}
