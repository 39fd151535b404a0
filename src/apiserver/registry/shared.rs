//! Events as all their watchers share them: encoded and decoded once, by whoever comes first.
//!
//! The store hands every watcher its own copy of a change. What is costly about a change, its JSON, is kept here for the
//! newest few, since all watchers work on a change at about the same time.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use mussel_api::object;
use mussel_store::Event;
use serde_json::Value;

/// Watchers that lag behind by more than this encode for themselves.
const EVENTS_MAX: usize = 64;

/// The newest events.
#[derive(Default)]
pub struct SharedEvents(Mutex<Recent>);

#[derive(Default)]
struct Recent {
    order: VecDeque<(u64, Bytes)>,
    events: HashMap<(u64, Bytes), Arc<Shared>>,
}

/// One event with what has been made of it so far.
pub struct Shared {
    revision: u64,
    event: Event,
    object: OnceLock<Option<Value>>,
    previous: OnceLock<Option<Value>>,
    added: OnceLock<Option<Bytes>>,
    modified: OnceLock<Option<Bytes>>,
    deleted: OnceLock<Option<Bytes>>,
}

impl SharedEvents {
    pub fn of(&self, revision: u64, event: &Event) -> Arc<Shared> {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let id = (revision, event.key.clone());
        if let Some(shared) = recent.events.get(&id) {
            return Arc::clone(shared);
        }
        let shared = Arc::new(Shared {
            revision,
            event: event.clone(),
            object: OnceLock::new(),
            previous: OnceLock::new(),
            added: OnceLock::new(),
            modified: OnceLock::new(),
            deleted: OnceLock::new(),
        });
        // One that catches up must not drive out what the others are at.
        if recent.order.back().is_some_and(|(newest, _)| *newest > revision) {
            return shared;
        }
        if recent.order.len() == EVENTS_MAX
            && let Some(oldest) = recent.order.pop_front()
        {
            recent.events.remove(&oldest);
        }
        recent.order.push_back(id.clone());
        recent.events.insert(id, Arc::clone(&shared));
        shared
    }
}

impl Shared {
    /// What the key holds now.
    pub fn object(&self) -> Option<&Value> {
        let decode = || object::decode(self.event.value.as_ref()?, self.revision).ok();
        self.object.get_or_init(decode).as_ref()
    }

    /// What the key held before.
    pub fn previous(&self) -> Option<&Value> {
        let decode = || {
            let previous = self.event.previous.as_ref()?;
            object::decode(&previous.value, previous.revision.0).ok()
        };
        self.previous.get_or_init(decode).as_ref()
    }

    /// What the key held before, as a `DELETED` event shows it: at the revision of the event.
    pub fn gone(&self) -> Option<Value> {
        object::decode(&self.event.previous.as_ref()?.value, self.revision).ok()
    }

    /// The bytes for one type of event.
    pub fn encoded(&self, kind: &str, encode: impl FnOnce(&Event, u64) -> Option<Bytes>) -> Option<Bytes> {
        let slot = match kind {
            "ADDED" => &self.added,
            "MODIFIED" => &self.modified,
            _ => &self.deleted,
        };
        slot.get_or_init(|| encode(&self.event, self.revision)).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(key: &str) -> Event {
        let value = Bytes::from_static(b"{\"apiVersion\":\"v1\",\"kind\":\"A\",\"metadata\":{\"name\":\"x\"}}");
        Event { key: Bytes::copy_from_slice(key.as_bytes()), value: Some(value), previous: None }
    }

    #[test]
    fn an_event_is_decoded_once_for_all() {
        let events = SharedEvents::default();
        let (one, two) = (events.of(3, &event("a")), events.of(3, &event("a")));
        assert!(Arc::ptr_eq(&one, &two));
        assert_eq!(one.object().unwrap()["metadata"]["resourceVersion"], "3");
        for revision in 4..200 {
            events.of(revision, &event("a"));
        }
        assert!(!Arc::ptr_eq(&one, &events.of(3, &event("a"))), "the oldest are forgotten");
    }
}
