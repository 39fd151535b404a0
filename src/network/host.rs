//! What the machine as a whole needs before pods can talk: kernel settings, the address of the node's DNS, and a guard for
//! unmatched Service addresses.

use std::net::IpAddr;
use std::path::Path;

use crate::cidr::Cidr;
use crate::iptables::{Iptables, IptablesError};
use crate::netlink::{Netlink, NetlinkError};
use crate::peers;
use crate::pods::VETH_PREFIX;

/// Carries the cluster DNS address on every node. A bridge without ports, because every kernel that can run pods has
/// bridges, while dummy interfaces are a module of their own.
pub const DNS_INTERFACE: &str = "mussel-dns";
const GUARD: &str = "MUSSEL-GUARD";
/// Chains that are ours; kube-proxy's names are kept, so tools that look at them work.
const CHAIN_PREFIXES: [&str; 2] = [SERVICE_CHAINS, "MUSSEL-"];
const SERVICE_CHAINS: &str = "KUBE-";

/// Settings without which packets do not pass, and the limits that many watches meet.
const SYSCTLS: [(&str, u64); 6] = [
    ("net/ipv4/ip_forward", 1),
    ("net/bridge/bridge-nf-call-iptables", 1),
    ("net/bridge/bridge-nf-call-ip6tables", 1),
    ("net/ipv6/conf/all/forwarding", 1),
    ("fs/inotify/max_user_instances", 8192),
    ("fs/inotify/max_user_watches", 524_288),
];

/// Brings kernel settings up to what a node needs; higher values stay. Failures are logged: in a container the settings may
/// be the host's to make.
pub fn tune_kernel() {
    for (name, wanted) in SYSCTLS {
        let path = Path::new("/proc/sys").join(name);
        let current = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<u64>().ok());
        match current {
            None => tracing::debug!(setting = name, "kernel setting does not exist here"),
            Some(current) if current >= wanted => {}
            Some(current) => match std::fs::write(&path, wanted.to_string()) {
                Ok(()) => tracing::info!(setting = name, from = current, to = wanted, "kernel setting raised"),
                Err(error) => tracing::warn!(setting = name, wanted, %error, "kernel setting cannot be changed"),
            },
        }
    }
}

/// Puts the cluster DNS address on this machine, gives Service addresses a route and a guard.
///
/// The route is for programs on the node itself: the kernel looks for one before iptables may translate the address, and a
/// machine at the edge need not have a default route. The guard refuses what no Service took, so that no packet to a Service
/// address ever leaves the node; without `guards` somebody else takes Services. It also keeps the kernel from refusing questions for the DNS while mussel is restarted: a
/// resolver takes a refusal for the answer, where it asks again when it hears nothing.
pub async fn prepare(
    iptables: &Iptables,
    service_cidr: Cidr,
    dns: &[IpAddr],
    guards: bool,
) -> Result<(), HostNetworkError> {
    let netlink = Netlink::open()?;
    let index = netlink.ensure_bridge(DNS_INTERFACE).await?;
    for address in dns {
        netlink.ensure_address(index, *address, if address.is_ipv4() { 32 } else { 128 }).await?;
    }
    netlink.up(index).await?;
    netlink.ensure_link_route(index, service_cidr).await?;
    iptables.restore(&guard(guards.then_some(service_cidr), dns)).await?;
    for chain in ["FORWARD", "OUTPUT"] {
        iptables.ensure_rule("filter", chain, &["-j", GUARD], false).await?;
    }
    Ok(())
}

fn guard(service_cidr: Option<Cidr>, dns: &[IpAddr]) -> String {
    let mut rules = format!("*filter\n:{GUARD} - [0:0]\n");
    if let Some(service_cidr) = service_cidr {
        rules.push_str(&format!("-A {GUARD} -d {service_cidr} -m addrtype ! --dst-type LOCAL -j REJECT\n"));
    }
    for address in dns.iter().filter(|address| address.is_ipv4()) {
        // By what was asked and not by who refuses: the refusals of all Services may carry this address.
        rules.push_str(&format!(
            "-A {GUARD} -p icmp -m icmp --icmp-type port-unreachable -m conntrack --ctproto udp --ctorigdst {address} \
             --ctorigdstport 53 -j DROP\n"
        ));
    }
    rules.push_str("COMMIT\n");
    rules
}

/// What could not be done or undone.
#[derive(Debug, thiserror::Error)]
pub enum HostNetworkError {
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Iptables(#[from] IptablesError),
}

/// Takes away the rules for Services, which somebody else is to make from now on.
///
/// # Errors
/// When iptables refuses.
pub async fn remove_services(iptables: &Iptables) -> Result<(), HostNetworkError> {
    for table in ["nat", "filter", "mangle"] {
        iptables.remove_chains(table, &[SERVICE_CHAINS]).await?;
    }
    Ok(())
}

/// Undoes all that this crate did to the machine. Goes on after a failure and returns every error.
pub async fn cleanup(bridge: &str) -> Vec<HostNetworkError> {
    let mut errors = Vec::new();
    let mut note = |result: Result<(), HostNetworkError>| errors.extend(result.err());
    match Netlink::open() {
        Ok(netlink) => {
            note(netlink.delete(DNS_INTERFACE).await.map_err(Into::into));
            let veths = netlink.names(VETH_PREFIX).await.unwrap_or_default();
            for veth in veths {
                note(netlink.delete(&veth).await.map_err(Into::into));
            }
            note(netlink.delete(bridge).await.map_err(Into::into));
            note(peers::remove().await.map_err(Into::into));
        }
        Err(error) => note(Err(error.into())),
    }
    match Iptables::find() {
        Ok(iptables) => {
            for table in ["nat", "filter", "mangle"] {
                note(iptables.remove_chains(table, &CHAIN_PREFIXES).await.map_err(Into::into));
            }
        }
        // Without the tool there can be no rules of ours.
        Err(IptablesError::Missing { .. }) => {}
        Err(error) => note(Err(error.into())),
    }
    errors
}
