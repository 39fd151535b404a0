//! Keeps an index in step with a prefix of the store: a snapshot first, then its changes; again after a gap.

use mussel_store::{Freshness, ReadError, Revision, WatchError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::encryption::{Storage, StorageWatchError, Watch};

/// What an index is told. Keys come without the prefix: `<namespace>/<name>` or `<name>`.
pub enum Change<'a> {
    /// Forget all: a new snapshot follows.
    Reset,
    Put(&'a str, &'a [u8]),
    Delete(&'a str),
    /// The end of a batch: the state is consistent again.
    Done,
}

/// Feeds `sink` with what is there now, then goes on in a task on `tasks` until `stop` or the store's end.
///
/// # Errors
/// When the first snapshot cannot be read.
pub async fn follow<F>(
    store: Storage,
    prefix: String,
    mut sink: F,
    tasks: &TaskTracker,
    stop: CancellationToken,
) -> Result<(), ReadError>
where
    F: FnMut(Change<'_>) + Send + 'static,
{
    let mut after = load(&store, &prefix, &mut sink).await?;
    tasks.spawn(async move {
        let run = async {
            loop {
                match store.watch(prefix.clone().into_bytes().into(), after) {
                    Ok(watch) => match pump(watch, &prefix, &mut sink).await {
                        StorageWatchError::Store(WatchError::Stopped) => return,
                        error => tracing::debug!(%prefix, %error, "index starts over"),
                    },
                    Err(WatchError::Stopped) => return,
                    Err(error) => tracing::debug!(%prefix, %error, "index starts over"),
                }
                match load(&store, &prefix, &mut sink).await {
                    Ok(revision) => after = revision,
                    Err(_) => return,
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = run => {}
        }
    });
    Ok(())
}

async fn load(store: &Storage, prefix: &str, sink: &mut impl FnMut(Change<'_>)) -> Result<Revision, ReadError> {
    let snapshot = store.snapshot(Freshness::Local).await?;
    sink(Change::Reset);
    for (key, versioned) in snapshot.range(prefix.as_bytes(), prefix.as_bytes()) {
        let Some(name) = strip(key, prefix) else { continue };
        match versioned.value() {
            Ok(value) => sink(Change::Put(name, &value)),
            Err(error) => tracing::error!(%error, "left out of an index"),
        }
    }
    sink(Change::Done);
    Ok(snapshot.revision())
}

async fn pump(mut watch: Watch, prefix: &str, sink: &mut impl FnMut(Change<'_>)) -> StorageWatchError {
    loop {
        let commit = match watch.next().await {
            Ok(commit) => commit,
            Err(error) => return error,
        };
        for event in commit.events.iter() {
            let Some(name) = strip(&event.key, prefix) else { continue };
            match &event.value {
                Some(value) => sink(Change::Put(name, value)),
                None => sink(Change::Delete(name)),
            }
        }
        sink(Change::Done);
    }
}

fn strip<'a>(key: &'a [u8], prefix: &str) -> Option<&'a str> {
    std::str::from_utf8(key).ok()?.strip_prefix(prefix)
}
