//! WebSocket (RFC 6455) after the handshake, and SPDY tunnelled through it.

use bytes::Bytes;
use futures::{Sink, SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};

/// Versions of the remote command protocol over WebSocket, the newest first.
pub const REMOTE: [&str; 5] =
    ["v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io"];
/// A whole SPDY connection in binary messages (KEP-4006).
pub const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
pub const FORWARD: [&str; 3] = [TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io"];

const MESSAGE_BYTES_MAX: usize = 1 << 20;
const PIECE_BYTES: usize = 32 << 10;

pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(io: S) -> WebSocketStream<S> {
    let config =
        WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES_MAX)).max_frame_size(Some(MESSAGE_BYTES_MAX));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// Says that all went well. Clients take a close without a code for an error.
pub async fn close(socket: &mut (impl Sink<Message> + Unpin)) {
    let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    // A client that is gone needs no farewell.
    let _ = socket.send(Message::Close(Some(frame))).await;
    let _ = socket.close().await;
}

/// The bytes inside the messages, as a stream of their own.
pub async fn tunnel(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> DuplexStream {
    let (mut to_client, mut from_client) = accept(io).await.split();
    let (inside, outside) = tokio::io::duplex(2 * PIECE_BYTES);
    let (mut from_inside, mut to_inside) = tokio::io::split(outside);
    tokio::spawn(async move {
        while let Some(Ok(message)) = from_client.next().await {
            match message {
                Message::Binary(bytes) if to_inside.write_all(&bytes).await.is_err() => return,
                Message::Text(text) if to_inside.write_all(text.as_bytes()).await.is_err() => return,
                Message::Close(_) => break,
                _ => {}
            }
        }
        // Whether it has been closed already does not matter.
        let _ = to_inside.shutdown().await;
    });
    tokio::spawn(async move {
        let mut buffer = vec![0; PIECE_BYTES];
        while let Ok(count @ 1..) = from_inside.read(&mut buffer).await {
            if to_client.send(Message::Binary(Bytes::copy_from_slice(&buffer[..count]))).await.is_err() {
                return;
            }
        }
        close(&mut to_client).await;
    });
    inside
}
