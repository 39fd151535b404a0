//! What a backup looks like: magic, format number, header, one zstd stream of records, and a SHA-256 over all before it.
//!
//! A record is the lengths of key and value, the revision, the key and the value; the end is a key length of `u32::MAX`.
//! Numbers are little-endian.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::backup::BackupError;
use crate::mvcc::Snapshot;
use crate::{Revision, Versioned};

const MAGIC: &[u8; 8] = b"MUSSNAP\n";
/// The newest format that this version reads, and the one that it writes.
const FORMAT: u32 = 1;
const HEADER_BYTES_MAX: u32 = 4096;
const DIGEST_BYTES: u64 = 32;
const END: u32 = u32::MAX;
/// Nothing that the store takes has a longer key or value.
const FIELD_BYTES_MAX: u32 = 64 << 20;
/// A good ratio for JSON at some 200 MB/s of one core.
const LEVEL: i32 = 3;

/// What a backup says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The cluster's identity, as hexadecimal digits.
    pub cluster: String,
    /// The newest revision in it.
    pub revision: u64,
    pub keys: u64,
    /// Seconds since 1970.
    pub created: u64,
    /// The node that made it.
    pub node: String,
    /// The version of Mussel that made it.
    pub version: String,
}

/// Feeds all that passes to a digest.
struct Hashing<T> {
    inner: T,
    digest: Sha256,
}

impl<T> Hashing<T> {
    fn new(inner: T) -> Self {
        Self { inner, digest: Sha256::new() }
    }
}

impl<T: Write> Write for Hashing<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.digest.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Hashing<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.digest.update(&buffer[..read]);
        Ok(read)
    }
}

/// Writes the whole backup. It is on disk when this returns.
pub(super) fn write(snapshot: &Snapshot, header: &Header, file: File) -> io::Result<()> {
    let mut out = Hashing::new(BufWriter::with_capacity(64 << 10, file));
    let encoded = postcard::to_stdvec(header).map_err(io::Error::other)?;
    let length = u32::try_from(encoded.len()).ok().filter(|length| *length <= HEADER_BYTES_MAX);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the header is too long"))?;
    out.write_all(MAGIC)?;
    out.write_all(&FORMAT.to_le_bytes())?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(&encoded)?;
    let mut records = zstd::Encoder::new(&mut out, LEVEL)?;
    for (key, versioned) in snapshot.range(b"", b"") {
        let too_long = |_| io::Error::new(io::ErrorKind::InvalidInput, "a record is too long");
        records.write_all(&u32::try_from(key.len()).map_err(too_long)?.to_le_bytes())?;
        records.write_all(&u32::try_from(versioned.value.len()).map_err(too_long)?.to_le_bytes())?;
        records.write_all(&versioned.revision.0.to_le_bytes())?;
        records.write_all(key)?;
        records.write_all(&versioned.value)?;
    }
    records.write_all(&END.to_le_bytes())?;
    records.finish()?;
    let Hashing { mut inner, digest } = out;
    inner.write_all(&digest.finalize())?;
    let file = inner.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()
}

/// Reads the whole file and checks every byte of it. Returns its header.
pub fn inspect(path: &Path) -> Result<Header, BackupError> {
    read(path, |_, _| Ok(()))
}

/// The value of one key, `None` when the backup has none. Reads and checks the whole file.
///
/// # Errors
/// As [`inspect`].
pub fn find(path: &Path, key: &[u8]) -> Result<Option<Bytes>, BackupError> {
    let mut found = None;
    read(path, |candidate, versioned| {
        if candidate == key {
            found = Some(versioned.value);
        }
        Ok::<(), BackupError>(())
    })?;
    Ok(found)
}

/// Calls `each` for all keys, in order. What it is given is not yet known to be whole until this returns: inspect first.
pub(super) fn read<E: From<BackupError>>(
    path: &Path,
    mut each: impl FnMut(Vec<u8>, Versioned) -> Result<(), E>,
) -> Result<Header, E> {
    let failed = |source| BackupError::Read { file: path.to_path_buf(), source };
    let damaged = |detail: &str| BackupError::Damaged { file: path.to_path_buf(), detail: detail.to_string() };
    let mut file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let mut start = [0; 16];
    let magic = file.read_exact(&mut start).is_ok() && start[..8] == *MAGIC;
    if !magic {
        return Err(BackupError::NotABackup { file: path.to_path_buf() }.into());
    }
    let number = |bytes: &[u8]| bytes.try_into().map(u32::from_le_bytes).unwrap_or(u32::MAX);
    let (found, header_length) = (number(&start[8..12]), number(&start[12..]));
    if found != FORMAT {
        return Err(BackupError::Format { file: path.to_path_buf(), found, supported: FORMAT }.into());
    }
    let body = length.checked_sub(DIGEST_BYTES).ok_or_else(|| damaged("it is too short"))?;
    if header_length > HEADER_BYTES_MAX {
        return Err(damaged("its header is too long").into());
    }
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let mut input = Hashing::new(BufReader::with_capacity(64 << 10, file).take(body));
    // Past what was looked at above.
    io::copy(&mut (&mut input).take(16), &mut io::sink()).map_err(failed)?;
    let mut encoded = vec![0; header_length as usize];
    input.read_exact(&mut encoded).map_err(|_| damaged("it ends in its header"))?;
    let header: Header = postcard::from_bytes(&encoded).map_err(|_| damaged("its header makes no sense"))?;

    let mut records = zstd::Decoder::new(&mut input).map_err(failed)?.single_frame();
    let mut keys = 0;
    let mut last: Option<Vec<u8>> = None;
    let stream = |error: io::Error| damaged(&format!("its records cannot be read: {error}"));
    loop {
        let mut word = [0; 4];
        records.read_exact(&mut word).map_err(stream)?;
        let key_length = u32::from_le_bytes(word);
        if key_length == END {
            break;
        }
        records.read_exact(&mut word).map_err(stream)?;
        let value_length = u32::from_le_bytes(word);
        if key_length > FIELD_BYTES_MAX || value_length > FIELD_BYTES_MAX {
            return Err(damaged("a record is too long").into());
        }
        let mut revision = [0; 8];
        records.read_exact(&mut revision).map_err(stream)?;
        let revision = Revision(u64::from_le_bytes(revision));
        let key = field(&mut records, key_length).map_err(stream)?;
        let value = Bytes::from(field(&mut records, value_length).map_err(stream)?);
        if revision.0 > header.revision || last.as_ref().is_some_and(|last| *last >= key) {
            return Err(damaged("a record is not where it belongs").into());
        }
        keys += 1;
        last = Some(key.clone());
        each(key, Versioned { value, revision })?;
    }
    drop(records);
    // What follows the stream counts, too.
    io::copy(&mut input, &mut io::sink()).map_err(failed)?;
    let Hashing { inner, digest } = input;
    let mut stored = [0; DIGEST_BYTES as usize];
    inner.into_inner().read_exact(&mut stored).map_err(failed)?;
    if digest.finalize()[..] != stored {
        return Err(damaged("it does not match its checksum").into());
    }
    if keys != header.keys {
        return Err(damaged("records are missing").into());
    }
    Ok(header)
}

/// Grows with what is really there, whatever length was promised.
fn field(from: &mut impl Read, length: u32) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(length.into()).read_to_end(&mut bytes)?;
    if bytes.len() == length as usize { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
