//! Reads of many records, a bounded number at a time.

use std::collections::VecDeque;
use std::io;

use crate::disk::engine::writes::CHUNKS;
use crate::disk::engine::{Engine, Space, io_error, opened};

/// What a scan reads at a time. Writers wait for it.
pub(super) const SCAN_RECORDS: usize = 256;

impl Engine {
    /// All records of `space` from `start` on, in key order. Records that change meanwhile may be seen before or after.
    pub(crate) fn scan(&self, space: Space, start: &[u8]) -> Scan<'_> {
        Scan { engine: self, next: Some(space.key(start)), end: vec![space as u8 + 1], read: VecDeque::new() }
    }

    /// Reads some records from `start` on, of all spaces, and says which are damaged.
    pub(crate) fn read_slice(&self, start: &[u8]) -> Slice {
        let mut slice = Slice::default();
        let guard = self.read();
        // Closed after an error: there is nothing to be found out now.
        let Ok(open) = opened(&guard) else { return slice };
        for record in open.db.range(start..).take(SCAN_RECORDS) {
            let read = record.map_err(|error| io_error(error, &self.file)).and_then(|(full_key, record)| {
                slice.next = Some([&full_key[..], &[0]].concat());
                slice.records += 1;
                slice.bytes += (full_key.len() + record.len()) as u64;
                // Chunks are looked at with the record that they belong to.
                if full_key.first() == Some(&CHUNKS) {
                    Ok(())
                } else {
                    self.whole(&open.db, &full_key, &record).map(drop)
                }
            });
            if let Err(error) = read {
                slice.damaged.push(error);
            }
        }
        if slice.records < SCAN_RECORDS {
            slice.next = None;
        }
        slice
    }
}

/// What [`Engine::read_slice`] found.
#[derive(Debug, Default)]
pub(crate) struct Slice {
    /// Where to go on; `None` at the end.
    pub(crate) next: Option<Vec<u8>>,
    pub(crate) records: usize,
    pub(crate) bytes: u64,
    pub(crate) damaged: Vec<io::Error>,
}

/// Reads a bounded number of records at a time, so that no writer waits for a whole scan.
pub(crate) struct Scan<'a> {
    engine: &'a Engine,
    /// Where to go on; `None` at the end.
    next: Option<Vec<u8>>,
    end: Vec<u8>,
    read: VecDeque<io::Result<(Vec<u8>, Vec<u8>)>>,
}

impl Iterator for Scan<'_> {
    /// The key within its space, and the value.
    type Item = io::Result<(Vec<u8>, Vec<u8>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.read.is_empty() {
            self.fill();
        }
        self.read.pop_front()
    }
}

impl Scan<'_> {
    fn fill(&mut self) {
        let Some(start) = self.next.take() else { return };
        let guard = self.engine.read();
        let open = match opened(&guard) {
            Ok(open) => open,
            Err(error) => return self.read.push_back(Err(error)),
        };
        for record in open.db.range(start..self.end.clone()).take(SCAN_RECORDS) {
            let read = record.map_err(|error| io_error(error, &self.engine.file)).and_then(|(full_key, record)| {
                let value = self.engine.whole(&open.db, &full_key, &record)?;
                // The key that follows at once.
                self.next = Some([&full_key[..], &[0]].concat());
                Ok((full_key[1..].to_vec(), value))
            });
            let failed = read.is_err();
            self.read.push_back(read);
            if failed {
                self.next = None;
                return;
            }
        }
        if self.read.len() < SCAN_RECORDS {
            self.next = None;
        }
    }
}
