//! From what metrics recommend to what is done: stabilization windows, scaling policies, least and most.
//!
//! Pure but for the memory that it is given: recommendations and changes of the last while.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

/// How long a lower recommendation has to hold until it is followed, where nothing else is said.
const DOWNSCALE_WINDOW: Duration = Duration::from_secs(300);
/// Nothing that is remembered is older: the longest window, and the longest period.
const MEMORY_MAX: Duration = Duration::from_secs(3600);

/// What was recommended and done lately, for one autoscaler.
#[derive(Debug, Default)]
pub struct Memory {
    recommendations: Vec<(Instant, i64)>,
    /// Pods added and removed.
    ups: Vec<(Instant, i64)>,
    downs: Vec<(Instant, i64)>,
}

/// A recommendation within its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    pub replicas: i64,
    /// Reason and message of `AbleToScale`.
    pub able: (&'static str, &'static str),
    /// Whether bounds changed it, and reason and message of `ScalingLimited`.
    pub limited: (bool, &'static str, &'static str),
}

/// The bounds of an autoscaler.
#[derive(Clone, Copy, Debug)]
pub struct Bounds<'a> {
    pub least: i64,
    pub most: i64,
    /// `spec.behavior`, with defaults; null without one.
    pub behavior: &'a Value,
}

const WITHIN: (&str, &str) = ("DesiredWithinRange", "the desired count is within the acceptable range");
const TOO_MANY: (&str, &str) = ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const TOO_FEW: (&str, &str) = ("TooFewReplicas", "the desired replica count is less than the minimum replica count");
const UP_LIMIT: (&str, &str) =
    ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const DOWN_LIMIT: (&str, &str) =
    ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");

impl Memory {
    /// The number at which the autoscaler was first seen is what it holds on to, to begin with.
    pub fn begin(&mut self, current: i64, now: Instant) {
        if self.recommendations.is_empty() {
            self.recommendations.push((now, current));
        }
    }

    /// Pods were added, or removed.
    pub fn scaled(&mut self, before: i64, after: i64, now: Instant) {
        let events = if after > before { &mut self.ups } else { &mut self.downs };
        events.retain(|(at, _)| now - *at < MEMORY_MAX);
        events.push((now, (after - before).abs()));
    }

    /// What is to be done about a recommendation; it is remembered.
    pub fn decide(&mut self, bounds: &Bounds<'_>, current: i64, recommended: i64, now: Instant) -> Decision {
        let (up, down) = (&bounds.behavior["scaleUp"], &bounds.behavior["scaleDown"]);
        let window =
            |rules: &Value, default| rules["stabilizationWindowSeconds"].as_u64().map_or(default, Duration::from_secs);
        let (up_window, down_window) = (window(up, Duration::ZERO), window(down, DOWNSCALE_WINDOW));
        let within = |of: Duration| self.recommendations.iter().filter(move |(at, _)| now - *at < of).map(|(_, n)| *n);
        let stable = if recommended >= current {
            within(up_window).fold(recommended, i64::min)
        } else {
            within(down_window).fold(recommended, i64::max)
        };
        self.recommendations.retain(|(at, _)| now - *at < up_window.max(down_window));
        self.recommendations.push((now, recommended));
        let able = match (stable == recommended, recommended >= current) {
            (true, _) => ("ReadyForNewScale", "recommended size matches current size"),
            (false, true) => (
                "ScaleUpStabilized",
                "recent recommendations were lower than current one, applying the lowest recent recommendation",
            ),
            (false, false) => (
                "ScaleDownStabilized",
                "recent recommendations were higher than current one, applying the highest recent recommendation",
            ),
        };
        let (replicas, why) = self.bounded(bounds, current, stable, now);
        Decision { replicas, able, limited: (replicas != stable, why.0, why.1) }
    }

    fn bounded(
        &self,
        bounds: &Bounds<'_>,
        current: i64,
        wanted: i64,
        now: Instant,
    ) -> (i64, (&'static str, &'static str)) {
        let (least, most) = (bounds.least, bounds.most);
        if bounds.behavior.is_null() {
            // A figure that is far off may at most double the number at once.
            let limit = (2 * current).max(4);
            let (most, why) = if most > limit { (limit, UP_LIMIT) } else { (most, TOO_MANY) };
            return match wanted {
                _ if wanted < least => (least, TOO_FEW),
                _ if wanted > most => (most, why),
                _ => (wanted, WITHIN),
            };
        }
        if wanted > current {
            let limit = limit(&bounds.behavior["scaleUp"], current, &self.ups, true, now).max(current);
            let (most, why) = if most > limit { (limit, UP_LIMIT) } else { (most, TOO_MANY) };
            if wanted > most {
                return (most, why);
            }
        } else if wanted < current {
            let limit = limit(&bounds.behavior["scaleDown"], current, &self.downs, false, now).min(current);
            let (least, why) = if least < limit { (limit, DOWN_LIMIT) } else { (least, TOO_FEW) };
            if wanted < least {
                return (least, why);
            }
        }
        (wanted, WITHIN)
    }
}

