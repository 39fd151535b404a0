//! Groups of members through the wall: in one process over streams in memory, and (`crash`) as processes that end badly.

mod crash;
mod lab;
mod membership;
mod snapshots;
mod wire;
mod writes;
