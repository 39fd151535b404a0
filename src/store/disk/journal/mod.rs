//! Raft's log: segments of records, each in a file that is written over and over.
//!
//! The log has files of its own, beside the database, because it is what every write waits for: an append is one write and
//! one `fdatasync`, however much a checkpoint has the database write meanwhile. `segment.rs` is the form of a segment,
//! `slots.rs` the files, `recover.rs` how they are opened, `migrate.rs` how a log of the layout before gets here.
//!
//! One thread writes, in three steps: [`Journal::stage`] writes a round, [`Staged::sync`] makes it durable,
//! [`Journal::settle`] has it count. A round that fails leaves everything as it was, and may be staged again. A round is
//! durable before the next begins, so that of all there is only the newest record can be torn by a crash; what cannot be
//! read and has a record behind it is damage, and named.
//!
//! Segments are numbered. A header says after which entry its segment begins: later entries of older segments do not count
//! any more, which is how the log is cut back. Segments whose entries have all been purged are used again.

mod migrate;
mod recover;
mod segment;
mod slots;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::disk::identity::{Identity, sync_dir};
use crate::disk::journal::segment::{Body, Head, Header, RECORD_HEAD_BYTES, RECORDS_AT};
use crate::disk::journal::slots::Slot;
use crate::raft::LogId;

pub(crate) use crate::disk::journal::migrate::{forget_old, migrate};
pub(crate) use crate::disk::journal::recover::JournalError;
pub(crate) use crate::disk::journal::slots::Place;

/// The journal's directory, in the store's.
pub(crate) const DIRECTORY: &str = "log";

/// What a segment takes up on disk. One whose first record is longer takes more.
pub(crate) const SEGMENT_BYTES: u64 = 1 << 20;

/// Segments that are kept for what comes, when they are no longer needed for what was.
const SPARE_SLOTS_MAX: usize = 2;

/// An entry, encoded.
pub(crate) type Encoded = (LogId, Vec<u8>);

pub(crate) struct Journal {
    place: Place,
    identity: Identity,
    segment_bytes: u64,
    index: Mutex<Index>,
    /// One thread writes; others may ask it.
    writer: Mutex<Writer>,
}

/// Where everything is that can be read.
#[derive(Default)]
struct Index {
    /// Oldest first, and numbered without a gap.
    segments: VecDeque<Segment>,
    /// The log index of the first of `entries`.
    first: u64,
    entries: VecDeque<Entry>,
    /// What was read last: its neighbours are likely to be wanted next.
    recent: Option<Recent>,
}

#[derive(Clone)]
struct Segment {
    header: Header,
    slot: Slot,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Entry {
    /// Of its segment.
    sequence: u64,
    /// Of its record within the segment.
    at: u64,
    /// Within the record.
    nth: u32,
}

#[derive(Clone)]
struct Recent {
    sequence: u64,
    at: u64,
    entries: Arc<Vec<Vec<u8>>>,
}

struct Writer {
    /// The segment that is written to, its room, and where its next record goes. `None` before the first, and when the
    /// next entry does not follow the last one.
    current: Option<(Segment, u64)>,
    /// Where the newest segment ends.
    end: u64,
    next_sequence: u64,
    next_slot: u32,
    free: Vec<(Slot, u64)>,
    /// The newest one, when nothing in it is needed. Free once there is a newer one: as long as it is the newest, what is
    /// torn in it would look like damage.
    retired: Option<Slot>,
    /// The newest entry, or the one that the next one follows.
    last: Option<LogId>,
}

/// A round that is written, and not yet durable.
pub(crate) struct Staged {
    segment: Segment,
    room: u64,
    /// It begins with this round, in this one of the free slots.
    begun: Option<usize>,
    at: u64,
    end: u64,
    ids: Vec<LogId>,
    last: Option<LogId>,
}

impl Staged {
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.segment.slot.sync()
    }
}

