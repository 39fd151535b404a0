//! `subPath`: one file or directory inside a volume, mounted alone.
//!
//! Whoever can write to the volume could place a link there that points elsewhere on the node. So the kernel resolves
//! the path beneath the volume (`openat2`, RESOLVE_BENEATH), and what is mounted is the opened file itself.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, mkdirat};

/// Binds `volume`/`sub_path` to `target`, which is made as needed. A missing directory is created in the volume, with the
/// volume's own mode so that whoever may write there may write here, unless the volume is read only.
pub fn bind(volume: &Path, sub_path: &str, target: &Path, create: bool) -> io::Result<PathBuf> {
    let opened = open(volume, sub_path, create)?;
    let is_dir = fs::metadata(format!("/proc/self/fd/{}", opened.as_raw_fd()))?.is_dir();
    unbind(target);
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    if is_dir {
        fs::create_dir_all(target)?;
    } else if !target.exists() {
        fs::write(target, b"")?;
    }
    let source = format!("/proc/self/fd/{}", opened.as_raw_fd());
    mount(Some(source.as_str()), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    Ok(target.to_path_buf())
}

/// Undoes [`bind`]; a target that is not mounted is fine.
pub fn unbind(target: &Path) {
    while umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_ok() {}
}

fn open(volume: &Path, sub_path: &str, create: bool) -> io::Result<OwnedFd> {
    let parts: Vec<Component> = Path::new(sub_path).components().collect();
    if parts.iter().any(|c| !matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("subPath {sub_path:?} leaves its volume")));
    }
    let root = fs::File::open(volume)?;
    let how = || OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_BENEATH);
    match openat2(root.as_fd(), Path::new(if sub_path.is_empty() { "." } else { sub_path }), how()) {
        Ok(fd) => return Ok(fd),
        Err(nix::errno::Errno::ENOENT) if create => {}
        Err(e) => return Err(e.into()),
    }
    let mode = fs::metadata(volume)?.permissions();
    let mut walked = PathBuf::new();
    for part in parts {
        let parent = if walked.as_os_str().is_empty() { PathBuf::from(".") } else { walked.clone() };
        walked.push(part);
        let parent = openat2(root.as_fd(), &parent, how())?;
        match mkdirat(parent.as_fd(), Path::new(part.as_os_str()), Mode::S_IRWXU) {
            // Not by mkdir's own mode, from which the umask is taken away.
            Ok(()) => {
                let made = openat2(root.as_fd(), &walked, how())?;
                fs::set_permissions(format!("/proc/self/fd/{}", made.as_raw_fd()), mode.clone())?;
            }
            Err(nix::errno::Errno::EEXIST) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(openat2(root.as_fd(), &walked, how())?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn links_out_of_the_volume_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        fs::create_dir(&volume).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        std::os::unix::fs::symlink("../outside", volume.join("out")).unwrap();
        std::os::unix::fs::symlink("/etc", volume.join("abs")).unwrap();
        for sub_path in ["out", "abs", "../outside", "out/x"] {
            assert!(open(&volume, sub_path, true).is_err(), "{sub_path}");
        }
        fs::set_permissions(&volume, fs::Permissions::from_mode(0o2777)).unwrap();
        open(&volume, "new/dir", true).unwrap();
        for made in ["new", "new/dir"] {
            assert_eq!(fs::metadata(volume.join(made)).unwrap().permissions().mode() & 0o7777, 0o2777, "{made}");
        }
        assert!(open(&volume, "none", false).is_err());
    }
}
