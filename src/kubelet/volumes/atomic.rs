//! Writes a set of files so that a reader sees all of the old ones or all of the new ones.
//!
//! The files lie in a directory named after the time; `..data` points at it and is replaced by rename; each visible
//! name points into `..data`. Programs that follow config changes know this layout, so it is upstream's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// One file of a payload. The key of a payload is its relative path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub data: Vec<u8>,
    pub mode: u32,
    pub owner: Option<u32>,
}

pub type Payload = BTreeMap<String, File>;

/// Makes `target` hold exactly `payload`. Says whether anything had to change.
pub fn write(target: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    for path in payload.keys() {
        check(path)?;
    }
    let old = fs::read_link(target.join(DATA)).ok();
    if let Some(old) = &old
        && holds(&target.join(old), payload)?
    {
        return Ok(false);
    }
    let name = format!("..{}", Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S.%9f"));
    let dir = target.join(&name);
    make_dir(&dir, group)?;
    for (path, file) in payload {
        let mut parent = dir.clone();
        if let Some(inner) = Path::new(path).parent() {
            for part in inner.components() {
                parent.push(part);
                if !parent.is_dir() {
                    make_dir(&parent, group)?;
                }
            }
        }
        let path = dir.join(path);
        fs::write(&path, &file.data)?;
        if file.owner.is_some() || group.is_some() {
            chown(&path, file.owner, group)?;
        }
        // A group that owns the file must be able to read it.
        let mode = if group.is_some() { file.mode | 0o440 } else { file.mode };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    let _ = fs::remove_file(target.join(DATA_NEW));
    symlink(&name, target.join(DATA_NEW))?;
    fs::rename(target.join(DATA_NEW), target.join(DATA))?;

    let visible: BTreeSet<&str> = payload.keys().filter_map(|p| p.split('/').next()).collect();
    for entry in &visible {
        let link = target.join(entry);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(entry), &link)?;
        }
    }
    for entry in fs::read_dir(target)? {
        let entry = entry?;
        let file_name = entry.file_name();
        let shown = file_name.to_string_lossy();
        if shown.starts_with("..") {
            if shown != DATA && *shown != *name && entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            }
        } else if !visible.contains(&*shown) && entry.file_type()?.is_symlink() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(true)
}

fn make_dir(path: &Path, group: Option<u32>) -> io::Result<()> {
    fs::create_dir_all(path)?;
    let mut mode = 0o755;
    if group.is_some() {
        chown(path, None, group)?;
        mode |= 0o2000;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Relative, without `..`, and no name that this layout uses itself.
fn check(path: &str) -> io::Result<()> {
    let parts: Vec<Component> = Path::new(path).components().collect();
    let plain = parts.iter().all(|c| matches!(c, Component::Normal(_)));
    if path.is_empty() || parts.is_empty() || !plain || path.starts_with("..") {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("invalid path {path:?} in a volume")));
    }
    Ok(())
}

fn holds(dir: &Path, payload: &Payload) -> io::Result<bool> {
    let mut found = Vec::new();
    if !dir.is_dir() {
        return Ok(false);
    }
    collect(dir, dir, &mut found)?;
    if found.len() != payload.len() {
        return Ok(false);
    }
    for (path, file) in payload {
        let path = dir.join(path);
        let Ok(meta) = fs::metadata(&path) else { return Ok(false) };
        let mode = meta.mode() & 0o7777;
        if (mode != file.mode && mode != file.mode | 0o440) || fs::read(&path)? != file.data {
            return Ok(false);
        }
    }
    Ok(true)
}

fn collect(base: &Path, dir: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(base, &path, found)?;
        } else {
            found.push(path.strip_prefix(base).unwrap_or(&path).to_path_buf());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |data: &str| File { data: data.into(), mode: 0o644, owner: None };
        files.iter().map(|(path, data)| ((*path).to_owned(), file(data))).collect()
    }

    #[test]
    fn files_appear_change_and_vanish_together() {
        let dir = tempfile::tempdir().unwrap();
        let read = |path: &str| fs::read_to_string(dir.path().join(path)).ok();
        assert!(write(dir.path(), &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap());
        assert_eq!((read("a"), read("sub/b")), (Some("1".into()), Some("2".into())));
        assert!(!write(dir.path(), &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap(), "nothing changed");
        assert!(write(dir.path(), &payload(&[("a", "3"), ("c", "4")]), None).unwrap());
        assert_eq!((read("a"), read("sub/b"), read("c")), (Some("3".into()), None, Some("4".into())));
        let entries = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(entries, 4, "a, c, ..data and one dated directory");
        assert!(write(dir.path(), &payload(&[]), None).unwrap());
        assert_eq!(read("a"), None);
    }

    #[test]
    fn paths_cannot_escape() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["../x", "/x", "", "..data", "a/../../x"] {
            assert!(write(dir.path(), &payload(&[(path, "")]), None).is_err(), "{path}");
        }
    }
}
