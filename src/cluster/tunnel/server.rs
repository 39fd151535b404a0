//! A server's side: keeps the tunnels by node, and opens streams in them.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::Empty;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mussel_apiserver::connect::{KubeletDialer, Stream};
use mussel_apiserver::{Body, Response, Status};
use tokio::time;

use super::{PING_INTERVAL, PING_TIME};
use crate::protocol::TUNNEL_PROTOCOL;
use crate::supervisor::Caller;

const OPEN_TIME: Duration = Duration::from_secs(10);
/// Nodes of one cluster with a tunnel; beyond that somebody makes up names.
const TUNNELS_MAX: usize = 10_000;

/// The tunnels that are open to this server.
#[derive(Clone, Default)]
pub struct Tunnels(Arc<Shared>);

#[derive(Default)]
struct Shared {
    next: AtomicU64,
    by_node: Mutex<HashMap<String, Session>>,
}

struct Session {
    id: u64,
    streams: SendRequest<Empty<Bytes>>,
}

impl fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.lock().keys()).finish()
    }
}

impl Tunnels {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        self.0.by_node.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers the agent's request and takes over its connection. A newer tunnel of a node replaces the older.
    ///
    /// # Errors
    /// When the caller is no node or asks for another protocol.
    pub fn accept(&self, caller: &Caller, mut request: http::Request<Body>) -> Result<Response, Status> {
        let Caller::Node(node) = caller else {
            return Err(Status::new(403, "Forbidden", "only nodes open tunnels, with their certificates"));
        };
        let wanted = request.headers().get(header::UPGRADE).and_then(|value| value.to_str().ok());
        if wanted != Some(TUNNEL_PROTOCOL) {
            return Err(Status::bad_request(format!("this server speaks {TUNNEL_PROTOCOL} and nothing else")));
        }
        if self.lock().len() >= TUNNELS_MAX {
            return Err(Status::too_many_requests("too many tunnels", 60));
        }
        let upgraded = hyper::upgrade::on(&mut request);
        let (tunnels, node) = (self.clone(), node.clone());
        // Lives as long as the connection, which the listener ends at its own stop.
        tokio::spawn(async move {
            match upgraded.await {
                Ok(upgraded) => tunnels.keep(&node, upgraded).await,
                Err(error) => tracing::debug!(node, %error, "tunnel was not opened"),
            }
        });
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static(TUNNEL_PROTOCOL));
        Ok(response)
    }

    /// Until the connection ends.
    async fn keep(&self, node: &str, upgraded: hyper::upgrade::Upgraded) {
        let handshake = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIME)
            .keep_alive_while_idle(true)
            .handshake(upgraded);
        let (streams, connection) = match handshake.await {
            Ok(opened) => opened,
            Err(error) => return tracing::debug!(node, %error, "tunnel handshake failed"),
        };
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(node.to_owned(), Session { id, streams });
        tracing::info!(node, "tunnel opened");
        let outcome = connection.await;
        let mut tunnels = self.lock();
        if tunnels.get(node).is_some_and(|session| session.id == id) {
            tunnels.remove(node);
        }
        drop(tunnels);
        match outcome {
            Ok(()) => tracing::debug!(node, "tunnel closed"),
            Err(error) => tracing::info!(node, %error, "tunnel lost"),
        }
    }
}

impl KubeletDialer for Tunnels {
    fn dial(&self, node: &str, port: u16) -> Option<BoxFuture<'static, io::Result<Box<dyn Stream>>>> {
        let streams = self.lock().get(node)?.streams.clone();
        Some(Box::pin(async move {
            let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the node does not answer through its tunnel");
            time::timeout(OPEN_TIME, open(streams, port)).await.map_err(late)?
        }))
    }
}

async fn open(mut streams: SendRequest<Empty<Bytes>>, port: u16) -> io::Result<Box<dyn Stream>> {
    streams.ready().await.map_err(io::Error::other)?;
    let request = http::Request::builder()
        .method(Method::CONNECT)
        .uri(format!("localhost:{port}"))
        .body(Empty::new())
        .map_err(io::Error::other)?;
    let response = streams.send_request(request).await.map_err(io::Error::other)?;
    if response.status() != StatusCode::OK {
        return Err(io::Error::other(format!("the node's end of the tunnel says {}", response.status())));
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(io::Error::other)?;
    Ok(Box::new(TokioIo::new(upgraded)))
}
