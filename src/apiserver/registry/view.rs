//! Objects in a snapshot of the store, for decisions that need other objects than the one at hand.

use mussel_api::object;
use mussel_store::Revision;
use serde_json::Value;

use super::key;
use crate::encryption::{Snapshot, Versioned};

/// A consistent view of all objects. Resources are named by `Resource::qualified` of the storage version.
#[derive(Clone)]
pub struct View(Snapshot);

impl View {
    pub fn new(snapshot: Snapshot) -> Self {
        Self(snapshot)
    }

    pub fn revision(&self) -> Revision {
        self.0.revision()
    }

    pub fn snapshot(&self) -> &Snapshot {
        &self.0
    }

    /// `None` when there is no such object.
    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.0.get(&key::object(resource, namespace, name)).as_ref().and_then(decode)
    }

    pub fn exists(&self, resource: &str, namespace: &str, name: &str) -> bool {
        self.0.get(&key::object(resource, namespace, name)).is_some()
    }

    /// All objects, of one namespace unless it is empty.
    pub fn list<'a>(&'a self, resource: &str, namespace: &str) -> impl Iterator<Item = Value> + 'a {
        let prefix = key::prefix(resource, namespace);
        let found: Vec<Versioned<'a>> = self.0.range(&prefix, &prefix).map(|(_, versioned)| versioned).collect();
        found.into_iter().filter_map(|versioned| decode(&versioned))
    }
}

fn decode(versioned: &Versioned<'_>) -> Option<Value> {
    object::decode(&versioned.value().ok()?, versioned.revision.0).ok()
}
