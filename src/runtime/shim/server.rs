//! The loop of the shim: waits for requests, for streams and for children, and never blocks on any of them.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::SockType;
use nix::unistd::{Pid, pipe2};

use super::launch::{self, Launch, Stdio};
use super::log::Log;
use super::protocol::{
    Answer, ContainerState, Exec, Exit, Hello, MESSAGE_BYTES_MAX, Message, Op, Request, SOCKET, Start, VERSION,
};
use super::streams::{Kind, Slot, Streams};
use super::wire;

/// Connections at a time: the server, and perhaps one that is just being replaced.
const CONNECTIONS_MAX: usize = 8;

/// Messages that may wait for a server that does not read. It is then cut off, and learns all from the next hello.
const OUTBOX_MAX: usize = 1024;

struct Connection {
    id: u64,
    fd: OwnedFd,
    outbox: VecDeque<Vec<u8>>,
    open: bool,
}

struct Container {
    start: Start,
    pid: Option<Pid>,
    started_at: i64,
    streams: Streams,
    exit: Option<Exit>,
}

/// What a fork is making, and who wants to know.
enum Making {
    /// With the socket on which its terminal arrives.
    Container {
        id: String,
        console: Option<OwnedFd>,
    },
    Exec {
        id: String,
    },
}

struct Pending {
    launch: Launch,
    making: Making,
    connection: u64,
    request: u64,
}

/// See the module.
pub struct Server {
    dir: PathBuf,
    listener: OwnedFd,
    children: SignalFd,
    pause: Option<Pid>,
    connections: Vec<Connection>,
    next_connection: u64,
    containers: BTreeMap<String, Container>,
    /// Running processes beside the first ones, by process.
    execs: BTreeMap<i32, String>,
    pending: Vec<Pending>,
    /// Children that ended before their fork said whose they are.
    strays: Vec<(i32, i32)>,
    stop: bool,
}

/// What a polled descriptor is.
#[derive(Clone)]
enum Token {
    Children,
    Listener,
    Connection(u64),
    Launch(Pid),
    Stream(String, Slot),
}

impl Server {
    pub fn new(dir: &Path, pause: Option<Pid>, mask: &SigSet) -> io::Result<Server> {
        Ok(Server {
            dir: dir.to_owned(),
            listener: wire::listen(dir, SOCKET, SockType::SeqPacket)?,
            children: SignalFd::with_flags(mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?,
            pause,
            connections: Vec::new(),
            next_connection: 0,
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            pending: Vec::new(),
            strays: Vec::new(),
            stop: false,
        })
    }

    /// Runs until a request to shut down.
    pub fn run(mut self) {
        while !self.stop {
            let timeout = self.sweep();
            for (token, events) in self.wait(timeout) {
                self.handle(token, events);
            }
        }
        if let Some(pid) = self.pause {
            let _ = kill(pid, nix::sys::signal::SIGKILL);
        }
    }

    fn sweep(&mut self) -> Option<Duration> {
        self.connections.retain(|connection| connection.open);
        self.containers.values_mut().filter_map(|container| container.streams.sweep()).min()
    }

    fn wait(&self, timeout: Option<Duration>) -> Vec<(Token, PollFlags)> {
        let mut tokens = Vec::new();
        let mut fds: Vec<PollFd<'_>> = Vec::new();
        let mut add = |token: Token, fd: BorrowedFd<'_>, readable: bool, writable: bool| {
            let mut events = PollFlags::empty();
            events.set(PollFlags::POLLIN, readable);
            events.set(PollFlags::POLLOUT, writable);
            tokens.push(token);
            // SAFETY: the descriptor belongs to `self`, which is borrowed until the poll is over.
            #[allow(unsafe_code)]
            fds.push(PollFd::new(unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }, events));
        };
        add(Token::Children, self.children.as_fd(), true, false);
        if self.connections.len() < CONNECTIONS_MAX {
            add(Token::Listener, self.listener.as_fd(), true, false);
        }
        for connection in &self.connections {
            add(Token::Connection(connection.id), connection.fd.as_fd(), true, !connection.outbox.is_empty());
        }
        for pending in &self.pending {
            add(Token::Launch(pending.launch.pid), pending.launch.fd().as_fd(), true, false);
        }
        for (id, container) in &self.containers {
            container.streams.interests(|slot, fd, readable, writable| {
                add(Token::Stream(id.clone(), slot), fd, readable, writable);
            });
        }
        let timeout = timeout.map_or(PollTimeout::NONE, |left| {
            PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Vec::new(),
            Err(error) => {
                eprintln!("poll: {error}");
                return Vec::new();
            }
        }
        let events = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        tokens.iter().cloned().zip(events).filter(|(_, events)| !events.is_empty()).collect()
    }

