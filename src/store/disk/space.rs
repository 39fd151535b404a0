//! How much room the file system has left.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Bytes that an unprivileged writer may still use on the file system of `dir`.
#[allow(unsafe_code)]
pub(crate) fn free_bytes(dir: &Path) -> io::Result<u64> {
    let path = CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: all-zero is a valid statvfs, and the call only fills it; the path is NUL-terminated and outlives the call.
    let (answer, stat) = unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        (libc::statvfs(path.as_ptr(), &mut stat), stat)
    };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    if stat.f_flag & libc::ST_RDONLY != 0 {
        return Err(io::Error::from_raw_os_error(libc::EROFS));
    }
    #[allow(clippy::unnecessary_cast)] // The field types differ between architectures.
    Ok((stat.f_bavail as u64).saturating_mul(stat.f_frsize as u64))
}
