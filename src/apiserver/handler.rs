//! The wall between the HTTP side (everything up to an authorized request) and the registry (what is done with it).
//!
//! The dispatcher calls `Registry::handle(resource, request)` for every authorized resource request but the connect
//! subresources (`pods/log|exec|attach|portforward|proxy`, `services/proxy`, `nodes/proxy`). `request.info` is complete;
//! the verb is one that the row (or its subresource) lists, so 404 and 405 are answered before. The body is bounded and
//! read to its end. `Registry::start` is called once before requests are let in.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::HeaderMap;

pub use crate::request::{Query, RequestInfo};

pub type Body = axum::body::Body;
pub type Response = http::Response<Body>;

/// An authenticated and authorized request.
#[derive(Clone, Debug)]
pub struct Request {
    pub info: RequestInfo,
    pub user: UserInfo,
    pub query: Query,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Becomes `Warning` headers of the response, of a failure too.
    pub warnings: Warnings,
}

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct UserInfo {
    #[serde(rename = "username")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// A user of these groups, and of `system:authenticated`.
    pub fn new(name: &str, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
        if !groups.iter().any(|group| group == "system:authenticated") {
            groups.push("system:authenticated".to_owned());
        }
        Self { name: name.to_owned(), groups, ..Self::default() }
    }

    pub fn anonymous() -> Self {
        let groups = vec!["system:unauthenticated".to_owned()];
        Self { name: "system:anonymous".to_owned(), groups, ..Self::default() }
    }

    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The node's name, when the user is a node's kubelet.
    pub fn node_name(&self) -> Option<&str> {
        let name = self.name.strip_prefix("system:node:")?;
        (!name.is_empty() && self.in_group("system:nodes")).then_some(name)
    }
}

/// Warnings to the client, collected while the request is worked on. Bounded; repeats are dropped.
#[derive(Clone, Debug, Default)]
pub struct Warnings(Arc<Mutex<Vec<String>>>);

const WARNINGS_MAX: usize = 64;

impl Warnings {
    pub fn add(&self, text: impl Into<String>) {
        let text = text.into();
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if list.len() < WARNINGS_MAX && !list.contains(&text) {
            list.push(text);
        }
    }

    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
