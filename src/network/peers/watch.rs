//! Wakes the pass over the other nodes when somebody else changed what it made, or the uplink.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::kernel::is_ours;
use crate::netlink::NetlinkError;

const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// The kernel's news about two interfaces and our routes. Ends when dropped.
pub struct KernelWatch {
    changed: Arc<Notify>,
    connection: JoinHandle<()>,
    filter: JoinHandle<()>,
}

impl Drop for KernelWatch {
    fn drop(&mut self) {
        self.connection.abort();
        self.filter.abort();
    }
}

impl KernelWatch {
    /// `devices` are the names of the interfaces that matter.
    pub fn open(devices: Vec<String>) -> Result<Self, NetlinkError> {
        let (connection, _, mut messages) = rtnetlink::new_multicast_connection(&GROUPS).map_err(NetlinkError::Open)?;
        let changed = Arc::new(Notify::new());
        let connection = tokio::spawn(connection);
        let wake = Arc::clone(&changed);
        // Reads on at all times, so that nothing piles up while a pass runs.
        let filter = tokio::spawn(async move {
            let mut seen = Seen { devices, states: BTreeMap::new() };
            while let Some((message, _)) = messages.next().await {
                if let NetlinkPayload::InnerMessage(message) = message.payload
                    && seen.matters(&message)
                {
                    wake.notify_one();
                }
            }
        });
        Ok(Self { changed, connection, filter })
    }

    /// # Cancel safety
    /// A change that was not heard of stays.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

struct Seen {
    devices: Vec<String>,
    /// What was last heard of each device by its index: up or down, MTU. Wireless drivers tell of much else.
    states: BTreeMap<u32, (LinkFlags, u32)>,
}

impl Seen {
    fn matters(&mut self, message: &RouteNetlinkMessage) -> bool {
        match message {
            RouteNetlinkMessage::NewLink(link) if self.is_device(link) => {
                let mtu = link.attributes.iter().find_map(|attribute| match attribute {
                    LinkAttribute::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
                let state = (link.header.flags & (LinkFlags::Up | LinkFlags::LowerUp), mtu.unwrap_or_default());
                self.states.insert(link.header.index, state) != Some(state)
            }
            RouteNetlinkMessage::DelLink(link) => {
                self.states.remove(&link.header.index).is_some() || self.is_device(link)
            }
            RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
                self.states.contains_key(&address.header.index)
            }
            RouteNetlinkMessage::DelRoute(route) => is_ours(route),
            _ => false,
        }
    }

    fn is_device(&self, link: &LinkMessage) -> bool {
        link.attributes.iter().any(|attribute| match attribute {
            LinkAttribute::IfName(name) => self.devices.contains(name),
            _ => false,
        })
    }
}
