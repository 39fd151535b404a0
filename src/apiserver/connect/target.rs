//! The proxies of pods, services and nodes: `…/proxy/<path>` is answered by the thing itself.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use rand::seq::IndexedRandom as _;

use super::backend::{Backend, is_reachable_by_proxy};
use super::forward::forward;
use super::{Connect, html, is_upgrade, node, read, snapshot};
use crate::encryption::Snapshot;
use crate::handler::{Body, Response};
use crate::outbound::endpoints::{self, port_number};
use crate::registry::view::View;
use crate::status::Status;

/// Pages beyond this are not rewritten but refused.
const PAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

pub async fn proxy(connect: Connect<'_>) -> Result<Response, Status> {
    let raw = connect.request.uri().path();
    let (prefix, rest) = split_path(raw, !connect.info.namespace.is_empty());
    let (prefix, rest) = (prefix.to_owned(), rest.to_owned());
    let query = connect.request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    let upgrades = is_upgrade(connect.request.headers());
    // Relative links in the answer only work below a directory.
    if rest.is_empty() && !upgrades && matches!(*connect.request.method(), Method::GET | Method::HEAD) {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
        if let Ok(location) = HeaderValue::from_str(&format!("{raw}/{query}")) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        return Ok(response);
    }
    let snapshot = snapshot(connect.server).await?;
    let backend = match connect.info.resource.as_str() {
        "pods" => pod(&connect, &snapshot)?,
        "services" => service(&connect, &snapshot)?,
        _ => node(&connect, &snapshot)?,
    };
    let rest = if rest.is_empty() { "/".to_owned() } else { rest };
    let context = &connect.server.context;
    let mut request = connect.request;
    let headers = request.headers_mut();
    // The answer may be rewritten, for which it must be readable.
    headers.remove(header::ACCEPT_ENCODING);
    if let Ok(value) = HeaderValue::from_str(&prefix) {
        headers.insert("x-forwarded-uri", value);
    }
    let host = headers.get(header::HOST).cloned();
    if let Some(host) = host {
        headers.insert("x-forwarded-host", host);
    }
    headers.insert("x-forwarded-proto", HeaderValue::from_static("https"));
    let response = forward(&backend, &format!("{rest}{query}"), request, None, &context.tasks, &context.stop)
        .await
        .map_err(|error| Status::unavailable(format!("error trying to reach service: {error}")))?;
    rewrite(response, &prefix, backend.address).await
}

/// What comes before the proxied path, and the path; both still encoded.
fn split_path(path: &str, namespaced: bool) -> (&str, &str) {
    // /api/v1/namespaces/<ns>/<resource>/<name>/proxy or /api/v1/nodes/<name>/proxy
    let segments = if namespaced { 7 } else { 5 };
    let end = path.match_indices('/').map(|(at, _)| at).nth(segments);
    path.split_at(end.unwrap_or(path.len()))
}

async fn rewrite(response: Response, prefix: &str, address: SocketAddr) -> Result<Response, Status> {
    let (mut parts, body) = response.into_parts();
    if let Some(location) = parts.headers.get(header::LOCATION).and_then(|value| value.to_str().ok())
        && let Some(moved) = html::rewrite_url(location, prefix, &address.to_string())
        && let Ok(value) = HeaderValue::from_str(&moved)
    {
        parts.headers.insert(header::LOCATION, value);
    }
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_page = kind.split(';').next().map(str::trim) == Some("text/html");
    if !is_page || parts.headers.contains_key(header::CONTENT_ENCODING) {
        return Ok(http::Response::from_parts(parts, body));
    }
    let page = Limited::new(body, PAGE_BYTES_MAX).collect().await;
    let page = page.map_err(|error| Status::unavailable(format!("error trying to reach service: {error}")))?.to_bytes();
    let page = html::rewrite(&page, prefix, &address.to_string());
    parts.headers.remove(header::CONTENT_LENGTH);
    Ok(http::Response::from_parts(parts, Body::from(page)))
}

/// `[scheme:]name[:port]`
struct Id<'a> {
    scheme: &'a str,
    name: &'a str,
    port: &'a str,
}

fn parse_id<'a>(id: &'a str, what: &str) -> Result<Id<'a>, Status> {
    let parts: Vec<&str> = id.split(':').collect();
    let id = match parts.as_slice() {
        [name] => Some(Id { scheme: "", name, port: "" }),
        [name, port] => Some(Id { scheme: "", name, port }),
        [scheme @ ("" | "http" | "https"), name, port] => Some(Id { scheme, name, port }),
        _ => None,
    };
    id.filter(|id| !id.name.is_empty())
        .ok_or_else(|| Status::bad_request(format!("invalid {what} request {id:?}", id = parts.join(":"))))
}

