//! The runtime's side of the connection to one shim.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, Interest};
use tokio::sync::oneshot;

use crate::error::{Error, Result, Step};
use crate::shim::protocol::{Answer, CONFIG, Exit, Hello, Message, Op, Request, SOCKET, ShimConfig, VERSION};
use crate::shim::wire;
use crate::watched::watch;

/// A shim that takes longer to come up, or to greet, is not healthy. Both are a matter of milliseconds.
const GREETING_TIMEOUT: Duration = Duration::from_secs(20);

/// Longest answer of a starting shim; it is an error message.
const REPORT_BYTES_MAX: u64 = 64 * 1024;

/// What a shim tells without being asked.
#[derive(Debug)]
pub enum ShimEvent {
    Exited(Exit),
    /// The connection has ended, and with it, most likely, the shim.
    Gone,
}

type Replies = HashMap<u64, oneshot::Sender<std::result::Result<Answer, String>>>;

struct Shared {
    dir: PathBuf,
    socket: AsyncFd<OwnedFd>,
    /// `None` when the connection has ended.
    replies: Mutex<Option<Replies>>,
    execs: Mutex<HashMap<String, oneshot::Sender<i32>>>,
    next: AtomicU64,
}

/// A connection to a live shim. Clones share it.
#[derive(Clone)]
pub struct Shim(Arc<Shared>);

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a shim in `dir` and waits until it is the sandbox. On an error no process is left.
pub async fn spawn(exe: &Path, dir: &Path, config: &ShimConfig) -> Result<()> {
    let text = serde_json::to_vec(config).map_err(io::Error::from).step("encode shim config")?;
    std::fs::create_dir_all(dir).step(format!("create {}", dir.display()))?;
    std::fs::write(dir.join(CONFIG), text).step("write shim config")?;
    let log = std::fs::File::options().create(true).append(true).open(dir.join("shim.log")).step("open shim log")?;
    let mut child = tokio::process::Command::new(exe)
        .arg0("mussel-shim")
        .arg("shim")
        .arg("--dir")
        .arg(dir)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .kill_on_drop(false)
        .spawn()
        .step(format!("start {}", exe.display()))?;
    let mut report = String::new();
    let stdout = child.stdout.take();
    let read = async {
        match stdout {
            Some(stdout) => stdout.take(REPORT_BYTES_MAX).read_to_string(&mut report).await,
            None => Ok(0),
        }
    };
    let read = tokio::time::timeout(GREETING_TIMEOUT, read).await;
    if matches!(read, Ok(Ok(_))) && report == "ok" {
        // Reaps it one day; if we are gone by then, init does.
        tokio::spawn(async move { child.wait().await });
        return Ok(());
    }
    let _ = child.kill().await;
    let message = match read {
        Err(_) => "it did not come up in time".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Ok(Ok(_)) if report.is_empty() => "it ended without a word; see shim.log".to_owned(),
        Ok(Ok(_)) => report,
    };
    Err(Error::Shim { step: "start shim", message })
}

impl Shim {
    /// Connects to the shim in `dir`. Events go to `on_event`, in order, until [`ShimEvent::Gone`].
    pub async fn connect(dir: &Path, on_event: impl Fn(ShimEvent) + Send + Sync + 'static) -> Result<(Shim, Hello)> {
        let socket = wire::connect(dir, SOCKET).and_then(watch).map_err(|_| Error::ShimGone(dir.to_owned()))?;
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            socket,
            replies: Mutex::new(Some(HashMap::new())),
            execs: Mutex::new(HashMap::new()),
            next: AtomicU64::new(1),
        });
        let hello = match tokio::time::timeout(GREETING_TIMEOUT, shared.receive()).await {
            Ok(Ok(Some(Message::Hello(hello)))) => hello,
            Ok(Ok(None) | Err(_)) => return Err(Error::ShimGone(dir.to_owned())),
            Ok(Ok(_)) => return Err(Error::Shim { step: "greet shim", message: "it said something else".into() }),
            Err(_) => return Err(Error::Shim { step: "greet shim", message: "it does not answer".into() }),
        };
        if hello.version > VERSION {
            let message = format!("it speaks version {}, which is newer than {VERSION}", hello.version);
            return Err(Error::Shim { step: "greet shim", message });
        }
        let reader = shared.clone();
        // Ends with the connection.
        tokio::spawn(async move {
            loop {
                match reader.receive().await {
                    Ok(Some(message)) => reader.dispatch(message, &on_event),
                    Ok(None) => break,
                    Err(error) if error.kind() == ErrorKind::InvalidData => {
                        tracing::warn!(dir = %reader.dir.display(), %error, "message from shim not understood");
                    }
                    Err(_) => break,
                }
            }
            drop(lock(&reader.replies).take());
            lock(&reader.execs).clear();
            on_event(ShimEvent::Gone);
        });
        Ok((Shim(shared), hello))
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Cancel safety
    /// The shim does what was asked even if nobody waits.
    pub async fn request(&self, step: &'static str, op: Op, fds: Vec<OwnedFd>) -> Result<Answer> {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        match lock(&self.0.replies).as_mut() {
            Some(replies) => drop(replies.insert(id, sender)),
            None => return Err(self.gone()),
        }
        let text = serde_json::to_vec(&Request { id, op }).map_err(io::Error::from).step("encode request")?;
        if text.len() > crate::shim::protocol::MESSAGE_BYTES_MAX {
            return Err(Error::Shim { step, message: "the request is too long".into() });
        }
        let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let sent = self.0.socket.async_io(Interest::WRITABLE, |socket| wire::send(socket, &text, &raw)).await;
        drop(fds);
        if sent.is_err() {
            return Err(self.gone());
        }
        match receiver.await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(message)) => Err(Error::Shim { step, message }),
            Err(_) => Err(self.gone()),
        }
    }

    /// Where the exit code of a process will come; to be called before the process is asked for.
    pub fn watch_exec(&self, exec: &str) -> oneshot::Receiver<i32> {
        let (sender, receiver) = oneshot::channel();
        lock(&self.0.execs).insert(exec.to_owned(), sender);
        receiver
    }

    pub fn forget_exec(&self, exec: &str) {
        lock(&self.0.execs).remove(exec);
    }

    fn gone(&self) -> Error {
        Error::ShimGone(self.0.dir.clone())
    }
}

impl Shared {
    /// `None` at the end of the connection.
    async fn receive(&self) -> io::Result<Option<Message>> {
        let mut buffer = Vec::new();
        self.socket.async_io(Interest::READABLE, |socket| wire::receive(socket, &mut buffer)).await?;
        if buffer.is_empty() {
            return Ok(None);
        }
        serde_json::from_slice(&buffer).map(Some).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
    }

    fn dispatch(&self, message: Message, on_event: &impl Fn(ShimEvent)) {
        match message {
            Message::Reply { id, result } => {
                let sender = lock(&self.replies).as_mut().and_then(|replies| replies.remove(&id));
                // Nobody may be waiting any more.
                let _ = sender.map(|sender| sender.send(result));
            }
            Message::Exited(exit) => on_event(ShimEvent::Exited(exit)),
            Message::ExecExited { exec, code } => {
                let _ = lock(&self.execs).remove(&exec).map(|sender| sender.send(code));
            }
            Message::Hello(_) => {}
        }
    }
}
