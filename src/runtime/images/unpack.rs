//! Unpacks one layer: a tar stream from a stranger, into a directory of its own.
//!
//! Nothing in the stream can name a place outside that directory: parents are opened with `RESOLVE_IN_ROOT` (openat2(2)), and
//! everything else is done by single names relative to them. Whiteouts become what overlayfs understands.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, lchown, symlink};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::linkat;
use sha2::{Digest, Sha256};
use tar::{Archive, Entry, EntryType};

/// More than any sane layer holds; a bomb ends here and not with the disk.
const ENTRIES_MAX: u64 = 2_000_000;
const BYTES_MAX: u64 = 64 << 30;
const WHITEOUT: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";

#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("read the layer")]
    Read(#[source] io::Error),
    #[error("unpack {path:?}")]
    Entry { path: PathBuf, source: io::Error },
    #[error("the layer holds more than {0}")]
    TooLarge(&'static str),
    #[error("path {0:?} in the layer is not a path")]
    Path(PathBuf),
}

/// What came out of a layer.
#[derive(Debug)]
pub struct Unpacked {
    /// The digest of the uncompressed stream, `sha256:…`.
    pub diff_id: String,
    /// The bytes of all files.
    pub bytes: u64,
}

/// Unpacks a plain, gzip or zstd compressed tar stream into `root`, an empty directory.
pub fn unpack(layer: impl Read, root: &Path) -> Result<Unpacked, UnpackError> {
    let mut stream = Hashing { inner: decompress(layer).map_err(UnpackError::Read)?, hash: Sha256::new() };
    let open = |source| UnpackError::Entry { path: root.to_owned(), source };
    let mut target = Target {
        root: File::open(root).map_err(open)?.into(),
        parent: None,
        directories: BTreeMap::new(),
        entries: 0,
        bytes: 0,
    };
    {
        let mut archive = Archive::new(&mut stream);
        for entry in archive.entries().map_err(UnpackError::Read)? {
            target.entry(entry.map_err(UnpackError::Read)?)?;
        }
    }
    // Behind the end mark there may be padding, which belongs to the digest.
    io::copy(&mut stream, &mut io::sink()).map_err(UnpackError::Read)?;
    target.finish()?;
    Ok(Unpacked { diff_id: format!("sha256:{}", hex(&stream.hash.finalize())), bytes: target.bytes })
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Tells the compression by its first bytes; media types are not always true.
pub fn decompress<'a>(stream: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut stream = BufReader::with_capacity(64 << 10, stream);
    let head = stream.fill_buf()?;
    if head.starts_with(&[0x1f, 0x8b]) {
        Ok(Box::new(BufReader::with_capacity(64 << 10, flate2::bufread::MultiGzDecoder::new(stream))))
    } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Ok(Box::new(BufReader::with_capacity(64 << 10, zstd::stream::read::Decoder::with_buffer(stream)?)))
    } else {
        Ok(Box::new(stream))
    }
}

struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

struct Target {
    root: OwnedFd,
    /// The directory that the last entry was in; entries come directory by directory.
    parent: Option<(PathBuf, OwnedFd)>,
    /// Times and modes of directories, which are set at the end: what is put in later changes them.
    directories: BTreeMap<PathBuf, (u32, i64)>,
    entries: u64,
    bytes: u64,
}

impl Target {
    fn entry<R: Read>(&mut self, entry: Entry<'_, R>) -> Result<(), UnpackError> {
        self.entries += 1;
        if self.entries > ENTRIES_MAX {
            return Err(UnpackError::TooLarge("two million entries"));
        }
        let path = entry.path().map_err(UnpackError::Read)?.into_owned();
        let Some((dir, name)) = split(&path)? else { return self.root_entry(&entry) };
        let result = self.place(entry, &dir, &name);
        result.map_err(|error| match error {
            PlaceError::Io(source) => UnpackError::Entry { path, source },
            PlaceError::TooLarge => UnpackError::TooLarge("64 GiB"),
        })
    }

