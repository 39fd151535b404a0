//! Who this machine is in the network.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::{Context, bail};

/// `--node-name`, or the host's name in lower case.
pub fn node_name(given: Option<&str>) -> anyhow::Result<String> {
    let name = match given {
        Some(name) => name.to_owned(),
        None => nix::unistd::gethostname().context("read the host's name")?.to_string_lossy().to_lowercase(),
    };
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
        assert_eq!(node_name(Some("edge-1.example")).unwrap(), "edge-1.example");
        assert!(node_name(Some("Edge_1")).unwrap_err().to_string().contains("--node-name"));
        assert!(node_ip(Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), None).is_err());
    }
}
