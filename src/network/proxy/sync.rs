//! Loads tables into the kernel: only the chains that differ from what was loaded last.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::plan::ServicePort;
use super::rules::{Chains, JUMPS, OWNED_PREFIXES, Tables, tables};
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
        let present = Tables { nat: self.present("nat").await?, filter: self.present("filter").await? };
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

    /// Our chains in the kernel, with rules that match no desired one, so that all are written anew.
    async fn present(&self, table: &str) -> Result<Chains, IptablesError> {
        let saved = self.iptables.save(table).await?;
        let names = saved.lines().filter_map(|line| line.strip_prefix(':')?.split_whitespace().next());
        let ours = names.filter(|name| OWNED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)));
        Ok(ours.map(|name| (name.to_owned(), vec!["unknown".to_owned()])).collect())
    }
}

/// The restore text that turns `loaded` into `desired`; empty when they are equal.
fn difference(table: &str, desired: &Chains, loaded: &Chains) -> String {
    let changed: Vec<_> = desired.iter().filter(|(chain, rules)| loaded.get(*chain) != Some(rules)).collect();
    let gone: BTreeSet<_> = loaded.keys().filter(|chain| !desired.contains_key(*chain)).collect();
    if changed.is_empty() && gone.is_empty() {
        return String::new();
    }
    let mut text = format!("*{table}\n");
    // Naming a chain empties it. All come first, because rules may jump to any of them. Writing to a String cannot fail.
    for chain in changed.iter().map(|(chain, _)| *chain).chain(gone.iter().copied()) {
        let _ = writeln!(text, ":{chain} - [0:0]");
    }
    for (chain, rules) in &changed {
        for rule in *rules {
            let _ = writeln!(text, "-A {chain} {rule}");
        }
    }
    for chain in gone {
        let _ = writeln!(text, "-X {chain}");
    }
    text.push_str("COMMIT\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chains(text: &[(&str, &str)]) -> Chains {
        text.iter().map(|(chain, rule)| ((*chain).to_owned(), vec![(*rule).to_owned()])).collect()
    }

    #[test]
    fn only_what_changed_is_loaded() {
        let loaded = chains(&[("A", "x"), ("B", "y"), ("C", "z")]);
        let desired = chains(&[("A", "x"), ("B", "w"), ("D", "v")]);
        assert_eq!(
            difference("nat", &desired, &loaded),
            "*nat\n:B - [0:0]\n:D - [0:0]\n:C - [0:0]\n-A B w\n-A D v\n-X C\nCOMMIT\n"
        );
        assert_eq!(difference("nat", &desired, &desired), "");
    }
}
