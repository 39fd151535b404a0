//! NetworkPolicies: keeps from this node's pods, and keeps in, what no policy lets through.
//!
//! [`plan`] reads the objects, [`rules`] writes them down as chains, [`gate`] holds new pods back until the rules about them are
//! in force. While there is no policy nothing is installed, and Pods and Namespaces are not even watched. What was loaded stays
//! in force while mussel is away.

pub mod gate;
mod kept;
pub mod plan;
pub mod rules;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use futures::FutureExt;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use mussel_client::informer::kept::keep;
use mussel_client::informer::{Change, Changes, Informer, Informers};
use tokio::task::JoinHandle;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use crate::chains::{Chains, difference, present};
use crate::iptables::{Iptables, IptablesError};
use gate::Gate;

/// Changes come in bursts (a rollout moves many pods); they are loaded together, at most this often.
const PASS_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// A burst begins with its first change; this little later its siblings have usually arrived.
const SETTLE: Duration = Duration::from_millis(5);
const RETRY: Duration = Duration::from_secs(2);
/// Somebody else may have flushed our chains (firewall reloads do); they are looked at this often, while there are any.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// A server that is there has told all pods within this. After a reboot without one, what is known is better than nothing.
const HEAD_START: Duration = Duration::from_secs(6);
const TABLE: &str = "mangle";
/// Frames between pods of one node pass iptables only with this.
const BRIDGE_SETTING: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

pub struct Config {
    pub node_name: String,
    /// Where the cluster DNS answers. Policies see it as the pods that it is elsewhere: `k8s-app: kube-dns` in kube-system.
    pub dns: Vec<IpAddr>,
    pub iptables: Iptables,
    /// They must be able to read all Pods, Namespaces and NetworkPolicies.
    pub informers: Informers,
    pub gate: Gate,
    /// Namespaces, and what matters of pods, are kept in this folder for a start without a server.
    pub kept_dir: PathBuf,
}

pub struct Enforcer {
    config: Config,
    policies: Informer<NetworkPolicy>,
    loaded: Loaded,
}

/// What is in force, as far as we know.
enum Loaded {
    Unknown,
    Nothing,
    Chains(Chains),
}

/// Takes away all that was installed.
///
/// # Errors
/// When iptables refuses.
pub async fn remove(iptables: &Iptables) -> Result<(), IptablesError> {
    iptables.remove_chains(TABLE, &rules::OWNED_PREFIXES).await
}

impl Enforcer {
    pub fn new(config: Config) -> Self {
        let policies = config.informers.of();
        Self { config, policies, loaded: Loaded::Unknown }
    }

    /// Runs until `stop`; the rules stay.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut changes = self.policies.changes();
        // Before they are known, a pass would take away rules that are right.
        tokio::select! {
            () = stop.cancelled() => return,
            () = self.policies.synced() => {}
        }
        let mut attached = self.config.gate.subscribe();
        let mut others: Option<Others> = None;
        loop {
            let started = Instant::now();
            if !self.policies.is_empty() && others.is_none() {
                let started = Others::follow(&self.config, &stop);
                tokio::select! {
                    () = stop.cancelled() => return started.end().await,
                    // Whether or not they came.
                    _ = time::timeout(HEAD_START, started.synced()) => {}
                }
                others = Some(started);
            }
            attached.mark_unchanged();
            let next_check = self.pass(others.as_ref()).await;
            let mut is_late = false;
            let wakes = async {
                match others.as_mut() {
                    Some(others) if !self.policies.is_empty() => tokio::select! {
                        () = others.changed() => {}
                        // The gate lives as long as we do.
                        _ = attached.changed() => {}
                    },
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                // Cancel-safe: a change that was not taken stays in its stream.
                change = changes.next() => if change.is_none() { stop.cancelled().await },
                () = wakes => {}
                () = time::sleep(next_check.unwrap_or_default()), if next_check.is_some() => is_late = true,
            }
            if is_late {
                self.loaded = Loaded::Unknown;
                if let Some(others) = &others {
                    self.keep(others);
                }
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = time::sleep_until((started + PASS_INTERVAL_MIN).max(Instant::now() + SETTLE)) => {}
            }
            // One pass covers all that came in meanwhile.
            while changes.next().now_or_never().is_some_and(|change| change.is_some()) {}
            if let Some(others) = &mut others {
                others.skip();
            }
        }
        if let Some(others) = others {
            self.keep(&others);
            others.end().await;
        }
    }

    fn keep(&self, others: &Others) {
        if others.are_synced() {
            kept::store(&self.config.kept_dir, &others.pods.list());
        }
    }

    /// Brings the rules to what the objects say now; returns how long until they should be looked at again.
    async fn pass(&mut self, others: Option<&Others>) -> Option<Duration> {
        let attached = self.config.gate.attached();
        let policies = self.policies.list();
        let done = match others.filter(|_| !policies.is_empty()) {
            None => self.clear().await,
            Some(others) => {
                // Of this node's pods the sandboxes tell.
                let objects = match others.pods.is_synced() {
                    true => others.pods.list(),
                    false => kept::load(&self.config.kept_dir, &self.config.node_name),
                };
                let mut pods = plan::pods(&self.config.node_name, &objects, &attached.pods);
                pods.extend(self.config.dns.iter().filter_map(|ip| dns(*ip)));
                let namespaces = plan::namespaces(&others.namespaces.list());
                let desired = rules::chains(&plan::policies(&policies), &pods, &namespaces);
                self.load(desired, others.are_synced()).await
            }
        };
        match done {
            Ok(true) => {
                self.config.gate.set_in_force(Some(attached.change));
                (!policies.is_empty()).then_some(CHECK_INTERVAL)
            }
            // What an earlier process knew of the cluster's pods is more than what we know.
            Ok(false) => None,
            Err(error) => {
                tracing::warn!(%error, "network policies are not loaded; trying again");
                Some(RETRY)
            }
        }
    }

