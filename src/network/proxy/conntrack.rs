//! Forgets UDP flows that lead to endpoints which are gone.
//!
//! UDP has no end that the kernel could see, so a client that keeps sending from one port would keep hitting the old
//! endpoint. TCP needs nothing: its old connections end by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;

use tokio::process::Command;

use super::plan::ServicePort;

/// The UDP endpoints of the last pass.
#[derive(Default)]
pub struct UdpFlows(BTreeMap<(IpAddr, u16), BTreeSet<SocketAddr>>);

impl UdpFlows {
    pub async fn clean(&mut self, ports: &[ServicePort]) {
        let now = udp(ports);
        for arguments in stale(&self.0, &now) {
            forget(&arguments).await;
        }
        self.0 = now;
    }
}

fn udp(ports: &[ServicePort]) -> BTreeMap<(IpAddr, u16), BTreeSet<SocketAddr>> {
    let ports = ports.iter().filter(|port| port.protocol == "udp");
    ports.map(|port| ((port.cluster_ip, port.port), port.cluster.0.iter().copied().collect())).collect()
}

/// Arguments of conntrack(8) for each kind of flow to forget.
fn stale(
    before: &BTreeMap<(IpAddr, u16), BTreeSet<SocketAddr>>,
    now: &BTreeMap<(IpAddr, u16), BTreeSet<SocketAddr>>,
) -> Vec<Vec<String>> {
    let none = BTreeSet::new();
    let mut flows = Vec::new();
    for ((ip, port), endpoints) in before {
        let left = now.get(&(*ip, *port)).unwrap_or(&none);
        for gone in endpoints.difference(left) {
            flows.push(vec!["--orig-dst".to_owned(), ip.to_string(), "--dst-nat".to_owned(), gone.ip().to_string()]);
        }
    }
    for ((ip, port), endpoints) in now {
        // Until now packets were refused or went nowhere, and conntrack remembers that path as well.
        if !endpoints.is_empty() && before.get(&(*ip, *port)).is_none_or(BTreeSet::is_empty) {
            flows.push(vec!["--orig-dst".to_owned(), ip.to_string(), "--orig-port-dst".to_owned(), port.to_string()]);
        }
    }
    flows
}

async fn forget(arguments: &[String]) {
    let mut command = Command::new("conntrack");
    command.args(["-D", "-p", "udp"]).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    // Exit code 1 says that there was no such flow. Without the tool flows end by their own timeout (30 s idle).
    if let Err(error) = command.status().await {
        tracing::debug!(%error, "conntrack does not run; old UDP flows end by their timeout");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_to_gone_endpoints_are_forgotten() {
        let of = |endpoints: &[&str]| {
            BTreeMap::from([(
                ("10.43.0.7".parse().unwrap(), 53),
                endpoints.iter().map(|endpoint| endpoint.parse().unwrap()).collect(),
            )])
        };
        let text = |flows: Vec<Vec<String>>| flows.iter().map(|flow| flow.join(" ")).collect::<Vec<_>>();
        let both = of(&["10.42.0.5:53", "10.42.0.6:53"]);
        assert_eq!(text(stale(&both, &of(&["10.42.0.6:53"]))), ["--orig-dst 10.43.0.7 --dst-nat 10.42.0.5"]);
        assert_eq!(text(stale(&of(&[]), &both)), ["--orig-dst 10.43.0.7 --orig-port-dst 53"]);
        assert_eq!(text(stale(&both, &both)), Vec::<String>::new());
    }
}
