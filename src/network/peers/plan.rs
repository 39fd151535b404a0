//! Decides what the kernel has to know of the other nodes. Pure: equal leases give equal entries.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::lease::Lease;
use crate::backend::Backend;
use crate::cidr::Cidr;
use crate::mac::Mac;

/// What this node is, as far as the others' routes depend on it.
#[derive(Clone, Debug)]
pub struct Own {
    pub node: String,
    pub backend: Backend,
    /// `None` while the node has no range of its own; the others can be reached all the same.
    pub pod_cidrs: Vec<Cidr>,
    /// Where any pod of the cluster may be. A node that claims more is not believed.
    pub cluster_cidr: Cidr,
    pub public_ip: IpAddr,
    /// The interface routes lead to: `flannel.1`, or for host-gw the uplink.
    pub device: u32,
}

/// The way to one other node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    pub device: u32,
    /// `None` when the node is on the same link.
    pub gateway: Option<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub to: Cidr,
    pub via: IpAddr,
    pub device: u32,
}

/// Entries of one kind each: routes; addresses on `flannel.1` and their hardware addresses; and where those are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    pub routes: BTreeSet<Route>,
    pub neighbours: BTreeMap<IpAddr, Mac>,
    pub forwards: BTreeMap<Mac, IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    PutForward(Mac, IpAddr),
    PutNeighbour(IpAddr, Mac),
    PutRoute(Route),
    RemoveRoute(Route),
    RemoveNeighbour(IpAddr, Mac),
    RemoveForward(Mac, IpAddr),
}

/// Why a node's pods cannot be reached from here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Unreachable {
    #[error("node {node} has backend {theirs}, this one {ours}")]
    OtherBackend { node: String, theirs: String, ours: &'static str },
    #[error("node {node} tells no hardware address of its tunnel")]
    NoVtepMac { node: String },
    #[error("node {node} has the address {ip} of this one")]
    SameAddress { node: String, ip: IpAddr },
    #[error("node {node} at {ip} is not on this node's link, so backend host-gw cannot reach it; vxlan can")]
    NotOnLink { node: String, ip: IpAddr },
    #[error("pod CIDR {cidr} of node {node} is not within the cluster CIDR")]
    OutsideCluster { node: String, cidr: Cidr },
    #[error("pod CIDR {cidr} of node {node} is also that of node {by}")]
    Taken { node: String, cidr: Cidr, by: String },
}

/// What the kernel should hold, and which nodes are left out of it. `hops` tells for each node's address how it is reached.
pub fn desired(own: &Own, leases: &[Lease], hops: &BTreeMap<IpAddr, NextHop>) -> (Entries, BTreeSet<Unreachable>) {
    let mut entries = Entries::default();
    let mut left_out = BTreeSet::new();
    let mut taken: BTreeMap<Cidr, &str> = own.pod_cidrs.iter().map(|cidr| (*cidr, own.node.as_str())).collect();
    let mut others: Vec<&Lease> = leases.iter().filter(|lease| lease.node != own.node).collect();
    // Whatever order they came in, all nodes agree on who has a range that two claim.
    others.sort_by(|a, b| a.node.cmp(&b.node));
    for lease in others {
        let node = || lease.node.clone();
        if let Err(why) = reachable(own, lease, hops) {
            left_out.insert(why);
            continue;
        }
        for cidr in lease.pod_cidrs.iter().copied() {
            if !own.cluster_cidr.contains(cidr.address()) || cidr.prefix() < own.cluster_cidr.prefix() {
                // The other family's range, which this node has no use for yet, is no mistake.
                if cidr.address().is_ipv4() == own.cluster_cidr.address().is_ipv4() {
                    left_out.insert(Unreachable::OutsideCluster { node: node(), cidr });
                }
                continue;
            }
            let overlapping = taken.iter().find(|(other, _)| other.overlaps(cidr));
            if let Some((_, by)) = overlapping {
                left_out.insert(Unreachable::Taken { node: node(), cidr, by: (*by).to_owned() });
                continue;
            }
            taken.insert(cidr, &lease.node);
            let via = match (own.backend, lease.vtep_mac) {
                (Backend::Vxlan, Some(mac)) => {
                    // The address of the node's `flannel.1` is the first of its range, as flannel's.
                    entries.neighbours.insert(cidr.address(), mac);
                    entries.forwards.insert(mac, lease.public_ip);
                    cidr.address()
                }
                _ => lease.public_ip,
            };
            entries.routes.insert(Route { to: cidr, via, device: own.device });
        }
    }
    (entries, left_out)
}

