//! Groups of members in one process, through the wall, over streams in memory.

mod lab;
mod membership;
mod snapshots;
mod wire;
mod writes;
