//! `mussel killall`: ends all pods of this machine and undoes what mussel did to it. Data stays.
//!
//! Goes on after a failure, and says what is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::args::LocalArgs;
use super::{node, preflight};

/// How long killed processes may take to be gone; a disk that hangs keeps them longer.
const GONE_TIME: Duration = Duration::from_secs(15);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

pub fn main(args: &LocalArgs) -> anyhow::Result<()> {
    preflight::root()?;
    if let Some(pid) = running(args) {
        bail!("mussel runs here as process {pid}; stop the service first");
    }
    let mut left = Vec::new();
    let cgroups = pod_cgroups(&args.cgroup_root);
    kill_all(&args.run_dir, &cgroups, &mut left);
    unmount_all(&[&args.run_dir, &args.data_dir.join("agent")], &mut left);
    remove_cgroups(&cgroups, &mut left);
    remove_own_root(&args.cgroup_root);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the async runtime")?;
    let errors = runtime.block_on(mussel_network::host::cleanup(node::BRIDGE));
    left.extend(errors.iter().map(|error| super::parts::chain(error)));
    if let Err(error) = fs::remove_dir_all(&args.run_dir)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        left.push(format!("remove {}: {error}", args.run_dir.display()));
    }
    match left.as_slice() {
        [] => Ok(()),
        left => bail!("not everything is gone:\n  {}", left.join("\n  ")),
    }
}

/// The process that runs this data directory's server or agent.
pub fn running(args: &LocalArgs) -> Option<i32> {
    processes()
        .into_iter()
        .find(|(pid, command)| {
            let words: Vec<&str> = command.iter().map(String::as_str).collect();
            let is_node = matches!(words.get(1), Some(&"server" | &"agent")) && is_ours(*pid);
            let dir = words.iter().enumerate().find_map(|(at, word)| match *word {
                "--data-dir" | "-d" => words.get(at + 1).copied(),
                word => word.strip_prefix("--data-dir="),
            });
            is_node && Path::new(dir.unwrap_or(super::args::DEFAULT_DATA_DIR)) == args.data_dir
        })
        .map(|(pid, _)| pid)
}

/// Whether a process runs this program: the very file, or, after an upgrade or from elsewhere, one of its name.
fn is_ours(pid: i32) -> bool {
    use std::os::unix::fs::MetadataExt;
    let exe = |process: &str| format!("/proc/{process}/exe");
    let file = |process: &str| fs::metadata(exe(process)).ok().map(|file| (file.dev(), file.ino()));
    let name = |process: &str| {
        let path = fs::read_link(exe(process)).ok()?;
        let name = path.file_name()?.to_string_lossy().into_owned();
        // What the kernel adds when the file was replaced.
        Some(name.strip_suffix(" (deleted)").map_or(name.clone(), str::to_owned))
    };
    let pid = pid.to_string();
    let same = |ours: Option<String>, theirs: Option<String>| ours.is_some() && ours == theirs;
    (file("self").is_some() && file("self") == file(&pid)) || same(name("self"), name(&pid))
}

/// All processes with their command lines.
fn processes() -> Vec<(i32, Vec<String>)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let command = fs::read(entry.path().join("cmdline")).ok()?;
        let words = command.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        Some((pid, words.collect()))
    });
    processes.collect()
}

/// The shims of this run directory.
fn shims(run_dir: &Path) -> Vec<i32> {
    let below = run_dir.join("shim");
    let shims = processes().into_iter().filter(|(_, command)| {
        command.iter().any(|word| word == "shim") && command.iter().any(|word| Path::new(word).starts_with(&below))
    });
    shims.map(|(pid, _)| pid).collect()
}

/// The mount points of all cgroup hierarchies, of either version.
fn hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let hierarchies = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let point = fields.next()?;
        matches!(fields.next()?, "cgroup" | "cgroup2").then(|| PathBuf::from(point))
    });
    hierarchies.collect()
}

/// The directories of our cgroups: `kubepods` and the shims' own, in each hierarchy.
fn pod_cgroups(cgroup_root: &str) -> Vec<PathBuf> {
    let root = cgroup_root.trim_matches('/');
    hierarchies()
        .into_iter()
        .flat_map(|hierarchy| {
            let base = if root.is_empty() { hierarchy } else { hierarchy.join(root) };
            [base.join("kubepods"), base.join("mussel"), base.join("mussel-shims")]
        })
        .filter(|dir| dir.is_dir())
        .collect()
}

fn kill_all(run_dir: &Path, cgroups: &[PathBuf], left: &mut Vec<String>) {
    let deadline = Instant::now() + GONE_TIME;
    loop {
        // The shims first, or they would restart nothing but report every death.
        let mut pids = shims(run_dir);
        for dir in cgroups.iter().flat_map(|dir| tree(dir)) {
            let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            pids.extend(procs.lines().filter_map(|line| line.trim().parse::<i32>().ok()).filter(|pid| *pid > 1));
        }
        pids.retain(|pid| *pid != std::process::id().cast_signed());
        if pids.is_empty() {
            return;
        }
        if Instant::now() > deadline {
            pids.sort_unstable();
            pids.dedup();
            left.push(format!("processes {pids:?} do not end"));
            return;
        }
        for pid in pids {
            // Gone already is as good.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn unmount_all(dirs: &[&Path], left: &mut Vec<String>) {
    // A mount may hide another one, so look again until none is left.
    for _ in 0..8 {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut points: Vec<PathBuf> = mountinfo
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .map(|point| PathBuf::from(mussel_runtime::snapshot::unescape(point)))
            .filter(|point| dirs.iter().any(|dir| point.starts_with(dir)))
            .collect();
        if points.is_empty() {
            return;
        }
        points.reverse();
        for point in points {
            let _ = umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        }
    }
    left.push(format!(
        "mounts below {} cannot be undone",
        dirs.iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(", ")
    ));
}

fn remove_cgroups(cgroups: &[PathBuf], left: &mut Vec<String>) {
    for dir in cgroups.iter().flat_map(|dir| tree(dir).into_iter().rev()) {
        if let Err(error) = fs::remove_dir(&dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            left.push(format!("remove cgroup {}: {error}", dir.display()));
        }
    }
}

/// A root of our own was made for the pods' cgroups. If others put something into it, it stays.
fn remove_own_root(cgroup_root: &str) {
    let root = cgroup_root.trim_matches('/');
    if !root.is_empty() {
        for hierarchy in hierarchies() {
            let _ = fs::remove_dir(hierarchy.join(root));
        }
    }
}

/// A directory and all below it, parents first.
fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut all = vec![dir.to_owned()];
    let mut at = 0;
    while let Some(dir) = all.get(at).cloned() {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        all.extend(entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()));
        at += 1;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_known_by_its_file_and_not_by_what_it_calls_itself() {
        use std::os::unix::process::CommandExt;
        assert!(is_ours(std::process::id().cast_signed()));
        let mut other = std::process::Command::new("sleep").arg0("/usr/bin/mussel").arg("60").spawn().unwrap();
        assert!(!is_ours(other.id().cast_signed()));
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
