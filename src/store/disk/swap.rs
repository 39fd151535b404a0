//! Two directories change places at once.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Exchanges the names of `a` and `b`, which must exist. There is no moment at which one of them does not.
#[allow(unsafe_code)]
pub(crate) fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    let (a, b) = (CString::new(a.as_os_str().as_bytes())?, CString::new(b.as_os_str().as_bytes())?);
    // SAFETY: both paths are NUL-terminated and outlive the call, which reads nothing else of ours.
    let answer =
        unsafe { libc::renameat2(libc::AT_FDCWD, a.as_ptr(), libc::AT_FDCWD, b.as_ptr(), libc::RENAME_EXCHANGE) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn both_have_the_others_contents() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir(&a).unwrap();
        fs::create_dir(&b).unwrap();
        fs::write(a.join("of a"), "").unwrap();
        exchange(&a, &b).unwrap();
        assert!(b.join("of a").exists() && !a.join("of a").exists());
        assert!(exchange(&a, &dir.path().join("none")).is_err());
    }
}
