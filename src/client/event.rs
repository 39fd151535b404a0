//! Events about objects, as `kubectl get events` and `describe` show them.
//!
//! Recording never waits: what does not fit into the queue is dropped with a log line. Repeats of one event raise its
//! count instead of making new objects, and one object cannot flood the API: 25 at once, then one in five minutes.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

const QUEUED_MAX: usize = 1000;
const REMEMBERED_MAX: usize = 2048;
const BURST: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);
const MESSAGE_BYTES_MAX: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Records events in the name of one component. Clones share the queue.
#[derive(Clone)]
pub struct Recorder(mpsc::Sender<Note>);

struct Note {
    about: ObjectReference,
    type_: EventType,
    reason: String,
    message: String,
    at: Timestamp,
}

impl Recorder {
    /// `host` may be empty. Must be called inside a tokio runtime; the task ends with the last clone.
    pub fn new(client: Client, component: &str, host: &str) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUED_MAX);
        let source = EventSource {
            component: Some(component.to_owned()),
            host: Some(host.to_owned()).filter(|h| !h.is_empty()),
        };
        tokio::spawn(Writer { client, source, known: HashMap::new(), budgets: HashMap::new() }.run(receiver));
        Self(sender)
    }

    /// A recorder that drops everything, for tests.
    pub fn silent() -> Self {
        Self(mpsc::channel(1).0)
    }

    pub fn event(&self, about: ObjectReference, type_: EventType, reason: &str, mut message: String) {
        if message.len() > MESSAGE_BYTES_MAX {
            let end = (0..=MESSAGE_BYTES_MAX - 3).rev().find(|&i| message.is_char_boundary(i)).unwrap_or(0);
            message.truncate(end);
            message.push_str("...");
        }
        let note = Note { about, type_, reason: reason.to_owned(), message, at: Timestamp::now() };
        if let Err(mpsc::error::TrySendError::Full(note)) = self.0.try_send(note) {
            tracing::warn!(reason = note.reason, message = note.message, "too many events; dropped one");
        }
    }
}

/// What an event about `object` points at.
pub fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    kind: String,
    namespace: String,
    name: String,
    uid: String,
    field_path: String,
    type_: EventType,
    reason: String,
    message: String,
}

impl Key {
    fn new(note: &Note) -> Self {
        let about = &note.about;
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        Self {
            kind: text(&about.kind),
            namespace: text(&about.namespace),
            name: text(&about.name),
            uid: text(&about.uid),
            field_path: text(&about.field_path),
            type_: note.type_,
            reason: note.reason.clone(),
            message: note.message.clone(),
        }
    }
}

/// An event object that exists.
struct Known {
    name: String,
    count: i32,
    touched: Instant,
}

struct Budget {
    tokens: f64,
    refilled: Instant,
}

struct Writer {
    client: Client,
    source: EventSource,
    known: HashMap<Key, Known>,
    budgets: HashMap<(String, String, String), Budget>,
}

impl Writer {
    async fn run(mut self, mut notes: mpsc::Receiver<Note>) {
        while let Some(note) = notes.recv().await {
            if self.allowed(&note) {
                self.write(note).await;
            }
            self.prune();
        }
    }

    fn allowed(&mut self, note: &Note) -> bool {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let about = (text(&note.about.kind), text(&note.about.namespace), text(&note.about.name));
        let now = Instant::now();
        let budget = self.budgets.entry(about).or_insert(Budget { tokens: BURST, refilled: now });
        let gained = now.duration_since(budget.refilled).as_secs_f64() / REFILL.as_secs_f64();
        budget.tokens = (budget.tokens + gained).min(BURST);
        budget.refilled = now;
        if budget.tokens < 1.0 {
            return false;
        }
        budget.tokens -= 1.0;
        true
    }

    async fn write(&mut self, note: Note) {
        let key = Key::new(&note);
        let namespace = note.about.namespace.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| "default".to_owned());
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        if let Some(known) = self.known.get_mut(&key) {
            let patch = json!({"count": known.count + 1, "lastTimestamp": Time(note.at)});
            match api.patch(&known.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(_) => {
                    known.count += 1;
                    known.touched = Instant::now();
                    return;
                }
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                Err(error) => return tracing::debug!(%error, reason = note.reason, "raise count of event"),
            }
        }
        let event = self.event(&note, &namespace);
        let name = event.metadata.name.clone().unwrap_or_default();
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {
                self.known.insert(key, Known { name, count: 1, touched: Instant::now() });
            }
            // The namespace is going away, or the server is: the event is not worth a retry.
            Err(error) => tracing::debug!(%error, reason = note.reason, message = note.message, "record event"),
        }
    }

    fn event(&self, note: &Note, namespace: &str) -> Event {
        let about = note.about.name.as_deref().unwrap_or("unknown");
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{about}.{:x}", note.at.as_nanosecond())),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: note.about.clone(),
            type_: Some(note.type_.as_str().to_owned()),
            reason: Some(note.reason.clone()),
            message: Some(note.message.clone()),
            count: Some(1),
            first_timestamp: Some(Time(note.at)),
            last_timestamp: Some(Time(note.at)),
            reporting_component: self.source.component.clone(),
            reporting_instance: self.source.host.clone(),
            source: Some(self.source.clone()),
            ..Event::default()
        }
    }

    fn prune(&mut self) {
        if self.known.len() > REMEMBERED_MAX {
            let mut ages: Vec<_> = self.known.values().map(|known| known.touched).collect();
            let middle = ages.len() / 2;
            let (_, &mut median, _) = ages.select_nth_unstable(middle);
            self.known.retain(|_, known| known.touched > median);
        }
        if self.budgets.len() > REMEMBERED_MAX {
            let now = Instant::now();
            // A budget untouched this long is full again or nearly so.
            self.budgets.retain(|_, budget| now.duration_since(budget.refilled) < REFILL);
            if self.budgets.len() > REMEMBERED_MAX {
                self.budgets.clear();
            }
        }
    }
}
