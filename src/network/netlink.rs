//! The few things we ask of the kernel through netlink, each safe to repeat.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use futures::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope};
use rtnetlink::{Handle, LinkBridge, LinkBridgePort, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::task::JoinHandle;

use crate::cidr::Cidr;
use crate::peers::NextHop;

pub(crate) const EEXIST: i32 = -17;
const ENODEV: i32 = -19;
/// What the kernel says of addresses it has no route to.
const NO_ROUTE: [i32; 4] = [-101, -113, -22, -13];

#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("open a netlink socket")]
    Open(#[source] io::Error),
    #[error("{action}")]
    Request { action: String, source: rtnetlink::Error },
    #[error("interface {0} does not exist")]
    NoInterface(String),
}

/// A netlink connection to the network namespace in which it was opened.
pub struct Netlink {
    pub(crate) handle: Handle,
    connection: JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Netlink {
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Open)?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// The interface's index, or `None` when there is no such interface.
    pub async fn index(&self, name: &str) -> Result<Option<u32>, NetlinkError> {
        Ok(self.link(name).await?.map(|link| link.header.index))
    }

    pub async fn require(&self, name: &str) -> Result<u32, NetlinkError> {
        self.index(name).await?.ok_or_else(|| NetlinkError::NoInterface(name.to_owned()))
    }

    /// The hardware address, as people write it.
    pub async fn mac(&self, name: &str) -> Result<String, NetlinkError> {
        let link = self.link(name).await?.ok_or_else(|| NetlinkError::NoInterface(name.to_owned()))?;
        let address = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Address(bytes) => {
                Some(bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":"))
            }
            _ => None,
        });
        Ok(address.unwrap_or_default())
    }

    /// The names of all interfaces whose name begins with `prefix`.
    pub async fn names(&self, prefix: &str) -> Result<Vec<String>, NetlinkError> {
        let mut links = self.handle.link().get().execute();
        let mut names = Vec::new();
        while let Some(link) = links.try_next().await.map_err(request("list interfaces"))? {
            names.extend(link.attributes.into_iter().filter_map(|attribute| match attribute {
                LinkAttribute::IfName(name) if name.starts_with(prefix) => Some(name),
                _ => None,
            }));
        }
        Ok(names)
    }

    pub async fn mtu(&self, name: &str) -> Result<u32, NetlinkError> {
        let link = self.link(name).await?.ok_or_else(|| NetlinkError::NoInterface(name.to_owned()))?;
        let mtu = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        Ok(mtu.unwrap_or_default())
    }

    /// The name of the interface with this index.
    pub async fn name(&self, index: u32) -> Result<Option<String>, NetlinkError> {
        let mut links = self.handle.link().get().match_index(index).execute();
        let link = match links.try_next().await {
            Ok(link) => link,
            Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == ENODEV => None,
            Err(source) => return Err(NetlinkError::Request { action: format!("look for interface {index}"), source }),
        };
        Ok(link.and_then(|link| {
            link.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            })
        }))
    }

    /// How packets to the address leave this machine; `None` when they cannot.
    pub async fn next_hop(&self, to: IpAddr) -> Result<Option<NextHop>, NetlinkError> {
        let query = match to {
            IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(v4, 32).build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(v6, 128).build(),
        };
        let route = match self.handle.route().get(query).execute().try_next().await {
            Ok(route) => route,
            Err(rtnetlink::Error::NetlinkError(message)) if NO_ROUTE.contains(&message.raw_code()) => None,
            Err(source) => return Err(NetlinkError::Request { action: format!("look up the route to {to}"), source }),
        };
        let Some(route) = route else { return Ok(None) };
        let device = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
        Ok(device.map(|device| NextHop { device, gateway: gateway(&route) }))
    }

    /// The interface's addresses of one family, each with the message that names it.
    async fn addresses(&self, index: u32, v4: bool) -> Result<Vec<(IpAddr, AddressMessage)>, NetlinkError> {
        let family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let mut messages = self.handle.address().get().set_link_index_filter(index).execute();
        let mut found = Vec::new();
        while let Some(message) = messages.try_next().await.map_err(request("list an interface's addresses"))? {
            let address = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(ip) | AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            });
            // Not every kernel filters for us.
            if message.header.family == family
                && message.header.index == index
                && let Some(address) = address
            {
                found.push((address, message));
            }
        }
        Ok(found)
    }

    /// Makes this the interface's only address of its family.
    pub async fn set_only_address(&self, index: u32, wanted: IpAddr, prefix: u8) -> Result<(), NetlinkError> {
        let mut present = false;
        for (address, message) in self.addresses(index, wanted.is_ipv4()).await? {
            if address == wanted && message.header.prefix_len == prefix {
                present = true;
            } else if !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
                let deleted = self.handle.address().del(message).execute().await;
                deleted.map_err(request(&format!("delete address {address}")))?;
            }
        }
        if present { Ok(()) } else { self.ensure_address(index, wanted, prefix).await }
    }

    pub(crate) async fn link(&self, name: &str) -> Result<Option<LinkMessage>, NetlinkError> {
        let mut links = self.handle.link().get().match_name(name.to_owned()).execute();
        match links.try_next().await {
            Ok(link) => Ok(link),
            Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == ENODEV => Ok(None),
            Err(source) => Err(NetlinkError::Request { action: format!("look for interface {name}"), source }),
        }
    }

    pub async fn ensure_bridge(&self, name: &str) -> Result<u32, NetlinkError> {
        self.ensure(name, LinkBridge::new(name).build()).await
    }

    async fn ensure(&self, name: &str, message: LinkMessage) -> Result<u32, NetlinkError> {
        if let Some(index) = self.index(name).await? {
            return Ok(index);
        }
        let added = self.handle.link().add(message).execute().await;
        tolerate(added, EEXIST).map_err(request(&format!("add interface {name}")))?;
        self.require(name).await
    }

    /// A pair of connected interfaces, both in this namespace.
    pub async fn add_veth(&self, name: &str, peer: &str) -> Result<(), NetlinkError> {
        let added = self.handle.link().add(LinkVeth::new(name, peer).build()).execute().await;
        added.map_err(request(&format!("add interfaces {name} and {peer}")))
    }

    pub async fn delete(&self, name: &str) -> Result<(), NetlinkError> {
        let Some(index) = self.index(name).await? else { return Ok(()) };
        let deleted = self.handle.link().del(index).execute().await;
        tolerate(deleted, ENODEV).map_err(request(&format!("delete interface {name}")))
    }

    pub async fn move_to(&self, name: &str, netns: &OwnedFd) -> Result<(), NetlinkError> {
        let index = self.require(name).await?;
        let message = LinkUnspec::new_with_index(index).setns_by_fd(netns.as_raw_fd()).build();
        self.set(message, &format!("move interface {name} to the pod")).await
    }

    pub async fn rename(&self, name: &str, wanted: &str) -> Result<u32, NetlinkError> {
        let index = self.require(name).await?;
        let message = LinkUnspec::new_with_index(index).name(wanted).build();
        self.set(message, &format!("rename interface {name} to {wanted}")).await?;
        Ok(index)
    }

    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        self.set(LinkUnspec::new_with_index(index).mtu(mtu).build(), "set an interface's MTU").await
    }

    pub async fn set_mac(&self, index: u32, mac: [u8; 6]) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index).address(mac.to_vec()).build();
        self.set(message, "set an interface's hardware address").await
    }

    pub async fn up(&self, index: u32) -> Result<(), NetlinkError> {
        self.set(LinkUnspec::new_with_index(index).up().build(), "set an interface up").await
    }

    /// Attaches the interface to the bridge. With hairpin, a pod reaches itself through its Service.
    pub async fn attach(&self, index: u32, bridge: u32) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index).controller(bridge).up().build();
        self.set(message, "attach an interface to the bridge").await?;
        let message = LinkBridgePort::new(index).hairpin(true).build();
        let result = self.handle.link().set_port(message).execute().await;
        result.map_err(request("set hairpin mode on a bridge port"))
    }

    pub(crate) async fn set(&self, message: LinkMessage, action: &str) -> Result<(), NetlinkError> {
        self.handle.link().set(message).execute().await.map_err(request(action))
    }

    pub async fn ensure_address(&self, index: u32, address: IpAddr, prefix: u8) -> Result<(), NetlinkError> {
        let added = self.handle.address().add(index, address, prefix).execute().await;
        tolerate(added, EEXIST).map_err(request(&format!("add address {address}/{prefix}")))
    }

    pub async fn add_default_route(&self, gateway: IpAddr) -> Result<(), NetlinkError> {
        let route = match gateway {
            IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new().gateway(v4).build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new().gateway(v6).build(),
        };
        let added = self.handle.route().add(route).execute().await;
        tolerate(added, EEXIST).map_err(request(&format!("add a default route by {gateway}")))
    }

    /// Packets to this network leave by the interface, unless a better route takes them.
    pub async fn ensure_link_route(&self, index: u32, network: Cidr) -> Result<(), NetlinkError> {
        let prefix = network.prefix();
        let route = match network.address() {
            IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(v4, prefix)
                .output_interface(index)
                .scope(RouteScope::Link)
                .build(),
            IpAddr::V6(v6) => {
                RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(v6, prefix).output_interface(index).build()
            }
        };
        let added = self.handle.route().add(route).execute().await;
        tolerate(added, EEXIST).map_err(request(&format!("add a route for {network}")))
    }
}

pub(crate) fn gateway(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Gateway(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    })
}

pub(crate) fn request(action: &str) -> impl FnOnce(rtnetlink::Error) -> NetlinkError + use<> {
    let action = action.to_owned();
    move |source| NetlinkError::Request { action, source }
}

/// Treats one refusal as success: what was wanted already holds.
pub(crate) fn tolerate(result: Result<(), rtnetlink::Error>, code: i32) -> Result<(), rtnetlink::Error> {
    match result {
        Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == code => Ok(()),
        other => other,
    }
}
