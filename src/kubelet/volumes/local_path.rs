//! Directories that are volumes: made and removed on this node at the word of the provisioner.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Component, Path};

/// What names of volumes begin with. Nothing else is made, and above all nothing else removed.
const PREFIX: &str = "pvc-";
const PATH_BYTES_MAX: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum LocalPathError {
    #[error(
        "{path:?} is not the path of a volume: absolute, without `..`, below a folder, with a name that begins with {PREFIX}"
    )]
    Path { path: String },
    #[error("{path} is not a directory")]
    NotADirectory { path: String },
    #[error("something is mounted below {path}")]
    Mounted { path: String },
    #[error("{action} {path}: {source}")]
    Io { action: &'static str, path: String, source: io::Error },
}

fn on<T>(action: &'static str, path: &Path, result: io::Result<T>) -> Result<T, LocalPathError> {
    result.map_err(|source| LocalPathError::Io { action, path: path.display().to_string(), source })
}

/// Makes the directory, that every user may write to, below a folder that none but root may enter. A repeat changes nothing.
///
/// # Errors
/// When the path may not be a volume's, or the disk refuses.
pub fn make(path: &str) -> Result<(), LocalPathError> {
    let (path, folder) = checked(path)?;
    on("create", folder, DirBuilder::new().recursive(true).mode(0o700).create(folder))?;
    on("set the mode of", folder, fs::set_permissions(folder, Permissions::from_mode(0o700)))?;
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => check_directory(path)?,
        result => on("create", path, result)?,
    }
    // Past the umask.
    on("set the mode of", path, fs::set_permissions(path, Permissions::from_mode(0o777)))
}

/// Removes the directory with all in it. A repeat succeeds.
///
/// # Errors
/// When the path may not be a volume's, something is mounted in it, or the disk refuses.
pub fn remove(path: &str) -> Result<(), LocalPathError> {
    let (path, _) = checked(path)?;
    match check_directory(path) {
        Err(LocalPathError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        checked => checked?,
    }
    if !on("look for mounts below", path, super::mounts_below(path))?.is_empty() {
        return Err(LocalPathError::Mounted { path: path.display().to_string() });
    }
    on("remove", path, fs::remove_dir_all(path))
}

/// The path, and the folder that it is in.
fn checked(text: &str) -> Result<(&Path, &Path), LocalPathError> {
    let path = Path::new(text);
    let refused = || LocalPathError::Path { path: text.chars().take(256).collect() };
    let mut parts = path.components();
    let plain =
        parts.next() == Some(Component::RootDir) && parts.clone().all(|part| matches!(part, Component::Normal(_)));
    let named = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(PREFIX));
    if !plain || !named || parts.count() < 2 || text.len() > PATH_BYTES_MAX {
        return Err(refused());
    }
    Ok((path, path.parent().ok_or_else(refused)?))
}

/// A link would lead elsewhere.
fn check_directory(path: &Path) -> Result<(), LocalPathError> {
    match on("look at", path, fs::symlink_metadata(path))?.is_dir() {
        true => Ok(()),
        false => Err(LocalPathError::NotADirectory { path: path.display().to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("deep/storage");
        let path = root.join("pvc-1_a_data");
        let text = path.to_str().unwrap();
        make(text).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&root), mode(&path)), (0o700, 0o777));
        fs::write(path.join("file"), "x").unwrap();
        make(text).unwrap();
        assert!(path.join("file").exists(), "a repeat keeps what is there");
        std::os::unix::fs::symlink(dir.path(), path.join("link")).unwrap();
        remove(text).unwrap();
        remove(text).unwrap();
        assert!(!path.exists() && dir.path().exists(), "links are not followed");
    }

    #[test]
    fn nothing_but_volumes_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["/etc", "/pvc-1", "pvc-1", "/srv/../etc/pvc-1", "/srv/data", ""] {
            assert!(matches!(remove(path), Err(LocalPathError::Path { .. })), "{path}");
            assert!(matches!(make(path), Err(LocalPathError::Path { .. })), "{path}");
        }
        let link = dir.path().join("pvc-link");
        std::os::unix::fs::symlink("/etc", &link).unwrap();
        assert!(matches!(remove(link.to_str().unwrap()), Err(LocalPathError::NotADirectory { .. })));
    }
}
