//! The garbage collector: what is owned goes with its owner, in the background, before it, or not at all.
//!
//! Every kind is watched for metadata only. `graph.rs` says what to look at; this file looks at the live objects before
//! it deletes anything, so a graph that lags can cost time but never an object.

mod graph;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, DynamicObject, PartialObjectMeta, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use mussel_client::WorkQueue;
use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::graph::{FOREGROUND, Graph, KindId, Node, ORPHAN, Uid, blocks};
use crate::Context;
use crate::census::Census;
use crate::discovery::{Kinds, Served, deletable};
use crate::error::{Error, gone_is_fine, is_not_found};

const WORKERS: usize = 10;
/// New kinds come in groups; one look after the last is enough.
const REDISCOVER_AFTER: Duration = Duration::from_secs(1);
/// All objects are known after this, but for kinds whose server is away.
const SYNC_MAX: Duration = Duration::from_secs(30);
const REDISCOVER_RETRY: Duration = Duration::from_secs(10);

struct Collector {
    client: Client,
    graph: Mutex<Graph>,
    /// Append-only, so that a [`KindId`] stays valid.
    kinds: Mutex<Vec<Arc<Served>>>,
    queue: WorkQueue<Uid>,
    unsynced: watch::Sender<usize>,
    kinds_changed: Notify,
    census: Census,
}

pub async fn run(context: Context, census: Census, stop: CancellationToken) {
    let collector = Arc::new(Collector {
        client: context.client(),
        graph: Mutex::default(),
        kinds: Mutex::default(),
        queue: WorkQueue::new(),
        unsynced: watch::Sender::new(0),
        kinds_changed: Notify::new(),
        census,
    });
    let watching = watch_all(collector.clone(), stop.clone());
    let working = async {
        let mut unsynced = collector.unsynced.subscribe();
        tokio::select! {
            () = stop.cancelled() => return,
            // Zero at first; the first discovery makes it more.
            () = async { let _ = unsynced.wait_for(|n| *n > 0).await; } => (),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            _ = unsynced.wait_for(|n| *n == 0) => (),
            // An extension server that does not answer must not keep all others' garbage.
            () = tokio::time::sleep(SYNC_MAX) => {
                tracing::warn!("garbage collector: begins without the objects of some kinds, which cannot be listed");
            }
        }
        for uid in lock(&collector.graph).suspects() {
            collector.queue.add(uid);
        }
        collector.work(&stop).await;
    };
    tokio::join!(watching, working);
}

/// Watches every kind that is served, and those that come later.
async fn watch_all(collector: Arc<Collector>, stop: CancellationToken) {
    let mut watched: HashMap<(String, String), CancellationToken> = HashMap::new();
    let mut watches = JoinSet::new();
    loop {
        let retry = match deletable(&collector.client, false).await {
            Ok(Kinds { served, stale }) => {
                let names: HashSet<_> = served.iter().map(name_of).collect();
                watched.retain(|name, token| {
                    // A server that is away has not taken its kinds along.
                    let stays = names.contains(name) || stale.contains(&name.0);
                    if !stays {
                        token.cancel();
                    }
                    stays
                });
                for kind in served.into_iter().filter(|kind| kind.watchable) {
                    let name = name_of(&kind);
                    if watched.contains_key(&name) {
                        continue;
                    }
                    let token = stop.child_token();
                    watched.insert(name, token.clone());
                    let kind = Arc::new(kind);
                    let id = {
                        let mut kinds = lock(&collector.kinds);
                        kinds.push(kind.clone());
                        kinds.len() - 1
                    };
                    collector.unsynced.send_modify(|n| *n += 1);
                    watches.spawn(watch_kind(collector.clone(), id, kind, token));
                }
                false
            }
            Err(error) => {
                tracing::debug!(%error, "garbage collector: discovery failed");
                true
            }
        };
        while watches.try_join_next().is_some() {}
        let changed = async {
            collector.kinds_changed.notified().await;
            tokio::time::sleep(REDISCOVER_AFTER).await;
        };
        tokio::select! {
            () = stop.cancelled() => break,
            () = changed => (),
            () = tokio::time::sleep(REDISCOVER_RETRY), if retry => (),
        }
    }
    while watches.join_next().await.is_some() {}
}

