//! A plan as iptables chains, named and shaped as kube-proxy's, so that people and tools that look at them feel at home.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use sha2::{Digest, Sha256};

use super::plan::{ServicePort, Targets};
use crate::chains::{Chains, push};
use crate::cidr::Cidr;

/// The mark on packets that have to be masqueraded on their way out.
const MARK: &str = "0x4000";

/// What a table has to look like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    pub nat: Chains,
    pub filter: Chains,
}

/// Our chains, by the beginnings of their names; what begins so and is not planned is stale.
pub const OWNED_PREFIXES: [&str; 5] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-EXT-", "KUBE-FW-"];

/// The jumps from the kernel's chains into ours: table, chain, rule.
pub const JUMPS: [(&str, &str, &[&str]); 9] = [
    ("nat", "PREROUTING", &["-m", "comment", "--comment", "kubernetes service portals", "-j", "KUBE-SERVICES"]),
    ("nat", "OUTPUT", &["-m", "comment", "--comment", "kubernetes service portals", "-j", "KUBE-SERVICES"]),
    ("nat", "POSTROUTING", &["-m", "comment", "--comment", "kubernetes postrouting rules", "-j", "KUBE-POSTROUTING"]),
    ("filter", "INPUT", &["-m", "conntrack", "--ctstate", "NEW", "-j", "KUBE-EXTERNAL-SERVICES"]),
    ("filter", "INPUT", &["-j", "KUBE-FIREWALL"]),
    ("filter", "FORWARD", &["-m", "conntrack", "--ctstate", "NEW", "-j", "KUBE-SERVICES"]),
    ("filter", "FORWARD", &["-m", "conntrack", "--ctstate", "NEW", "-j", "KUBE-EXTERNAL-SERVICES"]),
    ("filter", "FORWARD", &["-m", "comment", "--comment", "kubernetes forwarding rules", "-j", "KUBE-FORWARD"]),
    ("filter", "OUTPUT", &["-m", "conntrack", "--ctstate", "NEW", "-j", "KUBE-SERVICES"]),
];

pub fn tables(ports: &[ServicePort], cluster_cidr: Cidr) -> Tables {
    let mut tables = fixed();
    for port in ports.iter().filter(|port| port.cluster_ip.is_ipv4()) {
        service(&mut tables, port, cluster_cidr);
    }
    // Last, because a Service's own address may be one of this machine's.
    push(&mut tables.nat, "KUBE-SERVICES", "-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS".to_owned());
    tables
}

fn fixed() -> Tables {
    let mut tables = Tables::default();
    for chain in ["KUBE-SERVICES", "KUBE-NODEPORTS"] {
        tables.nat.entry(chain.to_owned()).or_default();
    }
    for chain in ["KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES"] {
        tables.filter.entry(chain.to_owned()).or_default();
    }
    push(&mut tables.nat, "KUBE-MARK-MASQ", format!("-j MARK --set-xmark {MARK}/{MARK}"));
    for rule in [
        format!("-m mark ! --mark {MARK}/{MARK} -j RETURN"),
        // Once is enough: the packet may pass here again in a tunnel.
        format!("-j MARK --set-xmark {MARK}/0x0"),
        "-j MASQUERADE --random-fully".to_owned(),
    ] {
        push(&mut tables.nat, "KUBE-POSTROUTING", rule);
    }
    for rule in [
        // Packets that conntrack cannot place would pass untranslated and make the other side reset (kubernetes #74839).
        "-m conntrack --ctstate INVALID -j DROP".to_owned(),
        format!("-m mark --mark {MARK}/{MARK} -j ACCEPT"),
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".to_owned(),
    ] {
        push(&mut tables.filter, "KUBE-FORWARD", rule);
    }
    // NodePorts answer on 127.0.0.1, for which the kernel must route such packets; from outside they stay unwelcome
    // (CVE-2020-8558).
    let martians = "! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP";
    push(&mut tables.filter, "KUBE-FIREWALL", martians.to_owned());
    tables
}

