//! Records of the next checkpoint, made while the one before it is written.
//!
//! When much is written, checkpoints follow each other without a pause and the log waits for them. The disk's thread, which
//! writes them, is then the narrowest place; a third of its work, compressing values, can be done by another thread meanwhile.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use crate::Revision;
use crate::disk::engine::{Record, Space, Writes};
use crate::disk::records;
use crate::disk::thread::Disk;
use crate::raft::machine::checkpoint::STEPS;
use crate::raft::machine::{Frozen, Inner, Machine};

/// Records of keys as of some revision of theirs.
#[derive(Debug)]
pub(super) struct Ahead {
    tree: Space,
    records: HashMap<Bytes, (Revision, Record)>,
}

impl Ahead {
    /// The newest state that is frozen, and the keys in it that the next checkpoints are to write, if so much is written that
    /// the next one will not wait. Then it is of this state or one soon after, and few keys change again in between.
    fn next(inner: &Inner, log_bytes_max: u64) -> Option<(Frozen, HashSet<Bytes>)> {
        let newest = inner.frozen.back()?;
        let bytes: u64 = inner.frozen.iter().map(|changes| changes.bytes).sum();
        let keys = || inner.frozen.iter().flat_map(|changes| changes.keys.iter().cloned());
        (bytes >= log_bytes_max.div_ceil(STEPS)).then(|| (newest.state.clone(), keys().collect()))
    }

    /// Puts all `keys` as they are in `state`: what is there by its record, the rest by its value.
    pub(super) fn put_all(
        ahead: Option<Ahead>,
        writes: &mut Writes,
        tree: Space,
        state: &Frozen,
        keys: &HashSet<Bytes>,
    ) {
        let mut records = ahead.filter(|ahead| ahead.tree == tree).map(|ahead| ahead.records).unwrap_or_default();
        for key in keys {
            let Some(versioned) = state.space.map.get(key) else {
                writes.remove(tree, key);
                continue;
            };
            match records.remove(key) {
                Some((revision, record)) if revision == versioned.revision => writes.put_record(tree, key, record),
                _ => writes.put(tree, key, records::encode_versioned(versioned)),
            }
        }
    }
}

impl Machine {
    /// Makes records for the next checkpoint, if it is known what they will be.
    pub(super) async fn pack_ahead(&self, tree: Space, disk: &Disk) {
        let Some((state, keys)) = Ahead::next(&self.lock(), self.log_bytes_max) else { return };
        let Some(mut packer) = disk.engine().packer() else { return };
        let work = move || {
            let records = keys.into_iter().filter_map(|key| {
                let versioned = state.space.map.get(&key)?;
                let record = packer.pack(tree, &key, &records::encode_versioned(versioned));
                Some((key, (versioned.revision, record)))
            });
            records.collect()
        };
        if let Ok(records) = tokio::task::spawn_blocking(work).await {
            self.lock().ahead = Some(Ahead { tree, records });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Versioned;
    use crate::disk::engine::Packer;

    #[test]
    fn only_what_is_as_it_was_comes_from_a_record() {
        let key = |name: &'static str| Bytes::from_static(name.as_bytes());
        let mut packer = Packer::new().unwrap();
        let mut record = |name, revision| {
            let record = packer.pack(Space::State, name, b"ahead");
            (key(std::str::from_utf8(name).unwrap()), (Revision(revision), record))
        };
        let records = HashMap::from([record(b"same", 1), record(b"changed", 2), record(b"removed", 3)]);
        let mut state = Frozen::default();
        for (name, revision) in [("same", 1), ("changed", 4), ("new", 5)] {
            state.space.insert(key(name), Versioned { value: key("now"), revision: Revision(revision) });
        }
        let keys = ["same", "changed", "removed", "new"].map(key).into();
        let written = |tree| {
            let mut writes = Writes::default();
            let ahead = Ahead { tree: Space::State, records: records.clone() };
            Ahead::put_all(Some(ahead), &mut writes, tree, &state, &keys);
            writes.packed()
        };
        assert_eq!(written(Space::State), [Space::State.key(b"same")]);
        assert!(written(Space::OtherState).is_empty());
    }
}
