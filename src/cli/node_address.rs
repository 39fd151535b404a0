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

/// `--node-ip`, or the address with which this machine would talk to the outside, or its only other one.
pub fn node_ip(given: Option<IpAddr>) -> anyhow::Result<IpAddr> {
    if let Some(ip) = given {
        if ip.is_unspecified() || ip.is_multicast() {
            bail!("--node-ip {ip} is not the address of a machine");
        }
        return Ok(ip);
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
    let ours = |name: &str| name == "cni0" || name == mussel_network::host::DNS_INTERFACE;
    let addresses = interfaces.filter(|interface| !ours(&interface.interface_name)).filter_map(|interface| {
        let ip = interface.address?.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()))?;
        (!ip.is_loopback()).then_some(ip)
    });
    Ok(addresses.collect())
}

/// The MTU of the interface that carries `ip`; pods get the same, so that nothing has to be cut.
pub fn mtu_of(ip: IpAddr) -> u32 {
    const ETHERNET: u32 = 1500;
    let interface = nix::ifaddrs::getifaddrs().ok().and_then(|mut interfaces| {
        interfaces.find(|interface| {
            let address = interface.address.as_ref();
            address.and_then(|address| address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()))) == Some(ip)
        })
    });
    let mtu = interface.and_then(|interface| {
        std::fs::read_to_string(format!("/sys/class/net/{}/mtu", interface.interface_name)).ok()?.trim().parse().ok()
    });
    // Loopback's 65536 is of no use to a bridge.
    mtu.filter(|mtu| (576..=9216).contains(mtu)).unwrap_or(ETHERNET)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert_eq!(node_name(Some("edge-1.example")).unwrap(), "edge-1.example");
        assert!(node_name(Some("Edge_1")).unwrap_err().to_string().contains("--node-name"));
        assert!(node_ip(Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED))).is_err());
    }
}
