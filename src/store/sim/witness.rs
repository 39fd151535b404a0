//! What watchers on all members saw, held against each other: every revision once, in order, and the same everywhere.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::{Event, Freshness, Revision, Store, WatchError};

/// What happened at each revision, by the word of whoever saw it first.
#[derive(Clone, Default)]
pub(crate) struct Witnesses(Arc<Mutex<BTreeMap<u64, Vec<Event>>>>);

impl Witnesses {
    /// Watches all of `store` until it stops. Panics when what it sees cannot be.
    pub(crate) async fn watch(self, store: Store, name: String) {
        let mut last = Revision(0);
        'again: loop {
            let mut watch = match store.watch(bytes::Bytes::new(), last) {
                Ok(watch) => watch,
                Err(WatchError::Stopped) => return,
                Err(_) => {
                    let Ok(snapshot) = store.snapshot(Freshness::Local).await else { return };
                    assert!(snapshot.revision() >= last, "{name}: the state went back from {last:?}");
                    last = snapshot.revision();
                    continue;
                }
            };
            loop {
                match watch.next().await {
                    Ok(commit) => {
                        assert_eq!(commit.revision.0, last.0 + 1, "{name}: a gap or a repeat after {last:?}");
                        last = commit.revision;
                        self.saw(&name, commit.revision, &commit.events);
                    }
                    Err(WatchError::TooSlow) => {
                        // A snapshot was installed: what lies between is not told.
                        let Ok(snapshot) = store.snapshot(Freshness::Local).await else { return };
                        assert!(snapshot.revision() >= last, "{name}: the state went back from {last:?}");
                        last = snapshot.revision();
                        continue 'again;
                    }
                    Err(_) => return,
                }
            }
        }
    }

    fn saw(&self, name: &str, revision: Revision, events: &[Event]) {
        let mut all = self.0.lock().unwrap();
        let known = all.entry(revision.0).or_insert_with(|| events.to_vec());
        assert_eq!(known, events, "{name}: another history at {revision:?}");
    }

    /// What was written to which key at `revision`, if anybody saw it.
    pub(crate) fn at(&self, revision: Revision) -> Option<Vec<Event>> {
        self.0.lock().unwrap().get(&revision.0).cloned()
    }
}
