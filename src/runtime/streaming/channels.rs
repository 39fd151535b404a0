//! The channels of a remote command: stdin, stdout, stderr, error, resize; whatever carries them.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};

use super::spdy::{self, Connection, Gone};
use super::websocket;
use crate::sessions::Wanted;

/// The client opens its streams at once.
const STREAMS_TIME: Duration = Duration::from_secs(30);
const WAITING_MAX: usize = 32;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// In version 5: the channel in the next byte is closed.
const CLOSE: u8 = 255;

pub struct Channels {
    pub stdin: Option<mpsc::Receiver<Bytes>>,
    pub resize: Option<mpsc::Receiver<Bytes>>,
    pub stdout: Option<Out>,
    pub stderr: Option<Out>,
    pub error: Out,
    /// Since version 4 the outcome is a `metav1.Status`; before, plain text.
    pub structured: bool,
    pub carrier: Carrier,
}

/// One channel to the client.
pub enum Out {
    Spdy(spdy::Writer),
    WebSocket { channel: u8, messages: mpsc::Sender<Message>, base64: bool },
}

impl Out {
    /// Boxed, or the compiler cannot prove `Send` for what awaits it.
    pub fn write(&self, bytes: Bytes) -> BoxFuture<'_, Result<(), Gone>> {
        match self {
            Self::Spdy(writer) => Box::pin(writer.write(bytes)),
            Self::WebSocket { channel, messages, base64 } => {
                let message = match base64 {
                    true => Message::text(format!("{channel}{}", STANDARD.encode(&bytes))),
                    false => {
                        let mut framed = BytesMut::with_capacity(bytes.len() + 1);
                        framed.put_u8(*channel);
                        framed.put_slice(&bytes);
                        Message::Binary(framed.freeze())
                    }
                };
                Box::pin(async move { messages.send(message).await.map_err(|_| Gone) })
            }
        }
    }

    pub async fn close(&self) {
        // WebSocket channels have no end of their own; a client that is gone needs none.
        if let Self::Spdy(writer) = self {
            let _ = writer.close().await;
        }
    }
}

/// What the channels are on.
pub enum Carrier {
    Spdy(Connection),
    WebSocket { reader: JoinHandle<()>, sender: JoinHandle<()> },
}

impl Carrier {
    /// Resolves when the client is gone.
    pub async fn gone(&mut self) {
        match self {
            Self::Spdy(connection) => connection.gone().await,
            Self::WebSocket { reader, .. } => drop(reader.await),
        }
    }

    /// Sends what is waiting, then closes.
    pub async fn finish(self) {
        match self {
            Self::Spdy(connection) => connection.finish().await,
            Self::WebSocket { reader, sender } => {
                // The client answers our close with its own.
                let _ = tokio::time::timeout(Duration::from_secs(10), sender).await;
                reader.abort();
            }
        }
    }
}

/// Waits for the streams that the client has to open. `None` when it does not.
pub async fn over_spdy(mut connection: Connection, wanted: Wanted, version: &'static str) -> Option<Channels> {
    let versions_with_resize = ["v3.channel.k8s.io", "v4.channel.k8s.io", "v5.channel.k8s.io"];
    let mut expected: Vec<&'static str> = vec!["error"];
    expected.extend(wanted.stdin.then_some("stdin"));
    expected.extend(wanted.stdout.then_some("stdout"));
    expected.extend((wanted.stderr && !wanted.tty).then_some("stderr"));
    expected.extend((wanted.tty && versions_with_resize.contains(&version)).then_some("resize"));
    let (mut stdin, mut resize, mut stdout, mut stderr, mut error) = (None, None, None, None, None);
    let collect = async {
        while !expected.is_empty() {
            let stream = connection.next().await?;
            let kind = stream.headers.get("streamtype").cloned().unwrap_or_default();
            expected.retain(|expected| *expected != kind);
            match kind.as_str() {
                "stdin" => stdin = Some(stream.data),
                "resize" => resize = Some(stream.data),
                "stdout" => stdout = Some(Out::Spdy(stream.writer)),
                "stderr" => stderr = Some(Out::Spdy(stream.writer)),
                "error" => error = Some(Out::Spdy(stream.writer)),
                _ => drop(stream.writer.reset().await),
            }
        }
        Some(())
    };
    tokio::time::timeout(STREAMS_TIME, collect).await.ok()??;
    let structured = matches!(version, "v4.channel.k8s.io" | "v5.channel.k8s.io");
    Some(Channels { stdin, resize, stdout, stderr, error: error?, structured, carrier: Carrier::Spdy(connection) })
}

pub fn over_websocket<S>(socket: WebSocketStream<S>, wanted: Wanted, version: &'static str) -> Channels
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let base64 = version.contains("base64");
    let (mut to_client, mut from_client) = socket.split();
    let (messages, mut to_send) = mpsc::channel::<Message>(WAITING_MAX);
    let (to_stdin, stdin) = mpsc::channel(WAITING_MAX);
    let (to_resize, resize) = mpsc::channel(WAITING_MAX);
    let sender = tokio::spawn(async move {
        while let Some(message) = to_send.recv().await {
            if to_client.send(message).await.is_err() {
                return;
            }
        }
        // Clients take any other code, and a close without one, for a stream that broke.
        let normal = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() };
        let _ = to_client.send(Message::Close(Some(normal))).await;
        websocket::close(&mut to_client).await;
    });
    let pongs = messages.downgrade();
    let reader = tokio::spawn(async move {
        let mut to_stdin = Some(to_stdin);
        while let Some(Ok(message)) = from_client.next().await {
            let frame = match message {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => text.into(),
                Message::Ping(bytes) => {
                    if let Some(messages) = pongs.upgrade() {
                        let _ = messages.send(Message::Pong(bytes)).await;
                    }
                    continue;
                }
                Message::Close(_) => return,
                _ => continue,
            };
            let Some(frame) = payload(frame, base64) else { return };
            let Some((channel, bytes)) = frame.split_first() else { continue };
            match (*channel, &to_stdin) {
                // Nobody reads it any more: then nobody misses it.
                (STDIN, Some(stdin)) if !bytes.is_empty() => drop(stdin.send(frame.slice(1..)).await),
                (RESIZE, _) => drop(to_resize.send(frame.slice(1..)).await),
                (CLOSE, _) if bytes == [STDIN] => to_stdin = None,
                _ => {}
            }
        }
    });
    let out = |channel| Out::WebSocket { channel, messages: messages.clone(), base64 };
    Channels {
        stdin: wanted.stdin.then_some(stdin),
        resize: wanted.tty.then_some(resize),
        stdout: wanted.stdout.then(|| out(STDOUT)),
        stderr: (wanted.stderr && !wanted.tty).then(|| out(STDERR)),
        error: out(ERROR),
        structured: version.starts_with("v4") || version.starts_with("v5"),
        carrier: Carrier::WebSocket { reader, sender },
    }
}

/// A client's frame as a channel and its bytes. It is the subprotocol and not the frame's type that says how they are
/// written: clients send text frames in binary subprotocols too (the Python client does). In base64 (`0aGVsbG8=`) the
/// channel is a digit.
pub(super) fn payload(frame: Bytes, base64: bool) -> Option<Bytes> {
    if !base64 || frame.is_empty() {
        return Some(frame);
    }
    let mut decoded = vec![frame.first()?.checked_sub(b'0')?];
    decoded.extend(STANDARD.decode(frame.get(1..)?).ok()?);
    Some(decoded.into())
}
