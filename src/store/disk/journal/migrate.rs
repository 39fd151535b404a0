//! A log that the layout before kept in the database gets files of its own.

use std::fs;
use std::io;
use std::path::Path;

use crate::disk::database::Database;
use crate::disk::engine::{Space, Writes};
use crate::disk::identity::{Identity, sync_dir};
use crate::disk::journal::{DIRECTORY, Encoded, Journal, JournalError, Place, SEGMENT_BYTES};
use crate::disk::records;

/// Up to where the log was purged.
const PURGED: &[u8] = b"purged";

/// What is written, and forgotten, at once.
const BYTES_AT_ONCE: usize = 1 << 20;
const RECORDS_AT_ONCE: usize = 4096;

/// Makes the journal in `dir` anew from the log in `database`, which keeps it. The journal is there, and durable, as a whole
/// or not at all. Until the layout is noted as the new one, this may be repeated.
pub(crate) fn migrate(dir: &Path, database: &Database, identity: Identity) -> io::Result<()> {
    let unfinished = dir.join(format!("{DIRECTORY}-unfinished"));
    let journal = dir.join(DIRECTORY);
    for stale in [&unfinished, &journal] {
        match fs::remove_dir_all(stale) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::create_dir(&unfinished)?;
    let purged = database.get(Space::Meta, PURGED)?.map(|record| records::decode_log_id(&record)).transpose()?;
    let log =
        Journal::open(Place::Directory(unfinished.clone()), identity, SEGMENT_BYTES, 0).map_err(
            |error| match error {
                JournalError::Read { source, .. } => source,
                damaged => io::Error::new(io::ErrorKind::InvalidData, damaged.to_string()),
            },
        )?;
    if let Some(purged) = purged {
        log.purge(purged);
    }
    let mut entries: Vec<Encoded> = Vec::new();
    let mut bytes = 0;
    for record in database.scan(Space::Log, &[]) {
        let (_, entry) = record?;
        let id = records::entry_id(&entry)?;
        // The purge mark was written together with the removal, so that nothing older can be there.
        let last = entries.last().map(|(id, _)| *id).or(log.last());
        if last.is_some_and(|last| last.index + 1 != id.index) {
            let detail = format!("log has a hole before entry {}", id.index);
            return Err(io::Error::new(io::ErrorKind::InvalidData, detail));
        }
        bytes += entry.len();
        entries.push((id, entry));
        if bytes >= BYTES_AT_ONCE {
            bytes = 0;
            append(&log, &std::mem::take(&mut entries))?;
        }
    }
    append(&log, &entries)?;
    sync_dir(&unfinished)?;
    fs::rename(&unfinished, &journal)?;
    sync_dir(dir)?;
    tracing::info!(dir = %journal.display(), "the store's log has files of its own now");
    Ok(())
}

fn append(log: &Journal, entries: &[Encoded]) -> io::Result<()> {
    if !entries.is_empty() {
        let staged = log.stage(entries)?;
        staged.sync()?;
        log.settle(staged);
    }
    Ok(())
}

/// Removes the log of the layout before from `database`, if there is one.
pub(crate) fn forget_old(database: &Database) -> io::Result<()> {
    loop {
        let mut writes = Writes::default();
        for record in database.scan(Space::Log, &[]).take(RECORDS_AT_ONCE) {
            writes.remove(Space::Log, &record?.0);
        }
        if writes.is_empty() {
            break;
        }
        database.write(&writes)?;
    }
    if database.get(Space::Meta, PURGED)?.is_some() {
        let mut writes = Writes::default();
        writes.remove(Space::Meta, PURGED);
        database.write(&writes)?;
    }
    Ok(())
}
