//! A replicated, versioned key space: Raft (openraft) for agreement, sled for durability.
//!
//! It knows bytes, keys and revisions, and nothing of Kubernetes. Every acknowledged [`Txn`] is on disk on a majority of
//! members when [`Store::commit`] returns. The applied state is an immutable ordered map, so a [`Snapshot`] is a pointer
//! copy and reads never touch the disk.
//!
//! Start with `store.rs`. `mvcc.rs` is the pure heart; `raft/` plugs it and the disk into openraft; `disk/` is all that
//! touches files; `group/` is this member as one of several, and `wire/` what they say to each other; `batch.rs` feeds it,
//! `watch.rs` and `history.rs` tell of it; `backup/` makes files of it and it of files. `sim/` runs whole groups in a
//! simulated world.
//!
//! What always holds:
//! - The log is the only synchronous write. The state tree on disk is a checkpoint; recovery is it plus the log's tail.
//! - Revisions have no gap and depend on nothing but the log.
//! - A directory that had data never comes up empty.
//! - A commit that was proposed twice, because its answer was lost, is applied once. What cannot be known is called unknown.
//! - A linearizable read asks a majority, not a clock. A lone member has nobody to ask.
//! - A member that was removed does not come back.

pub mod backup;
mod batch;
mod config;
mod disk;
mod error;
mod group;
mod history;
mod metrics;
mod mvcc;
mod next_version;
mod peers;
mod raft;
#[cfg(test)]
mod sim;
mod store;
mod types;
mod watch;
mod wire;

pub use config::Config;
pub use error::OpenError;
pub use metrics::Metrics;
pub use mvcc::Snapshot;
pub use peers::*;
pub use store::Store;
pub use types::*;
pub use watch::Watch;
#[doc(hidden)]
pub use wire::hello::WireVersions;
