//! Who this machine is in the network.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use mussel_cluster::join;
use mussel_network::addresses::AddressWatch;
use tokio::time;

use super::args::NodeArgs;

/// `--node-name`, or the host's name in lower case; with `--with-node-id` and the machine's id behind it.
pub fn node_name(args: &NodeArgs) -> anyhow::Result<String> {
    let mut name = match &args.node_name {
        Some(name) => name.clone(),
        None => nix::unistd::gethostname().context("read the host's name")?.to_string_lossy().to_lowercase(),
    };
    if args.with_node_id {
        let folder = args.node_password_file.parent().unwrap_or(Path::new("/"));
        // Eight hex digits, kept outside of the data folder, so that the machine keeps its name.
        name = format!("{name}-{}", join::ensure_id(&folder.join("id"))?);
    }
    checked(name)
}

fn checked(name: String) -> anyhow::Result<String> {
    let wrong = mussel_api::names::is_dns1123_subdomain(&name);
    if !wrong.is_empty() {
        bail!("{name:?} cannot be the node's name: {}; choose one with --node-name", wrong.join("; "));
    }
    Ok(name)
}

/// `--node-ip`, or the address of `--flannel-iface`, or that with which this machine would talk to the outside, or its only
/// other one.
pub fn node_ip(given: Option<IpAddr>, interface: Option<&str>) -> anyhow::Result<IpAddr> {
    if let Some(ip) = given {
        if ip.is_unspecified() || ip.is_multicast() {
            bail!("--node-ip {ip} is not the address of a machine");
        }
        return Ok(ip);
    }
    if let Some(interface) = interface {
        return mussel_network::uplink::first_ipv4_of(interface).context("--flannel-iface");
    }
    if let Some(ip) = default_route_source() {
        return Ok(ip);
    }
    match interface_addresses()?.as_slice() {
        [ip, ..] => Ok(*ip),
        [] => bail!("this machine has no address but loopback; give one with --node-ip"),
    }
}

/// Interfaces that change their address are left alone for this long.
const SETTLING: Duration = Duration::from_secs(2);

/// The address of this machine, as it changes.
pub struct OwnAddress {
    watch: Option<AddressWatch>,
    ip: IpAddr,
}

impl OwnAddress {
    /// `ip` is what it is now.
    pub fn watch(ip: IpAddr) -> Self {
        let watch = AddressWatch::open()
            .inspect_err(|error| tracing::warn!(%error, "certificates follow a new address at the next start only"));
        Self { watch: watch.ok(), ip }
    }

    /// Waits until `find` finds another one, and returns that.
    ///
    /// # Cancel safety
    /// What was not returned is found by the next call, with the next news of the kernel's.
    pub async fn changed(&mut self, find: &impl Fn() -> anyhow::Result<IpAddr>) -> IpAddr {
        let Some(watch) = &self.watch else { return std::future::pending().await };
        loop {
            watch.changed().await;
            // A change comes in steps: an address goes, another comes, then the route.
            time::sleep(SETTLING).await;
            if let Ok(ip) = find()
                && ip != self.ip
            {
                tracing::info!(from = %self.ip, to = %ip, "this machine has another address; restart mussel to use it");
                self.ip = ip;
                return ip;
            }
        }
    }
}

/// Connecting a datagram socket sends nothing, but chooses route and source address.
fn default_route_source() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // TEST-NET-1 is routed by the default route, if there is one.
    socket.connect(SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 9))).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified() && !ip.is_loopback())
}

fn interface_addresses() -> anyhow::Result<Vec<IpAddr>> {
    let interfaces = nix::ifaddrs::getifaddrs().context("list the interfaces")?;
    let own = [super::node::BRIDGE, mussel_network::host::DNS_INTERFACE, mussel_network::peers::VXLAN_INTERFACE];
    let ours = |name: &str| own.contains(&name);
    let addresses = interfaces.filter(|interface| !ours(&interface.interface_name)).filter_map(|interface| {
        let ip = interface.address?.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()))?;
        (!ip.is_loopback()).then_some(ip)
    });
    Ok(addresses.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert_eq!(checked("edge-1.example".to_owned()).unwrap(), "edge-1.example");
        assert!(checked("Edge_1".to_owned()).unwrap_err().to_string().contains("--node-name"));
        assert!(node_ip(Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), None).is_err());
    }
}
