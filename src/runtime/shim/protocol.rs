//! What the runtime and a shim say to each other.
//!
//! One JSON document per `SOCK_SEQPACKET` message, descriptors beside it. A shim may be older than the runtime that
//! finds it, so fields are only ever added, with a default; [`VERSION`] rises when that is not enough.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The first thing a shim says. A runtime leaves shims of a newer version alone.
pub const VERSION: u32 = 1;

/// Longest message. What can be long (environments, arguments) travels in files.
pub const MESSAGE_BYTES_MAX: usize = 128 * 1024;

/// Descriptors that one message may carry.
pub const FDS_MAX: usize = 3;

/// Name of the listening socket in the shim's directory.
pub const SOCKET: &str = "shim.sock";

/// Name of the file in the shim's directory that tells a new shim what to be.
pub const CONFIG: &str = "sandbox.json";

/// What a shim reads at its start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ShimConfig {
    pub sandbox_id: String,
    /// Where the network namespace is pinned; `None` leaves the pod on the node's network.
    pub netns: Option<PathBuf>,
    /// An IPC namespace of the pod's own.
    pub ipc: bool,
    /// A UTS namespace of the pod's own, with this name in it.
    pub hostname: Option<String>,
    /// One PID namespace for all of the pod.
    pub shared_pid: bool,
    /// Keys with dots, as in `sysctl.conf`.
    pub sysctls: Vec<(String, String)>,
    /// `cgroup.procs` files that take the shim out of the cgroups of the process that started it.
    pub cgroup_procs: Vec<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    pub id: u64,
    pub op: Op,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Op {
    /// Creates and starts a container from the bundle.
    Start(Start),
    /// Runs one more process in a container. Carries its stdin, stdout and stderr, unless it has a console.
    Exec(Exec),
    /// Signals the first process of a container, or (with `exec`) one of its others.
    Signal { container: String, exec: Option<String>, signal: i32 },
    /// Adds a reader and writer of the container's streams; carries the descriptors that are `true`, in this order.
    Attach { container: String, stdin: bool, stdout: bool, stderr: bool },
    /// Sets the size of the container's terminal.
    Resize { container: String, width: u16, height: u16 },
    /// Opens the log file anew, after it was renamed.
    ReopenLog { container: String },
    /// Forgets a container that has exited.
    Forget { container: String },
    /// Ends the shim and with it the namespaces that nobody else uses. Containers must be gone.
    Shutdown,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Start {
    pub container: String,
    pub bundle: PathBuf,
    pub log_path: Option<PathBuf>,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    /// Who shall own the stream pipes, so that `/dev/stdout` can be opened.
    pub uid: u32,
    pub gid: u32,
    /// Directories of the container's cgroup, one for each hierarchy.
    pub cgroups: Vec<PathBuf>,
    /// Processes may outlive the first one, as it is not the init of a PID namespace.
    pub kill_leftovers: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Exec {
    pub container: String,
    pub exec: String,
    /// The OCI process document.
    pub process: PathBuf,
    /// Where the other end of a terminal shall be sent.
    pub console: Option<PathBuf>,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub uid: u32,
    pub gid: u32,
}

/// What a shim says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    Hello(Hello),
    Reply { id: u64, result: Result<Answer, String> },
    Exited(Exit),
    ExecExited { exec: String, code: i32 },
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Hello {
    pub version: u32,
    pub pid: i32,
    /// The first process of the pod's PID namespace.
    pub pause_pid: Option<i32>,
    pub containers: Vec<ContainerState>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct ContainerState {
    pub container: String,
    pub pid: i32,
    pub started_at: i64,
    pub exit: Option<Exit>,
}

/// How a container ended. Also the content of `<container>.exit` in the shim's directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    pub container: String,
    /// 128 + n for death by signal n.
    pub code: i32,
    pub oom_killed: bool,
    pub started_at: i64,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    pub pid: Option<i32>,
    pub started_at: Option<i64>,
}
