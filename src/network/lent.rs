//! Ports of this node that it has lent to load balancers, so that no pod gets one as its host port.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::pods::HostPort;
use crate::proxy::plan::ServicePort;

/// By protocol and number: the Service. Written by the proxy, read when a pod is attached.
#[derive(Clone, Default)]
pub struct LentPorts(Arc<Mutex<BTreeMap<(&'static str, u16), String>>>);

impl LentPorts {
    /// Those of the Services whose load balancer is this node.
    pub fn set(&self, ports: &[ServicePort], node_addresses: &[IpAddr]) {
        let here = |port: &&ServicePort| port.load_balancer_ips.iter().any(|ip| node_addresses.contains(ip));
        let lent = ports.iter().filter(here).map(|port| ((port.protocol, port.port), port.name.clone()));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = lent.collect();
    }

    /// The first of the wanted ports that is lent, and to whom.
    pub fn clash(&self, wanted: &[HostPort]) -> Option<(u16, String)> {
        let lent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.iter().filter(|port| port.host_ip.is_none_or(|ip| !ip.is_loopback())).find_map(|port| {
            let service = lent.get(&(port.protocol.as_str(), port.host_port))?;
            Some((port.host_port, service.clone()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::Protocol;
    use crate::proxy::plan::Targets;

    #[test]
    fn ports_of_services_that_this_node_answers_for_are_taken() {
        let port = |number, ip: &str| ServicePort {
            name: format!("a/web-{number}"),
            protocol: "tcp",
            cluster_ip: "10.43.0.7".parse().unwrap(),
            port: number,
            node_port: None,
            external_ips: Vec::new(),
            load_balancer_ips: vec![ip.parse().unwrap()],
            source_ranges: Vec::new(),
            affinity: None,
            cluster: Targets::default(),
            local: Targets::default(),
            internal_local: false,
            external_local: false,
        };
        let lent = LentPorts::default();
        lent.set(&[port(80, "192.0.2.1"), port(81, "192.0.2.2")], &["192.0.2.1".parse().unwrap()]);
        let wants = |number| HostPort { protocol: Protocol::Tcp, host_port: number, container_port: 1, host_ip: None };
        assert_eq!(lent.clash(&[wants(82), wants(80)]), Some((80, "a/web-80".to_owned())));
        assert_eq!(lent.clash(&[wants(81)]), None, "another node's");
    }
}
