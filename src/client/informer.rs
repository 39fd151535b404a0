//! Informers: one list and watch per kind and process, shared by all who ask.
//!
//! Objects are kept once, behind an `Arc`, without `managedFields`. Readers take Arcs; followers get a bounded stream
//! of changes and are told to look again ([`Change::Resync`]) when they did not keep up.

pub mod kept;
mod raw;

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Debug;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use futures::Stream;
use kube::api::ApiResource;
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use raw::Raw;

/// Changes a follower may lag behind before it has to look again.
const PENDING_MAX: usize = 4096;

/// What can be informed about: every typed Kubernetes object.
pub trait Kind: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static {}
impl<K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static> Kind for K {}

/// The informers of one process and identity.
#[derive(Clone)]
pub struct Informers(Arc<Shared>);

struct Shared {
    client: Client,
    stop: CancellationToken,
    /// Kinds that are read as somebody else.
    others: HashMap<TypeId, Client>,
    running: Mutex<HashMap<(TypeId, String), Box<dyn Any + Send + Sync>>>,
}

impl Informers {
    pub fn new(client: Client, stop: CancellationToken) -> Self {
        Self(Arc::new(Shared { client, stop, others: HashMap::new(), running: Mutex::default() }))
    }

    /// As [`Informers::new`], with another identity for objects of kind `K`.
    pub fn with_other<K: Kind>(client: Client, other: Client, stop: CancellationToken) -> Self {
        let others = HashMap::from([(TypeId::of::<K>(), other)]);
        Self(Arc::new(Shared { client, stop, others, running: Mutex::default() }))
    }

    pub fn client(&self) -> Client {
        self.0.client.clone()
    }

    /// All objects of the kind, in all namespaces. The first call starts the watch.
    pub fn of<K: Kind>(&self) -> Informer<K> {
        self.of_fields("")
    }

    /// The objects that a field selector picks, such as `spec.nodeName=a`.
    pub fn of_fields<K: Kind>(&self, field_selector: &str) -> Informer<K> {
        let mut running = lock(&self.0.running);
        let slot = running.entry((TypeId::of::<K>(), field_selector.to_owned())).or_insert_with(|| {
            let informer = Informer::<K>::new();
            let mut config = watcher::Config::default();
            if !field_selector.is_empty() {
                config = config.fields(field_selector);
            }
            let client = self.0.others.get(&TypeId::of::<K>()).unwrap_or(&self.0.client);
            tokio::spawn(informer.clone().run(client.clone(), config, self.0.stop.clone()));
            Box::new(informer)
        });
        // The map is keyed by the type, so this cannot be another one.
        slot.downcast_ref::<Informer<K>>().cloned().unwrap_or_else(Informer::new)
    }
}

/// A read-only, eventually consistent copy of a kind's objects.
pub struct Informer<K>(Arc<Inner<K>>);

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Inner<K> {
    state: Mutex<State<K>>,
    synced: watch::Sender<bool>,
}

type Objects<K> = BTreeMap<String, BTreeMap<String, Arc<K>>>;

struct State<K> {
    objects: Objects<K>,
    followers: Vec<Weak<Mutex<Pending<K>>>>,
    ended: bool,
}

/// One step of the world. Every follower first gets one `Applied` per object known at that time.
#[derive(Debug)]
pub enum Change<K> {
    Applied {
        old: Option<Arc<K>>,
        new: Arc<K>,
    },
    /// The object's last known state.
    Deleted(Arc<K>),
    /// Changes were lost: look at everything again.
    Resync,
}

struct Pending<K> {
    changes: VecDeque<Change<K>>,
    waker: Option<Waker>,
    ended: bool,
}

