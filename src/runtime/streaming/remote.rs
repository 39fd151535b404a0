//! Copies between a client's channels and a process, and says how it ended.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::channels::{Channels, Out};
use crate::error::{Error, chain};
use crate::sessions::{Input, Output, Session, Terminal};

const PIECE_BYTES: usize = 32 << 10;
/// After the process has ended, others that hold its output get this long to finish.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// How a session ended.
enum Outcome {
    Exited(i32),
    Failed(String),
}

pub async fn run(started: Result<Session, Error>, channels: Channels) {
    let Channels { stdin, resize, stdout, stderr, error, structured, mut carrier } = channels;
    let outcome = match started {
        Err(error) => {
            // There is no output to wait for: what would carry it must not hold the connection open.
            for out in [stdout, stderr].into_iter().flatten() {
                out.close().await;
            }
            Some(Outcome::Failed(chain(&error)))
        }
        Ok(mut session) => {
            let terminal = session.terminal.clone();
            let input = copy_in(stdin, session.stdin.take());
            let sizes = resize_all(resize, terminal);
            let output = async {
                tokio::join!(copy_out(session.stdout.take(), stdout), copy_out(session.stderr.take(), stderr));
            };
            tokio::pin!(output);
            let ended = async {
                match session.exit.take() {
                    // The process first; its output ends with it, unless others hold it.
                    Some(exit) => {
                        tokio::pin!(exit);
                        let code = tokio::select! {
                            code = &mut exit => { let _ = tokio::time::timeout(DRAIN_TIME, &mut output).await; code }
                            () = &mut output => exit.await,
                        };
                        match code {
                            Ok(code) => Outcome::Exited(code),
                            Err(_) => Outcome::Failed("the container's shim ended".to_owned()),
                        }
                    }
                    None => {
                        output.await;
                        Outcome::Exited(0)
                    }
                }
            };
            tokio::select! {
                ended = ended => Some(ended),
                // Neither ends the session: input may end long before the output does.
                () = async { tokio::join!(input, sizes); std::future::pending().await } => None,
                // Dropping the session closes the pipes, as a terminal that is closed does.
                () = carrier.gone() => None,
            }
        }
    };
    if let Some(outcome) = outcome {
        let text = if structured { structured_status(&outcome) } else { plain_status(&outcome) };
        if !text.is_empty() {
            let _ = error.write(Bytes::from(text)).await;
        }
    }
    error.close().await;
    drop(error);
    carrier.finish().await;
}

async fn copy_in(from: Option<mpsc::Receiver<Bytes>>, to: Option<Input>) {
    let (Some(mut from), Some(mut to)) = (from, to) else { return };
    while let Some(bytes) = from.recv().await {
        // A process that reads no more has closed its input; what comes is for nobody.
        if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

fn copy_out(from: Option<Output>, to: Option<Out>) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        if let Some(from) = from {
            copy(from, to).await;
        }
    })
}

async fn copy(mut from: Output, to: Option<Out>) {
    let mut buffer = BytesMut::with_capacity(PIECE_BYTES);
    loop {
        buffer.reserve(PIECE_BYTES);
        match from.read_buf(&mut buffer).await {
            // A terminal says EIO when the last process has left it.
            Ok(0) | Err(_) => break,
            Ok(_) => {
                let piece = buffer.split().freeze();
                if let Some(to) = &to
                    && to.write(piece).await.is_err()
                {
                    return;
                }
            }
        }
    }
    if let Some(to) = to {
        to.close().await;
    }
}

#[derive(Deserialize)]
struct Size {
    #[serde(rename = "Width")]
    width: u16,
    #[serde(rename = "Height")]
    height: u16,
}

async fn resize_all(sizes: Option<mpsc::Receiver<Bytes>>, terminal: Option<Terminal>) {
    let (Some(mut sizes), Some(terminal)) = (sizes, terminal) else { return };
    while let Some(bytes) = sizes.recv().await {
        // Several may have come in one piece; the last one counts, but all are harmless.
        let sizes: Vec<Size> = serde_json::Deserializer::from_slice(&bytes).into_iter().flatten().take(64).collect();
        for size in sizes {
            if let Err(error) = terminal.resize(size.width, size.height).await {
                tracing::debug!(%error, "terminal is not resized");
            }
        }
    }
}

/// What clients since version 4 expect on the error channel.
fn structured_status(outcome: &Outcome) -> String {
    let status = match outcome {
        Outcome::Exited(0) => json!({"metadata": {}, "status": "Success"}),
        Outcome::Exited(code) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Outcome::Failed(reason) => json!({
            "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
            "message": format!("Internal error occurred: error executing command in container: {reason}"),
            "details": {"causes": [{"message": format!("error executing command in container: {reason}")}]},
        }),
    };
    status.to_string()
}

fn plain_status(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Exited(0) => String::new(),
        Outcome::Exited(code) => format!("command terminated with non-zero exit code: exit status {code}"),
        Outcome::Failed(reason) => format!("error executing command in container: {reason}"),
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::protocol::{Message, Role};

    use super::*;
    use crate::sessions::Wanted;
    use crate::streaming::channels::over_websocket;
    use crate::streaming::websocket::accept;

    /// The time is the runtime's own, which passes only when nothing else is to be done.
    #[tokio::test(start_paused = true)]
    async fn what_could_not_start_is_said_at_once() {
        let (server, client) = tokio::io::duplex(64 << 10);
        let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        let wanted = Wanted { stdin: true, stdout: true, stderr: true, tty: false };
        let channels = over_websocket(accept(server).await, wanted, "v5.channel.k8s.io");
        let began = tokio::time::Instant::now();
        let served = tokio::spawn(run(Err(Error::State("no such program".into())), channels));
        let Some(Ok(Message::Binary(said))) = client.next().await else { panic!("nothing was said") };
        assert!(said[0] == 3 && String::from_utf8_lossy(&said).contains("no such program"), "{said:?}");
        assert!(matches!(client.next().await, Some(Ok(Message::Close(_)))));
        served.await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
