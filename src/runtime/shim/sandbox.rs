//! Makes a fresh process into the sandbox of a pod: out of the server's session and cgroups, into namespaces of its own.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use super::protocol::ShimConfig;

/// Why a shim did not come up. It ends at once, and with it whatever it had made but the pinned namespace.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
pub struct SetupError {
    step: String,
    source: io::Error,
}

fn step<T, E: Into<io::Error>>(result: Result<T, E>, step: impl Into<String>) -> Result<T, SetupError> {
    result.map_err(|source| SetupError { step: step.into(), source: source.into() })
}

/// Becomes the sandbox. Returns the first process of the pod's PID namespace, if it has one.
pub fn enter(config: &ShimConfig) -> Result<Option<Pid>, SetupError> {
    // Fails only for a process that already leads a session.
    let _ = nix::unistd::setsid();
    leave_cgroups(&config.cgroup_procs);
    protect_from_oom();
    step(set_name_and_reaper(), "become a subreaper")?;

    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWNET, config.netns.is_some());
    flags.set(CloneFlags::CLONE_NEWIPC, config.ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, config.hostname.is_some());
    step(unshare(flags), "create namespaces")?;
    if let Some(path) = &config.netns {
        step(loopback_up(), "bring up the loopback interface")?;
        step(pin(path), format!("pin the network namespace at {}", path.display()))?;
    }
    if let Some(hostname) = &config.hostname {
        step(nix::unistd::sethostname(hostname), "set the host name")?;
    }
    for (key, value) in &config.sysctls {
        step(fs::write(sysctl_path(key), value), format!("set sysctl {key}"))?;
    }
    if config.shared_pid { step(pause_process(), "create the PID namespace").map(Some) } else { Ok(None) }
}

/// Moves out of the cgroups of the server, whose service manager may kill all that is in them. A hierarchy that does
/// not take us is no reason to fail: the shim works in any.
fn leave_cgroups(procs_files: &[PathBuf]) {
    for path in procs_files {
        if let Err(error) = fs::write(path, std::process::id().to_string()) {
            eprintln!("move to {}: {error}", path.display());
        }
    }
}

/// The shim is the last process of a pod that should go. Without CAP_SYS_RESOURCE the kernel refuses; then it stays
/// as it is.
fn protect_from_oom() {
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "-998") {
        eprintln!("keep the inherited oom_score_adj: {error}");
    }
}

fn set_name_and_reaper() -> nix::Result<()> {
    nix::sys::prctl::set_child_subreaper(true)?;
    nix::sys::prctl::set_name(c"mussel-shim")
}

/// `net.ipv4.ip_forward`, or with slashes where a name has dots in it (`net/ipv4/conf/eth0.1/forwarding`).
fn sysctl_path(key: &str) -> PathBuf {
    let path = if key.contains('/') { key.to_owned() } else { key.replace('.', "/") };
    Path::new("/proc/sys").join(path)
}

/// Keeps the network namespace alive and lets others find it.
fn pin(path: &Path) -> io::Result<()> {
    File::create(path)?;
    mount(Some("/proc/self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

fn loopback_up() -> io::Result<()> {
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: ifreq is plain data, for which zeroes are valid, and the kernel reads no further than it.
    #[allow(unsafe_code)]
    let result = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&socket), libc::SIOCSIFFLAGS as _, &request)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes a PID namespace with a process in it that does nothing but reap.
fn pause_process() -> nix::Result<Pid> {
    let own = File::open("/proc/self/ns/pid").map_err(|_| nix::Error::ENOENT)?;
    unshare(CloneFlags::CLONE_NEWPID)?;
    // SAFETY: the shim has a single thread.
    #[allow(unsafe_code)]
    let pid = match unsafe { fork() }? {
        ForkResult::Child => pause(),
        ForkResult::Parent { child } => child,
    };
    // Later children belong to the node's PID namespace again.
    setns(own, CloneFlags::CLONE_NEWPID)?;
    Ok(pid)
}

fn pause() -> ! {
    // Dies with the shim: nobody else would end it.
    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    let _ = nix::sys::prctl::set_name(c"pause");
    let all = SigSet::all();
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), None);
    // SAFETY: the shim's descriptors are not used by this process.
    #[allow(unsafe_code)]
    unsafe {
        libc::close_range(0, libc::c_uint::MAX, 0);
    }
    loop {
        let _ = all.wait();
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_are_paths() {
        assert_eq!(sysctl_path("net.core.somaxconn"), Path::new("/proc/sys/net/core/somaxconn"));
        assert_eq!(
            sysctl_path("net/ipv4/conf/eth0.1/forwarding"),
            Path::new("/proc/sys/net/ipv4/conf/eth0.1/forwarding")
        );
    }
}
