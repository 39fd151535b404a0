//! How a journal is opened: what a crash left unfinished is dropped, and what is damaged is named.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;

use crate::disk::identity::Identity;
use crate::disk::journal::segment::{self, Header, RECORDS_AT};
use crate::disk::journal::slots::{Place, Slot};
use crate::disk::journal::{Entry, Index, Journal, Segment, Writer};
use crate::disk::records;

#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    #[error("{}: {detail}", file.display())]
    Damaged { file: PathBuf, detail: String },
    #[error("read the log in {}", dir.display())]
    Read { dir: PathBuf, source: io::Error },
}

impl Journal {
    /// Opens what is at `place`; nothing is changed. Entries up to `applied` are not needed, as the state has them.
    pub(crate) fn open(
        place: Place,
        identity: Identity,
        segment_bytes: u64,
        applied: u64,
    ) -> Result<Self, JournalError> {
        let mut found = Found { place, identity, applied, segments: VecDeque::new(), free: Vec::new() };
        let (next_sequence, next_slot) = found.look()?;
        let mut index = Index::default();
        let mut writer =
            Writer { current: None, end: 0, next_sequence, next_slot, free: Vec::new(), retired: None, last: None };
        found.read(&mut index, &mut writer)?;
        if let Some(start) = index.segments.front().and_then(|oldest| oldest.header.previous)
            && start.index > applied
        {
            let detail = format!("the log begins after entry {}, and the state is of entry {applied}", start.index);
            return Err(found.lost(detail));
        }
        let Found { place, free, .. } = found;
        writer.free = free;
        Ok(Self { place, identity, segment_bytes, index: Mutex::new(index), writer: Mutex::new(writer) })
    }
}

struct Found {
    place: Place,
    identity: Identity,
    applied: u64,
    /// By number, without a gap, up to the newest.
    segments: VecDeque<Segment>,
    free: Vec<(Slot, u64)>,
}

impl Found {
    fn failed(&self, source: io::Error) -> JournalError {
        JournalError::Read { dir: self.place.path(), source }
    }

    fn damaged(&self, slot: &Slot, detail: impl Into<String>) -> JournalError {
        JournalError::Damaged { file: self.place.name(slot), detail: detail.into() }
    }

    fn lost(&self, detail: String) -> JournalError {
        JournalError::Damaged { file: self.place.path(), detail }
    }

    /// Reads the headers. The numbers of the next segment and the next slot.
    fn look(&mut self) -> Result<(u64, u32), JournalError> {
        let slots = self.place.slots().map_err(|error| self.failed(error))?;
        let next_slot = slots.iter().map(|slot| slot.number() + 1).max().unwrap_or(0);
        let (mut segments, mut headless) = (Vec::new(), Vec::new());
        for slot in slots {
            let bytes = slot.read(0, RECORDS_AT as usize).map_err(|error| self.failed(error))?;
            match Header::decode(&bytes).map_err(|error| self.damaged(&slot, error.to_string()))? {
                Some(header) if header.identity != self.identity => {
                    return Err(self.damaged(&slot, "it belongs to another cluster or member"));
                }
                Some(header) => segments.push(Segment { header, slot }),
                None => headless.push(slot),
            }
        }
        segments.sort_by_key(|segment| segment.header.sequence);
        let newest = segments.last().map_or(0, |segment| segment.header.sequence);
        if newest == 0 && self.applied > 0 && !headless.is_empty() {
            let detail = format!("no segment has a header, and the state is of entry {}", self.applied);
            return Err(self.lost(detail));
        }
        for slot in headless {
            // One that was being begun has one record at most.
            let lost = Header { identity: self.identity, sequence: newest + 1, before_ends: 0, previous: None };
            let bytes = self.whole(&slot)?;
            let first = segment::record_at(&lost, &bytes, RECORDS_AT).map_err(|error| self.failed(error))?;
            if first.is_some_and(|(first, _)| segment::goes_on_behind(&lost, &bytes, first.end - 1)) {
                return Err(self.damaged(&slot, "its header cannot be read any more"));
            }
            self.set_free(slot)?;
        }
        let mut follows = newest;
        for segment in segments.into_iter().rev() {
            if segment.header.sequence == follows && follows > 0 {
                follows -= 1;
                self.segments.push_front(segment);
            } else {
                self.set_free(segment.slot)?;
            }
        }
        Ok((newest + 1, next_slot))
    }

