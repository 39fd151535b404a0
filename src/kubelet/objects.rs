//! The Secrets and ConfigMaps that pods of this node refer to, and nothing else of their kinds.
//!
//! Each is watched by name while some pod uses it, so a change reaches its pods at once. What was seen last is kept on
//! disk (0600), because a node that reboots without a server must still be able to start its pods.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long a pod's start waits for the API before it takes what is on disk, or gives up for now.
const WAIT: Duration = Duration::from_secs(5);
/// The same where there is something on disk to go on with.
const WAIT_WITH_COPY: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Secret,
    ConfigMap,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::ConfigMap => "configmap",
        }
    }
}

type Key = (Kind, String, String);

/// What a Secret or a ConfigMap holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    pub data: BTreeMap<String, Vec<u8>>,
    /// The type of a Secret.
    pub type_: String,
    pub immutable: bool,
}

impl From<Secret> for Payload {
    fn from(secret: Secret) -> Self {
        Self {
            data: secret.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)).collect(),
            type_: secret.type_.unwrap_or_default(),
            immutable: secret.immutable.unwrap_or(false),
        }
    }
}

impl From<ConfigMap> for Payload {
    fn from(map: ConfigMap) -> Self {
        let text = map.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.into_bytes()));
        let binary = map.binary_data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0));
        Self { data: text.chain(binary).collect(), type_: String::new(), immutable: map.immutable.unwrap_or(false) }
    }
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum ObjectError {
    #[error("{kind} \"{name}\" not found")]
    NotFound { kind: &'static str, name: String },
    #[error("failed to sync {kind} cache: {cause}")]
    Unavailable { kind: &'static str, cause: String },
}

#[derive(Debug, Clone)]
enum State {
    Unknown,
    Failed(String),
    Absent,
    Present(Arc<Payload>),
}

struct Slot {
    users: HashSet<String>,
    state: watch::Receiver<State>,
    cancel: CancellationToken,
}

#[derive(Clone)]
pub struct Objects(Arc<Shared>);

struct Shared {
    client: Client,
    dir: PathBuf,
    slots: Mutex<HashMap<Key, Slot>>,
    /// Called with the uid of each pod that uses a changed object.
    wake: Box<dyn Fn(&str) + Send + Sync>,
    stop: CancellationToken,
}

impl Objects {
    /// `dir` keeps the copies.
    pub fn new(
        client: Client,
        dir: PathBuf,
        wake: impl Fn(&str) + Send + Sync + 'static,
        stop: CancellationToken,
    ) -> Self {
        Self(Arc::new(Shared { client, dir, slots: Mutex::default(), wake: Box::new(wake), stop }))
    }

    /// The object as last seen, for the pod `uid`, which from now on is woken by its changes.
    ///
    /// # Errors
    /// `NotFound` when the API says so; `Unavailable` when it says nothing and there is no copy.
    pub async fn get(&self, uid: &str, kind: Kind, namespace: &str, name: &str) -> Result<Arc<Payload>, ObjectError> {
        let key = (kind, namespace.to_owned(), name.to_owned());
        let mut state = self.subscribe(uid, &key);
        let known = state.wait_for(|s| matches!(s, State::Absent | State::Present(_) | State::Failed(_)));
        let wait = if self.path(&key).exists() { WAIT_WITH_COPY } else { WAIT };
        let settled = match tokio::time::timeout(wait, known).await {
            Ok(Ok(state)) => state.clone(),
            _ => State::Unknown,
        };
        match settled {
            State::Present(payload) => Ok(payload),
            State::Absent => Err(ObjectError::NotFound { kind: kind.word(), name: name.to_owned() }),
            State::Failed(cause) => self.copy(&key).ok_or(ObjectError::Unavailable { kind: kind.word(), cause }),
            State::Unknown => {
                let cause = "timed out waiting for the condition".to_owned();
                self.copy(&key).ok_or(ObjectError::Unavailable { kind: kind.word(), cause })
            }
        }
    }

    fn subscribe(&self, uid: &str, key: &Key) -> watch::Receiver<State> {
        let mut slots = self.0.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.entry(key.clone()).or_insert_with(|| {
            let (sender, state) = watch::channel(State::Unknown);
            let cancel = self.0.stop.child_token();
            match key.0 {
                Kind::Secret => tokio::spawn(follow::<Secret>(self.clone(), key.clone(), sender, cancel.clone())),
                Kind::ConfigMap => tokio::spawn(follow::<ConfigMap>(self.clone(), key.clone(), sender, cancel.clone())),
            };
            Slot { users: HashSet::new(), state, cancel }
        });
        slot.users.insert(uid.to_owned());
        slot.state.clone()
    }

    /// The pod is gone: what only it used is no longer watched nor kept.
    pub fn release(&self, uid: &str) {
        let mut slots = self.0.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|key, slot| {
            slot.users.remove(uid);
            if slot.users.is_empty() {
                slot.cancel.cancel();
                let _ = std::fs::remove_file(self.path(key));
            }
            !slot.users.is_empty()
        });
    }

    fn notify(&self, key: &Key) {
        let users: Vec<String> = {
            let slots = self.0.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots.get(key).map(|s| s.users.iter().cloned().collect()).unwrap_or_default()
        };
        for uid in users {
            (self.0.wake)(&uid);
        }
    }

    fn path(&self, (kind, namespace, name): &Key) -> PathBuf {
        self.0.dir.join(format!("{}_{namespace}_{name}", kind.word()))
    }

    fn copy(&self, key: &Key) -> Option<Arc<Payload>> {
        let text = std::fs::read_to_string(self.path(key)).ok()?;
        serde_json::from_str(&text).ok().map(Arc::new)
    }

    fn keep(&self, key: &Key, payload: &Payload) {
        if self.copy(key).is_some_and(|old| *old == *payload) {
            return;
        }
        let Ok(bytes) = serde_json::to_vec(payload) else { return };
        if let Err(error) = write_private(&self.path(key), &bytes) {
            tracing::warn!(%error, object = %key.2, "cannot keep a copy for a start without server");
        }
    }
}

/// Replaces a file that only root may read. Whole or not at all.
pub fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(new, path)
}

