//! The HTTP side: tokens, negotiation and upgrades.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use http::header::{CONNECTION, HeaderMap, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use mussel_cri::v1;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;

use super::{forward, remote, spdy, websocket};
use crate::error::Error;
use crate::runtime::{Runtime, new_id};
use crate::service::StreamingServer;
use crate::sessions::Wanted;

const TOKEN_LIFE: Duration = Duration::from_secs(60);
const TOKENS_MAX: usize = 1000;
/// After an error the listener rests, so that a lack of descriptors does not burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("listen for exec, attach and port-forward")]
    Listen(#[source] io::Error),
}

/// What a token stands for.
pub enum Task {
    Exec { container: String, command: Vec<String>, wanted: Wanted },
    Attach { container: String, wanted: Wanted },
    PortForward { sandbox: String, ports: Vec<u16> },
}

#[derive(Default)]
struct Tokens(Mutex<HashMap<String, (Task, Instant)>>);

impl Tokens {
    fn add(&self, task: Task) -> Result<String, Status> {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        tokens.retain(|_, (_, expires)| *expires > now);
        if tokens.len() >= TOKENS_MAX {
            return Err(Status::resource_exhausted("maximum number of in-flight requests exceeded"));
        }
        let token = new_id();
        tokens.insert(token.clone(), (task, now + TOKEN_LIFE));
        Ok(token)
    }

    fn take(&self, token: &str) -> Option<Task> {
        let (task, expires) = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(token)?;
        (expires > Instant::now()).then_some(task)
    }
}

/// Hands out URLs. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    tokens: Arc<Tokens>,
    address: SocketAddr,
}

impl Handle {
    fn url(&self, kind: &str, task: Task) -> Result<String, Status> {
        Ok(format!("http://{}/{kind}/{}", self.address, self.tokens.add(task)?))
    }
}

impl StreamingServer for Handle {
    fn exec(&self, request: v1::ExecRequest) -> Result<String, Status> {
        let wanted = Wanted { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, tty: request.tty };
        self.url("exec", Task::Exec { container: request.container_id, command: request.cmd, wanted })
    }

    fn attach(&self, request: v1::AttachRequest) -> Result<String, Status> {
        let wanted = Wanted { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, tty: request.tty };
        self.url("attach", Task::Attach { container: request.container_id, wanted })
    }

    fn port_forward(&self, request: v1::PortForwardRequest) -> Result<String, Status> {
        let ports = request.port.iter().filter_map(|port| u16::try_from(*port).ok()).collect();
        self.url("portforward", Task::PortForward { sandbox: request.pod_sandbox_id, ports })
    }
}

/// The server, bound to a port of loopback.
pub struct Server {
    runtime: Runtime,
    listener: TcpListener,
    handle: Handle,
}

