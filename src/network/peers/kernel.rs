//! What the kernel holds of the other nodes, and changes to it. Every call may be repeated.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use rtnetlink::{LinkVxlan, RouteMessageBuilder};

use super::plan::{Entries, Route, Step};
use crate::cidr::Cidr;
use crate::mac::Mac;
use crate::netlink::{EEXIST, Netlink, NetlinkError, gateway, request, tolerate};
use crate::uplink::Uplink;

/// By this number the kernel keeps for each route who made it; ours are known by it. None of rt_protos(5).
pub const ROUTE_PROTOCOL: u8 = 109;
const ENOENT: i32 = -2;
const ESRCH: i32 = -3;

/// `flannel.1` as it has to be.
#[derive(Clone, Debug)]
pub struct Vxlan {
    pub name: &'static str,
    pub vni: u32,
    pub port: u16,
    pub mac: Mac,
    pub mtu: u32,
}

/// Makes the tunnel's interface, anew if the one that is there is another's or its node's address has changed.
pub async fn ensure_vxlan(netlink: &Netlink, vxlan: &Vxlan, uplink: &Uplink) -> Result<u32, NetlinkError> {
    if let Some(link) = netlink.link(vxlan.name).await? {
        if is_same(&link, vxlan, uplink) {
            let index = link.header.index;
            netlink.set_mac(index, vxlan.mac.0).await?;
            netlink.set_mtu(index, vxlan.mtu).await?;
            return Ok(index);
        }
        tracing::info!(interface = vxlan.name, "making the interface anew: it does not fit this node any more");
        netlink.delete(vxlan.name).await?;
    }
    let message = LinkVxlan::new(vxlan.name, vxlan.vni).dev(uplink.index).port(vxlan.port).learning(false);
    let message = match uplink.ip {
        IpAddr::V4(ip) => message.local(ip),
        IpAddr::V6(ip) => message.local6(ip),
    };
    let message = message.address(vxlan.mac.0.to_vec()).mtu(vxlan.mtu).build();
    let added = netlink.handle.link().add(message).execute().await;
    added.map_err(request(&format!("add interface {} (is the kernel's vxlan module there?)", vxlan.name)))?;
    netlink.require(vxlan.name).await
}

fn is_same(link: &LinkMessage, vxlan: &Vxlan, uplink: &Uplink) -> bool {
    let infos: Vec<&LinkInfo> = link
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        })
        .flatten()
        .collect();
    let is_vxlan = infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Vxlan)));
    let data = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
        _ => None,
    });
    let local = match uplink.ip {
        IpAddr::V4(ip) => InfoVxlan::Local(ip),
        IpAddr::V6(ip) => InfoVxlan::Local6(ip),
    };
    let wanted = [
        InfoVxlan::Id(vxlan.vni),
        InfoVxlan::Port(vxlan.port),
        InfoVxlan::Link(uplink.index),
        InfoVxlan::Learning(false),
        local,
    ];
    is_vxlan && data.is_some_and(|data| wanted.iter().all(|wanted| data.contains(wanted)))
}

/// All our routes, and with a tunnel all that its interface knows.
pub async fn observe(netlink: &Netlink, tunnel: Option<u32>) -> Result<Entries, NetlinkError> {
    let routes = our_routes(netlink).await?;
    let mut entries = Entries { routes: routes.iter().filter_map(route_of).collect(), ..Entries::default() };
    if let Some(index) = tunnel {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            for neighbour in neighbours(netlink, index, family).await? {
                if neighbour.header.state == NeighbourState::Permanent
                    && let (Some(ip), Some(mac)) = (destination(&neighbour), mac_of(&neighbour))
                {
                    entries.neighbours.insert(ip, mac);
                }
            }
        }
        for forward in neighbours(netlink, index, AddressFamily::Bridge).await? {
            if let (Some(mac), Some(ip)) = (mac_of(&forward), destination(&forward)) {
                entries.forwards.insert(mac, ip);
            }
        }
    }
    Ok(entries)
}

