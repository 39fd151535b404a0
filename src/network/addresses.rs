//! Tells when an address of this machine came or went.

use std::sync::Arc;

use futures::StreamExt;
use rtnetlink::MulticastGroup;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::netlink::NetlinkError;

/// The kernel's news about addresses. Ends when dropped.
pub struct AddressWatch {
    changed: Arc<Notify>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for AddressWatch {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl AddressWatch {
    /// # Errors
    /// When the kernel gives no socket.
    pub fn open() -> Result<Self, NetlinkError> {
        let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (connection, _, mut messages) = rtnetlink::new_multicast_connection(&groups).map_err(NetlinkError::Open)?;
        let changed = Arc::new(Notify::new());
        let wake = Arc::clone(&changed);
        // Reads on at all times, so that nothing piles up while a change is acted on.
        let listening = async move {
            while messages.next().await.is_some() {
                wake.notify_one()
            }
        };
        Ok(Self { changed, tasks: [tokio::spawn(connection), tokio::spawn(listening)] })
    }

    /// # Cancel safety
    /// A change that was not heard of stays.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}