/// With the version: a custom kind may go over to another one, and the watch of the old one ends for good.
fn name_of(kind: &Served) -> (String, String) {
    (kind.resource.api_version.clone(), kind.resource.plural.clone())
}

async fn watch_kind(collector: Arc<Collector>, id: KindId, kind: Arc<Served>, stop: CancellationToken) {
    let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(collector.client.clone(), &kind.resource);
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
    let brings_kinds = matches!(&*kind.resource.kind, "CustomResourceDefinition" | "APIService");
    let (plural, group) = (&kind.resource.plural, &kind.resource.group);
    let resource: Arc<str> = if group.is_empty() { plural.clone() } else { format!("{plural}.{group}") }.into();
    let mut seen = HashSet::new();
    let mut synced = false;
    loop {
        let event = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            event = events.next() => event,
        };
        match event {
            None => break,
            Some(Err(error)) => tracing::debug!(kind = kind.resource.plural, %error, "garbage collector: watch failed"),
            Some(Ok(Event::Init)) => seen.clear(),
            Some(Ok(Event::InitApply(object))) => {
                if let Some(uid) = &object.metadata.uid {
                    seen.insert(Uid::parse(uid));
                }
                collector.observe(id, &object.metadata);
            }
            Some(Ok(Event::InitDone)) => {
                // Its own statement: in the loop's head the lock would be held through the loop.
                let missing = lock(&collector.graph).missing(id, &seen);
                missing.into_iter().for_each(|uid| collector.forget(uid));
                seen = HashSet::new();
                if !std::mem::replace(&mut synced, true) {
                    collector.unsynced.send_modify(|n| *n -= 1);
                }
            }
            Some(Ok(Event::Apply(object))) => {
                let known = object.metadata.uid.as_deref().map(Uid::parse);
                let new = known.is_some_and(|uid| !lock(&collector.graph).is_live(uid));
                collector.observe(id, &object.metadata);
                if new {
                    collector.census.tell(&resource, object.metadata.namespace.as_ref());
                }
                if brings_kinds {
                    collector.kinds_changed.notify_one();
                }
            }
            Some(Ok(Event::Delete(object))) => {
                if let Some(uid) = &object.metadata.uid {
                    collector.forget(Uid::parse(uid));
                }
                collector.census.tell(&resource, object.metadata.namespace.as_ref());
                if brings_kinds {
                    collector.kinds_changed.notify_one();
                }
            }
        }
    }
    // The kind is not served any more, or we stop: its objects are gone as far as we can tell.
    {
        let mut graph = lock(&collector.graph);
        for uid in graph.missing(id, &HashSet::new()) {
            graph.forget(uid);
        }
    }
    if !synced {
        collector.unsynced.send_modify(|n| *n -= 1);
    }
}

/// What the live owners of an object say about it.
#[derive(Debug, Default, PartialEq)]
struct Owners {
    solid: usize,
    dangling: Vec<String>,
    /// Deleted in the foreground, and this object is in their way.
    waiting: Vec<String>,
}

impl Collector {
    fn observe(&self, kind: KindId, meta: &ObjectMeta) {
        let look = lock(&self.graph).observe(kind, meta);
        look.into_iter().for_each(|uid| self.queue.add(uid));
    }

    fn forget(&self, uid: Uid) {
        let look = lock(&self.graph).forget(uid);
        look.into_iter().for_each(|uid| self.queue.add(uid));
    }

