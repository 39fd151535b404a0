//! Everything that touches the disk: the database behind a narrow type, the thread that writes it, the files beside it.
//!
//! `engine.rs` is the only place that knows sled. `thread.rs` gives all its writes one order and one fsync per batch.

pub(crate) mod database;
pub(crate) mod durable;
pub(crate) mod engine;
pub(crate) mod identity;
pub(crate) mod inspect;
#[cfg(any(panic = "abort", test))]
mod last_words;
pub(crate) mod lock;
pub(crate) mod memory;
pub(crate) mod records;
pub(crate) mod scrub;
pub(crate) mod space;
pub(crate) mod swap;
mod tail;
pub(crate) mod thread;
#[cfg(test)]
mod torn_tests;
