//! The HTTPS listener: TLS, HTTP/1.1 and HTTP/2 with upgrades, limits against slow and greedy clients.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ApiServer;
use crate::authn::certificates::{AnyCertificate, CaError, ClientCas, is_signed_by, verifier};
use crate::authn::{Peer, PeerCertificate};
use crate::handler::{Body, Response};

/// Open connections; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 8192;
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// From one request's end to the next one's head, on HTTP/1.1.
const HEAD_TIME: Duration = Duration::from_secs(180);
/// HTTP/2 peers that vanish are found by pings.
const PING_INTERVAL: Duration = Duration::from_secs(60);
const PING_TIME: Duration = Duration::from_secs(20);
const STREAMS_MAX: u32 = 1000;
/// After `stop`, requests get this long to end.
const DRAIN_TIME: Duration = Duration::from_secs(2);
/// The pause after a failed accept, which mostly means that file descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the serving certificate cannot be read")]
    Certificate(#[source] rustls::pki_types::pem::Error),
    #[error("the serving certificate file holds no certificate")]
    NoCertificate,
    #[error("the serving key cannot be read")]
    Key(#[source] rustls::pki_types::pem::Error),
    #[error("the serving key cannot be used or does not fit the certificate")]
    Unfit(#[source] rustls::Error),
    #[error(transparent)]
    Ca(#[from] CaError),
}

/// The certificate shown to clients. It can be replaced while connections are open.
#[derive(Debug)]
pub struct ServingCert(ArcSwap<CertifiedKey>);

impl ServingCert {
    /// # Errors
    /// When the PEM texts hold no usable chain and key.
    pub fn new(chain_pem: &[u8], key_pem: &[u8]) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self(ArcSwap::from_pointee(certified(chain_pem, key_pem)?))))
    }

    /// New handshakes see the new certificate. On error the old one stays.
    ///
    /// # Errors
    /// As [`ServingCert::new`].
    pub fn replace(&self, chain_pem: &[u8], key_pem: &[u8]) -> Result<(), TlsError> {
        self.0.store(Arc::new(certified(chain_pem, key_pem)?));
        Ok(())
    }
}

impl ResolvesServerCert for ServingCert {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

fn certified(chain_pem: &[u8], key_pem: &[u8]) -> Result<CertifiedKey, TlsError> {
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(chain_pem).collect::<Result<_, _>>().map_err(TlsError::Certificate)?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate);
    }
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(TlsError::Key)?;
    CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider()).map_err(TlsError::Unfit)
}

/// The protocol by which servers of a cluster speak to each other on the same port, chosen in the TLS handshake (ALPN).
pub const PEER_PROTOCOL: &[u8] = b"mussel-peer/1";

/// TLS on our side, and which client certificates mean something.
#[derive(Clone)]
pub struct ServerTls {
    acceptor: TlsAcceptor,
    cas: Arc<ArcSwap<ClientCas>>,
    peer_ca: Option<Arc<dyn ClientCertVerifier>>,
}

/// The oldest version of TLS that is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OldestTls {
    #[default]
    V12,
    V13,
}

const ONLY_V13: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

impl OldestTls {
    fn versions(self) -> &'static [&'static rustls::SupportedProtocolVersion] {
        match self {
            Self::V12 => rustls::DEFAULT_VERSIONS,
            Self::V13 => ONLY_V13,
        }
    }
}

/// What is shown to other servers, and whom of them to believe.
pub struct PeerTls<'a> {
    pub certificate: Arc<dyn ResolvesServerCert>,
    pub ca_pem: &'a [u8],
}

/// Shows other servers another certificate than clients.
#[derive(Debug)]
struct ByProtocol {
    clients: Arc<dyn ResolvesServerCert>,
    peers: Arc<dyn ResolvesServerCert>,
}

impl ResolvesServerCert for ByProtocol {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let is_peer = hello.alpn().is_some_and(|mut offered| offered.any(|protocol| protocol == PEER_PROTOCOL));
        if is_peer { self.peers.resolve(hello) } else { self.clients.resolve(hello) }
    }
}

/// What stands behind the port.
pub trait Answer: Send + Sync + 'static {
    /// Answers a request. The connection's [`Peer`] is among the extensions.
    fn request(&self, request: http::Request<Body>) -> BoxFuture<'static, Response>;

    /// Serves a connection of another server, whose certificate was checked against the peer CA, until it ends.
    fn peer(&self, stream: TlsStream<TcpStream>) -> BoxFuture<'static, ()>;
}

impl Answer for ApiServer {
    fn request(&self, request: http::Request<Body>) -> BoxFuture<'static, Response> {
        let server = self.clone();
        Box::pin(async move { server.handle(request).await })
    }

    /// An API server alone has no peers.
    fn peer(&self, _: TlsStream<TcpStream>) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}

