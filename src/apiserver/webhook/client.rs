//! The client: one connection pool per endpoint and trust, reviews out, answers back.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower::Service;

use super::target::{Target, TargetError};
use super::trust;
use crate::registry::view::View;

/// Answers beyond this are refused.
const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How much of a refusal's body is told on.
const REFUSAL_BYTES_MAX: usize = 2048;
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// A connection that nobody used for so long is closed.
const IDLE_TIME: Duration = Duration::from_secs(60);
/// Unanswered pings tell that the other end is gone while a call waits for it.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Pools that are kept; the longest unused one makes room.
const POOLS_MAX: usize = 256;

type Pool = hyper_util::client::legacy::Client<Connector, Full<Bytes>>;

/// Why a call brought no answer. `Display` is upstream's text.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error("{0}")]
    Trust(String),
    #[error("Post {url:?}: {why}")]
    Transport { url: String, why: String },
    #[error("Post {url:?}: context deadline exceeded")]
    Timeout { url: String },
    #[error("Post {url:?}: answer is larger than {ANSWER_BYTES_MAX} bytes")]
    TooLarge { url: String },
    /// The server answered, but not with success.
    #[error("{message}")]
    Refused { code: u16, message: String },
    #[error("{0}")]
    Answer(serde_json::Error),
}

/// Calls webhooks. Cheap to share.
#[derive(Default)]
pub struct Client {
    pools: Mutex<HashMap<Key, (Pool, Instant)>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    address: SocketAddr,
    host: String,
    ca_bundle: Vec<u8>,
}

impl Client {
    /// Posts a review and returns the answer, within `timeout`.
    ///
    /// # Errors
    /// See [`CallError`]. The other end may have acted on the review all the same.
    pub async fn post(
        &self,
        target: &Target,
        view: &View,
        review: &Value,
        timeout: Duration,
    ) -> Result<Value, CallError> {
        let url = format!("https://{}{}?timeout={}s", target.authority, target.path, timeout.as_secs());
        let body = Bytes::from(serde_json::to_vec(review).map_err(CallError::Answer)?);
        match tokio::time::timeout(timeout, self.exchange(target, view, &url, body)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(CallError::Timeout { url }),
        }
    }

    async fn exchange(&self, target: &Target, view: &View, url: &str, body: Bytes) -> Result<Value, CallError> {
        let failed = |why: String| CallError::Transport { url: url.to_owned(), why };
        let uri: Uri = url.parse().map_err(|_| failed("invalid URL".to_owned()))?;
        let mut last = failed("no address".to_owned());
        for address in target.addresses(view).await? {
            let pool = self.pool(target, address)?;
            let mut request = http::Request::new(Full::new(body.clone()));
            *request.method_mut() = Method::POST;
            *request.uri_mut() = uri.clone();
            let headers = request.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, */*"));
            headers.insert(header::USER_AGENT, HeaderValue::from_static("kube-apiserver-admission"));
            match pool.request(request).await {
                Ok(response) => return answer(response, url).await,
                Err(error) => {
                    let before_it_was_sent = error.is_connect();
                    last = failed(innermost(&error));
                    if !before_it_was_sent {
                        break;
                    }
                }
            }
        }
        Err(last)
    }

    fn pool(&self, target: &Target, address: SocketAddr) -> Result<Pool, CallError> {
        let key = Key { address, host: target.host.clone(), ca_bundle: target.ca_bundle.clone() };
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((pool, used)) = pools.get_mut(&key) {
            *used = Instant::now();
            return Ok(pool.clone());
        }
        let tls = trust::client_config(&target.ca_bundle).map_err(CallError::Trust)?;
        let name = ServerName::try_from(target.host.clone()).map_err(|error| CallError::Trust(error.to_string()))?;
        let connector = Connector { address, tls: TlsConnector::from(tls), name };
        let pool = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIME)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .build(connector);
        if pools.len() >= POOLS_MAX {
            let oldest = pools.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| key.clone());
            oldest.map(|key| pools.remove(&key));
        }
        pools.insert(key, (pool.clone(), Instant::now()));
        Ok(pool)
    }
}

async fn answer(response: http::Response<hyper::body::Incoming>, url: &str) -> Result<Value, CallError> {
    let code = response.status();
    let body = match Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => return Err(CallError::TooLarge { url: url.to_owned() }),
        Err(error) => return Err(CallError::Transport { url: url.to_owned(), why: error.to_string() }),
    };
    if code.is_success() {
        return serde_json::from_slice(&body).map_err(CallError::Answer);
    }
    Err(CallError::Refused { code: code.as_u16(), message: refusal(code, &body) })
}

/// What upstream's client makes of an answer that is no success.
fn refusal(code: StatusCode, body: &[u8]) -> String {
    if let Ok(status) = serde_json::from_slice::<Value>(body)
        && status["kind"] == "Status"
        && let Some(message) = status["message"].as_str()
    {
        return message.to_owned();
    }
    let text = String::from_utf8_lossy(&body[..body.len().min(REFUSAL_BYTES_MAX)]);
    let text = text.trim();
    match code.as_u16() {
        400 => "the server rejected our request for an unknown reason".to_owned(),
        401 => "the server has asked for the client to provide credentials".to_owned(),
        403 => text.to_owned(),
        404 => "the server could not find the requested resource".to_owned(),
        405 => "the server does not allow this method on the requested resource".to_owned(),
        429 => "the server has received too many requests and has asked us to try again later".to_owned(),
        503 => "the server is currently unable to handle the request".to_owned(),
        504 => "the server was unable to return a response in the time allotted, but may still be processing the \
                request"
            .to_owned(),
        500.. => {
            format!("an error on the server ({text:?}) has prevented the request from succeeding")
        }
        code => format!("the server responded with the status code {code} but did not return more information"),
    }
}

/// The cause at the bottom: hyper's own layers say only that something went wrong.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    let text = error.to_string();
    // As a Go client words the most common one.
    if text.contains("UnknownIssuer") {
        return format!("tls: failed to verify certificate: x509: certificate signed by unknown authority ({text})");
    }
    text
}

#[derive(Clone)]
struct Connector {
    address: SocketAddr,
    tls: TlsConnector,
    name: ServerName<'static>,
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { address, tls, name } = self.clone();
        Box::pin(async move {
            let connect = async {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                tls.connect(name, stream).await
            };
            match tokio::time::timeout(CONNECT_TIME, connect).await {
                Ok(Ok(stream)) => Ok(Stream(TokioIo::new(stream))),
                Ok(Err(error)) => Err(io::Error::new(error.kind(), format!("dial tcp {address}: {error}"))),
                Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("dial tcp {address}: i/o timeout"))),
            }
        })
    }
}

/// A TLS connection that tells hyper whether HTTP/2 was agreed on.
struct Stream(TokioIo<TlsStream<TcpStream>>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let (_, session) = self.0.inner().get_ref();
        let connected = Connected::new();
        if session.alpn_protocol() == Some(b"h2") { connected.negotiated_h2() } else { connected }
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_worded_as_upstreams_client_does() {
        assert_eq!(refusal(StatusCode::NOT_FOUND, b"x"), "the server could not find the requested resource");
        assert_eq!(
            refusal(StatusCode::INTERNAL_SERVER_ERROR, b"boom\n"),
            "an error on the server (\"boom\") has prevented the request from succeeding"
        );
        assert_eq!(refusal(StatusCode::FORBIDDEN, br#"{"kind": "Status", "message": "no"}"#), "no");
    }
}
