//! A container runtime behind the Kubernetes CRI, and the shim that keeps pods alive without it.
//!
//! [`Runtime`] answers CRI: it decides, keeps records, mounts root file systems and asks shims. A shim ([`shim`]) is a
//! process per pod that owns the pod's namespaces and containers. The two meet at a socket in the run directory, so
//! either may be replaced while the other lives.
//!
//! Invariants: pods never depend on this process being alive; what is on disk or mounted is found again after a crash
//! and either used or removed; what an image contains is never trusted with the node's paths or code.
//!
//! Absent on purpose: user namespaces, checkpoints. Absent for now: a default AppArmor profile of our own.

mod capabilities;
mod cgroup;
mod containers;
mod device_filter;
mod devices;
mod error;
mod events;
mod host;
pub mod image;
pub mod images;
mod metrics;
pub mod network;
mod pty;
mod records;
mod rootfs;
mod runtime;
mod sandboxes;
mod seccomp;
mod service;
mod sessions;
pub mod shim;
mod shim_client;
mod signals;
pub mod snapshot;
mod spec;
mod stats;
pub mod streaming;
mod sysctls;
mod user;
mod watched;

pub use error::{Error, chain};
pub use host::prepare_host;
pub use runtime::{Config, Runtime};
pub use service::{RUNTIME_NAME, StreamingServer};
pub use sessions::{Input, Output, Session, Terminal, Wanted};
