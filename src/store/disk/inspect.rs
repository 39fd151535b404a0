//! A look at the database file before the engine gets it.
//!
//! sled takes what it cannot read for the torn end of its log and writes over it. So damage that can be told from a torn
//! end is found here first: each segment begins with a checksummed header, or was never written and is zero; and behind the
//! torn end nothing begins any more, see `tail.rs`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::OpenError;
use crate::disk::engine::SEGMENT_BYTES;
use crate::disk::tail::{self, HEADER_BYTES, Header};

/// Reads `file`, which holds data if `had_data`, and changes nothing.
pub(crate) fn inspect(file: &Path, dir: &Path, had_data: bool) -> Result<(), OpenError> {
    let read = |source| OpenError::Read { file: file.to_path_buf(), source };
    let corrupt = |detail| OpenError::Corrupt { file: file.to_path_buf(), detail };
    let opened = match File::open(file) {
        Ok(opened) => opened,
        Err(source) if source.kind() == ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(read(source)),
    };
    let length = opened.metadata().map_err(read)?.len();
    let mut segments = BTreeMap::new();
    let mut stable = 0;
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
        let Some(header) = Header::read(&header) else {
            return Err(corrupt(format!("the segment at offset {offset} has no valid header")));
        };
        segments.insert(header.begins, offset);
        stable = stable.max(header.stable);
    }
    if had_data && segments.is_empty() {
        return Err(OpenError::Lost { dir: dir.to_path_buf(), detail: "is empty".to_string() });
    }
    match tail::damage(&opened, &segments, stable).map_err(read)? {
        Some(offset) => Err(corrupt(format!("what was written at offset {offset} cannot be read any more"))),
        None => Ok(()),
    }
}
