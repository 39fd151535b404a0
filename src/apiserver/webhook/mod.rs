//! Calls to servers that take part in what the API server does: admission webhooks, and others that are posted a review
//! and answer with one.
//!
//! A target is a URL or a Service of the cluster. Services are reached at their endpoints, as the store has them, under the
//! name `<service>.<namespace>.svc`, so that no cluster DNS or service proxy is needed. Connections are kept, speak HTTP/2
//! or 1.1 and trust the configuration's CA bundle, or the system's roots without one.

mod client;
mod target;
mod trust;

pub use client::{CallError, Client};
pub use target::{Target, TargetError};