fn service(tables: &mut Tables, port: &ServicePort, cluster_cidr: Cidr) {
    let protocol = port.protocol;
    let comment = |what: &str| format!("-m comment --comment \"{} {what}\"", port.name);
    let to = |ip: &IpAddr| format!("-d {ip}/32 -p {protocol} -m {protocol} --dport {}", port.port);

    // From inside.
    let internal_chain = match (port.internal().0.is_empty(), port.internal_local) {
        (true, _) => None,
        (false, true) => Some(chain("KUBE-SVL-", port, "")),
        (false, false) => Some(chain("KUBE-SVC-", port, "")),
    };
    match &internal_chain {
        Some(chain) => {
            push(
                &mut tables.nat,
                "KUBE-SERVICES",
                format!("{} {} -j {chain}", to(&port.cluster_ip), comment("cluster IP")),
            );
        }
        None if port.cluster.0.is_empty() => {
            let rule = format!("{} {} -j REJECT", to(&port.cluster_ip), comment("has no endpoints"));
            push(&mut tables.filter, "KUBE-SERVICES", rule);
        }
        None => {
            let rule = format!("{} {} -j DROP", to(&port.cluster_ip), comment("has no local endpoints"));
            push(&mut tables.filter, "KUBE-SERVICES", rule);
        }
    }
    let needs_cluster_chain = !port.cluster.0.is_empty() && (!port.internal_local || port.is_external());
    let needs_local_chain =
        !port.local.0.is_empty() && (port.internal_local || port.external_local && port.is_external());
    if needs_cluster_chain {
        targets(tables, port, &chain("KUBE-SVC-", port, ""), &port.cluster, Some(cluster_cidr));
    }
    if needs_local_chain {
        targets(tables, port, &chain("KUBE-SVL-", port, ""), &port.local, None);
    }
    if port.is_external() {
        external(tables, port, cluster_cidr);
    }
}

/// Traffic to node ports, external addresses and load balancer addresses.
fn external(tables: &mut Tables, port: &ServicePort, cluster_cidr: Cidr) {
    let protocol = port.protocol;
    let comment = |what: &str| format!("-m comment --comment \"{} {what}\"", port.name);
    let to = |ip: &IpAddr| format!("-d {ip}/32 -p {protocol} -m {protocol} --dport {}", port.port);
    let to_node = |number: u16| format!("-p {protocol} -m {protocol} --dport {number}");
    let addresses: Vec<&IpAddr> =
        port.external_ips.iter().chain(&port.load_balancer_ips).filter(|ip| ip.is_ipv4()).collect();

    if port.cluster.0.is_empty() || (port.external_local && port.local.0.is_empty()) {
        let (verdict, why) = match port.cluster.0.is_empty() {
            true => ("REJECT", "has no endpoints"),
            // Dropped, so that a load balancer in front tries another node (upstream's choice).
            false => ("DROP", "has no local endpoints"),
        };
        for ip in &addresses {
            push(&mut tables.filter, "KUBE-EXTERNAL-SERVICES", format!("{} {} -j {verdict}", to(ip), comment(why)));
        }
        if let Some(number) = port.node_port {
            let local = "-m addrtype --dst-type LOCAL";
            let rule = format!("{local} {} {} -j {verdict}", to_node(number), comment(why));
            push(&mut tables.filter, "KUBE-EXTERNAL-SERVICES", rule);
        }
        if port.cluster.0.is_empty() {
            return;
        }
    }
    let (ext, svc) = (chain("KUBE-EXT-", port, ""), chain("KUBE-SVC-", port, ""));
    if port.external_local {
        // From this cluster's pods and from this node itself, all endpoints may answer.
        push(&mut tables.nat, &ext, format!("-s {cluster_cidr} -j {svc}"));
        push(&mut tables.nat, &ext, "-m addrtype --src-type LOCAL -j KUBE-MARK-MASQ".to_owned());
        push(&mut tables.nat, &ext, format!("-m addrtype --src-type LOCAL -j {svc}"));
        if !port.local.0.is_empty() {
            push(&mut tables.nat, &ext, format!("-j {}", chain("KUBE-SVL-", port, "")));
        }
    } else {
        push(&mut tables.nat, &ext, "-j KUBE-MARK-MASQ".to_owned());
        push(&mut tables.nat, &ext, format!("-j {svc}"));
    }
    for ip in port.external_ips.iter().filter(|ip| ip.is_ipv4()) {
        push(&mut tables.nat, "KUBE-SERVICES", format!("{} {} -j {ext}", to(ip), comment("external IP")));
    }
    for ip in port.load_balancer_ips.iter().filter(|ip| ip.is_ipv4()) {
        let mut allowed = String::new();
        for range in port.source_ranges.iter().filter(|range| range.address().is_ipv4()) {
            let rule = format!("-s {range} {} {} -j {ext}", to(ip), comment("loadbalancer IP"));
            push(&mut tables.nat, "KUBE-SERVICES", rule);
            let _ = write!(allowed, "{range} ");
        }
        if allowed.is_empty() {
            push(&mut tables.nat, "KUBE-SERVICES", format!("{} {} -j {ext}", to(ip), comment("loadbalancer IP")));
        } else {
            // Untranslated packets are those that no range let in.
            let rule = format!("{} {} -j DROP", to(ip), comment("traffic not accepted by its source ranges"));
            push(&mut tables.filter, "KUBE-EXTERNAL-SERVICES", rule);
        }
    }
    if let Some(number) = port.node_port {
        push(&mut tables.nat, "KUBE-NODEPORTS", format!("{} {} -j {ext}", to_node(number), comment("node port")));
    }
}

