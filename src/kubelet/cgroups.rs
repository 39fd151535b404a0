//! The cgroups of pods: `kubepods`, one per QoS class below it, one per pod below that. The runtime makes the
//! containers' own inside.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;

use crate::pod;
use crate::resources::{self, Qos};

/// Weight range of cgroup v2, against the shares of v1.
fn weight(shares: i64) -> i64 {
    1 + ((shares - 2) * 9999) / 262_142
}

#[derive(Debug, Clone)]
enum Tree {
    /// One hierarchy.
    V2(PathBuf),
    /// One hierarchy per set of controllers: its mount point, and the controllers.
    V1(Vec<(PathBuf, Vec<String>)>),
}

#[derive(Debug, Clone)]
pub struct Cgroups {
    tree: Tree,
    root: String,
    /// The runtime names cgroups as systemd slices.
    systemd: bool,
    memory_capacity: i64,
    pod_pids_max: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
#[error("cgroup {path}")]
pub struct CgroupError {
    path: String,
    source: io::Error,
}

/// CPU and memory of one cgroup, as it stands.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub cpu_nanos: u64,
    pub memory: u64,
    pub working_set: u64,
    pub rss: u64,
}

impl Cgroups {
    pub fn new(root: &str, systemd: bool, memory_capacity: i64, pod_pids_max: Option<u64>) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let root = root.trim_matches('/').to_owned();
        Self { tree: tree(&mounts), root, systemd, memory_capacity, pod_pids_max }
    }

    pub fn is_v2(&self) -> bool {
        matches!(self.tree, Tree::V2(_))
    }

    fn name(&self, parts: &[&str]) -> String {
        let mut path = String::new();
        if self.systemd {
            // Each slice carries its ancestors' names: kubepods-burstable-pod<uid>.slice, with `-` of the uid as `_`.
            let mut joined = String::new();
            for part in parts {
                if !joined.is_empty() {
                    joined.push('-');
                }
                joined.push_str(&part.replace('-', "_"));
                path.push('/');
                path.push_str(&joined);
                path.push_str(".slice");
            }
        } else {
            for part in parts {
                path.push('/');
                path.push_str(part);
            }
        }
        if self.root.is_empty() { path } else { format!("/{}{path}", self.root) }
    }

    fn parts(qos: Qos, pod_part: Option<&str>) -> Vec<&str> {
        let mut parts = vec!["kubepods"];
        match qos {
            Qos::Guaranteed => {}
            Qos::Burstable => parts.push("burstable"),
            Qos::BestEffort => parts.push("besteffort"),
        }
        parts.extend(pod_part);
        parts
    }

    /// What the runtime gets as `cgroup_parent`.
    pub fn pod_parent(&self, pod: &Pod) -> String {
        let part = format!("pod{}", pod::uid(pod));
        let parts = Self::parts(resources::qos(pod), Some(&part));
        let path = self.name(&parts);
        // For systemd the slice's own name is enough.
        if self.systemd { path.rsplit('/').next().unwrap_or_default().to_owned() } else { path }
    }

    /// The pod's directory below the mount point, for usage figures.
    fn pod_path(&self, uid: &str, qos: Qos) -> String {
        let part = format!("pod{uid}");
        self.name(&Self::parts(qos, Some(&part)))
    }

    /// Makes `kubepods` and its classes. All pods together get no more memory than the limit.
    pub fn ensure_roots(&self, milli_cpu: i64, memory_limit: Option<i64>) -> Result<(), CgroupError> {
        for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            self.make(&self.name(&Self::parts(qos, None)))?;
        }
        let top = self.name(&["kubepods"]);
        self.set_cpu(&top, resources::cpu_shares(milli_cpu), None);
        // A limit from an earlier start is taken away, too.
        self.set_memory(&top, Some(memory_limit.unwrap_or(-1)));
        self.set_cpu(&self.name(&["kubepods", "besteffort"]), resources::cpu_shares(0), None);
        Ok(())
    }

    /// The class as a whole weighs what its pods asked for.
    pub fn weigh_burstable(&self, milli_cpu: i64) {
        self.set_cpu(&self.name(&["kubepods", "burstable"]), resources::cpu_shares(milli_cpu), None);
    }

    /// Makes the pod's cgroup with its limits. A repeat applies limits anew.
    pub fn ensure_pod(&self, pod: &Pod) -> Result<(), CgroupError> {
        let path = self.pod_path(pod::uid(pod), resources::qos(pod));
        self.make(&path)?;
        let shares = resources::cpu_shares(resources::pod_request(pod, "cpu").to_milli());
        let quota = resources::pod_limit(pod, "cpu").map(|q| resources::cpu_quota(q.to_milli()));
        self.set_cpu(&path, shares, quota);
        let memory = resources::pod_limit(pod, "memory").map(|q| q.value()).filter(|m| *m < self.memory_capacity);
        self.set_memory(&path, memory);
        if let Some(pids_max) = self.pod_pids_max {
            self.set("pids", &path, "pids.max", &pids_max.to_string());
        }
        Ok(())
    }

    /// Removes the pod's cgroup, whatever its class was, with what is left below it.
    pub fn remove_pod(&self, uid: &str) {
        for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            let path = self.pod_path(uid, qos);
            for dir in self.dirs(&path) {
                remove_tree(&dir);
            }
        }
    }

    /// The uids of pods that have a cgroup.
    pub fn pods(&self) -> Vec<String> {
        let mut uids = Vec::new();
        for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            for dir in self.dirs(&self.name(&Self::parts(qos, None))) {
                for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    let name = name.strip_suffix(".slice").unwrap_or(&name);
                    let last = if self.systemd { name.rsplit('-').next().unwrap_or(name) } else { name };
                    if let Some(uid) = last.strip_prefix("pod").filter(|u| !u.is_empty() && *u != "s") {
                        uids.push(if self.systemd { uid.replace('_', "-") } else { uid.to_owned() });
                    }
                }
            }
        }
        uids.sort();
        uids.dedup();
        uids
    }

    pub fn pod_usage(&self, pod: &Pod) -> Usage {
        self.usage(&self.pod_path(pod::uid(pod), resources::qos(pod)))
    }

    fn usage(&self, path: &str) -> Usage {
        let number = |p: PathBuf| fs::read_to_string(p).ok().and_then(|t| t.trim().parse::<u64>().ok()).unwrap_or(0);
        let stat = |p: PathBuf, key: &str| {
            let text = fs::read_to_string(p).unwrap_or_default();
            text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')?.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        let (cpu_nanos, memory, inactive, rss) = match &self.tree {
            Tree::V2(_) => {
                let dir = self.dirs(path).into_iter().next().unwrap_or_default();
                let memory = number(dir.join("memory.current"));
                let inactive = stat(dir.join("memory.stat"), "inactive_file");
                let rss = stat(dir.join("memory.stat"), "anon");
                (stat(dir.join("cpu.stat"), "usage_usec") * 1000, memory, inactive, rss)
            }
            Tree::V1(_) => {
                let cpu = self.controller("cpuacct", path).unwrap_or_default();
                let dir = self.controller("memory", path).unwrap_or_default();
                let memory = number(dir.join("memory.usage_in_bytes"));
                let inactive = stat(dir.join("memory.stat"), "total_inactive_file");
                let rss = stat(dir.join("memory.stat"), "total_rss");
                (number(cpu.join("cpuacct.usage")), memory, inactive, rss)
            }
        };
        Usage { cpu_nanos, memory, working_set: memory.saturating_sub(inactive), rss }
    }

    /// The directory of `path` in every hierarchy.
    fn dirs(&self, path: &str) -> Vec<PathBuf> {
        let below = path.trim_start_matches('/');
        match &self.tree {
            Tree::V2(mount) => vec![mount.join(below)],
            Tree::V1(mounts) => mounts.iter().map(|(mount, _)| mount.join(below)).collect(),
        }
    }

    fn controller(&self, controller: &str, path: &str) -> Option<PathBuf> {
        let below = path.trim_start_matches('/');
        match &self.tree {
            Tree::V2(mount) => Some(mount.join(below)),
            Tree::V1(mounts) => {
                let found = mounts.iter().find(|(_, c)| c.iter().any(|c| c == controller));
                found.map(|(mount, _)| mount.join(below))
            }
        }
    }

    fn make(&self, path: &str) -> Result<(), CgroupError> {
        for dir in self.dirs(path) {
            let failed = |source| CgroupError { path: dir.display().to_string(), source };
            fs::create_dir_all(&dir).map_err(failed)?;
        }
        match &self.tree {
            // Children get a controller only if every ancestor hands it down.
            Tree::V2(mount) => {
                let mut dir = mount.clone();
                let parts: Vec<&str> = path.trim_matches('/').split('/').filter(|p| !p.is_empty()).collect();
                for part in std::iter::once("").chain(parts) {
                    if !part.is_empty() {
                        dir.push(part);
                    }
                    for controller in ["cpu", "cpuset", "io", "memory", "pids", "hugetlb"] {
                        let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
                    }
                }
            }
            // A new cpuset is empty, and nothing can run in it.
            Tree::V1(_) => {
                let Some(cpuset) = self.controller("cpuset", "/") else { return Ok(()) };
                let mut dir = cpuset;
                for part in path.trim_matches('/').split('/').filter(|p| !p.is_empty()) {
                    let parent = dir.clone();
                    dir.push(part);
                    for file in ["cpuset.cpus", "cpuset.mems"] {
                        let own = fs::read_to_string(dir.join(file)).unwrap_or_default();
                        if own.trim().is_empty()
                            && let Ok(inherited) = fs::read_to_string(parent.join(file))
                        {
                            let _ = fs::write(dir.join(file), inherited.trim());
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn set(&self, controller: &str, path: &str, file: &str, value: &str) {
        let Some(dir) = self.controller(controller, path) else { return };
        if let Err(error) = fs::write(dir.join(file), value) {
            tracing::debug!(%error, path, file, value, "cannot set a cgroup value");
        }
    }

    fn set_cpu(&self, path: &str, shares: i64, quota: Option<i64>) {
        if self.is_v2() {
            self.set("cpu", path, "cpu.weight", &weight(shares).to_string());
            if let Some(quota) = quota.filter(|q| *q > 0) {
                self.set("cpu", path, "cpu.max", &format!("{quota} 100000"));
            }
        } else {
            self.set("cpu", path, "cpu.shares", &shares.to_string());
            if let Some(quota) = quota.filter(|q| *q > 0) {
                self.set("cpu", path, "cpu.cfs_period_us", "100000");
                self.set("cpu", path, "cpu.cfs_quota_us", &quota.to_string());
            }
        }
    }

    fn set_memory(&self, path: &str, limit: Option<i64>) {
        let Some(limit) = limit else { return };
        let file = if self.is_v2() { "memory.max" } else { "memory.limit_in_bytes" };
        let value = if limit < 0 && self.is_v2() { "max".to_owned() } else { limit.to_string() };
        self.set("memory", path, file, &value);
    }
}

fn remove_tree(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    if let Err(error) = fs::remove_dir(dir)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(%error, dir = %dir.display(), "cannot remove a cgroup");
    }
}

/// Reads `/proc/self/mountinfo`. A machine whose controllers are on v1 counts as v1, hybrid or not.
fn tree(mountinfo: &str) -> Tree {
    let mut v1 = Vec::new();
    let mut v2 = None;
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(point) = left.split(' ').nth(4) else { continue };
        let mut right = right.split(' ');
        match right.next() {
            Some("cgroup") => {
                let options = right.nth(1).unwrap_or_default();
                v1.push((PathBuf::from(point), options.split(',').map(str::to_owned).collect::<Vec<_>>()));
            }
            Some("cgroup2") => v2 = Some(PathBuf::from(point)),
            _ => {}
        }
    }
    v1.retain(|(_, options)| options.iter().any(|o| o == "name=systemd" || !o.starts_with("name=")));
    let has_controllers = v1.iter().any(|(_, options)| options.iter().any(|o| o == "memory" || o == "cpu"));
    if has_controllers { Tree::V1(v1) } else { Tree::V2(v2.unwrap_or_else(|| "/sys/fs/cgroup".into())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const HYBRID: &str = "30 20 0:26 / /sys/fs/cgroup/memory rw shared:1 - cgroup cgroup rw,memory\n\
        31 20 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        32 20 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn trees_are_told_apart() {
        assert!(matches!(tree(HYBRID), Tree::V1(mounts) if mounts.len() == 2));
        let v2 = "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert!(matches!(tree(v2), Tree::V2(mount) if mount == Path::new("/sys/fs/cgroup")));
    }

    #[test]
    fn pods_have_upstreams_paths() {
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"uid": "a-b"}, "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}}),
        )
        .unwrap();
        let groups = |root: &str, systemd| Cgroups {
            tree: tree(HYBRID),
            root: root.into(),
            systemd,
            memory_capacity: 1,
            pod_pids_max: None,
        };
        assert_eq!(groups("", false).pod_parent(&pod), "/kubepods/burstable/poda-b");
        assert_eq!(groups("lab", false).pod_parent(&pod), "/lab/kubepods/burstable/poda-b");
        assert_eq!(groups("", true).pod_parent(&pod), "kubepods-burstable-poda_b.slice");
        assert_eq!((weight(2), weight(1024), weight(262_144)), (1, 39, 10_000));
    }

    #[test]
    fn values_reach_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let groups = Cgroups {
            tree: Tree::V2(dir.path().into()),
            root: String::new(),
            systemd: false,
            memory_capacity: 1 << 40,
            pod_pids_max: Some(77),
        };
        let pod: Pod = serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": {"containers": [
            {"name": "c", "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}}}]}}))
        .unwrap();
        groups.ensure_pod(&pod).unwrap();
        let read = |file: &str| fs::read_to_string(dir.path().join("kubepods/podu").join(file)).unwrap();
        assert_eq!((read("cpu.max"), read("memory.max")), ("50000 100000".into(), "67108864".into()));
        assert_eq!(read("pids.max"), "77");
        assert_eq!(groups.pods(), ["u"]);
    }
}