    fn handle(&mut self, token: Token, events: PollFlags) {
        match token {
            Token::Children => {
                while let Ok(Some(_)) = self.children.read_signal() {}
                self.reap();
            }
            Token::Listener => self.accept(),
            Token::Connection(id) => self.serve(id, events),
            Token::Launch(pid) => self.launched(pid),
            Token::Stream(id, slot) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.streams.ready(slot, events.contains(PollFlags::POLLOUT));
                }
            }
        }
    }

    fn accept(&mut self) {
        let Ok(fd) = wire::accept(&self.listener) else { return };
        let id = self.next_connection;
        self.next_connection += 1;
        self.connections.push(Connection { id, fd, outbox: VecDeque::new(), open: true });
        let containers = self.containers.iter().filter_map(|(id, container)| {
            Some(ContainerState {
                container: id.clone(),
                pid: container.pid?.as_raw(),
                started_at: container.started_at,
                exit: container.exit.clone(),
            })
        });
        let hello = Message::Hello(Hello {
            version: VERSION,
            pid: std::process::id().cast_signed(),
            pause_pid: self.pause.map(Pid::as_raw),
            containers: containers.collect(),
        });
        self.say(Some(id), &hello);
    }

    /// To one connection, or to all.
    fn say(&mut self, to: Option<u64>, message: &Message) {
        let Ok(text) = serde_json::to_vec(message) else { return };
        for connection in self.connections.iter_mut().filter(|connection| to.is_none_or(|id| id == connection.id)) {
            connection.outbox.push_back(text.clone());
            connection.flush();
        }
    }

    fn serve(&mut self, id: u64, events: PollFlags) {
        let Some(connection) = self.connections.iter_mut().find(|connection| connection.id == id) else { return };
        if events.contains(PollFlags::POLLOUT) {
            connection.flush();
        }
        if !events.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            return;
        }
        let mut buffer = Vec::with_capacity(MESSAGE_BYTES_MAX);
        let fds = match wire::receive(&connection.fd, &mut buffer) {
            Ok(fds) if !buffer.is_empty() => fds,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return,
            _ => {
                connection.open = false;
                return;
            }
        };
        match serde_json::from_slice::<Request>(&buffer) {
            Ok(request) => self.request(id, request, fds),
            Err(error) => {
                // Newer than we are. Without an answer the other side would wait.
                eprintln!("request not understood: {error}");
                #[derive(serde::Deserialize)]
                struct Id {
                    id: u64,
                }
                if let Ok(Id { id: request }) = serde_json::from_slice(&buffer) {
                    let result = Err("the shim does not know this request".to_owned());
                    self.say(Some(id), &Message::Reply { id: request, result });
                }
            }
        }
    }

    fn request(&mut self, connection: u64, request: Request, fds: Vec<OwnedFd>) {
        let result = match request.op {
            Op::Start(start) => match self.start(connection, request.id, start) {
                Ok(()) => return,
                Err(error) => Err(error),
            },
            Op::Exec(exec) => match self.exec(connection, request.id, exec, fds) {
                Ok(()) => return,
                Err(error) => Err(error),
            },
            Op::Signal { container, exec, signal } => self.signal(&container, exec.as_deref(), signal),
            Op::Attach { container, stdin, stdout, stderr } => self.attach(&container, [stdin, stdout, stderr], fds),
            Op::Resize { container, width, height } => self
                .running(&container)
                .and_then(|container| container.streams.resize(width, height).map_err(|error| error.to_string())),
            Op::ReopenLog { container } => match self.containers.get_mut(&container) {
                Some(container) => container.streams.reopen_log().map_err(|error| format!("open log: {error}")),
                None => Err(unknown(&container)),
            },
            Op::Forget { container } => {
                self.forget(&container);
                Ok(())
            }
            Op::Shutdown => {
                self.stop = true;
                Ok(())
            }
        };
        let result = result.map(|()| Answer::default());
        self.say(Some(connection), &Message::Reply { id: request.id, result });
    }

    fn start(&mut self, connection: u64, request: u64, start: Start) -> Result<(), String> {
        if self.containers.contains_key(&start.container) {
            return Err(format!("container {} has been started before", start.container));
        }
        let log = start.log_path.as_deref().map(Log::open).transpose();
        let log = log.map_err(|error| format!("open log {:?}: {error}", start.log_path))?;
        let mut streams = Streams::new(log, start.stdin_once);
        let (mut stdio, mut console, mut console_name) = (Stdio::default(), None, None);
        let text = |error: io::Error| format!("create streams: {error}");
        if start.tty {
            let name = format!("{}.pty", start.container);
            console = Some(wire::listen(&self.dir, &name, SockType::Stream).map_err(text)?);
            console_name = Some(self.dir.join(name));
        } else {
            for kind in [Kind::Stdout, Kind::Stderr] {
                let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(|error| text(error.into()))?;
                streams.add_output(kind, read).map_err(text)?;
                *if kind == Kind::Stdout { &mut stdio.stdout } else { &mut stdio.stderr } = Some(write);
            }
            stdio.stdin = Some(if start.stdin {
                let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(|error| text(error.into()))?;
                streams.set_stdin(write).map_err(text)?;
                read
            } else {
                fs::File::open("/dev/null").map_err(text)?.into()
            });
        }
        let root = self.dir.join("oci");
        // A start that was cut short leaves this, and libcontainer would refuse to go on.
        let _ = fs::remove_dir_all(root.join(&start.container));
        let launch = Launch::new(|| launch::start(&root, &start, stdio, console_name.as_deref()))
            .map_err(|error| format!("fork: {error}"))?;
        let id = start.container.clone();
        let container = Container { start, pid: None, started_at: 0, streams, exit: None };
        self.containers.insert(id.clone(), container);
        self.pending.push(Pending { launch, making: Making::Container { id, console }, connection, request });
        Ok(())
    }

    fn exec(&mut self, connection: u64, request: u64, exec: Exec, fds: Vec<OwnedFd>) -> Result<(), String> {
        let bundle = self.running(&exec.container)?.start.bundle.clone();
        let mut fds = fds.into_iter();
        let null =
            || fs::File::open("/dev/null").map(OwnedFd::from).map_err(|error| format!("open /dev/null: {error}"));
        let mut next = |wanted: bool| if wanted { fds.next().ok_or("a stream is missing".to_owned()) } else { null() };
        let stdio = if exec.console.is_some() {
            Stdio::default()
        } else {
            let null_out = |fd: OwnedFd, wanted: bool| -> Result<OwnedFd, String> {
                if wanted {
                    return Ok(fd);
                }
                let file = fs::File::options().write(true).open("/dev/null");
                file.map(OwnedFd::from).map_err(|error| format!("open /dev/null: {error}"))
            };
            Stdio {
                stdin: Some(next(exec.stdin)?),
                stdout: Some(null_out(next(exec.stdout)?, exec.stdout)?),
                stderr: Some(null_out(next(exec.stderr)?, exec.stderr)?),
            }
        };
        let root = self.dir.join("oci");
        let launch =
            Launch::new(|| launch::exec(&root, &bundle, &exec, stdio)).map_err(|error| format!("fork: {error}"))?;
        self.pending.push(Pending { launch, making: Making::Exec { id: exec.exec }, connection, request });
        Ok(())
    }

    /// A fork has said what became of it.
    fn launched(&mut self, pid: Pid) {
        let Some(index) = self.pending.iter().position(|pending| pending.launch.pid == pid) else { return };
        let Pending { launch, making, connection, request } = self.pending.swap_remove(index);
        let result = launch.finish();
        let started_at = now();
        let ended = match &result {
            Ok(pid) => self.strays.iter().position(|(stray, _)| stray == pid).map(|at| self.strays.swap_remove(at).1),
            Err(_) => None,
        };
        if self.pending.is_empty() {
            self.strays.clear();
        }
        let answer = result.clone().map(|pid| Answer { pid: Some(pid), started_at: Some(started_at) });
        let result = match (making, result) {
            (Making::Container { id, console }, Ok(pid)) => {
                self.container_started(&id, pid, started_at, console);
                self.say(Some(connection), &Message::Reply { id: request, result: answer });
                if let Some(code) = ended {
                    self.container_ended(&id, code);
                }
                return;
            }
            (Making::Exec { id }, Ok(pid)) => {
                self.say(Some(connection), &Message::Reply { id: request, result: answer });
                match ended {
                    Some(code) => self.say(None, &Message::ExecExited { exec: id, code }),
                    None => drop(self.execs.insert(pid, id)),
                }
                return;
            }
            (Making::Container { id, .. }, Err(error)) => {
                self.forget(&id);
                Err(error)
            }
            (Making::Exec { .. }, Err(error)) => Err(error),
        };
        self.say(Some(connection), &Message::Reply { id: request, result });
    }

    fn container_started(&mut self, id: &str, pid: i32, started_at: i64, console: Option<OwnedFd>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.pid = Some(Pid::from_raw(pid));
        container.started_at = started_at;
        if let Some(listener) = console {
            let stdin = container.start.stdin;
            let master = wire::accept(&listener).and_then(|stream| wire::receive_console(&stream));
            if let Err(error) = master.and_then(|master| container.streams.set_tty(master, stdin)) {
                eprintln!("terminal of {id}: {error}");
            }
            let _ = fs::remove_file(self.dir.join(format!("{id}.pty")));
        }
    }

    fn running(&mut self, id: &str) -> Result<&mut Container, String> {
        match self.containers.get_mut(id) {
            Some(container) if container.pid.is_some() && container.exit.is_none() => Ok(container),
            Some(_) => Err(format!("container {id} is not running")),
            None => Err(unknown(id)),
        }
    }

    fn signal(&mut self, id: &str, exec: Option<&str>, signal: i32) -> Result<(), String> {
        let pid = match exec {
            // Already gone is what the caller wants.
            Some(exec) => match self.execs.iter().find(|(_, id)| *id == exec) {
                Some((&pid, _)) => pid,
                None => return Ok(()),
            },
            None => self.running(id)?.pid.map_or(0, Pid::as_raw),
        };
        if pid <= 1 {
            return Err(format!("container {id} has no process"));
        }
        // SAFETY: kill takes plain numbers; real-time signals are not in nix's enum. The process is an unreaped child
        // of ours, so its number cannot have passed to another.
        #[allow(unsafe_code)]
        match unsafe { libc::kill(pid, signal) } {
            0 => Ok(()),
            _ if Errno::last() == Errno::ESRCH => Ok(()),
            _ => Err(format!("signal {signal}: {}", Errno::last().desc())),
        }
    }

    fn attach(&mut self, id: &str, wanted: [bool; 3], fds: Vec<OwnedFd>) -> Result<(), String> {
        let streams = &mut self.running(id)?.streams;
        let mut fds = fds.into_iter();
        for (index, _) in wanted.iter().enumerate().filter(|(_, wanted)| **wanted) {
            let fd = fds.next().ok_or("a stream is missing")?;
            match index {
                0 => streams.attach_writer(fd),
                1 => streams.attach_reader(Kind::Stdout, fd),
                _ => streams.attach_reader(Kind::Stderr, fd),
            }
            .map_err(|error| format!("attach: {error}"))?;
        }
        Ok(())
    }

    fn forget(&mut self, id: &str) {
        if self.containers.get(id).is_some_and(|container| container.pid.is_some() && container.exit.is_none()) {
            return;
        }
        self.containers.remove(id);
        let _ = fs::remove_dir_all(self.dir.join("oci").join(id));
        let _ = fs::remove_file(self.dir.join(format!("{id}.exit")));
        let _ = fs::remove_file(self.dir.join(format!("{id}.pty")));
    }

    /// Takes the status of every child that has ended. A fork writes its answer before it ends, so an unknown child is
    /// either of a fork not yet heard, or of nobody's concern.
    fn reap(&mut self) {
        loop {
            let Some((pid, code)) = next_ended_child() else { return };
            if self.pending.iter().any(|pending| pending.launch.pid == pid) {
                self.launched(pid);
                continue;
            }
            let container = self.containers.iter().find(|(_, container)| container.pid == Some(pid));
            if let Some((id, _)) = container {
                let id = id.clone();
                self.container_ended(&id, code);
            } else if let Some(exec) = self.execs.remove(&pid.as_raw()) {
                self.say(None, &Message::ExecExited { exec, code });
            } else if !self.pending.is_empty() {
                self.strays.push((pid.as_raw(), code));
            }
        }
    }

    fn container_ended(&mut self, id: &str, code: i32) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if container.exit.is_some() {
            return;
        }
        if container.start.kill_leftovers {
            kill_all(&container.start.cgroups);
        }
        container.streams.finish();
        let exit = Exit {
            container: id.to_owned(),
            code,
            oom_killed: container.start.cgroups.iter().any(|dir| oom_kills(dir) > 0),
            started_at: container.started_at,
            finished_at: now(),
        };
        container.exit = Some(exit.clone());
        let path = self.dir.join(format!("{id}.exit"));
        let text = serde_json::to_vec(&exit).unwrap_or_default();
        let temporary = self.dir.join(format!("{id}.exit.new"));
        if let Err(error) = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, &path)) {
            eprintln!("write {}: {error}", path.display());
        }
        self.say(None, &Message::Exited(exit));
    }
}

