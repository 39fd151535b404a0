//! A connection to where a request ends: plain, or TLS with the right idea of whom to trust.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const DIAL_TIME: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("dial tcp {address}: {source}")]
    Connect { address: SocketAddr, source: std::io::Error },
    #[error("dial tcp {0}: i/o timeout")]
    Timeout(SocketAddr),
}

/// Another way to a node's kubelet than its address: a connection that the node opened.
pub trait KubeletDialer: std::fmt::Debug + Send + Sync + 'static {
    /// A stream to the port on the node itself; `None` when there is no such way to the node, and its address must do.
    fn dial(&self, node: &str, port: u16) -> Option<BoxFuture<'static, std::io::Result<Box<dyn Stream>>>>;
}

/// Where to, and how.
#[derive(Clone)]
pub struct Backend {
    pub address: SocketAddr,
    /// TLS, when it is spoken there.
    pub tls: Option<Arc<ClientConfig>>,
    /// The node whose kubelet this is, and the other way to it.
    pub through: Option<(String, Arc<dyn KubeletDialer>)>,
}

pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Backend {
    pub async fn dial(&self) -> Result<Box<dyn Stream>, DialError> {
        let address = self.address;
        let connect = async {
            let tunnel = self.through.as_ref().and_then(|(node, dialer)| dialer.dial(node, address.port()));
            let stream: Box<dyn Stream> = match tunnel {
                Some(stream) => stream.await?,
                None => {
                    let stream = TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    Box::new(stream)
                }
            };
            Ok::<Box<dyn Stream>, std::io::Error>(match &self.tls {
                None => stream,
                Some(config) => {
                    let name = ServerName::IpAddress(address.ip().into());
                    Box::new(TlsConnector::from(Arc::clone(config)).connect(name, stream).await?)
                }
            })
        };
        match tokio::time::timeout(DIAL_TIME, connect).await {
            Ok(outcome) => outcome.map_err(|source| DialError::Connect { address, source }),
            Err(_) => Err(DialError::Timeout(address)),
        }
    }
}

/// Upstream's rule for what may be reached through a proxy: nothing local to the server, nothing for many.
pub fn is_reachable_by_proxy(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            !(ip.is_loopback() || ip.is_link_local() || ip.is_multicast() || ip.is_unspecified() || ip.is_broadcast())
        }
        IpAddr::V6(ip) => !(ip.is_loopback() || ip.is_unicast_link_local() || ip.is_multicast() || ip.is_unspecified()),
    }
}

/// Verifies a kubelet's certificate against the cluster's CA, for the address dialled or the node's name: a node's
/// certificate may be older than its address.
#[derive(Debug)]
pub struct NodeCertificate {
    pub inner: Arc<WebPkiServerVerifier>,
    pub node: String,
}

impl ServerCertVerifier for NodeCertificate {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let first = self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp, now);
        let wrong_name = matches!(
            first,
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
            ))
        );
        match ServerName::try_from(self.node.as_str()) {
            Ok(name) if wrong_name => self.inner.verify_server_cert(end_entity, intermediates, &name, ocsp, now),
            _ => first,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
