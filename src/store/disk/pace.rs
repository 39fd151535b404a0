//! Holds the log back when checkpoints do not keep up with it, so that neither it nor what a checkpoint has to cover grows
//! without a bound.
//!
//! Not all at once, when some bound is reached: then everybody would wait for a whole checkpoint. The further checkpoints are
//! behind, the longer is the pause after each round of appends, until the log grows as fast as they do.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Checkpoints are always behind by what the log is to hold; so many times that is the first that is too much.
const BEHIND_MIN: u64 = 2;
/// And here the log grows at half the speed of checkpoints.
const BEHIND_MAX: u64 = 4;

/// One checkpoint's speed has this weight among those before: a half.
const WEIGHT_SHIFT: u32 = 1;

const PAUSE_MAX: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(crate) struct Pace {
    log_bytes_max: u64,
    /// Bytes of Txns, since the start.
    applied: AtomicU64,
    /// Of these, what checkpoints have covered.
    covered: AtomicU64,
    /// Of checkpoints; 0 before the first.
    bytes_per_second: AtomicU64,
}

impl Pace {
    pub(crate) fn new(log_bytes_max: u64) -> Self {
        let zero = AtomicU64::default;
        Self { log_bytes_max: log_bytes_max.max(1), applied: zero(), covered: zero(), bytes_per_second: zero() }
    }

    pub(crate) fn applied(&self, bytes: u64) {
        self.applied.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A checkpoint that took `time` covers `bytes` more.
    pub(crate) fn covered(&self, bytes: u64, time: Duration) {
        self.covered.fetch_add(bytes, Ordering::Relaxed);
        let now = (bytes as f64 / time.as_secs_f64().max(1e-6)) as u64;
        let before = self.bytes_per_second.load(Ordering::Relaxed);
        let mixed = if before == 0 { now } else { (before >> WEIGHT_SHIFT) + (now >> WEIGHT_SHIFT) };
        self.bytes_per_second.store(mixed.max(1), Ordering::Relaxed);
    }

    /// The state was replaced as a whole, by one that is on disk.
    pub(crate) fn all_covered(&self) {
        self.covered.store(self.applied.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// How long to wait after `bytes` were appended.
    pub(crate) fn pause(&self, bytes: u64) -> Duration {
        let behind = self.applied.load(Ordering::Relaxed).saturating_sub(self.covered.load(Ordering::Relaxed));
        let (from, to) = (self.log_bytes_max * BEHIND_MIN, self.log_bytes_max * BEHIND_MAX);
        let bytes_per_second = self.bytes_per_second.load(Ordering::Relaxed);
        if behind <= from || bytes_per_second == 0 {
            return Duration::ZERO;
        }
        let excess = (behind - from) as f64 / (to - from) as f64;
        let time = 2.0 * excess.min(1.0) * bytes as f64 / bytes_per_second as f64;
        Duration::from_secs_f64(time.min(PAUSE_MAX.as_secs_f64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_held_to_the_speed_of_checkpoints() {
        let pace = Pace::new(1000);
        pace.applied(10_000);
        assert_eq!(pace.pause(500), Duration::ZERO, "no checkpoint was made yet");
        pace.covered(8000, Duration::from_secs(8));
        assert_eq!(pace.pause(50), Duration::ZERO);
        pace.applied(1000);
        // Half way: as fast as checkpoints.
        assert_eq!(pace.pause(50), Duration::from_millis(50));
        pace.applied(1000);
        assert_eq!(pace.pause(50), Duration::from_millis(100));
        pace.applied(1_000_000);
        assert_eq!(pace.pause(50), Duration::from_millis(100));
        assert_eq!(pace.pause(50_000), PAUSE_MAX);
        pace.all_covered();
        assert_eq!(pace.pause(50_000), Duration::ZERO);
    }
}
