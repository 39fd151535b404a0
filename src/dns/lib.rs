//! The cluster DNS, served on every node.
//!
//! Authoritative for the cluster domain, answered from shared informers as the Kubernetes DNS specification (1.1.0) says;
//! everything else is forwarded to the machine's own name servers, with a cache. [`zone`] decides, [`handler`] speaks DNS,
//! [`upstream`] forwards.

mod handler;
mod question;
pub mod upstream;
pub mod zone;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use hickory_server::Server;
use mussel_client::Informers;
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::CancellationToken;

use crate::handler::Handler;
use crate::upstream::Upstream;
use crate::zone::Zone;

/// A TCP client that says nothing for this long is let go.
const TCP_IDLE: Duration = Duration::from_secs(10);
const TCP_RESPONSES_MAX: usize = 32;

pub struct Config {
    /// Addresses to listen on; they must be on this machine already.
    pub addresses: Vec<IpAddr>,
    pub port: u16,
    /// `cluster.local`
    pub domain: String,
    /// The machine's own resolver configuration, for all other names.
    pub resolv_conf: PathBuf,
    pub informers: Informers,
}

#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error("cluster domain {0:?} is not a domain name")]
    Domain(String),
    #[error("listen for DNS on {address}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("serve DNS")]
    Serve(#[source] hickory_server::net::NetError),
    #[error("make the resolver for names outside the cluster")]
    Upstream(#[source] hickory_server::net::NetError),
}

/// A DNS server whose sockets are bound.
pub struct Dns(Server<Handler>);

impl Dns {
    pub async fn bind(config: Config) -> Result<Self, DnsError> {
        let zone = Zone::new(&config.domain, &config.informers).ok_or(DnsError::Domain(config.domain))?;
        let upstream = Upstream::new(&config.resolv_conf, &config.addresses).map_err(DnsError::Upstream)?;
        let mut server = Server::new(Handler::new(zone, upstream));
        for ip in config.addresses {
            let address = SocketAddr::new(ip, config.port);
            let listen = |source| DnsError::Listen { address, source };
            server.register_socket(UdpSocket::bind(address).await.map_err(listen)?);
            let listener = TcpListener::bind(address).await.map_err(listen)?;
            server.register_listener(listener, TCP_IDLE, TCP_RESPONSES_MAX);
        }
        Ok(Self(server))
    }

    /// Serves until `stop`.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), DnsError> {
        let shutdown = self.0.shutdown_token().clone();
        tokio::select! {
            served = self.0.block_until_done() => served.map_err(DnsError::Serve),
            () = stop.cancelled() => {
                shutdown.cancel();
                self.0.shutdown_gracefully().await.map_err(DnsError::Serve)
            }
        }
    }
}
