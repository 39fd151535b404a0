//! The last commits, for watches that start in the past and for snapshots of past revisions.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::{Commit, Revision};

/// What an entry of the ring costs beside the bytes that only it keeps alive.
const EVENT_OVERHEAD_BYTES: usize = 160;

/// How much is kept. Whichever bound is met first cuts the oldest commits off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) bytes: usize,
    pub(crate) revisions: usize,
    /// By this process's clock: what is read back from the log after a restart counts from then on.
    pub(crate) age: Duration,
}

/// Commits without a gap. What is needed to go back to any revision from `floor` on.
#[derive(Debug)]
pub(crate) struct History {
    commits: VecDeque<(Instant, Commit)>,
    bytes: usize,
    bounds: Bounds,
    floor: Revision,
}

impl History {
    pub(crate) fn new(floor: Revision, bounds: Bounds) -> Self {
        Self { commits: VecDeque::new(), bytes: 0, bounds, floor }
    }

    /// The oldest revision that is still held: the events after it are all here.
    pub(crate) fn floor(&self) -> Revision {
        self.floor
    }

    pub(crate) fn push(&mut self, now: Instant, commit: Commit) {
        self.bytes += bytes(&commit);
        self.commits.push_back((now, commit));
        // No timer: what is too old goes when the next commit comes.
        while let Some((then, oldest)) = self.commits.front()
            && (self.bytes > self.bounds.bytes
                || self.commits.len() > self.bounds.revisions
                || now.saturating_duration_since(*then) > self.bounds.age)
        {
            self.bytes -= bytes(oldest);
            self.floor = oldest.revision;
            self.commits.pop_front();
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
        self.commits.iter().skip(skip).map(|(_, commit)| commit)
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

    const BOUNDS: Bounds = Bounds { bytes: usize::MAX, revisions: usize::MAX, age: Duration::MAX };

    #[test]
    fn keeps_the_newest_and_knows_its_floor() {
        let mut history = History::new(Revision(10), Bounds { revisions: 3, ..BOUNDS });
        for revision in 11..=15 {
            history.push(Instant::now(), commit(revision));
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
        let bounds = Bounds { bytes: 3 * (EVENT_OVERHEAD_BYTES + 1), ..BOUNDS };
        let mut history = History::new(Revision(0), bounds);
        for revision in 1..=10 {
            history.push(Instant::now(), commit(revision));
        }
        assert_eq!(history.floor(), Revision(7));
    }

    #[test]
    fn age_bounds_it_too() {
        let mut history = History::new(Revision(0), Bounds { age: Duration::from_secs(60), ..BOUNDS });
        let start = Instant::now();
        for revision in 1..=10 {
            history.push(start + Duration::from_secs(20 * revision), commit(revision));
        }
        assert_eq!(history.floor(), Revision(6));
        assert_eq!(history.after(Revision(6)).count(), 4);
    }
}