fn backend(connect: &Connect<'_>, ip: IpAddr, port: u16, scheme: &str) -> Result<Backend, Status> {
    if !is_reachable_by_proxy(ip) {
        return Err(Status::bad_request("address not allowed"));
    }
    let tls = (scheme == "https").then(|| connect.server.kubelets.unverified());
    Ok(Backend { address: SocketAddr::new(ip, port), tls, name: None, through: None })
}

fn pod(connect: &Connect<'_>, snapshot: &Snapshot) -> Result<Backend, Status> {
    let id = parse_id(&connect.info.name, "pod")?;
    let pod = read(snapshot, "pods", &connect.info.namespace, id.name)?;
    let port = if id.port.is_empty() {
        let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
        containers
            .flat_map(|c| c["ports"].as_array().into_iter().flatten())
            .find_map(|p| port_number(&p["containerPort"]))
    } else {
        id.port.parse().ok()
    };
    let default = if id.scheme == "https" { 443 } else { 80 };
    let port = if id.port.is_empty() {
        port.unwrap_or(default)
    } else {
        port.ok_or_else(|| Status::bad_request(format!("invalid pod request {:?}", connect.info.name)))?
    };
    let ip = pod["status"]["podIP"].as_str().and_then(|ip| ip.parse().ok());
    let ip = ip.ok_or_else(|| Status::bad_request("address not allowed"))?;
    backend(connect, ip, port, id.scheme)
}

fn service(connect: &Connect<'_>, snapshot: &Snapshot) -> Result<Backend, Status> {
    let id = parse_id(&connect.info.name, "service")?;
    let namespace = &connect.info.namespace;
    let service = read(snapshot, "services", namespace, id.name)?;
    let mut port_name = id.port;
    if let Ok(number) = id.port.parse::<u64>() {
        let ports = service["spec"]["ports"].as_array();
        let port = ports.and_then(|ports| ports.iter().find(|port| port["port"] == number));
        let port = port
            .ok_or_else(|| Status::unavailable(format!("no service port {number} found for service {:?}", id.name)))?;
        port_name = port["name"].as_str().unwrap_or_default();
    }
    let found = endpoints::ready(&View::new(snapshot.clone()), namespace, id.name, port_name)
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let address = found.choose(&mut rand::rng());
    let address =
        address.ok_or_else(|| Status::unavailable(format!("no endpoints available for service {:?}", id.name)))?;
    let (ip, port) = (address.ip(), address.port());
    backend(connect, ip, port, id.scheme)
}

fn node(connect: &Connect<'_>, snapshot: &Snapshot) -> Result<Backend, Status> {
    let id = parse_id(&connect.info.name, "node")?;
    let object = read(snapshot, "nodes", "", id.name)?;
    let kubelet_port = node::kubelet_port(&object);
    if id.port.is_empty() || id.port.parse() == Ok(kubelet_port) {
        return connect.server.kubelets.backend(snapshot, id.name);
    }
    let port =
        id.port.parse().map_err(|_| Status::bad_request(format!("invalid node request {:?}", connect.info.name)))?;
    let ip = node::address(&object).ok_or_else(|| Status::bad_request("address not allowed"))?;
    backend(connect, ip, port, id.scheme)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proxied_path_is_what_comes_after_proxy() {
        let table = [
            ("/api/v1/namespaces/a/pods/x/proxy", true, "/api/v1/namespaces/a/pods/x/proxy", ""),
            ("/api/v1/namespaces/a/pods/x/proxy/", true, "/api/v1/namespaces/a/pods/x/proxy", "/"),
            (
                "/api/v1/namespaces/a/services/x:y/proxy/b%2Fc/d",
                true,
                "/api/v1/namespaces/a/services/x:y/proxy",
                "/b%2Fc/d",
            ),
            ("/api/v1/nodes/n/proxy/metrics", false, "/api/v1/nodes/n/proxy", "/metrics"),
        ];
        for (path, namespaced, prefix, rest) in table {
            assert_eq!(split_path(path, namespaced), (prefix, rest));
        }
    }

    #[test]
    fn ids_name_scheme_and_port() {
        let read = |id| parse_id(id, "pod").map(|id| format!("{}|{}|{}", id.scheme, id.name, id.port));
        assert_eq!(read("web").unwrap(), "|web|");
        assert_eq!(read("web:80").unwrap(), "|web|80");
        assert_eq!(read("https:web:443").unwrap(), "https|web|443");
        assert!(read("ftp:web:1").is_err() && read(":").is_err());
    }
}
