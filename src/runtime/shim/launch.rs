//! Makes container processes, each from a short-lived fork of the shim.
//!
//! libcontainer changes the process that calls it (directory, OOM score, dumpable) and can block in a mount. In a fork
//! none of that reaches the shim, and when the fork ends its children become the shim's, who is their subreaper.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{ForkResult, Gid, Pid, Uid, fchown, fork, pipe2};

use super::filter::Filtered;
use super::protocol::{Exec, Start};
use super::trace;
use crate::device_filter;

/// A fork at work. `result` becomes readable when it is done.
pub struct Launch {
    pub pid: Pid,
    result: File,
}

impl Launch {
    /// Forks, and runs `work` in the child. It answers with the process it made.
    pub fn new(work: impl FnOnce() -> Result<i32, String>) -> io::Result<Launch> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        // SAFETY: the shim has a single thread, so the child may use everything that it inherits.
        #[allow(unsafe_code)]
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Launch { pid: child, result: File::from(read) }),
            ForkResult::Child => {
                drop(read);
                let errors = trace::catch();
                let result = reset_signals().map_err(|error| error.to_string()).and_then(|()| work());
                let result = result.map_err(|text| match errors.as_ref().and_then(trace::first) {
                    Some(cause) if !text.contains(&cause) => format!("{text}: {cause}"),
                    _ => text,
                });
                let text = serde_json::to_vec(&result).unwrap_or_default();
                // Nobody is left to tell when this fails.
                let _ = File::from(write).write_all(&text);
                // SAFETY: ends the process without running what the shim has registered for its own end.
                #[allow(unsafe_code)]
                unsafe {
                    libc::_exit(0)
                }
            }
        }
    }

    pub fn fd(&self) -> &File {
        &self.result
    }

    /// The answer; waits for it if it is not there yet.
    pub fn finish(mut self) -> Result<i32, String> {
        let mut text = Vec::new();
        self.result.read_to_end(&mut text).map_err(|error| error.to_string())?;
        serde_json::from_slice(&text).unwrap_or_else(|_| Err("the creating process died".into()))
    }
}

/// Signals of Linux, real-time ones included.
const SIGNAL_MAX: libc::c_int = 64;

/// What rt_sigaction(2) takes, with room to spare on every architecture.
const ZEROES: [u64; 8] = [0; 8];

/// Containers start with no signal blocked or ignored, whatever the shim does with its own, or has inherited.
fn reset_signals() -> nix::Result<()> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    for number in 1..=SIGNAL_MAX {
        // SAFETY: all zeroes are the default action, which runs no code of ours. The C library would refuse the two
        // signals that it keeps for itself, so the kernel is asked; it refuses SIGKILL and SIGSTOP, which is fine.
        #[allow(unsafe_code)]
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, number, ZEROES.as_ptr(), std::ptr::null_mut::<u64>(), 8_usize);
        }
    }
    Ok(())
}

/// What a new process gets as its streams.
#[derive(Default)]
pub struct Stdio {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

impl Stdio {
    /// A process that is not root may still open `/dev/stdout`.
    fn give_to(&self, uid: u32, gid: u32) -> Result<(), String> {
        for fd in [&self.stdin, &self.stdout, &self.stderr].into_iter().flatten() {
            match fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))) {
                // Not every kind of descriptor has an owner.
                Ok(()) | Err(nix::Error::EINVAL | nix::Error::EROFS | nix::Error::EPERM) => {}
                Err(error) => return Err(format!("give streams to user {uid}: {error}")),
            }
        }
        Ok(())
    }

    fn builder(
        self,
        root: &Path,
        container: &str,
        bundle: &Path,
        console: Option<&Path>,
    ) -> Result<ContainerBuilder, String> {
        let mut builder = ContainerBuilder::new(container.to_owned(), SyscallType::default())
            .with_executor(Filtered::of(bundle)?)
            .with_root_path(root)
            .map_err(|error| describe(&error))?
            .with_console_socket(console);
        if let Some(fd) = self.stdin {
            builder = builder.with_stdin(fd);
        }
        if let Some(fd) = self.stdout {
            builder = builder.with_stdout(fd);
        }
        if let Some(fd) = self.stderr {
            builder = builder.with_stderr(fd);
        }
        Ok(builder)
    }
}

/// Creates and starts a container; its state goes below `root`.
pub fn start(root: &Path, start: &Start, stdio: Stdio, console: Option<&Path>) -> Result<i32, String> {
    stdio.give_to(start.uid, start.gid)?;
    let mut container = stdio
        .builder(root, &start.container, &start.bundle, console)?
        .as_init(&start.bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(|error| describe(&error))?;
    let pid = container.pid().ok_or("the container has no process")?.as_raw();
    // On version 2 of cgroups, which is one hierarchy. The container waits to be started until this is done.
    match (fs::read(start.bundle.join(device_filter::FILE)), start.cgroups.first()) {
        (Ok(program), Some(cgroup)) => {
            device_filter::attach(&program, cgroup).map_err(|error| format!("attach device filter: {error}"))?;
        }
        (Err(error), _) if error.kind() != io::ErrorKind::NotFound => {
            return Err(format!("read device filter: {error}"));
        }
        _ => {}
    }
    container.start().map_err(|error| describe(&error))?;
    Ok(pid)
}

/// Starts one more process in the container of the bundle.
pub fn exec(root: &Path, bundle: &Path, exec: &Exec, stdio: Stdio) -> Result<i32, String> {
    stdio.give_to(exec.uid, exec.gid)?;
    stdio
        .builder(root, &exec.container, bundle, exec.console.as_deref())?
        .as_tenant()
        .with_detach(true)
        .with_process(Some(&exec.process))
        .build()
        .map(|pid| pid.as_raw())
        .map_err(|error| describe(&error))
}

/// The whole chain of causes; repetitions, of which libcontainer makes many, are left out.
fn describe(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
