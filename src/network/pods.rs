//! Gives each pod sandbox its interface, its address and its host ports: what CNI's ADD and DEL do.
//!
//! What a sandbox has is one small file in the run directory, which like the interfaces themselves ends with a reboot. The
//! address is leased in memory from those files.

mod attachment;
mod rules;
mod sandbox;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use tokio::sync::{Mutex, watch};

use crate::cidr::Cidr;
use crate::iptables::{Iptables, IptablesError};
use crate::lent::LentPorts;
use crate::netlink::{Netlink, NetlinkError};
use crate::policy::gate::{Gate, NotInForce};
pub use attachment::{Attachment, HostPort, Owner, Protocol};
use attachment::{AttachmentError, Attachments};
pub use sandbox::{SandboxError, loopback_up};

/// The node's end of a pod's interface; the rest of the name is made of the sandbox's id.
pub const VETH_PREFIX: &str = "mpod";

pub struct Config {
    /// Attachments are kept here; must not survive a reboot.
    pub run_dir: PathBuf,
    /// `cni0`
    pub bridge: String,
    pub mtu: u32,
    /// The addresses of all pods of the cluster: between them nothing is masqueraded.
    pub cluster_cidr: Cidr,
    /// Ports that load balancers have.
    pub lent_ports: LentPorts,
    /// Holds pods back until the network policies about them are in force; `None` when there are to be none.
    pub policies: Option<Gate>,
}

/// A sandbox that wants a network.
#[derive(Clone, Debug)]
pub struct AddRequest {
    pub sandbox_id: String,
    /// A bind mount of the sandbox's network namespace.
    pub netns: PathBuf,
    pub host_ports: Vec<HostPort>,
    pub owner: Owner,
}

#[derive(Debug, thiserror::Error)]
pub enum PodNetworkError {
    #[error("this node has no pod CIDR yet")]
    NoPodCidr,
    #[error("no free address in pod CIDR {pod_cidr}")]
    PodCidrExhausted { pod_cidr: Cidr },
    #[error("host port {port} is taken by sandbox {by}")]
    HostPortTaken { port: u16, by: String },
    #[error("host port {port} is taken by the load balancer of service {service}")]
    HostPortLent { port: u16, service: String },
    #[error(transparent)]
    Attachment(#[from] AttachmentError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Iptables(#[from] IptablesError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Policies(#[from] NotInForce),
}

pub struct PodNetwork {
    config: Config,
    iptables: Iptables,
    pod_cidr: watch::Sender<Option<Cidr>>,
    /// One change of the host's networking at a time.
    state: Mutex<Attachments>,
}

impl PodNetwork {
    /// Finds again what an earlier process attached.
    pub fn open(config: Config) -> Result<Self, PodNetworkError> {
        let iptables = Iptables::find()?;
        let state = Attachments::load(config.run_dir.join("pods"))?;
        if let Some(policies) = &config.policies {
            state.all().for_each(|attachment| policies.attach(attachment));
        }
        Ok(Self { config, iptables, pod_cidr: watch::Sender::new(None), state: Mutex::new(state) })
    }

    pub fn iptables(&self) -> &Iptables {
        &self.iptables
    }

    /// `Err` says why pods cannot be attached.
    pub fn status(&self) -> Result<(), PodNetworkError> {
        if self.pod_cidr.borrow().is_some() { Ok(()) } else { Err(PodNetworkError::NoPodCidr) }
    }

    /// Makes the bridge and the rules for this node's range. Repeat it when the range is known anew.
    pub async fn set_pod_cidr(&self, pod_cidr: Cidr) -> Result<(), PodNetworkError> {
        let state = self.state.lock().await;
        let netlink = Netlink::open()?;
        let bridge = netlink.ensure_bridge(&self.config.bridge).await?;
        let gateway = pod_cidr.gateway().ok_or(PodNetworkError::PodCidrExhausted { pod_cidr })?;
        netlink.set_mtu(bridge, self.config.mtu).await?;
        // Without an address of its own the bridge would take over that of each new port, and pods' ARP entries would go stale.
        netlink.set_mac(bridge, bridge_mac(gateway)).await?;
        // The gateway of an earlier range goes: another node may have that range now.
        netlink.set_only_address(bridge, gateway, pod_cidr.prefix()).await?;
        netlink.up(bridge).await?;
        rules::install(&self.iptables, &self.config.bridge, self.config.cluster_cidr).await?;
        rules::load_host_ports(&self.iptables, state.all()).await?;
        self.pod_cidr.send_replace(Some(pod_cidr));
        tracing::info!(%pod_cidr, bridge = self.config.bridge, "pod network is ready");
        Ok(())
    }

