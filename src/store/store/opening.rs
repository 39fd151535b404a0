//! How a directory is opened: it is held against what is known of it, and whatever does not fit is named before anything is
//! changed.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;

use crate::disk::database::Database;
use crate::disk::engine::{Engine, Space, Writes};
use crate::disk::identity::{self, Identity, Marker, Standing};
use crate::disk::journal::{self, Journal, JournalError, Place};
use crate::disk::lock::DirLock;
use crate::disk::thread::{Disk, OPEN_FREE_BYTES_MIN};
use crate::disk::{inspect, space};
use crate::metrics::Metrics;
use crate::raft::log::LogStore;
use crate::raft::machine::Machine;
use crate::{ClusterId, Config, OpenError};

/// How often this member was started: tells its proposals of one start from those of another.
const SESSION: &[u8] = b"session";

/// What to do with a directory that has no data.
#[derive(Clone, Debug)]
pub(crate) enum Beginning {
    /// Found a cluster.
    Open,
    Join {
        cluster: ClusterId,
        seeds: Vec<String>,
    },
}

pub(crate) struct Opened {
    pub(crate) disk: Disk,
    pub(crate) closed: oneshot::Receiver<()>,
    pub(crate) log: LogStore,
    pub(crate) machine: Arc<Machine>,
    pub(crate) identity: Identity,
    pub(crate) session: u64,
}

pub(super) fn open_disk(config: &Config, beginning: &Beginning, metrics: Metrics) -> Result<Opened, OpenError> {
    let dir = config.dir.as_path();
    create_dir(dir)?;
    let lock = DirLock::take(dir)?;
    let marker = identity::read(dir)?;
    if let Some(marker) = &marker {
        admit(config, beginning, marker)?;
    }
    if let Some(marker) = &marker
        && !dir.join("sled").join("db").exists()
    {
        let detail = format!("is gone (it had log index {})", marker.checkpointed);
        return Err(OpenError::Lost { dir: dir.to_path_buf(), detail });
    }
    inspect::inspect(&dir.join("sled").join("db"), dir, marker.is_some())?;
    // Before the engine writes anything: a full disk in the middle of its own recovery could not be undone.
    let free = space::free_bytes(dir).map_err(|source| OpenError::NotWritable { dir: dir.to_path_buf(), source })?;
    if free < OPEN_FREE_BYTES_MIN {
        let source = io::Error::from(io::ErrorKind::StorageFull);
        return Err(OpenError::NotWritable { dir: dir.to_path_buf(), source });
    }

    let (engine, closed) = Engine::open(dir, config.cache_bytes, lock)?;
    // Before there is a marker there is no log.
    let has_journal = match &marker {
        Some(_) => {
            identity::has_journal(dir).map_err(|source| OpenError::Read { file: dir.join("identity"), source })?
        }
        None => {
            journal::create(dir).map_err(|source| OpenError::Write { file: dir.join(journal::DIRECTORY), source })?;
            true
        }
    };
    let (identity, standing) = settle_identity(dir, &engine, marker, beginning)?;
    let session =
        next_session(&engine).map_err(|source| OpenError::Engine { file: engine.file().to_path_buf(), source })?;
    let file = engine.file().to_path_buf();
    let damaged = |source: io::Error| match source.kind() {
        io::ErrorKind::InvalidData => OpenError::Corrupt { file: file.clone(), detail: source.to_string() },
        _ => OpenError::Engine { file: file.clone(), source },
    };
    let database = Database::Engine(Box::new(engine));
    let recover = |database: Database| -> Result<(Disk, Arc<Machine>, LogStore), OpenError> {
        let machine = Machine::open(&database, config, identity, standing, metrics.clone()).map_err(damaged)?;
        let journal = open_journal(dir, &database, &machine, identity, has_journal)?;
        if let Some(marker) = &marker {
            identity::upgrade(dir, marker).map_err(|source| OpenError::Write { file: dir.join("identity"), source })?;
        }
        journal::forget_old(&database).map_err(damaged)?;
        let disk = Disk::start(database, journal, machine.pace(), dir.to_path_buf(), metrics).map_err(damaged)?;
        let log = LogStore::open(disk.clone(), machine.applied_index()).map_err(damaged)?;
        // Reading may have finished what a crash had interrupted inside the engine.
        disk.engine().settle().map_err(damaged)?;
        if let Some(marker) = marker
            && machine.applied_index().load(Ordering::Acquire) < marker.checkpointed
        {
            let detail = format!("goes back behind log index {}, which was on disk", marker.checkpointed);
            return Err(OpenError::Lost { dir: dir.to_path_buf(), detail });
        }
        if let Some(marker) = marker
            && let Some(closed) = marker.closed
        {
            let end = log.last_index().max(machine.applied_index().load(Ordering::Acquire));
            if end < closed {
                let detail = format!("is damaged: its log ends at {end}, and ended at {closed} when it was closed");
                return Err(OpenError::Lost { dir: dir.to_path_buf(), detail });
            }
            // From now on it may end anywhere again: Raft takes back what was not committed.
            identity::write(dir, &Marker { closed: None, ..marker })
                .map_err(|source| OpenError::Write { file: dir.join("identity"), source })?;
        }
        let membership = machine.membership();
        if membership.voter_ids().any(|voter| voter == identity.member) {
            machine.stands(Standing::Member);
        } else if standing == Standing::Joining && matches!(beginning, Beginning::Open) {
            return Err(OpenError::NotJoined { dir: dir.to_path_buf() });
        }
        if config.peer.is_none() && membership.membership().nodes().count() > 1 {
            return Err(OpenError::NoTransport { dir: dir.to_path_buf() });
        }
        Ok((disk, machine, log))
    };
    match recover(database) {
        Ok((disk, machine, log)) => Ok(Opened { disk, closed, log, machine, identity, session }),
        Err(error) => {
            // The lock is free again when the caller hears of it. This resolves by being dropped.
            let _ = closed.blocking_recv();
            Err(error)
        }
    }
}

