//! Hands a request to a backend and its answer back, byte for byte, through an upgrade if the two agree on one.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::backend::{Backend, DialError};
use super::is_upgrade;
use crate::handler::{Body, Response};

/// Meant for one connection only.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    #[error("{0}")]
    Dial(#[from] DialError),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    Request(#[from] http::Error),
}

/// Sends `request` with `path_and_query` in place of its own, in the name of `user` if the other end is to know it. The connection lives on `tasks` until its end or `stop`.
pub async fn forward(
    backend: &Backend,
    path_and_query: &str,
    mut request: http::Request<Body>,
    user: Option<&HeaderMap>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Response, ForwardError> {
    let upgrade = is_upgrade(request.headers()).then(|| hyper::upgrade::on(&mut request));
    let stream = backend.dial().await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let stopped = stop.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = stopped.cancelled() => {}
            outcome = connection.with_upgrades() => {
                if let Err(error) = outcome {
                    tracing::debug!(%error, "proxied connection ended");
                }
            }
        }
    });

    let (parts, body) = request.into_parts();
    let mut outgoing = http::Request::builder()
        .method(parts.method)
        .uri(path_and_query.parse::<Uri>().map_err(http::Error::from)?)
        .body(body)?;
    *outgoing.headers_mut() = request_headers(parts.headers, upgrade.is_some());
    outgoing.headers_mut().extend(user.cloned().unwrap_or_default());
    if let Ok(host) = HeaderValue::from_str(&backend.address.to_string()) {
        outgoing.headers_mut().insert(header::HOST, host);
    }
    let mut incoming = sender.send_request(outgoing).await?;

    if incoming.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(client_side) = upgrade
    {
        let backend_side = hyper::upgrade::on(&mut incoming);
        let stopped = stop.clone();
        tasks.spawn(async move {
            let pump = async {
                let (client, backend) = tokio::try_join!(client_side, backend_side)?;
                let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
                // Either end closing in disorder is how many streams end.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut backend).await;
                Ok::<(), hyper::Error>(())
            };
            tokio::select! {
                () = stopped.cancelled() => {}
                outcome = pump => {
                    if let Err(error) = outcome {
                        tracing::debug!(%error, "upgrade failed");
                    }
                }
            }
        });
        let (parts, _) = incoming.into_parts();
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.headers_mut() = parts.headers;
        return Ok(response);
    }
    Ok(response(incoming))
}

/// The answer as it goes on: nothing about the connection that it came over.
pub fn response(incoming: http::Response<hyper::body::Incoming>) -> Response {
    let (mut parts, body) = incoming.into_parts();
    for name in &HOP_BY_HOP {
        parts.headers.remove(name);
    }
    parts.extensions.clear();
    parts.version = http::Version::HTTP_11;
    http::Response::from_parts(parts, Body::new(body))
}

/// What the backend sees: no credentials, nothing about this hop but a wanted upgrade.
pub fn request_headers(mut headers: HeaderMap, upgrades: bool) -> HeaderMap {
    let upgrade = headers.get(header::UPGRADE).cloned().filter(|_| upgrades);
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    let private: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            name == "authorization" || name.starts_with("x-remote-") || name.starts_with("impersonate-")
        })
        .cloned()
        .collect();
    for name in private {
        headers.remove(name);
    }
    if let Some(protocol) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
    hide_bearer_protocols(&mut headers);
    headers
}

/// A token that came as a WebSocket subprotocol is a credential too.
fn hide_bearer_protocols(headers: &mut HeaderMap) {
    let kept: Vec<String> = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .map(str::trim)
        .filter(|protocol| !protocol.starts_with("base64url.bearer.authorization.k8s.io."))
        .map(str::to_owned)
        .collect();
    if headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL) {
        headers.remove(header::SEC_WEBSOCKET_PROTOCOL);
        if let Ok(value) = HeaderValue::from_str(&kept.join(", "))
            && !kept.is_empty()
        {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_stay_here() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer x"),
            ("x-remote-user", "x"),
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.YQ, v5.channel.k8s.io"),
            ("x-other", "y"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let seen = request_headers(headers.clone(), true);
        assert_eq!(seen["sec-websocket-protocol"], "v5.channel.k8s.io");
        assert_eq!(seen["upgrade"], "websocket");
        assert_eq!(seen["x-other"], "y");
        assert!(!seen.contains_key("authorization") && !seen.contains_key("x-remote-user"));
        assert!(!request_headers(headers, false).contains_key("upgrade"));
    }
}
