//! The last commits, for watches that start in the past and for snapshots of past revisions.

use std::collections::VecDeque;

use crate::{Commit, Revision};

/// What an entry of the ring costs beside the bytes that only it keeps alive.
const EVENT_OVERHEAD_BYTES: usize = 160;

/// Commits without a gap, bounded by count and bytes. What is needed to go back to any revision from `floor` on.
#[derive(Debug)]
pub(crate) struct History {
    commits: VecDeque<Commit>,
    bytes: usize,
    bytes_max: usize,
    revisions_max: usize,
    floor: Revision,
}

impl History {
    pub(crate) fn new(floor: Revision, bytes_max: usize, revisions_max: usize) -> Self {
        Self { commits: VecDeque::new(), bytes: 0, bytes_max, revisions_max, floor }
    }

    /// The oldest revision that is still held: the events after it are all here.
    pub(crate) fn floor(&self) -> Revision {
        self.floor
    }

    pub(crate) fn push(&mut self, commit: Commit) {
        self.bytes += bytes(&commit);
        self.commits.push_back(commit);
        while self.bytes > self.bytes_max || self.commits.len() > self.revisions_max {
            let Some(oldest) = self.commits.pop_front() else { break };
            self.bytes -= bytes(&oldest);
            self.floor = oldest.revision;
        }
    }

    /// Forgets everything: the state jumped to `floor`.
    pub(crate) fn reset(&mut self, floor: Revision) {
        self.commits.clear();
        self.bytes = 0;
        self.floor = floor;
    }

    /// Commits after `revision`, which must not be below the floor; oldest first.
    pub(crate) fn after(&self, revision: Revision) -> impl Iterator<Item = &Commit> {
        let skip = usize::try_from(revision.0.saturating_sub(self.floor.0)).unwrap_or(usize::MAX);
        self.commits.iter().skip(skip)
    }
}

/// A value that is still current is shared with the key space; it counts once it is a `previous`.
fn bytes(commit: &Commit) -> usize {
    let event = |event: &crate::Event| {
        EVENT_OVERHEAD_BYTES + event.key.len() + event.previous.as_ref().map_or(0, |previous| previous.value.len())
    };
    commit.events.iter().map(event).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Event;
    use bytes::Bytes;
    use std::sync::Arc;

    fn commit(revision: u64) -> Commit {
        let event = Event { key: Bytes::from_static(b"k"), value: None, previous: None };
        Commit { revision: Revision(revision), events: Arc::from([event]) }
    }

    #[test]
    fn keeps_the_newest_and_knows_its_floor() {
        let mut history = History::new(Revision(10), usize::MAX, 3);
        for revision in 11..=15 {
            history.push(commit(revision));
        }
        assert_eq!(history.floor(), Revision(12));
        let after = |r| history.after(Revision(r)).map(|c| c.revision.0).collect::<Vec<_>>();
        assert_eq!(after(12), [13, 14, 15]);
        assert_eq!(after(14), [15]);
        assert!(after(15).is_empty());
        assert!(after(99).is_empty());
    }

    #[test]
    fn bytes_bound_it_too() {
        let mut history = History::new(Revision(0), 3 * (EVENT_OVERHEAD_BYTES + 1), 1000);
        for revision in 1..=10 {
            history.push(commit(revision));
        }
        assert_eq!(history.floor(), Revision(7));
    }
}
