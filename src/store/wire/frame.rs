//! Cuts a stream into frames: a length, a kind, the number of the request, and a body.

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// The longest body. What is sent stays well below: a log entry is hardly longer than the largest Txn, a part of a
/// snapshot is cut to a fraction of it.
pub(crate) const BODY_BYTES_MAX: usize = 16 << 20;

/// Kind and request number.
const HEAD_BYTES: usize = 5;

/// Bodies up to this go before longer ones: a heartbeat does not wait behind a snapshot.
const URGENT_BYTES_MAX: usize = 4 << 10;

/// Frames that may wait to be written, of each kind.
const QUEUE_FRAMES: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Request = 1,
    Answer = 2,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) number: u32,
    pub(crate) body: Bytes,
}

/// The next frame, or `None` when the other end is through.
///
/// # Errors
/// `InvalidData` for what is no frame of ours, before anything of its size was allocated.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let mut head = [0; 4 + HEAD_BYTES];
    match stream.read(&mut head).await? {
        0 => return Ok(None),
        read => stream.read_exact(&mut head[read..]).await?,
    };
    let [a, b, c, d, kind, number @ ..] = head;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    let kind = match kind {
        1 => Kind::Request,
        2 => Kind::Answer,
        other => return Err(invalid(format!("frame of unknown kind {other}"))),
    };
    let Some(length) = length.checked_sub(HEAD_BYTES).filter(|length| *length <= BODY_BYTES_MAX) else {
        return Err(invalid(format!("frame of {length} bytes")));
    };
    // Grows with what arrives, not with what was promised.
    let mut body = Vec::with_capacity(length.min(64 << 10));
    stream.take(length as u64).read_to_end(&mut body).await?;
    if body.len() < length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    }
    Ok(Some(Frame { kind, number: u32::from_le_bytes(number), body: body.into() }))
}

fn invalid(detail: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, detail)
}

/// The way to the writing end of a connection. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    urgent: mpsc::Sender<Frame>,
    bulk: mpsc::Sender<Frame>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error("message of {bytes} bytes is longer than the limit of {BODY_BYTES_MAX}")]
    TooLong { bytes: usize },
    #[error("connection is closed")]
    Closed,
}

impl Outgoing {
    /// Queues a frame; waits while too much is queued. Frames of one urgency keep their order.
    pub(crate) async fn send(&self, frame: Frame) -> Result<(), SendError> {
        let bytes = frame.body.len();
        if bytes > BODY_BYTES_MAX {
            return Err(SendError::TooLong { bytes });
        }
        let queue = if bytes <= URGENT_BYTES_MAX { &self.urgent } else { &self.bulk };
        queue.send(frame).await.map_err(|_| SendError::Closed)
    }
}

/// What is to be written, for [`write`].
pub(crate) struct ToWrite {
    urgent: mpsc::Receiver<Frame>,
    bulk: mpsc::Receiver<Frame>,
}

pub(crate) fn queue() -> (Outgoing, ToWrite) {
    let (urgent, urgent_out) = mpsc::channel(QUEUE_FRAMES);
    let (bulk, bulk_out) = mpsc::channel(QUEUE_FRAMES);
    (Outgoing { urgent, bulk }, ToWrite { urgent: urgent_out, bulk: bulk_out })
}

/// Writes frames until `stop`, or all senders are gone, or the stream fails.
pub(crate) async fn write(
    stream: impl AsyncWrite + Unpin,
    mut frames: ToWrite,
    stop: CancellationToken,
) -> io::Result<()> {
    let mut stream = BufWriter::with_capacity(16 << 10, stream);
    loop {
        let next = match frames.urgent.try_recv() {
            Ok(frame) => Some(frame),
            Err(_) => frames.bulk.try_recv().ok(),
        };
        let next = match next {
            Some(frame) => frame,
            None => {
                // Nothing waits: what was written is to be seen by the other end.
                stream.flush().await?;
                let next = tokio::select! {
                    biased;
                    () = stop.cancelled() => None,
                    // Cancel-safe: a frame that was not taken stays queued.
                    frame = frames.urgent.recv() => frame,
                    frame = frames.bulk.recv() => frame,
                };
                match next {
                    Some(frame) => frame,
                    None => return stream.shutdown().await,
                }
            }
        };
        let length = (HEAD_BYTES + next.body.len()) as u32;
        stream.write_u32_le(length).await?;
        stream.write_u8(next.kind as u8).await?;
        stream.write_u32_le(next.number).await?;
        stream.write_all(&next.body).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn feed(bytes: &[u8]) -> io::Result<Option<Frame>> {
        let mut stream = bytes;
        read(&mut stream).await
    }

    #[tokio::test]
    async fn frames_come_out_as_they_went_in() {
        let (near, mut far) = tokio::io::duplex(100);
        let (outgoing, frames) = queue();
        let writer = tokio::spawn(write(near, frames, CancellationToken::new()));
        let long = Bytes::from(vec![7; 200_000]);
        for (number, body) in [(1, long.clone()), (2, Bytes::new()), (3, Bytes::from_static(b"abc"))] {
            outgoing.send(Frame { kind: Kind::Request, number, body }).await.unwrap();
        }
        let mut seen = Vec::new();
        for _ in 0..3 {
            let frame = read(&mut far).await.unwrap().unwrap();
            seen.push((frame.number, frame.body));
        }
        seen.sort_by_key(|(number, _)| *number);
        assert_eq!(seen, [(1, long), (2, Bytes::new()), (3, Bytes::from_static(b"abc"))]);
        drop(outgoing);
        writer.await.unwrap().unwrap();
        assert_eq!(read(&mut far).await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_is_no_frame_is_refused() {
        assert_eq!(feed(b"").await.unwrap(), None);
        for (bytes, kind) in [
            (&b"\x05\x00\x00\x00\x09aaaa"[..], io::ErrorKind::InvalidData),
            (b"\xff\xff\xff\xff\x01aaaa", io::ErrorKind::InvalidData),
            (b"\x00\x00\x00\x00\x01aaaa", io::ErrorKind::InvalidData),
            (b"GET / HTTP/1.1\r\n\r\n", io::ErrorKind::InvalidData),
            (b"\x05\x00", io::ErrorKind::UnexpectedEof),
            (b"\x09\x00\x00\x00\x01aaaabb", io::ErrorKind::UnexpectedEof),
        ] {
            assert_eq!(feed(bytes).await.unwrap_err().kind(), kind, "{bytes:?}");
        }
    }
}