fn reachable(own: &Own, lease: &Lease, hops: &BTreeMap<IpAddr, NextHop>) -> Result<(), Unreachable> {
    let (node, ip) = (lease.node.clone(), lease.public_ip);
    if lease.backend != own.backend.as_str() {
        return Err(Unreachable::OtherBackend { node, theirs: lease.backend.clone(), ours: own.backend.as_str() });
    }
    if ip == own.public_ip {
        return Err(Unreachable::SameAddress { node, ip });
    }
    match own.backend {
        Backend::Vxlan if !lease.vtep_mac.is_some_and(Mac::is_unicast) => Err(Unreachable::NoVtepMac { node }),
        Backend::HostGw => match hops.get(&ip) {
            Some(hop) if hop.gateway.is_none() && hop.device == own.device => Ok(()),
            _ => Err(Unreachable::NotOnLink { node, ip }),
        },
        Backend::Vxlan | Backend::None => Ok(()),
    }
}

/// What turns `observed` into `desired`. A packet meets a route only when all that the route needs is there.
pub fn steps(desired: &Entries, observed: &Entries) -> Vec<Step> {
    let mut steps = Vec::new();
    // A route whose destination stays is replaced, not removed: no packet finds none.
    let stays = |route: &&Route| !desired.routes.iter().any(|wanted| wanted.to == route.to);
    let routes = observed.routes.difference(&desired.routes).filter(stays);
    steps.extend(routes.cloned().map(Step::RemoveRoute));
    let neighbours = observed.neighbours.iter().filter(|(ip, _)| !desired.neighbours.contains_key(ip));
    steps.extend(neighbours.map(|(ip, mac)| Step::RemoveNeighbour(*ip, *mac)));
    let forwards = observed.forwards.iter().filter(|(mac, _)| !desired.forwards.contains_key(mac));
    steps.extend(forwards.map(|(mac, ip)| Step::RemoveForward(*mac, *ip)));

    let forwards = desired.forwards.iter().filter(|(mac, ip)| observed.forwards.get(mac) != Some(ip));
    steps.extend(forwards.map(|(mac, ip)| Step::PutForward(*mac, *ip)));
    let neighbours = desired.neighbours.iter().filter(|(ip, mac)| observed.neighbours.get(ip) != Some(mac));
    steps.extend(neighbours.map(|(ip, mac)| Step::PutNeighbour(*ip, *mac)));
    steps.extend(desired.routes.difference(&observed.routes).cloned().map(Step::PutRoute));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    const OVERLAY: u32 = 7;
    const UPLINK: u32 = 2;

    fn own(backend: Backend) -> Own {
        Own {
            node: "a".into(),
            backend,
            pod_cidrs: vec!["10.42.0.0/24".parse().unwrap()],
            cluster_cidr: "10.42.0.0/16".parse().unwrap(),
            public_ip: "192.0.2.1".parse().unwrap(),
            device: if backend == Backend::Vxlan { OVERLAY } else { UPLINK },
        }
    }

    fn lease(node: &str, cidr: &str, ip: &str, backend: Backend) -> Lease {
        Lease {
            node: node.into(),
            pod_cidrs: vec![cidr.parse().unwrap()],
            public_ip: ip.parse().unwrap(),
            backend: backend.as_str().into(),
            vtep_mac: (backend == Backend::Vxlan).then(|| Mac::derived(node)),
        }
    }

    fn hops(all: &[(&str, u32, Option<&str>)]) -> BTreeMap<IpAddr, NextHop> {
        let hop = |(ip, device, gateway): &(&str, u32, Option<&str>)| {
            (ip.parse().unwrap(), NextHop { device: *device, gateway: gateway.map(|ip| ip.parse().unwrap()) })
        };
        all.iter().map(hop).collect()
    }

    fn text(steps: &[Step]) -> Vec<String> {
        let name = |mac: &Mac| {
            let known = ["a", "b", "c"].into_iter().find(|node| Mac::derived(node) == *mac);
            known.unwrap_or("another").to_owned()
        };
        let text = |step: &Step| match step {
            Step::PutForward(mac, ip) => format!("+fdb {} {ip}", name(mac)),
            Step::PutNeighbour(ip, mac) => format!("+neigh {ip} {}", name(mac)),
            Step::PutRoute(route) => format!("+route {} via {} dev {}", route.to, route.via, route.device),
            Step::RemoveRoute(route) => format!("-route {} via {}", route.to, route.via),
            Step::RemoveNeighbour(ip, _) => format!("-neigh {ip}"),
            Step::RemoveForward(mac, ip) => format!("-fdb {} {ip}", name(mac)),
        };
        steps.iter().map(text).collect()
    }

    #[test]
    fn vxlan_tells_where_each_node_is_before_it_routes_there() {
        let leases = [
            lease("a", "10.42.0.0/24", "192.0.2.1", Backend::Vxlan),
            lease("b", "10.42.1.0/24", "198.51.100.2", Backend::Vxlan),
        ];
        let (entries, left_out) = desired(&own(Backend::Vxlan), &leases, &BTreeMap::new());
        assert_eq!(left_out, BTreeSet::new());
        assert_eq!(
            text(&steps(&entries, &Entries::default())),
            ["+fdb b 198.51.100.2", "+neigh 10.42.1.0 b", "+route 10.42.1.0/24 via 10.42.1.0 dev 7"]
        );
        assert_eq!(text(&steps(&entries, &entries)), Vec::<String>::new());
        assert_eq!(
            text(&steps(&Entries::default(), &entries)),
            ["-route 10.42.1.0/24 via 10.42.1.0", "-neigh 10.42.1.0", "-fdb b 198.51.100.2"]
        );
    }

    #[test]
    fn a_node_that_moved_is_followed_without_a_gap() {
        let at = |ip| desired(&own(Backend::Vxlan), &[lease("b", "10.42.1.0/24", ip, Backend::Vxlan)], &hops(&[])).0;
        assert_eq!(text(&steps(&at("192.0.2.9"), &at("192.0.2.2"))), ["+fdb b 192.0.2.9"]);
        let both = hops(&[("192.0.2.9", UPLINK, None), ("192.0.2.2", UPLINK, None)]);
        let at = |ip| desired(&own(Backend::HostGw), &[lease("b", "10.42.1.0/24", ip, Backend::HostGw)], &both).0;
        assert_eq!(text(&steps(&at("192.0.2.9"), &at("192.0.2.2"))), ["+route 10.42.1.0/24 via 192.0.2.9 dev 2"]);
        let range = |cidr| desired(&own(Backend::Vxlan), &[lease("b", cidr, "192.0.2.2", Backend::Vxlan)], &both).0;
        assert_eq!(
            text(&steps(&range("10.42.7.0/24"), &range("10.42.1.0/24"))),
            [
                "-route 10.42.1.0/24 via 10.42.1.0",
                "-neigh 10.42.1.0",
                "+neigh 10.42.7.0 b",
                "+route 10.42.7.0/24 via 10.42.7.0 dev 7"
            ]
        );
    }

    #[test]
    fn host_gw_reaches_only_what_is_on_the_link() {
        let leases = [
            lease("b", "10.42.1.0/24", "192.0.2.2", Backend::HostGw),
            lease("c", "10.42.2.0/24", "198.51.100.3", Backend::HostGw),
            lease("d", "10.42.3.0/24", "203.0.113.4", Backend::HostGw),
        ];
        let hops = hops(&[("192.0.2.2", UPLINK, None), ("198.51.100.3", UPLINK, Some("192.0.2.254"))]);
        let (entries, left_out) = desired(&own(Backend::HostGw), &leases, &hops);
        assert_eq!(
            text(&steps(&entries, &Entries::default())),
            ["+route 10.42.1.0/24 via 192.0.2.2 dev 2"],
            "no neighbours, no tunnel"
        );
        assert_eq!(left_out.len(), 2);
        assert!(left_out.iter().all(|why| matches!(why, Unreachable::NotOnLink { .. })), "{left_out:?}");
    }

    #[test]
    fn what_a_node_may_not_claim_is_left_out() {
        let mut silent = lease("h", "10.42.8.0/24", "192.0.2.8", Backend::Vxlan);
        silent.vtep_mac = None;
        let leases = [
            lease("b", "0.0.0.0/0", "192.0.2.2", Backend::Vxlan),
            lease("c", "10.42.0.128/25", "192.0.2.3", Backend::Vxlan),
            lease("e", "10.42.4.0/24", "192.0.2.5", Backend::Vxlan),
            lease("d", "10.42.4.0/24", "192.0.2.4", Backend::Vxlan),
            lease("f", "10.42.5.0/24", "192.0.2.1", Backend::Vxlan),
            lease("g", "10.42.6.0/24", "192.0.2.7", Backend::HostGw),
            silent,
        ];
        let (entries, left_out) = desired(&own(Backend::Vxlan), &leases, &BTreeMap::new());
        let routes: Vec<_> = entries.routes.iter().map(|route| route.to.to_string()).collect();
        assert_eq!(routes, ["10.42.4.0/24"]);
        assert_eq!(entries.forwards[&Mac::derived("d")], "192.0.2.4".parse::<IpAddr>().unwrap());
        assert_eq!(left_out.len(), 6, "{left_out:?}");
    }

    #[test]
    fn a_range_of_the_other_family_is_no_mistake() {
        let mut dual = lease("b", "10.42.1.0/24", "192.0.2.2", Backend::Vxlan);
        dual.pod_cidrs.push("fd00:42:1::/64".parse().unwrap());
        let (entries, left_out) = desired(&own(Backend::Vxlan), &[dual], &BTreeMap::new());
        assert_eq!((entries.routes.len(), left_out.len()), (1, 0));
    }
}
