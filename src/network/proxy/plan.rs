//! Decides where packets to a Service go. Pure: equal objects give equal plans.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort as SpecPort};
use k8s_openapi::api::discovery::v1::{Endpoint as SliceEndpoint, EndpointSlice};

use crate::cidr::Cidr;

/// Another proxy looks after Services with this label.
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// `sessionAffinityConfig.clientIP.timeoutSeconds` by default: 3 hours.
const AFFINITY_SECONDS: i32 = 10_800;

pub struct Settings {
    pub node_name: String,
    pub local_addresses: BTreeSet<IpAddr>,
    /// The node's own, on which it is a load balancer.
    pub node_addresses: Vec<IpAddr>,
}

/// One port of one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `default/web:http`, as comments show it.
    pub name: String,
    pub protocol: &'static str,
    pub cluster_ip: IpAddr,
    pub port: u16,
    pub node_port: Option<u16>,
    /// `externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// Addresses of the load balancer, and who may come through it (empty: all).
    pub load_balancer_ips: Vec<IpAddr>,
    pub source_ranges: Vec<Cidr>,
    /// `sessionAffinity: ClientIP`, in seconds.
    pub affinity: Option<i32>,
    /// Where traffic goes that may go to any node.
    pub cluster: Targets,
    /// Where traffic goes that has to stay on this node.
    pub local: Targets,
    pub internal_local: bool,
    pub external_local: bool,
}

/// The endpoints to take: the ready ones, or while there are none those that still serve on their way out (KEP-1669).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets(pub Vec<SocketAddr>);

impl ServicePort {
    /// Where traffic from inside the cluster goes.
    pub fn internal(&self) -> &Targets {
        if self.internal_local { &self.local } else { &self.cluster }
    }

    pub fn is_external(&self) -> bool {
        self.node_port.is_some() || !self.external_ips.is_empty() || !self.load_balancer_ips.is_empty()
    }
}

pub fn plan(settings: &Settings, services: &[Arc<Service>], slices: &[Arc<EndpointSlice>]) -> Vec<ServicePort> {
    let mut slices_of: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices {
        if let Some(service) = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME_LABEL)) {
            let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
            slices_of.entry((namespace, service)).or_default().push(slice);
        }
    }
    let mut ports = Vec::new();
    for service in services {
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let slices = slices_of.get(&(namespace, name)).map(Vec::as_slice).unwrap_or_default();
        ports.extend(service_ports(settings, service, slices));
    }
    ports.sort_by(|a, b| (&a.name, a.protocol).cmp(&(&b.name, b.protocol)));
    ports
}

fn service_ports(settings: &Settings, service: &Service, slices: &[&EndpointSlice]) -> Vec<ServicePort> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let labels = service.metadata.labels.as_ref();
    let Some(cluster_ip) = spec.cluster_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok()) else {
        return Vec::new();
    };
    if spec.type_.as_deref() == Some("ExternalName")
        || settings.local_addresses.contains(&cluster_ip)
        || labels.is_some_and(|labels| labels.contains_key(PROXY_NAME_LABEL))
    {
        return Vec::new();
    }
    let family = |ip: &IpAddr| ip.is_ipv4() == cluster_ip.is_ipv4();
    let external_ips: Vec<IpAddr> =
        spec.external_ips.iter().flatten().filter_map(|ip| ip.parse().ok()).filter(family).collect();
    let ingress =
        service.status.iter().flat_map(|status| &status.load_balancer).flat_map(|lb| lb.ingress.iter().flatten());
    let mut load_balancer_ips: Vec<IpAddr> = ingress
        .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip.as_deref()?.parse().ok())
        .filter(family)
        .collect();
    if load_balancer_ips.iter().any(|ip| settings.node_addresses.contains(ip)) {
        load_balancer_ips.extend(settings.node_addresses.iter().copied().filter(family));
        load_balancer_ips.sort_unstable();
        load_balancer_ips.dedup();
    }
    let source_ranges = spec.load_balancer_source_ranges.iter().flatten();
    let source_ranges: Vec<Cidr> = source_ranges.filter_map(|range| range.trim().parse().ok()).collect();
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
        config.and_then(|client_ip| client_ip.timeout_seconds).unwrap_or(AFFINITY_SECONDS)
    });
    let qualified = format!(
        "{}/{}",
        service.metadata.namespace.as_deref().unwrap_or_default(),
        service.metadata.name.as_deref().unwrap_or_default()
    );
    let port = |port: &SpecPort| {
        let endpoints = endpoints(settings, slices, port, cluster_ip);
        let number = u16::try_from(port.port).ok()?;
        Some(ServicePort {
            name: match port.name.as_deref() {
                Some(name) if !name.is_empty() => format!("{qualified}:{name}"),
                _ => qualified.clone(),
            },
            protocol: protocol(port.protocol.as_deref()),
            cluster_ip,
            port: number,
            node_port: port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0),
            external_ips: external_ips.clone(),
            load_balancer_ips: load_balancer_ips.clone(),
            source_ranges: source_ranges.clone(),
            affinity,
            local: targets(endpoints.iter().filter(|endpoint| endpoint.local)),
            cluster: targets(endpoints.iter()),
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
        })
    };
    spec.ports.iter().flatten().filter_map(port).collect()
}