impl Index {
    fn segment(&self, sequence: u64) -> Option<&Segment> {
        let oldest = self.segments.front()?.header.sequence;
        self.segments.get(usize::try_from(sequence.checked_sub(oldest)?).ok()?)
    }

    fn entry(&self, index: u64) -> Option<Entry> {
        self.entries.get(usize::try_from(index.checked_sub(self.first)?).ok()?).copied()
    }

    /// What comes after `previous` does not count any more.
    fn cut_back(&mut self, previous: Option<LogId>) {
        let kept = previous.map_or(0, |id| (id.index + 1).saturating_sub(self.first));
        let follows = kept <= self.entries.len() as u64;
        self.entries.truncate(if follows { kept as usize } else { 0 });
        self.recent = None;
    }

    fn push(&mut self, index: u64, entry: Entry) {
        if self.entries.is_empty() {
            self.first = index;
        }
        self.entries.push_back(entry);
    }

    /// Drops segments, oldest first, of which everything that counts is `purged`.
    fn drop_purged(&mut self, purged: u64) -> Vec<Slot> {
        let mut dropped = Vec::new();
        loop {
            // Only what lies before all later segments' first entries counts of the oldest.
            let later = self.segments.iter().skip(1).map(|segment| segment.header.previous.map_or(0, |id| id.index));
            match later.min() {
                Some(counts_to) if counts_to <= purged => {}
                _ => break,
            }
            let Some(oldest) = self.segments.pop_front() else { break };
            dropped.push(oldest.slot);
            while let Some(entry) = self.entries.front()
                && entry.sequence <= oldest.header.sequence
            {
                self.entries.pop_front();
                self.first += 1;
            }
        }
        dropped
    }
}

/// An empty one in the store's directory `dir`, whatever was there. Durable when this returns.
pub(crate) fn create(dir: &Path) -> io::Result<()> {
    let path = dir.join(DIRECTORY);
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::create_dir(&path)?;
    sync_dir(dir)
}

