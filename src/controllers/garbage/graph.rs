//! Who depends on whom.
//!
//! Only objects that have owners, or that wait for their dependents, are kept with names; of all others the uid alone,
//! because almost everything in a cluster is owned by nothing.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// A uid in 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uid(u128);

impl Uid {
    pub fn parse(text: &str) -> Self {
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        if digits.len() == 32
            && let Ok(number) = u128::from_str_radix(&digits, 16)
        {
            return Self(number);
        }
        // Not a UUID, which only a foreign writer makes.
        let half = |salt: u8| {
            let mut hasher = DefaultHasher::new();
            (salt, text).hash(&mut hasher);
            u128::from(hasher.finish())
        };
        Self(half(0) << 64 | half(1))
    }
}

/// Index of a kind in the collector's table.
pub type KindId = usize;

#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub kind: KindId,
    pub namespace: String,
    pub name: String,
    pub owners: Vec<OwnerReference>,
    pub deleting: bool,
    /// Deleted in the foreground: waits until its dependents are gone.
    pub foreground: bool,
    /// Deleted with its dependents to be left alone.
    pub orphan: bool,
}

#[derive(Debug, Default)]
pub struct Graph {
    live: HashMap<Uid, KindId>,
    nodes: HashMap<Uid, Node>,
    dependents: HashMap<Uid, HashSet<Uid>>,
}

pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";

impl Graph {
    /// An object as it is now. Answers which objects have to be looked at because of it.
    pub fn observe(&mut self, kind: KindId, meta: &ObjectMeta) -> Vec<Uid> {
        let Some(uid) = meta.uid.as_deref().map(Uid::parse) else { return Vec::new() };
        self.live.insert(uid, kind);
        let has = |finalizer: &str| meta.finalizers.as_ref().is_some_and(|f| f.iter().any(|f| f == finalizer));
        let deleting = meta.deletion_timestamp.is_some();
        let node = Node {
            kind,
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            owners: meta.owner_references.clone().unwrap_or_default(),
            deleting,
            foreground: deleting && has(FOREGROUND),
            orphan: deleting && has(ORPHAN),
        };
        let before = self.unlink(uid);
        if node.owners.is_empty() && !node.foreground && !node.orphan {
            return before.map(|old| self.unblocked(&old.owners)).unwrap_or_default();
        }
        for owner in &node.owners {
            self.dependents.entry(Uid::parse(&owner.uid)).or_default().insert(uid);
        }
        let mut look = Vec::new();
        if before.as_ref() != Some(&node) {
            let absent = node.owners.iter().any(|owner| !self.live.contains_key(&Uid::parse(&owner.uid)));
            let waited_for = node.owners.iter().any(|owner| self.is_foreground(&Uid::parse(&owner.uid)));
            if absent || waited_for || node.foreground || node.orphan {
                look.push(uid);
            }
            if let Some(old) = &before {
                look.extend(self.unblocked(&old.owners));
            }
        }
        self.nodes.insert(uid, node);
        look
    }

    /// An object that is gone. Answers which objects have to be looked at because of it.
    pub fn forget(&mut self, uid: Uid) -> Vec<Uid> {
        self.live.remove(&uid);
        let node = self.unlink(uid);
        let mut look: Vec<Uid> = self.dependents.get(&uid).into_iter().flatten().copied().collect();
        look.extend(node.iter().flat_map(|node| self.unblocked(&node.owners)));
        look
    }

    fn unlink(&mut self, uid: Uid) -> Option<Node> {
        let node = self.nodes.remove(&uid)?;
        for owner in &node.owners {
            let owner = Uid::parse(&owner.uid);
            if let Some(set) = self.dependents.get_mut(&owner) {
                set.remove(&uid);
                if set.is_empty() {
                    self.dependents.remove(&owner);
                }
            }
        }
        Some(node)
    }

