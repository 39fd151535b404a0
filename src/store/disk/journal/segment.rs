//! The form of a segment: a header in a sector of its own, then records behind each other.
//!
//! A record is what was made durable at once, so that of all records only the newest can be torn. Each begins with its
//! segment's salt, which no earlier use of the same file had: what is left of one is not taken for a record.
//!
//! All numbers are little-endian. A header is the magic, the form's version, cluster, member, sequence number, the place
//! at which the segment before ends, the id of the entry before its first one (term, member, index; an index of `u64::MAX`
//! is none), and a CRC-32 over all that. A record is the salt, the body's length, a CRC-32 over sequence number, place and
//! body, the length of the body before it was compressed (0: it is not), and the body: entries, each behind its length.

use std::io;
use std::ops::Range;

use crate::disk::identity::Identity;
use crate::disk::journal::Encoded;
use crate::raft::{LeaderId, LogId};

/// What disks write as a whole, or not.
pub(super) const SECTOR_BYTES: u64 = 512;
/// Where the first record is. The header's sector is not written again with every record.
pub(super) const RECORDS_AT: u64 = SECTOR_BYTES;
pub(super) const RECORD_HEAD_BYTES: usize = 16;

const MAGIC: &[u8; 8] = b"musselog";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 8 + 4 + 16 + 8 + 8 + 8 + 24 + 4;

/// Shorter bodies are not worth the work.
const PACK_BYTES_MIN: usize = 128;
const PACK_LEVEL: i32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) identity: Identity,
    /// Segments are numbered as they are begun.
    pub(super) sequence: u64,
    /// The place in the segment before up to which it has records.
    pub(super) before_ends: u64,
    /// The entry before the first one. Entries of older segments beyond it do not count any more.
    pub(super) previous: Option<LogId>,
}

impl Header {
    pub(super) fn encode(&self) -> Vec<u8> {
        let Self { identity, sequence, before_ends, previous } = self;
        let mut bytes = Vec::with_capacity(RECORDS_AT as usize);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&identity.cluster.to_le_bytes());
        let (term, node, index) =
            previous.map_or((0, 0, u64::MAX), |id| (id.leader_id.term, id.leader_id.node_id, id.index));
        for number in [identity.member, *sequence, *before_ends, term, node, index] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        bytes.resize(RECORDS_AT as usize, 0);
        bytes
    }

    /// `None` if it is not whole.
    ///
    /// # Errors
    /// It is of a newer version.
    pub(super) fn decode(bytes: &[u8]) -> io::Result<Option<Self>> {
        let Some((checked, crc)) = bytes.get(..HEADER_BYTES).and_then(|bytes| bytes.split_last_chunk::<4>()) else {
            return Ok(None);
        };
        if u32::from_le_bytes(*crc) != crc32fast::hash(checked) {
            return Ok(None);
        }
        let mut rest = checked;
        if take(&mut rest) != Some(*MAGIC) {
            return Ok(None);
        }
        if take(&mut rest).map(u32::from_le_bytes) != Some(VERSION) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is of a version that is not known"));
        }
        let mut read = || -> Option<Self> {
            let cluster = u128::from_le_bytes(take(&mut rest)?);
            let mut number = || take(&mut rest).map(u64::from_le_bytes);
            let identity = Identity { cluster, member: number()? };
            let (sequence, before_ends) = (number()?, number()?);
            let (leader_id, index) = (LeaderId { term: number()?, node_id: number()? }, number()?);
            let previous = (index != u64::MAX).then_some(LogId { leader_id, index });
            Some(Self { identity, sequence, before_ends, previous })
        };
        Ok(read())
    }

    /// What its records begin with.
    pub(super) fn salt(&self) -> [u8; 4] {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&self.identity.cluster.to_le_bytes());
        crc.update(&self.identity.member.to_le_bytes());
        crc.update(&self.sequence.to_le_bytes());
        // Never zero: that is what a file holds where nothing was written.
        (crc.finalize() | 1).to_le_bytes()
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*first)
}

fn checksum(sequence: u64, at: u64, body: &[u8]) -> [u8; 4] {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&sequence.to_le_bytes());
    crc.update(&at.to_le_bytes());
    crc.update(body);
    crc.finalize().to_le_bytes()
}

/// What a record holds, ready to be put anywhere.
pub(super) struct Body {
    bytes: Vec<u8>,
    /// 0 when it is as it was.
    unpacked_bytes: u32,
}

