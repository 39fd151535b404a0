//! One HTTPS request to a server: whom to trust, who to be, and a bounded answer.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use mussel_client::ClusterTls;
use rustls::CertificateError;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::{next_version, protocol};

const REQUEST_TIME: Duration = Duration::from_secs(15);
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("connect")]
    Connect(#[source] io::Error),
    #[error("the server's certificate is not valid now; compare the clocks of this machine and of the server")]
    Time(#[source] io::Error),
    #[error("the server's certificate is not of the cluster's CA")]
    Authority(#[source] io::Error),
    #[error("TLS")]
    Tls(#[source] io::Error),
    #[error("HTTP")]
    Http(#[source] hyper::Error),
    #[error("the answer is larger than {ANSWER_BYTES_MAX} bytes or was cut off")]
    Body,
    #[error("no answer within {} s", REQUEST_TIME.as_secs())]
    Late,
    /// The server answered, and not with success.
    #[error("{message}")]
    Refused { status: StatusCode, reason: String, message: String },
}

/// What a server answered.
pub struct Answer {
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// The version that the server says it has.
    pub fn version(&self) -> Option<&str> {
        self.headers.get(protocol::VERSION_HEADER).and_then(|value| value.to_str().ok())
    }

    /// The body as text; what is not UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Whom to believe that they are the server.
pub enum Trust<'a> {
    /// Anybody: to fetch the CA, which is then verified otherwise, and to send nothing.
    Anybody,
    Cluster(&'a ClusterTls),
}

/// Sends one request on a connection of its own.
///
/// # Errors
/// `Refused` for every answer that is not 2xx, with the server's words.
pub async fn send(
    address: SocketAddr,
    trust: Trust<'_>,
    method: Method,
    path: &str,
    headers: HeaderMap,
    body: Vec<u8>,
) -> Result<Answer, RequestError> {
    let work = exchange(address, trust, method, path, headers, body);
    time::timeout(REQUEST_TIME, work).await.map_err(|_| RequestError::Late)?
}

async fn exchange(
    address: SocketAddr,
    trust: Trust<'_>,
    method: Method,
    path: &str,
    headers: HeaderMap,
    body: Vec<u8>,
) -> Result<Answer, RequestError> {
    let stream = TcpStream::connect(address).await.map_err(RequestError::Connect)?;
    let stream = match trust {
        Trust::Cluster(tls) => tls.wrap(stream).await,
        Trust::Anybody => wrap_unverified(stream).await,
    };
    let stream = stream.map_err(tls_error)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(RequestError::Http)?;
    // Ends when `sender` is dropped, with this exchange.
    let connection = tokio::spawn(connection);
    let mut request = Request::new(Full::new(Bytes::from(body)));
    *request.method_mut() = method;
    *request.uri_mut() = http::Uri::try_from(path).unwrap_or_default();
    *request.headers_mut() = headers;
    let host = address.to_string();
    request
        .headers_mut()
        .insert(header::HOST, HeaderValue::from_str(&host).unwrap_or(HeaderValue::from_static("mussel")));
    request.headers_mut().insert(protocol::VERSION_HEADER, next_version::header());
    let response = sender.send_request(request).await.map_err(RequestError::Http)?;
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|_| RequestError::Body)?.to_bytes();
    connection.abort();
    if parts.status.is_success() {
        return Ok(Answer { headers: parts.headers, body });
    }
    let status: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = |key: &str| status[key].as_str().unwrap_or_default().to_owned();
    let message = match text("message") {
        message if message.is_empty() => format!("the server answers {}", parts.status),
        message => message,
    };
    Err(RequestError::Refused { status: parts.status, reason: text("reason"), message })
}

/// Tells apart what people can mend.
fn tls_error(error: io::Error) -> RequestError {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        )) => RequestError::Time(error),
        Some(rustls::Error::InvalidCertificate(_)) => RequestError::Authority(error),
        Some(_) => RequestError::Tls(error),
        // Cut off in the handshake: nobody, or nobody of ours, is there.
        None => RequestError::Connect(error),
    }
}

async fn wrap_unverified(stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    let mut config = mussel_client::tls_to_anybody().map_err(io::Error::other)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = ServerName::try_from(mussel_client::connect::SERVERS_NAME).map_err(io::Error::other)?;
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}
