//! What goes through the wall: revisions, transactions, events and errors.

use std::sync::Arc;

use bytes::Bytes;

/// The store's commit counter. Every committed [`Txn`] that changes something takes the next value; the first is 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// A value and the revision of the commit that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    pub value: Bytes,
    pub revision: Revision,
}

/// What must hold for a [`Txn`] to be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// The key does not exist.
    Absent(Bytes),
    /// The key exists and was last written at this revision.
    At(Bytes, Revision),
    /// The key exists, at whatever revision.
    Present(Bytes),
}

/// All or nothing: if every precondition holds, all puts and deletes happen at one new revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    pub preconditions: Vec<Precondition>,
    pub puts: Vec<(Bytes, Bytes)>,
    pub deletes: Vec<Bytes>,
}

/// One key's change. `value` is `None` for a delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub key: Bytes,
    pub value: Option<Bytes>,
    /// What the key held before; `None` when it did not exist.
    pub previous: Option<Versioned>,
}

/// All changes of one revision, restricted to the watched prefix; never empty.
#[derive(Clone, Debug)]
pub struct Commit {
    pub revision: Revision,
    pub events: Arc<[Event]>,
}

#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Nothing was changed. `current` is what the key held when the Txn was looked at.
    #[error("precondition {index} does not hold")]
    Refused { index: usize, current: Option<Versioned> },
    /// Nothing was changed: the request itself is beyond what the store takes.
    #[error("transaction of {bytes} bytes is larger than the limit of {bytes_max}")]
    TooLarge { bytes: usize, bytes_max: usize },
    /// Nothing was changed; try again later or elsewhere.
    #[error("no leader")]
    NoLeader,
    /// Nothing was changed, and nothing will be until the cause is mended (disk full, read-only file system).
    #[error("store cannot write")]
    Unwritable(#[source] Arc<std::io::Error>),
    /// The outcome is unknown: the Txn may or may not be applied, now or a little later.
    #[error("no answer in time; the outcome is unknown")]
    Unknown,
    /// The outcome is unknown: the Txn may or may not be applied.
    #[error("store stopped before the outcome was known")]
    Stopped,
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The revision is older than the history that is kept.
    #[error("revision {} is compacted; the oldest kept is {}", requested.0, oldest.0)]
    Compacted { requested: Revision, oldest: Revision },
    /// The revision lies in the future.
    #[error("revision {} is not committed yet; the newest is {}", requested.0, newest.0)]
    Future { requested: Revision, newest: Revision },
    #[error("no leader")]
    NoLeader,
    #[error("store is stopped")]
    Stopped,
}

#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error("revision {} is compacted; the oldest kept is {}", requested.0, oldest.0)]
    Compacted { requested: Revision, oldest: Revision },
    /// The watcher did not keep up and was cut off; start again from a new snapshot.
    #[error("watcher was too slow")]
    TooSlow,
    #[error("store is stopped")]
    Stopped,
}

/// How fresh a read has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Sees every write that was acknowledged before the call.
    Linearizable,
    /// What this member has applied.
    Local,
}
