//! The reverse tunnel: an agent opens a connection to every server, and servers reach its kubelet through it, so that no
//! port of the agent has to be reachable.
//!
//! The agent's request upgrades to HTTP/2 with the roles turned round: the server sends CONNECT, the agent answers it by
//! connecting to its kubelet. Streams are bounded, flow-controlled and pinged by HTTP/2.

mod agent;
mod server;

use std::time::Duration;

pub use agent::TunnelClient;
pub use server::Tunnels;

/// Streams at once per tunnel: exec sessions, logs, scrapes.
const STREAMS_MAX: u32 = 256;
/// An agent notices that soon that a server hangs or is cut off, and servers as soon that an agent is.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIME: Duration = Duration::from_secs(3);
