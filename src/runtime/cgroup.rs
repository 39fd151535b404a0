//! The cgroups of containers, version 1 or 2: where they are, what they use, changing and removing them.
//!
//! libcontainer makes a container's cgroup; the pod's and those above are the kubelet's. A host with any version 1
//! controller counts as version 1, since that is where its controllers are.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mussel_cri::v1::LinuxContainerResources;

use crate::snapshot::unescape;

/// A cgroup cannot be removed before its last process is reaped, which nobody announces. All in all two seconds.
const REMOVE_ATTEMPTS: u32 = 12;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hierarchies {
    /// Each with the controllers (or `name=…`) that it has.
    V1(Vec<(Vec<String>, PathBuf)>),
    V2(PathBuf),
}

/// What a cgroup uses. Fields that the host cannot tell are zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_nanoseconds: u64,
    pub memory_bytes: u64,
    pub working_set_bytes: u64,
    pub rss_bytes: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    /// `None` without a limit.
    pub memory_limit_bytes: Option<u64>,
    pub swap_bytes: u64,
    pub processes: u64,
}

impl Hierarchies {
    pub fn detect() -> io::Result<Hierarchies> {
        Ok(parse(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    /// The directories of a cgroup, one for each hierarchy.
    pub fn dirs(&self, cgroup: &str) -> Vec<PathBuf> {
        let relative = cgroup.trim_start_matches('/');
        match self {
            Hierarchies::V1(mounts) => mounts.iter().map(|(_, mount)| mount.join(relative)).collect(),
            Hierarchies::V2(mount) => vec![mount.join(relative)],
        }
    }

    /// The directory in which `controller` keeps its files for a cgroup.
    pub fn dir(&self, controller: &str, cgroup: &str) -> Option<PathBuf> {
        let relative = cgroup.trim_start_matches('/');
        match self {
            Hierarchies::V1(mounts) => mounts
                .iter()
                .find(|(names, _)| names.iter().any(|name| name == controller))
                .map(|(_, mount)| mount.join(relative)),
            Hierarchies::V2(mount) => Some(mount.join(relative)),
        }
    }

    pub fn is_v2(&self) -> bool {
        matches!(self, Hierarchies::V2(_))
    }

    /// Whether limits of this controller can be set.
    pub fn has_controller(&self, controller: &str) -> bool {
        match self {
            Hierarchies::V1(_) => self.dir(controller, "").is_some(),
            Hierarchies::V2(mount) => fs::read_to_string(mount.join("cgroup.controllers"))
                .is_ok_and(|names| names.split_whitespace().any(|name| name == controller)),
        }
    }

    /// Whether swap is counted and can be limited in a child of `parent`.
    pub fn limits_swap(&self, parent: &str) -> bool {
        let name = if self.is_v2() { "memory.swap.max" } else { "memory.memsw.limit_in_bytes" };
        self.dir("memory", parent).is_some_and(|dir| dir.join(name).exists())
    }

    /// Makes a cgroup for shims in every hierarchy, and returns the files through which a process moves there.
    pub fn prepare_shims(&self, cgroup: &str) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for dir in self.dirs(cgroup) {
            if fs::create_dir_all(&dir).is_ok() {
                if !self.is_v2() {
                    inherit_cpuset(&dir);
                }
                files.push(dir.join("cgroup.procs"));
            }
        }
        files
    }

    pub fn usage(&self, cgroup: &str) -> Usage {
        let number = |controller: &str, file: &str| -> Option<u64> {
            fs::read_to_string(self.dir(controller, cgroup)?.join(file)).ok()?.trim().parse().ok()
        };
        let table = |controller: &str, file: &str| -> HashMap<String, u64> {
            let text = self.dir(controller, cgroup).and_then(|dir| fs::read_to_string(dir.join(file)).ok());
            text.map(|text| key_values(&text)).unwrap_or_default()
        };
        let mut usage = Usage { processes: number("pids", "pids.current").unwrap_or(0), ..Usage::default() };
        let memory = table("memory", "memory.stat");
        let get = |name: &str| memory.get(name).copied().unwrap_or(0);
        usage.page_faults = get("pgfault");
        usage.major_page_faults = get("pgmajfault");
        let inactive_file;
        match self {
            Hierarchies::V1(_) => {
                usage.cpu_nanoseconds = number("cpuacct", "cpuacct.usage").unwrap_or(0);
                usage.memory_bytes = number("memory", "memory.usage_in_bytes").unwrap_or(0);
                inactive_file = get("total_inactive_file");
                usage.rss_bytes = get("total_rss");
                usage.swap_bytes = get("total_swap");
                // Without a limit the kernel shows the largest multiple of a page.
                usage.memory_limit_bytes =
                    number("memory", "memory.limit_in_bytes").filter(|limit| *limit < i64::MAX as u64 - 0xffff);
            }
            Hierarchies::V2(_) => {
                usage.cpu_nanoseconds = table("cpu", "cpu.stat").get("usage_usec").copied().unwrap_or(0) * 1000;
                usage.memory_bytes = number("memory", "memory.current").unwrap_or(0);
                inactive_file = get("inactive_file");
                usage.rss_bytes = get("anon");
                usage.swap_bytes = number("memory", "memory.swap.current").unwrap_or(0);
                usage.memory_limit_bytes = number("memory", "memory.max");
            }
        }
        usage.working_set_bytes = usage.memory_bytes.saturating_sub(inactive_file);
        usage
    }

    /// Applies new limits to a running container. Zero means unchanged, as everywhere in CRI.
    pub fn update(&self, cgroup: &str, resources: &LinuxContainerResources) -> io::Result<()> {
        for (controller, file, value) in self.changes(cgroup, resources) {
            let Some(dir) = self.dir(controller, cgroup) else {
                return Err(io::Error::new(io::ErrorKind::NotFound, format!("no cgroup controller {controller}")));
            };
            let path = dir.join(&file);
            fs::write(&path, &value).map_err(|error| {
                io::Error::new(error.kind(), format!("write {value} to {}: {error}", path.display()))
            })?;
        }
        Ok(())
    }

    fn changes(&self, cgroup: &str, resources: &LinuxContainerResources) -> Vec<(&'static str, String, String)> {
        let mut changes = Vec::new();
        let mut add = |controller, file: &str, value: String| changes.push((controller, file.to_owned(), value));
        let r = resources;
        let limit = |value: i64| if value < 0 { "max".to_owned() } else { value.to_string() };
        match self {
            Hierarchies::V1(_) => {
                if r.cpu_shares > 0 {
                    add("cpu", "cpu.shares", r.cpu_shares.to_string());
                }
                if r.cpu_period > 0 {
                    add("cpu", "cpu.cfs_period_us", r.cpu_period.to_string());
                }
                if r.cpu_quota != 0 {
                    add("cpu", "cpu.cfs_quota_us", r.cpu_quota.to_string());
                }
                let swap = r.memory_swap_limit_in_bytes;
                let swap = (swap != 0 && self.limits_swap(cgroup)).then_some(swap);
                // Memory may never be above memory plus swap, so the order depends on the direction.
                let old = self.usage(cgroup).memory_limit_bytes.unwrap_or(u64::MAX);
                let grows = r.memory_limit_in_bytes < 0 || r.memory_limit_in_bytes as u64 > old;
                let memory = (r.memory_limit_in_bytes != 0)
                    .then(|| ("memory.limit_in_bytes", r.memory_limit_in_bytes.to_string()));
                let swap = swap.map(|swap| ("memory.memsw.limit_in_bytes", swap.to_string()));
                let order = if grows { [swap, memory] } else { [memory, swap] };
                for (file, value) in order.into_iter().flatten() {
                    add("memory", file, value);
                }
            }
            Hierarchies::V2(_) => {
                if r.cpu_shares > 0 {
                    add("cpu", "cpu.weight", weight(r.cpu_shares).to_string());
                }
                if r.cpu_quota != 0 {
                    let period = if r.cpu_period > 0 { r.cpu_period } else { 100_000 };
                    add("cpu", "cpu.max", format!("{} {period}", limit(r.cpu_quota)));
                }
                if r.memory_limit_in_bytes != 0 {
                    add("memory", "memory.max", limit(r.memory_limit_in_bytes));
                    if r.memory_swap_limit_in_bytes > 0 && self.limits_swap(cgroup) {
                        let swap = (r.memory_swap_limit_in_bytes - r.memory_limit_in_bytes).max(0);
                        add("memory", "memory.swap.max", swap.to_string());
                    }
                }
                for (file, value) in &r.unified {
                    add("unified", file, value.clone());
                }
            }
        }
        if !r.cpuset_cpus.is_empty() {
            add("cpuset", "cpuset.cpus", r.cpuset_cpus.clone());
        }
        if !r.cpuset_mems.is_empty() {
            add("cpuset", "cpuset.mems", r.cpuset_mems.clone());
        }
        changes
    }

    /// Kills every process in a cgroup and those below it.
    pub fn kill_all(&self, cgroup: &str) {
        for dir in self.dirs(cgroup) {
            kill_tree(&dir);
        }
    }

    /// Removes a container's cgroup, waiting for its last process to go. One that is absent is removed.
    pub async fn remove(&self, cgroup: &str) -> io::Result<()> {
        let mut result = Ok(());
        for dir in self.dirs(cgroup) {
            let mut wait = Duration::from_millis(1);
            for attempt in 1.. {
                match remove_tree(&dir) {
                    Ok(()) => break,
                    Err(error) if attempt == REMOVE_ATTEMPTS => {
                        result = Err(io::Error::new(error.kind(), format!("remove {}: {error}", dir.display())));
                        break;
                    }
                    Err(_) => tokio::time::sleep(wait).await,
                }
                wait *= 2;
            }
        }
        result
    }
}

/// A version 1 cpuset takes no process before it has processors and memory, and has none of its own at first. Its
/// parent may be as new as itself.
fn inherit_cpuset(dir: &Path) {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let read = |dir: &Path| fs::read_to_string(dir.join(name)).map(|text| text.trim().to_owned());
        let Some(parent) = dir.parent() else { return };
        if read(dir).is_ok_and(|own| own.is_empty())
            && let Ok(inherited) = read(parent)
        {
            if inherited.is_empty() {
                inherit_cpuset(parent);
            }
            let _ = fs::write(dir.join(name), read(parent).unwrap_or_default());
        }
    }
}

/// CPU weight of version 2 for shares of version 1, as every runtime maps it: 2..262144 onto 1..10000 along a curve on
/// which 1024 is 100.
fn weight(shares: i64) -> u64 {
    let shares = (shares.clamp(2, 262_144)) as f64;
    let l = shares.log2();
    let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
    (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

fn key_values(text: &str) -> HashMap<String, u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(key, value)| Some((key.to_owned(), value.trim().parse().ok()?)))
        .collect()
}

fn parse(mountinfo: &str) -> Hierarchies {
    let (mut v1, mut v2) = (Vec::new(), None);
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let Some(path) = before.split(' ').nth(4).map(|path| PathBuf::from(unescape(path))) else { continue };
        let mut after = after.split(' ');
        match after.next() {
            Some("cgroup2") => v2 = v2.or(Some(path)),
            Some("cgroup") => {
                let names = after.nth(1).unwrap_or("").split(',').filter(|name| *name != "rw" && *name != "ro");
                v1.push((names.map(str::to_owned).collect::<Vec<_>>(), path));
            }
            _ => {}
        }
    }
    let controllers = v1.iter().any(|(names, _): &(Vec<String>, PathBuf)| names.iter().any(|name| name == "memory"));
    match v2 {
        Some(mount) if !controllers => Hierarchies::V2(mount),
        _ => Hierarchies::V1(v1),
    }
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn kill_tree(dir: &Path) {
    if fs::write(dir.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    for child in children(dir) {
        kill_tree(&child);
    }
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in text.lines().filter_map(|line| line.parse().ok()).filter(|pid: &i32| *pid > 1) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
    }
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for child in children(dir) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 24 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
32 24 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 24 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd";

    #[test]
    fn hierarchies_are_found() {
        let hybrid = parse(HYBRID);
        assert_eq!(hybrid.dir("cpuacct", "/a/b"), Some("/sys/fs/cgroup/cpu,cpuacct/a/b".into()));
        assert_eq!(hybrid.dirs("/a").len(), 3);
        assert_eq!(hybrid.dir("pids", "/a"), None);
        let pure = parse("30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw");
        assert_eq!(pure, Hierarchies::V2("/sys/fs/cgroup".into()));
    }

    #[test]
    fn limits_become_files() {
        let resources = LinuxContainerResources {
            cpu_shares: 1024,
            cpu_quota: 50_000,
            cpu_period: 100_000,
            memory_limit_in_bytes: 1 << 20,
            ..Default::default()
        };
        let files = |hierarchies: &Hierarchies| {
            hierarchies
                .changes("/none", &resources)
                .into_iter()
                .map(|(_, file, value)| format!("{file}={value}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            files(&parse(HYBRID)),
            ["cpu.shares=1024", "cpu.cfs_period_us=100000", "cpu.cfs_quota_us=50000", "memory.limit_in_bytes=1048576"]
        );
        assert_eq!(
            files(&Hierarchies::V2("/none".into())),
            ["cpu.weight=100", "cpu.max=50000 100000", "memory.max=1048576"]
        );
    }

    #[test]
    fn weights_span_the_range() {
        assert_eq!((weight(2), weight(1024), weight(262_144)), (1, 100, 10_000));
    }
}
