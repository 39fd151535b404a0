//! Requests that end elsewhere: logs, exec, attach and port-forward at a pod's kubelet, and the pod, service and node
//! proxies. Bytes are streamed both ways; WebSocket and SPDY are for the other end to understand, but for a log, which
//! this end sends by WebSocket when asked.

mod admit;
mod backend;
mod forward;
mod html;
mod log_options;
mod node;
mod pod;
mod target;
mod wsstream;

use std::sync::Arc;

use http::{HeaderMap, Method, header};
use mussel_store::Freshness;
use serde_json::Value;

use crate::api_server::Inner;
use crate::authz::Attributes;
use crate::encryption::Snapshot;
use crate::handler::{Body, Query, RequestInfo, Response, UserInfo, Warnings};
use crate::status::Status;

pub(crate) use backend::Backend;
pub use backend::{KubeletDialer, Stream};
pub(crate) use forward::{forward, request_headers, response};
pub use node::Kubelets;

/// Whether a request is this module's.
pub fn is_connect(info: &RequestInfo) -> bool {
    info.group.is_empty()
        && match info.resource.as_str() {
            "pods" => matches!(info.subresource.as_str(), "attach" | "exec" | "log" | "portforward" | "proxy"),
            "services" | "nodes" => info.subresource == "proxy",
            _ => false,
        }
}

/// One such request on its way.
pub(crate) struct Connect<'a> {
    pub server: &'a Arc<Inner>,
    pub info: RequestInfo,
    pub query: Query,
    pub request: http::Request<Body>,
}

pub(crate) async fn handle(
    server: &Arc<Inner>,
    info: RequestInfo,
    user: UserInfo,
    query: Query,
    warnings: &Warnings,
    request: http::Request<Body>,
) -> Result<Response, Status> {
    let streams = matches!(info.subresource.as_str(), "attach" | "exec" | "portforward");
    let method_fits = match info.subresource.as_str() {
        "log" => matches!(*request.method(), Method::GET | Method::HEAD),
        _ if streams => matches!(*request.method(), Method::GET | Method::POST),
        _ => true,
    };
    if !method_fits {
        return Err(Status::method_not_allowed());
    }
    // A WebSocket opens by GET, but to run something in a pod takes the right to create.
    if streams && *request.method() == Method::GET {
        let mut attributes = Attributes::of(&user, &info, &query);
        attributes.verb = "create".to_owned();
        server.context.authorizer.require(&attributes).await?;
    }
    if info.subresource != "log" {
        admit::admit(server, &info, &query, &user, warnings).await?;
    }
    let connect = Connect { server, info, query, request };
    match (connect.info.resource.as_str(), connect.info.subresource.as_str()) {
        ("pods", "log") => pod::log(connect).await,
        ("pods", "exec" | "attach" | "portforward") => pod::stream(connect).await,
        _ => target::proxy(connect).await,
    }
}

async fn snapshot(server: &Arc<Inner>) -> Result<Snapshot, Status> {
    Ok(server.context.store.snapshot(Freshness::Linearizable).await?)
}

/// Whether the client wants to leave HTTP.
pub(crate) fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(header::UPGRADE)
        && headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|list| list.split(','))
            .any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
}

/// An object of the core group, or 404.
fn read(snapshot: &Snapshot, resource: &str, namespace: &str, name: &str) -> Result<Value, Status> {
    let key = if namespace.is_empty() {
        format!("/registry/{resource}/{name}")
    } else {
        format!("/registry/{resource}/{namespace}/{name}")
    };
    let stored = snapshot.get(key.as_bytes()).ok_or_else(|| Status::not_found("", resource, name))?;
    serde_json::from_slice(&stored.value()?).map_err(Status::internal)
}

/// Percent-encodes one path segment or query value.
pub(crate) fn encode_component(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