    async fn clear(&mut self) -> Result<bool, IptablesError> {
        if !matches!(self.loaded, Loaded::Nothing) {
            self.loaded = Loaded::Unknown;
            remove(&self.config.iptables).await?;
            self.loaded = Loaded::Nothing;
        }
        Ok(true)
    }

    /// `false` when the rules that an earlier process left are rather kept.
    async fn load(&mut self, desired: Chains, is_all_known: bool) -> Result<bool, IptablesError> {
        let loaded = match std::mem::replace(&mut self.loaded, Loaded::Unknown) {
            Loaded::Chains(chains) => chains,
            Loaded::Nothing | Loaded::Unknown => {
                let present = present(&self.config.iptables.save(TABLE).await?, &rules::OWNED_PREFIXES);
                if !is_all_known && !present.is_empty() {
                    return Ok(false);
                }
                check_bridge();
                // The jumps are looked at below.
                let text = difference(TABLE, &desired, &present);
                self.config.iptables.restore(&text).await?;
                for hook in rules::HOOKS {
                    self.config.iptables.ensure_rule(TABLE, hook, &["-j", rules::MAIN], false).await?;
                }
                desired.clone()
            }
        };
        let text = difference(TABLE, &desired, &loaded);
        if !text.is_empty() {
            self.config.iptables.restore(&text).await?;
        }
        self.loaded = Loaded::Chains(desired);
        Ok(true)
    }
}

/// Says so when pods of one node could talk to each other past all policies.
fn check_bridge() {
    match std::fs::read_to_string(BRIDGE_SETTING) {
        Ok(text) if text.trim() == "1" => {}
        _ => tracing::error!(
            setting = BRIDGE_SETTING,
            "is not 1: network policies do not hold between pods of this node; load the kernel module br_netfilter"
        ),
    }
}

/// The DNS of this node, as policies see it.
fn dns(ip: IpAddr) -> Option<plan::Pod> {
    let IpAddr::V4(ip) = ip else { return None };
    let ports = [("dns", "udp", 53), ("dns-tcp", "tcp", 53)];
    Some(plan::Pod {
        namespace: "kube-system".to_owned(),
        name: "kube-dns".to_owned(),
        labels: [("k8s-app".to_owned(), "kube-dns".to_owned())].into(),
        ip: Ipv4Addr::from(ip.octets()),
        local: false,
        ports: ports.map(|(name, protocol, number)| (name.to_owned(), protocol, number)).into(),
    })
}

/// What policies are about and name. Followed from the first policy on.
struct Others {
    pods: Informer<Pod>,
    namespaces: Informer<Namespace>,
    pod_changes: Changes<Pod>,
    namespace_changes: Changes<Namespace>,
    keeping: JoinHandle<()>,
}

impl Others {
    fn follow(config: &Config, stop: &CancellationToken) -> Self {
        let (pods, namespaces) = (config.informers.of::<Pod>(), config.informers.of::<Namespace>());
        let keeping = tokio::spawn(keep(namespaces.clone(), config.kept_dir.join("namespaces.json"), stop.clone()));
        Self { pod_changes: pods.changes(), namespace_changes: namespaces.changes(), pods, namespaces, keeping }
    }

    async fn synced(&self) {
        tokio::join!(self.pods.synced(), self.namespaces.synced());
    }

    fn are_synced(&self) -> bool {
        self.pods.is_synced() && self.namespaces.is_synced()
    }

    /// # Cancel safety
    /// A change that was not taken stays in its stream.
    async fn changed(&mut self) {
        loop {
            tokio::select! {
                change = self.pod_changes.next() => match change {
                    Some(change) if matters(&change) => return,
                    Some(_) => {}
                    None => std::future::pending().await,
                },
                change = self.namespace_changes.next() => match change {
                    Some(_) => return,
                    None => std::future::pending().await,
                },
            }
        }
    }

    fn skip(&mut self) {
        while self.pod_changes.next().now_or_never().is_some_and(|change| change.is_some()) {}
        while self.namespace_changes.next().now_or_never().is_some_and(|change| change.is_some()) {}
    }

    async fn end(self) {
        // It was told to stop by the same token, and writes what it has.
        let _ = self.keeping.await;
    }
}

/// Most changes of pods are news about containers.
fn matters(change: &Change<Pod>) -> bool {
    let Change::Applied { old: Some(old), new } = change else { return true };
    let seen = |pod: &Pod| {
        let (spec, status) = (pod.spec.as_ref(), pod.status.as_ref());
        (
            pod.metadata.uid.clone(),
            pod.metadata.labels.clone(),
            pod.metadata.deletion_timestamp.is_some(),
            spec.and_then(|spec| spec.node_name.clone()),
            status.and_then(|status| status.pod_ip.clone()),
            status.and_then(|status| status.phase.clone()),
        )
    };
    seen(old) != seen(new)
}

#[cfg(test)]
mod tests;
