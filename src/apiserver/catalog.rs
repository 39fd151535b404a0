//! Which resources are served: the built-in rows, and those that CRDs bring. Discovery, routing and RBAC checks ask here and
//! nowhere else.
//!
//! The custom part is a snapshot ([`Customs`]), replaced as a whole when a CRD changes; a look-up takes the one there is and
//! no lock. [`crate::custom::follow`] replaces it. Built-in rows are never touched.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use mussel_api::resource::{self, Resource};
use tokio::sync::watch;

use crate::custom::Entry;
use crate::status::Status;

/// How long a request waits for a CRD that the store has and the catalog has not yet: moments, unless this server is ill.
const REACH_TIMEOUT: Duration = Duration::from_secs(3);

/// What CRDs bring, at one moment.
#[derive(Default)]
pub struct Customs {
    /// By the name of the CRD.
    entries: BTreeMap<String, Arc<Entry>>,
    /// What is served, sorted by group, version and plural.
    rows: Vec<Arc<Resource>>,
}

impl Customs {
    pub fn new(entries: BTreeMap<String, Arc<Entry>>) -> Self {
        let mut rows: Vec<Arc<Resource>> = entries.values().flat_map(|entry| entry.served().cloned()).collect();
        rows.sort_by(|a, b| key(a).cmp(&key(b)));
        Self { entries, rows }
    }

    pub fn entries(&self) -> &BTreeMap<String, Arc<Entry>> {
        &self.entries
    }

    pub fn rows(&self) -> &[Arc<Resource>] {
        &self.rows
    }

    fn by_plural(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        let found = self.rows.binary_search_by(|row| key(row).cmp(&(group, version, plural))).ok()?;
        self.rows.get(found)
    }
}

fn key(row: &Resource) -> (&str, &str, &str) {
    (&row.group, &row.version, &row.plural)
}

/// The served resources.
pub struct Catalog {
    /// Served by this server beside what is built in.
    own: Vec<Arc<Resource>>,
    custom: ArcSwap<Customs>,
    /// Counts the replacements.
    changes: watch::Sender<u64>,
}

impl Default for Catalog {
    fn default() -> Self {
        Self { own: Vec::new(), custom: ArcSwap::default(), changes: watch::Sender::new(0) }
    }
}

impl Catalog {
    /// With rows that are not stored.
    pub fn with(own: impl IntoIterator<Item = Resource>) -> Self {
        Self { own: own.into_iter().map(Arc::new).collect(), ..Self::default() }
    }

    pub fn by_plural(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        let is_it = |r: &&Arc<Resource>| r.plural == plural && r.group == group && r.version == version;
        resource::by_plural(group, version, plural)
            .or_else(|| self.own.iter().find(is_it).cloned())
            .or_else(|| self.custom.load().by_plural(group, version, plural).cloned())
    }

    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<Arc<Resource>> {
        resource::by_kind(group, version, kind).or_else(|| {
            let custom = self.custom.load();
            custom.rows.iter().find(|r| r.group == group && r.version == version && r.kind == kind).cloned()
        })
    }

    /// All rows, built-in ones first, in discovery order.
    pub fn all(&self) -> Vec<Arc<Resource>> {
        resource::builtin().iter().chain(&self.own).cloned().chain(self.custom.load().rows.iter().cloned()).collect()
    }

    /// What CRDs have brought so far.
    pub fn customs(&self) -> Arc<Customs> {
        self.custom.load_full()
    }

    /// Replaces what CRDs brought.
    pub fn set_customs(&self, customs: Customs) {
        self.custom.store(Arc::new(customs));
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// Is told after each change of the custom part.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Waits until the catalog has the CRD of this name as it is at `revision`, or a newer one.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn reach(&self, crd: &str, revision: u64) -> Result<(), Status> {
        let mut changes = self.changes();
        let reached = async {
            loop {
                if self.custom.load().entries.get(crd).is_some_and(|entry| entry.revision >= revision) {
                    return;
                }
                // The catalog outlives its requests; nobody changes it any more only when the server stops.
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(REACH_TIMEOUT, reached)
            .await
            .map_err(|_| Status::unavailable(format!("the definition {crd} is not in force on this server yet")))
    }
}
