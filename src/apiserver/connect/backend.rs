//! A connection to where a request ends: plain, or TLS with the right idea of whom to trust.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
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
    /// What the certificate has to be for, where that is not the address.
    pub name: Option<ServerName<'static>>,
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
                    let name = self.name.clone().unwrap_or_else(|| ServerName::IpAddress(address.ip().into()));
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
