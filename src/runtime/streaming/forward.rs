//! Port-forward: connections from a client to ports inside a pod.

use std::collections::HashMap;

use base64::Engine;
use bytes::{BufMut, Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};
use tokio_util::task::TaskTracker;

use super::channels::payload;
use super::spdy::{Connection, Stream, Writer};
use crate::error::{Error, chain};
use crate::runtime::Runtime;

const PIECE_BYTES: usize = 32 << 10;
/// Half-open requests of one client.
const PAIRS_MAX: usize = 256;

/// The two streams of one forwarded connection come one after the other, joined by a request id.
pub async fn spdy(runtime: Runtime, sandbox: String, io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
    let mut connection = Connection::new(io);
    let mut halves: HashMap<String, Stream> = HashMap::new();
    let tracker = TaskTracker::new();
    while let Some(stream) = connection.next().await {
        let header = |name: &str| stream.headers.get(name).cloned().unwrap_or_default();
        let (kind, port) = (header("streamtype"), header("port"));
        // Clients before request ids used a pair per port at a time.
        let request = stream.headers.get("requestid").cloned().unwrap_or_else(|| format!("port {port}"));
        let Some(other) = halves.remove(&request) else {
            if halves.len() < PAIRS_MAX && matches!(kind.as_str(), "error" | "data") {
                halves.insert(request, stream);
            } else {
                let _ = stream.writer.reset().await;
            }
            continue;
        };
        let (data, error) = if kind == "data" { (stream, other) } else { (other, stream) };
        let (runtime, sandbox) = (runtime.clone(), sandbox.clone());
        tracker.spawn(async move {
            let failed = match port.parse::<u16>() {
                Ok(port) => forward(runtime, sandbox, port, data).await.err(),
                Err(_) => Some(format!("{port:?} is not a port")),
            };
            if let Some(reason) = failed {
                let _ = error.writer.write(Bytes::from(reason)).await;
            }
            let _ = error.writer.close().await;
        });
    }
}

async fn forward(runtime: Runtime, sandbox: String, port: u16, stream: Stream) -> Result<(), String> {
    let Stream { mut data, writer, .. } = stream;
    let socket = match connect(runtime, sandbox.clone(), port).await {
        Ok(socket) => socket,
        Err(error) => {
            let _ = writer.reset().await;
            return Err(format!("error forwarding port {port} to pod {sandbox}: {}", chain(&error)));
        }
    };
    let (mut from_pod, mut to_pod) = socket.into_split();
    let up = async {
        while let Some(bytes) = data.recv().await {
            if to_pod.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = to_pod.shutdown().await;
    };
    tokio::join!(up, copy_down(&mut from_pod, &writer));
    Ok(())
}

/// Boxed, or the compiler cannot prove that what awaits it is `Send`.
fn connect(runtime: Runtime, sandbox: String, port: u16) -> BoxFuture<'static, Result<TcpStream, Error>> {
    Box::pin(async move { runtime.port_forward(&sandbox, port).await })
}

async fn copy_down(from: &mut (impl AsyncRead + Unpin), to: &Writer) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(PIECE_BYTES);
        match from.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {
                if to.write(buffer.split().freeze()).await.is_err() {
                    return;
                }
            }
        }
    }
    let _ = to.close().await;
}

/// The older way: two channels per port, data and error, each beginning with the port in two bytes, the low one first.
pub async fn websocket<S>(
    runtime: Runtime,
    sandbox: String,
    ports: Vec<u16>,
    socket: WebSocketStream<S>,
    protocol: &str,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let base64 = protocol.contains("base64");
    let engine = base64::engine::general_purpose::STANDARD;
    let (mut to_client, mut from_client) = socket.split();
    let (messages, mut to_send) = mpsc::channel::<(u8, Bytes)>(32);
    let mut inputs: HashMap<u8, mpsc::Sender<Bytes>> = HashMap::new();
    let tracker = TaskTracker::new();
    for (at, port) in ports.into_iter().enumerate().take(100) {
        let channel = u8::try_from(at * 2).unwrap_or(u8::MAX - 1);
        let (input, mut data) = mpsc::channel::<Bytes>(32);
        inputs.insert(channel, input);
        let (runtime, sandbox, messages) = (runtime.clone(), sandbox.clone(), messages.clone());
        tracker.spawn(async move {
            for channel in [channel, channel + 1] {
                let _ = messages.send((channel, Bytes::copy_from_slice(&port.to_le_bytes()))).await;
            }
            let socket = match connect(runtime, sandbox, port).await {
                Ok(socket) => socket,
                Err(error) => {
                    let _ = messages.send((channel + 1, Bytes::from(chain(&error)))).await;
                    return;
                }
            };
            let (mut from_pod, mut to_pod) = socket.into_split();
            let up = async {
                while let Some(bytes) = data.recv().await {
                    if to_pod.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
                let _ = to_pod.shutdown().await;
            };
            let down = async {
                let mut buffer = BytesMut::new();
                loop {
                    buffer.reserve(PIECE_BYTES);
                    match from_pod.read_buf(&mut buffer).await {
                        Ok(0) | Err(_) => return,
                        Ok(_) => {
                            if messages.send((channel, buffer.split().freeze())).await.is_err() {
                                return;
                            }
                        }
                    }
                }
            };
            tokio::join!(up, down);
        });
    }
    drop(messages);
    let send = async {
        while let Some((channel, bytes)) = to_send.recv().await {
            let message = match base64 {
                true => Message::text(format!("{channel}{}", engine.encode(&bytes))),
                false => {
                    let mut framed = BytesMut::with_capacity(bytes.len() + 1);
                    framed.put_u8(channel);
                    framed.put_slice(&bytes);
                    Message::Binary(framed.freeze())
                }
            };
            if to_client.send(message).await.is_err() {
                return;
            }
        }
        // Clients take any other code, and a close without one, for a stream that broke.
        let normal = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() };
        let _ = to_client.send(Message::Close(Some(normal))).await;
        super::websocket::close(&mut to_client).await;
    };
    let receive = async {
        while let Some(Ok(message)) = from_client.next().await {
            let frame = match message {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => text.into(),
                Message::Close(_) => return,
                _ => continue,
            };
            let Some(frame) = payload(frame, base64) else { return };
            let Some(channel) = frame.first() else { continue };
            if let Some(input) = inputs.get(channel) {
                let _ = input.send(frame.slice(1..)).await;
            }
        }
    };
    tokio::select! {
        () = send => {}
        () = receive => {}
    }
}
