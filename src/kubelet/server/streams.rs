//! exec, attach and port-forward.
//!
//! The runtime has a server of its own for the streams. The kubelet asks it for an address, sends the client's request
//! there and then only passes bytes, whatever protocol the two speak.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse as _, Response};
use http::{StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use mussel_cri::v1;
use tokio::net::TcpStream;

use super::Server;
use crate::pod;
use crate::shared::{Published, Shared};

const DIAL: Duration = Duration::from_secs(10);

/// What goes wrong before the streams stand: a code and a text.
type Refusal = (StatusCode, String);

fn refuse(code: StatusCode, text: impl Into<String>) -> Refusal {
    (code, text.into())
}

type Three = Path<(String, String, String)>;
type Four = Path<(String, String, String, String)>;

/// The query as pairs, with repeats and in order.
fn query(request: &Request) -> Vec<(String, String)> {
    let text = request.uri().query().unwrap_or_default();
    pairs_of(text)
}

/// `a=b&c=d` with `%41` and `+` undone.
fn pairs_of(text: &str) -> Vec<(String, String)> {
    let undo = |part: &str| {
        let bytes = part.as_bytes();
        let mut out = Vec::with_capacity(bytes.len());
        let mut i = 0;
        while i < bytes.len() {
            let hex = bytes.get(i + 1..i + 3).and_then(|h| std::str::from_utf8(h).ok());
            match (bytes[i], hex.and_then(|h| u8::from_str_radix(h, 16).ok())) {
                (b'%', Some(byte)) => {
                    out.push(byte);
                    i += 2;
                }
                (b'+', _) => out.push(b' '),
                (byte, _) => out.push(byte),
            }
            i += 1;
        }
        String::from_utf8_lossy(&out).into_owned()
    };
    let parts = text.split('&').filter(|p| !p.is_empty());
    parts.map(|p| p.split_once('=').unwrap_or((p, ""))).map(|(k, v)| (undo(k), undo(v))).collect()
}

fn is_set(query: &[(String, String)], names: &[&str]) -> bool {
    query.iter().any(|(k, v)| names.contains(&k.as_str()) && matches!(v.as_str(), "1" | "true"))
}

fn find(shared: &Shared, namespace: &str, name: &str, uid: Option<&str>) -> Result<(Arc<Pod>, Published), Refusal> {
    shared
        .registry
        .find(namespace, name)
        .filter(|(p, _)| uid.is_none_or(|u| u == pod::uid(p)))
        .ok_or_else(|| refuse(StatusCode::NOT_FOUND, "pod does not exist"))
}

fn container_id(published: &Published, name: &str, container: &str) -> Result<String, Refusal> {
    let missing = || refuse(StatusCode::NOT_FOUND, format!("container not found (\"{container}\") in pod \"{name}\""));
    published.containers.get(container).cloned().ok_or_else(missing)
}

pub async fn exec(state: State<Server>, Path((ns, name, container)): Three, request: Request) -> Response {
    start_exec(state.0, &ns, &name, None, &container, request).await.unwrap_or_else(|r| r.into_response())
}

pub async fn exec_uid(state: State<Server>, Path((ns, name, uid, container)): Four, request: Request) -> Response {
    start_exec(state.0, &ns, &name, Some(&uid), &container, request).await.unwrap_or_else(|r| r.into_response())
}

async fn start_exec(
    server: Server,
    namespace: &str,
    name: &str,
    uid: Option<&str>,
    container: &str,
    request: Request,
) -> Result<Response, Refusal> {
    let (_, published) = find(&server.shared, namespace, name, uid)?;
    let query = query(&request);
    let tty = is_set(&query, &["tty"]);
    let asked = v1::ExecRequest {
        container_id: container_id(&published, name, container)?,
        cmd: query.iter().filter(|(k, _)| k == "command").map(|(_, v)| v.clone()).collect(),
        tty,
        stdin: is_set(&query, &["input", "stdin"]),
        stdout: is_set(&query, &["output", "stdout"]),
        stderr: is_set(&query, &["error", "stderr"]) && !tty,
    };
    if !asked.stdin && !asked.stdout && !asked.stderr {
        return Err(refuse(StatusCode::BAD_REQUEST, "you must specify at least 1 of stdin, stdout, stderr"));
    }
    proxy(server.shared.cri.exec(asked).await, request, &server.shared).await
}

pub async fn attach(state: State<Server>, Path((ns, name, container)): Three, request: Request) -> Response {
    start_attach(state.0, &ns, &name, None, &container, request).await.unwrap_or_else(|r| r.into_response())
}

pub async fn attach_uid(state: State<Server>, Path((ns, name, uid, container)): Four, request: Request) -> Response {
    start_attach(state.0, &ns, &name, Some(&uid), &container, request).await.unwrap_or_else(|r| r.into_response())
}

async fn start_attach(
    server: Server,
    namespace: &str,
    name: &str,
    uid: Option<&str>,
    container: &str,
    request: Request,
) -> Result<Response, Refusal> {
    let (pod, published) = find(&server.shared, namespace, name, uid)?;
    let query = query(&request);
    // Whether there is a terminal is the container's own matter.
    let tty = pod::find_container(&pod, container).and_then(|c| c.tty).unwrap_or(false);
    let asked = v1::AttachRequest {
        container_id: container_id(&published, name, container)?,
        tty,
        stdin: is_set(&query, &["input", "stdin"]),
        stdout: is_set(&query, &["output", "stdout"]),
        stderr: is_set(&query, &["error", "stderr"]) && !tty,
    };
    if !asked.stdin && !asked.stdout && !asked.stderr {
        return Err(refuse(StatusCode::BAD_REQUEST, "you must specify at least 1 of stdin, stdout, stderr"));
    }
    proxy(server.shared.cri.attach(asked).await, request, &server.shared).await
}

pub async fn port_forward(state: State<Server>, path: Path<(String, String)>, request: Request) -> Response {
    let (ns, name) = path.0;
    start_port_forward(state.0, &ns, &name, None, request).await.unwrap_or_else(|r| r.into_response())
}

pub async fn port_forward_uid(state: State<Server>, Path((ns, name, uid)): Three, request: Request) -> Response {
    start_port_forward(state.0, &ns, &name, Some(&uid), request).await.unwrap_or_else(|r| r.into_response())
}

async fn start_port_forward(
    server: Server,
    namespace: &str,
    name: &str,
    uid: Option<&str>,
    request: Request,
) -> Result<Response, Refusal> {
    let (_, published) = find(&server.shared, namespace, name, uid)?;
    let sandbox = published.sandbox.ok_or_else(|| refuse(StatusCode::NOT_FOUND, "pod is not running"))?;
    let mut ports = Vec::new();
    for (_, value) in query(&request).iter().filter(|(k, _)| k == "port" || k == "ports") {
        for part in value.split(',') {
            let port = part.parse::<u16>().ok().filter(|p| *p > 0);
            let bad = || refuse(StatusCode::BAD_REQUEST, format!("unable to parse \"{part}\" as a port"));
            ports.push(i32::from(port.ok_or_else(bad)?));
        }
    }
    proxy(server.shared.cri.port_forward(&sandbox, ports).await, request, &server.shared).await
}

pub async fn run(state: State<Server>, Path((ns, name, container)): Three, request: Request) -> Response {
    start_run(state.0, &ns, &name, None, &container, request).await.unwrap_or_else(|r| r.into_response())
}

pub async fn run_uid(state: State<Server>, Path((ns, name, uid, container)): Four, request: Request) -> Response {
    start_run(state.0, &ns, &name, Some(&uid), &container, request).await.unwrap_or_else(|r| r.into_response())
}

/// Runs a command to its end and answers with all that it printed.
async fn start_run(
    server: Server,
    namespace: &str,
    name: &str,
    uid: Option<&str>,
    container: &str,
    request: Request,
) -> Result<Response, Refusal> {
    let (_, published) = find(&server.shared, namespace, name, uid)?;
    let id = container_id(&published, name, container)?;
    let command = query(&request).into_iter().find(|(k, _)| k == "cmd").map(|(_, v)| v).unwrap_or_default();
    let command: Vec<String> = command.split(' ').filter(|p| !p.is_empty()).map(str::to_owned).collect();
    match server.shared.cri.exec_sync(&id, command, Duration::from_secs(0)).await {
        Ok(answer) => {
            let mut output = answer.stdout;
            output.extend_from_slice(&answer.stderr);
            Ok(output.into_response())
        }
        Err(error) => Err(refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

/// Sends the request on to the address that the runtime gave, and joins the two connections.
async fn proxy(
    address: Result<String, crate::cri::CriError>,
    mut request: Request,
    shared: &Shared,
) -> Result<Response, Refusal> {
    let failed = |text: String| refuse(StatusCode::INTERNAL_SERVER_ERROR, text);
    let address = address.map_err(|e| {
        if e.is_not_found() { refuse(StatusCode::NOT_FOUND, e.message()) } else { failed(e.to_string()) }
    })?;
    let uri: Uri = address.parse().map_err(|_| failed(format!("the runtime gave no address but {address:?}")))?;
    let host = uri.host().unwrap_or("127.0.0.1").trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(80);
    let stream = match tokio::time::timeout(DIAL, TcpStream::connect((host.as_str(), port))).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => return Err(failed(format!("error dialing the runtime: {e}"))),
        Err(_) => return Err(failed("error dialing the runtime: timed out".into())),
    };
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| failed(format!("error dialing the runtime: {e}")))?;
    shared.spawn(async move {
        let _ = connection.with_upgrades().await;
    });
    let client = hyper::upgrade::on(&mut request);
    let mut out =
        http::Request::builder().method(request.method().clone()).uri(uri.path_and_query().map_or("/", |p| p.as_str()));
    for (name, value) in request.headers() {
        // Who the client is was between it and us.
        if name != header::HOST && name != header::AUTHORIZATION {
            out = out.header(name, value);
        }
    }
    let host = uri.authority().map_or("localhost", |a| a.as_str());
    let out = out.header(header::HOST, host).body(Body::empty()).map_err(|e| failed(e.to_string()))?;
    let mut answer = sender.send_request(out).await.map_err(|e| failed(format!("error sending the request: {e}")))?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer.map(Body::new));
    }
    let runtime = hyper::upgrade::on(&mut answer);
    let stop = shared.stop.clone();
    shared.spawn(async move {
        let (client, runtime) = match tokio::try_join!(client, runtime) {
            Ok(both) => both,
            Err(error) => {
                tracing::debug!(%error, "a stream was not taken up");
                return;
            }
        };
        let (mut client, mut runtime) = (TokioIo::new(client), TokioIo::new(runtime));
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut client, &mut runtime) => {}
            () = stop.cancelled() => {}
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = answer.headers().clone();
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_keep_order_and_repeats() {
        let pairs = pairs_of("command=sh&command=-c&command=echo+a%20b%3D1&tty=1&x");
        let commands: Vec<&str> = pairs.iter().filter(|(k, _)| k == "command").map(|(_, v)| v.as_str()).collect();
        assert_eq!(commands, ["sh", "-c", "echo a b=1"]);
        assert!(is_set(&pairs, &["tty"]) && !is_set(&pairs, &["x"]));
    }
}
