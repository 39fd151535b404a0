//! Connections that are kept: one pool per address, name and trust. HTTP/2 where the other end speaks it.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower::Service;

use super::tls::{self, Identity, Trust};
use crate::handler::Body;

const CONNECT_TIME: Duration = Duration::from_secs(10);
/// A connection that nobody used for so long is closed.
const IDLE_TIME: Duration = Duration::from_secs(60);
/// Unanswered pings tell that the other end is gone while a call waits for it.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Pools that are kept; the longest unused one makes room.
const POOLS_MAX: usize = 256;

pub type Pool = hyper_util::client::legacy::Client<Connector, Body>;

/// The connections of one user of this module.
#[derive(Default)]
pub struct Pools {
    pools: Mutex<HashMap<Key, (Pool, Instant)>>,
    /// Shown to every server that asks.
    identity: Option<Arc<Identity>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    address: SocketAddr,
    host: String,
    trust: Trust,
}

impl Pools {
    pub fn new(identity: Option<Arc<Identity>>) -> Self {
        Self { pools: Mutex::default(), identity }
    }

    /// The connections to this address, whose certificate is to be for `host`.
    ///
    /// # Errors
    /// When the trust holds no certificate, or the host is no name.
    pub fn to(&self, address: SocketAddr, host: &str, trust: &Trust) -> Result<Pool, String> {
        let key = Key { address, host: host.to_owned(), trust: trust.clone() };
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((pool, used)) = pools.get_mut(&key) {
            *used = Instant::now();
            return Ok(pool.clone());
        }
        let mut config = tls::client_config(trust, self.identity.as_deref())?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
        let connector = Connector { address, tls: TlsConnector::from(Arc::new(config)), name };
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

    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_deref()
    }
}

/// The cause at the bottom: hyper's own layers say only that something went wrong.
pub fn innermost(error: &dyn std::error::Error) -> String {
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
pub struct Connector {
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
pub struct Stream(TokioIo<TlsStream<TcpStream>>);

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