    /// The entry for the root directory itself.
    fn root_entry<R: Read>(&mut self, entry: &Entry<'_, R>) -> Result<(), UnpackError> {
        let header = entry.header();
        if header.entry_type() == EntryType::Directory {
            let mode = header.mode().map_err(UnpackError::Read)? & 0o7777;
            let time = i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0);
            let owner = owner(entry).map_err(UnpackError::Read)?;
            self.directories.insert(PathBuf::new(), (mode, time));
            let path = format!("/proc/self/fd/{}/.", self.root.as_raw_fd());
            std::os::unix::fs::chown(&path, Some(owner.0), Some(owner.1)).map_err(UnpackError::Read)?;
        }
        Ok(())
    }

    fn place<R: Read>(&mut self, mut entry: Entry<'_, R>, dir: &Path, name: &OsStr) -> Result<(), PlaceError> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let parent = self.open_dir(dir)?;
        let at = Place { parent, name: name.to_owned() };
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT.as_bytes()) {
            return Ok(white_out(&at, hidden, name == OPAQUE)?);
        }
        let mode = entry.header().mode()? & 0o7777;
        match kind {
            EntryType::Directory => {
                match fs::symlink_metadata(at.path()) {
                    Ok(meta) if meta.is_dir() => {}
                    Ok(_) => {
                        fs::remove_file(at.path())?;
                        fs::DirBuilder::new().mode(0o700).create(at.path())?;
                    }
                    Err(_) => fs::DirBuilder::new().mode(0o700).create(at.path())?,
                }
                let time = i64::try_from(entry.header().mtime().unwrap_or(0)).unwrap_or(0);
                self.directories.insert(dir.join(name), (mode, time));
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                at.clear()?;
                self.bytes = self.bytes.saturating_add(entry.size());
                if self.bytes > BYTES_MAX {
                    return Err(PlaceError::TooLarge);
                }
                let mut file = fs::OpenOptions::new().write(true).create_new(true).open(at.path())?;
                io::copy(&mut entry, &mut file)?;
            }
            EntryType::Symlink => {
                at.clear()?;
                let target = entry.link_name()?.ok_or_else(|| invalid("symbolic link without a target"))?;
                symlink(target, at.path())?;
            }
            EntryType::Link => {
                at.clear()?;
                let target = entry.link_name()?.ok_or_else(|| invalid("hard link without a target"))?.into_owned();
                let (dir, target_name) =
                    split(&target).ok().flatten().ok_or_else(|| invalid("hard link to no path"))?;
                let source = Place { parent: self.open_dir(&dir)?, name: target_name };
                linkat(
                    source.parent.as_fd(),
                    source.name.as_os_str(),
                    at.parent.as_fd(),
                    at.name.as_os_str(),
                    AtFlags::empty(),
                )
                .map_err(io::Error::from)?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                at.clear()?;
                let flag = match kind {
                    EntryType::Char => SFlag::S_IFCHR,
                    EntryType::Block => SFlag::S_IFBLK,
                    _ => SFlag::S_IFIFO,
                };
                let number = |number: io::Result<Option<u32>>| number.map(|number| u64::from(number.unwrap_or(0)));
                let device = makedev(number(entry.header().device_major())?, number(entry.header().device_minor())?);
                mknodat(at.parent.as_fd(), at.name.as_os_str(), flag, Mode::from_bits_truncate(mode), device)
                    .map_err(io::Error::from)?;
            }
            // Of no meaning in an image.
            _ => return Ok(()),
        }
        Ok(attributes(&mut entry, &at, kind, mode)?)
    }

    /// Opens (and makes, where an archive leaves it out) a directory below the root.
    fn open_dir(&mut self, dir: &Path) -> io::Result<OwnedFd> {
        if let Some((known, fd)) = &self.parent
            && known == dir
        {
            return fd.try_clone();
        }
        let fd = match self.resolve(dir) {
            Ok(fd) => fd,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (Some(above), Some(name)) = (dir.parent(), dir.file_name()) else { return Err(error) };
                let place = Place { parent: self.open_dir(above)?, name: name.to_owned() };
                fs::DirBuilder::new().mode(0o755).create(place.path())?;
                self.resolve(dir)?
            }
            Err(error) => return Err(error),
        };
        self.parent = Some((dir.to_owned(), fd.try_clone()?));
        Ok(fd)
    }

    fn resolve(&self, dir: &Path) -> io::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let path = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        Ok(openat2(self.root.as_fd(), path, how)?)
    }

    fn finish(&mut self) -> Result<(), UnpackError> {
        // The deepest first: setting a directory's mode may take away our way to what is below it.
        for (path, (mode, time)) in std::mem::take(&mut self.directories).into_iter().rev() {
            let result = self.resolve(&path).and_then(|fd| {
                let at = format!("/proc/self/fd/{}/.", fd.as_raw_fd());
                fs::set_permissions(&at, Permissions::from_mode(mode))?;
                set_time(&fd, OsStr::new("."), time)
            });
            match result {
                // Something that came later took the directory's place.
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                result => result.map_err(|source| UnpackError::Entry { path, source })?,
            }
        }
        Ok(())
    }
}

