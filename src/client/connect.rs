//! How a client reaches the API server: in process, or over TLS.
//!
//! Names are resolved by hickory and never by the C library, which a static binary cannot load NSS modules for.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, Uri};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube::client::Body;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower::{BoxError, Service, ServiceExt};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Without it a watch over a dead link would hang until the kernel gives up (15 minutes).
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// Bound service account tokens are rotated in place; client-go rereads them as often.
const TOKEN_REREAD: Duration = Duration::from_secs(60);

/// Whom to trust and who to be.
pub struct Tls {
    /// Certificates that may have signed the server's. Nothing else is trusted.
    pub ca_pem: Vec<u8>,
    pub cert_pem: Option<Vec<u8>>,
    pub key_pem: Option<Vec<u8>>,
    pub token: Option<TokenSource>,
}

/// A bearer token.
#[derive(Clone)]
pub enum TokenSource {
    Literal(String),
    /// Read again once a minute.
    File(PathBuf),
}

/// Why a client could not be made. Nothing was connected yet.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{url} is not an https url with a host")]
    Url { url: String },
    #[error("read certificate authority")]
    Authority(#[source] rustls::pki_types::pem::Error),
    #[error("certificate authority is not usable")]
    Trust(#[source] rustls::Error),
    #[error("read client certificate")]
    Certificate(#[source] rustls::pki_types::pem::Error),
    #[error("read client key")]
    Key(#[source] rustls::pki_types::pem::Error),
    #[error("client certificate and key do not fit")]
    Identity(#[source] rustls::Error),
}

/// A client whose requests go straight into `service`, which adds the identity.
/// Must be called inside a tokio runtime.
pub fn in_process<S, B>(service: S) -> kube::Client
where
    S: Service<Request<Body>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    kube::Client::new(service, "default")
}

/// A client over TLS (HTTP/2 where the server has it). Connects at the first request; must be called inside a tokio
/// runtime.
///
/// # Errors
/// When the URL or the PEM texts cannot be used.
pub fn over_tls(url: Uri, tls: Tls) -> Result<kube::Client, ConnectError> {
    let bad_url = || ConnectError::Url { url: url.to_string() };
    if url.scheme() != Some(&Scheme::HTTPS) {
        return Err(bad_url());
    }
    let authority = url.authority().cloned().ok_or_else(bad_url)?;
    let prefix = url.path().trim_end_matches('/').to_owned();
    let connector = Connector { tls: TlsConnector::from(Arc::new(config(&tls)?)), name: None };
    Ok(client(connector, authority, prefix, tls.token))
}

/// A client over TLS to `address` (`host:port`), with an identity that can be replaced while it is in use: connections made
/// later show the new one. Must be called inside a tokio runtime.
///
/// # Errors
/// `Url` when the address is none.
pub fn over_cluster_tls(address: &str, tls: &ClusterTls) -> Result<kube::Client, ConnectError> {
    let authority = Authority::try_from(address).map_err(|_| ConnectError::Url { url: address.to_owned() })?;
    let connector = Connector { tls: TlsConnector::from(tls.config(&[b"h2"])), name: Some(tls.name.clone()) };
    Ok(client(connector, authority, String::new(), None))
}

fn client(connector: Connector, authority: Authority, prefix: String, token: Option<TokenSource>) -> kube::Client {
    let hyper = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval(PING_EVERY)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .build::<_, Body>(connector);
    let token = token.map(Token::new);
    let service = hyper.map_request(move |mut request: Request<Body>| {
        *request.uri_mut() = absolute(request.uri(), &authority, &prefix);
        if let Some(value) = token.as_ref().and_then(Token::header) {
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        request
    });
    kube::Client::new(service, "default")
}

/// A client certificate that can be replaced while connections are open.
#[derive(Debug)]
pub struct ClientIdentity(ArcSwap<CertifiedKey>);

impl ClientIdentity {
    /// # Errors
    /// When the PEM texts hold no certificate and key that fit.
    pub fn new(cert_pem: &[u8], key_pem: &[u8]) -> Result<Arc<Self>, ConnectError> {
        Ok(Arc::new(Self(ArcSwap::from_pointee(certified(cert_pem, key_pem)?))))
    }

    /// Connections made from now on show this one. On error the old one stays.
    ///
    /// # Errors
    /// As [`ClientIdentity::new`].
    pub fn replace(&self, cert_pem: &[u8], key_pem: &[u8]) -> Result<(), ConnectError> {
        self.0.store(Arc::new(certified(cert_pem, key_pem)?));
        Ok(())
    }
}

impl ResolvesClientCert for ClientIdentity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn certified(cert_pem: &[u8], key_pem: &[u8]) -> Result<CertifiedKey, ConnectError> {
    let chain =
        CertificateDer::pem_slice_iter(cert_pem).collect::<Result<_, _>>().map_err(ConnectError::Certificate)?;
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(ConnectError::Key)?;
    CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider()).map_err(ConnectError::Identity)
}

/// TLS towards the servers of one cluster: whichever address is dialled, the other end must have a certificate of the
/// cluster's CA for one and the same name. (Addresses will not do: nodes have certificates of that CA for 127.0.0.1.)
#[derive(Clone)]
pub struct ClusterTls {
    roots: Arc<rustls::RootCertStore>,
    identity: Option<Arc<ClientIdentity>>,
    name: ServerName<'static>,
}

/// The name that every server's certificate holds, and no node's.
pub const SERVERS_NAME: &str = "kubernetes";

impl ClusterTls {
    /// # Errors
    /// When the CA cannot be used.
    pub fn new(ca_pem: &[u8], identity: Option<Arc<ClientIdentity>>) -> Result<Self, ConnectError> {
        let name =
            ServerName::try_from(SERVERS_NAME).map_err(|_| ConnectError::Url { url: SERVERS_NAME.to_owned() })?;
        Ok(Self { roots: Arc::new(roots(ca_pem)?), identity, name })
    }

    fn config(&self, alpn: &[&[u8]]) -> Arc<rustls::ClientConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(rustls::ALL_VERSIONS)
            // ring has suites for both versions.
            .unwrap_or_else(|_| rustls::ClientConfig::builder())
            .with_root_certificates(Arc::clone(&self.roots));
        let mut config = match &self.identity {
            Some(identity) => builder.with_client_cert_resolver(Arc::clone(identity) as Arc<dyn ResolvesClientCert>),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Arc::new(config)
    }

    /// Speaks TLS on a connection; the protocol is HTTP/1.1.
    ///
    /// # Errors
    /// When the other end is no server of this cluster; the source is a `rustls::Error`.
    pub async fn wrap(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        TlsConnector::from(self.config(&[b"http/1.1"])).connect(self.name.clone(), stream).await
    }
}

fn roots(ca_pem: &[u8]) -> Result<rustls::RootCertStore, ConnectError> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem) {
        roots.add(certificate.map_err(ConnectError::Authority)?).map_err(ConnectError::Trust)?;
    }
    Ok(roots)
}

fn config(tls: &Tls) -> Result<rustls::ClientConfig, ConnectError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(ConnectError::Trust)?
        .with_root_certificates(roots(&tls.ca_pem)?);
    let mut config = match (&tls.cert_pem, &tls.key_pem) {
        (Some(certificate), Some(key)) => {
            let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<_, _>>();
            let key = PrivateKeyDer::from_pem_slice(key).map_err(ConnectError::Key)?;
            builder
                .with_client_auth_cert(chain.map_err(ConnectError::Certificate)?, key)
                .map_err(ConnectError::Identity)?
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn absolute(uri: &Uri, authority: &Authority, prefix: &str) -> Uri {
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    Uri::builder()
        .scheme(Scheme::HTTPS)
        .authority(authority.clone())
        .path_and_query(format!("{prefix}{path}"))
        .build()
        // Only a prefix that is no path can fail here, and it came out of a parsed URL.
        .unwrap_or_else(|_| uri.clone())
}

/// The current token as a header; a file that cannot be read keeps its last good content.
struct Token {
    source: TokenSource,
    cached: Mutex<Option<(Instant, HeaderValue)>>,
}

impl Token {
    fn new(source: TokenSource) -> Self {
        Self { source, cached: Mutex::new(None) }
    }

    fn header(&self) -> Option<HeaderValue> {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = match &self.source {
            TokenSource::Literal(_) => cached.is_some(),
            TokenSource::File(_) => cached.as_ref().is_some_and(|(read, _)| read.elapsed() < TOKEN_REREAD),
        };
        if !fresh {
            let text = match &self.source {
                TokenSource::Literal(text) => Some(text.clone()),
                TokenSource::File(path) => std::fs::read_to_string(path)
                    .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "read token"))
                    .ok(),
            };
            let header = text.and_then(|text| HeaderValue::from_str(&format!("Bearer {}", text.trim())).ok());
            if let Some(mut value) = header {
                value.set_sensitive(true);
                *cached = Some((Instant::now(), value));
            }
        }
        cached.as_ref().map(|(_, value)| value.clone())
    }
}

#[derive(Clone)]
struct Connector {
    tls: TlsConnector,
    /// What the certificate must be for, when that is not the URL's host.
    name: Option<ServerName<'static>>,
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (tls, name) = (self.tls.clone(), self.name.clone());
        Box::pin(async move {
            tokio::time::timeout(CONNECT_TIMEOUT, connect(&tls, name, &uri))
                .await
                .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, format!("connect to {uri}"))))
        })
    }
}

