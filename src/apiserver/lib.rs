//! The Kubernetes API over HTTP: authentication, authorization, admission, storage, watches, discovery.
//!
//! It is the only crate that writes to the store, and holds no state that the store does not: caches are rebuilt from it.
//! A request passes [`server`] (TLS, HTTP) or [`in_process`], then [`filters`] (request info, who asks, may they), then
//! the dispatcher in [`routes`], which answers itself (discovery, health, metrics), hands resource requests to
//! [`registry`] and streams to kubelets to [`connect`].
//!
//! Start at [`ApiServer::start`].

pub mod admission;
pub mod aggregator;
pub mod authn;
pub mod authz;
pub mod bootstrap_data;
pub mod bootstrap_roles;
pub mod catalog;
pub mod cel;
pub mod config;
pub mod connect;
pub mod context;
mod custom;
pub mod discovery;
pub mod encryption;
pub mod filters;
pub mod handler;
pub mod health;
pub mod in_process;
pub mod metrics;
pub mod openapi;
pub mod outbound;
pub mod registry;
pub mod request;
mod resource_metrics;
pub mod routes;
pub mod server;
pub mod status;
pub mod tokens;
pub mod webhook;

pub use api_server::{ApiServer, StartError};
pub use config::{Config, Ipv4Cidr};
pub use context::Context;
pub use handler::{Body, Query, Request, RequestInfo, Response, UserInfo, Warnings};
pub use server::{Answer, OldestTls, PeerTls, ServerTls, ServingCert};
pub use status::Status;

mod api_server;