impl<K> Pending<K> {
    fn push(&mut self, change: Change<K>) {
        if self.changes.len() >= PENDING_MAX {
            self.changes.clear();
            self.changes.push_back(Change::Resync);
        } else {
            self.changes.push_back(change);
        }
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// The changes of one kind, in order. Ends when the informer stops.
pub struct Changes<K> {
    first: VecDeque<Arc<K>>,
    pending: Arc<Mutex<Pending<K>>>,
}

impl<K> Changes<K> {
    /// # Cancel safety
    /// A change that was not returned stays.
    pub async fn next(&mut self) -> Option<Change<K>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl<K> Unpin for Changes<K> {}

impl<K> Stream for Changes<K> {
    type Item = Change<K>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Change<K>>> {
        if let Some(new) = self.first.pop_front() {
            return Poll::Ready(Some(Change::Applied { old: None, new }));
        }
        let mut pending = lock(&self.pending);
        match pending.changes.pop_front() {
            Some(change) => Poll::Ready(Some(change)),
            None if pending.ended => Poll::Ready(None),
            None => {
                pending.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<K> Informer<K> {
    fn new() -> Self {
        let state = State { objects: BTreeMap::new(), followers: Vec::new(), ended: false };
        Self(Arc::new(Inner { state: Mutex::new(state), synced: watch::Sender::new(false) }))
    }

    /// Waits until the first list is complete. Never returns when the informer is stopped before that.
    pub async fn synced(&self) {
        // The sender lives as long as `self`, so the only way out is the value.
        let _ = self.0.synced.subscribe().wait_for(|synced| *synced).await;
    }

    pub fn is_synced(&self) -> bool {
        *self.0.synced.borrow()
    }

    /// `namespace` is empty for cluster-scoped kinds.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        lock(&self.0.state).objects.get(namespace)?.get(name).cloned()
    }

    pub fn list(&self) -> Vec<Arc<K>> {
        lock(&self.0.state).objects.values().flat_map(BTreeMap::values).cloned().collect()
    }

    pub fn list_in(&self, namespace: &str) -> Vec<Arc<K>> {
        lock(&self.0.state).objects.get(namespace).map(|o| o.values().cloned().collect()).unwrap_or_default()
    }

    pub fn len(&self) -> usize {
        lock(&self.0.state).objects.values().map(BTreeMap::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Follows the kind from now on.
    pub fn changes(&self) -> Changes<K> {
        let mut state = lock(&self.0.state);
        let pending = Arc::new(Mutex::new(Pending { changes: VecDeque::new(), waker: None, ended: state.ended }));
        state.followers.push(Arc::downgrade(&pending));
        Changes { first: state.objects.values().flat_map(BTreeMap::values).cloned().collect(), pending }
    }
}

impl<K> State<K> {
    fn tell(&mut self, change: impl Fn() -> Change<K>) {
        self.followers.retain(|follower| match follower.upgrade() {
            Some(pending) => {
                lock(&pending).push(change());
                true
            }
            None => false,
        });
    }
}

impl<K: Kind> State<K> {
    fn apply(&mut self, object: K) {
        let (namespace, name) = key(&object);
        let new = Arc::new(object);
        let old = self.objects.entry(namespace).or_default().insert(name, new.clone());
        self.tell(|| Change::Applied { old: old.clone(), new: new.clone() });
    }

    fn delete(&mut self, object: K) {
        let (namespace, name) = key(&object);
        if let Some(names) = self.objects.get_mut(&namespace) {
            names.remove(&name);
            if names.is_empty() {
                self.objects.remove(&namespace);
            }
        }
        let last = Arc::new(object);
        self.tell(|| Change::Deleted(last.clone()));
    }

    /// A new full list: followers hear only of what differs.
    fn replace(&mut self, objects: Objects<K>) {
        let before = std::mem::replace(&mut self.objects, objects);
        let after: Vec<_> = self.objects.values().flat_map(BTreeMap::values).cloned().collect();
        for new in after {
            let (namespace, name) = key(&*new);
            let old = before.get(&namespace).and_then(|names| names.get(&name)).cloned();
            if old.as_ref().is_none_or(|old| old.meta().resource_version != new.meta().resource_version) {
                self.tell(|| Change::Applied { old: old.clone(), new: new.clone() });
            }
        }
        for (namespace, names) in before {
            for (name, old) in names {
                if self.objects.get(&namespace).is_none_or(|names| !names.contains_key(&name)) {
                    self.tell(|| Change::Deleted(old.clone()));
                }
            }
        }
    }
}

impl<K: Kind> Informer<K> {
    /// An informer over given objects that never changes, for tests.
    pub fn fixed(objects: impl IntoIterator<Item = K>) -> Self {
        let informer = Self::new();
        {
            let mut state = lock(&informer.0.state);
            objects.into_iter().for_each(|object| state.apply(object));
        }
        informer.0.synced.send_replace(true);
        informer
    }

    /// Shows these until the first list is there; does nothing after that.
    fn restore(&self, objects: Vec<K>) {
        let mut state = lock(&self.0.state);
        if !self.is_synced() {
            let mut kept = Objects::new();
            for object in objects {
                let (namespace, name) = key(&object);
                kept.entry(namespace).or_default().insert(name, Arc::new(object));
            }
            state.replace(kept);
            self.0.synced.send_replace(true);
        }
    }

    async fn run(self, client: Client, config: watcher::Config, stop: CancellationToken) {
        let resource = ApiResource::erase::<K>(&());
        let mut receiver = Receiver { informer: self, fresh: Objects::new() };
        raw::follow(Api::all_with(client, &resource), config, &resource.kind, &stop, &mut receiver).await;
        let mut state = lock(&receiver.informer.0.state);
        state.ended = true;
        for pending in state.followers.iter().filter_map(Weak::upgrade) {
            let mut pending = lock(&pending);
            pending.ended = true;
            pending.wake();
        }
    }
}

/// Reads objects into their type and puts them into the informer.
struct Receiver<K> {
    informer: Informer<K>,
    /// The list that is coming in.
    fresh: Objects<K>,
}

/// An object without what nobody here reads. One that does not fit its type is left out: a newer server may have written
/// it, and the others must not wait for it.
fn read<K: Kind>(raw: &Raw) -> Option<K> {
    match serde_json::from_str::<K>(raw.text()) {
        Ok(mut object) => {
            object.meta_mut().managed_fields = None;
            Some(object)
        }
        Err(error) => {
            let (namespace, name) = key(raw);
            tracing::error!(kind = %K::kind(&()), namespace, name, %error, "an object cannot be read; going on without it");
            None
        }
    }
}

impl<K: Kind> raw::Receiver for Receiver<K> {
    fn begin(&mut self) {
        self.fresh.clear();
    }

    fn listed(&mut self, object: &Raw) {
        if let Some(object) = read::<K>(object) {
            let (namespace, name) = key(&object);
            self.fresh.entry(namespace).or_default().insert(name, Arc::new(object));
        }
    }

    fn complete(&mut self) {
        let mut state = lock(&self.informer.0.state);
        state.replace(std::mem::take(&mut self.fresh));
        // Under the lock, so that nobody takes a moment between the two for one before the list.
        self.informer.0.synced.send_replace(true);
    }

    fn applied(&mut self, object: &Raw) {
        if let Some(object) = read(object) {
            lock(&self.informer.0.state).apply(object);
        }
    }

    fn deleted(&mut self, object: &Raw) {
        if let Some(object) = read(object) {
            lock(&self.informer.0.state).delete(object);
        }
    }
}

fn key<K: Resource>(object: &K) -> (String, String) {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn object(name: &str, version: &str) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.namespace = Some("a".to_owned());
        object.metadata.name = Some(name.to_owned());
        object.metadata.resource_version = Some(version.to_owned());
        object
    }

    fn objects(list: &[(&str, &str)]) -> Objects<ConfigMap> {
        let mut objects = Objects::new();
        for (name, version) in list {
            objects.entry("a".to_owned()).or_default().insert((*name).to_owned(), Arc::new(object(name, version)));
        }
        objects
    }

    async fn told(changes: &mut Changes<ConfigMap>, count: usize) -> Vec<String> {
        let mut told = Vec::new();
        for _ in 0..count {
            told.push(match changes.next().await {
                Some(Change::Applied { old, new }) => {
                    format!("{}{}", if old.is_some() { "~" } else { "+" }, new.metadata.name.as_deref().unwrap())
                }
                Some(Change::Deleted(old)) => format!("-{}", old.metadata.name.as_deref().unwrap()),
                Some(Change::Resync) => "resync".to_owned(),
                None => "end".to_owned(),
            });
        }
        told
    }

    #[tokio::test]
    async fn followers_hear_what_is_known_and_what_changes() {
        let informer = Informer::fixed([object("x", "1"), object("y", "2")]);
        let mut changes = informer.changes();
        lock(&informer.0.state).replace(objects(&[("x", "1"), ("y", "3"), ("z", "4")]));
        lock(&informer.0.state).delete(object("x", "5"));
        assert_eq!(told(&mut changes, 5).await, ["+x", "+y", "~y", "+z", "-x"]);
        lock(&informer.0.state).replace(objects(&[("z", "4")]));
        assert_eq!(told(&mut changes, 1).await, ["-y"]);
        assert_eq!(informer.list_in("a").len(), 1);
        assert!(informer.get("a", "z").is_some() && informer.get("b", "z").is_none());
    }

    #[tokio::test]
    async fn a_slow_follower_is_told_to_look_again() {
        let informer = Informer::<ConfigMap>::fixed([]);
        let mut changes = informer.changes();
        for version in 0..=PENDING_MAX {
            lock(&informer.0.state).apply(object("x", &version.to_string()));
        }
        lock(&informer.0.state).apply(object("y", "1"));
        assert_eq!(told(&mut changes, 2).await, ["resync", "+y"]);
    }
}
