//! Keeps the table in step with the APIServices in the store: a snapshot first, then every change; again after a gap.

use std::sync::Arc;

use mussel_store::{Freshness, ReadError, Revision, WatchError};

use super::{ApiService, RESOURCE, Table};
use crate::Context;
use crate::encryption::{StorageWatchError, Watch};
use crate::registry::key;

/// Fills the table, then goes on in a task until the server stops.
///
/// # Errors
/// When the APIServices cannot be read.
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
                        error => tracing::debug!(%error, "the table of APIServices starts over"),
                    },
                    Err(WatchError::Stopped) => return,
                    Err(error) => tracing::debug!(%error, "the table of APIServices starts over"),
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
    let mut table = Table::new();
    let prefix = key::prefix(RESOURCE, "");
    for (key, versioned) in snapshot.range(&prefix, &prefix) {
        let service = versioned.value().ok().and_then(|stored| ApiService::read(&stored, versioned.revision.0));
        if let (Some((_, name)), Some(service)) = (key::split(key, false), service) {
            table.insert(name.to_owned(), Arc::new(service));
        }
    }
    context.aggregator.set_table(table);
    Ok(snapshot.revision())
}

async fn pump(context: &Context, mut watch: Watch) -> StorageWatchError {
    loop {
        let commit = match watch.next().await {
            Ok(commit) => commit,
            Err(error) => return error,
        };
        let mut table = Table::clone(&context.aggregator.table());
        for event in commit.events.iter() {
            let Some((_, name)) = key::split(&event.key, false) else { continue };
            match event.value.as_ref().and_then(|stored| ApiService::read(stored, commit.revision.0)) {
                Some(service) => table.insert(name.to_owned(), Arc::new(service)),
                None => table.remove(name),
            };
        }
        context.aggregator.set_table(table);
    }
}
