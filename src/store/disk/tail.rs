//! Tells a log that was torn at its end, as every crash may leave it, from one that is damaged before its end.
//!
//! sled takes the first message that it cannot read for the end and writes over what follows. But a batch is durable before
//! the next one begins, and each begins with a manifest. So only the last batch can be torn, and where a manifest follows
//! what cannot be read, something is missing that was durable.
//!
//! What this knows of sled's format: a segment begins with a header and has messages behind each other; a message is a
//! checksum, a kind, and as variable integers its length, its segment's number and its page, then its body.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::disk::engine::SEGMENT_BYTES;

pub(crate) const HEADER_BYTES: usize = 20;

/// A segment with less room than this has no further message.
const MESSAGE_HEADER_BYTES_MAX: usize = 32;
const CHECKSUM_BYTES: usize = 4;

const CORRUPTED: u8 = 0;
/// Fills the rest of a segment.
const CAP: u8 = 2;
const MANIFEST: u8 = 3;

/// What the header of a segment says: where in the log it begins, and up to where the log was stable then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) begins: u64,
    pub(crate) stable: u64,
}

impl Header {
    /// `None` when its checksum is wrong.
    pub(crate) fn read(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let (stored, rest) = bytes.split_first_chunk::<CHECKSUM_BYTES>()?;
        if u32::from_le_bytes(*stored) != !crc32fast::hash(rest) {
            return None;
        }
        let (begins, stable) = rest.split_first_chunk::<8>()?;
        let number = |bytes: [u8; 8]| i64::from_le_bytes(bytes) ^ i64::MAX;
        // Before anything is stable, sled says -1.
        let stable = number(stable.try_into().ok()?).max(0);
        Some(Self { begins: number(*begins).try_into().ok()?, stable: stable.try_into().ok()? })
    }
}

struct Message {
    kind: u8,
    bytes: usize,
}

impl Message {
    /// The message at the beginning of `bytes`, which reach to the end of segment `number`; `None` if there is none.
    fn read(bytes: &[u8], number: u64) -> Option<Self> {
        let (stored, rest) = bytes.split_first_chunk::<CHECKSUM_BYTES>()?;
        let (&kind, mut after) = rest.split_first()?;
        if kind == CORRUPTED {
            return None;
        }
        let length = usize::try_from(integer(&mut after)?).ok()?;
        let segment = integer(&mut after)?;
        integer(&mut after)?;
        let body = after.get(..length)?;
        let header = &rest[..rest.len() - after.len()];
        let mut checksum = crc32fast::Hasher::new();
        checksum.update(body);
        checksum.update(header);
        let is_valid = segment == number && u32::from_le_bytes(*stored) == !checksum.finalize();
        is_valid.then_some(Self { kind, bytes: CHECKSUM_BYTES + header.len() + length })
    }
}

/// Takes a variable integer, as sled and SQLite 4 have them, from the beginning of `bytes`.
fn integer(bytes: &mut &[u8]) -> Option<u64> {
    let (&first, rest) = bytes.split_first()?;
    let (value, left) = match first {
        0..=240 => (u64::from(first), rest),
        241..=248 => {
            let (&low, left) = rest.split_first()?;
            (240 + 256 * (u64::from(first) - 241) + u64::from(low), left)
        }
        249 => {
            let ([high, low], left) = rest.split_first_chunk()?;
            (2288 + 256 * u64::from(*high) + u64::from(*low), left)
        }
        _ => {
            let (little, left) = rest.split_at_checked(usize::from(first) - 247)?;
            let mut value = [0; 8];
            value[..little.len()].copy_from_slice(little);
            (u64::from_le_bytes(value), left)
        }
    };
    *bytes = left;
    Some(value)
}

/// Where in `file` something is missing that was durable, if anywhere. `segments` are all that have a valid header, by where
/// in the log they begin, with where in the file they are; `stable` is the newest place that any of them says was stable.
pub(crate) fn damage(file: &File, segments: &BTreeMap<u64, u64>, stable: u64) -> io::Result<Option<u64>> {
    let size = SEGMENT_BYTES as u64;
    let mut expected = stable / size * size;
    let mut hole = None;
    if !segments.contains_key(&expected) {
        return Ok(None);
    }
    for (begins, offset) in segments.range(expected..) {
        if *begins != expected {
            // A segment of the tail is gone as a whole.
            hole = hole.or(Some(*offset));
        }
        expected = begins + size;
        let bytes = read_segment(file, *offset)?;
        let number = begins / size;
        let mut at = HEADER_BYTES;
        while hole.is_none() && at + MESSAGE_HEADER_BYTES_MAX <= SEGMENT_BYTES {
            match bytes.get(at..).and_then(|bytes| Message::read(bytes, number)) {
                Some(message) if message.kind == CAP => break,
                Some(message) => at += message.bytes,
                None => hole = Some(offset + at as u64),
            }
        }
        if hole.is_some() {
            let kinds = bytes.iter().enumerate().skip(at + CHECKSUM_BYTES);
            let mut manifests = kinds.filter(|(_, kind)| **kind == MANIFEST);
            let follows = manifests.any(|(at, _)| Message::read(&bytes[at - CHECKSUM_BYTES..], number).is_some());
            if follows {
                return Ok(hole);
            }
        }
    }
    Ok(None)
}

/// The last one may be short.
fn read_segment(file: &File, offset: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; SEGMENT_BYTES];
    let mut read = 0;
    while read < bytes.len() {
        match file.read_at(&mut bytes[read..], offset + read as u64)? {
            0 => break,
            more => read += more,
        }
    }
    bytes.truncate(read);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_read_as_they_are_written() {
        for (bytes, value) in [
            (&[0][..], 0),
            (&[240], 240),
            (&[241, 0], 240),
            (&[241, 1], 241),
            (&[248, 255], 2287),
            (&[249, 0, 0], 2288),
            (&[249, 255, 255], 67823),
            (&[250, 1, 2, 3], 0x0003_0201),
            (&[255, 1, 0, 0, 0, 0, 0, 0, 1], 0x0100_0000_0000_0001),
        ] {
            let mut rest = bytes;
            assert_eq!(integer(&mut rest), Some(value), "{bytes:?}");
            assert!(rest.is_empty());
        }
        for short in [&[][..], &[245], &[249, 1], &[255, 1, 2]] {
            assert_eq!(integer(&mut &short[..]), None, "{short:?}");
        }
    }
}
