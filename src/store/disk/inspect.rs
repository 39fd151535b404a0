//! A look at the database file before the engine gets it.
//!
//! sled takes what it cannot read for the torn end of its log and writes over it. So damage that can be told from a torn
//! end is found here first: each segment begins with a checksummed header, or was never written and is zero.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::OpenError;
use crate::disk::engine::SEGMENT_BYTES;

const HEADER_BYTES: usize = 20;

/// Reads `file`, which holds data if `had_data`, and changes nothing.
pub(crate) fn inspect(file: &Path, dir: &Path, had_data: bool) -> Result<(), OpenError> {
    let read = |source| OpenError::Read { file: file.to_path_buf(), source };
    let opened = match File::open(file) {
        Ok(opened) => opened,
        Err(source) if source.kind() == ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(read(source)),
    };
    let length = opened.metadata().map_err(read)?.len();
    let mut segments = 0u64;
    for offset in (0..length).step_by(SEGMENT_BYTES) {
        let mut header = [0; HEADER_BYTES];
        match opened.read_exact_at(&mut header, offset) {
            Ok(()) => {}
            // The file was growing when the power went.
            Err(source) if source.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(source) => return Err(read(source)),
        }
        if header == [0; HEADER_BYTES] {
            continue;
        }
        if !is_valid(&header) {
            let detail = format!("the segment at offset {offset} has no valid header");
            return Err(OpenError::Corrupt { file: file.to_path_buf(), detail });
        }
        segments += 1;
    }
    if had_data && segments == 0 {
        return Err(OpenError::Lost { dir: dir.to_path_buf(), detail: "is empty".to_string() });
    }
    Ok(())
}

fn is_valid(header: &[u8; HEADER_BYTES]) -> bool {
    let Some((stored, rest)) = header.split_first_chunk::<4>() else { return false };
    u32::from_le_bytes(*stored) ^ u32::MAX == crc32(rest)
}

/// CRC-32 (IEEE). A few bytes per half megabyte do not need a faster one.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_usual_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
