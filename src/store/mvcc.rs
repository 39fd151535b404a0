//! The versioned key space and what a Txn does to it. Pure: equal states and equal Txns give equal results, on every
//! member and at every replay.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;

use crate::raft::Outcome;
use crate::{Commit, Event, Precondition, Revision, Txn, Versioned};

pub(crate) type Map = OrdMap<Bytes, Versioned>;

/// All keys at one revision. A clone is a pointer copy.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeySpace {
    pub(crate) map: Map,
    pub(crate) revision: Revision,
    /// Sum over all keys, see [`fingerprint`].
    pub(crate) digest: u64,
}

impl KeySpace {
    /// Applies `txn`; a commit that changed something comes with its events.
    pub(crate) fn apply(&mut self, txn: &Txn) -> (Outcome, Option<Commit>) {
        if let Some((index, current)) = refusal(&self.map, txn) {
            return (Outcome::Refused { index, current }, None);
        }
        // The last change of a key counts, and it gets one event.
        let mut changes: BTreeMap<&Bytes, Option<&Bytes>> = BTreeMap::new();
        changes.extend(txn.puts.iter().map(|(key, value)| (key, Some(value))));
        changes.extend(txn.deletes.iter().map(|key| (key, None)));

        let revision = Revision(self.revision.0 + 1);
        let mut events = Vec::with_capacity(changes.len());
        for (key, value) in changes {
            let previous = match value {
                Some(value) => self.insert(key.clone(), Versioned { value: value.clone(), revision }),
                None => match self.remove(key) {
                    Some(previous) => Some(previous),
                    None => continue,
                },
            };
            events.push(Event { key: key.clone(), value: value.cloned(), previous });
        }
        if events.is_empty() {
            return (Outcome::Committed(self.revision), None);
        }
        self.revision = revision;
        (Outcome::Committed(revision), Some(Commit { revision, events: Arc::from(events) }))
    }

    pub(crate) fn insert(&mut self, key: Bytes, versioned: Versioned) -> Option<Versioned> {
        self.digest = self.digest.wrapping_add(fingerprint(&key, &versioned));
        // The key that is there already is kept, so that one key's bytes are held once.
        let previous = match self.map.get_mut(&key) {
            Some(current) => Some(std::mem::replace(current, versioned)),
            None => self.map.insert(key.clone(), versioned),
        };
        if let Some(previous) = &previous {
            self.digest = self.digest.wrapping_sub(fingerprint(&key, previous));
        }
        previous
    }

    pub(crate) fn remove(&mut self, key: &Bytes) -> Option<Versioned> {
        let previous = self.map.remove(key)?;
        self.digest = self.digest.wrapping_sub(fingerprint(key, &previous));
        Some(previous)
    }
}

/// The first precondition of `txn` that does not hold, and what its key has instead.
pub(crate) fn refusal(map: &Map, txn: &Txn) -> Option<(usize, Option<Versioned>)> {
    txn.preconditions.iter().enumerate().find_map(|(index, precondition)| {
        let (key, holds): (_, fn(Option<&Versioned>, Revision) -> bool) = match precondition {
            Precondition::Absent(key) => (key, |current, _| current.is_none()),
            Precondition::At(key, _) => (key, |current, at| current.is_some_and(|current| current.revision == at)),
            Precondition::Present(key) => (key, |current, _| current.is_some()),
        };
        let at = match precondition {
            Precondition::At(_, revision) => *revision,
            _ => Revision::default(),
        };
        let current = map.get(key);
        (!holds(current, at)).then(|| (index, current.cloned()))
    })
}