/// A chain that spreads packets over endpoints, with equal chance or by who asked before.
fn targets(
    tables: &mut Tables,
    port: &ServicePort,
    name: &str,
    targets: &Targets,
    masquerade_from_outside: Option<Cidr>,
) {
    let protocol = port.protocol;
    if let Some(cluster_cidr) = masquerade_from_outside {
        let to = format!("-d {}/32 -p {protocol} -m {protocol} --dport {}", port.cluster_ip, port.port);
        push(&mut tables.nat, name, format!("! -s {cluster_cidr} {to} -j KUBE-MARK-MASQ"));
    }
    let endpoints: Vec<(String, &SocketAddr)> =
        targets.0.iter().map(|endpoint| (chain("KUBE-SEP-", port, &endpoint.to_string()), endpoint)).collect();
    if let Some(seconds) = port.affinity {
        for (endpoint_chain, _) in &endpoints {
            let rule =
                format!("-m recent --name {endpoint_chain} --rcheck --seconds {seconds} --reap -j {endpoint_chain}");
            push(&mut tables.nat, name, rule);
        }
    }
    for (at, (endpoint_chain, endpoint)) in endpoints.iter().enumerate() {
        let left = endpoints.len() - at;
        let chance = match left {
            1 => String::new(),
            #[expect(clippy::cast_precision_loss, reason = "a Service has far fewer than 2^52 endpoints")]
            left => format!("-m statistic --mode random --probability {:.10} ", 1.0 / left as f64),
        };
        push(&mut tables.nat, name, format!("{chance}-j {endpoint_chain}"));
        if !tables.nat.contains_key(endpoint_chain) {
            // A pod that reaches itself through the Service would answer itself directly.
            push(&mut tables.nat, endpoint_chain, format!("-s {}/32 -j KUBE-MARK-MASQ", endpoint.ip()));
            let recent = port.affinity.map(|_| format!("-m recent --name {endpoint_chain} --set ")).unwrap_or_default();
            let rule = format!("-p {protocol} {recent}-m {protocol} -j DNAT --to-destination {endpoint}");
            push(&mut tables.nat, endpoint_chain, rule);
        }
    }
}

