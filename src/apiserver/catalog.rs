//! Which resources are served: the built-in rows, and later those that CRDs bring. Discovery, routing and RBAC checks ask
//! here and nowhere else.

use std::sync::Arc;

use arc_swap::ArcSwap;
use mussel_api::resource::{self, Resource};

/// The served resources. Reads are lock free.
#[derive(Default)]
pub struct Catalog {
    custom: ArcSwap<Vec<Arc<Resource>>>,
}

impl Catalog {
    pub fn by_plural(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        resource::by_plural(group, version, plural).or_else(|| {
            let custom = self.custom.load();
            custom.iter().find(|r| r.group == group && r.version == version && r.plural == plural).cloned()
        })
    }

    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<Arc<Resource>> {
        resource::by_kind(group, version, kind).or_else(|| {
            let custom = self.custom.load();
            custom.iter().find(|r| r.group == group && r.version == version && r.kind == kind).cloned()
        })
    }

    /// All rows, built-in ones first, in discovery order.
    pub fn all(&self) -> Vec<Arc<Resource>> {
        resource::builtin().iter().cloned().chain(self.custom.load().iter().cloned()).collect()
    }

    /// Replaces the rows that CRDs brought.
    pub fn set_custom(&self, rows: Vec<Arc<Resource>>) {
        self.custom.store(Arc::new(rows));
    }
}
