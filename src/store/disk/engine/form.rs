//! The form of a record: a kind, a checksum over key and value, and the value, compressed where that helps, cut into chunks
//! where it is long.

use std::borrow::Cow;
use std::io;
use std::sync::PoisonError;

use crate::disk::engine::writes::chunk_key;
use crate::disk::engine::writes::{Change, Record};
use crate::disk::engine::{Engine, Space, Writes, io_error};

/// 20 records of this size with their keys, the most that merging makes a page hold, stay below 128 KiB.
const CHUNK_BYTES_MAX: usize = 5 << 10;

const WHOLE: u8 = 2;
const CHUNKED: u8 = 3;
/// As these, of a value that is compressed.
const PACKED_WHOLE: u8 = 4;
const PACKED_CHUNKED: u8 = 5;
const CHECKSUM_BYTES: usize = 4;

/// Shorter values gain nothing.
const PACKED_BYTES_MIN: usize = 128;
/// zstd's fastest of the usual ones: it must not hold up a write, also where the processor is a small one.
const PACK_LEVEL: i32 = 1;
/// Longer ones are rare.
const SCRATCH_BYTES_MAX: usize = 64 << 10;
/// What is longer than any value can be is damage, and no reason to reserve so much memory.
const VALUE_BYTES_MAX: usize = u16::MAX as usize * CHUNK_BYTES_MAX;

const HEAD: usize = 1 + CHECKSUM_BYTES;
/// Of a compressed value's length as it was.
const LENGTH: usize = 4;

/// Makes records. It keeps what compressing needs, which is worth having for many at once.
pub(crate) struct Packer {
    compressor: zstd::bulk::Compressor<'static>,
    scratch: Vec<u8>,
}

impl Packer {
    /// # Errors
    /// There is no memory for it.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { compressor: zstd::bulk::Compressor::new(PACK_LEVEL)?, scratch: Vec::new() })
    }

    pub(crate) fn pack(&mut self, space: Space, key: &[u8], value: &[u8]) -> Record {
        self.record(&space.key(key), value)
    }

    /// A form that is not chunked, the checksum, and `value`: behind its length and compressed, if that is shorter by enough to
    /// be worth the work of reading it.
    pub(super) fn record(&mut self, full_key: &[u8], value: &[u8]) -> Record {
        let sum = checksum(full_key, value);
        let record = &mut self.scratch;
        if (PACKED_BYTES_MIN..=VALUE_BYTES_MAX).contains(&value.len())
            && let Ok(length) = u32::try_from(value.len())
        {
            record.resize(HEAD + LENGTH + value.len() - value.len() / 8, 0);
            // No room for it is an error, and says that it does not get shorter.
            if let Ok(packed) = self.compressor.compress_to_buffer(value, &mut record[HEAD + LENGTH..]) {
                record[0] = PACKED_WHOLE;
                record[1..HEAD].copy_from_slice(&sum);
                record[HEAD..HEAD + LENGTH].copy_from_slice(&length.to_le_bytes());
                let record = Record(sled::IVec::from(&record[..HEAD + LENGTH + packed]));
                self.give_back();
                return record;
            }
        }
        record.clear();
        record.push(WHOLE);
        record.extend_from_slice(&sum);
        record.extend_from_slice(value);
        let record = Record(sled::IVec::from(&record[..]));
        self.give_back();
        record
    }

    /// One long value does not hold its memory for ever.
    fn give_back(&mut self) {
        if self.scratch.capacity() > SCRATCH_BYTES_MAX {
            self.scratch = Vec::new();
        }
    }
}

impl Engine {
    pub(super) fn whole(&self, db: &sled::Db, full_key: &[u8], record: &[u8]) -> io::Result<Vec<u8>> {
        let damaged = |what| self.damaged(full_key, what);
        let Some((form, rest)) = record.split_first() else { return Err(damaged("is empty")) };
        let Some((sum, body)) = rest.split_first_chunk::<CHECKSUM_BYTES>() else { return Err(damaged("is too short")) };
        let stored = match *form {
            WHOLE | PACKED_WHOLE => Cow::Borrowed(body),
            CHUNKED | PACKED_CHUNKED => {
                let count =
                    body.try_into().map(u16::from_be_bytes).map_err(|_| damaged("has a damaged chunk count"))?;
                let mut value = Vec::with_capacity(usize::from(count) * CHUNK_BYTES_MAX);
                for index in 0..count {
                    let chunk = db.get(chunk_key(full_key, index)).map_err(|error| io_error(error, &self.file))?;
                    value.extend_from_slice(&chunk.ok_or_else(|| damaged("misses a chunk"))?);
                }
                Cow::Owned(value)
            }
            _ => return Err(damaged("has no known form")),
        };
        let value = match *form {
            PACKED_WHOLE | PACKED_CHUNKED => self.unpack(&stored).ok_or_else(|| damaged("is not as it was packed"))?,
            _ => stored.into_owned(),
        };
        if checksum(full_key, &value) != *sum {
            return Err(damaged("does not match its checksum"));
        }
        Ok(value)
    }

    fn unpack(&self, packed: &[u8]) -> Option<Vec<u8>> {
        let (length, compressed) = packed.split_first_chunk()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok().filter(|length| *length <= VALUE_BYTES_MAX)?;
        let value = self.unpacker.lock().unwrap_or_else(PoisonError::into_inner).decompress(compressed, length).ok()?;
        (value.len() == length).then_some(value)
    }

    /// As sled takes it.
    pub(super) fn batch(&self, writes: &Writes) -> io::Result<sled::Batch> {
        let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut packer = self.packer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut batch = sled::Batch::default();
        for (full_key, change) in &writes.0 {
            let chunks_before = chunks.remove(full_key).unwrap_or(0);
            let record = match change {
                Change::Remove => None,
                Change::Put(value) => Some(packer.record(full_key, value)),
                Change::PutRecord(record) => Some(record.clone()),
            };
            let chunks_now = match record {
                None => {
                    batch.remove(full_key.as_slice());
                    0
                }
                Some(Record(record)) => {
                    if let Some(stored) = record.get(HEAD..)
                        && stored.len() > CHUNK_BYTES_MAX
                    {
                        let chunked = if record[0] == PACKED_WHOLE { PACKED_CHUNKED } else { CHUNKED };
                        let count = u16::try_from(stored.len().div_ceil(CHUNK_BYTES_MAX))
                            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "value is too long"))?;
                        for (index, chunk) in (0..).zip(stored.chunks(CHUNK_BYTES_MAX)) {
                            batch.insert(chunk_key(full_key, index), chunk);
                        }
                        let sum = &record[1..HEAD];
                        batch.insert(full_key.as_slice(), [&[chunked], sum, &count.to_be_bytes()].concat());
                        chunks.insert(full_key.clone(), count);
                        count
                    } else {
                        batch.insert(full_key.as_slice(), record);
                        0
                    }
                }
            };
            for index in chunks_now..chunks_before {
                batch.remove(chunk_key(full_key, index));
            }
        }
        Ok(batch)
    }
}

fn checksum(full_key: &[u8], value: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut crc = crc32fast::Hasher::new();
    crc.update(full_key);
    crc.update(value);
    crc.finalize().to_le_bytes()
}
