//! Requests to extension servers: those of clients, in their names, and our own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Limited};
use mussel_store::Freshness;
use rand::seq::SliceRandom as _;
use rustls::pki_types::ServerName;

use super::service::{ApiService, Remote};
use crate::Context;
use crate::connect::{self, Backend, encode_component, forward, is_upgrade, request_headers};
use crate::handler::{Body, Response, UserInfo};
use crate::outbound::endpoints::{self, Behind, ServiceError};
use crate::outbound::{innermost, tls};
use crate::registry::view::View;
use crate::routes::with_type;

/// Our own questions get this long, and answers this large.
const FETCH_TIME: Duration = Duration::from_secs(5);
pub const FETCH_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Endpoints that one of our own questions tries in turn.
const ENDPOINTS_MAX: usize = 3;

#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    #[error(transparent)]
    Service(#[from] ServiceError),
    #[error("lookup {host}: {source}")]
    Lookup { host: String, source: std::io::Error },
    #[error("no address")]
    NoAddress,
    #[error("{0}")]
    Trust(String),
    #[error("{0}")]
    User(String),
    #[error("{0}")]
    Transport(String),
    #[error("timed out waiting for https://{host}{path}")]
    Timeout { host: String, path: String },
    #[error("bad status from https://{host}{path}: {code}")]
    Refused { host: String, path: String, code: u16 },
}

/// Sends a client's request on and its answer back. The path stays as it is; bodies are not held here.
pub(crate) async fn proxy(
    context: &Arc<Context>,
    service: &ApiService,
    user: &UserInfo,
    request: http::Request<Body>,
) -> Response {
    let Some(remote) = service.remote.as_ref().filter(|_| service.available) else { return unavailable() };
    if request.headers().get_all(header::VIA).iter().any(|via| via == context.aggregator.via) {
        tracing::warn!(apiservice = service.name, "an APIService leads back to this API");
        return text(StatusCode::LOOP_DETECTED, "the APIService leads back to this API");
    }
    let address = match addresses(context, remote).await {
        Ok(addresses) => addresses.first().copied(),
        Err(error) => {
            tracing::debug!(apiservice = service.name, %error, "an extension server has no address");
            None
        }
    };
    let Some(address) = address else { return unavailable() };
    match send(context, remote, address, user, request).await {
        Ok(response) => response,
        Err(error) => text(StatusCode::SERVICE_UNAVAILABLE, &format!("error trying to reach service: {error}")),
    }
}

async fn send(
    context: &Arc<Context>,
    remote: &Remote,
    address: SocketAddr,
    user: &UserInfo,
    request: http::Request<Body>,
) -> Result<Response, ReachError> {
    let trust = remote.trust.as_ref().map_err(|why| ReachError::Trust(why.clone()))?;
    let host = remote.host();
    let mut identity = user_headers(user)?;
    identity.append(header::VIA, context.aggregator.via.clone());
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let pools = &context.aggregator.pools;
    if is_upgrade(request.headers()) {
        let config = tls::client_config(trust, pools.identity()).map_err(ReachError::Trust)?;
        let name = ServerName::try_from(host).map_err(|error| ReachError::Trust(error.to_string()))?;
        let backend = Backend { address, tls: Some(Arc::new(config)), name: Some(name), through: None };
        return forward(&backend, &path, request, Some(&identity), &context.tasks, &context.stop)
            .await
            .map_err(|error| ReachError::Transport(error.to_string()));
    }
    let pool = pools.to(address, &host, trust).map_err(ReachError::Trust)?;
    let (parts, body) = request.into_parts();
    let mut outgoing = http::Request::new(body);
    *outgoing.method_mut() = parts.method;
    *outgoing.uri_mut() = uri(&host, remote.port, &path)?;
    let mut headers = request_headers(parts.headers, false);
    headers.remove(header::HOST);
    headers.extend(identity);
    *outgoing.headers_mut() = headers;
    let answer = pool.request(outgoing).await.map_err(|error| ReachError::Transport(innermost(&error)))?;
    let (parts, body) = connect::response(answer).into_parts();
    // Its size is left open, so that nobody here thinks of collecting it.
    Ok(Response::from_parts(parts, Body::from_stream(body.into_data_stream())))
}

fn uri(host: &str, port: u16, path: &str) -> Result<Uri, ReachError> {
    format!("https://{host}:{port}{path}")
        .parse()
        .map_err(|error: http::uri::InvalidUri| ReachError::Transport(error.to_string()))
}

