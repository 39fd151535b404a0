//! Objects of one kind, parsed, as a snapshot has them.

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use mussel_api::object;
use mussel_store::Revision;
use serde_json::Value;

use crate::registry::key;
use crate::registry::view::View;

/// What was parsed of each object, in the order of their names.
pub type Parsed<T> = Arc<Vec<Entry<T>>>;

pub struct Entry<T> {
    key: Bytes,
    revision: Revision,
    pub value: Arc<T>,
}

/// Follows the objects of one resource. Each is parsed once for each of its revisions.
pub struct Followed<T> {
    prefix: Bytes,
    parse: fn(&Value) -> T,
    last: ArcSwap<Vec<Entry<T>>>,
}

impl<T> Followed<T> {
    /// `resource` is the name objects are stored under.
    pub fn new(resource: &str, parse: fn(&Value) -> T) -> Self {
        Self { prefix: key::prefix(resource, ""), parse, last: ArcSwap::default() }
    }

    /// All objects in `view`. Costs one look at the store when nothing has changed.
    pub fn of(&self, view: &View) -> Parsed<T> {
        let last = self.last.load();
        let mut same = last.iter();
        let mut found = view.snapshot().range(&self.prefix, &self.prefix);
        let is_same = found.by_ref().all(|(key, stored)| {
            same.next().is_some_and(|entry| entry.revision == stored.revision && entry.key == key)
        });
        drop(found);
        if is_same && same.next().is_none() {
            return Arc::clone(&last);
        }
        let mut entries = Vec::new();
        for (key, stored) in view.snapshot().range(&self.prefix, &self.prefix) {
            let known = last.iter().find(|entry| entry.revision == stored.revision && entry.key == key);
            let value = match known {
                Some(entry) => Arc::clone(&entry.value),
                None => {
                    let decoded = stored
                        .value()
                        .map_err(|error| error.to_string())
                        .and_then(|bytes| object::decode(&bytes, stored.revision.0).map_err(|error| error.to_string()));
                    match decoded {
                        Ok(object) => Arc::new((self.parse)(&object)),
                        Err(error) => {
                            tracing::error!(%error, "a configuration of admission cannot be read");
                            continue;
                        }
                    }
                }
            };
            entries.push(Entry { key: key.clone(), revision: stored.revision, value });
        }
        let entries = Arc::new(entries);
        self.last.store(Arc::clone(&entries));
        entries
    }
}
