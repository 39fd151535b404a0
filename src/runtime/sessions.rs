//! Talking to running containers: further processes, their streams, and ports inside the pod.
//!
//! A session's pipes lead straight to the process or to the shim; whoever serves exec, attach and port-forward copies
//! between them and a client.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::time::Duration;

use mussel_cri::v1::NamespaceMode;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::SockType;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use crate::error::{Error, Result, Step};
use crate::pty::Pty;
use crate::records::State;
use crate::runtime::{Container, Runtime, new_id};
use crate::sandboxes::namespace_options;
use crate::shim::protocol::{Exec, Op};
use crate::shim::wire;
use crate::shim_client::Shim;
use crate::spec::exec_process;
use crate::watched::watch;

/// Output of ExecSync beyond this is cut, as other runtimes do.
const SYNC_OUTPUT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// After a process has ended, others may still hold its output. What they write is nobody's answer.
const SYNC_DRAIN: Duration = Duration::from_millis(500);

/// A terminal arrives within milliseconds of the process.
const CONSOLE_TIMEOUT: Duration = Duration::from_secs(5);

pub type Input = Pin<Box<dyn AsyncWrite + Send + Sync>>;
pub type Output = Pin<Box<dyn AsyncRead + Send + Sync>>;

/// Which streams a client wants. With a terminal, stderr is part of stdout.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// A process, or an attachment to one, with the streams that were wanted.
pub struct Session {
    /// Dropping it ends the input.
    pub stdin: Option<Input>,
    pub stdout: Option<Output>,
    pub stderr: Option<Output>,
    pub terminal: Option<Terminal>,
    /// The exit code of a further process; nothing for an attachment, which ends with its output.
    pub exit: Option<oneshot::Receiver<i32>>,
    process: Option<(Shim, String, String)>,
}

/// Changes the size of a session's terminal.
#[derive(Clone)]
pub enum Terminal {
    Own(Pty),
    /// The container's, which the shim holds.
    OfContainer(Runtime, String),
}

impl Terminal {
    pub async fn resize(&self, width: u16, height: u16) -> Result<()> {
        match self {
            Terminal::Own(pty) => pty.resize(width, height).step("resize terminal"),
            Terminal::OfContainer(runtime, id) => {
                let container = runtime.container(id)?;
                let op = Op::Resize { container: container.id.clone(), width, height };
                container.sandbox.shim()?.request("resize terminal", op, Vec::new()).await.map(drop)
            }
        }
    }
}

impl Session {
    /// Kills the process. An attachment has none.
    pub async fn kill(&self) -> Result<()> {
        let Some((shim, container, exec)) = &self.process else { return Ok(()) };
        let op = Op::Signal { container: container.clone(), exec: Some(exec.clone()), signal: libc::SIGKILL };
        shim.request("kill process", op, Vec::new()).await.map(drop)
    }
}

/// One pipe: our end for tokio, the other for the process.
fn output() -> io::Result<(Output, OwnedFd)> {
    let (write, read) = pipe::pipe()?;
    Ok((Box::pin(read), write.into_blocking_fd()?))
}

fn input() -> io::Result<(Input, OwnedFd)> {
    let (write, read) = pipe::pipe()?;
    Ok((Box::pin(write), read.into_blocking_fd()?))
}

impl Runtime {
    fn running(&self, id: &str) -> Result<std::sync::Arc<Container>> {
        let container = self.container(id)?;
        if container.record().state != State::Running {
            return Err(Error::State(format!("container {} is not running", container.id)));
        }
        Ok(container)
    }

