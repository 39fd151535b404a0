//! Kubernetes as data and pure functions: kinds, schema, defaults, validation, patches, apply, selectors, quantities,
//! tables. Nothing here does I/O, knows HTTP or keeps state.
//!
//! Objects that pass through are `serde_json::Value` ([`object`] has their accessors); functions that know a kind take
//! its `k8s_openapi` type.

pub mod apply;
pub mod claim;
pub mod custom;
pub mod decode;
pub mod defaults;
pub mod field;
pub mod names;
pub mod object;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod qos;
pub mod quantity;
pub mod quota;
pub mod resource;
pub mod schedule;
pub mod schema;
pub mod selector;
pub mod table;
pub mod validation;
pub mod version;
