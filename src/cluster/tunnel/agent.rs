//! An agent's side: one tunnel to every server, opened again when it is lost.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mussel_client::ClusterTls;
use tokio::net::TcpStream;
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::{PING_INTERVAL, PING_TIME, STREAMS_MAX};
use crate::balancer::{self, Balancer};
use crate::protocol::{CONNECT, TUNNEL_PROTOCOL};

const OPEN_TIME: Duration = Duration::from_secs(10);
/// Pauses between attempts, growing from the first to the last.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(15);

/// Keeps a tunnel open to every server that the balancer knows.
pub struct TunnelClient {
    pub balancer: Balancer,
    pub tls: ClusterTls,
    /// Where the kubelet listens; nothing else is reached through the tunnels.
    pub kubelet: SocketAddr,
}

impl TunnelClient {
    pub async fn run(self, stop: CancellationToken) {
        let shared = Arc::new(self);
        let mut servers = shared.balancer.servers();
        let mut open: HashMap<String, CancellationToken> = HashMap::new();
        loop {
            let wanted: Vec<String> = servers.borrow_and_update().clone();
            open.retain(|server, stop| {
                let stays = wanted.contains(server);
                if !stays {
                    stop.cancel();
                }
                stays
            });
            for server in wanted {
                open.entry(server.clone()).or_insert_with(|| {
                    let stop = stop.child_token();
                    let (shared, until) = (Arc::clone(&shared), stop.clone());
                    // Ends with its token, which is a child of ours.
                    tokio::spawn(async move { shared.keep(&server, until).await });
                    stop
                });
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = servers.changed() => if changed.is_err() { return stop.cancelled().await },
            }
        }
    }

    /// Keeps the tunnel to one server.
    async fn keep(&self, server: &str, stop: CancellationToken) {
        let mut pause = RETRY_FIRST;
        loop {
            let opened = tokio::select! {
                () = stop.cancelled() => return,
                opened = self.open(server) => opened,
            };
            match opened {
                Ok(tunnel) => {
                    pause = RETRY_FIRST;
                    self.balancer.mark_good(server);
                    tracing::info!(server, "tunnel opened");
                    let ended = tokio::select! {
                        () = stop.cancelled() => return,
                        ended = self.serve(tunnel, &stop) => ended,
                    };
                    let reason = ended.err().map_or_else(|| "closed".to_owned(), |error| error.to_string());
                    tracing::info!(server, reason, "tunnel lost");
                    // Requests of ours that hang on that server are better off with another.
                    self.balancer.mark_bad(server, &reason);
                }
                Err(error) => tracing::debug!(server, %error, "tunnel cannot be opened"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = time::sleep(pause) => pause = (pause * 2).min(RETRY_MAX),
            }
        }
    }

    async fn open(&self, server: &str) -> io::Result<hyper::upgrade::Upgraded> {
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer");
        time::timeout(OPEN_TIME, self.request(server)).await.map_err(late)?
    }

    async fn request(&self, server: &str) -> io::Result<hyper::upgrade::Upgraded> {
        let stream = self.tls.wrap(balancer::connect(server).await?).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        let connection = tokio::spawn(connection.with_upgrades());
        let request = Request::builder()
            .uri(CONNECT)
            .header(header::HOST, server)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, TUNNEL_PROTOCOL)
            .body(Empty::new())
            .map_err(io::Error::other)?;
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            connection.abort();
            return Err(io::Error::other(format!("the server answers {}", response.status())));
        }
        hyper::upgrade::on(response).await.map_err(io::Error::other)
    }

    async fn serve(&self, tunnel: hyper::upgrade::Upgraded, stop: &CancellationToken) -> Result<(), hyper::Error> {
        let (kubelet, stop) = (self.kubelet, stop.clone());
        let service = hyper::service::service_fn(move |request| answer(request, kubelet, stop.clone()));
        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIME)
            .max_concurrent_streams(STREAMS_MAX)
            .serve_connection(tunnel, service)
            .await
    }
}

/// Answers one CONNECT.
async fn answer(
    request: Request<Incoming>,
    kubelet: SocketAddr,
    stop: CancellationToken,
) -> Result<Response<Empty<Bytes>>, Infallible> {
    let status = |status| {
        let mut response = Response::new(Empty::new());
        *response.status_mut() = status;
        Ok(response)
    };
    if request.method() != Method::CONNECT {
        return status(StatusCode::METHOD_NOT_ALLOWED);
    }
    if request.uri().port_u16() != Some(kubelet.port()) {
        return status(StatusCode::FORBIDDEN);
    }
    let mut backend = match time::timeout(OPEN_TIME, TcpStream::connect(kubelet)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "the kubelet cannot be reached for a server");
            return status(StatusCode::BAD_GATEWAY);
        }
        Err(_) => return status(StatusCode::GATEWAY_TIMEOUT),
    };
    // Ends with the stream, or the tunnel.
    tokio::spawn(async move {
        let pump = async {
            let mut stream = TokioIo::new(hyper::upgrade::on(request).await.map_err(io::Error::other)?);
            tokio::io::copy_bidirectional(&mut stream, &mut backend).await
        };
        tokio::select! {
            () = stop.cancelled() => {}
            outcome = pump => if let Err(error) = outcome {
                tracing::trace!(%error, "tunnelled stream ended");
            }
        }
    });
    status(StatusCode::OK)
}
