//! Snapshots: backups of the store in one folder, with k3s' names. `<base>-<node>-<seconds since 1970>`.

pub mod command;
pub mod schedule;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mussel_store::Store;
use mussel_store::backup::BackupError;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::args::{BackupArgs, VERSION};

/// In the server's folder.
const DEFAULT_DIR: &str = "db-snapshots";

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("snapshot name {0:?} may hold letters, digits, '-', '_' and '.' only, and begins with a letter or digit")]
    Name(String),
    #[error("no snapshot {name:?} in {}", dir.display())]
    NotFound { name: String, dir: PathBuf },
    #[error("--etcd-snapshot-dir {} is not a folder", .0.display())]
    Dir(PathBuf),
    #[error("use snapshot folder {}", dir.display())]
    Folder { dir: PathBuf, source: io::Error },
    #[error("delete snapshot {}", file.display())]
    Delete { file: PathBuf, source: io::Error },
    #[error(transparent)]
    Backup(#[from] BackupError),
}

/// A snapshot in the folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    pub name: String,
    pub node: String,
    pub location: String,
    pub size: u64,
    /// Seconds since 1970, from its name.
    pub created: i64,
}

/// The folder, and what is done in it; one at a time.
#[derive(Clone)]
pub struct Snapshots {
    dir: PathBuf,
    node: String,
    working: Arc<Mutex<()>>,
}

impl Snapshots {
    pub fn open(args: &BackupArgs, server_dir: &Path, node: &str) -> anyhow::Result<Self> {
        check(&args.etcd_snapshot_name)?;
        let dir = match &args.etcd_snapshot_dir {
            Some(dir) if !dir.is_dir() => return Err(SnapshotError::Dir(dir.clone()).into()),
            Some(dir) => dir.clone(),
            None => {
                let dir = server_dir.join(DEFAULT_DIR);
                mussel_cluster::files::create_dir(server_dir, 0o700)?;
                mussel_cluster::files::create_dir(&dir, 0o700)?;
                dir
            }
        };
        Ok(Self { dir, node: node.to_owned(), working: Arc::default() })
    }

    /// Takes one. It is whole and on disk when this returns.
    pub async fn save(&self, store: &Store, base: &str) -> Result<Snapshot, SnapshotError> {
        check(base)?;
        let _working = self.working.lock().await;
        // Two within a second would have one name.
        let mut seconds = jiff::Timestamp::now().as_second();
        let path = loop {
            let path = self.dir.join(format!("{base}-{}-{seconds}", self.node));
            if !path.exists() {
                break path;
            }
            seconds += 1;
        };
        let header = store.backup(&path, &self.node, VERSION).await?;
        let snapshot = self.describe(&path).map_err(|source| self.folder(source))?;
        let snapshot =
            snapshot.ok_or_else(|| SnapshotError::NotFound { name: base.to_owned(), dir: self.dir.clone() })?;
        tracing::info!(file = %path.display(), bytes = snapshot.size, revision = header.revision, "snapshot saved");
        Ok(snapshot)
    }

