//! Device nodes of containers, and who may use which.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use mussel_cri::v1::Device;
use serde_json::{Value, json};

/// Below /dev, but not devices of the node: each container has its own, or they are no devices.
const NOT_PASSED_ON: [&str; 6] = ["pts", "shm", "mqueue", "fd", "hugepages", "console"];

/// A device node to be made in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceNode {
    /// In the container.
    pub path: PathBuf,
    pub block: bool,
    pub major: u64,
    pub minor: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Of `r`, `w`, `m`.
    pub access: String,
}

impl DeviceNode {
    fn kind(&self) -> &'static str {
        if self.block { "b" } else { "c" }
    }

    pub fn to_json(&self) -> Value {
        json!({
            "path": self.path, "type": self.kind(), "major": self.major, "minor": self.minor,
            "fileMode": self.mode, "uid": self.uid, "gid": self.gid,
        })
    }
}

fn node(host: &Path, path: PathBuf, access: &str) -> io::Result<Option<DeviceNode>> {
    let metadata = fs::metadata(host)?;
    let kind = metadata.file_type();
    if !kind.is_block_device() && !kind.is_char_device() {
        return Ok(None);
    }
    Ok(Some(DeviceNode {
        path,
        block: kind.is_block_device(),
        major: u64::from(nix::sys::stat::major(metadata.rdev()) as u32),
        minor: u64::from(nix::sys::stat::minor(metadata.rdev()) as u32),
        mode: metadata.mode() & 0o777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        access: access.to_owned(),
    }))
}

/// The devices that a pod names; a directory means all devices in it.
pub fn named(devices: &[Device]) -> io::Result<Vec<DeviceNode>> {
    let mut nodes = Vec::new();
    for device in devices {
        let host = fs::canonicalize(&device.host_path)?;
        let access = if device.permissions.is_empty() { "rwm" } else { &device.permissions };
        let path =
            PathBuf::from(if device.container_path.is_empty() { &device.host_path } else { &device.container_path });
        if host.is_dir() {
            for entry in fs::read_dir(&host)?.filter_map(Result::ok) {
                nodes.extend(node(&entry.path(), path.join(entry.file_name()), access)?);
            }
        } else {
            let error = || io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not a device", host.display()));
            nodes.push(node(&host, path, access)?.ok_or_else(error)?);
        }
    }
    Ok(nodes)
}

/// Every device of the node, for privileged containers.
pub fn of_node() -> Vec<DeviceNode> {
    let mut nodes = Vec::new();
    collect(Path::new("/dev"), &mut nodes);
    nodes
}

fn collect(dir: &Path, nodes: &mut Vec<DeviceNode>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.filter_map(Result::ok) {
        let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
        if dir == Path::new("/dev") && NOT_PASSED_ON.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        if kind.is_dir() {
            collect(&path, nodes);
        } else if !kind.is_symlink()
            && let Ok(Some(node)) = node(&path, path.clone(), "rwm")
        {
            nodes.push(node);
        }
    }
}

/// What a container's cgroup says of some devices. The last rule that fits counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub allow: bool,
    /// Block or character devices, or both.
    pub block: Option<bool>,
    pub major: Option<u64>,
    pub minor: Option<u64>,
    /// Of `r`, `w`, `m`.
    pub access: String,
}

impl Rule {
    pub fn to_json(&self) -> Value {
        let mut rule = json!({"allow": self.allow, "access": self.access});
        if let Some(block) = self.block {
            rule["type"] = if block { "b" } else { "c" }.into();
        }
        for (name, number) in [("major", self.major), ("minor", self.minor)] {
            if let Some(number) = number {
                rule[name] = number.into();
            }
        }
        rule
    }
}

/// The device rules of a container's cgroup: nothing but the harmless ones and its own; anything when privileged.
pub fn rules(devices: &[DeviceNode], privileged: bool) -> Vec<Rule> {
    let all = Rule { allow: privileged, block: None, major: None, minor: None, access: "rwm".into() };
    if privileged {
        return vec![all];
    }
    let allow = |block: bool, major: Option<u64>, minor: Option<u64>, access: &str| Rule {
        allow: true,
        block: Some(block),
        major,
        minor,
        access: access.to_owned(),
    };
    let mut rules = vec![all];
    // Making nodes is harmless where using them is not allowed.
    rules.push(allow(false, None, None, "m"));
    rules.push(allow(true, None, None, "m"));
    // null, zero, full, random, urandom; tty, console, ptmx; every pts.
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)] {
        rules.push(allow(false, Some(major), Some(minor), "rwm"));
    }
    rules.push(allow(false, Some(136), None, "rwm"));
    for device in devices {
        rules.push(allow(device.block, Some(device.major), Some(device.minor), &device.access));
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_by_name() {
        let device = Device { host_path: "/dev/zero".into(), container_path: "/dev/z".into(), permissions: "r".into() };
        let nodes = named(&[device]).unwrap();
        assert_eq!((nodes[0].major, nodes[0].minor, nodes[0].block), (1, 5, false));
        let rules = rules(&nodes, false);
        assert!(!rules[0].allow);
        assert_eq!(rules.last().unwrap().access, "r");
        assert!(named(&[Device { host_path: "/etc/passwd".into(), ..Default::default() }]).is_err());
    }
}