impl Body {
    pub(super) fn of(entries: &[Encoded]) -> io::Result<Self> {
        let too_long = |_| io::Error::new(io::ErrorKind::InvalidInput, "entries are too long");
        let mut bytes = Vec::with_capacity(entries.iter().map(|(_, entry)| 4 + entry.len()).sum());
        for (_, entry) in entries {
            bytes.extend_from_slice(&u32::try_from(entry.len()).map_err(too_long)?.to_le_bytes());
            bytes.extend_from_slice(entry);
        }
        let unpacked_bytes = u32::try_from(bytes.len()).map_err(too_long)?;
        if bytes.len() >= PACK_BYTES_MIN
            && let Ok(packed) = zstd::bulk::compress(&bytes, PACK_LEVEL)
            && packed.len() < bytes.len()
        {
            return Ok(Self { bytes: packed, unpacked_bytes });
        }
        Ok(Self { bytes, unpacked_bytes: 0 })
    }

    pub(super) fn record_bytes(&self) -> u64 {
        (RECORD_HEAD_BYTES + self.bytes.len()) as u64
    }

    /// As a record at `at` of the segment that `header` begins.
    pub(super) fn record(&self, header: &Header, at: u64, into: &mut Vec<u8>) {
        into.extend_from_slice(&header.salt());
        into.extend_from_slice(&(self.bytes.len() as u32).to_le_bytes());
        into.extend_from_slice(&checksum(header.sequence, at, &self.bytes));
        into.extend_from_slice(&self.unpacked_bytes.to_le_bytes());
        into.extend_from_slice(&self.bytes);
    }
}

/// The head of a record that seems to be at some place.
pub(super) struct Head {
    crc: [u8; 4],
    unpacked_bytes: u32,
    pub(super) body_bytes: usize,
}

impl Head {
    /// `None` where no record of the segment begins.
    pub(super) fn decode(header: &Header, bytes: &[u8]) -> Option<Self> {
        let mut bytes = bytes;
        let mut next = || take::<4>(&mut bytes);
        if next()? != header.salt() {
            return None;
        }
        let body_bytes = u32::from_le_bytes(next()?) as usize;
        Some(Self { body_bytes, crc: next()?, unpacked_bytes: u32::from_le_bytes(next()?) })
    }

    pub(super) fn is_of(&self, header: &Header, at: u64, body: &[u8]) -> bool {
        checksum(header.sequence, at, body) == self.crc
    }

    /// The entries in a body that [`Head::is_of`] says is whole.
    pub(super) fn entries(&self, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let unpacked;
        let mut rest = body;
        if self.unpacked_bytes > 0 {
            unpacked = zstd::bulk::decompress(body, self.unpacked_bytes as usize)?;
            rest = &unpacked;
        }
        let mut entries = Vec::new();
        while !rest.is_empty() {
            let entry = take(&mut rest).and_then(|length| rest.split_at_checked(u32::from_le_bytes(length) as usize));
            let (entry, left) =
                entry.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "entry is cut short"))?;
            entries.push(entry.to_vec());
            rest = left;
        }
        Ok(entries)
    }
}

/// The record at `at` of the whole segment `bytes`: where it is, and its entries. `None` where there is none that is whole.
pub(super) fn record_at(header: &Header, bytes: &[u8], at: u64) -> io::Result<Option<(Range<u64>, Vec<Vec<u8>>)>> {
    let Some(rest) = usize::try_from(at).ok().and_then(|at| bytes.get(at..)) else { return Ok(None) };
    let Some(head) = Head::decode(header, rest) else { return Ok(None) };
    let Some(body) = rest.get(RECORD_HEAD_BYTES..RECORD_HEAD_BYTES.saturating_add(head.body_bytes)) else {
        return Ok(None);
    };
    if !head.is_of(header, at, body) {
        return Ok(None);
    }
    let entries = head.entries(body)?;
    Ok(Some((at..at + (RECORD_HEAD_BYTES + body.len()) as u64, entries)))
}

/// Whether a whole record begins behind `at`, where there is none.
pub(super) fn goes_on_behind(header: &Header, bytes: &[u8], at: u64) -> bool {
    let salt = header.salt();
    let is_record = |place: usize| {
        bytes[place..].starts_with(&salt) && record_at(header, bytes, place as u64).is_ok_and(|found| found.is_some())
    };
    let from = usize::try_from(at).map_or(bytes.len(), |at| at + 1);
    (from..bytes.len().saturating_sub(RECORD_HEAD_BYTES)).any(is_record)
}