/// Raft's log. What it may lack of what the state has is no longer needed.
pub(crate) fn open_journal(
    dir: &Path,
    database: &Database,
    machine: &Machine,
    identity: Identity,
    has_journal: bool,
) -> Result<Journal, OpenError> {
    let path = dir.join(journal::DIRECTORY);
    if !has_journal {
        journal::migrate(dir, database, identity).map_err(|source| match source.kind() {
            io::ErrorKind::InvalidData => {
                OpenError::Corrupt { file: database.file().to_path_buf(), detail: source.to_string() }
            }
            _ => OpenError::Write { file: path.clone(), source },
        })?;
    }
    if !path.exists() {
        return Err(OpenError::Lost { dir: dir.to_path_buf(), detail: "has lost its log".to_string() });
    }
    let applied = machine.applied_id();
    let place = Place::Directory(path);
    let journal = Journal::open(place, identity, journal::SEGMENT_BYTES, applied.map_or(0, |id| id.index))?;
    if let Some(applied) = applied
        && journal.last().is_none_or(|last| last.index < applied.index)
    {
        journal.purge(applied);
    }
    Ok(journal)
}

impl From<JournalError> for OpenError {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::Damaged { file, detail } => OpenError::Corrupt { file, detail },
            JournalError::Read { dir, source } => OpenError::Read { file: dir, source },
        }
    }
}

fn create_dir(dir: &Path) -> Result<(), OpenError> {
    use std::os::unix::fs::DirBuilderExt;
    // What is stored may be secret.
    let created = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    created.map_err(|source| OpenError::Create { dir: dir.to_path_buf(), source })
}

/// Whether a directory with data may be opened as it is asked for.
fn admit(config: &Config, beginning: &Beginning, marker: &Marker) -> Result<(), OpenError> {
    let dir = config.dir.clone();
    let Identity { cluster, member } = marker.identity;
    if let Beginning::Join { cluster: wanted, .. } = beginning
        && wanted.0 != cluster
    {
        return Err(OpenError::OtherCluster { dir, found: ClusterId(cluster), wanted: *wanted });
    }
    if marker.standing == Standing::Removed {
        return Err(OpenError::Removed { dir, member });
    }
    Ok(())
}

/// Counts this start. On disk when it returns.
fn next_session(engine: &Engine) -> io::Result<u64> {
    let last = match engine.get(Space::Meta, SESSION)? {
        Some(record) => record
            .as_slice()
            .try_into()
            .map(u64::from_le_bytes)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the count of starts is damaged"))?,
        None => 0,
    };
    let mut writes = Writes::default();
    writes.put(Space::Meta, SESSION, (last + 1).to_le_bytes().to_vec());
    engine.write(&writes)?;
    Ok(last + 1)
}

/// Holds the database's identity against the marker's. A fresh directory gets both, the database first: a marker alone
/// always means that a database was lost.
fn settle_identity(
    dir: &Path,
    engine: &Engine,
    marker: Option<Marker>,
    beginning: &Beginning,
) -> Result<(Identity, Standing), OpenError> {
    let read = |source| OpenError::Engine { file: engine.file().to_path_buf(), source };
    let write = |source| OpenError::Write { file: dir.join("identity"), source };
    let record = engine.get(Space::Meta, identity::RECORD).map_err(read)?;
    let stored = match &record {
        Some(record) => Some(Identity::from_record(record).ok_or_else(|| engine.corrupt("its identity is damaged"))?),
        None => None,
    };
    match (stored, marker) {
        (Some(stored), Some(marker)) if stored == marker.identity => Ok((stored, marker.standing)),
        (Some(_), Some(_)) => {
            let detail = "belongs to another cluster or member".to_string();
            Err(OpenError::Lost { dir: dir.to_path_buf(), detail })
        }
        (None, Some(_)) => {
            let detail = "is empty".to_string();
            Err(OpenError::Lost { dir: dir.to_path_buf(), detail })
        }
        // The first start ended between the two.
        (Some(identity), None) => {
            let standing = begins_as(beginning);
            let marker = Marker { identity, checkpointed: 0, standing, closed: None };
            if let Beginning::Join { cluster: wanted, .. } = beginning
                && wanted.0 != identity.cluster
            {
                let found = ClusterId(identity.cluster);
                return Err(OpenError::OtherCluster { dir: dir.to_path_buf(), found, wanted: *wanted });
            }
            identity::write(dir, &marker).map_err(write)?;
            Ok((identity, standing))
        }
        (None, None) => {
            let identity = match beginning {
                Beginning::Open => Identity::found(),
                Beginning::Join { cluster, .. } => Identity::join(cluster.0),
            };
            let (identity, standing) = (identity.map_err(write)?, begins_as(beginning));
            let mut writes = Writes::default();
            identity.record(&mut writes);
            engine.write(&writes).map_err(read)?;
            identity::sync_dir(&dir.join("sled")).map_err(write)?;
            identity::write(dir, &Marker { identity, checkpointed: 0, standing, closed: None }).map_err(write)?;
            Ok((identity, standing))
        }
    }
}

fn begins_as(beginning: &Beginning) -> Standing {
    match beginning {
        Beginning::Open => Standing::Member,
        Beginning::Join { .. } => Standing::Joining,
    }
}
