//! A snapshot on its way: the keys of a frozen state in order, cut into parts with a checksum each, and a digest of the
//! whole at the end. What was received is thrown away unless all of it is right.

use std::io;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::disk::records::Raw;
use crate::mvcc::{ContentHash, KeySpace};
use crate::raft::machine::Frozen;
use crate::raft::{SnapshotMeta, Vote};
use crate::wire::message::{SnapshotEnd, SnapshotHead, SnapshotPart};
use crate::{Revision, Versioned};

/// A part is closed when it has grown to this; one long value may make it longer.
const PART_BYTES: usize = 128 << 10;

#[derive(Serialize, Deserialize)]
struct KeyRecord<'a> {
    #[serde(borrow)]
    key: Raw<'a>,
    revision: u64,
    value: Raw<'a>,
}

fn invalid(detail: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("snapshot: {detail}"))
}

fn checksum(index: u64, bytes: &[u8]) -> u64 {
    let mut hash = ContentHash::default();
    hash.word(index);
    hash.bytes(bytes);
    hash.finish()
}

/// Cuts `state` into parts, one at a time.
pub(crate) fn parts(state: &Frozen) -> impl Iterator<Item = io::Result<SnapshotPart>> + '_ {
    let mut keys = state.space().map.iter().peekable();
    let mut index = 0;
    std::iter::from_fn(move || {
        keys.peek()?;
        let mut bytes = Vec::with_capacity(PART_BYTES + 4096);
        while bytes.len() < PART_BYTES
            && let Some((key, versioned)) = keys.next()
        {
            let record = KeyRecord { key: Raw(key), revision: versioned.revision.0, value: Raw(&versioned.value) };
            bytes = match postcard::to_extend(&record, bytes) {
                Ok(bytes) => bytes,
                Err(error) => return Some(Err(invalid(error))),
            };
        }
        let part = SnapshotPart { index, checksum: checksum(index, &bytes), bytes: bytes.into() };
        index += 1;
        Some(Ok(part))
    })
}

/// A snapshot that is being received.
pub(crate) struct Incoming {
    head: SnapshotHead,
    space: KeySpace,
    hash: ContentHash,
    parts: u64,
    last_key: Option<Bytes>,
}

impl Incoming {
    pub(crate) fn new(head: SnapshotHead) -> Self {
        let mut hash = ContentHash::default();
        hash.word(head.revision.0);
        Self { head, space: KeySpace::default(), hash, parts: 0, last_key: None }
    }

    /// # Errors
    /// The transfer is of no use then, and has to begin anew.
    pub(crate) fn add(&mut self, part: &SnapshotPart) -> io::Result<()> {
        if part.index != self.parts {
            return Err(invalid(format!("part {} where {} was expected", part.index, self.parts)));
        }
        if part.checksum != checksum(part.index, &part.bytes) {
            return Err(invalid(format!("part {} does not have its checksum", part.index)));
        }
        let mut rest = &part.bytes[..];
        while !rest.is_empty() {
            let (record, after) = postcard::take_from_bytes::<KeyRecord<'_>>(rest).map_err(invalid)?;
            rest = after;
            let key = record.key.to_bytes();
            if self.last_key.as_ref().is_some_and(|last| *last >= key) {
                return Err(invalid("keys are out of order"));
            }
            if self.space.map.len() as u64 >= self.head.keys {
                return Err(invalid("more keys than announced"));
            }
            let versioned = Versioned { value: record.value.to_bytes(), revision: Revision(record.revision) };
            self.hash.entry(&key, &versioned);
            self.space.insert(key.clone(), versioned);
            self.last_key = Some(key);
        }
        self.parts += 1;
        Ok(())
    }

    pub(crate) fn finish(mut self, end: SnapshotEnd) -> io::Result<(Vote, SnapshotMeta, Frozen)> {
        if (end.parts, end.digest, self.head.keys) != (self.parts, self.hash.finish(), self.space.map.len() as u64) {
            return Err(invalid("it is not what was sent"));
        }
        self.space.revision = self.head.revision;
        let SnapshotHead { vote, meta, register, .. } = self.head;
        let state = Frozen::new(self.space, meta.last_log_id, meta.last_membership.clone(), register);
        Ok((vote, meta, state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::register::Register;
    use crate::raft::{LeaderId, StoredMembershipOf};

    fn state(keys: u32) -> Frozen {
        let mut space = KeySpace::default();
        for n in 0..keys {
            let value = vec![n as u8; 700];
            space.insert(format!("/k/{n:06}").into(), Versioned { value: value.into(), revision: Revision(n.into()) });
        }
        space.revision = Revision(keys.into());
        Frozen::new(space, None, StoredMembershipOf::default(), Register::default())
    }

    fn head(state: &Frozen) -> SnapshotHead {
        SnapshotHead {
            vote: Vote { leader_id: LeaderId { term: 1, node_id: 1 }, committed: true },
            meta: SnapshotMeta { last_log_id: None, last_membership: StoredMembershipOf::default() },
            revision: state.space().revision,
            keys: state.space().map.len() as u64,
            register: Register::default(),
        }
    }

    fn end(state: &Frozen, parts: u64) -> SnapshotEnd {
        SnapshotEnd { parts, digest: state.content().digest() }
    }

    #[test]
    fn a_state_arrives_whole_or_not_at_all() {
        for keys in [0, 1, 1000] {
            let sent = state(keys);
            let cut: Vec<_> = parts(&sent).collect::<io::Result<_>>().unwrap();
            assert!(keys < 1000 || cut.len() > 3);
            let receive = |cut: &[SnapshotPart]| -> io::Result<Frozen> {
                let mut incoming = Incoming::new(head(&sent));
                for part in cut {
                    incoming.add(part)?;
                }
                incoming.finish(end(&sent, cut.len() as u64)).map(|(_, _, state)| state)
            };
            let received = receive(&cut).unwrap();
            assert_eq!(received.space().map, sent.space().map);
            assert_eq!(
                (received.space().revision, received.space().digest),
                (sent.space().revision, sent.space().digest)
            );
            if cut.len() > 2 {
                assert!(receive(&cut[..cut.len() - 1]).is_err(), "the last part is missing");
                assert!(receive(&[&cut[..1], &cut[2..]].concat()).is_err(), "one is missing");
                assert!(receive(&[&cut[..1], &cut[..]].concat()).is_err(), "one comes twice");
                let mut damaged = cut.clone();
                let mut bytes = damaged[1].bytes.to_vec();
                bytes[50_000] ^= 1;
                damaged[1].bytes = bytes.into();
                assert!(receive(&damaged).is_err(), "one bit is wrong");
            }
        }
    }
}