    /// Attaches the sandbox. A repeat for the same sandbox returns what it has. On error nothing is left behind.
    pub async fn add(&self, request: &AddRequest) -> Result<Attachment, PodNetworkError> {
        let pod_cidr = self.pod_cidr.borrow().ok_or(PodNetworkError::NoPodCidr)?;
        let gateway = pod_cidr.gateway().ok_or(PodNetworkError::PodCidrExhausted { pod_cidr })?;
        let mut attachment = {
            let mut state = self.state.lock().await;
            if let Some(known) = state.get(&request.sandbox_id) {
                return Ok(known.clone());
            }
            if let Some((port, by)) = state.host_port_clash(&request.host_ports) {
                return Err(PodNetworkError::HostPortTaken { port, by });
            }
            if let Some((port, service)) = self.config.lent_ports.clash(&request.host_ports) {
                return Err(PodNetworkError::HostPortLent { port, service });
            }
            state.lease(request, pod_cidr)?
        };
        // Other sandboxes may come and go while this one's interface is made; only the rules are one at a time.
        let made = self.connect(request, &mut attachment, gateway, pod_cidr).await;
        let made = match made {
            Ok(()) => self.publish(attachment).await,
            Err(error) => Err(error),
        };
        if made.is_err() {
            self.undo(&request.sandbox_id).await;
        }
        made
    }

    async fn connect(
        &self,
        request: &AddRequest,
        attachment: &mut Attachment,
        gateway: IpAddr,
        pod_cidr: Cidr,
    ) -> Result<(), PodNetworkError> {
        if let Some(policies) = &self.config.policies {
            policies.attach(attachment);
            policies.covered(&attachment.owner.namespace).await?;
        }
        let netlink = Netlink::open()?;
        let bridge = netlink.require(&self.config.bridge).await?;
        let peer = format!("p{}", &attachment.veth[1..]);
        // Left over from a process that was killed in between.
        netlink.delete(&attachment.veth).await?;
        netlink.add_veth(&attachment.veth, &peer).await?;
        let netns = sandbox::open(&request.netns)?;
        netlink.move_to(&peer, &netns).await?;
        let veth = netlink.require(&attachment.veth).await?;
        netlink.set_mtu(veth, self.config.mtu).await?;
        netlink.attach(veth, bridge).await?;
        let inside =
            sandbox::Inside { peer, mtu: self.config.mtu, address: attachment.ip, prefix: pod_cidr.prefix(), gateway };
        attachment.mac = sandbox::configure(netns, inside).await?;
        Ok(())
    }

    /// Keeps the attachment and lets its host ports lead to it.
    async fn publish(&self, attachment: Attachment) -> Result<Attachment, PodNetworkError> {
        let mut state = self.state.lock().await;
        let has_host_ports = !attachment.host_ports.is_empty();
        let attachment = state.keep(attachment)?;
        if has_host_ports {
            rules::load_host_ports(&self.iptables, state.all()).await?;
        }
        Ok(attachment)
    }

    async fn undo(&self, sandbox_id: &str) {
        if let Err(error) = self.del(sandbox_id).await {
            tracing::warn!(sandbox = sandbox_id, %error, "sandbox that could not be attached leaves something behind");
        }
    }

    /// Takes back what the sandbox has. A repeat succeeds.
    pub async fn del(&self, sandbox_id: &str) -> Result<(), PodNetworkError> {
        let mut state = self.state.lock().await;
        let Some(attachment) = state.get(sandbox_id).cloned() else { return Ok(()) };
        // The pod's end goes with ours. Only then may somebody else have the address.
        Netlink::open()?.delete(&attachment.veth).await?;
        if !attachment.host_ports.is_empty() {
            rules::load_host_ports(&self.iptables, state.all().filter(|other| other.sandbox_id != sandbox_id)).await?;
        }
        state.forget(sandbox_id)?;
        if let Some(policies) = &self.config.policies {
            policies.detach(sandbox_id);
        }
        Ok(())
    }

    /// Takes back what sandboxes have that no longer exist.
    pub async fn retain(&self, live: impl Fn(&str) -> bool) {
        let gone: Vec<String> = {
            let state = self.state.lock().await;
            state.all().map(|attachment| attachment.sandbox_id.clone()).filter(|id| !live(id)).collect()
        };
        for sandbox_id in gone {
            tracing::info!(sandbox = sandbox_id, "taking back the network of a sandbox that is gone");
            self.undo(&sandbox_id).await;
        }
    }

    /// Which sandbox has which address.
    pub async fn attachments(&self) -> BTreeMap<String, IpAddr> {
        self.state.lock().await.all().map(|attachment| (attachment.sandbox_id.clone(), attachment.ip)).collect()
    }
}

/// A locally administered address made of the gateway's, so that it is the same after a restart.
fn bridge_mac(gateway: IpAddr) -> [u8; 6] {
    let bytes = match gateway {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => {
            let octets = v6.octets();
            [octets[12], octets[13], octets[14], octets[15]]
        }
    };
    [0x0a, 0x58, bytes[0], bytes[1], bytes[2], bytes[3]]
}