    /// Owners that wait for their dependents may have one less to wait for.
    fn unblocked(&self, owners: &[OwnerReference]) -> Vec<Uid> {
        owners.iter().map(|owner| Uid::parse(&owner.uid)).filter(|uid| self.is_foreground(uid)).collect()
    }

    fn is_foreground(&self, uid: &Uid) -> bool {
        self.nodes.get(uid).is_some_and(|node| node.foreground)
    }

    pub fn node(&self, uid: Uid) -> Option<&Node> {
        self.nodes.get(&uid)
    }

    pub fn is_live(&self, uid: Uid) -> bool {
        self.live.contains_key(&uid)
    }

    pub fn dependents(&self, uid: Uid) -> Vec<(Uid, Node)> {
        let set = self.dependents.get(&uid).into_iter().flatten();
        set.filter_map(|uid| Some((*uid, self.nodes.get(uid)?.clone()))).collect()
    }

    /// Objects of a kind that a full list did not contain.
    pub fn missing(&self, kind: KindId, seen: &HashSet<Uid>) -> Vec<Uid> {
        self.live.iter().filter(|(uid, k)| **k == kind && !seen.contains(uid)).map(|(uid, _)| *uid).collect()
    }

    /// Everything that may have work left over from before we watched.
    pub fn suspects(&self) -> Vec<Uid> {
        let suspect = |node: &Node| {
            node.foreground
                || node.orphan
                || node.owners.iter().any(|o| {
                    let owner = Uid::parse(&o.uid);
                    !self.is_live(owner) || self.is_foreground(&owner)
                })
        };
        self.nodes.iter().filter(|(_, node)| suspect(node)).map(|(uid, _)| *uid).collect()
    }
}

pub fn blocks(node: &Node, owner: Uid) -> bool {
    node.owners.iter().any(|o| o.block_owner_deletion == Some(true) && Uid::parse(&o.uid) == owner)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn meta(uid: &str, owners: &[&str], extra: serde_json::Value) -> ObjectMeta {
        let owners: Vec<_> = owners
            .iter()
            .map(|o| json!({"apiVersion": "v1", "kind": "X", "name": o, "uid": o, "blockOwnerDeletion": true}))
            .collect();
        let mut meta: ObjectMeta = serde_json::from_value(extra).unwrap();
        meta.uid = Some(uid.to_owned());
        meta.name = Some(uid.to_owned());
        meta.owner_references = serde_json::from_value(json!(owners)).unwrap();
        meta
    }

    #[test]
    fn dependents_are_looked_at_when_the_last_owner_goes() {
        let mut graph = Graph::default();
        assert!(graph.observe(0, &meta("owner", &[], json!({}))).is_empty());
        assert!(graph.observe(1, &meta("child", &["owner"], json!({}))).is_empty());
        assert_eq!(graph.forget(Uid::parse("owner")), [Uid::parse("child")]);
        assert_eq!(graph.suspects(), [Uid::parse("child")]);
        assert_eq!(graph.observe(1, &meta("other", &["nobody"], json!({}))), [Uid::parse("other")]);
    }

    #[test]
    fn an_owner_in_the_foreground_waits_for_its_dependents() {
        let mut graph = Graph::default();
        let waiting = json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [FOREGROUND]});
        graph.observe(1, &meta("child", &["owner"], json!({})));
        assert_eq!(graph.observe(0, &meta("owner", &[], waiting)), [Uid::parse("owner")]);
        let dependents = graph.dependents(Uid::parse("owner"));
        assert!(blocks(&dependents[0].1, Uid::parse("owner")));
        assert_eq!(graph.forget(Uid::parse("child")), [Uid::parse("owner")]);
        assert!(graph.dependents(Uid::parse("owner")).is_empty());
    }

    #[test]
    fn a_relist_finds_what_is_missing() {
        let mut graph = Graph::default();
        graph.observe(3, &meta("a", &[], json!({})));
        graph.observe(4, &meta("b", &[], json!({})));
        assert_eq!(graph.missing(3, &HashSet::new()), [Uid::parse("a")]);
    }
}
