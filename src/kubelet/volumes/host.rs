//! hostPath: the node's own files, after the check that the volume asks for.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;

use super::{VolumeError, on};

pub fn check(path: &Path, type_: &str) -> Result<(), VolumeError> {
    let shown = path.display();
    let found = fs::metadata(path).ok();
    let expect = |ok: fn(&fs::FileType) -> bool, word: &str| match &found {
        Some(meta) if ok(&meta.file_type()) => Ok(()),
        _ => Err(VolumeError::HostPath(format!("{shown} is not {word}"))),
    };
    match type_ {
        "" => {
            // No check asked for: what is missing becomes a directory, as runtimes do it for bind mounts.
            if found.is_none() {
                on(&shown, fs::create_dir_all(path))?;
            }
            Ok(())
        }
        "DirectoryOrCreate" => {
            if found.is_none() {
                on(&shown, fs::create_dir_all(path))?;
                on(&shown, fs::set_permissions(path, fs::Permissions::from_mode(0o755)))?;
                return Ok(());
            }
            expect(fs::FileType::is_dir, "a directory")
        }
        "Directory" => expect(fs::FileType::is_dir, "a directory"),
        "FileOrCreate" => {
            if found.is_none() {
                on(&shown, fs::write(path, b""))?;
                on(&shown, fs::set_permissions(path, fs::Permissions::from_mode(0o644)))?;
                return Ok(());
            }
            expect(fs::FileType::is_file, "a file")
        }
        "File" => expect(fs::FileType::is_file, "a file"),
        "Socket" => expect(|t| t.is_socket(), "a socket file"),
        "CharDevice" => expect(|t| t.is_char_device(), "a character device"),
        "BlockDevice" => expect(|t| t.is_block_device(), "a block device"),
        other => Err(VolumeError::HostPath(format!("{other} is an invalid volume type"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_checked_and_made() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        check(&at("d"), "DirectoryOrCreate").unwrap();
        check(&at("f"), "FileOrCreate").unwrap();
        for (name, type_, ok) in [
            ("d", "Directory", true),
            ("d", "File", false),
            ("f", "File", true),
            ("f", "Socket", false),
            ("none", "Directory", false),
            ("d", "Nonsense", false),
        ] {
            assert_eq!(check(&at(name), type_).is_ok(), ok, "{name} {type_}");
        }
    }
}