enum PlaceError {
    Io(io::Error),
    TooLarge,
}

impl From<io::Error> for PlaceError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// One name in an open directory.
struct Place {
    parent: OwnedFd,
    name: OsString,
}

impl Place {
    /// A path that passes through no name of the archive but the last.
    fn path(&self) -> PathBuf {
        Path::new("/proc/self/fd").join(self.parent.as_raw_fd().to_string()).join(&self.name)
    }

    /// Makes room: a later entry replaces an earlier one of the same name.
    fn clear(&self) -> io::Result<()> {
        match fs::symlink_metadata(self.path()) {
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(self.path()),
            Ok(_) => fs::remove_file(self.path()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The directory and the name of an archive path; `None` for the root itself.
fn split(path: &Path) -> Result<Option<(PathBuf, OsString)>, UnpackError> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(UnpackError::Path(path.to_owned())),
        }
    }
    let Some(name) = clean.file_name().map(OsStr::to_owned) else { return Ok(None) };
    clean.pop();
    Ok(Some((clean, name)))
}

/// A file of a lower layer that shall not be seen: overlayfs has a 0/0 character device or an opaque directory for that.
fn white_out(at: &Place, hidden: &[u8], opaque: bool) -> io::Result<()> {
    if opaque {
        let dir = format!("/proc/self/fd/{}/.", at.parent.as_raw_fd());
        return set_xattr(Path::new(&dir), b"trusted.overlay.opaque", b"y");
    }
    if hidden.is_empty() || hidden == b"." || hidden == b".." {
        return Err(invalid("whiteout of no name"));
    }
    let name = OsStr::from_bytes(hidden);
    let hidden = Place { parent: at.parent.try_clone()?, name: name.to_owned() };
    hidden.clear()?;
    Ok(mknodat(at.parent.as_fd(), name, SFlag::S_IFCHR, Mode::empty(), 0)?)
}

fn owner<R: Read>(entry: &Entry<'_, R>) -> io::Result<(u32, u32)> {
    let id = |id: io::Result<u64>| id.map(|id| u32::try_from(id).unwrap_or(u32::MAX));
    Ok((id(entry.header().uid())?, id(entry.header().gid())?))
}

/// Owner, mode, extended attributes and time; in this order, because chown drops set-user-id bits and capabilities.
fn attributes<R: Read>(entry: &mut Entry<'_, R>, at: &Place, kind: EntryType, mode: u32) -> io::Result<()> {
    let (uid, gid) = owner(entry)?;
    lchown(at.path(), Some(uid), Some(gid))?;
    if kind != EntryType::Symlink && kind != EntryType::Directory {
        fs::set_permissions(at.path(), Permissions::from_mode(mode))?;
    }
    for (name, value) in extended(entry)? {
        match set_xattr(&at.path(), &name, &value) {
            // File systems without a kind of attribute are common (tmpfs, NFS); the file is of use without.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                tracing::debug!(name = %String::from_utf8_lossy(&name), "file system takes no such attribute");
            }
            result => result?,
        }
    }
    if kind == EntryType::Directory {
        return Ok(());
    }
    let time = i64::try_from(entry.header().mtime().unwrap_or(0)).unwrap_or(0);
    set_time(&at.parent, &at.name, time)
}

/// The extended attributes that pax headers carry (`SCHILY.xattr.<name>`).
fn extended<R: Read>(entry: &mut Entry<'_, R>) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    const PREFIX: &[u8] = b"SCHILY.xattr.";
    let mut found = Vec::new();
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions {
            let extension = extension?;
            if let Some(name) = extension.key_bytes().strip_prefix(PREFIX) {
                // trusted.* would be ours to interpret (overlayfs), not an image's to set.
                if name.starts_with(b"security.capability") || name.starts_with(b"user.") {
                    found.push((name.to_owned(), extension.value_bytes().to_owned()));
                }
            }
        }
    }
    Ok(found)
}

fn set_time(dir: &OwnedFd, name: &OsStr, seconds: i64) -> io::Result<()> {
    let time = TimeSpec::new(seconds, 0);
    Ok(utimensat(dir.as_fd(), name, &time, &time, UtimensatFlags::NoFollowSymlink)?)
}

