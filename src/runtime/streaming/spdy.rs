//! SPDY/3.1 (the draft of that number), as far as Kubernetes' clients use it: streams with headers, data, half-close.
//!
//! Those clients know no flow control windows, so there are none here; TCP holds back who sends too fast.

mod headers;

use std::collections::{BTreeMap, HashMap};
use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use headers::{Compressor, Decompressor};

pub const NAME: &str = "SPDY/3.1";
/// Versions of the remote command protocol, the newest first.
pub const REMOTE: [&str; 5] =
    ["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

const FRAME_BYTES_MAX: usize = 1 << 20;
const DATA_BYTES_MAX: usize = 32 << 10;
/// Frames that wait to be sent, and pieces of data that wait to be read from one stream.
const WAITING_MAX: usize = 32;
const STREAMS_MAX: usize = 1024;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FLAG_FIN: u8 = 1;
const RESET_REFUSED: u32 = 3;
const RESET_CANCEL: u32 = 5;

enum Frame {
    Reply(u32),
    Data { stream: u32, bytes: Bytes, last: bool },
    Reset { stream: u32, status: u32 },
    Ping(u32),
}

/// A stream that the client opened.
pub struct Stream {
    pub headers: BTreeMap<String, String>,
    /// What the client sends; ends when it half-closes.
    pub data: mpsc::Receiver<Bytes>,
    pub writer: Writer,
}

/// Our direction of a stream.
#[derive(Clone)]
pub struct Writer {
    stream: u32,
    frames: mpsc::Sender<Frame>,
}

/// The client is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

impl Writer {
    pub async fn write(&self, mut bytes: Bytes) -> Result<(), Gone> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(DATA_BYTES_MAX));
            self.send(Frame::Data { stream: self.stream, bytes: piece, last: false }).await?;
        }
        Ok(())
    }

    /// Ends our direction.
    pub async fn close(&self) -> Result<(), Gone> {
        self.send(Frame::Data { stream: self.stream, bytes: Bytes::new(), last: true }).await
    }

    /// Ends both directions.
    pub async fn reset(&self) -> Result<(), Gone> {
        self.send(Frame::Reset { stream: self.stream, status: RESET_CANCEL }).await
    }

    async fn send(&self, frame: Frame) -> Result<(), Gone> {
        self.frames.send(frame).await.map_err(|_| Gone)
    }
}

/// A connection on which the client opens streams. They end with it.
pub struct Connection {
    streams: mpsc::Receiver<Stream>,
    reader: JoinHandle<()>,
    /// Ends by itself when everything is sent and nobody can send any more.
    sender: JoinHandle<()>,
}

impl Connection {
    pub fn new(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        let (reader, writer) = tokio::io::split(io);
        let (frames, to_send) = mpsc::channel(WAITING_MAX);
        let (opened, streams) = mpsc::channel(WAITING_MAX);
        let sender = tokio::spawn(async move {
            if let Err(error) = send(writer, to_send).await {
                tracing::debug!(%error, "client takes no more");
            }
        });
        let reader = tokio::spawn(async move {
            if let Err(error) = receive(reader, frames, opened).await {
                tracing::debug!(%error, "client sends no more");
            }
        });
        Self { streams, reader, sender }
    }

    /// The next stream that the client opens; `None` when it is gone.
    pub async fn next(&mut self) -> Option<Stream> {
        self.streams.recv().await
    }

    /// Resolves when the client is gone.
    pub async fn gone(&mut self) {
        while self.streams.recv().await.is_some() {}
    }