impl Journal {
    pub(crate) fn path(&self) -> PathBuf {
        self.place.path()
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entry before the first one that can be read, if there were any.
    pub(crate) fn start(&self) -> Option<LogId> {
        let writer = self.writer();
        match self.index().segments.front() {
            Some(oldest) => oldest.header.previous,
            None => writer.last,
        }
    }

    /// The newest entry, or the one that the next one has to follow.
    pub(crate) fn last(&self) -> Option<LogId> {
        self.writer().last
    }

    pub(crate) fn bytes_on_disk(&self) -> io::Result<u64> {
        let (free, retired) = {
            let writer = self.writer();
            (writer.free.iter().map(|(_, bytes)| bytes).sum::<u64>(), writer.retired.clone())
        };
        let mut slots: Vec<_> = self.index().segments.iter().map(|segment| segment.slot.clone()).collect();
        slots.extend(retired);
        slots.iter().map(Slot::bytes).try_fold(free, |sum, bytes| Ok(sum + bytes?))
    }

    /// Writes entries, each of which follows the one before it. They neither count nor are durable yet.
    pub(crate) fn stage(&self, entries: &[Encoded]) -> io::Result<Staged> {
        let body = Body::of(entries)?;
        let mut writer = self.writer();
        let last = entries.last().map(|(id, _)| *id);
        let ids = entries.iter().map(|(id, _)| *id).collect();
        if let Some((segment, room)) = writer.current.clone()
            && writer.end + body.record_bytes() <= room
        {
            let at = writer.end;
            let mut bytes = Vec::with_capacity(body.record_bytes() as usize);
            body.record(&segment.header, at, &mut bytes);
            segment.slot.write(at, &bytes)?;
            return Ok(Staged { segment, room, begun: None, at, end: at + bytes.len() as u64, ids, last });
        }
        let previous = writer.last;
        let staged = self.begin(&mut writer, previous, Some(&body))?;
        Ok(Staged { ids, last, ..staged })
    }

    /// As [`Journal::stage`]: what comes after `previous` is not to count any more.
    pub(crate) fn stage_cut(&self, previous: Option<LogId>) -> io::Result<Staged> {
        self.begin(&mut self.writer(), previous, None)
    }

    fn begin(&self, writer: &mut Writer, previous: Option<LogId>, body: Option<&Body>) -> io::Result<Staged> {
        let needed = RECORDS_AT + body.map_or(0, Body::record_bytes);
        let fits = |free: &[(Slot, u64)]| free.iter().rposition(|(_, room)| *room >= needed);
        let free = match fits(&writer.free) {
            Some(free) => free,
            None => {
                let room = needed.max(self.segment_bytes);
                let slot = self.place.create(writer.next_slot, room)?;
                writer.next_slot += 1;
                writer.free.push((slot, room));
                writer.free.len() - 1
            }
        };
        let (slot, room) = writer.free[free].clone();
        let header =
            Header { identity: self.identity, sequence: writer.next_sequence, before_ends: writer.end, previous };
        let mut bytes = header.encode();
        if let Some(body) = body {
            body.record(&header, RECORDS_AT, &mut bytes);
        }
        slot.write(0, &bytes)?;
        let segment = Segment { header, slot };
        let end = bytes.len() as u64;
        Ok(Staged { segment, room, begun: Some(free), at: RECORDS_AT, end, ids: Vec::new(), last: previous })
    }

    /// What is staged is durable, and counts from now on.
    pub(crate) fn settle(&self, staged: Staged) {
        let Staged { segment, room, begun, at, end, ids, last } = staged;
        let mut writer = self.writer();
        let mut index = self.index();
        let Header { sequence, previous, .. } = segment.header;
        if let Some(free) = begun {
            writer.free.remove(free);
            if let Some(retired) = writer.retired.take() {
                self.set_free(&mut writer, retired);
            }
            writer.next_sequence = sequence + 1;
            writer.current = Some((segment.clone(), room));
            index.cut_back(previous);
            index.segments.push_back(segment);
        }
        writer.end = end;
        writer.last = last;
        for (id, nth) in ids.into_iter().zip(0..) {
            index.push(id.index, Entry { sequence, at, nth });
        }
    }

    /// Entries up to `id` will not be read any more; if it is newer than all, the next entry follows it. Durable is that
    /// only with what is written later.
    pub(crate) fn purge(&self, id: LogId) {
        let mut writer = self.writer();
        let mut index = self.index();
        let dropped = if writer.last.is_none_or(|last| last.index < id.index) {
            writer.last = Some(id);
            writer.current = None;
            index.entries.clear();
            index.recent = None;
            if let Some(newest) = index.segments.pop_back() {
                writer.retired = Some(newest.slot);
            }
            index.segments.drain(..).map(|segment| segment.slot).collect()
        } else {
            index.drop_purged(id.index)
        };
        drop(index);
        for slot in dropped {
            self.set_free(&mut writer, slot);
        }
        // The longest go first.
        writer.free.sort_by_key(|(_, bytes)| *bytes);
        while writer.free.len() > SPARE_SLOTS_MAX
            && let Some((slot, _)) = writer.free.pop()
        {
            self.remove(&slot);
        }
    }

    fn set_free(&self, writer: &mut Writer, slot: Slot) {
        match slot.bytes() {
            Ok(bytes) if bytes >= RECORDS_AT => writer.free.push((slot, bytes)),
            _ => self.remove(&slot),
        }
    }

    fn remove(&self, slot: &Slot) {
        if let Err(error) = self.place.remove(slot) {
            let file = self.place.name(slot);
            tracing::debug!(file = %file.display(), %error, "a segment that is no longer needed stays");
        }
    }

    /// The encoded entry `index`; `None` if it is not there, or no longer.
    ///
    /// # Errors
    /// `InvalidData`: it is damaged.
    pub(crate) fn read(&self, index: u64) -> io::Result<Option<Vec<u8>>> {
        let (entry, segment) = {
            let found = self.index();
            let Some(entry) = found.entry(index) else { return Ok(None) };
            if let Some(recent) = &found.recent
                && (recent.sequence, recent.at) == (entry.sequence, entry.at)
            {
                return Ok(recent.entries.get(entry.nth as usize).cloned());
            }
            let Some(segment) = found.segment(entry.sequence) else { return Ok(None) };
            (entry, segment.clone())
        };
        let read = self.read_record(&segment, entry.at);
        let mut found = self.index();
        if found.entry(index) != Some(entry) {
            // Purged meanwhile, and something else may be there by now.
            return Ok(None);
        }
        let entries = Arc::new(read?.1);
        let wanted = entries.get(entry.nth as usize).cloned();
        found.recent = Some(Recent { sequence: entry.sequence, at: entry.at, entries });
        Ok(wanted)
    }

    /// How long the record is, and its entries.
    fn read_record(&self, segment: &Segment, at: u64) -> io::Result<(u64, Vec<Vec<u8>>)> {
        let damaged = || self.damaged(&segment.slot, at);
        let head = segment.slot.read(at, RECORD_HEAD_BYTES)?;
        let head = Head::decode(&segment.header, &head).ok_or_else(damaged)?;
        if (head.body_bytes as u64).saturating_add(at) > segment.slot.bytes()? {
            return Err(damaged());
        }
        let body = segment.slot.read(at + RECORD_HEAD_BYTES as u64, head.body_bytes)?;
        if body.len() < head.body_bytes || !head.is_of(&segment.header, at, &body) {
            return Err(damaged());
        }
        Ok(((RECORD_HEAD_BYTES + body.len()) as u64, head.entries(&body)?))
    }

    fn damaged(&self, slot: &Slot, at: u64) -> io::Error {
        let file = self.place.name(slot);
        let detail = format!("{}: what was written at offset {at} cannot be read any more", file.display());
        io::Error::new(io::ErrorKind::InvalidData, detail)
    }

    /// Has later reads come from the disk.
    pub(crate) fn forget_cached(&self) {
        let mut index = self.index();
        index.recent = None;
        index.segments.iter().for_each(|segment| segment.slot.forget_cached());
    }

    /// Reads all records of the segment `nth`, counted from the oldest: how many bytes there are, or what is wrong. `None`
    /// behind the last.
    pub(crate) fn check(&self, nth: usize) -> Option<io::Result<u64>> {
        let (segment, end) = {
            let writer = self.writer();
            let index = self.index();
            let segment = index.segments.get(nth)?.clone();
            let end = index.segments.get(nth + 1).map_or(writer.end, |next| next.header.before_ends);
            (segment, end)
        };
        let mut at = RECORDS_AT;
        while at < end {
            match self.read_record(&segment, at) {
                Ok((bytes, _)) => at += bytes,
                Err(error) => {
                    // Purged meanwhile, and written over.
                    let is_there = self.index().segment(segment.header.sequence).is_some();
                    return if is_there { Some(Err(error)) } else { Some(Ok(at)) };
                }
            }
        }
        Some(Ok(at))
    }

    /// Goes on after an error, with files that are opened anew.
    ///
    /// # Errors
    /// What was written last before cannot be read back.
    pub(crate) fn reopen(&self) -> io::Result<()> {
        let mut writer = self.writer();
        for (slot, _) in &mut writer.free {
            *slot = self.place.reopen(slot)?;
        }
        if let Some(slot) = &mut writer.retired {
            *slot = self.place.reopen(slot)?;
        }
        let mut index = self.index();
        for segment in &mut index.segments {
            segment.slot = self.place.reopen(&segment.slot)?;
        }
        if let Some((current, _)) = &mut writer.current
            && let Some(newest) = index.segments.back()
        {
            *current = newest.clone();
        }
        let newest = index.entries.back().and_then(|entry| Some((entry.at, index.segment(entry.sequence)?.clone())));
        drop(index);
        match newest {
            Some((at, segment)) => self.read_record(&segment, at).map(drop),
            None => Ok(()),
        }
    }
}