    /// All of them, the oldest first.
    pub fn list(&self) -> Result<Vec<Snapshot>, SnapshotError> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(|source| self.folder(source))? {
            let path = entry.map_err(|source| self.folder(source))?.path();
            match self.describe(&path) {
                Ok(found) => all.extend(found),
                // Deleted meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(self.folder(error)),
            }
        }
        all.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        Ok(all)
    }

    /// Deletes those that are there, and says which; if any is not, none is deleted.
    pub fn delete(&self, names: &[String]) -> Result<Vec<Snapshot>, SnapshotError> {
        let all = self.list()?;
        let mut chosen = Vec::new();
        for name in names {
            let found = all.iter().find(|snapshot| snapshot.name == *name);
            chosen.push(
                found.ok_or_else(|| SnapshotError::NotFound { name: name.clone(), dir: self.dir.clone() })?.clone(),
            );
        }
        self.remove(chosen)
    }

    /// Deletes this node's snapshots of that base name but for the newest `keep`.
    pub fn prune(&self, base: &str, keep: usize) -> Result<Vec<Snapshot>, SnapshotError> {
        check(base)?;
        let prefix = format!("{base}-{}-", self.node);
        let mut ours = self.list()?;
        ours.retain(|snapshot| {
            let rest = snapshot.name.strip_prefix(&prefix);
            rest.is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()))
        });
        ours.truncate(ours.len().saturating_sub(keep));
        self.remove(ours)
    }

    fn remove(&self, snapshots: Vec<Snapshot>) -> Result<Vec<Snapshot>, SnapshotError> {
        for snapshot in &snapshots {
            let file = self.dir.join(&snapshot.name);
            fs::remove_file(&file).map_err(|source| SnapshotError::Delete { file: file.clone(), source })?;
            tracing::info!(file = %file.display(), "snapshot deleted");
        }
        Ok(snapshots)
    }

    /// What the name and the file say; `None` for files that are no snapshots.
    fn describe(&self, path: &Path) -> io::Result<Option<Snapshot>> {
        let metadata = fs::metadata(path)?;
        let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|_| metadata.is_file()) else {
            return Ok(None);
        };
        let Some((_, Ok(created))) = name.rsplit_once('-').map(|(before, seconds)| (before, seconds.parse())) else {
            return Ok(None);
        };
        Ok(Some(Snapshot {
            name: name.to_owned(),
            node: self.node.clone(),
            location: format!("file://{}", path.display()),
            size: metadata.len(),
            created,
        }))
    }

    fn folder(&self, source: io::Error) -> SnapshotError {
        SnapshotError::Folder { dir: self.dir.clone(), source }
    }
}

fn check(base: &str) -> Result<(), SnapshotError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let good = base.len() <= 100
        && base.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
        && base.bytes().all(allowed);
    if good { Ok(()) } else { Err(SnapshotError::Name(base.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mussel_store::{Config, backup};

    fn at(dir: &Path) -> Snapshots {
        Snapshots { dir: dir.to_owned(), node: "n1".to_owned(), working: Arc::default() }
    }

    fn names(snapshots: &[Snapshot]) -> Vec<&str> {
        snapshots.iter().map(|snapshot| snapshot.name.as_str()).collect()
    }

    #[test]
    fn pruning_keeps_the_newest_of_one_name_and_one_node() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a-n1-9", "a-n1-10", "a-n1-11", "a-n1-b-8", "a-n2-1", "ab-n1-1", "other", "a-n1-12.part"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        let snapshots = at(dir.path());
        assert_eq!(names(&snapshots.prune("a", 2).unwrap()), ["a-n1-9"]);
        assert_eq!(names(&snapshots.list().unwrap()), ["a-n2-1", "ab-n1-1", "a-n1-b-8", "a-n1-10", "a-n1-11"]);
        assert!(snapshots.prune("a", 9).unwrap().is_empty());
        let error = snapshots.delete(&["a-n2-1".to_owned(), "../x".to_owned()]).unwrap_err();
        assert!(matches!(error, SnapshotError::NotFound { name, .. } if name == "../x"));
        assert_eq!(names(&snapshots.delete(&["a-n2-1".to_owned()]).unwrap()), ["a-n2-1"]);
        assert!(dir.path().join("other").exists());
    }

    #[test]
    fn names_that_would_leave_the_folder_are_refused() {
        for base in ["", "a/b", "..", ".a", "-a", "a b", "ä"] {
            assert!(check(base).is_err(), "{base}");
        }
        assert!(check("before-upgrade_1.36").is_ok());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn two_within_a_second_are_two() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(Config::new(dir.path().join("db"))).await.unwrap();
        let folder = dir.path().join("snapshots");
        fs::create_dir(&folder).unwrap();
        let snapshots = at(&folder);
        let (a, b) = tokio::join!(snapshots.save(&store, "x"), snapshots.save(&store, "x"));
        assert_ne!(a.unwrap().name, b.unwrap().name);
        for snapshot in snapshots.list().unwrap() {
            assert_eq!(backup::inspect(&folder.join(&snapshot.name)).unwrap().node, "n1");
        }
        store.shutdown().await;
    }
}