    /// Runs one more process in a container, as its user and with its limits.
    pub async fn exec(&self, id: &str, command: &[String], wanted: Wanted) -> Result<Session> {
        if command.is_empty() {
            return Err(Error::Invalid("no command specified".into()));
        }
        let container = self.running(id)?;
        let shim = container.sandbox.shim()?;
        let record = container.record();
        let exec = new_id();
        let bundle = self.bundle(&container.id);
        let spec = fs::read(bundle.join("config.json")).step("read spec")?;
        let spec: serde_json::Value = serde_json::from_slice(&spec).map_err(io::Error::from).step("read spec")?;
        let document = exec_process(&spec["process"], command, wanted.tty);
        let path = bundle.join(format!("exec-{exec}.json"));
        let text = serde_json::to_vec(&document).map_err(io::Error::from).step("encode process")?;
        fs::write(&path, text).step("write process")?;

        let mut session =
            Session { stdin: None, stdout: None, stderr: None, terminal: None, exit: None, process: None };
        let mut fds = Vec::new();
        let console_name = format!("exec-{exec}.sock");
        let mut console = None;
        if wanted.tty {
            let listener = wire::listen(&bundle, &console_name, SockType::Stream).step("listen for a terminal")?;
            console = Some(watch(listener).step("listen for a terminal")?);
        } else {
            if wanted.stdin {
                let (ours, theirs) = input().step("create stdin")?;
                session.stdin = Some(ours);
                fds.push(theirs);
            }
            for (wanted, slot) in [(wanted.stdout, &mut session.stdout), (wanted.stderr, &mut session.stderr)] {
                if wanted {
                    let (ours, theirs) = output().step("create output")?;
                    *slot = Some(ours);
                    fds.push(theirs);
                }
            }
        }
        let request = Exec {
            container: container.id.clone(),
            exec: exec.clone(),
            process: path.clone(),
            console: wanted.tty.then(|| bundle.join(&console_name)),
            stdin: wanted.stdin && !wanted.tty,
            stdout: wanted.stdout && !wanted.tty,
            stderr: wanted.stderr && !wanted.tty,
            uid: record.uid,
            gid: record.gid,
        };
        session.exit = Some(shim.watch_exec(&exec));
        let started = shim.request("exec", Op::Exec(request), fds).await;
        let _ = fs::remove_file(&path);
        let master = match (&started, &console) {
            (Ok(_), Some(listener)) => {
                let master = tokio::time::timeout(CONSOLE_TIMEOUT, receive_console(listener)).await;
                Some(master.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())))
            }
            _ => None,
        };
        let _ = fs::remove_file(bundle.join(&console_name));
        if let Err(error) = started {
            shim.forget_exec(&exec);
            return Err(exec_error(error, command));
        }
        session.process = Some((shim, container.id.clone(), exec));
        if let Some(master) = master {
            let pty = Pty::new(master.step("receive terminal")?).step("receive terminal")?;
            session.stdin = wanted.stdin.then(|| Box::pin(pty.clone()) as Input);
            session.stdout = Some(Box::pin(pty.clone()));
            session.terminal = Some(Terminal::Own(pty));
        }
        Ok(session)
    }

    /// Runs a process to its end. `timeout` zero waits for ever.
    pub(crate) async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<(Vec<u8>, Vec<u8>, i32)> {
        let wanted = Wanted { stdout: true, stderr: true, ..Wanted::default() };
        let mut session = self.exec(id, command, wanted).await?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let (out, err) = (session.stdout.take(), session.stderr.take());
        let exit = session.exit.take();
        let run = async {
            let mut read = Box::pin(async {
                tokio::join!(read_bounded(out, &mut stdout), read_bounded(err, &mut stderr));
            });
            let exit = async {
                match exit {
                    Some(exit) => exit.await.map_err(|_| Error::State("the container's shim has gone".into())),
                    None => Err(Error::State("the process has no exit".into())),
                }
            };
            tokio::pin!(exit);
            tokio::select! {
                () = &mut read => exit.await,
                code = &mut exit => {
                    let _ = tokio::time::timeout(SYNC_DRAIN, read).await;
                    code
                }
            }
        };
        let code = if timeout.is_zero() {
            run.await?
        } else {
            match tokio::time::timeout(timeout, run).await {
                Ok(code) => code?,
                Err(_) => {
                    session.kill().await?;
                    let text = format!("command {command:?} timed out after {} s", timeout.as_secs());
                    return Err(Error::Deadline(text));
                }
            }
        };
        Ok((stdout, stderr, code))
    }

    /// Joins the streams of a container's first process.
    pub async fn attach(&self, id: &str, wanted: Wanted) -> Result<Session> {
        let container = self.running(id)?;
        let config = container.record().config.0;
        let mut session =
            Session { stdin: None, stdout: None, stderr: None, terminal: None, exit: None, process: None };
        let mut fds = Vec::new();
        let stdin = wanted.stdin && config.stdin;
        let stderr = wanted.stderr && !config.tty;
        if stdin {
            let (ours, theirs) = input().step("create stdin")?;
            session.stdin = Some(ours);
            fds.push(theirs);
        }
        for (wanted, slot) in [(wanted.stdout, &mut session.stdout), (stderr, &mut session.stderr)] {
            if wanted {
                let (ours, theirs) = output().step("create output")?;
                *slot = Some(ours);
                fds.push(theirs);
            }
        }
        let op = Op::Attach { container: container.id.clone(), stdin, stdout: wanted.stdout, stderr };
        container.sandbox.shim()?.request("attach", op, fds).await?;
        session.terminal = config.tty.then(|| Terminal::OfContainer(self.clone(), container.id.clone()));
        Ok(session)
    }

    /// Whether a container has a terminal.
    pub fn has_terminal(&self, id: &str) -> Result<bool> {
        Ok(self.container(id)?.record().config.0.tty)
    }

    /// Connects to a port on the pod's loopback interface.
    pub async fn port_forward(&self, sandbox: &str, port: u16) -> Result<TcpStream> {
        let sandbox = self.sandbox(sandbox)?;
        let record = sandbox.record();
        if !record.ready {
            return Err(Error::State(format!("sandbox {} is not running", sandbox.id)));
        }
        let host_network = namespace_options(&record.config.0).network() == NamespaceMode::Node;
        let netns = record.netns.filter(|_| !host_network);
        let connect = move || -> io::Result<std::net::TcpStream> {
            if let Some(netns) = netns {
                setns(fs::File::open(netns)?, CloneFlags::CLONE_NEWNET)?;
            }
            let v4 = std::net::TcpStream::connect(("127.0.0.1", port));
            // Some servers listen on IPv6 alone.
            v4.or_else(|error| std::net::TcpStream::connect(("::1", port)).map_err(|_| error))
        };
        // A thread of its own, since it changes its network namespace and must not be used again.
        let (sender, receiver) = oneshot::channel();
        std::thread::spawn(move || sender.send(connect()));
        let stream = receiver.await.unwrap_or_else(|_| Err(io::Error::other("the connecting thread panicked")));
        let stream = stream.step(format!("connect to port {port} of the pod"))?;
        stream.set_nonblocking(true).step("prepare connection")?;
        TcpStream::from_std(stream).step("prepare connection")
    }
}

