//! How a store is opened: where it lives, and the bounds on what it keeps.

use std::path::PathBuf;
use std::time::Duration;

use crate::{Peer, Timing, WireVersions, next_version};

/// What [`crate::Store::open`] needs to know. `Config::new(dir)` is right for a server on a small machine.
#[derive(Clone, Debug)]
pub struct Config {
    /// The store's own directory. Created when missing; nothing else may live in it.
    pub dir: PathBuf,
    /// How long after a change the next checkpoint is made when the log grows slowly. A checkpoint writes what was
    /// changed up to the one before it, so that the log always reaches back this long, or by `log_bytes_max`.
    pub checkpoint_interval: Duration,
    /// A checkpoint of the log's oldest part is made at once when the log has this much without it. So the log holds little
    /// more: half of this, and what is written meanwhile; four times as much while more is written than checkpoints can take.
    pub log_bytes_max: u64,
    /// Entries before a checkpoint that a member of a group keeps for others that lag: who lacks more gets a snapshot.
    pub log_entries_kept: u64,
    /// How much history is kept for watches and for snapshots of past revisions.
    pub history_bytes_max: usize,
    /// As `history_bytes_max`, counted in revisions.
    pub history_revisions_max: usize,
    /// As `history_bytes_max`, by age.
    pub history_age_max: Duration,
    /// Commits that wait in one watcher's queue before the watcher is cut off.
    pub watch_commits_max: usize,
    /// The largest Txn that is accepted: all keys and values together.
    pub txn_bytes_max: usize,
    /// Writes are refused while the file system has less room than this, so that the log never meets a full disk.
    pub free_bytes_min: u64,
    /// All that is on disk is read this often, slowly, to find damage while it can be mended.
    pub scrub_interval: Duration,
    /// The engine's page cache. The store reads from memory, so that this only serves writing.
    pub cache_bytes: u64,
    /// How the other members are reached, and they reach this one. Without it the member stays alone.
    pub peer: Option<Peer>,
    pub timing: Timing,
    /// For tests of upgrades.
    #[doc(hidden)]
    pub wire_versions: WireVersions,
}

impl Config {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            // Recovery from 8 MiB of log takes a fraction of a second, so that only the log's size needs a bound.
            checkpoint_interval: Duration::from_secs(3600),
            log_bytes_max: 4 << 20,
            log_entries_kept: 2000,
            history_bytes_max: 8 << 20,
            history_revisions_max: 20_000,
            history_age_max: Duration::from_secs(3600),
            watch_commits_max: 1024,
            txn_bytes_max: 3 << 20,
            free_bytes_min: 16 << 20,
            scrub_interval: Duration::from_secs(24 * 3600),
            cache_bytes: 8 << 20,
            peer: None,
            timing: Timing::default(),
            wire_versions: next_version::wire_versions(),
        }
    }
}