pub async fn apply(netlink: &Netlink, tunnel: Option<u32>, step: &Step) -> Result<(), NetlinkError> {
    // Steps about the tunnel are planned only when there is one.
    let index = tunnel.unwrap_or_default();
    match step {
        Step::PutRoute(route) => {
            let put = netlink.handle.route().add(message_of(route)).replace().execute().await;
            put.map_err(request(&format!("add a route to {} via {}", route.to, route.via)))
        }
        Step::RemoveRoute(route) => {
            let deleted = netlink.handle.route().del(message_of(route)).execute().await;
            tolerate(deleted, ESRCH).map_err(request(&format!("delete the route to {}", route.to)))
        }
        Step::PutNeighbour(ip, mac) => {
            let put = netlink.handle.neighbours().add(index, *ip).link_layer_address(&mac.0).replace().execute().await;
            put.map_err(request(&format!("add neighbour {ip} as {mac}")))
        }
        Step::RemoveNeighbour(ip, _) => {
            let mut message = NeighbourMessage::default();
            message.header.family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            message.header.ifindex = index;
            message.attributes.push(NeighbourAttribute::Destination(neighbour_address(*ip)));
            let deleted = netlink.handle.neighbours().del(message).execute().await;
            tolerate(deleted, ENOENT).map_err(request(&format!("delete neighbour {ip}")))
        }
        Step::PutForward(mac, ip) => {
            let add = netlink.handle.neighbours().add_bridge(index, &mac.0).destination(*ip);
            let put = add.flags(NeighbourFlags::Own).replace().execute().await;
            tolerate(put, EEXIST).map_err(request(&format!("forward frames for {mac} to {ip}")))
        }
        Step::RemoveForward(mac, ip) => {
            let mut message = NeighbourMessage::default();
            message.header.family = AddressFamily::Bridge;
            message.header.ifindex = index;
            message.header.flags = NeighbourFlags::Own;
            message.header.state = NeighbourState::Permanent;
            message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
            message.attributes.push(NeighbourAttribute::Destination(neighbour_address(*ip)));
            let deleted = netlink.handle.neighbours().del(message).execute().await;
            tolerate(deleted, ENOENT).map_err(request(&format!("forget where {mac} is")))
        }
    }
}

/// Removes every route of ours, whoever of us made it.
pub async fn remove_routes(netlink: &Netlink) -> Result<(), NetlinkError> {
    for route in our_routes(netlink).await? {
        let deleted = netlink.handle.route().del(route).execute().await;
        tolerate(deleted, ESRCH).map_err(request("delete a route"))?;
    }
    Ok(())
}

async fn our_routes(netlink: &Netlink) -> Result<Vec<RouteMessage>, NetlinkError> {
    let queries = [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()];
    let mut found = Vec::new();
    for query in queries {
        let mut routes = netlink.handle.route().get(query).execute();
        while let Some(route) = routes.try_next().await.map_err(request("list routes"))? {
            if is_ours(&route) {
                found.push(route);
            }
        }
    }
    Ok(found)
}

pub fn is_ours(route: &RouteMessage) -> bool {
    route.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
}

fn route_of(message: &RouteMessage) -> Option<Route> {
    let to = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Destination(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    });
    let device = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    let to: Cidr = format!("{}/{}", to?, message.header.destination_prefix_length).parse().ok()?;
    Some(Route { to, via: gateway(message)?, device: device? })
}

fn message_of(route: &Route) -> RouteMessage {
    let (prefix, protocol) = (route.to.prefix(), RouteProtocol::Other(ROUTE_PROTOCOL));
    // Onlink: the other end's address on the tunnel lies in its own range, to which this is the only route.
    match (route.to.address(), route.via) {
        (IpAddr::V4(to), via) => {
            let message = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, prefix);
            let message = match via {
                IpAddr::V4(via) => message.gateway(via),
                IpAddr::V6(via) => message.via(via),
            };
            message.onlink().output_interface(route.device).protocol(protocol).build()
        }
        (IpAddr::V6(to), via) => {
            let via = match via {
                IpAddr::V4(via) => via.to_ipv6_mapped(),
                IpAddr::V6(via) => via,
            };
            let message = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(to, prefix).gateway(via);
            message.onlink().output_interface(route.device).protocol(protocol).build()
        }
    }
}

async fn neighbours(
    netlink: &Netlink,
    index: u32,
    family: AddressFamily,
) -> Result<Vec<NeighbourMessage>, NetlinkError> {
    let mut messages = netlink.handle.neighbours().get().set_address_family(family).execute();
    let mut found = Vec::new();
    while let Some(message) = messages.try_next().await.map_err(request("list neighbours"))? {
        if message.header.ifindex == index && message.header.family == family {
            found.push(message);
        }
    }
    Ok(found)
}

fn destination(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        // In the forwarding table the family is the bridge's, so the address comes as bytes.
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
            16 => <[u8; 16]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
            _ => None,
        },
        _ => None,
    })
}

fn mac_of(message: &NeighbourMessage) -> Option<Mac> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac),
        _ => None,
    })
}

fn neighbour_address(ip: IpAddr) -> NeighbourAddress {
    match ip {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    }
}
