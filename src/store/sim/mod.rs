//! Groups in a simulated world: one thread, paused time, and a seed that decides on the network, the disks, what breaks
//! when, and what clients ask. Each world has a process of its own, in which nothing is left to chance; so a failing seed
//! replays exactly, and prints the command that does.
//!
//! `worlds.rs` runs many, `world.rs` is one, with the clients of `client.rs` in it; `fault.rs` shows that it finds what is wrong.
//! `disk.rs` and `net.rs` stand in for what is outside the process; `history.rs` checks what clients
//! saw for linearizability, `witness.rs` what watchers saw for gaps, order and repeats.

mod chance;
mod client;
mod clock;
pub(crate) mod disk;
pub(crate) mod fault;
mod history;
mod net;
pub(crate) mod random;
mod witness;
mod world;
mod worlds;
