//! Making directories inside a container's root file system without leaving it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, mkdirat};

/// Longest path that is made; deeper ones are nothing that an image or a pod needs.
const COMPONENTS_MAX: usize = 64;

fn open(root: &File, path: &Path) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    openat2(root, path, how)
}

/// Makes `path`, as the container will see it, and the directories above it. Links are followed inside the root.
pub fn make_dir(rootfs: &Path, path: &str) -> io::Result<()> {
    let root = File::open(rootfs)?;
    let mut made = PathBuf::new();
    let components: Vec<_> = Path::new(path).components().filter(|part| matches!(part, Component::Normal(_))).collect();
    if components.len() > COMPONENTS_MAX || Path::new(path).components().any(|part| part == Component::ParentDir) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{path} is not a usable path")));
    }
    for component in components {
        let parent = open(&root, &made)?;
        made.push(component);
        match open(&root, &made) {
            Ok(_) => {}
            Err(nix::Error::ENOENT) => mkdirat(&parent, component.as_os_str(), Mode::from_bits_truncate(0o755))?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn directories_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let rootfs = dir.path().join("r");
        fs::create_dir_all(rootfs.join("real")).unwrap();
        symlink("/real", rootfs.join("link")).unwrap();
        symlink("../..", rootfs.join("up")).unwrap();
        make_dir(&rootfs, "/a/b").unwrap();
        make_dir(&rootfs, "/link/x").unwrap();
        make_dir(&rootfs, "/up/y").unwrap();
        assert!(rootfs.join("a/b").is_dir() && rootfs.join("real/x").is_dir() && rootfs.join("y").is_dir());
        assert!(make_dir(&rootfs, "/a/../../b").is_err());
        fs::write(rootfs.join("file"), "").unwrap();
        assert!(make_dir(&rootfs, "/file/x").is_err());
    }
}
