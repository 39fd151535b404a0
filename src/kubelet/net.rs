//! Small network clients for probes and hooks: HTTP without trust in certificates, TCP, gRPC health.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;

/// More of an answer is not read.
const BODY_BYTES_MAX: usize = 10 * 1024;
const REDIRECTS_MAX: usize = 10;

/// Probes check that something answers, not who it is; upstream does the same.
fn tls() -> Result<tokio_rustls::TlsConnector, String> {
    Ok(Arc::new(mussel_client::tls_to_anybody().map_err(|e| e.to_string())?).into())
}

#[derive(Debug, Clone)]
pub struct Get {
    pub https: bool,
    /// An address, not a name: the kubelet resolves nothing for pods.
    pub host: String,
    pub port: u16,
    pub path: String,
    pub headers: Vec<(String, String)>,
}

impl Get {
    pub fn url(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("{scheme}://{host}:{}{}", self.port, self.path)
    }
}

/// The status and the beginning of the body. Redirects are followed as long as they stay on the host; a redirect that
/// leaves it is the answer itself.
///
/// # Errors
/// A text as Go's client would print it.
pub async fn get(mut get: Get, limit: Duration) -> Result<(u16, String), String> {
    let first = get.url();
    let whole = async {
        for _ in 0..=REDIRECTS_MAX {
            let (status, body, location) = once(&get).await?;
            let Some(location) = location.filter(|_| matches!(status, 301 | 302 | 303 | 307 | 308)) else {
                return Ok((status, body));
            };
            let Ok(uri) = location.parse::<Uri>() else { return Ok((status, body)) };
            if uri.host().is_some_and(|h| h.trim_matches(['[', ']']) != get.host) {
                return Ok((status, body));
            }
            if let Some(scheme) = uri.scheme_str() {
                get.https = scheme == "https";
                get.port = uri.port_u16().unwrap_or(if get.https { 443 } else { 80 });
            }
            let path = uri.path_and_query().map_or("/", |p| p.as_str());
            get.path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        }
        Err(format!("Get \"{first}\": stopped after {REDIRECTS_MAX} redirects"))
    };
    match tokio::time::timeout(limit, whole).await {
        Ok(answer) => answer,
        Err(_) => {
            Err(format!("Get \"{first}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"))
        }
    }
}

async fn once(get: &Get) -> Result<(u16, String, Option<String>), String> {
    let url = get.url();
    let failed = |e: String| format!("Get \"{url}\": {e}");
    let tcp =
        TcpStream::connect((get.host.as_str(), get.port)).await.map_err(|e| failed(dial(&get.host, get.port, &e)))?;
    let mut request = Request::get(&get.path);
    let has = |name: &str| get.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    if !has("host") {
        let host = if get.host.contains(':') { format!("[{}]", get.host) } else { get.host.clone() };
        request = request.header("Host", format!("{host}:{}", get.port));
    }
    if !has("user-agent") {
        request = request.header("User-Agent", "kube-probe/1.36");
    }
    if !has("accept") {
        request = request.header("Accept", "*/*");
    }
    for (name, value) in &get.headers {
        request = request.header(name, value);
    }
    let request =
        request.header("Connection", "close").body(Empty::<Bytes>::new()).map_err(|e| failed(e.to_string()))?;
    let response = if get.https {
        let name = ServerName::try_from(get.host.clone()).map_err(|e| failed(e.to_string()))?;
        let stream = tls()?.connect(name, tcp).await.map_err(|e| failed(e.to_string()))?;
        send(stream, request).await
    } else {
        send(tcp, request).await
    };
    let response = response.map_err(|e| failed(e.to_string()))?;
    let status = response.status().as_u16();
    let location = response.headers().get("location").and_then(|l| l.to_str().ok()).map(str::to_owned);
    // A body that is too long or breaks off does not spoil the answer.
    let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await;
    let body = body.map(|b| String::from_utf8_lossy(&b.to_bytes()).into_owned()).unwrap_or_default();
    Ok((status, body, location))
}

async fn send<S>(
    stream: S,
    request: Request<Empty<Bytes>>,
) -> Result<http::Response<hyper::body::Incoming>, hyper::Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    sender.send_request(request).await
}

fn dial(host: &str, port: u16, error: &std::io::Error) -> String {
    let text = match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
        _ => error.to_string(),
    };
    format!("dial tcp {host}:{port}: connect: {text}")
}

/// # Errors
/// A text as Go's dialler would print it.
pub async fn tcp(host: &str, port: u16, limit: Duration) -> Result<(), String> {
    match tokio::time::timeout(limit, TcpStream::connect((host, port))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(e)) => Err(dial(host, port, &e)),
        Err(_) => Err(format!("dial tcp {host}:{port}: i/o timeout")),
    }
}

/// Asks `grpc.health.v1.Health/Check`. `Ok(true)` is SERVING.
///
/// # Errors
/// Upstream's text for a service that does not answer so.
pub async fn grpc(host: &str, port: u16, service: &str, limit: Duration) -> Result<bool, String> {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let seconds = limit.as_secs();
    let ask = async {
        let endpoint =
            tonic::transport::Endpoint::from_shared(format!("http://{host}:{port}")).map_err(|e| e.to_string())?;
        let refused = |e: tonic::transport::Error| {
            format!("timeout: failed to connect service \"{host}:{port}\" within {seconds}s: {e}")
        };
        let channel = endpoint.connect_timeout(limit).connect().await.map_err(refused)?;
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.map_err(|e| e.to_string())?;
        let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        let request = tonic::Request::new(service.to_owned());
        let answer: tonic::Response<u64> = client.unary(request, path, HealthCodec).await.map_err(|s| {
            format!("error: health rpc probe failed: rpc error: code = {:?} desc = {}", s.code(), s.message())
        })?;
        Ok(answer.into_inner())
    };
    match tokio::time::timeout(limit, ask).await {
        Ok(Ok(1)) => Ok(true),
        Ok(Ok(_)) => Ok(false),
        Ok(Err(e)) => Err(e),
        Err(_) => Err(format!("timeout: health rpc did not complete within {seconds}s")),
    }
}

/// The two messages of the health protocol hold one field each: a name, and a number. No generated code needed.
#[derive(Default)]
struct HealthCodec;

impl tonic::codec::Codec for HealthCodec {
    type Encode = String;
    type Decode = u64;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl tonic::codec::Encoder for HealthCodec {
    type Item = String;
    type Error = tonic::Status;

    fn encode(&mut self, service: String, into: &mut tonic::codec::EncodeBuf<'_>) -> Result<(), tonic::Status> {
        use bytes::BufMut as _;
        if !service.is_empty() {
            into.put_u8(0x0a);
            let mut length = service.len();
            while length >= 0x80 {
                into.put_u8(u8::try_from(length & 0x7f).unwrap_or(0) | 0x80);
                length >>= 7;
            }
            into.put_u8(u8::try_from(length).unwrap_or(0));
            into.put_slice(service.as_bytes());
        }
        Ok(())
    }
}

impl tonic::codec::Decoder for HealthCodec {
    type Item = u64;
    type Error = tonic::Status;

    fn decode(&mut self, from: &mut tonic::codec::DecodeBuf<'_>) -> Result<Option<u64>, tonic::Status> {
        use bytes::Buf as _;
        let message = from.copy_to_bytes(from.remaining());
        // Field 1, varint. An empty message is status 0, unknown.
        Ok(Some(match message.as_ref() {
            [0x08, status, ..] => u64::from(*status),
            _ => 0,
        }))
    }
}