/// A name of at most 28 characters (iptables' limit) that is the same after a restart.
fn chain(prefix: &str, port: &ServicePort, endpoint: &str) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let digest = Sha256::digest(format!("{}{}{endpoint}", port.name, port.protocol).as_bytes());
    let hash: String = digest.iter().take(16).map(|byte| char::from(ALPHABET[usize::from(byte & 31)])).collect();
    format!("{prefix}{hash}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port() -> ServicePort {
        ServicePort {
            name: "default/web".to_owned(),
            protocol: "tcp",
            cluster_ip: "10.43.0.7".parse().unwrap(),
            port: 80,
            node_port: None,
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            source_ranges: Vec::new(),
            affinity: None,
            cluster: Targets(vec!["10.42.0.5:8080".parse().unwrap(), "10.42.0.6:8080".parse().unwrap()]),
            local: Targets::default(),
            internal_local: false,
            external_local: false,
        }
    }

    fn chains(port: ServicePort) -> Tables {
        tables(&[port], "10.42.0.0/16".parse().unwrap())
    }

    fn of(chains: &Chains, prefix: &str) -> Vec<String> {
        chains.iter().filter(|(name, _)| name.starts_with(prefix)).flat_map(|(_, rules)| rules.clone()).collect()
    }

    #[test]
    fn packets_are_spread_evenly() {
        let tables = chains(port());
        let svc = of(&tables.nat, "KUBE-SVC-");
        assert_eq!(svc[0], "! -s 10.42.0.0/16 -d 10.43.0.7/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ");
        assert!(svc[1].starts_with("-m statistic --mode random --probability 0.5000000000 -j KUBE-SEP-"), "{svc:?}");
        assert!(svc[2].starts_with("-j KUBE-SEP-"), "{svc:?}");
        assert_eq!(of(&tables.nat, "KUBE-SEP-").len(), 4);
        assert_eq!(of(&tables.filter, "KUBE-SERVICES"), Vec::<String>::new());
    }

    #[test]
    fn a_service_with_no_endpoint_rejects() {
        let tables = chains(ServicePort { cluster: Targets::default(), node_port: Some(30080), ..port() });
        assert!(of(&tables.filter, "KUBE-SERVICES")[0].ends_with("-j REJECT"));
        assert!(of(&tables.filter, "KUBE-EXTERNAL-SERVICES")[0].ends_with("-j REJECT"));
        assert_eq!(of(&tables.nat, "KUBE-EXT-"), Vec::<String>::new());
    }

    #[test]
    fn node_ports_are_masqueraded_unless_local() {
        let tables = chains(ServicePort { node_port: Some(30080), ..port() });
        assert!(of(&tables.nat, "KUBE-NODEPORTS")[0].starts_with("-p tcp -m tcp --dport 30080"));
        assert_eq!(of(&tables.nat, "KUBE-EXT-")[0], "-j KUBE-MARK-MASQ");
        let local = Targets(vec!["10.42.0.5:8080".parse().unwrap()]);
        let tables = chains(ServicePort { node_port: Some(30080), external_local: true, local, ..port() });
        assert!(of(&tables.nat, "KUBE-EXT-").last().unwrap().starts_with("-j KUBE-SVL-"));
    }

    #[test]
    fn affinity_remembers_clients() {
        let tables = chains(ServicePort { affinity: Some(60), ..port() });
        assert!(of(&tables.nat, "KUBE-SVC-")[1].contains("--rcheck --seconds 60 --reap"));
        assert!(of(&tables.nat, "KUBE-SEP-")[1].contains("--set -m tcp -j DNAT"));
    }

    #[test]
    fn chain_names_fit_and_stay() {
        let name = chain("KUBE-SEP-", &port(), "10.42.0.5:8080");
        assert_eq!((name.len(), &name), (25, &chain("KUBE-SEP-", &port(), "10.42.0.5:8080")));
    }
}
