//! Root file systems: the layers of an image with a writable one on top, by overlayfs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// Mount options have one page.
const OPTIONS_BYTES_MAX: usize = 4000;

/// Mounts `layers` (the topmost first) with the writable directory `dir/upper` at `target`.
pub fn mount_writable(layers: &[PathBuf], dir: &Path, target: &Path) -> io::Result<()> {
    let (upper, work) = (dir.join("upper"), dir.join("work"));
    for path in [&upper, &work, &target.to_owned()] {
        fs::create_dir_all(path)?;
    }
    let tail = format!(",upperdir={},workdir={}", escape(&upper)?, escape(&work)?);
    // An image without layers still has a root.
    let empty = dir.join("empty");
    let layers = if layers.is_empty() {
        fs::create_dir_all(&empty)?;
        std::slice::from_ref(&empty)
    } else {
        layers
    };
    overlay(layers, &tail, target, MsFlags::empty())
}

/// Mounts `layers` read-only at `target`; `dir` is for what that takes.
pub fn mount_read_only(layers: &[PathBuf], dir: &Path, target: &Path) -> io::Result<()> {
    let empty = dir.join("empty");
    for path in [&empty, &target.to_owned()] {
        fs::create_dir_all(path)?;
    }
    // overlayfs wants two directories when none is writable.
    let layers: Vec<PathBuf> = layers.iter().cloned().chain([empty]).collect();
    overlay(&layers, "", target, MsFlags::MS_RDONLY)
}

fn overlay(layers: &[PathBuf], tail: &str, target: &Path, flags: MsFlags) -> io::Result<()> {
    let join = |layers: &[PathBuf]| -> io::Result<String> {
        let layers: io::Result<Vec<String>> = layers.iter().map(|layer| escape(layer)).collect();
        Ok(format!("lowerdir={}{tail}", layers?.join(":")))
    };
    let options = join(layers)?;
    if options.len() < OPTIONS_BYTES_MAX {
        return Ok(mount(Some("overlay"), target, Some("overlay"), flags, Some(options.as_str()))?);
    }
    // Many layers: name them relative to the directory that they share.
    let base = common_ancestor(layers);
    let short: Vec<PathBuf> =
        layers.iter().filter_map(|layer| layer.strip_prefix(&base).ok().map(PathBuf::from)).collect();
    let options = join(&short)?;
    if options.len() >= OPTIONS_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many layers for one mount"));
    }
    let target = target.to_owned();
    // The working directory is per process unless a thread asks for its own.
    let thread = std::thread::spawn(move || -> io::Result<()> {
        unshare(CloneFlags::CLONE_FS)?;
        std::env::set_current_dir(&base)?;
        Ok(mount(Some("overlay"), &target, Some("overlay"), flags, Some(options.as_str()))?)
    });
    thread.join().map_err(|_| io::Error::other("the mounting thread panicked"))?
}

fn common_ancestor(paths: &[PathBuf]) -> PathBuf {
    let mut base = paths.first().and_then(|path| path.parent()).unwrap_or(Path::new("/")).to_owned();
    while !paths.iter().all(|path| path.starts_with(&base)) {
        base.pop();
    }
    base
}

fn escape(path: &Path) -> io::Result<String> {
    let text = path.to_str().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "path is not UTF-8"))?;
    Ok(text.replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,"))
}

/// Unmounts what is at `target`, busy or not. Nothing there is fine.
pub fn unmount(target: &Path) -> io::Result<()> {
    loop {
        match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // Something may be mounted below it.
            Ok(()) => {}
            Err(nix::Error::EINVAL | nix::Error::ENOENT | nix::Error::ENOTDIR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Unmounts everything at or below `dir`, the newest first.
pub fn unmount_below(dir: &Path) -> io::Result<()> {
    let mut mounts: Vec<PathBuf> = mount_points(&fs::read_to_string("/proc/self/mountinfo")?);
    mounts.retain(|mount| mount.starts_with(dir));
    for mount in mounts.iter().rev() {
        unmount(mount)?;
    }
    Ok(())
}

fn mount_points(mountinfo: &str) -> Vec<PathBuf> {
    mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(|text| PathBuf::from(unescape(text))).collect()
}

/// Undoes the octal escapes of /proc: `\040` is a space.
pub fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        let code = (byte == b'\\').then(|| tail.get(..3)).flatten();
        let code = code.and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(code) => {
                bytes.push(code);
                rest = &tail[3..];
            }
            None => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_mountinfo_are_unescaped() {
        assert_eq!(unescape(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescape(r"/a\"), r"/a\");
    }

    #[test]
    fn layers_share_an_ancestor() {
        let paths = ["/a/b/c/1", "/a/b/c/2", "/a/b/d"].map(PathBuf::from);
        assert_eq!(common_ancestor(&paths), Path::new("/a/b"));
        assert_eq!(common_ancestor(&paths[..1]), Path::new("/a/b/c"));
    }

    #[test]
    fn separators_are_escaped() {
        assert_eq!(escape(Path::new(r"/a:b,c")).unwrap(), r"/a\:b\,c");
    }
}
