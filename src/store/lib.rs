//! A replicated, versioned key space: Raft (openraft) for agreement, sled for durability.
//!
//! It knows bytes, keys and revisions, and nothing of Kubernetes. Every acknowledged [`Txn`] is on disk on a majority of
//! members when [`Store::commit`] returns. The applied state is an immutable ordered map, so a [`Snapshot`] is a pointer
//! copy and reads never touch the disk.
//!
//! Start with `store.rs`. `mvcc.rs` is the pure heart; `raft/` plugs it and the disk into openraft; `disk/` is all that
//! touches files; `batch.rs` feeds it, `watch.rs` and `history.rs` tell of it; `backup/` makes files of it and it of files.
//!
//! What always holds:
//! - The log is the only synchronous write. The state tree on disk is a checkpoint; recovery is it plus the log's tail.
//! - Revisions have no gap and depend on nothing but the log.
//! - A directory that had data never comes up empty.

pub mod backup;
mod batch;
mod config;
mod disk;
mod error;
mod group;
mod history;
mod metrics;
mod mvcc;
mod peers;
mod raft;
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
