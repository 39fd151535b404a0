//! Keeps the catalog in step with the CRDs in the store: a snapshot first, then every change; again after a gap.

use std::collections::BTreeMap;
use std::sync::Arc;

use mussel_store::{Freshness, ReadError, Revision, WatchError};

use super::{Entry, RESOURCE};
use crate::Context;
use crate::catalog::Customs;
use crate::encryption::{StorageWatchError, Watch};
use crate::registry::key;

/// Fills the catalog, then goes on in a task until the server stops.
///
/// # Errors
/// When the CRDs cannot be read.
pub async fn start(context: &Arc<Context>) -> Result<(), ReadError> {
    let mut after = load(context).await?;
    let context = Arc::clone(context);
    let tasks = context.tasks.clone();
    tasks.spawn(async move {
        let stop = context.stop.clone();
        let run = async {
            loop {
                match context.store.watch(key::prefix(RESOURCE, ""), after) {
                    Ok(watch) => match pump(&context, watch).await {
                        StorageWatchError::Store(WatchError::Stopped) => return,
                        error => tracing::debug!(%error, "the catalog starts over"),
                    },
                    Err(WatchError::Stopped) => return,
                    Err(error) => tracing::debug!(%error, "the catalog starts over"),
                }
                match load(&context).await {
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

async fn load(context: &Context) -> Result<Revision, ReadError> {
    let snapshot = context.store.snapshot(Freshness::Local).await?;
    let before = context.catalog.customs();
    let mut entries = BTreeMap::new();
    let prefix = key::prefix(RESOURCE, "");
    for (key, versioned) in snapshot.range(&prefix, &prefix) {
        let Some(name) = name_of(key) else { continue };
        let known = before.entries().get(name);
        let Ok(stored) = versioned.value() else { continue };
        if let Some(entry) = Entry::new(&stored, versioned.revision.0, known.map(AsRef::as_ref)) {
            entries.insert(name.to_owned(), Arc::new(entry));
        }
    }
    context.catalog.set_customs(Customs::new(entries));
    Ok(snapshot.revision())
}

async fn pump(context: &Context, mut watch: Watch) -> StorageWatchError {
    loop {
        let commit = match watch.next().await {
            Ok(commit) => commit,
            Err(error) => return error,
        };
        let mut entries = context.catalog.customs().entries().clone();
        for event in commit.events.iter() {
            let Some(name) = name_of(&event.key) else { continue };
            let known = entries.get(name);
            let entry = event.value.as_ref();
            let entry = entry.and_then(|stored| Entry::new(stored, commit.revision.0, known.map(AsRef::as_ref)));
            match entry {
                Some(entry) => entries.insert(name.to_owned(), Arc::new(entry)),
                None => entries.remove(name),
            };
        }
        context.catalog.set_customs(Customs::new(entries));
    }
}

fn name_of(key: &[u8]) -> Option<&str> {
    key::split(key, false).map(|(_, name)| name)
}
