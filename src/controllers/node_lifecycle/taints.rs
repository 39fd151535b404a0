//! Which taints a node's state asks for, and how long a Pod stands them. Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::disruption::Moves;
use crate::pods::until;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
const NO_EXECUTE: &str = "NoExecute";
const NO_SCHEDULE: &str = "NoSchedule";

/// Condition, the status that calls for a taint, and its key.
const BY_CONDITION: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];

pub fn is_no_execute(taint: &Taint) -> bool {
    taint.effect == NO_EXECUTE
}

/// Whether one of our taints that move Pods is among these.
pub fn moves_pods(taints: &[Taint]) -> bool {
    taints.iter().any(|taint| is_no_execute(taint) && (taint.key == NOT_READY || taint.key == UNREACHABLE))
}

/// The taints the node should have: others' as they are, ours by its conditions, those that move Pods as `moves` says.
pub fn wanted(node: &Node, old: &[Taint], moves: Moves, now: Timestamp) -> Vec<Taint> {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let mut ours: Vec<(&str, &str)> = Vec::new();
    for (type_, status, key) in BY_CONDITION {
        if conditions.iter().any(|c| c.type_ == type_ && c.status == status) {
            ours.push((key, NO_SCHEDULE));
            // One that is there already may change its name.
            let may_move = match moves {
                Moves::Allowed => true,
                Moves::Held => moves_pods(old),
                Moves::Undone => false,
            };
            if type_ == "Ready" && may_move {
                ours.push((key, NO_EXECUTE));
            }
        }
    }
    if node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true)) {
        ours.push((UNSCHEDULABLE, NO_SCHEDULE));
    }
    // A node that never reported yet keeps the taint it registered with.
    let reported = conditions.iter().any(|c| c.type_ == "Ready");
    let managed = |taint: &Taint| {
        let by_condition = BY_CONDITION.iter().any(|(_, _, key)| *key == taint.key) && reported;
        let no_schedule = taint.effect == NO_SCHEDULE && (by_condition || taint.key == UNSCHEDULABLE);
        let no_execute = taint.effect == NO_EXECUTE && reported && (taint.key == NOT_READY || taint.key == UNREACHABLE);
        no_schedule || no_execute
    };
    let is_ours = |taint: &Taint| ours.iter().any(|(key, effect)| taint.key == *key && taint.effect == *effect);
    let mut taints: Vec<Taint> = old.iter().filter(|taint| !managed(taint) || is_ours(taint)).cloned().collect();
    for (key, effect) in ours {
        if !taints.iter().any(|taint| taint.key == key && taint.effect == effect) {
            taints.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                value: None,
                time_added: Some(Time(now)),
            });
        }
    }
    taints
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    Never,
    In(Duration),
}

/// How long a Pod with these tolerations may stay on a node with these taints.
pub fn eviction(taints: &[Taint], tolerations: &[Toleration], now: Timestamp) -> Eviction {
    let mut result = Eviction::Never;
    for taint in taints.iter().filter(|taint| is_no_execute(taint)) {
        let matching: Vec<_> = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).collect();
        if matching.is_empty() {
            return Eviction::In(Duration::ZERO);
        }
        let Some(seconds) = matching.iter().filter_map(|toleration| toleration.toleration_seconds).min() else {
            continue;
        };
        let since = taint.time_added.as_ref().map_or(now, |time| time.0);
        let wait = until(since, seconds.max(0), now);
        result = match result {
            Eviction::Never => Eviction::In(wait),
            Eviction::In(other) => Eviction::In(other.min(wait)),
        };
    }
    result
}

pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    if filled(&toleration.effect).is_some_and(|effect| effect != taint.effect) {
        return false;
    }
    let key = filled(&toleration.key);
    if key.as_ref().is_some_and(|key| *key != taint.key) {
        return false;
    }
    match toleration.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => {
            key.is_some() && filled(&toleration.value).unwrap_or_default() == taint.value.clone().unwrap_or_default()
        }
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(ready: &str, spec: serde_json::Value) -> Node {
        serde_json::from_value(
            json!({"metadata": {}, "spec": spec, "status": {"conditions": [{"type": "Ready", "status": ready}]}}),
        )
        .unwrap()
    }

    fn keys(taints: &[Taint]) -> Vec<String> {
        taints.iter().map(|t| format!("{}:{}", t.key.trim_start_matches("node.kubernetes.io/"), t.effect)).collect()
    }

    #[test]
    fn taints_follow_conditions() {
        let now = Timestamp::UNIX_EPOCH;
        let foreign = Taint { key: "mine".to_owned(), effect: NO_EXECUTE.to_owned(), ..Taint::default() };
        let old = wanted(&node("Unknown", json!({})), &[foreign], Moves::Allowed, now);
        assert_eq!(keys(&old), ["mine:NoExecute", "unreachable:NoSchedule", "unreachable:NoExecute"]);
        assert_eq!(wanted(&node("Unknown", json!({})), &old, Moves::Allowed, now), old);
        assert_eq!(keys(&wanted(&node("True", json!({})), &old, Moves::Allowed, now)), ["mine:NoExecute"]);
        for none in [Moves::Held, Moves::Undone] {
            assert_eq!(keys(&wanted(&node("False", json!({})), &[], none, now)), ["not-ready:NoSchedule"]);
        }
        let changed = wanted(&node("False", json!({})), &old, Moves::Held, now);
        assert_eq!(keys(&changed), ["mine:NoExecute", "not-ready:NoSchedule", "not-ready:NoExecute"]);
        let undone = wanted(&node("Unknown", json!({})), &old, Moves::Undone, now);
        assert_eq!(keys(&undone), ["mine:NoExecute", "unreachable:NoSchedule"]);
        let cordoned = node("True", json!({"unschedulable": true}));
        assert_eq!(keys(&wanted(&cordoned, &[], Moves::Allowed, now)), ["unschedulable:NoSchedule"]);
    }

    #[test]
    fn pods_stay_as_long_as_they_tolerate() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let taints: Vec<Taint> =
            serde_json::from_value(json!([{"key": "k", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}]))
                .unwrap();
        let seconds = |s: u64| Eviction::In(Duration::from_secs(s));
        for (tolerations, expected) in [
            (json!([]), seconds(0)),
            (json!([{"key": "k", "operator": "Exists"}]), Eviction::Never),
            (json!([{"operator": "Exists"}]), Eviction::Never),
            (json!([{"key": "k", "operator": "Exists", "effect": "NoSchedule"}]), seconds(0)),
            (json!([{"key": "k", "operator": "Exists", "tolerationSeconds": 300}]), seconds(240)),
            (json!([{"key": "k", "operator": "Exists", "tolerationSeconds": 30}]), seconds(0)),
            (json!([{"key": "k", "value": "other"}]), seconds(0)),
        ] {
            let list: Vec<Toleration> = serde_json::from_value(tolerations.clone()).unwrap();
            assert_eq!(eviction(&taints, &list, now), expected, "{tolerations}");
        }
    }
}
