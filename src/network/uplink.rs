//! The interface by which this node talks to the others.

use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;

use crate::netlink::{Netlink, NetlinkError};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    pub name: String,
    pub index: u32,
    /// The node's address on it.
    pub ip: IpAddr,
    pub mtu: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    #[error("list the interfaces")]
    List(#[source] std::io::Error),
    #[error("interface {0} has no address")]
    NoAddress(String),
    #[error("no interface has the address {0}, and no route leads out")]
    Unknown(IpAddr),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

impl Uplink {
    /// The given interface; or the one that has the node's address; or, when that is another machine's translation of it, the
    /// one by which packets leave.
    pub async fn find(interface: Option<&str>, node_ip: IpAddr) -> Result<Self, UplinkError> {
        let netlink = Netlink::open()?;
        let (name, ip) = match interface {
            Some(name) => {
                netlink.require(name).await?;
                let ips = addresses()?.into_iter().filter(|(of, ip)| of == name && ip.is_ipv4() == node_ip.is_ipv4());
                let ips: Vec<IpAddr> = ips.map(|(_, ip)| ip).collect();
                let ip = ips.iter().find(|ip| **ip == node_ip).or(ips.first()).copied();
                (name.to_owned(), ip.ok_or_else(|| UplinkError::NoAddress(name.to_owned()))?)
            }
            None => match addresses()?.into_iter().find(|(_, ip)| *ip == node_ip) {
                Some(found) => found,
                None => by_default_route(&netlink, node_ip).await?,
            },
        };
        let index = netlink.require(&name).await?;
        let mtu = netlink.mtu(&name).await?;
        Ok(Self { name, index, ip, mtu })
    }
}

/// `--flannel-iface` without `--node-ip`: the interface's first address.
pub fn first_ipv4_of(interface: &str) -> Result<IpAddr, UplinkError> {
    let mut addresses = addresses()?.into_iter();
    let found = addresses.find(|(name, ip)| name == interface && ip.is_ipv4());
    found.map(|(_, ip)| ip).ok_or_else(|| UplinkError::NoAddress(interface.to_owned()))
}

async fn by_default_route(netlink: &Netlink, node_ip: IpAddr) -> Result<(String, IpAddr), UplinkError> {
    let hop = netlink.next_hop(node_ip).await?.ok_or(UplinkError::Unknown(node_ip))?;
    let name = netlink.name(hop.device).await?.ok_or(UplinkError::Unknown(node_ip))?;
    let ip = addresses()?.into_iter().find(|(of, ip)| *of == name && ip.is_ipv4() == node_ip.is_ipv4());
    ip.ok_or(UplinkError::NoAddress(name))
}

/// Every interface's addresses, of both families.
fn addresses() -> Result<Vec<(String, IpAddr)>, UplinkError> {
    let interfaces = getifaddrs().map_err(|errno| UplinkError::List(errno.into()))?;
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        let ip = v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))?;
        Some((interface.interface_name, ip))
    });
    Ok(addresses.collect())
}
