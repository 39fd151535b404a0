//! The arithmetic of rollouts: how many Pods each ReplicaSet should have next.
//!
//! Pure: numbers in, numbers out.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// A ReplicaSet as the arithmetic sees it. Old sets come in the order of their creation, oldest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Set {
    pub replicas: i32,
    pub available: i32,
}

/// The bounds of a rollout in Pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub replicas: i32,
    pub max_surge: i32,
    pub max_unavailable: i32,
}

/// `25%` of `total`, or the number itself. `None` for what is neither.
pub fn scaled(value: &IntOrString, total: i32, round_up: bool) -> Option<i32> {
    match value {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(text) => {
            let percent: i64 = text.strip_suffix('%')?.parse().ok()?;
            let product = percent.checked_mul(i64::from(total))?;
            let whole = if round_up { (product + 99).div_euclid(100) } else { product.div_euclid(100) };
            i32::try_from(whole).ok()
        }
    }
}

impl Bounds {
    /// Both at zero would forbid any step, so one may then be unavailable.
    pub fn new(replicas: i32, surge: Option<&IntOrString>, unavailable: Option<&IntOrString>) -> Self {
        let default = IntOrString::String("25%".to_owned());
        let max_surge = scaled(surge.unwrap_or(&default), replicas, true).unwrap_or(0).max(0);
        let mut max_unavailable = scaled(unavailable.unwrap_or(&default), replicas, false).unwrap_or(0).max(0);
        if max_surge == 0 && max_unavailable == 0 {
            max_unavailable = 1;
        }
        Self { replicas, max_surge, max_unavailable: max_unavailable.min(replicas) }
    }

    /// The most Pods that may exist.
    pub fn pods_max(&self) -> i32 {
        self.replicas.saturating_add(self.max_surge)
    }
}

/// What the new set grows or shrinks to; `total` is what all sets ask for.
pub fn new_replicas(bounds: &Bounds, new: i32, total: i32) -> i32 {
    if new >= bounds.replicas {
        return bounds.replicas;
    }
    let room = (bounds.pods_max() - total).max(0);
    new + room.min(bounds.replicas - new)
}

/// What the old sets shrink to: first Pods that are not available anyway, then as many as availability allows.
pub fn old_replicas(bounds: &Bounds, new: Set, old: &[Set]) -> Vec<i32> {
    let mut result: Vec<i32> = old.iter().map(|set| set.replicas).collect();
    let total = new.replicas + result.iter().sum::<i32>();
    let available_min = bounds.replicas - bounds.max_unavailable;
    let new_unavailable = new.replicas - new.available;
    let removable = total - available_min - new_unavailable;
    if removable <= 0 {
        return result;
    }
    let mut removed = 0;
    for (replicas, set) in result.iter_mut().zip(old) {
        let unhealthy = (*replicas - set.available).max(0).min(removable - removed);
        *replicas -= unhealthy;
        removed += unhealthy;
    }
    let available = new.available + old.iter().map(|set| set.available).sum::<i32>();
    let mut spare = available - available_min;
    for replicas in &mut result {
        let step = (*replicas).min(spare).max(0);
        *replicas -= step;
        spare -= step;
    }
    result
}

/// One set in a proportional scaling; `max_then` is the most Pods that were allowed when it was last scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub replicas: i32,
    pub max_then: i32,
}