/// FNV-1a over a key, its revision and the length of its value: enough to notice a lost or stale page.
pub(crate) fn fingerprint(key: &[u8], versioned: &Versioned) -> u64 {
    let revision = versioned.revision.0.to_le_bytes();
    let length = (versioned.value.len() as u64).to_le_bytes();
    key.iter()
        .chain(&revision)
        .chain(&length)
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// The applied state at one revision. Cheap to clone; it keeps what it shows alive, so do not hold it for long.
#[derive(Clone, Debug)]
pub struct Snapshot {
    map: Map,
    revision: Revision,
}

impl Snapshot {
    pub(crate) fn new(map: Map, revision: Revision) -> Self {
        Self { map, revision }
    }

    pub(crate) fn map(&self) -> &Map {
        &self.map
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    pub fn get(&self, key: &[u8]) -> Option<&Versioned> {
        self.map.get(key)
    }

    /// In key order: the keys that begin with `prefix`, from `start` on. `start` may be `prefix` itself.
    pub fn range<'a>(&'a self, prefix: &[u8], start: &[u8]) -> impl Iterator<Item = (&'a Bytes, &'a Versioned)> + 'a {
        let prefix = prefix.to_vec();
        let start = start.max(prefix.as_slice()).to_vec();
        self.map
            .range::<_, [u8]>((Bound::Included(start.as_slice()), Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(&prefix))
    }

    /// How many keys begin with `prefix`. Takes time in proportion to the answer.
    pub fn count(&self, prefix: &[u8]) -> usize {
        if prefix.is_empty() { self.map.len() } else { self.range(prefix, prefix).count() }
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// A hash over all keys, revisions and values: equal for equal contents, on whatever member. Reads everything.
    pub fn digest(&self) -> u64 {
        let mut hash = ContentHash::default();
        hash.word(self.revision.0);
        for (key, versioned) in &self.map {
            hash.entry(key, versioned);
        }
        hash.finish()
    }
}

/// As [`Snapshot::digest`], step by step: a pass over everything is too long for a task that others wait behind.
pub(crate) async fn digest_in_steps(snapshot: &Snapshot) -> u64 {
    let mut hash = ContentHash::default();
    hash.word(snapshot.revision.0);
    for (index, (key, versioned)) in snapshot.map.iter().enumerate() {
        hash.entry(key, versioned);
        if index % 256 == 255 {
            tokio::task::yield_now().await;
        }
    }
    hash.finish()
}

/// A hash of eight bytes at a time, to notice damage and to compare what members hold; not made against ill will.
#[derive(Debug, Default)]
pub(crate) struct ContentHash(u64);

impl ContentHash {
    pub(crate) fn word(&mut self, word: u64) {
        let mixed = (self.0.rotate_left(29) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u64);
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word));
        }
    }

    pub(crate) fn entry(&mut self, key: &[u8], versioned: &Versioned) {
        self.bytes(key);
        self.word(versioned.revision.0);
        self.bytes(&versioned.value);
    }

    pub(crate) fn finish(&self) -> u64 {
        self.0
    }
}

