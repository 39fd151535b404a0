//! Everything that touches the disk: the log in files of its own, the database behind a narrow type, the threads that write
//! them, the files beside them.
//!
//! `journal` is Raft's log. `engine.rs` is the only place that knows sled, which has the state. `thread.rs` gives the writes
//! of each one order, and one fsync to all that wait.

pub(crate) mod database;
pub(crate) mod durable;
pub(crate) mod engine;
pub(crate) mod identity;
pub(crate) mod inspect;
pub(crate) mod journal;
#[cfg(any(panic = "abort", test))]
mod last_words;
pub(crate) mod lock;
pub(crate) mod memory;
pub(crate) mod pace;
pub(crate) mod records;
pub(crate) mod scrub;
pub(crate) mod space;
pub(crate) mod swap;
mod tail;
pub(crate) mod thread;
#[cfg(test)]
mod torn_tests;
