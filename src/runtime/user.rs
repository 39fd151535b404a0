//! Who a container runs as, by the image's own /etc/passwd and /etc/group.
//!
//! The files are the image's, so they are opened inside its root (openat2), read up to a bound, and parsed here: the
//! C library's functions would load code from the image.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

/// Larger user databases are not read to their end.
const DATABASE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A user as the kernel knows it, and where it is at home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, the primary one first.
    pub groups: Vec<u32>,
    pub home: String,
}

/// What the caller and the image say about the user.
#[derive(Debug, Clone, Default)]
pub struct Wanted<'a> {
    pub run_as_user: Option<i64>,
    pub run_as_username: &'a str,
    pub run_as_group: Option<i64>,
    pub image_user: &'a str,
    pub supplemental_groups: &'a [i64],
    /// Groups that the image gives its user are not added.
    pub strict: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("open /etc/{file}")]
    Open { file: &'static str, source: io::Error },
    #[error("no users found for {0:?}")]
    NoUser(String),
    #[error("no groups found for {0:?}")]
    NoGroup(String),
    #[error("{0} is not a user or group number")]
    OutOfRange(i64),
    #[error("run_as_group is set without a user")]
    GroupWithoutUser,
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn passwd(text: &str) -> impl Iterator<Item = Passwd<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let home = fields.nth(1).unwrap_or("");
        Some(Passwd { name, uid: uid.parse().ok()?, gid: gid.parse().ok()?, home })
    })
}

fn groups(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
        Some((name, gid.parse().ok()?, fields.next().unwrap_or("")))
    })
}

fn number(value: i64) -> Result<u32, UserError> {
    u32::try_from(value).map_err(|_| UserError::OutOfRange(value))
}

/// Finds the user in the root file system at `rootfs`.
pub fn resolve(rootfs: &Path, wanted: &Wanted<'_>) -> Result<User, UserError> {
    decide(wanted, &read(rootfs, "passwd")?, &read(rootfs, "group")?)
}

fn decide(wanted: &Wanted<'_>, passwd_text: &str, group_text: &str) -> Result<User, UserError> {
    let (image_user, image_group) = wanted.image_user.split_once(':').unwrap_or((wanted.image_user, ""));
    let from_image = wanted.run_as_user.is_none() && wanted.run_as_username.is_empty();
    if wanted.run_as_group.is_some() && from_image && image_user.is_empty() {
        return Err(UserError::GroupWithoutUser);
    }
    let name = match wanted.run_as_user {
        Some(uid) => number(uid)?.to_string(),
        None if !wanted.run_as_username.is_empty() => wanted.run_as_username.to_owned(),
        None if image_user.is_empty() => "0".to_owned(),
        None => image_user.to_owned(),
    };
    let entry = match name.parse::<u32>() {
        Ok(uid) => passwd(passwd_text).find(|entry| entry.uid == uid),
        Err(_) => {
            Some(passwd(passwd_text).find(|entry| entry.name == name).ok_or_else(|| UserError::NoUser(name.clone()))?)
        }
    };
    let uid = entry.as_ref().map_or_else(|| name.parse().unwrap_or(0), |entry| entry.uid);
    let gid = match wanted.run_as_group {
        Some(gid) => number(gid)?,
        None if from_image && !image_group.is_empty() => match image_group.parse() {
            Ok(gid) => gid,
            Err(_) => {
                groups(group_text)
                    .find(|(name, ..)| *name == image_group)
                    .ok_or_else(|| UserError::NoGroup(image_group.to_owned()))?
                    .1
            }
        },
        None => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let mut all = vec![gid];
    let mut add = |gid| {
        if !all.contains(&gid) {
            all.push(gid);
        }
    };
    if let (Some(entry), false) = (&entry, wanted.strict) {
        groups(group_text)
            .filter(|(_, _, members)| members.split(',').any(|member| member == entry.name))
            .for_each(|(_, gid, _)| add(gid));
    }
    for gid in wanted.supplemental_groups {
        add(number(*gid)?);
    }
    let home = entry.map(|entry| entry.home).filter(|home| home.starts_with('/')).unwrap_or("/").to_owned();
    Ok(User { uid, gid, groups: all, home })
}

/// An absent file is an empty one: images from scratch have none.
fn read(rootfs: &Path, file: &'static str) -> Result<String, UserError> {
    let error = |source| UserError::Open { file, source };
    let root = File::open(rootfs).map_err(error)?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let fd = match openat2(&root, format!("etc/{file}").as_str(), how) {
        Ok(fd) => fd,
        Err(nix::Error::ENOENT | nix::Error::ENOTDIR) => return Ok(String::new()),
        Err(source) => return Err(error(source.into())),
    };
    let opened = File::from(fd);
    if !opened.metadata().map_err(error)?.is_file() {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    opened.take(DATABASE_BYTES_MAX).read_to_end(&mut bytes).map_err(error)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/var/www:/bin/sh\nbad line\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nextra:x:50:other,web\nlogs:x:51:web\n";

    fn check(wanted: Wanted<'_>, expected: (u32, u32, &[u32], &str)) {
        let user = decide(&wanted, PASSWD, GROUP).unwrap();
        assert_eq!((user.uid, user.gid, user.groups.as_slice(), user.home.as_str()), expected, "{wanted:?}");
    }

    #[test]
    fn users_and_groups() {
        let wanted = Wanted::default;
        check(wanted(), (0, 0, &[0], "/root"));
        check(Wanted { image_user: "web", ..wanted() }, (33, 34, &[34, 50, 51], "/var/www"));
        check(Wanted { image_user: "web", strict: true, ..wanted() }, (33, 34, &[34], "/var/www"));
        check(Wanted { image_user: "33:logs", ..wanted() }, (33, 51, &[51, 50], "/var/www"));
        check(Wanted { image_user: "1000:7", ..wanted() }, (1000, 7, &[7], "/"));
        check(Wanted { image_user: "web", run_as_user: Some(1000), ..wanted() }, (1000, 0, &[0], "/"));
        check(
            Wanted { run_as_user: Some(33), run_as_group: Some(5), supplemental_groups: &[50, 60], ..wanted() },
            (33, 5, &[5, 50, 51, 60], "/var/www"),
        );
    }

    #[test]
    fn what_cannot_be() {
        let resolve = |wanted: Wanted<'_>| decide(&wanted, PASSWD, GROUP).unwrap_err().to_string();
        assert_eq!(resolve(Wanted { image_user: "nobody", ..Default::default() }), "no users found for \"nobody\"");
        assert_eq!(resolve(Wanted { image_user: "web:x", ..Default::default() }), "no groups found for \"x\"");
        assert_eq!(
            resolve(Wanted { run_as_group: Some(1), ..Default::default() }),
            "run_as_group is set without a user"
        );
        assert!(decide(&Wanted { run_as_user: Some(-1), ..Default::default() }, "", "").is_err());
    }

    #[test]
    fn links_do_not_leave_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("secret");
        std::fs::write(&outside, PASSWD).unwrap();
        let rootfs = dir.path().join("rootfs");
        std::fs::create_dir_all(rootfs.join("etc")).unwrap();
        std::os::unix::fs::symlink(&outside, rootfs.join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("../../../../secret", rootfs.join("etc/group")).unwrap();
        assert_eq!(read(&rootfs, "passwd").unwrap(), "");
        assert_eq!(read(&rootfs, "group").unwrap(), "");
    }
}