impl ServerTls {
    /// `request_header_ca_pem` signs front proxies.
    ///
    /// # Errors
    /// When a CA cannot be read.
    pub fn new(
        certificate: Arc<dyn ResolvesServerCert>,
        client_ca_pem: &[u8],
        request_header_ca_pem: Option<&[u8]>,
    ) -> Result<Self, TlsError> {
        Self::with_peers(certificate, client_ca_pem, request_header_ca_pem, None, OldestTls::default())
    }

    /// As [`ServerTls::new`], and other servers are let in.
    ///
    /// # Errors
    /// As [`ServerTls::new`].
    pub fn with_peers(
        certificate: Arc<dyn ResolvesServerCert>,
        client_ca_pem: &[u8],
        request_header_ca_pem: Option<&[u8]>,
        peers: Option<PeerTls<'_>>,
        oldest: OldestTls,
    ) -> Result<Self, TlsError> {
        let cas = ClientCas::new(client_ca_pem, request_header_ca_pem)?;
        let mut protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let (certificate, peer_ca) = match peers {
            None => (certificate, None),
            Some(peers) => {
                protocols.push(PEER_PROTOCOL.to_vec());
                let by_protocol = ByProtocol { clients: certificate, peers: peers.certificate };
                (Arc::new(by_protocol) as Arc<dyn ResolvesServerCert>, Some(verifier("peer", peers.ca_pem)?))
            }
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(oldest.versions())
            .map_err(TlsError::Unfit)?
            .with_client_cert_verifier(Arc::new(AnyCertificate::new()))
            .with_cert_resolver(certificate);
        config.alpn_protocols = protocols;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Ok(Self { acceptor, cas: Arc::new(ArcSwap::from_pointee(cas)), peer_ca })
    }

    /// Replaces the CAs; connections that are open keep what they were.
    ///
    /// # Errors
    /// When a CA cannot be read; the old ones stay then.
    pub fn replace_cas(&self, client_ca_pem: &[u8], request_header_ca_pem: Option<&[u8]>) -> Result<(), TlsError> {
        self.cas.store(Arc::new(ClientCas::new(client_ca_pem, request_header_ca_pem)?));
        Ok(())
    }
}

impl ApiServer {
    /// Serves connections from `listener` until `stop`, then lets requests end for a moment.
    pub async fn serve(&self, listener: TcpListener, tls: ServerTls, stop: CancellationToken) {
        serve(listener, tls, Arc::new(self.clone()), stop).await;
    }
}

/// Serves connections from `listener` until `stop`, then lets requests end for a moment.
pub async fn serve(listener: TcpListener, tls: ServerTls, answer: Arc<dyn Answer>, stop: CancellationToken) {
    let connections = TaskTracker::new();
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        match accepted {
            Ok((stream, address, permit)) => {
                let connection = connection(Arc::clone(&answer), stream, address, tls.clone(), stop.clone());
                connections.spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                }
            }
        }
    }
    connections.close();
    connections.wait().await;
}

type Accepted = (TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit);

async fn accept(listener: &TcpListener, slots: &Arc<Semaphore>) -> std::io::Result<Accepted> {
    let permit = Arc::clone(slots).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, address) = listener.accept().await?;
    Ok((stream, address, permit))
}

async fn connection(
    answer: Arc<dyn Answer>,
    stream: TcpStream,
    address: SocketAddr,
    tls: ServerTls,
    stop: CancellationToken,
) {
    // A failure costs latency only.
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE_TIME, tls.acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%address, %error, "TLS handshake failed"),
        Err(_) => return tracing::debug!(%address, "TLS handshake took too long"),
    };
    if stream.get_ref().1.alpn_protocol() == Some(PEER_PROTOCOL) {
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        if !tls.peer_ca.as_ref().is_some_and(|ca| is_signed_by(ca, chain)) {
            return tracing::warn!(%address, "a peer without a certificate of this cluster's peer CA is refused");
        }
        return tokio::select! {
            () = stop.cancelled() => {}
            () = answer.peer(stream) => {}
        };
    }
    let certificate = match stream.get_ref().1.peer_certificates() {
        Some(chain) => tls.cas.load().identify(chain),
        None => PeerCertificate::None,
    };
    let peer = Peer { address: Some(address), certificate };
    let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer.clone());
        let response = answer.request(request);
        async move { Ok::<_, std::convert::Infallible>(response.await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(64 * 1024);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIME)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(64 * 1024);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(DRAIN_TIME, connection).await {
                Ok(outcome) => outcome,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = outcome {
        tracing::trace!(%address, %error, "connection ended");
    }
}
