//! Stores of one member, made from a backup or from what is left of a group.
//!
//! The new store is made beside the directory and then takes its place at once, so that a crash leaves the one or the
//! other. The old one is moved aside and never deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use openraft::{Membership, StoredMembership};

use crate::backup::{BackupError, Header, format};
use crate::disk::database::Database;
use crate::disk::engine::{Engine, Space, Writes};
use crate::disk::identity::{self, Identity, Marker, Standing};
use crate::disk::lock::DirLock;
use crate::disk::records::{self, Checkpoint};
use crate::disk::{journal, swap};
use crate::mvcc;
use crate::raft::log::LogStore;
use crate::raft::machine::{CHECKPOINT, Machine};
use crate::raft::{LeaderId, LogId, Member, Vote};
use crate::store::opening;
use crate::{Config, Metrics, OpenError, Revision, Versioned};

/// How far revisions jump: beyond any that the cluster can have handed out since, so that whoever still knows one of those
/// is told that it is compacted, and lists again.
const REVISION_JUMP: u64 = 1_000_000_000;

/// Records are written in batches of about this size.
const BATCH_BYTES: usize = 1 << 20;
const CACHE_BYTES: u64 = 8 << 20;

/// A store that was made, and where the one before it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Founded {
    /// The first revision of the new store is the one after this.
    pub revision: Revision,
    pub keys: u64,
    pub old: Option<PathBuf>,
}

/// Makes `dir` a store of one new member with what is in the backup. Nothing is touched before the backup was read as a
/// whole and found to be good; then a store that was there is moved to `<dir>-old-<seconds>`.
///
/// # Errors
/// The directory is as it was. `Locked`: a server is running on it.
pub fn restore(backup: &Path, dir: &Path) -> Result<Founded, RestoreError> {
    let header = format::inspect(backup)?;
    let cluster = u128::from_str_radix(&header.cluster, 16)
        .map_err(|_| BackupError::Damaged { file: backup.to_path_buf(), detail: "it names no cluster".to_string() })?;
    replace(dir, |fresh| {
        let mut founding = Founding::new(fresh, cluster, Revision(header.revision))?;
        let again: Header = format::read(backup, |key, versioned| founding.put(&key, &versioned))?;
        if again != header {
            let detail = "it changed while it was read".to_string();
            return Err(BackupError::Damaged { file: backup.to_path_buf(), detail }.into());
        }
        founding.finish()
    })
}

/// Makes `dir`, a member of a group that is lost, a store of one new member with what this member had. What it had heard
/// of without knowing that a majority had it, counts.
///
/// # Errors
/// The directory is as it was. `Locked`: a server is running on it.
pub fn reset(dir: &Path) -> Result<Founded, RestoreError> {
    let marker = identity::read(dir)?;
    let Some(Marker { identity: old, .. }) = marker else {
        return Err(RestoreError::Empty { dir: dir.to_path_buf() });
    };
    let snapshot = newest(dir, old)?;
    replace(dir, |fresh| {
        let mut founding = Founding::new(fresh, old.cluster, snapshot.revision())?;
        for (key, versioned) in snapshot.range(b"", b"") {
            founding.put(key, versioned)?;
        }
        founding.finish()
    })
}

#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Backup(#[from] BackupError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("{} holds no store", dir.display())]
    Empty { dir: PathBuf },
    #[error("write store {}", dir.display())]
    Write { dir: PathBuf, source: io::Error },
    #[error("read store {}", dir.display())]
    Read { dir: PathBuf, source: io::Error },
}

/// The state of a store that does not run: its last checkpoint, and all of its log.
fn newest(dir: &Path, identity: Identity) -> Result<mvcc::Snapshot, RestoreError> {
    let read = |source| RestoreError::Read { dir: dir.to_path_buf(), source };
    let (engine, closed) = Engine::open(dir, CACHE_BYTES, DirLock::take(dir)?)?;
    let replay = |database: Database| -> Result<mvcc::Snapshot, RestoreError> {
        let machine = Machine::open(&database, &Config::new(dir), identity, Standing::Member, Metrics::default());
        let machine = machine.map_err(read)?;
        let has_journal = identity::has_journal(dir).map_err(read)?;
        let journal = opening::open_journal(dir, &database, &machine, identity, has_journal)?;
        let Some(last) = journal.last() else { return Ok(machine.newest()) };
        let after = machine.applied_id().map_or(0, |id| id.index + 1);
        for index in after.max(journal.start().map_or(0, |id| id.index + 1))..=last.index {
            if let Some(entry) = journal.read(index).map_err(read)? {
                machine.replay(&records::decode_entry(&entry).map_err(read)?);
            }
        }
        Ok(machine.newest())
    };
    let replayed = replay(Database::Engine(Box::new(engine)));
    // It resolves by being dropped: the directory is free again.
    let _ = closed.blocking_recv();
    replayed
}

