//! Calls to servers that take part in what the API server does: admission webhooks, and others that are posted a review
//! and answer with one.
//!
//! A target is a URL or a Service of the cluster; [`crate::outbound`] reaches it. Its certificate is to be of the configuration's
//! CA bundle, or of the system's roots without one.

mod client;
mod target;

pub use client::{CallError, Client};
pub use target::{Target, TargetError};
