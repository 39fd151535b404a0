//! Groups in a simulated world: one thread, paused time, and a seed that decides on the network, the disks, what breaks
//! when, and what clients ask. A failing seed prints the command that replays it.
//!
//! `world.rs` runs it; `disk.rs` and `net.rs` stand in for what is outside the process; `history.rs` checks what clients
//! saw for linearizability, `witness.rs` what watchers saw for gaps, order and repeats.

pub(crate) mod disk;
mod history;
mod net;
mod random;
mod witness;
mod world;
