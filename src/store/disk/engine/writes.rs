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
    pub(super) fn key(self, key: &[u8]) -> Vec<u8> {
        [&[self as u8], key].concat()
    }
}

pub(super) fn chunk_key(full_key: &[u8], chunk: u16) -> Vec<u8> {
    [&[CHUNKS], full_key, &chunk.to_be_bytes()].concat()
}

/// Changes that are applied together, in order; the last change of a key counts.
#[derive(Debug, Default)]
pub(crate) struct Writes(pub(super) Vec<(Vec<u8>, Option<Vec<u8>>)>);

impl Writes {
    pub(crate) fn put(&mut self, space: Space, key: &[u8], value: Vec<u8>) {
        self.0.push((space.key(key), Some(value)));
    }

    pub(crate) fn remove(&mut self, space: Space, key: &[u8]) {
        self.0.push((space.key(key), None));
    }

    pub(crate) fn append(&mut self, mut other: Writes) {
        self.0.append(&mut other.0);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.0.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len)).sum()
    }

    /// Full keys, and values that replace what they held.
    #[cfg(test)]
    pub(crate) fn changes(&self) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        self.0.clone()
    }
}
