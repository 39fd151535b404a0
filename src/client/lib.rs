//! What every client of the API server in this house shares: the connection, informers, work queues, the event
//! recorder and the leader gate.
//!
//! A process keeps one copy of each kind of object ([`Informers`]); everybody who wants Pods reads the same Arcs.
//! Start at [`informer`] for reading the world and [`queue`] for acting on it.

mod any_server;
pub mod connect;
pub mod event;
pub mod informer;
pub mod leader;
pub mod queue;

pub use any_server::{any_server, tls_to_anybody};
pub use connect::{
    ClientIdentity, ClusterTls, ConnectError, Tls, TokenSource, in_process, over_cluster_tls, over_tls, resolve,
};
pub use event::{EventType, Recorder, reference};
pub use informer::{Change, Changes, Informer, Informers};
pub use leader::LeaderGate;
pub use queue::WorkQueue;
