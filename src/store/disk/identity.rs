//! Who this member is, in a file of its own beside the database.
//!
//! A database that lost its files opens as an empty one. The marker tells such a member from a fresh one: it names the
//! cluster and the member, and the newest checkpoint that the database must still have.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use crate::disk::engine::{Space, Writes};
use crate::{OpenError, next_version};

pub(crate) const RECORD: &[u8] = b"identity";

/// The layouts of the directory that this version reads. It writes the newest. 3: values may be compressed. 4: the log has
/// files of its own.
const FORMATS: RangeInclusive<u32> = 2..=4;
const JOURNAL_SINCE: u32 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) cluster: u128,
    pub(crate) member: u64,
}

impl Identity {
    /// A new cluster of which this is the first member.
    pub(crate) fn found() -> io::Result<Self> {
        let mut bytes = [0; 16];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(Self { cluster: u128::from_le_bytes(bytes), member: 1 })
    }

    /// A new member of a cluster that exists. Its id is one that nobody ever had.
    pub(crate) fn join(cluster: u128) -> io::Result<Self> {
        let mut bytes = [0; 8];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        // The founder is 1, and 0 is nobody.
        Ok(Self { cluster, member: u64::from_le_bytes(bytes).max(2) })
    }

    /// The database says itself whose it is.
    pub(crate) fn record(&self, writes: &mut Writes) {
        writes.put(Space::Meta, RECORD, [&self.cluster.to_le_bytes()[..], &self.member.to_le_bytes()].concat());
    }

    /// What [`Identity::record`] wrote; `None` when it is damaged.
    pub(crate) fn from_record(record: &[u8]) -> Option<Self> {
        let (cluster, member) = record.split_first_chunk::<16>()?;
        Some(Self { cluster: u128::from_le_bytes(*cluster), member: u64::from_le_bytes(member.try_into().ok()?) })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Marker {
    pub(crate) identity: Identity,
    /// The log index after the newest checkpoint that is known to be on disk; 0 before the first.
    pub(crate) checkpointed: u64,
    pub(crate) standing: Standing,
    /// The end of the log when the store was shut down; `None` while it runs, and after a crash. Damage inside the log looks
    /// like its torn end to the engine, which a clean end does not have.
    pub(crate) closed: Option<u64>,
}

/// What this member is to its group, as far as it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It asked to be one of the group, and is no voter yet.
    Joining,
    Member,
    /// For good.
    Removed,
}

fn path(dir: &Path) -> PathBuf {
    dir.join("identity")
}

pub(crate) fn read(dir: &Path) -> Result<Option<Marker>, OpenError> {
    let file = path(dir);
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(OpenError::Read { file, source }),
    };
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .ok_or_else(|| OpenError::Corrupt { file: file.clone(), detail: format!("no field {name}") })
    };
    let bad = |name: &str| OpenError::Corrupt { file: file.clone(), detail: format!("field {name} is not a number") };
    let found: u32 = field("format")?.parse().map_err(|_| bad("format"))?;
    let formats = next_version::formats(FORMATS);
    if !formats.contains(&found) {
        return Err(OpenError::Format { file, found, oldest: *formats.start(), newest: *formats.end() });
    }
    Ok(Some(Marker {
        identity: Identity {
            cluster: u128::from_str_radix(field("cluster")?, 16).map_err(|_| bad("cluster"))?,
            member: field("member")?.parse().map_err(|_| bad("member"))?,
        },
        checkpointed: field("checkpointed")?.parse().map_err(|_| bad("checkpointed"))?,
        standing: match field("standing") {
            Ok("joining") => Standing::Joining,
            Ok("removed") => Standing::Removed,
            // The first version had no such field.
            _ => Standing::Member,
        },
        closed: match field("closed") {
            Ok(index) => Some(index.parse().map_err(|_| bad("closed"))?),
            Err(_) => None,
        },
    }))
}

/// The layout that is written.
fn format() -> u32 {
    *next_version::formats(FORMATS).end()
}

/// Whether the layout is one whose log has files of its own.
pub(crate) fn has_journal(dir: &Path) -> io::Result<bool> {
    let text = fs::read_to_string(path(dir))?;
    let format = text.lines().find_map(|line| line.strip_prefix("format=")?.parse::<u32>().ok());
    Ok(format.is_some_and(|format| format >= JOURNAL_SINCE))
}

/// Has older versions refuse a directory that they could read until now. On disk when this returns.
pub(crate) fn upgrade(dir: &Path, marker: &Marker) -> io::Result<()> {
    let format = format();
    match fs::read_to_string(path(dir))?.starts_with(&format!("format={format}\n")) {
        true => Ok(()),
        false => write(dir, marker),
    }
}

/// Replaces the marker as a whole. It is on disk when this returns.
pub(crate) fn write(dir: &Path, marker: &Marker) -> io::Result<()> {
    let Marker { identity: Identity { cluster, member }, checkpointed, standing, closed } = marker;
    let standing = match standing {
        Standing::Joining => "joining",
        Standing::Member => "member",
        Standing::Removed => "removed",
    };
    let format = format();
    let mut text = format!(
        "format={format}\ncluster={cluster:032x}\nmember={member}\ncheckpointed={checkpointed}\nstanding={standing}\n"
    );
    if let Some(closed) = closed {
        text.push_str(&format!("closed={closed}\n"));
    }
    let temporary = dir.join("identity.new");
    let mut file = File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path(dir))?;
    sync_dir(dir)
}

/// Makes names that were created in `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_survives_a_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        let identity = Identity::found().unwrap();
        let marker = Marker { identity, checkpointed: 7, standing: Standing::Joining, closed: Some(9) };
        write(dir.path(), &marker).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(marker));
    }

    #[test]
    fn the_format_before_is_read_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let marker = Marker {
            identity: Identity::found().unwrap(),
            checkpointed: 7,
            standing: Standing::Member,
            closed: Some(9),
        };
        write(dir.path(), &marker).unwrap();
        let now = fs::read_to_string(path(dir.path())).unwrap();
        fs::write(path(dir.path()), now.replace("format=4", "format=2")).unwrap();
        let found = read(dir.path()).unwrap().unwrap();
        assert_eq!(found, marker);
        assert!(!has_journal(dir.path()).unwrap());
        upgrade(dir.path(), &found).unwrap();
        assert_eq!(fs::read_to_string(path(dir.path())).unwrap(), now);
        assert!(has_journal(dir.path()).unwrap());
    }

    #[test]
    fn a_newer_format_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("identity"), "format=99\n").unwrap();
        assert!(matches!(read(dir.path()), Err(OpenError::Format { found: 99, .. })));
    }
}