    /// Sends what is waiting, then closes. All writers have to be dropped before.
    pub async fn finish(mut self) {
        self.reader.abort();
        // Cannot wait for ever: the other end reads or is gone.
        let _ = tokio::time::timeout(std::time::Duration::from_secs(10), &mut self.sender).await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn send(mut io: impl AsyncWrite + Unpin, mut frames: mpsc::Receiver<Frame>) -> io::Result<()> {
    let mut compressor = Compressor::new()?;
    let mut out = BytesMut::new();
    while let Some(frame) = frames.recv().await {
        out.clear();
        match frame {
            Frame::Reply(stream) => {
                let block = compressor.compress(&BTreeMap::new())?;
                control(&mut out, SYN_REPLY, 0, 4 + block.len());
                out.put_u32(stream);
                out.put_slice(&block);
            }
            Frame::Data { stream, bytes, last } => {
                out.put_u32(stream);
                out.put_u8(if last { FLAG_FIN } else { 0 });
                out.put_uint(bytes.len() as u64, 3);
                out.put_slice(&bytes);
            }
            Frame::Reset { stream, status } => {
                control(&mut out, RST_STREAM, 0, 8);
                out.put_u32(stream);
                out.put_u32(status);
            }
            Frame::Ping(id) => {
                control(&mut out, PING, 0, 4);
                out.put_u32(id);
            }
        }
        io.write_all(&out).await?;
        if frames.is_empty() {
            io.flush().await?;
        }
    }
    io.shutdown().await
}

fn control(out: &mut BytesMut, kind: u16, flags: u8, length: usize) {
    out.put_u16(0x8003);
    out.put_u16(kind);
    out.put_u8(flags);
    out.put_uint(length as u64, 3);
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Reads frames until the client ends, and hands out what they carry.
async fn receive(
    mut io: impl AsyncRead + Unpin,
    frames: mpsc::Sender<Frame>,
    opened: mpsc::Sender<Stream>,
) -> io::Result<()> {
    let mut decompressor = Decompressor::new();
    let mut open: HashMap<u32, mpsc::Sender<Bytes>> = HashMap::new();
    loop {
        let mut head = [0; 8];
        match io.read_exact(&mut head).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            read => read.map(drop)?,
        }
        let word = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let (flags, length) = (head[4], u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize);
        if length > FRAME_BYTES_MAX {
            return Err(invalid("frame is too long"));
        }
        let mut body = vec![0; length];
        io.read_exact(&mut body).await?;
        let number = |at: usize| {
            body.get(at..at + 4).map(|four| u32::from_be_bytes([four[0], four[1], four[2], four[3]]) & 0x7fff_ffff)
        };
        if word & 0x8000_0000 == 0 {
            data(&mut open, &frames, word, body.into(), flags & FLAG_FIN != 0).await;
            continue;
        }
        let kind = (word & 0xffff) as u16;
        match kind {
            SYN_STREAM => {
                let id = number(0).ok_or_else(|| invalid("short frame"))?;
                let block = body.get(10..).ok_or_else(|| invalid("short frame"))?;
                // Always read, because the compression goes on from block to block.
                let headers = decompressor.decompress(block)?;
                if open.len() >= STREAMS_MAX || open.contains_key(&id) {
                    let _ = frames.send(Frame::Reset { stream: id, status: RESET_REFUSED }).await;
                    continue;
                }
                let (to_stream, data) = mpsc::channel(WAITING_MAX);
                if flags & FLAG_FIN == 0 {
                    open.insert(id, to_stream);
                }
                let writer = Writer { stream: id, frames: frames.clone() };
                if frames.send(Frame::Reply(id)).await.is_err()
                    || opened.send(Stream { headers, data, writer }).await.is_err()
                {
                    return Ok(());
                }
            }
            RST_STREAM => drop(number(0).and_then(|id| open.remove(&id))),
            PING => {
                if let Some(id) = number(0) {
                    let _ = frames.send(Frame::Ping(id)).await;
                }
            }
            GOAWAY => return Ok(()),
            // Headers, settings and windows have no use here.
            _ => {}
        }
    }
}

async fn data(
    open: &mut HashMap<u32, mpsc::Sender<Bytes>>,
    frames: &mpsc::Sender<Frame>,
    id: u32,
    bytes: Bytes,
    last: bool,
) {
    let Some(stream) = open.get(&id) else { return };
    if !bytes.is_empty() && stream.send(bytes).await.is_err() {
        // Nobody reads it any more. The client need not send the rest.
        open.remove(&id);
        let _ = frames.send(Frame::Reset { stream: id, status: RESET_CANCEL }).await;
        return;
    }
    if last {
        open.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client sends to open a stream.
    fn open(compressor: &mut Compressor, id: u32, kind: &str) -> BytesMut {
        let block = compressor.compress(&[("streamtype".to_owned(), kind.to_owned())].into()).unwrap();
        let mut out = BytesMut::new();
        control(&mut out, SYN_STREAM, 0, 10 + block.len());
        out.put_u32(id);
        out.put_u32(0);
        out.put_u16(0);
        out.put_slice(&block);
        out
    }

    #[tokio::test]
    async fn streams_carry_data_both_ways() {
        let (client, server) = tokio::io::duplex(1 << 16);
        let mut connection = Connection::new(server);
        let (mut from_server, mut to_server) = tokio::io::split(client);
        let mut compressor = Compressor::new().unwrap();
        for (id, kind) in [(1, "error"), (3, "stdout")] {
            to_server.write_all(&open(&mut compressor, id, kind)).await.unwrap();
        }
        let mut frame = BytesMut::new();
        frame.put_u32(3);
        frame.put_u8(FLAG_FIN);
        frame.put_uint(5, 3);
        frame.put_slice(b"hello");
        to_server.write_all(&frame).await.unwrap();

        let error = connection.next().await.unwrap();
        let mut stdout = connection.next().await.unwrap();
        assert_eq!(error.headers["streamtype"], "error");
        assert_eq!(stdout.headers["streamtype"], "stdout");
        assert_eq!(stdout.data.recv().await.unwrap(), "hello");
        assert!(stdout.data.recv().await.is_none(), "the client has half-closed");
        stdout.writer.write(Bytes::from_static(b"back")).await.unwrap();
        stdout.writer.close().await.unwrap();
        drop((error, stdout));
        let finish = tokio::spawn(connection.finish());

        let mut received = Vec::new();
        to_server.shutdown().await.unwrap();
        from_server.read_to_end(&mut received).await.unwrap();
        finish.await.unwrap();
        let data = [0, 0, 0, 3, 0, 0, 0, 4, b'b', b'a', b'c', b'k', 0, 0, 0, 3, 1, 0, 0, 0];
        assert!(received.ends_with(&data), "{received:?}");
    }

    #[tokio::test]
    async fn a_frame_that_is_too_long_ends_the_connection() {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let mut connection = Connection::new(server);
        client.write_all(&[0, 0, 0, 1, 0, 0xff, 0xff, 0xff]).await.unwrap();
        assert!(connection.next().await.is_none());
    }
}
