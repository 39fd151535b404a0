//! Linux capabilities of containers: the usual default set, plus and minus what the pod asks.

use mussel_cri::v1::Capability;
use serde_json::{Value, json};

/// All that Linux knows, in the kernel's order.
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What containers get that ask for nothing: the set that images are written for.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The node cannot give what it does not have itself (a bounding set that was cut).
fn available() -> Vec<String> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    let mask = mask.unwrap_or(u64::MAX);
    ALL.iter().enumerate().filter(|(bit, _)| mask & (1 << bit) != 0).map(|(_, name)| (*name).to_owned()).collect()
}

/// The capabilities of a container's processes, by name and without `CAP_`.
#[derive(Debug, Clone)]
pub struct Capabilities {
    set: Vec<String>,
    ambient: Vec<String>,
    lent: Vec<String>,
}

impl Capabilities {
    /// For privileged containers.
    pub fn all() -> Self {
        Self { set: available(), ambient: Vec::new(), lent: Vec::new() }
    }

    /// For the others. Names come with or without `CAP_`, in any case; `ALL` stands for every one.
    pub fn of_container(wanted: &Capability, default_mknod: bool) -> Self {
        let available = available();
        let (set, ambient) = decide(wanted, default_mknod);
        let keep = |set: Vec<String>| set.into_iter().filter(|name| available.contains(name)).collect::<Vec<_>>();
        Self { set: keep(set), ambient: keep(ambient), lent: Vec::new() }
    }

    pub fn names(&self) -> &[String] {
        &self.set
    }

    /// Gives the runtime's own code one more, until the process runs the container's: execve(2) leaves no capability
    /// that is not in the bounding set.
    pub fn lend(&mut self, name: &str) {
        if !self.set.iter().any(|one| one == name) {
            self.lent.push(name.to_owned());
        }
    }

    pub fn to_json(&self) -> Value {
        let names = |set: &[String]| set.iter().map(|name| format!("CAP_{name}")).collect::<Vec<_>>();
        let with_lent = names(&[self.set.clone(), self.lent.clone()].concat());
        json!({
            "bounding": names(&self.set),
            "effective": with_lent,
            "permitted": with_lent,
            "inheritable": names(&self.ambient),
            "ambient": names(&self.ambient),
        })
    }
}

fn plain(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    upper.strip_prefix("CAP_").unwrap_or(&upper).to_owned()
}

fn decide(wanted: &Capability, default_mknod: bool) -> (Vec<String>, Vec<String>) {
    let list = |names: &[String]| names.iter().map(|name| plain(name)).collect::<Vec<_>>();
    let (add, drop, ambient) =
        (list(&wanted.add_capabilities), list(&wanted.drop_capabilities), list(&wanted.add_ambient_capabilities));
    let has_all = |names: &[String]| names.iter().any(|name| name == "ALL");
    let base: Vec<&str> = match (has_all(&add), has_all(&drop)) {
        (true, _) => ALL.to_vec(),
        (false, true) => Vec::new(),
        (false, false) => DEFAULT.iter().copied().filter(|name| default_mknod || *name != "MKNOD").collect(),
    };
    let mut set: Vec<String> = base.into_iter().map(str::to_owned).collect();
    for name in add.iter().chain(&ambient) {
        if ALL.contains(&name.as_str()) && !set.contains(name) {
            set.push(name.clone());
        }
    }
    set.retain(|name| !drop.contains(name) || add.contains(name));
    let ambient = ambient.into_iter().filter(|name| set.contains(name)).collect();
    (set, ambient)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(add: &[&str], drop: &[&str]) -> Vec<String> {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        decide(&Capability { add_capabilities: own(add), drop_capabilities: own(drop), ..Default::default() }, true).0
    }

    #[test]
    fn sets() {
        assert_eq!(check(&[], &[]).len(), 14);
        assert_eq!(check(&["NET_ADMIN"], &["ALL"]), ["NET_ADMIN"]);
        assert_eq!(check(&["cap_sys_time"], &["ALL"]), ["SYS_TIME"]);
        assert_eq!(check(&["ALL"], &["SYS_ADMIN"]).len(), 40);
        assert!(!check(&[], &["KILL"]).contains(&"KILL".to_owned()));
        assert_eq!(check(&["NO_SUCH"], &["ALL"]), Vec::<String>::new());
        assert_eq!(decide(&Capability::default(), false).0.len(), 13);
    }
}
