//! Links to containers' logs in one flat folder, whose names say pod, namespace, container and id: where log shippers look.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

/// Longer names fit into no file system; upstream cuts what stands before the ending.
const NAME_BYTES_MAX: usize = 251;

/// Makes the link of a container, anew if it is there.
///
/// # Errors
/// When the folder or the link cannot be made.
pub fn link(
    folder: &Path,
    (namespace, pod, container, id): (&str, &str, &str, &str),
    log: &Path,
) -> Result<(), io::Error> {
    fs::create_dir_all(folder)?;
    let mut name = format!("{pod}_{namespace}_{container}-{id}");
    name.truncate(NAME_BYTES_MAX);
    let link = folder.join(format!("{name}.log"));
    match symlink(log, &link) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(&link)?;
            symlink(log, &link)
        }
        other => other,
    }
}

/// Removes links whose logs are gone.
pub fn remove_dangling(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        if is_link
            && path.extension().is_some_and(|ending| ending == "log")
            && !path.exists()
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::debug!(%error, link = %path.display(), "cannot remove the link to a log that is gone");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_come_and_go_with_their_logs() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, log) = (dir.path().join("containers"), dir.path().join("0.log"));
        fs::write(&log, "x").unwrap();
        for _ in 0..2 {
            link(&folder, ("ns", "pod", "c", "0123"), &log).unwrap();
        }
        let path = folder.join("pod_ns_c-0123.log");
        assert_eq!(fs::read_to_string(&path).unwrap(), "x");
        remove_dangling(&folder);
        assert!(path.exists());
        fs::remove_file(&log).unwrap();
        remove_dangling(&folder);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }
}
