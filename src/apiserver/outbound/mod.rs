//! Connections that the API server opens: to webhooks, to extension servers, to kubelets, and to what is behind the proxies of
//! Services.
//!
//! A Service is reached at its endpoints, as the store has them, under the name `<service>.<namespace>.svc`, so that no cluster
//! DNS or service proxy is needed. Whose certificate is believed is said in [`tls`] and nowhere else.

pub mod endpoints;
mod pool;
pub mod tls;

pub use pool::{Pools, innermost};