fn set_xattr(path: &Path, name: &[u8], value: &[u8]) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let name = CString::new(name)?;
    // SAFETY: both strings end with NUL and live through the call; value is valid for its own length.
    #[allow(unsafe_code)]
    let result = unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    use super::*;

    fn header(kind: EntryType, size: usize) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size as u64);
        header.set_mode(0o4755);
        header.set_mtime(1000);
        header.set_uid(12);
        header.set_gid(34);
        header
    }

    fn raw(kind: EntryType, path: &str, link: &str, content: &[u8]) -> Vec<u8> {
        let mut header = header(kind, content.len());
        // Past the library's own checks: a stranger would not use them.
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().div_ceil(512) * 512, 0);
        bytes
    }

    fn end(mut archive: Vec<u8>) -> Vec<u8> {
        archive.extend_from_slice(&[0; 1024]);
        archive
    }

    fn is_root() -> bool {
        let root = nix::unistd::geteuid().is_root();
        if !root {
            eprintln!("skipped: needs root");
        }
        root
    }

    #[test]
    fn a_layer_keeps_what_its_entries_say() {
        if !is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let archive = end([
            raw(EntryType::Directory, "bin/", "", b""),
            raw(EntryType::Regular, "bin/sh", "", b"hello"),
            raw(EntryType::Link, "bin/ash", "bin/sh", b""),
            raw(EntryType::Symlink, "etc/alias", "../bin/sh", b""),
            raw(EntryType::Regular, ".wh.gone", "", b""),
            raw(EntryType::Regular, "bin/.wh..wh..opq", "", b""),
        ]
        .concat());
        let unpacked = unpack(&archive[..], dir.path()).unwrap();
        assert_eq!(unpacked.diff_id, format!("sha256:{}", hex(&Sha256::digest(&archive))));
        assert_eq!(unpacked.bytes, 5);
        let shell = fs::metadata(dir.path().join("bin/sh")).unwrap();
        assert_eq!((shell.uid(), shell.gid(), shell.mode() & 0o7777, shell.mtime()), (12, 34, 0o4755, 1000));
        assert_eq!(fs::metadata(dir.path().join("bin/ash")).unwrap().ino(), shell.ino());
        assert_eq!(fs::metadata(dir.path().join("bin")).unwrap().mtime(), 1000);
        assert_eq!(fs::read_link(dir.path().join("etc/alias")).unwrap(), Path::new("../bin/sh"));
        let gone = fs::symlink_metadata(dir.path().join("gone")).unwrap();
        assert!(gone.file_type().is_char_device() && gone.rdev() == 0);

        for compressed in [zstd::encode_all(&archive[..], 1).unwrap(), {
            let mut encoder = flate2::read::GzEncoder::new(&archive[..], flate2::Compression::fast());
            let mut bytes = Vec::new();
            encoder.read_to_end(&mut bytes).unwrap();
            bytes
        }] {
            let dir = tempfile::tempdir().unwrap();
            assert_eq!(unpack(&compressed[..], dir.path()).unwrap().diff_id, unpacked.diff_id);
        }
    }

    #[test]
    fn nothing_leaves_the_directory() {
        if !is_root() {
            return;
        }
        let outside = tempfile::tempdir().unwrap();
        let victim = outside.path().join("victim");
        fs::write(&victim, "unharmed").unwrap();
        let away = outside.path().to_str().unwrap();
        let through_link =
            [raw(EntryType::Symlink, "link", away, b""), raw(EntryType::Regular, "link/victim", "", b"harmed")];
        let hard_link = [
            raw(EntryType::Link, "grab", &format!("{away}/victim"), b""),
            raw(EntryType::Regular, "grab", "", b"harmed"),
        ];
        let over_link =
            [raw(EntryType::Symlink, "f", victim.to_str().unwrap(), b""), raw(EntryType::Regular, "f", "", b"harmed")];
        let dots = [raw(EntryType::Regular, "../../victim", "", b"harmed")];
        let whiteout = [raw(EntryType::Regular, "a/.wh...", "", b"")];
        for archive in [&through_link[..], &hard_link, &over_link, &dots, &whiteout] {
            let dir = tempfile::tempdir().unwrap();
            // Refused or kept inside: either is fine.
            let _ = unpack(&end(archive.concat())[..], dir.path());
            assert_eq!(fs::read_to_string(&victim).unwrap(), "unharmed");
            assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_truncated_layer_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let archive = end(raw(EntryType::Regular, "a", "", &[7; 5000]));
        assert!(unpack(&archive[..2000], dir.path()).is_err());
    }
}