    fn set_free(&mut self, slot: Slot) -> Result<(), JournalError> {
        let bytes = slot.bytes().map_err(|error| self.failed(error))?;
        if bytes >= RECORDS_AT {
            self.free.push((slot, bytes));
        }
        Ok(())
    }

    fn whole(&self, slot: &Slot) -> Result<Vec<u8>, JournalError> {
        let bytes = slot.bytes().and_then(|bytes| slot.read(0, usize::try_from(bytes).map_err(io::Error::other)?));
        bytes.map_err(|error| self.failed(error))
    }

    fn read(&mut self, index: &mut Index, writer: &mut Writer) -> Result<(), JournalError> {
        while let Some(segment) = self.segments.pop_front() {
            let Header { sequence, previous, .. } = segment.header;
            let start = index.segments.front().and_then(|oldest| oldest.header.previous);
            let has_what_is_before = match previous {
                // Nothing is.
                None => false,
                Some(previous) => {
                    writer.last.is_some_and(|last| previous.index <= last.index)
                        && start.is_none_or(|start| start.index <= previous.index)
                }
            };
            index.cut_back(previous);
            if !has_what_is_before {
                // It began anew, or older ones are left over from what was dropped.
                self.drop_all(index)?;
            }
            writer.last = previous;
            let bytes = self.whole(&segment.slot)?;
            let mut at = RECORDS_AT;
            loop {
                let record = segment::record_at(&segment.header, &bytes, at);
                let Some((place, entries)) = record.map_err(|error| self.failed(error))? else { break };
                for (entry, nth) in entries.iter().zip(0..) {
                    let id =
                        records::entry_id(entry).map_err(|error| self.damaged(&segment.slot, error.to_string()))?;
                    if writer.last.is_some_and(|last| last.index + 1 != id.index) {
                        let detail = format!("the log has a hole before entry {}, at offset {at}", id.index);
                        return Err(self.damaged(&segment.slot, detail));
                    }
                    index.push(id.index, Entry { sequence, at, nth });
                    writer.last = Some(id);
                }
                at = place.end;
            }
            let ends = match self.segments.front() {
                Some(next) => next.header.before_ends == at,
                None => !segment::goes_on_behind(&segment.header, &bytes, at),
            };
            if !ends {
                // Only what lies before all later segments' first entries counts of it.
                let later = self.segments.iter().map(|later| later.header.previous.map_or(0, |id| id.index));
                if later.min().is_none_or(|counts_to| counts_to > self.applied) {
                    let detail = format!("what was written at offset {at} cannot be read any more");
                    return Err(self.damaged(&segment.slot, detail));
                }
                // The state has all that is in it: the log begins behind it.
                let file = self.place.name(&segment.slot);
                tracing::warn!(file = %file.display(), at, "a part of the log that is no longer needed is damaged");
                index.entries.clear();
                self.drop_all(index)?;
                self.set_free(segment.slot)?;
                writer.last = None;
                continue;
            }
            let room = bytes.len() as u64;
            writer.end = at;
            writer.current = self.segments.is_empty().then(|| (segment.clone(), room));
            index.segments.push_back(segment);
        }
        Ok(())
    }

    fn drop_all(&mut self, index: &mut Index) -> Result<(), JournalError> {
        index.segments.drain(..).try_for_each(|segment| self.set_free(segment.slot))
    }
}
