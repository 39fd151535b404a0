//! What is written: changes of records of several kinds.

/// The kinds of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Space {
    /// By log index, big-endian.
    Log = b'l',
    /// Vote, purge mark, checkpoint, identity.
    Meta = b'm',
    /// By the caller's keys.
    State = b's',
    /// As `State`. One of the two counts; a snapshot is installed into the other.
    OtherState = b't',
}

pub(super) const CHUNKS: u8 = b'x';

impl Space {
    pub(crate) fn key(self, key: &[u8]) -> Vec<u8> {
        [&[self as u8], key].concat()
    }
}

pub(super) fn chunk_key(full_key: &[u8], chunk: u16) -> Vec<u8> {
    [&[CHUNKS], full_key, &chunk.to_be_bytes()].concat()
}

/// A value in the form in which it is stored, made by a [`Packer`](super::Packer) for one key.
#[derive(Clone, Debug)]
pub(crate) struct Record(pub(super) sled::IVec);

#[derive(Debug)]
pub(super) enum Change {
    Remove,
    Put(Vec<u8>),
    PutRecord(Record),
}

/// Changes that are applied together, in order; the last change of a key counts.
#[derive(Debug, Default)]
pub(crate) struct Writes(pub(super) Vec<(Vec<u8>, Change)>);

impl Writes {
    pub(crate) fn put(&mut self, space: Space, key: &[u8], value: Vec<u8>) {
        self.0.push((space.key(key), Change::Put(value)));
    }

    /// `record` was made for the same space and key.
    pub(crate) fn put_record(&mut self, space: Space, key: &[u8], record: Record) {
        self.0.push((space.key(key), Change::PutRecord(record)));
    }

    pub(crate) fn remove(&mut self, space: Space, key: &[u8]) {
        self.0.push((space.key(key), Change::Remove));
    }

    pub(crate) fn append(&mut self, mut other: Writes) {
        self.0.append(&mut other.0);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn bytes(&self) -> usize {
        let bytes = |change: &Change| match change {
            Change::Remove => 0,
            Change::Put(value) => value.len(),
            Change::PutRecord(record) => record.0.len(),
        };
        self.0.iter().map(|(key, change)| key.len() + bytes(change)).sum()
    }

    /// The last key whose value, or absence, is known here as it is read.
    pub(super) fn witness(&self) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
        self.0.iter().rev().find_map(|(key, change)| match change {
            Change::Remove => Some((key.clone(), None)),
            Change::Put(value) => Some((key.clone(), Some(value.clone()))),
            Change::PutRecord(_) => None,
        })
    }

    /// Full keys of what was packed before.
    #[cfg(test)]
    pub(crate) fn packed(&self) -> Vec<Vec<u8>> {
        let packed = self.0.iter().filter(|(_, change)| matches!(change, Change::PutRecord(_)));
        packed.map(|(key, _)| key.clone()).collect()
    }

    /// Full keys, and values that replace what they held.
    #[cfg(test)]
    pub(crate) fn changes(&self) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let value = |change: &Change| match change {
            Change::Remove => None,
            Change::Put(value) => Some(value.clone()),
            Change::PutRecord(record) => unreachable!("{record:?} in a simulated database"),
        };
        self.0.iter().map(|(key, change)| (key.clone(), value(change))).collect()
    }
}