/// Takes back what `commits`, oldest first and without a gap, have done to `map`.
pub(crate) fn undo(map: &mut Map, commits: &[Commit]) {
    for event in commits.iter().rev().flat_map(|commit| commit.events.iter().rev()) {
        match &event.previous {
            Some(previous) => map.insert(event.key.clone(), previous.clone()),
            None => map.remove(&event.key),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// The simplest thing that could be right: every revision's whole contents.
    #[derive(Default)]
    struct Model {
        revisions: Vec<BTreeMap<Vec<u8>, (Vec<u8>, u64)>>,
    }

    impl Model {
        fn new() -> Self {
            Self { revisions: vec![BTreeMap::new()] }
        }

        fn apply(&mut self, txn: &Txn) -> Outcome {
            let now = self.revisions.last().unwrap();
            for (index, precondition) in txn.preconditions.iter().enumerate() {
                let (key, ok) = match precondition {
                    Precondition::Absent(key) => (key, !now.contains_key(&key[..])),
                    Precondition::Present(key) => (key, now.contains_key(&key[..])),
                    Precondition::At(key, at) => {
                        (key, now.get(&key[..]).is_some_and(|(_, revision)| *revision == at.0))
                    }
                };
                if !ok {
                    let current = now.get(&key[..]).map(|(value, revision)| Versioned {
                        value: value.clone().into(),
                        revision: Revision(*revision),
                    });
                    return Outcome::Refused { index, current };
                }
            }
            let revision = self.revisions.len() as u64;
            let mut next = now.clone();
            for (key, value) in &txn.puts {
                next.insert(key.to_vec(), (value.to_vec(), revision));
            }
            for key in &txn.deletes {
                next.remove(&key[..]);
            }
            if next == *now {
                return Outcome::Committed(Revision(revision - 1));
            }
            self.revisions.push(next);
            Outcome::Committed(Revision(revision))
        }
    }

    /// xorshift: the sequence, and so a failure, depends on the seed alone.
    struct Random(u64);

    impl Random {
        fn below(&mut self, n: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % n
        }

        fn key(&mut self) -> Bytes {
            format!("/{}/{}", self.below(3), self.below(12)).into()
        }

        fn txn(&mut self, revision: u64) -> Txn {
            let mut txn = Txn::default();
            for _ in 0..self.below(2) {
                let key = self.key();
                txn.preconditions.push(match self.below(3) {
                    0 => Precondition::Absent(key),
                    1 => Precondition::Present(key),
                    _ => Precondition::At(key, Revision(self.below(revision + 2))),
                });
            }
            for _ in 0..self.below(4) {
                txn.puts.push((self.key(), format!("{}", self.0).into()));
            }
            for _ in 0..self.below(3) {
                txn.deletes.push(self.key());
            }
            txn
        }
    }

    fn contents(map: &Map) -> BTreeMap<Vec<u8>, (Vec<u8>, u64)> {
        map.iter().map(|(k, v)| (k.to_vec(), (v.value.to_vec(), v.revision.0))).collect()
    }

    #[test]
    fn behaves_as_the_model_for_any_sequence() {
        for seed in 1..=60 {
            let mut random = Random(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(seed));
            let (mut space, mut model) = (KeySpace::default(), Model::new());
            let mut commits = Vec::new();
            for _ in 0..200 {
                let txn = random.txn(space.revision.0);
                let expected = model.apply(&txn);
                let (outcome, commit) = space.apply(&txn);
                // A put and delete of one absent key is no change in either.
                assert_eq!(outcome, expected, "seed {seed}: {txn:?}");
                if let Some(commit) = commit {
                    assert!(!commit.events.is_empty());
                    commits.push(commit);
                }
                assert_eq!(contents(&space.map), *model.revisions.last().unwrap(), "seed {seed}");
            }
            let digest = space.map.iter().fold(0u64, |sum, (k, v)| sum.wrapping_add(fingerprint(k, v)));
            assert_eq!(space.digest, digest);
            for past in 0..space.revision.0 {
                let mut map = space.map.clone();
                undo(&mut map, &commits[past as usize..]);
                assert_eq!(contents(&map), model.revisions[past as usize], "seed {seed} at {past}");
            }
        }
    }

    #[test]
    fn a_range_begins_at_start_and_ends_with_the_prefix() {
        let mut space = KeySpace::default();
        for key in ["/a", "/a/1", "/a/2", "/a/3", "/b"] {
            space.insert(key.into(), Versioned { value: Bytes::new(), revision: Revision(1) });
        }
        let snapshot = Snapshot::new(space.map, Revision(1));
        let keys = |prefix: &str, start: &str| -> Vec<Bytes> {
            snapshot.range(prefix.as_bytes(), start.as_bytes()).map(|(key, _)| key.clone()).collect()
        };
        assert_eq!(keys("/a/", "/a/"), ["/a/1", "/a/2", "/a/3"]);
        assert_eq!(keys("/a/", "/a/2"), ["/a/2", "/a/3"]);
        assert_eq!(keys("/a/", "/a/2\0"), ["/a/3"]);
        assert_eq!(keys("/a/", "/"), ["/a/1", "/a/2", "/a/3"]);
        assert!(keys("/a/", "/b").is_empty());
        assert_eq!(snapshot.count(b"/a/"), 3);
        assert_eq!(snapshot.count(b""), 5);
    }
}