/// Asks an extension server something in our own name.
///
/// # Errors
/// When no endpoint gives an answer that is a success; the last failure.
pub async fn fetch(context: &Context, remote: &Remote, path: &str, accept: &'static str) -> Result<Bytes, ReachError> {
    let mut last = ReachError::NoAddress;
    let mut addresses = addresses(context, remote).await?;
    addresses.truncate(ENDPOINTS_MAX);
    for address in addresses {
        let attempt = fetch_from(context, remote, address, path, accept);
        match tokio::time::timeout(FETCH_TIME, attempt).await {
            Ok(Ok(body)) => return Ok(body),
            Ok(Err(error)) => last = error,
            Err(_) => last = ReachError::Timeout { host: remote.host(), path: path.to_owned() },
        }
    }
    Err(last)
}

async fn fetch_from(
    context: &Context,
    remote: &Remote,
    address: SocketAddr,
    path: &str,
    accept: &'static str,
) -> Result<Bytes, ReachError> {
    let trust = remote.trust.as_ref().map_err(|why| ReachError::Trust(why.clone()))?;
    let host = remote.host();
    let pool = context.aggregator.pools.to(address, &host, trust).map_err(ReachError::Trust)?;
    let mut request = http::Request::new(Body::empty());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = uri(&host, remote.port, path)?;
    // With upstream's name, and rights that never fail.
    let user = UserInfo {
        name: "system:kube-aggregator".to_owned(),
        groups: vec!["system:masters".to_owned()],
        ..UserInfo::default()
    };
    *request.headers_mut() = user_headers(&user)?;
    request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static(accept));
    let failed = |error: &dyn std::error::Error| {
        ReachError::Transport(format!("failing or missing response from https://{address}{path}: {}", innermost(error)))
    };
    let answer = pool.request(request).await.map_err(|error| failed(&error))?;
    let code = answer.status();
    if !code.is_success() {
        return Err(ReachError::Refused { host, path: path.to_owned(), code: code.as_u16() });
    }
    let body = Limited::new(answer.into_body(), FETCH_BYTES_MAX).collect().await;
    Ok(body.map_err(|error| ReachError::Transport(error.to_string()))?.to_bytes())
}

/// Where the extension server is, in a new order each time.
async fn addresses(context: &Context, remote: &Remote) -> Result<Vec<SocketAddr>, ReachError> {
    let snapshot = context.store.snapshot(Freshness::Local).await;
    let snapshot = snapshot.map_err(|error| ReachError::Transport(error.to_string()))?;
    match endpoints::resolve(&View::new(snapshot), &remote.namespace, &remote.service, remote.port)? {
        Behind::Endpoints(mut found) => {
            found.shuffle(&mut rand::rng());
            Ok(found)
        }
        Behind::Name(host) => {
            let found = mussel_client::resolve(&host).await;
            let found = found.map_err(|source| ReachError::Lookup { host, source })?;
            Ok(found.into_iter().map(|ip| SocketAddr::new(ip, remote.port)).collect())
        }
    }
}

/// Who asks, for a server that believes us.
fn user_headers(user: &UserInfo) -> Result<HeaderMap, ReachError> {
    let mut headers = HeaderMap::new();
    let mut put = |name: HeaderName, value: &str| match HeaderValue::from_bytes(value.as_bytes()) {
        Ok(value) => {
            headers.append(name, value);
            Ok(())
        }
        // To leave it out would be to speak of somebody else.
        Err(_) => Err(ReachError::User(format!("{name} cannot be told: {value:?}"))),
    };
    put(HeaderName::from_static("x-remote-user"), &user.name)?;
    if !user.uid.is_empty() {
        put(HeaderName::from_static("x-remote-uid"), &user.uid)?;
    }
    for group in &user.groups {
        put(HeaderName::from_static("x-remote-group"), group)?;
    }
    for (key, values) in &user.extra {
        let name = format!("x-remote-extra-{}", encode_component(&key.to_lowercase()).to_lowercase());
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|error| ReachError::User(error.to_string()))?;
        for value in values {
            put(name.clone(), value)?;
        }
    }
    Ok(headers)
}

fn unavailable() -> Response {
    text(StatusCode::SERVICE_UNAVAILABLE, "service unavailable")
}

/// Upstream's aggregator speaks in plain text.
fn text(code: StatusCode, why: &str) -> Response {
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    let mut response = with_type(Body::from(format!("{why}\n")), kind);
    *response.status_mut() = code;
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_told_in_headers() {
        let mut user = UserInfo { name: "ann".to_owned(), uid: "7".to_owned(), ..UserInfo::default() };
        user.groups = vec!["a".to_owned(), "b".to_owned()];
        user.extra.insert("example.com/Team".to_owned(), vec!["x".to_owned(), "y".to_owned()]);
        let headers = user_headers(&user).unwrap();
        let all = |name: &str| headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!((all("x-remote-user"), all("x-remote-uid")), (vec!["ann"], vec!["7"]));
        assert_eq!(all("x-remote-group"), ["a", "b"]);
        assert_eq!(all("x-remote-extra-example.com%2fteam"), ["x", "y"]);
        user.groups.push("a\nb".to_owned());
        assert!(user_headers(&user).is_err());
    }
}
