//! The folder of archives that are imported by themselves: at start, and when one appears or changes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use serde::{Deserialize, Serialize};
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::Images;
use crate::error::chain;

/// `cp` and `scp` write for a while; an archive is read when the folder has been quiet for this long.
const SETTLE: Duration = Duration::from_millis(300);
const ENDINGS: [&str; 8] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.zstd", ".oci", ".tar.bz2", ".tar.lz4"];

/// What became of an archive.
#[derive(Debug)]
pub enum Outcome {
    Imported { archive: PathBuf, images: Vec<String> },
    Failed { archive: PathBuf, reason: String },
}

/// What an archive looked like when it was imported; unchanged ones are not read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    size: u64,
    modified: u64,
}

/// Imports until `stop`, and tells `report` of each archive. `started` is called when the first pass is through.
pub async fn run(
    images: Images,
    dir: PathBuf,
    report: impl Fn(Outcome) + Send,
    started: impl FnOnce() + Send,
    stop: CancellationToken,
) {
    if let Err(error) = fs::create_dir_all(&dir) {
        tracing::warn!(dir = %dir.display(), %error, "archives are not imported");
        started();
        return;
    }
    let mut changes = watch(&dir);
    let mut seen = load(&images);
    let mut started = Some(started);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = pass(&images, &dir, &mut seen, &report) => {}
        }
        if let Some(started) = started.take() {
            started();
        }
        let Some(changes) = &mut changes else { return stop.cancelled().await };
        tokio::select! {
            () = stop.cancelled() => return,
            // Cancel-safe: inotify keeps what was not read.
            _ = changes.next() => {}
        }
        while let Ok(Some(_)) = time::timeout(SETTLE, changes.next()).await {}
    }
}

fn watch(dir: &Path) -> Option<inotify::EventStream<Vec<u8>>> {
    let watch = || {
        let inotify = Inotify::init()?;
        inotify.watches().add(dir, WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO)?;
        inotify.into_event_stream(vec![0; 4096])
    };
    watch()
        .inspect_err(|error| {
            tracing::warn!(dir = %dir.display(), %error, "folder is not watched; new archives are imported at restart");
        })
        .ok()
}

async fn pass(images: &Images, dir: &Path, seen: &mut BTreeMap<PathBuf, Seen>, report: &impl Fn(Outcome)) {
    let archives = archives(dir);
    seen.retain(|path, _| archives.contains_key(path));
    for (archive, looks) in archives {
        if seen.get(&archive) == Some(&looks) {
            continue;
        }
        match images.import(&archive, true).await {
            Ok(names) => {
                tracing::info!(archive = %archive.display(), images = names.join(" "), "images imported");
                report(Outcome::Imported { archive: archive.clone(), images: names });
                seen.insert(archive, looks);
                save(images, seen);
            }
            Err(error) => {
                let reason = chain(&error);
                tracing::error!(archive = %archive.display(), reason, "archive is not imported");
                report(Outcome::Failed { archive: archive.clone(), reason });
                // Not again until it changes, or mussel starts again.
                seen.insert(archive, looks);
            }
        }
    }
}

fn archives(dir: &Path) -> BTreeMap<PathBuf, Seen> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let archives = entries.filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().to_lowercase();
        let meta = fs::metadata(entry.path()).ok().filter(fs::Metadata::is_file)?;
        if name.starts_with('.') || !ENDINGS.iter().any(|ending| name.ends_with(ending)) {
            return None;
        }
        let modified = meta.modified().ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        let modified = u64::try_from(modified.as_nanos()).unwrap_or(u64::MAX);
        Some((entry.path(), Seen { size: meta.len(), modified }))
    });
    archives.collect()
}

fn cache(images: &Images) -> PathBuf {
    images.0.dir.join("imported.json")
}

/// An unreadable cache only means that archives are read again.
fn load(images: &Images) -> BTreeMap<PathBuf, Seen> {
    let mut seen: BTreeMap<PathBuf, Seen> =
        fs::read(cache(images)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    if images.all().iter().all(|(_, record)| !record.pinned) {
        // The images were removed since; the archives are there to bring them back.
        seen.clear();
    }
    seen
}

fn save(images: &Images, seen: &BTreeMap<PathBuf, Seen>) {
    let written = serde_json::to_vec(seen).map_err(Into::into).and_then(|bytes| fs::write(cache(images), bytes));
    if let Err(error) = written {
        tracing::debug!(%error, "archives will be read again at the next start");
    }
}