async fn connect(tls: &TlsConnector, name: Option<ServerName<'static>>, uri: &Uri) -> io::Result<Stream> {
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = uri.port_u16().unwrap_or(443);
    let name = match name {
        Some(name) => name,
        None => ServerName::try_from(host.clone()).map_err(io::Error::other)?,
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
    for address in resolve(&host).await? {
        match TcpStream::connect(SocketAddr::new(address, port)).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(Stream(TokioIo::new(tls.connect(name, stream).await?)));
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The addresses of a host name, by the system's hosts file and resolv.conf, without the C library.
///
/// # Errors
/// When the name has none or no resolver answers.
pub async fn resolve(host: &str) -> io::Result<Vec<IpAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    if host == "localhost" {
        return Ok(vec![Ipv4Addr::LOCALHOST.into()]);
    }
    let resolver =
        hickory_resolver::Resolver::builder_tokio().and_then(|builder| builder.build()).map_err(io::Error::other)?;
    let found = resolver.lookup_ip(host).await.map_err(io::Error::other)?;
    Ok(found.iter().collect())
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

    fn tls() -> Tls {
        Tls { ca_pem: Vec::new(), cert_pem: None, key_pem: None, token: None }
    }

    #[tokio::test]
    async fn only_https_urls_are_taken() {
        for bad in ["http://127.0.0.1:6443", "/path"] {
            assert!(matches!(over_tls(bad.parse().unwrap(), tls()), Err(ConnectError::Url { .. })), "{bad}");
        }
        assert!(over_tls("https://127.0.0.1:6443".parse().unwrap(), tls()).is_ok());
    }

    #[test]
    fn requests_get_the_servers_authority() {
        let authority = Authority::from_static("10.0.0.1:6443");
        let uri = absolute(&"/api/v1/pods?watch=1".parse().unwrap(), &authority, "/k8s");
        assert_eq!(uri.to_string(), "https://10.0.0.1:6443/k8s/api/v1/pods?watch=1");
    }

    #[tokio::test]
    async fn a_token_file_is_trimmed_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "secret\n").unwrap();
        let token = Token::new(TokenSource::File(path.clone()));
        assert_eq!(token.header().unwrap(), "Bearer secret");
        std::fs::remove_file(path).unwrap();
        assert_eq!(token.header().unwrap(), "Bearer secret");
    }
}
