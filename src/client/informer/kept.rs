//! An informer's objects on disk, for a start while no server answers.
//!
//! Only for readers on a node that would rather act on what was true yesterday than not at all: Services and their
//! endpoints. Controllers must not.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::{Informer, Kind};

/// A server that is there answers within this; until then, what the kernel still has is newer than the file.
const HEAD_START: Duration = Duration::from_secs(5);
/// Changes are written together, because flash wears out. A crash loses as much; a stop loses nothing.
const WRITE_PERIOD: Duration = Duration::from_secs(60);

/// Keeps the informer's objects in the file, and shows those of the file while there are no others. Runs until `stop`.
pub async fn keep<K: Kind + Serialize>(informer: Informer<K>, path: PathBuf, stop: CancellationToken) {
    let kind = K::kind(&());
    tokio::select! {
        biased;
        () = stop.cancelled() => return,
        () = informer.synced() => {}
        () = time::sleep(HEAD_START) => match load::<K>(&path) {
            Ok(Some(objects)) => {
                tracing::info!(kind = %kind, count = objects.len(), "no server answers yet: going on with what was known last");
                informer.restore(objects);
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(path = %path.display(), %error, "what was known last cannot be read"),
        },
    }
    let mut changes = informer.changes();
    // What is known at first is told as changes, too, and makes the first write.
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            change = changes.next() => if change.is_none() { return },
        }
        let ending = tokio::select! {
            biased;
            () = stop.cancelled() => true,
            () = time::sleep(WRITE_PERIOD) => false,
        };
        while futures::FutureExt::now_or_never(changes.next()).is_some_and(|change| change.is_some()) {}
        // Before the first list there is nothing that is worth more than the file.
        if informer.is_synced()
            && let Err(error) = store(&path, &informer)
        {
            tracing::warn!(path = %path.display(), %error, "what is known is not kept for a start without a server");
        }
        if ending {
            return;
        }
    }
}

fn load<K: Kind>(path: &Path) -> io::Result<Option<Vec<K>>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(serde_json::from_str(&text)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn store<K: Kind + Serialize>(path: &Path, informer: &Informer<K>) -> io::Result<()> {
    let objects = informer.list();
    let objects: Vec<&K> = objects.iter().map(|object| &**object).collect();
    let bytes = serde_json::to_vec(&objects)?;
    if fs::read(path).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let aside = path.with_extension("new");
    fs::write(&aside, bytes)?;
    // On disk before it takes the old one's place, or a power cut leaves an empty file.
    fs::File::open(&aside)?.sync_all()?;
    fs::rename(&aside, path)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn object(name: &str) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.namespace = Some("a".to_owned());
        object.metadata.name = Some(name.to_owned());
        object.metadata.resource_version = Some("1".to_owned());
        object
    }

    fn names(informer: &Informer<ConfigMap>) -> Vec<String> {
        informer.list().iter().filter_map(|object| object.metadata.name.clone()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_known_is_shown_when_no_server_answers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kept/configmaps.json");
        let stop = CancellationToken::new();
        let running = tokio::spawn(keep(Informer::fixed([object("x"), object("y")]), path.clone(), stop.clone()));
        time::sleep(Duration::from_secs(1)).await;
        stop.cancel();
        running.await.unwrap();

        let silent = Informer::<ConfigMap>::new();
        let stop = CancellationToken::new();
        let running = tokio::spawn(keep(silent.clone(), path.clone(), stop.clone()));
        time::sleep(HEAD_START / 2).await;
        assert!(!silent.is_synced(), "a server may yet answer");
        time::sleep(HEAD_START).await;
        assert!(silent.is_synced());
        assert_eq!(names(&silent), ["x", "y"]);
        // The server's first list wins, and so does what it says later.
        silent.0.state.lock().unwrap().delete(object("x"));
        stop.cancel();
        running.await.unwrap();
        assert_eq!(load::<ConfigMap>(&path).unwrap().unwrap().len(), 1);

        // One that answers at once is believed at once.
        let quick = Informer::fixed([object("z")]);
        quick.restore(vec![object("x")]);
        assert_eq!(names(&quick), ["z"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_file_is_as_good_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("configmaps.json");
        fs::write(&path, "[{").unwrap();
        let stop = CancellationToken::new();
        let silent = Informer::<ConfigMap>::new();
        let running = tokio::spawn(keep(silent.clone(), path.clone(), stop.clone()));
        time::sleep(HEAD_START * 2).await;
        assert!(!silent.is_synced());
        stop.cancel();
        running.await.unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "[{");
    }
}