struct Endpoint {
    address: SocketAddr,
    ready: bool,
    serving: bool,
    local: bool,
}

fn endpoints(settings: &Settings, slices: &[&EndpointSlice], port: &SpecPort, cluster_ip: IpAddr) -> Vec<Endpoint> {
    let mut found: BTreeMap<SocketAddr, Endpoint> = BTreeMap::new();
    for slice in slices {
        let wanted = slice.ports.iter().flatten().find(|candidate| {
            candidate.name.as_deref().unwrap_or_default() == port.name.as_deref().unwrap_or_default()
                && protocol(candidate.protocol.as_deref()) == protocol(port.protocol.as_deref())
        });
        let Some(number) = wanted.and_then(|port| u16::try_from(port.port?).ok()) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            // All addresses of an endpoint are equal; upstream takes the first.
            let Some(ip) = endpoint.addresses.first().and_then(|ip| ip.parse::<IpAddr>().ok()) else { continue };
            if ip.is_ipv4() != cluster_ip.is_ipv4() {
                continue;
            }
            let address = SocketAddr::new(ip, number);
            let endpoint = judge(settings, endpoint, address);
            // While a pod moves between slices it may be in two; the better news counts.
            let better = found.get(&address).is_none_or(|known| endpoint.ready && !known.ready);
            if better {
                found.insert(address, endpoint);
            }
        }
    }
    found.into_values().collect()
}

fn judge(settings: &Settings, endpoint: &SliceEndpoint, address: SocketAddr) -> Endpoint {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    // Unset ready means ready; unset serving means as ready (discovery/v1).
    let ready = conditions.ready.unwrap_or(true);
    Endpoint {
        address,
        ready,
        serving: conditions.serving.unwrap_or(ready) && conditions.terminating.unwrap_or(false),
        local: endpoint.node_name.as_deref() == Some(settings.node_name.as_str()),
    }
}

fn targets<'a>(endpoints: impl Iterator<Item = &'a Endpoint> + Clone) -> Targets {
    let ready: Vec<_> = endpoints.clone().filter(|endpoint| endpoint.ready).map(|endpoint| endpoint.address).collect();
    if !ready.is_empty() {
        return Targets(ready);
    }
    Targets(endpoints.filter(|endpoint| endpoint.serving).map(|endpoint| endpoint.address).collect())
}

fn protocol(text: Option<&str>) -> &'static str {
    match text {
        Some("UDP") => "udp",
        Some("SCTP") => "sctp",
        _ => "tcp",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn planned(spec: Value, endpoints: Value) -> Vec<ServicePort> {
        let service = json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec});
        let slice = json!({
            "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        });
        let settings = Settings {
            node_name: "a".into(),
            local_addresses: ["10.43.0.10".parse().unwrap()].into(),
            node_addresses: vec!["192.0.2.1".parse().unwrap(), "203.0.113.1".parse().unwrap()],
        };
        let service = Arc::new(serde_json::from_value(service).unwrap());
        plan(&settings, &[service], &[Arc::new(serde_json::from_value(slice).unwrap())])
    }

    fn addresses(targets: &Targets) -> Vec<String> {
        targets.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ready_endpoints_are_taken_and_those_on_their_way_out_only_in_need() {
        let spec = json!({"clusterIP": "10.43.0.7", "ports": [{"port": 80}]});
        let going =
            json!({"addresses": ["10.42.0.6"], "conditions": {"ready": false, "serving": true, "terminating": true}});
        let ready = json!({"addresses": ["10.42.0.5"], "nodeName": "a"});
        let ports = planned(spec.clone(), json!([ready, going]));
        assert_eq!(addresses(&ports[0].cluster), ["10.42.0.5:8080"]);
        assert_eq!(addresses(&planned(spec.clone(), json!([going]))[0].cluster), ["10.42.0.6:8080"]);
        let unready = json!({"addresses": ["10.42.0.6"], "conditions": {"ready": false, "serving": true}});
        assert!(planned(spec, json!([unready]))[0].cluster.0.is_empty());
    }

    #[test]
    fn local_policies_take_this_nodes_endpoints() {
        let spec = json!({"clusterIP": "10.43.0.7", "internalTrafficPolicy": "Local", "ports": [{"port": 80}]});
        let ports = planned(
            spec,
            json!([{"addresses": ["10.42.0.5"], "nodeName": "a"}, {"addresses": ["10.42.1.5"], "nodeName": "b"}]),
        );
        assert_eq!(addresses(ports[0].internal()), ["10.42.0.5:8080"]);
        assert_eq!(ports[0].cluster.0.len(), 2);
    }

    #[test]
    fn services_without_an_address_and_our_own_have_no_rules() {
        for spec in [
            json!({"clusterIP": "None", "ports": [{"port": 80}]}),
            json!({"type": "ExternalName", "externalName": "x", "ports": [{"port": 80}]}),
            json!({"clusterIP": "10.43.0.10", "ports": [{"port": 53}]}),
        ] {
            assert_eq!(planned(spec, json!([])), []);
        }
    }
}
