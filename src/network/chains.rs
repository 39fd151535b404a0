//! Chains of one table as text, and the text that turns some into others.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// The chains of one table, each with its rules (without `-A <chain>`).
pub type Chains = BTreeMap<String, Vec<String>>;

pub fn push(chains: &mut Chains, chain: &str, rule: String) {
    chains.entry(chain.to_owned()).or_default().push(rule);
}

/// Those chains of what iptables-save shows whose names begin with one of `prefixes`, with rules that match no desired one, so
/// that all are written anew.
pub fn present(saved: &str, prefixes: &[&str]) -> Chains {
    let names = saved.lines().filter_map(|line| line.strip_prefix(':')?.split_whitespace().next());
    let ours = names.filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)));
    ours.map(|name| (name.to_owned(), vec!["unknown".to_owned()])).collect()
}

/// The restore text that turns `loaded` into `desired`; empty when they are equal.
pub fn difference(table: &str, desired: &Chains, loaded: &Chains) -> String {
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
