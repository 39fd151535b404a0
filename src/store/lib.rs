//! A replicated, versioned key space: Raft (openraft) for agreement, sled for durability.
//!
//! It knows bytes, keys and revisions, and nothing of Kubernetes. Every acknowledged [`Txn`] is on disk on a majority of
//! members when [`Store::commit`] returns. The applied state is an immutable ordered map, so a [`Snapshot`] is a pointer
//! copy and reads never touch the disk.

mod types;

pub use types::*;
