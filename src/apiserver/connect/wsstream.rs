//! An answer that is a stream, as the messages of a WebSocket: what a browser can read while it grows.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::is_upgrade;
use crate::handler::{Body, Response};
use crate::status::Status;

/// What a reader may send; it is thrown away.
const INCOMING_BYTES_MAX: usize = 64 << 10;

/// How long a client may take to answer the close.
const FAREWELL_TIME: Duration = Duration::from_secs(5);

/// How bytes are put into messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Binary,
    /// Text messages, for readers that have no other.
    Base64,
}

/// A request to read by WebSocket, its handshake checked.
pub struct Handshake {
    encoding: Encoding,
    protocol: Option<&'static str>,
    accept: HeaderValue,
    upgrade: hyper::upgrade::OnUpgrade,
}

impl Handshake {
    /// `None` when the request is plain HTTP. 400 for a broken handshake, 403 when no subprotocol offered is known.
    pub fn of(request: &mut http::Request<Body>) -> Result<Option<Self>, Status> {
        let headers = request.headers();
        let named = |name: &header::HeaderName, value: &str| {
            headers.get(name).is_some_and(|given| given.as_bytes().eq_ignore_ascii_case(value.as_bytes()))
        };
        if !is_upgrade(headers) || !named(&header::UPGRADE, "websocket") {
            return Ok(None);
        }
        if !named(&header::SEC_WEBSOCKET_VERSION, "13") {
            return Err(Status::bad_request("missing or bad WebSocket version"));
        }
        let key = headers.get(header::SEC_WEBSOCKET_KEY);
        let key = key.ok_or_else(|| Status::bad_request("no WebSocket key"))?;
        let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(Status::internal)?;
        let (protocol, encoding) = negotiate(headers)?;
        let upgrade = hyper::upgrade::on(request);
        Ok(Some(Self { encoding, protocol, accept, upgrade }))
    }

    /// Answers with 101, and sends `body` on `tasks` until its end, the reader's or `stop`.
    pub fn serve(self, body: Body, tasks: &TaskTracker, stop: &CancellationToken) -> Response {
        let Self { encoding, protocol, accept, upgrade } = self;
        let stopped = stop.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                outcome = upgrade => match outcome {
                    Ok(io) => tokio::select! {
                        () = stopped.cancelled() => {}
                        () = send(TokioIo::new(io), body, encoding) => {}
                    },
                    Err(error) => tracing::debug!(%error, "upgrade failed"),
                },
            }
        });
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        if let Some(protocol) = protocol {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
        }
        response
    }
}

/// The client's first wish that is known; none at all is binary too.
fn negotiate(headers: &HeaderMap) -> Result<(Option<&'static str>, Encoding), Status> {
    let offered: Vec<&str> = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .map(str::trim)
        .filter(|protocol| !protocol.is_empty() && !protocol.starts_with("base64url.bearer.authorization.k8s.io."))
        .collect();
    if offered.is_empty() {
        return Ok((None, Encoding::Binary));
    }
    offered
        .iter()
        .find_map(|protocol| match *protocol {
            "binary.k8s.io" => Some((Some("binary.k8s.io"), Encoding::Binary)),
            "base64.binary.k8s.io" => Some((Some("base64.binary.k8s.io"), Encoding::Base64)),
            _ => None,
        })
        .ok_or_else(|| Status::forbidden("", "", "", &format!("requested protocol(s) are not supported: {offered:?}")))
}

async fn send(io: TokioIo<hyper::upgrade::Upgraded>, body: Body, encoding: Encoding) {
    let config =
        WebSocketConfig::default().max_message_size(Some(INCOMING_BYTES_MAX)).max_frame_size(Some(INCOMING_BYTES_MAX));
    let (mut to_client, mut from_client) =
        WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await.split();
    let message = |bytes: bytes::Bytes| match encoding {
        Encoding::Binary => Message::Binary(bytes),
        Encoding::Base64 => Message::Text(STANDARD.encode(&bytes).into()),
    };
    let write = async {
        // An empty message first, by which readers know that the stream has begun.
        if to_client.send(message(bytes::Bytes::new())).await.is_err() {
            return;
        }
        let mut body = body.into_data_stream();
        while let Some(piece) = body.next().await {
            match piece {
                Ok(piece) => {
                    if to_client.send(message(piece)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "a stream read by WebSocket broke");
                    break;
                }
            }
        }
        // Clients take a close without a code for an error. One that is gone needs no farewell.
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let _ = to_client.send(Message::Close(Some(frame))).await;
    };
    // Reading answers pings, and sees the client leave, while the stream is silent.
    let read = async { while let Some(Ok(_)) = from_client.next().await {} };
    tokio::select! {
        () = write => {}
        () = read => {}
    }
    let Ok(mut socket) = to_client.reunite(from_client) else { return };
    // Closed with something unread, a connection may lose what is still on its way to the client.
    let farewell = async {
        while let Some(Ok(_)) = socket.next().await {}
        let _ = socket.get_mut().shutdown().await;
    };
    let _ = tokio::time::timeout(FAREWELL_TIME, farewell).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_known_protocol_is_spoken() {
        let ask = |offered: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, offered.parse().unwrap());
            negotiate(&headers).map_err(|status| status.code)
        };
        assert_eq!(negotiate(&HeaderMap::new()).unwrap(), (None, Encoding::Binary));
        assert_eq!(ask("binary.k8s.io"), Ok((Some("binary.k8s.io"), Encoding::Binary)));
        assert_eq!(ask("x, base64.binary.k8s.io"), Ok((Some("base64.binary.k8s.io"), Encoding::Base64)));
        assert_eq!(ask("base64url.bearer.authorization.k8s.io.YQ"), Ok((None, Encoding::Binary)));
        assert_eq!(ask("v4.channel.k8s.io"), Err(403));
    }
}