impl Server {
    pub async fn bind(runtime: Runtime) -> Result<Self, ServeError> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(ServeError::Listen)?;
        let address = listener.local_addr().map_err(ServeError::Listen)?;
        Ok(Self { runtime, listener, handle: Handle { tokens: Arc::default(), address } })
    }

    pub fn handle(&self) -> Arc<dyn StreamingServer> {
        Arc::new(self.handle.clone())
    }

    /// Serves until `stop`; sessions end with it.
    pub async fn run(self, stop: CancellationToken) -> Result<(), ServeError> {
        let tracker = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let session = Session {
                        runtime: self.runtime.clone(),
                        tokens: Arc::clone(&self.handle.tokens),
                        tracker: tracker.clone(),
                        stop: stop.clone(),
                    };
                    tracker.spawn(session.serve(stream));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a stream");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

#[derive(Clone)]
struct Session {
    runtime: Runtime,
    tokens: Arc<Tokens>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Session {
    async fn serve(self, stream: TcpStream) {
        // Keystrokes should not wait for company.
        let _ = stream.set_nodelay(true);
        let stop = self.stop.clone();
        let service = hyper::service::service_fn(move |request| {
            let session = self.clone();
            async move { Ok::<_, Infallible>(session.answer(request)) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(hyper_util::rt::TokioTimer::new())
            .header_read_timeout(Duration::from_secs(10))
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        tokio::select! {
            () = stop.cancelled() => {}
            served = connection => {
                if let Err(error) = served {
                    tracing::debug!(%error, "stream ended");
                }
            }
        }
    }

    fn answer(self, mut request: Request<Incoming>) -> Response<String> {
        let mut parts = request.uri().path().trim_start_matches('/').split('/');
        let (kind, token) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        if !matches!(kind, "exec" | "attach" | "portforward") {
            return refuse(StatusCode::NOT_FOUND, "no such path");
        }
        let headers = request.headers().clone();
        let forward = kind == "portforward";
        let (mut response, protocol) = match negotiate(&headers, forward) {
            Ok(negotiated) => negotiated,
            Err(refusal) => return *refusal,
        };
        let Some(task) = self.tokens.take(token) else {
            return refuse(StatusCode::NOT_FOUND, "this URL was used already, or is too old");
        };
        let upgrade = hyper::upgrade::on(&mut request);
        let Session { runtime, tracker, stop, .. } = self;
        tracker.spawn(async move {
            let io = match upgrade.await {
                Ok(io) => TokioIo::new(io),
                Err(error) => return tracing::debug!(%error, "client went away before the upgrade"),
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = work(runtime, task, protocol, io) => {}
            }
        });
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        response
    }
}

/// How the client will talk.
enum Protocol {
    /// SPDY with this version of the stream protocol.
    Spdy(&'static str),
    WebSocket(&'static str),
}

/// Boxed piece by piece, because the compiler cannot prove `Send` for all of it at once.
fn work(
    runtime: Runtime,
    task: Task,
    protocol: Protocol,
    io: TokioIo<hyper::upgrade::Upgraded>,
) -> BoxFuture<'static, ()> {
    match (task, protocol) {
        (Task::PortForward { sandbox, .. }, Protocol::Spdy(_)) => Box::pin(forward::spdy(runtime, sandbox, io)),
        (Task::PortForward { sandbox, .. }, Protocol::WebSocket(websocket::TUNNEL)) => Box::pin(async move {
            let io = websocket::tunnel(io).await;
            forward::spdy(runtime, sandbox, io).await;
        }),
        (Task::PortForward { sandbox, ports }, Protocol::WebSocket(protocol)) => Box::pin(async move {
            let socket = websocket::accept(io).await;
            forward::websocket(runtime, sandbox, ports, socket, protocol).await;
        }),
        (Task::Exec { container, command, wanted }, protocol) => Box::pin(async move {
            let Some(channels) = channels(protocol, wanted, io).await else { return };
            let started = exec(runtime, container, command, wanted).await;
            remote::run(started, channels).await;
        }),
        (Task::Attach { container, wanted }, protocol) => Box::pin(async move {
            let Some(channels) = channels(protocol, wanted, io).await else { return };
            let started = attach(runtime, container, wanted).await;
            remote::run(started, channels).await;
        }),
    }
}

fn exec(
    runtime: Runtime,
    container: String,
    command: Vec<String>,
    wanted: Wanted,
) -> BoxFuture<'static, Result<crate::sessions::Session, Error>> {
    Box::pin(async move { runtime.exec(&container, &command, wanted).await })
}

fn attach(
    runtime: Runtime,
    container: String,
    wanted: Wanted,
) -> BoxFuture<'static, Result<crate::sessions::Session, Error>> {
    Box::pin(async move { runtime.attach(&container, wanted).await })
}

fn channels(
    protocol: Protocol,
    wanted: Wanted,
    io: TokioIo<hyper::upgrade::Upgraded>,
) -> BoxFuture<'static, Option<super::channels::Channels>> {
    Box::pin(async move {
        match protocol {
            Protocol::Spdy(version) => super::channels::over_spdy(spdy::Connection::new(io), wanted, version).await,
            Protocol::WebSocket(version) => {
                let socket = websocket::accept(io).await;
                Some(super::channels::over_websocket(socket, wanted, version))
            }
        }
    })
}

fn refuse(status: StatusCode, text: &str) -> Response<String> {
    let mut response = Response::new(format!("{text}\n"));
    *response.status_mut() = status;
    response
}

/// The 101 answer and what was agreed on, or why nothing could be.
fn negotiate(headers: &HeaderMap, forward: bool) -> Result<(Response<String>, Protocol), Box<Response<String>>> {
    const VERSION: &str = "X-Stream-Protocol-Version";
    let upgrade = headers.get(UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut response = Response::new(String::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    if upgrade.eq_ignore_ascii_case("websocket") {
        let offered = list(headers, "Sec-WebSocket-Protocol");
        let supported: &[&str] = if forward { &websocket::FORWARD } else { &websocket::REMOTE };
        let key = headers
            .get("Sec-WebSocket-Key")
            .ok_or_else(|| Box::new(refuse(StatusCode::BAD_REQUEST, "no WebSocket key")))?;
        // A client that offers nothing gets the oldest: channels in binary messages.
        let chosen = match offered.is_empty() {
            true => Some(""),
            false => supported.iter().copied().find(|known| offered.iter().any(|offer| offer == known)),
        };
        let Some(chosen) = chosen else {
            let text =
                format!("unable to negotiate a protocol: client supports {offered:?}, server accepts {supported:?}");
            return Err(Box::new(refuse(StatusCode::FORBIDDEN, &text)));
        };
        let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
        let out = response.headers_mut();
        out.insert(UPGRADE, HeaderValue::from_static("websocket"));
        out.insert("Sec-WebSocket-Accept", HeaderValue::from_str(&accept).unwrap_or(HeaderValue::from_static("")));
        if !chosen.is_empty() {
            out.insert("Sec-WebSocket-Protocol", HeaderValue::from_static(chosen));
        }
        return Ok((response, Protocol::WebSocket(chosen)));
    }
    if !upgrade.eq_ignore_ascii_case(spdy::NAME) {
        let text = "you must use the upgrade headers of SPDY/3.1 or WebSocket";
        return Err(Box::new(refuse(StatusCode::BAD_REQUEST, text)));
    }
    let offered = list(headers, VERSION);
    let supported: &[&str] = if forward { &["portforward.k8s.io"] } else { &spdy::REMOTE };
    let chosen = match offered.is_empty() {
        true => Some(""),
        false => supported.iter().copied().find(|known| offered.iter().any(|offer| offer == known)),
    };
    let Some(chosen) = chosen else {
        let text = format!(
            "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {supported:?}"
        );
        let mut refusal = refuse(StatusCode::FORBIDDEN, &text);
        for known in supported {
            refusal.headers_mut().append("X-Accepted-Stream-Protocol-Versions", HeaderValue::from_static(known));
        }
        return Err(Box::new(refusal));
    };
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(spdy::NAME));
    if !chosen.is_empty() {
        response.headers_mut().insert(VERSION, HeaderValue::from_static(chosen));
    }
    Ok((response, Protocol::Spdy(chosen)))
}

/// A header's values, whether in one line or several.
fn list(headers: &HeaderMap, name: &str) -> Vec<String> {
    let lines = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_token_is_good_once_and_for_a_minute() {
        let tokens = Tokens::default();
        let task = || Task::PortForward { sandbox: "a".to_owned(), ports: Vec::new() };
        let token = tokens.add(task()).unwrap();
        assert!(tokens.take(&token).is_some());
        assert!(tokens.take(&token).is_none());
        let token = tokens.add(task()).unwrap();
        tokio::time::advance(TOKEN_LIFE).await;
        assert!(tokens.take(&token).is_none());
    }

    #[test]
    fn the_newest_common_protocol_is_chosen() {
        let mut headers = HeaderMap::new();
        headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
        headers.append("X-Stream-Protocol-Version", HeaderValue::from_static("v4.channel.k8s.io"));
        headers.append("X-Stream-Protocol-Version", HeaderValue::from_static("v3.channel.k8s.io, channel.k8s.io"));
        let (response, protocol) = negotiate(&headers, false).unwrap();
        assert_eq!(response.headers()["x-stream-protocol-version"], "v4.channel.k8s.io");
        assert!(matches!(protocol, Protocol::Spdy("v4.channel.k8s.io")));
        headers.insert("X-Stream-Protocol-Version", HeaderValue::from_static("v9.channel.k8s.io"));
        assert_eq!(negotiate(&headers, false).err().unwrap().status(), StatusCode::FORBIDDEN);
        assert_eq!(negotiate(&HeaderMap::new(), false).err().unwrap().status(), StatusCode::BAD_REQUEST);
    }
}
