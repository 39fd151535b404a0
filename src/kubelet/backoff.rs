//! How long to leave a thing alone that keeps failing: container restarts and image pulls.

use std::collections::HashMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

const FIRST: Duration = Duration::from_secs(10);
const MAX: Duration = Duration::from_secs(300);
/// A thing that held for this long has earned a fresh start.
const FORGET: Duration = Duration::from_secs(600);
const ENTRIES_MAX: usize = 4096;

#[derive(Debug, Clone, Copy)]
struct Entry {
    wait: Duration,
    updated: Timestamp,
}

/// Doubling waits per key: 10 s, 20 s, up to 5 minutes; forgotten after 10 quiet minutes.
#[derive(Debug, Default)]
pub struct Backoff(HashMap<String, Entry>);

impl Backoff {
    /// How long is left until a retry may happen after the failure at `failed`, and how long the whole wait is.
    pub fn waiting(&self, key: &str, failed: Timestamp, now: Timestamp) -> Option<(Duration, Duration)> {
        let entry = self.0.get(key)?;
        if elapsed(entry.updated, failed) > FORGET {
            return None;
        }
        let left = entry.wait.checked_sub(elapsed(failed, now)).filter(|l| !l.is_zero())?;
        Some((left, entry.wait))
    }

    /// Notes one more failure, which lengthens the next wait.
    pub fn next(&mut self, key: &str, now: Timestamp) {
        if self.0.len() >= ENTRIES_MAX {
            self.0.retain(|_, e| elapsed(e.updated, now) <= FORGET);
        }
        let wait = match self.0.get(key) {
            Some(entry) if elapsed(entry.updated, now) <= FORGET => (entry.wait * 2).min(MAX),
            _ => FIRST,
        };
        self.0.insert(key.to_owned(), Entry { wait, updated: now });
    }

    pub fn forget(&mut self, key: &str) {
        self.0.remove(key);
    }

    pub fn forget_prefix(&mut self, prefix: &str) {
        self.0.retain(|key, _| !key.starts_with(prefix));
    }
}

fn elapsed(since: Timestamp, now: Timestamp) -> Duration {
    let passed: SignedDuration = now.duration_since(since);
    Duration::try_from(passed).unwrap_or_default()
}

/// As upstream prints durations in messages: `10s`, `1m20s`, `5m0s`.
pub fn go_duration(d: Duration) -> String {
    let seconds = d.as_secs();
    let (h, m, s) = (seconds / 3600, seconds % 3600 / 60, seconds % 60);
    match (h, m) {
        (0, 0) => format!("{s}s"),
        (0, _) => format!("{m}m{s}s"),
        _ => format!("{h}h{m}m{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    #[test]
    fn the_first_failure_is_retried_at_once_and_the_next_ones_wait_longer() {
        let mut b = Backoff::default();
        assert_eq!(b.waiting("a", at(0), at(0)), None);
        b.next("a", at(0));
        assert_eq!(b.waiting("a", at(1), at(1)), Some((Duration::from_secs(10), Duration::from_secs(10))));
        assert_eq!(b.waiting("a", at(1), at(12)), None);
        b.next("a", at(12));
        assert_eq!(b.waiting("a", at(13), at(23)).unwrap().0, Duration::from_secs(10));
        for n in 0..10 {
            b.next("a", at(20 + n));
        }
        assert_eq!(b.waiting("a", at(40), at(40)).unwrap().1, MAX);
        // Ten quiet minutes later all is forgotten.
        assert_eq!(b.waiting("a", at(29 + 601), at(29 + 601)), None);
        b.next("a", at(1000));
        assert_eq!(b.waiting("a", at(1000), at(1000)).unwrap().1, FIRST);
    }

    #[test]
    fn durations_look_like_upstreams() {
        for (seconds, text) in [(10, "10s"), (80, "1m20s"), (300, "5m0s"), (3600, "1h0m0s")] {
            assert_eq!(go_duration(Duration::from_secs(seconds)), text);
        }
    }
}