async fn follow<K>(objects: Objects, key: Key, sender: watch::Sender<State>, cancel: CancellationToken)
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Into<Payload>
        + 'static,
{
    let api: Api<K> = Api::namespaced(objects.0.client.clone(), &key.1);
    let config = watcher::Config::default().fields(&format!("metadata.name={}", key.2));
    let mut events = Box::pin(watcher(api, config).default_backoff());
    let mut found = None;
    loop {
        let event = tokio::select! {
            () = cancel.cancelled() => return,
            event = events.next() => event,
        };
        let state = match event {
            None => return,
            Some(Ok(watcher::Event::Init)) => {
                found = None;
                continue;
            }
            Some(Ok(watcher::Event::InitApply(object))) => {
                found = Some(object);
                continue;
            }
            Some(Ok(watcher::Event::InitDone)) => match found.take() {
                Some(object) => State::Present(Arc::new(object.into())),
                None => State::Absent,
            },
            Some(Ok(watcher::Event::Apply(object))) => State::Present(Arc::new(object.into())),
            Some(Ok(watcher::Event::Delete(_))) => State::Absent,
            Some(Err(error)) => {
                tracing::debug!(%error, object = %key.2, "watch broke");
                // Once known, the last value stands until the API can be asked again.
                if !matches!(*sender.borrow(), State::Unknown | State::Failed(_)) {
                    continue;
                }
                State::Failed(error.to_string())
            }
        };
        let mut last = false;
        if let State::Present(payload) = &state {
            objects.keep(&key, payload);
            last = payload.immutable;
        }
        let news = match (&*sender.borrow(), &state) {
            (State::Present(old), State::Present(new)) => old != new,
            (State::Absent, State::Absent) | (State::Failed(_), State::Failed(_)) => false,
            _ => true,
        };
        if news {
            sender.send_replace(state);
            objects.notify(&key);
        }
        if last {
            // It can only be deleted, and its pods may keep what they have.
            cancel.cancelled().await;
            return;
        }
    }
}
