//! A store of one member, through its wall. One program for all of it: what each would cost to build is most of what it costs.

mod backup;
mod contract;
mod crash;
mod directory;
mod faults;
mod power_cut;
mod support;