/// Has `make` fill a fresh directory, and puts it into the place of `dir`.
fn replace(
    dir: &Path,
    make: impl FnOnce(&Path) -> Result<(Revision, u64), RestoreError>,
) -> Result<Founded, RestoreError> {
    let write = |source| RestoreError::Write { dir: dir.to_path_buf(), source };
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else {
        return Err(write(io::Error::from(io::ErrorKind::InvalidInput)));
    };
    let beside = |suffix: &str| {
        let mut name = name.to_os_string();
        name.push(suffix);
        parent.join(name)
    };
    let exists = dir.try_exists().map_err(write)?;
    // Held until the end: nobody starts a server on it meanwhile.
    let lock = if exists { Some(DirLock::take(dir)?) } else { None };
    let fresh = beside("-unfinished");
    match fs::remove_dir_all(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(write(error)),
        _ => {}
    }
    let made = create_private(&fresh).map_err(write).and_then(|()| make(&fresh));
    let (revision, keys) = match made {
        Ok(made) => made,
        Err(error) => {
            let _ = fs::remove_dir_all(&fresh);
            return Err(error);
        }
    };
    let old = if exists {
        swap::exchange(&fresh, dir).map_err(write)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let old = beside(&format!("-old-{now}"));
        fs::rename(&fresh, &old).map_err(write)?;
        Some(old)
    } else {
        fs::rename(&fresh, dir).map_err(write)?;
        None
    };
    identity::sync_dir(parent).map_err(write)?;
    drop(lock);
    Ok(Founded { revision, keys, old })
}

fn create_private(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// A store under construction. It has no marker, and so is none, until [`Founding::finish`].
struct Founding {
    dir: PathBuf,
    engine: Engine,
    closed: tokio::sync::oneshot::Receiver<()>,
    identity: Identity,
    revision: Revision,
    keys: u64,
    digest: u64,
    writes: Writes,
    bytes: usize,
}

impl Founding {
    fn new(dir: &Path, cluster: u128, newest: Revision) -> Result<Self, RestoreError> {
        let write = |source| RestoreError::Write { dir: dir.to_path_buf(), source };
        let (engine, closed) = Engine::open(dir, CACHE_BYTES, DirLock::take(dir)?)?;
        // A member that nobody of the old group has heard of: whoever still looks for an old one does not find it.
        let identity = Identity::join(cluster).map_err(write)?;
        Ok(Self {
            dir: dir.to_path_buf(),
            engine,
            closed,
            identity,
            revision: Revision(newest.0.saturating_add(REVISION_JUMP)),
            keys: 0,
            digest: 0,
            writes: Writes::default(),
            bytes: 0,
        })
    }

    fn put(&mut self, key: &[u8], versioned: &Versioned) -> Result<(), RestoreError> {
        self.keys += 1;
        self.digest = self.digest.wrapping_add(mvcc::fingerprint(key, versioned));
        self.bytes += key.len() + versioned.value.len();
        self.writes.put(Space::State, key, records::encode_versioned(versioned));
        if self.bytes >= BATCH_BYTES {
            self.bytes = 0;
            let writes = std::mem::take(&mut self.writes);
            self.engine.write(&writes).map_err(|source| RestoreError::Write { dir: self.dir.clone(), source })?;
        }
        Ok(())
    }

    /// A group of one, in its first term, whose log begins after the checkpoint.
    fn finish(self) -> Result<(Revision, u64), RestoreError> {
        let Self { dir, engine, closed, identity, revision, keys, digest, mut writes, .. } = self;
        let write = |source| RestoreError::Write { dir: dir.clone(), source };
        let leader_id = LeaderId { term: 1, node_id: identity.member };
        let log_id = LogId { leader_id, index: 1 };
        let members = BTreeMap::from([(identity.member, Member::default())]);
        let membership = Membership::new(vec![BTreeSet::from([identity.member])], members)
            .map_err(|error| write(io::Error::other(error.to_string())))?;
        let membership = StoredMembership::new(Some(log_id), membership);
        let checkpoint = Checkpoint { applied: Some(log_id), membership, revision, keys, digest };
        let mut finish = || -> io::Result<()> {
            writes.put(Space::Meta, CHECKPOINT, records::encode_checkpoint(&checkpoint)?);
            LogStore::found(&mut writes, &Vote { leader_id, committed: true })?;
            identity.record(&mut writes);
            engine.write(&writes)?;
            identity::sync_dir(&dir.join("sled"))?;
            journal::create(&dir)?;
            identity::write(
                &dir,
                &Marker { identity, checkpointed: log_id.index, standing: Standing::Member, closed: None },
            )
        };
        let finished = finish();
        drop(engine);
        // It resolves by being dropped: the database is closed.
        let _ = closed.blocking_recv();
        finished.map_err(write)?;
        Ok((revision, keys))
    }
}
