//! Loads tables into the kernel: only the chains that differ from what was loaded last.

use super::plan::ServicePort;
use super::rules::{JUMPS, OWNED_PREFIXES, Tables, tables};
use crate::chains::{Chains, difference, present};
use crate::cidr::Cidr;
use crate::iptables::{Iptables, IptablesError};

pub struct Loader {
    iptables: Iptables,
    cluster_cidr: Cidr,
    /// What is in force, as far as we know; `None`: look.
    loaded: Option<Tables>,
}

impl Loader {
    pub fn new(iptables: Iptables, cluster_cidr: Cidr) -> Self {
        Self { iptables, cluster_cidr, loaded: None }
    }

    /// Somebody may have changed our chains: the next load compares with the kernel.
    pub fn distrust(&mut self) {
        self.loaded = None;
    }

    pub async fn load(&mut self, ports: &[ServicePort]) -> Result<(), IptablesError> {
        let desired = tables(ports, self.cluster_cidr);
        match self.loaded.take() {
            Some(loaded) => {
                let text = [
                    difference("nat", &desired.nat, &loaded.nat),
                    difference("filter", &desired.filter, &loaded.filter),
                ]
                .concat();
                if !text.is_empty() {
                    self.iptables.restore(&text).await?;
                }
            }
            None => self.load_all(&desired).await?,
        }
        self.loaded = Some(desired);
        Ok(())
    }

    /// Replaces everything of ours, and removes what an earlier process left that is no longer wanted.
    async fn load_all(&self, desired: &Tables) -> Result<(), IptablesError> {
        let ours =
            async |table| Ok::<Chains, IptablesError>(present(&self.iptables.save(table).await?, &OWNED_PREFIXES));
        let present = Tables { nat: ours("nat").await?, filter: ours("filter").await? };
        let text =
            [difference("nat", &desired.nat, &present.nat), difference("filter", &desired.filter, &present.filter)];
        self.iptables.restore(&text.concat()).await?;
        // Written for NodePorts on 127.0.0.1; KUBE-FIREWALL, loaded just now, guards it.
        if let Err(error) = std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1") {
            tracing::warn!(%error, "NodePorts will not answer on 127.0.0.1");
        }
        for (table, chain, rule) in JUMPS {
            self.iptables.ensure_rule(table, chain, rule, false).await?;
        }
        Ok(())
    }
}
