//! Forgets UDP flows that lead to endpoints which are gone.
//!
//! UDP has no end that the kernel could see, so a client that keeps sending from one port would keep hitting the old
//! endpoint. TCP needs nothing: its old connections end by themselves.

mod kernel;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::plan::ServicePort;

/// Where clients send to: an address and port of a Service, or its port on any address of the node.
type Frontends = BTreeMap<(Option<IpAddr>, u16), BTreeSet<SocketAddr>>;

/// Keeps the kernel's flows to those that the rules would make.
#[derive(Default)]
pub struct UdpFlows {
    /// As of the last time the flows were looked at.
    cleaned: Option<Frontends>,
}

/// One flow of the kernel's, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flow {
    /// Where the client sends to.
    to: SocketAddr,
    /// Who answers.
    from: SocketAddr,
}

impl UdpFlows {
    /// Call it after the rules for `ports` are in force.
    pub async fn clean(&mut self, ports: &[ServicePort]) {
        let now = frontends(ports);
        if self.cleaned.as_ref() == Some(&now) {
            return;
        }
        let judged = now.clone();
        let cleaned = tokio::task::spawn_blocking(move || kernel::forget(|flow| is_stale(&judged, flow))).await;
        match cleaned {
            Ok(Ok(count)) => {
                if count > 0 {
                    tracing::debug!(count, "forgot UDP flows to endpoints that are gone");
                }
                self.cleaned = Some(now);
            }
            Ok(Err(error)) => tracing::debug!(%error, "old UDP flows end by their timeout"),
            Err(error) => tracing::warn!(%error, "looking for old UDP flows failed"),
        }
    }
}

fn frontends(ports: &[ServicePort]) -> Frontends {
    let mut frontends = Frontends::new();
    for port in ports.iter().filter(|port| port.protocol == "udp") {
        let mut add = |ip: Option<IpAddr>, number: u16, endpoints: &[&Vec<SocketAddr>]| {
            let endpoints = endpoints.iter().flat_map(|list| list.iter().copied());
            frontends.entry((ip, number)).or_default().extend(endpoints);
        };
        add(Some(port.cluster_ip), port.port, &[&port.internal().0]);
        // From inside the cluster, all endpoints answer for the outer addresses, too.
        let outer: &[&Vec<SocketAddr>] = &[&port.cluster.0, &port.local.0];
        for ip in port.external_ips.iter().chain(&port.load_balancer_ips) {
            add(Some(*ip), port.port, outer);
        }
        if let Some(number) = port.node_port {
            add(None, number, outer);
        }
    }
    frontends
}

/// Whether a new packet to the same place would go elsewhere now.
fn is_stale(frontends: &Frontends, flow: Flow) -> bool {
    let (ip, port) = (flow.to.ip(), flow.to.port());
    if let Some(endpoints) = frontends.get(&(Some(ip), port)) {
        // Without endpoints the packet is refused anyway, and an untranslated flow is none of ours.
        return !endpoints.contains(&flow.from) && (flow.from != flow.to || !endpoints.is_empty());
    }
    match frontends.get(&(None, port)) {
        // To a port with this number of some other machine: nobody translated it.
        Some(_) if flow.from == flow.to => false,
        Some(endpoints) => !endpoints.contains(&flow.from),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(to: &str, from: &str) -> bool {
        let endpoints = ["10.42.0.5:53", "10.42.1.6:53"].map(|endpoint| endpoint.parse().unwrap());
        let frontends = Frontends::from([
            ((Some("10.43.0.7".parse().unwrap()), 53), endpoints.into()),
            ((Some("10.43.0.8".parse().unwrap()), 53), BTreeSet::new()),
            ((None, 30053), endpoints.into()),
        ]);
        is_stale(&frontends, Flow { to: to.parse().unwrap(), from: from.parse().unwrap() })
    }

    #[test]
    fn flows_to_gone_endpoints_are_stale() {
        for (to, from, stale) in [
            ("10.43.0.7:53", "10.42.0.5:53", false),
            ("10.43.0.7:53", "10.42.0.9:53", true),
            // Made before the rules were: nobody answers there.
            ("10.43.0.7:53", "10.43.0.7:53", true),
            ("10.43.0.8:53", "10.42.0.5:53", true),
            ("192.0.2.1:30053", "10.42.1.6:53", false),
            ("192.0.2.1:30053", "10.42.1.9:53", true),
            ("203.0.113.5:30053", "203.0.113.5:30053", false),
            ("203.0.113.5:53", "203.0.113.5:53", false),
        ] {
            assert_eq!(judge(to, from), stale, "{to} answered by {from}");
        }
    }
}