/// How far the policies of one direction let the number go.
fn limit(rules: &Value, current: i64, events: &[(Instant, i64)], up: bool, now: Instant) -> i64 {
    let select = rules["selectPolicy"].as_str().unwrap_or("Max");
    if select == "Disabled" {
        return current;
    }
    let proposals = rules["policies"].as_array().into_iter().flatten().map(|policy| {
        let period = Duration::from_secs(policy["periodSeconds"].as_u64().unwrap_or_default());
        let changed: i64 = events.iter().filter(|(at, _)| now - *at < period).map(|(_, count)| *count).sum();
        let value = policy["value"].as_i64().unwrap_or_default();
        let start = if up { current - changed } else { current + changed };
        match (policy["type"] == "Percent", up) {
            (false, true) => start + value,
            (false, false) => start - value,
            // Up, it is rounded up: otherwise a small number would never grow.
            (true, true) => (start * (100 + value) + 99).div_euclid(100),
            (true, false) => (start * (100 - value)).max(0) / 100,
        }
    });
    // The largest change is the highest number upwards and the lowest downwards.
    let furthest = if (select == "Min") == up { proposals.min() } else { proposals.max() };
    furthest.unwrap_or(current)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn without_behavior_it_doubles_at_most_and_goes_down_slowly() {
        let start = Instant::now();
        let bounds = Bounds { least: 2, most: 20, behavior: &Value::Null };
        let mut memory = Memory::default();
        memory.begin(3, start);
        let seen = memory.decide(&bounds, 3, 15, at(start, 1));
        assert_eq!((seen.replicas, seen.limited.1), (6, "ScaleUpLimit"));
        // Lower for a while, but not for five minutes yet.
        let seen = memory.decide(&bounds, 6, 1, at(start, 100));
        assert_eq!((seen.replicas, seen.able.0), (12, "ScaleDownStabilized"));
        let seen = memory.decide(&bounds, 6, 1, at(start, 500));
        assert_eq!((seen.replicas, seen.limited), (2, (true, TOO_FEW.0, TOO_FEW.1)));
        let seen = memory.decide(&bounds, 15, 40, at(start, 900));
        assert_eq!((seen.replicas, seen.limited.1), (20, "TooManyReplicas"));
        let seen = memory.decide(&bounds, 15, 16, at(start, 1300));
        assert_eq!((seen.replicas, seen.limited.1, seen.able.0), (16, "DesiredWithinRange", "ReadyForNewScale"));
    }

    #[tokio::test(start_paused = true)]
    async fn policies_bound_the_change_in_a_period() {
        let start = Instant::now();
        let behavior = json!({
            "scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [
                {"type": "Pods", "value": 4, "periodSeconds": 60}, {"type": "Percent", "value": 50, "periodSeconds": 60}]},
            "scaleDown": {"stabilizationWindowSeconds": 0, "selectPolicy": "Min", "policies": [
                {"type": "Pods", "value": 1, "periodSeconds": 60}, {"type": "Percent", "value": 50, "periodSeconds": 60}]}});
        let bounds = Bounds { least: 1, most: 100, behavior: &behavior };
        let mut memory = Memory::default();
        let seen = memory.decide(&bounds, 10, 50, at(start, 1));
        assert_eq!((seen.replicas, seen.limited.1), (15, "ScaleUpLimit"));
        memory.scaled(10, 15, at(start, 1));
        // In the same minute the five count.
        assert_eq!(memory.decide(&bounds, 15, 50, at(start, 30)).replicas, 15);
        assert_eq!(memory.decide(&bounds, 15, 50, at(start, 70)).replicas, 23);
        let seen = memory.decide(&bounds, 10, 1, at(start, 200));
        assert_eq!((seen.replicas, seen.limited.1), (9, "ScaleDownLimit"));
        let disabled = json!({"scaleUp": behavior["scaleUp"], "scaleDown": {"selectPolicy": "Disabled"}});
        let bounds = Bounds { behavior: &disabled, ..bounds };
        assert_eq!(Memory::default().decide(&bounds, 10, 1, start).replicas, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn windows_hold_in_both_directions() {
        let start = Instant::now();
        let behavior = json!({
            "scaleUp": {"stabilizationWindowSeconds": 60, "policies": [{"type": "Pods", "value": 100, "periodSeconds": 60}]},
            "scaleDown": {"stabilizationWindowSeconds": 60,
                "policies": [{"type": "Pods", "value": 100, "periodSeconds": 60}]}});
        let bounds = Bounds { least: 1, most: 100, behavior: &behavior };
        let mut memory = Memory::default();
        memory.begin(5, start);
        let seen = memory.decide(&bounds, 5, 9, at(start, 30));
        assert_eq!((seen.replicas, seen.able.0), (5, "ScaleUpStabilized"));
        assert_eq!(memory.decide(&bounds, 5, 9, at(start, 70)).replicas, 9);
        assert_eq!(memory.decide(&bounds, 9, 3, at(start, 100)).replicas, 9);
        assert_eq!(memory.decide(&bounds, 9, 3, at(start, 140)).replicas, 3);
    }
}
