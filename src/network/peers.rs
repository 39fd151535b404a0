//! Routes to the pods of other nodes.
//!
//! Nodes tell each other by annotations of their Node objects where they are ([`lease`]), [`plan`] decides what the kernel has
//! to know of them, [`kernel`] looks and acts. Ours are the interface `flannel.1` with all it knows, and the routes whose
//! protocol number is ours; no others are touched. What was made stays in force while mussel is away, and is on disk for a
//! start without a server.

mod kernel;
mod lease;
mod plan;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use mussel_client::informer::{Change, Changes, Informer};
use serde_json::json;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::backend::Backend;
use crate::cidr::Cidr;
use crate::ethtool;
use crate::mac::Mac;
use crate::netlink::{Netlink, NetlinkError};
use crate::uplink::Uplink;
use kernel::Vxlan;
use lease::Lease;
pub use plan::NextHop;
use plan::{Entries, Own, Unreachable};
use watch::KernelWatch;

/// flannel's names and numbers, so that firewalls stay as they are.
pub const VXLAN_INTERFACE: &str = "flannel.1";
const VNI: u32 = 1;
const VXLAN_PORT: u16 = 8472;

/// Nodes join in bursts, and one joining node changes several times; this little later the burst is over.
const SETTLE: Duration = Duration::from_millis(50);
const RETRY: Duration = Duration::from_secs(5);
/// A cluster of more nodes than this has outgrown one table of routes per node.
const NODES_MAX: usize = 5000;

pub struct Config {
    pub node_name: String,
    pub backend: Backend,
    pub cluster_cidr: Cidr,
    pub uplink: Uplink,
    /// The address by which others reach this node, when it is not the uplink's.
    pub external_ip: Option<IpAddr>,
    /// The leases as last seen are kept in this file.
    pub kept: PathBuf,
}

pub struct Peers {
    config: Config,
    nodes: Informer<Node>,
    api: Api<Node>,
    known: Vec<Lease>,
    /// What was said of whom, so that it is said once.
    left_out: BTreeSet<Unreachable>,
}

#[derive(Debug, thiserror::Error)]
enum PassError {
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error("tell other nodes where this one is")]
    Announce(#[source] kube::Error),
}

impl Peers {
    /// `client` may change this node's own Node object.
    pub fn new(config: Config, nodes: Informer<Node>, client: Client) -> Self {
        Self { config, nodes, api: Api::all(client), known: Vec::new(), left_out: BTreeSet::new() }
    }