/// Spreads a change of `spec.replicas` in the middle of a rollout over the active sets in proportion to their size.
/// `shares` come newest first.
pub fn proportional(bounds: &Bounds, shares: &[Share]) -> Vec<i32> {
    let mut result: Vec<i32> = shares.iter().map(|share| share.replicas).collect();
    let allowed = if bounds.replicas > 0 { bounds.pods_max() } else { 0 };
    let to_add = allowed - result.iter().sum::<i32>();
    let mut order: Vec<usize> = (0..shares.len()).collect();
    // Bigger sets first; among equals the newer grows first and the older shrinks first.
    if to_add < 0 {
        order.reverse();
    }
    order.sort_by_key(|&i| std::cmp::Reverse(shares[i].replicas));
    let mut added = 0;
    for &i in &order {
        let share = shares[i];
        if to_add == 0 || share.replicas == 0 {
            continue;
        }
        let fraction = if bounds.replicas == 0 {
            -share.replicas
        } else {
            let base = if share.max_then > 0 { share.max_then } else { allowed };
            let size = f64::from(share.replicas) * f64::from(allowed) / f64::from(base);
            #[allow(clippy::cast_possible_truncation, reason = "a count of Pods")]
            let size = size.round() as i32;
            size - share.replicas
        };
        let left = to_add - added;
        let step = if to_add > 0 { fraction.min(left).max(0) } else { fraction.max(left).min(0) };
        result[i] += step;
        added += step;
    }
    if let Some(&first) = order.first() {
        result[first] = (result[first] + to_add - added).max(0);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn int(n: i32) -> IntOrString {
        IntOrString::Int(n)
    }

    fn set(replicas: i32, available: i32) -> Set {
        Set { replicas, available }
    }

    #[test]
    fn bounds_round_surge_up_and_unavailable_down() {
        for (replicas, surge, unavailable) in [(1, 1, 0), (3, 1, 0), (4, 1, 1), (10, 3, 2), (0, 0, 0)] {
            let bounds = Bounds::new(replicas, None, None);
            assert_eq!((bounds.max_surge, bounds.max_unavailable), (surge, unavailable), "{replicas}");
        }
        assert_eq!(Bounds::new(5, Some(&int(0)), Some(&int(0))).max_unavailable, 1);
        assert_eq!(Bounds::new(5, Some(&int(0)), Some(&int(9))).max_unavailable, 5);
    }

    #[test]
    fn the_new_set_grows_into_the_surge() {
        let bounds = Bounds { replicas: 10, max_surge: 3, max_unavailable: 2 };
        for (new, total, expected) in [(0, 10, 3), (3, 13, 3), (3, 11, 5), (12, 12, 10), (9, 9, 10)] {
            assert_eq!(new_replicas(&bounds, new, total), expected, "{new} of {total}");
        }
    }

    #[test]
    fn old_sets_shrink_as_availability_allows() {
        let bounds = Bounds { replicas: 10, max_surge: 2, max_unavailable: 2 };
        let cases = [
            // All old are available, the new are not yet: only maxUnavailable may go.
            (set(2, 0), vec![set(10, 10)], vec![8]),
            // The new are ready: as many old may go.
            (set(2, 2), vec![set(10, 10)], vec![6]),
            // Broken old ones go first, from the oldest.
            (set(0, 0), vec![set(8, 5), set(2, 2)], vec![6, 2]),
            // Nothing may go while too few are available.
            (set(4, 0), vec![set(8, 8)], vec![8]),
            (set(10, 10), vec![set(1, 0), set(1, 1)], vec![0, 0]),
        ];
        for (new, old, expected) in cases {
            assert_eq!(old_replicas(&bounds, new, &old), expected, "{new:?} {old:?}");
        }
    }

    #[test]
    fn a_rollout_always_ends() {
        for replicas in 1..12 {
            for surge in 0..3 {
                let bounds = Bounds::new(replicas, Some(&int(surge)), Some(&int(1)));
                let (mut new, mut old) = (0, replicas);
                for _ in 0..50 {
                    new = new_replicas(&bounds, new, new + old);
                    old = old_replicas(&bounds, set(new, new), &[set(old, old)])[0];
                    assert!(new + old <= bounds.pods_max());
                }
                assert_eq!((new, old), (replicas, 0));
            }
        }
    }

    #[test]
    fn scaling_in_a_rollout_keeps_the_proportions() {
        let share = |replicas| Share { replicas, max_then: 13 };
        let bounds = Bounds { replicas: 20, max_surge: 6, max_unavailable: 0 };
        assert_eq!(proportional(&bounds, &[share(5), share(8)]), [10, 16]);
        let down = Bounds { replicas: 5, max_surge: 1, max_unavailable: 0 };
        assert_eq!(proportional(&down, &[share(5), share(8)]).iter().sum::<i32>(), 6);
        let zero = Bounds { replicas: 0, max_surge: 0, max_unavailable: 0 };
        assert_eq!(proportional(&zero, &[share(5), share(8)]), [0, 0]);
    }
}
