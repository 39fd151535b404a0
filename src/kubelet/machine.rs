//! What this machine is: capacity, names and versions, read once from the kernel and a few files.

use std::fs;
use std::path::Path;

use crate::tuning::Tuning;

#[derive(Debug, Clone, Default)]
pub struct Machine {
    pub cpus: i64,
    pub memory: i64,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    pub kernel: String,
    pub os_image: String,
    pub architecture: &'static str,
    /// The kernel confines programs by AppArmor profiles.
    pub apparmor: bool,
}

impl Machine {
    pub fn read() -> Self {
        let text = |path: &str| fs::read_to_string(path).map(|t| t.trim().to_owned()).unwrap_or_default();
        let meminfo = text("/proc/meminfo");
        let machine_id = Some(text("/etc/machine-id")).filter(|t| !t.is_empty());
        let machine_id = machine_id.unwrap_or_else(|| text("/var/lib/dbus/machine-id"));
        let uuid = Some(text("/sys/class/dmi/id/product_uuid")).filter(|t| !t.is_empty());
        let kernel = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned());
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            cpus: i64::try_from(cpus).unwrap_or(1),
            memory: memory_field(&meminfo, "MemTotal"),
            system_uuid: uuid.unwrap_or_else(|| machine_id.clone()),
            machine_id,
            boot_id: text("/proc/sys/kernel/random/boot_id"),
            kernel: kernel.unwrap_or_default(),
            os_image: os_image(&text("/etc/os-release")),
            architecture: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            },
            apparmor: text("/sys/module/apparmor/parameters/enabled") == "Y",
        }
    }
}

/// What of a machine is there for pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub milli_cpu: i64,
    pub memory: i64,
    /// What all pods together may use, when something is reserved for others.
    pub memory_limit: Option<i64>,
}

impl Machine {
    /// What is left for pods: not what is reserved, nor what has to stay free.
    pub fn room(&self, tuning: &Tuning) -> Room {
        let reserved = tuning.reserved;
        let total = u64::try_from(self.memory).unwrap_or(0);
        let free = tuning.eviction.memory.map_or(0, |least| i64::try_from(least.of(total)).unwrap_or(i64::MAX));
        let limit = self.memory.saturating_sub(reserved.memory_bytes).max(0);
        Room {
            milli_cpu: (self.cpus * 1000).saturating_sub(reserved.milli_cpu).max(0),
            memory: limit.saturating_sub(free).max(0),
            memory_limit: (reserved.memory_bytes > 0).then_some(limit),
        }
    }
}

/// Bytes of one line of `/proc/meminfo`.
pub fn memory_field(meminfo: &str, name: &str) -> i64 {
    let line = meminfo.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<i64>().ok()).unwrap_or(0);
    kib.saturating_mul(1024)
}

/// Bytes that programs can still get without swapping.
pub fn memory_available() -> i64 {
    memory_field(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemAvailable")
}

fn os_image(release: &str) -> String {
    let value = |key: &str| {
        let line = release.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='))?;
        Some(line.trim_matches('"').to_owned())
    };
    value("PRETTY_NAME").or_else(|| value("NAME")).unwrap_or_else(|| "Linux".into())
}

/// Space and inodes of the file system that holds a path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FsUsage {
    pub capacity: u64,
    pub available: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

impl FsUsage {
    pub fn of(path: &Path) -> std::io::Result<Self> {
        let stat = nix::sys::statvfs::statvfs(path)?;
        let block = stat.fragment_size();
        Ok(Self {
            capacity: stat.blocks() * block,
            available: stat.blocks_available() * block,
            inodes: stat.files(),
            inodes_free: stat.files_available(),
        })
    }

    pub fn used(&self) -> u64 {
        self.capacity.saturating_sub(self.available)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_understood() {
        assert_eq!(memory_field("MemTotal:  2 kB\nMemFree: 1 kB", "MemTotal"), 2048);
        assert_eq!(os_image("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12\""), "Debian GNU/Linux 12");
        let machine = Machine::read();
        assert!(machine.cpus > 0 && machine.memory > 0 && !machine.kernel.is_empty());
    }
}
