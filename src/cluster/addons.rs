//! Manifests in `<data-dir>/server/manifests/`: applied at start and whenever a file changes.
//!
//! Objects taken out of a file are deleted; deleting the file removes nothing (both as in k3s). What a file brought is kept
//! in a ConfigMap `mussel-addon-<name>` in kube-system, so that any server can tell what is gone from it.

mod apply;
mod manifest;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::files::{self, FileError};
use apply::Applier;

/// Editors and `cp` write in several steps; a file is read when it has been quiet for this long.
const SETTLE: Duration = Duration::from_millis(200);
/// A file that could not be applied (its CRD or namespace may still be coming) is tried again after this.
const RETRY: Duration = Duration::from_secs(15);

/// A manifest that comes with the binary.
pub struct Bundled {
    /// File stem, and the name for `--disable`.
    pub name: &'static str,
    pub content: String,
}

pub struct Deployer {
    dir: PathBuf,
    applier: Applier,
    disabled: BTreeSet<String>,
    /// The checksums of what was applied by this process.
    applied: BTreeMap<PathBuf, String>,
}

impl Deployer {
    /// Puts the bundled manifests in place (they are ours: edits are overwritten at each start) and takes the disabled ones out.
    pub fn new(
        client: kube::Client,
        dir: PathBuf,
        bundled: &[Bundled],
        disabled: impl IntoIterator<Item = String>,
    ) -> Result<Self, FileError> {
        files::create_dir(&dir, 0o700)?;
        let disabled: BTreeSet<String> = disabled.into_iter().collect();
        for manifest in bundled {
            let path = dir.join(format!("{}.yaml", manifest.name));
            if disabled.contains(manifest.name) {
                remove(&path);
            } else if !skipped(&path) && files::read(&path)?.as_deref() != Some(manifest.content.as_str()) {
                files::write(&path, manifest.content.as_bytes(), 0o600)?;
            }
        }
        Ok(Self { dir, applier: Applier::new(client), disabled, applied: BTreeMap::new() })
    }

    /// Applies until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        for name in std::mem::take(&mut self.disabled) {
            if let Err(error) = self.applier.remove_all(&name).await {
                tracing::warn!(addon = name, error = %Chain(&error), "objects of a disabled manifest are not all deleted");
            }
        }
        let mut changes = match self.watch() {
            Ok(changes) => Some(changes),
            Err(error) => {
                tracing::warn!(dir = %self.dir.display(), %error, "manifests are not watched; changes apply at restart");
                None
            }
        };
        loop {
            let failed = tokio::select! {
                () = stop.cancelled() => return,
                failed = self.apply_all() => failed,
            };
            let next_change = async {
                match &mut changes {
                    Some(changes) => drop(changes.next().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                // Cancel-safe: inotify keeps what was not read.
                () = next_change => time::sleep(SETTLE).await,
                () = time::sleep(RETRY), if failed => (),
            }
            if let Some(changes) = &mut changes {
                // One pass covers whatever came in meanwhile.
                while let Ok(Some(_)) = time::timeout(SETTLE, changes.next()).await {}
            }
        }
    }

    fn watch(&self) -> std::io::Result<inotify::EventStream<Vec<u8>>> {
        let inotify = Inotify::init()?;
        let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::CREATE | WatchMask::DELETE;
        for dir in manifest::folders(&self.dir) {
            inotify.watches().add(dir, mask)?;
        }
        inotify.into_event_stream(vec![0; 4096])
    }

    /// Applies every file that changed; tells whether one failed.
    async fn apply_all(&mut self) -> bool {
        let mut failed = false;
        for path in manifest::files(&self.dir).into_iter().filter(|path| !skipped(path)) {
            if let Err(error) = self.apply_file(&path).await {
                tracing::warn!(file = %path.display(), error = %Chain(&error), "manifest is not applied");
                failed = true;
            }
        }
        failed
    }

    async fn apply_file(&mut self, path: &Path) -> Result<(), apply::ApplyError> {
        let manifest = manifest::Manifest::read(path)?;
        if self.applied.get(path) == Some(&manifest.checksum) {
            return Ok(());
        }
        self.applier.apply(&manifest).await?;
        tracing::info!(file = %path.display(), objects = manifest.objects.len(), "manifest applied");
        self.applied.insert(path.to_owned(), manifest.checksum);
        Ok(())
    }
}

/// An empty `<file>.skip` beside a manifest keeps it from being applied.
fn skipped(path: &Path) -> bool {
    let mut skip = path.as_os_str().to_owned();
    skip.push(".skip");
    Path::new(&skip).exists()
}

fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "disabled manifest is not removed");
        }
        _ => {}
    }
}

/// An error with its causes, in one line.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}