impl Connection {
    fn flush(&mut self) {
        while let Some(message) = self.outbox.front() {
            match wire::send(&self.fd, message, &[]) {
                Ok(()) => drop(self.outbox.pop_front()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.open = false;
                    return;
                }
            }
        }
        self.open &= self.outbox.len() <= OUTBOX_MAX;
    }
}

fn unknown(id: &str) -> String {
    format!("container {id} is not known to the shim")
}

/// Reaps one child: its number, and its code or 128 plus its signal. A real-time signal has no name in nix, whose
/// waitpid would lose the child.
fn next_ended_child() -> Option<(Pid, i32)> {
    loop {
        let mut status = 0;
        // SAFETY: waitpid writes one int, which outlives the call.
        #[allow(unsafe_code)]
        let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
        if pid <= 0 {
            return None;
        }
        if libc::WIFEXITED(status) {
            return Some((Pid::from_raw(pid), libc::WEXITSTATUS(status)));
        }
        if libc::WIFSIGNALED(status) {
            return Some((Pid::from_raw(pid), 128 + libc::WTERMSIG(status)));
        }
    }
}

/// Nanoseconds since the epoch.
fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as i64)
}

/// How many processes of this cgroup the kernel has killed for want of memory. Other hierarchies have neither file.
fn oom_kills(cgroup: &Path) -> u64 {
    ["memory.events", "memory.oom_control"]
        .iter()
        .filter_map(|name| fs::read_to_string(cgroup.join(name)).ok())
        .filter_map(|text| {
            text.lines().find_map(|line| line.strip_prefix("oom_kill ").and_then(|count| count.trim().parse().ok()))
        })
        .next()
        .unwrap_or(0)
}

/// Ends what a container left behind. Repeated, since processes fork; bounded, since they may fork for ever: then the
/// next signal or the removal of the pod has to do.
fn kill_all(cgroups: &[PathBuf]) {
    let Some(cgroup) = cgroups.iter().find(|dir| dir.join("cgroup.procs").exists()) else { return };
    if fs::write(cgroup.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    for _ in 0..16 {
        let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
        let pids: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 1).collect();
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            let _ = kill(Pid::from_raw(pid), nix::sys::signal::SIGKILL);
        }
    }
}
