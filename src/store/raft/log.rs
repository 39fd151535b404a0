//! Raft's log and vote.
//!
//! The newest entries stay in memory: the state machine reads each once, right after it became durable, and shares its
//! bytes. Older ones are only read at start and by members that lag.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, RaftLogReader};

use crate::disk::engine::{Space, Writes};
use crate::disk::records;
use crate::disk::thread::Disk;
use crate::raft::{Entry, LogId, Payload, Types, Vote};

const VOTE: &[u8] = b"vote";

/// Entries beyond this are read from disk when they are wanted again.
const CACHE_BYTES_MAX: usize = 512 << 10;
const CACHE_ENTRIES_MAX: usize = 512;

/// What is sent to a member at once, up to the last entry.
const MESSAGE_BYTES: usize = 1 << 20;
const ENTRIES_AT_ONCE: u64 = 8;

#[derive(Clone)]
pub(crate) struct LogStore {
    disk: Disk,
    /// The last index that the state machine has applied: what lies before is hardly read again.
    applied: Arc<AtomicU64>,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    vote: Option<Vote>,
    purged: Option<LogId>,
    last: Option<LogId>,
    /// The tail of the log, without a hole.
    cache: VecDeque<(Entry, usize)>,
    cache_bytes: usize,
}

impl LogStore {
    /// What is on disk.
    pub(crate) fn open(disk: Disk, applied: Arc<AtomicU64>) -> io::Result<Self> {
        let vote = disk.engine().get(Space::Meta, VOTE)?.map(|record| records::decode_vote(&record)).transpose()?;
        let journal = disk.journal();
        let inner = Inner { vote, purged: journal.start(), last: journal.last(), ..Inner::default() };
        Ok(Self { disk, applied, inner: Arc::new(Mutex::new(inner)) })
    }

    /// The vote that a store is founded with.
    pub(crate) fn found(writes: &mut Writes, vote: &Vote) -> io::Result<()> {
        writes.put(Space::Meta, VOTE, records::encode_vote(vote)?);
        Ok(())
    }

    /// The index of the newest entry, kept or purged; 0 when there was none.
    pub(crate) fn last_index(&self) -> u64 {
        self.lock().last.map_or(0, |id| id.index)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let (start, cache_start) = {
            let inner = self.lock();
            // What is purged is gone from now on, and from the disk a little later.
            let start = inner.purged.map_or(start, |purged| start.max(purged.index + 1));
            let cache_start = inner.cache.front().map_or(u64::MAX, |(entry, _)| entry.log_id.index);
            if start >= cache_start {
                let skip = (start - cache_start) as usize;
                let count = end.saturating_sub(start) as usize;
                return Ok(inner.cache.iter().skip(skip).take(count).map(|(entry, _)| entry.clone()).collect());
            }
            (start, cache_start.min(end))
        };
        for index in start..cache_start {
            // Behind the last, or purged meanwhile.
            let Some(entry) = self.disk.journal().read(index)? else { break };
            entries.push(records::decode_entry(&entry)?);
        }
        if cache_start < end {
            entries.extend(self.read(cache_start, end)?);
        }
        Ok(entries)
    }
}

impl Inner {
    fn remember(&mut self, entry: Entry, bytes: usize) {
        self.cache_bytes += bytes;
        self.cache.push_back((entry, bytes));
    }

    /// Drops what can be read from disk, oldest first.
    fn evict(&mut self, up_to: u64) {
        while self.cache_bytes > CACHE_BYTES_MAX || self.cache.len() > CACHE_ENTRIES_MAX {
            match self.cache.front() {
                Some((entry, bytes)) if entry.log_id.index <= up_to => {
                    self.cache_bytes -= bytes;
                    self.cache.pop_front();
                }
                _ => break,
            }
        }
    }

    fn forget_up_to(&mut self, index: u64) {
        while let Some((entry, bytes)) = self.cache.front()
            && entry.log_id.index <= index
        {
            self.cache_bytes -= bytes;
            self.cache.pop_front();
        }
    }
}

/// About what an entry holds in memory.
fn memory_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        Payload::Normal(batch) => batch.txns.iter().map(|txn| 200 + crate::batch::txn_bytes(txn)).sum(),
        _ => 200,
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.read(start, end)
    }

    /// For a member that lags: not more than fits a message, however large the entries are.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let (mut next, mut bytes) = (start, 0);
        while next < end && bytes < MESSAGE_BYTES {
            let some = self.read(next, end.min(next + ENTRIES_AT_ONCE))?;
            if some.is_empty() {
                break;
            }
            for entry in some {
                bytes += memory_bytes(&entry);
                next = entry.log_id.index + 1;
                entries.push(entry);
                if bytes >= MESSAGE_BYTES {
                    break;
                }
            }
        }
        Ok(entries)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.lock().vote)
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let inner = self.lock();
        Ok(LogState { last_purged_log_id: inner.purged, last_log_id: inner.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let mut writes = Writes::default();
        writes.put(Space::Meta, VOTE, records::encode_vote(vote)?);
        self.disk.write(writes, None).await?;
        self.lock().vote = Some(*vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let mut encoded = Vec::new();
        {
            let mut inner = self.lock();
            inner.evict(self.applied.load(Ordering::Acquire).min(self.disk.written()));
            for entry in entries {
                encoded.push((entry.log_id, records::encode_entry(&entry)?));
                inner.last = Some(entry.log_id);
                let bytes = memory_bytes(&entry);
                inner.remember(entry, bytes);
            }
        }
        self.disk.append(encoded, flushed);
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let first_removed = last_log_id.map_or(0, |id| id.index + 1);
        {
            let mut inner = self.lock();
            while let Some((entry, bytes)) = inner.cache.back()
                && entry.log_id.index >= first_removed
            {
                let bytes = *bytes;
                inner.cache_bytes -= bytes;
                inner.cache.pop_back();
            }
            inner.last = inner.last.min(last_log_id);
        }
        // Waited for, because entries with the same indexes are read from disk until it is done.
        self.disk.cut_back(last_log_id).await
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        {
            let mut inner = self.lock();
            inner.purged = Some(log_id);
            if inner.last.is_none_or(|last| last.index <= log_id.index) {
                inner.last = Some(log_id);
            }
            inner.forget_up_to(log_id.index);
        }
        self.disk.purge(log_id);
        Ok(())
    }
}
