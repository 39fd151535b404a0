//! Serves exec, attach and port-forward: what CRI hands out URLs for.
//!
//! Clients speak SPDY/3.1 or WebSocket; both end here, whoever passes them on in between. A URL holds a token that is good
//! for one use within a minute.

mod channels;
mod forward;
mod remote;
mod server;
mod spdy;
mod websocket;

pub use server::{Handle, ServeError, Server};