async fn receive_console(listener: &tokio::io::unix::AsyncFd<OwnedFd>) -> io::Result<OwnedFd> {
    let interest = tokio::io::Interest::READABLE;
    let stream = listener.async_io(interest, wire::accept).await?;
    let stream = watch(stream)?;
    stream.async_io(interest, wire::receive_console).await
}

/// Reads to the end, keeping only the start of what is too much.
async fn read_bounded(stream: Option<Output>, into: &mut Vec<u8>) {
    let Some(mut stream) = stream else { return };
    let mut chunk = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = stream.read(&mut chunk).await {
        let room = SYNC_OUTPUT_BYTES_MAX - into.len();
        into.extend_from_slice(&chunk[..length.min(room)]);
    }
}

/// A missing program is told in the words that clients look for.
fn exec_error(error: Error, command: &[String]) -> Error {
    match error {
        Error::Shim { message, .. } if message.contains("not found in $PATH") => {
            let name = command.first().map(String::as_str).unwrap_or_default();
            let why = if name.contains('/') {
                format!("stat {name}: no such file or directory")
            } else {
                "executable file not found in $PATH".to_owned()
            };
            Error::Shim {
                step: "failed to exec in container",
                message: format!(
                    "OCI runtime exec failed: exec failed: unable to start container process: exec: {name:?}: {why}: unknown"
                ),
            }
        }
        error => error,
    }
}
