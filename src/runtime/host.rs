//! What the node itself must be like for pods to run on it.

use std::fs;
use std::io;
use std::path::Path;

use nix::mount::{MsFlags, mount};

use crate::snapshot::unescape;

/// Watches of files are limited per user, and the usual limit is too low for a node full of pods.
const INOTIFY_INSTANCES_MIN: u64 = 8192;

/// Prepares the node: mounts below `shared_dirs` are propagated to and from containers, and inotify has room. The
/// directories must exist. To be called before anything is mounted below them. A repeat changes nothing.
pub fn prepare_host(shared_dirs: &[&Path]) -> io::Result<()> {
    for dir in shared_dirs {
        make_shared(dir).map_err(|error| {
            io::Error::new(error.kind(), format!("make mounts below {} shared: {error}", dir.display()))
        })?;
    }
    let path = "/proc/sys/fs/inotify/max_user_instances";
    let current = fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    if current.is_some_and(|current| current < INOTIFY_INSTANCES_MIN)
        && let Err(error) = fs::write(path, INOTIFY_INSTANCES_MIN.to_string())
    {
        tracing::warn!(%error, "raise fs.inotify.max_user_instances");
    }
    Ok(())
}

fn make_shared(dir: &Path) -> io::Result<()> {
    let dir = fs::canonicalize(dir)?;
    if is_shared(&fs::read_to_string("/proc/self/mountinfo")?, &dir) {
        return Ok(());
    }
    // Only the directory: the propagation of other mounts is not ours to change.
    mount(Some(&dir), &dir, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    mount(None::<&str>, &dir, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>)?;
    Ok(())
}

/// Whether the mount that a path is on is in a peer group.
pub(crate) fn is_shared(mountinfo: &str, path: &Path) -> bool {
    mountinfo
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let point = unescape(fields.nth(4)?);
            let shared = fields.skip(1).take_while(|field| *field != "-").any(|field| field.starts_with("shared:"));
            path.starts_with(&point).then_some((point.len(), shared))
        })
        // Of mounts at the same place the last one is seen.
        .max_by_key(|(length, _)| *length)
        .is_some_and(|(_, shared)| shared)
}

/// Whether the kernel can filter system calls.
pub(crate) fn has_seccomp() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.starts_with("Seccomp:"))
}

/// Whether the kernel confines programs by AppArmor profiles.
pub(crate) fn has_apparmor() -> bool {
    fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.trim() == "Y")
}

/// The lowest OOM score that we may give to a child: our own, unless we have the capability to go below it.
pub(crate) fn oom_score_adj_min() -> i64 {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    if effective & CAP_SYS_RESOURCE != 0 {
        return -1000;
    }
    let own = fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|text| text.trim().parse().ok());
    let own = own.unwrap_or(0);
    tracing::info!(minimum = own, "CAP_SYS_RESOURCE is missing: lower OOM scores of containers are raised to ours");
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_decides() {
        let info =
            "1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / /var rw shared:5 - ext4 b rw\n3 2 0:2 / /var/x rw - ext4 b rw";
        assert!(!is_shared(info, Path::new("/etc")));
        assert!(is_shared(info, Path::new("/var/lib")));
        assert!(!is_shared(info, Path::new("/var/x/y")));
    }
}
