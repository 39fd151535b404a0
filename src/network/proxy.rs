//! The service proxy: keeps the node's iptables such that Services answer.
//!
//! [`plan`] decides from Services and EndpointSlices, [`rules`] writes that down as chains, [`sync`] loads what changed,
//! [`conntrack`] ends flows that the rules would not make any more, [`health`] tells load balancers. What was loaded stays in
//! force while mussel is away.

pub mod conntrack;
mod health;
pub mod plan;
pub mod rules;
mod sync;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use mussel_client::informer::Informer;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use crate::cidr::Cidr;
use crate::iptables::Iptables;
use crate::lent::LentPorts;
use sync::Loader;

/// Changes come in bursts (a rollout moves many endpoints); they are loaded together, at most this often.
const PASS_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// A burst begins with its first change; this little later its siblings have usually arrived.
const SETTLE: Duration = Duration::from_millis(5);
const RETRY: Duration = Duration::from_secs(2);
/// Somebody else may have flushed our chains (firewall reloads do); they are looked at this often.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);

pub struct Config {
    pub node_name: String,
    /// Traffic from outside these addresses is masqueraded, so that answers come back this way.
    pub cluster_cidr: Cidr,
    /// Service addresses that this machine itself answers on (the cluster DNS); they get no rules.
    pub local_addresses: BTreeSet<IpAddr>,
    /// The node's own. A load balancer that is this node answers on all of them, because packets to an external address may
    /// arrive with the internal one.
    pub node_addresses: Vec<IpAddr>,
    /// Is told the ports of those load balancers.
    pub lent_ports: LentPorts,
    pub iptables: Iptables,
}

pub struct Proxy {
    settings: plan::Settings,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    lent_ports: LentPorts,
    loader: Loader,
    udp: conntrack::UdpFlows,
    health: health::HealthChecks,
}

impl Proxy {
    pub fn new(config: Config, services: Informer<Service>, slices: Informer<EndpointSlice>) -> Self {
        let settings = plan::Settings {
            node_name: config.node_name,
            local_addresses: config.local_addresses,
            node_addresses: config.node_addresses,
        };
        Self {
            settings,
            services,
            slices,
            lent_ports: config.lent_ports,
            loader: Loader::new(config.iptables, config.cluster_cidr),
            udp: conntrack::UdpFlows::default(),
            health: health::HealthChecks::default(),
        }
    }

    /// Runs until `stop`; the rules stay.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut service_changes = self.services.changes();
        let mut slice_changes = self.slices.changes();
        // Before both are known, a pass would take away rules that are right.
        tokio::select! {
            () = stop.cancelled() => return,
            () = async { tokio::join!(self.services.synced(), self.slices.synced()); } => {}
        }
        loop {
            let started = Instant::now();
            let next_check = self.pass().await;
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                // Cancel-safe: a change that was not taken stays in its stream.
                _ = service_changes.next() => {}
                _ = slice_changes.next() => {}
                () = time::sleep(next_check) => self.loader.distrust(),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = time::sleep_until((started + PASS_INTERVAL_MIN).max(Instant::now() + SETTLE)) => {}
            }
            // One pass covers all that came in meanwhile.
            while futures::FutureExt::now_or_never(service_changes.next()).is_some() {}
            while futures::FutureExt::now_or_never(slice_changes.next()).is_some() {}
        }
    }

    /// Brings the rules to what the objects say now; returns how long until they should be looked at again.
    async fn pass(&mut self) -> Duration {
        let (services, slices) = (self.services.list(), self.slices.list());
        self.health.set(health::wanted(&self.settings, &services, &slices)).await;
        let ports = plan::plan(&self.settings, &services, &slices);
        self.lent_ports.set(&ports, &self.settings.node_addresses);
        match self.loader.load(&ports).await {
            Ok(()) => {
                self.udp.clean(&ports).await;
                CHECK_INTERVAL
            }
            Err(error) => {
                tracing::warn!(%error, "service rules are not loaded; trying again");
                RETRY
            }
        }
    }
}