    /// Runs until `stop`; routes stay.
    pub async fn run(mut self, stop: CancellationToken) {
        if self.config.backend == Backend::None {
            // A tunnel and routes of an earlier choice would compete with whoever connects the nodes now.
            if let Err(error) = remove().await {
                tracing::warn!(%error, "what an earlier backend left is not removed");
            }
            return stop.cancelled().await;
        }
        let mut changes = self.nodes.changes();
        self.known = self.load();
        let mut watch = self.watch();
        let nodes = self.nodes.clone();
        let mut synced = false;
        loop {
            synced |= nodes.is_synced();
            let next = self.pass().await;
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                // Cancel-safe: a change that was not taken stays in its stream.
                alive = relevant(&mut changes) => if !alive { return stop.cancelled().await },
                () = nodes.synced(), if !synced => {}
                () = heard(watch.as_ref()) => {}
                () = time::sleep(next) => if watch.is_none() { watch = self.watch() },
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = time::sleep(SETTLE) => {}
            }
            // One pass covers all that came in meanwhile.
            while futures::FutureExt::now_or_never(changes.next()).is_some_and(|change| change.is_some()) {}
        }
    }

    fn watch(&self) -> Option<KernelWatch> {
        let devices = vec![VXLAN_INTERFACE.to_owned(), self.config.uplink.name.clone()];
        match KernelWatch::open(devices) {
            Ok(watch) => Some(watch),
            Err(error) => {
                tracing::warn!(%error, "changes by others to this node's routes are not seen");
                None
            }
        }
    }

    /// Brings kernel and Node object to what is known now; returns how long until that should be tried again.
    async fn pass(&mut self) -> Duration {
        // Before the first list, what is on disk is the best there is; an empty list would take routes away that are right.
        if self.nodes.is_synced() {
            let nodes = self.nodes.list();
            let leases: Vec<Lease> = nodes.iter().filter_map(|node| Lease::of(node)).take(NODES_MAX).collect();
            if leases != self.known {
                self.known = leases;
                self.keep();
            }
        } else if self.known.is_empty() {
            return Duration::MAX;
        }
        // One does not wait for the other: this node's routes are right although nobody can be told, and the reverse.
        let routed = self.route().await;
        let announced = self.announce().await;
        let mut next = Duration::MAX;
        for error in [routed.err(), announced.err()].into_iter().flatten() {
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            tracing::warn!(%error, source, "pod network to other nodes is not complete; trying again");
            next = RETRY;
        }
        next
    }

    async fn route(&mut self) -> Result<(), PassError> {
        let netlink = Netlink::open()?;
        let own_cidrs = self.own_cidrs();
        let tunnel = match self.config.backend {
            Backend::Vxlan => Some(self.tunnel(&netlink, &own_cidrs).await?),
            Backend::HostGw | Backend::None => {
                netlink.delete(VXLAN_INTERFACE).await?;
                None
            }
        };
        let device = tunnel.unwrap_or(self.config.uplink.index);
        let hops = if tunnel.is_none() { self.hops(&netlink).await? } else { BTreeMap::new() };
        let own = Own {
            node: self.config.node_name.clone(),
            backend: self.config.backend,
            pod_cidrs: own_cidrs,
            cluster_cidr: self.config.cluster_cidr,
            public_ip: self.public_ip(),
            device,
        };
        let (desired, left_out) = plan::desired(&own, &self.known, &hops);
        self.report(left_out);
        let observed = kernel::observe(&netlink, tunnel).await?;
        let result = apply_all(&netlink, tunnel, &desired, &observed).await;
        if desired.routes != observed.routes && result.is_ok() {
            tracing::info!(nodes = desired.routes.len(), backend = own.backend.as_str(), "routes to other nodes' pods");
        }
        result
    }

    /// `flannel.1`, up and ready.
    async fn tunnel(&self, netlink: &Netlink, own_cidrs: &[Cidr]) -> Result<u32, PassError> {
        let uplink = &self.config.uplink;
        let vxlan = Vxlan {
            name: VXLAN_INTERFACE,
            vni: VNI,
            port: VXLAN_PORT,
            mac: self.vtep_mac(),
            mtu: self.config.backend.pod_mtu(uplink.mtu, uplink.ip),
        };
        let index = kernel::ensure_vxlan(netlink, &vxlan, uplink).await?;
        for cidr in own_cidrs {
            let bits = if cidr.address().is_ipv4() { 32 } else { 128 };
            netlink.set_only_address(index, cidr.address(), bits).await?;
        }
        // Some drivers get the checksum of a packet in a packet wrong, and all of it is lost (kubernetes #88986).
        if let Err(error) = ethtool::transmit_checksum_off(VXLAN_INTERFACE) {
            tracing::debug!(%error, "checksum offload of {VXLAN_INTERFACE} cannot be switched off");
        }
        netlink.up(index).await?;
        Ok(index)
    }

    async fn hops(&self, netlink: &Netlink) -> Result<BTreeMap<IpAddr, NextHop>, PassError> {
        let mut hops = BTreeMap::new();
        for lease in self.known.iter().filter(|lease| lease.node != self.config.node_name) {
            if let Some(hop) = netlink.next_hop(lease.public_ip).await? {
                hops.insert(lease.public_ip, hop);
            }
        }
        Ok(hops)
    }

    fn report(&mut self, left_out: BTreeSet<Unreachable>) {
        for why in left_out.difference(&self.left_out) {
            tracing::warn!("pods cannot be reached: {why}");
        }
        self.left_out = left_out;
    }

    /// Writes this node's annotations, if its object lacks them.
    async fn announce(&self) -> Result<(), PassError> {
        // Before that it has yet to be registered; its change wakes us.
        let Some(node) = self.nodes.get("", &self.config.node_name) else { return Ok(()) };
        let uplink = &self.config.uplink;
        let wanted = lease::announcement(
            self.config.backend,
            VNI,
            self.vtep_mac(),
            uplink.ip,
            self.config.external_ip.filter(|ip| *ip != uplink.ip),
        );
        let present = node.metadata.annotations.as_ref();
        if wanted.iter().all(|(key, value)| present.and_then(|present| present.get(key)) == Some(value)) {
            return Ok(());
        }
        let patch = json!({"metadata": {"annotations": wanted}});
        let patched = self.api.patch(&self.config.node_name, &PatchParams::default(), &Patch::Merge(patch)).await;
        match patched {
            Ok(_) => Ok(()),
            // Deleted meanwhile; it will be registered anew.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(PassError::Announce(error)),
        }
    }

    /// As its Node object says, or as it last did.
    fn own_cidrs(&self) -> Vec<Cidr> {
        let name = &self.config.node_name;
        let now = self.nodes.get("", name).map(|node| lease::pod_cidrs(&node)).filter(|cidrs| !cidrs.is_empty());
        let before = || self.known.iter().find(|lease| lease.node == *name).map(|lease| lease.pod_cidrs.clone());
        now.or_else(before).unwrap_or_default()
    }

    fn public_ip(&self) -> IpAddr {
        self.config.external_ip.unwrap_or(self.config.uplink.ip)
    }

    /// Made of the node's name: the same after every restart, and nothing to keep.
    fn vtep_mac(&self) -> Mac {
        Mac::derived(&format!("{VXLAN_INTERFACE} of {}", self.config.node_name))
    }

    fn load(&self) -> Vec<Lease> {
        let path = &self.config.kept;
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "ignoring a file that is no list of nodes");
                Vec::new()
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "other nodes are not known until a server answers");
                Vec::new()
            }
        }
    }

    fn keep(&self) {
        let path = &self.config.kept;
        let aside = path.with_extension("new");
        let written = path
            .parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::write(&aside, serde_json::to_vec(&self.known).unwrap_or_default()))
            .and_then(|()| fs::rename(&aside, path));
        if let Err(error) = written {
            tracing::warn!(path = %path.display(), %error, "other nodes are not kept for a start without a server");
        }
    }
}

/// Goes on after a failure, so that one node that cannot be reached does not hide the others.
async fn apply_all(
    netlink: &Netlink,
    tunnel: Option<u32>,
    desired: &Entries,
    observed: &Entries,
) -> Result<(), PassError> {
    let mut result = Ok(());
    for step in plan::steps(desired, observed) {
        tracing::debug!(?step, "changing routes");
        if let Err(error) = kernel::apply(netlink, tunnel, &step).await {
            tracing::debug!(%error, "a step failed");
            result = Err(error.into());
        }
    }
    result
}

/// Waits for a change of some node that concerns routes; `false` when no more will come.
async fn relevant(changes: &mut Changes<Node>) -> bool {
    loop {
        match changes.next().await {
            None => return false,
            Some(Change::Applied { old: Some(old), new })
                if old.spec == new.spec && old.metadata.annotations == new.metadata.annotations => {}
            Some(_) => return true,
        }
    }
}

async fn heard(watch: Option<&KernelWatch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

/// Removes all that connects this node to others.
pub async fn remove() -> Result<(), NetlinkError> {
    let netlink = Netlink::open()?;
    netlink.delete(VXLAN_INTERFACE).await?;
    kernel::remove_routes(&netlink).await
}