    async fn work(&self, stop: &CancellationToken) {
        let mut passes = FuturesUnordered::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some((uid, result)) = passes.next(), if !passes.is_empty() => {
                    let result: Result<(), Error> = result;
                    match result {
                        Ok(()) => self.queue.forget(&uid),
                        Err(error) => {
                            tracing::debug!(%error, "garbage collector: pass failed");
                            self.queue.retry(uid);
                        }
                    }
                    self.queue.done(&uid);
                }
                uid = self.queue.next(), if passes.len() < WORKERS => {
                    passes.push(async move { (uid, self.look(uid).await) });
                }
            }
        }
    }

    fn api(&self, kind: &Served, namespace: &str) -> Api<DynamicObject> {
        if kind.namespaced {
            Api::namespaced_with(self.client.clone(), namespace, &kind.resource)
        } else {
            Api::all_with(self.client.clone(), &kind.resource)
        }
    }

    fn kind(&self, id: KindId) -> Option<Arc<Served>> {
        lock(&self.kinds).get(id).cloned()
    }

    async fn look(&self, uid: Uid) -> Result<(), Error> {
        let Some(node) = lock(&self.graph).node(uid).cloned() else { return Ok(()) };
        let Some(kind) = self.kind(node.kind) else { return Ok(()) };
        let api = self.api(&kind, &node.namespace);
        let live = api.get_metadata_opt(&node.name).await?;
        let Some(meta) = live.map(|l| l.metadata).filter(|m| m.uid.as_deref().map(Uid::parse) == Some(uid)) else {
            // The watch has not told yet.
            self.forget(uid);
            return Ok(());
        };
        let has = |finalizer: &str| meta.finalizers.as_ref().is_some_and(|f| f.iter().any(|f| f == finalizer));
        if meta.deletion_timestamp.is_some() {
            if has(ORPHAN) {
                return self.release_dependents(uid, &api, &meta).await;
            }
            if has(FOREGROUND) {
                return self.delete_dependents(uid, &api, &meta).await;
            }
            return Ok(());
        }
        let references = meta.owner_references.clone().unwrap_or_default();
        if references.is_empty() {
            return Ok(());
        }
        let owners = self.owners(&references, &node.namespace).await?;
        if owners.dangling.is_empty() && owners.waiting.is_empty() {
            return Ok(());
        }
        if owners.solid > 0 {
            let gone: Vec<_> = owners.dangling.into_iter().chain(owners.waiting).collect();
            return drop_references(&api, &meta, &gone).await;
        }
        let dependents = lock(&self.graph).dependents(uid);
        if !owners.waiting.is_empty() && dependents.iter().any(|(_, node)| node.foreground) {
            // Owners wait for this object, and this object is about to wait for one that is being deleted already: it may
            // be a circle, in which everybody would wait forever. This object lets its owners go first. Its change wakes us.
            let references: Vec<_> =
                references.into_iter().map(|r| OwnerReference { block_owner_deletion: Some(false), ..r }).collect();
            change(&api, &meta, json!({"ownerReferences": references})).await?;
            let params = DeleteParams {
                propagation_policy: Some(PropagationPolicy::Foreground),
                preconditions: Some(Preconditions { uid: meta.uid.clone(), resource_version: None }),
                ..DeleteParams::default()
            };
            return gone_is_fine(api.delete(&node.name, &params).await);
        }
        let has_dependents = !dependents.is_empty();
        let policy = if has(ORPHAN) {
            PropagationPolicy::Orphan
        } else if has(FOREGROUND) || (!owners.waiting.is_empty() && has_dependents) {
            PropagationPolicy::Foreground
        } else {
            PropagationPolicy::Background
        };
        let params = DeleteParams {
            propagation_policy: Some(policy),
            // With the version: an owner added since we looked must not be overlooked.
            preconditions: Some(Preconditions {
                uid: meta.uid.clone(),
                resource_version: meta.resource_version.clone(),
            }),
            ..DeleteParams::default()
        };
        gone_is_fine(api.delete(&node.name, &params).await)
    }

    async fn owners(&self, references: &[OwnerReference], namespace: &str) -> Result<Owners, Error> {
        let mut owners = Owners::default();
        for reference in references {
            let (group, _) = reference.api_version.split_once('/').unwrap_or(("", ""));
            let kind = lock(&self.kinds)
                .iter()
                .rev()
                .find(|k| k.resource.kind == reference.kind && k.resource.group == group)
                .cloned();
            let Some(kind) = kind else {
                // A kind we do not know may be served by somebody who is away. Never delete on a guess.
                owners.solid += 1;
                continue;
            };
            if kind.namespaced && namespace.is_empty() {
                // A cluster-scoped object cannot have a namespaced owner; upstream leaves such objects alone.
                owners.solid += 1;
                continue;
            }
            let live = self.api(&kind, namespace).get_metadata_opt(&reference.name).await?;
            match live.map(|l| l.metadata).filter(|m| m.uid.as_deref() == Some(&reference.uid)) {
                None => owners.dangling.push(reference.uid.clone()),
                Some(owner) => {
                    let foreground = owner.deletion_timestamp.is_some()
                        && owner.finalizers.as_ref().is_some_and(|f| f.iter().any(|f| f == FOREGROUND));
                    if foreground && reference.block_owner_deletion == Some(true) {
                        owners.waiting.push(reference.uid.clone());
                    } else {
                        owners.solid += 1;
                    }
                }
            }
        }
        Ok(owners)
    }

    /// An owner deleted in the foreground: its dependents first.
    async fn delete_dependents(&self, uid: Uid, api: &Api<DynamicObject>, meta: &ObjectMeta) -> Result<(), Error> {
        let dependents = lock(&self.graph).dependents(uid);
        let blocking: Vec<&(Uid, Node)> = dependents.iter().filter(|(_, node)| blocks(node, uid)).collect();
        if blocking.is_empty() {
            return drop_finalizer(api, meta, FOREGROUND).await;
        }
        for (dependent, node) in blocking {
            if !node.deleting {
                self.queue.add(*dependent);
            }
        }
        Ok(())
    }

    /// An owner deleted with `orphan`: its dependents forget it.
    async fn release_dependents(&self, uid: Uid, api: &Api<DynamicObject>, meta: &ObjectMeta) -> Result<(), Error> {
        let dependents = lock(&self.graph).dependents(uid);
        for (_, node) in dependents {
            let Some(kind) = self.kind(node.kind) else { continue };
            let theirs = self.api(&kind, &node.namespace);
            if let Some(live) = theirs.get_metadata_opt(&node.name).await? {
                drop_references(&theirs, &live.metadata, &[meta.uid.clone().unwrap_or_default()]).await?;
            }
        }
        drop_finalizer(api, meta, ORPHAN).await
    }
}

async fn drop_references(api: &Api<DynamicObject>, meta: &ObjectMeta, uids: &[String]) -> Result<(), Error> {
    let references = meta.owner_references.clone().unwrap_or_default();
    let kept: Vec<_> = references.iter().filter(|reference| !uids.contains(&reference.uid)).collect();
    if kept.len() == references.len() {
        return Ok(());
    }
    change(api, meta, json!({"ownerReferences": kept})).await
}

async fn drop_finalizer(api: &Api<DynamicObject>, meta: &ObjectMeta, finalizer: &str) -> Result<(), Error> {
    let kept: Vec<_> = meta.finalizers.iter().flatten().filter(|f| *f != finalizer).collect();
    change(api, meta, json!({"finalizers": kept})).await
}

/// A merge patch of the metadata, at the version we saw.
async fn change(api: &Api<DynamicObject>, meta: &ObjectMeta, mut metadata: serde_json::Value) -> Result<(), Error> {
    metadata["uid"] = json!(meta.uid);
    metadata["resourceVersion"] = json!(meta.resource_version);
    let patch = Patch::Merge(json!({"metadata": metadata}));
    let name = meta.name.as_deref().unwrap_or_default();
    match api.patch_metadata(name, &PatchParams::default(), &patch).await {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
