//! How fast Pods may be moved away from silent nodes, as upstream's node lifecycle controller: one node at a time, and not
//! at all while so many are silent that it is more likely the network between us that is broken. Pure but for the clock.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use tokio::time::Instant;

use super::ready_status;

/// `--node-eviction-rate` of 0.1 nodes a second.
const EVICTION_PERIOD: Duration = Duration::from_secs(10);
/// `--secondary-node-eviction-rate` of 0.01, in zones that are broken in part.
const SECONDARY_PERIOD: Duration = Duration::from_secs(100);
/// `--large-cluster-size-threshold`: a zone of fewer nodes that is broken in part moves nothing.
const LARGE_CLUSTER: usize = 50;
/// `--unhealthy-zone-threshold`, in percent.
const UNHEALTHY_PERCENT: usize = 55;
/// So few nodes say nothing of the network.
const SILENT_MIN: usize = 3;

/// What a node that calls for Pods to be moved gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moves {
    Allowed,
    /// What was ordered before goes on; nothing new for now.
    Held,
    /// Nothing, and what was ordered before is taken back.
    Undone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ZoneState {
    Normal,
    /// So many are silent that it is not the nodes.
    Partial,
    Full,
}

fn state(ready: usize, silent: usize) -> ZoneState {
    if ready == 0 && silent > 0 {
        ZoneState::Full
    } else if silent >= SILENT_MIN && silent * 100 >= (ready + silent) * UNHEALTHY_PERCENT {
        ZoneState::Partial
    } else {
        ZoneState::Normal
    }
}

fn zone(node: &Node) -> String {
    let label =
        |name: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(name)).map_or("", String::as_str);
    format!("{}:{}", label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"))
}

/// Who may be tainted when.
#[derive(Default)]
pub struct Pace {
    /// By zone: not before this.
    next: HashMap<String, Instant>,
}

impl Pace {
    /// What `node` gets while the cluster's nodes are in the given state; `ordered` says that it has its taint already. With [`Moves::Held`] comes when to ask again, if
    /// not only when some node's state has changed.
    pub fn moves<'a>(
        &mut self,
        node: &Node,
        all: impl Iterator<Item = &'a Node>,
        ordered: bool,
        now: Instant,
    ) -> (Moves, Option<Duration>) {
        let mut zones: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for node in all {
            let (ready, silent) = zones.entry(zone(node)).or_default();
            *(if ready_status(node) == "True" { ready } else { silent }) += 1;
        }
        if zones.values().all(|(ready, silent)| state(*ready, *silent) == ZoneState::Full) {
            // When every node is silent, it is more likely us who cannot hear.
            self.next.clear();
            return (Moves::Undone, None);
        }
        if ordered {
            return (Moves::Held, None);
        }
        let own = zone(node);
        let (ready, silent) = zones.get(&own).copied().unwrap_or_default();
        let period = match state(ready, silent) {
            ZoneState::Normal | ZoneState::Full => EVICTION_PERIOD,
            ZoneState::Partial if ready + silent > LARGE_CLUSTER => SECONDARY_PERIOD,
            ZoneState::Partial => return (Moves::Held, None),
        };
        match self.next.get(&own).map(|next| next.saturating_duration_since(now)).filter(|wait| !wait.is_zero()) {
            Some(wait) => (Moves::Held, Some(wait)),
            None => {
                self.next.insert(own, now + period);
                (Moves::Allowed, None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn nodes(text: &str) -> Vec<Node> {
        // Each word: a zone's letter, then `+` for a ready node and `-` for a silent one.
        let node = |(at, word): (usize, &str)| {
            let (zone, sign) = word.split_at(1);
            let ready = if sign == "+" { "True" } else { "Unknown" };
            serde_json::from_value(json!({
                "metadata": {"name": format!("n{at}"), "labels": {"topology.kubernetes.io/zone": zone}},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
            .unwrap()
        };
        text.split_whitespace().enumerate().map(node).collect()
    }

    fn first(text: &str) -> Moves {
        let nodes = nodes(text);
        Pace::default().moves(&nodes[0], nodes.iter(), false, Instant::now()).0
    }

    #[tokio::test]
    async fn the_more_are_silent_the_less_is_moved() {
        assert_eq!(first("a- a+"), Moves::Allowed);
        assert_eq!(first("a- a- a+"), Moves::Allowed, "two say nothing of the network");
        assert_eq!(first("a- a- a- a+ a+"), Moves::Held, "60 %");
        assert_eq!(first("a- a- a- a+ a+ a+"), Moves::Allowed, "half");
        assert_eq!(first("a-"), Moves::Undone);
        assert_eq!(first("a- a- b-"), Moves::Undone);
        assert_eq!(first("a- a- a- b+"), Moves::Allowed, "a zone went down as a whole, the others did not");
        assert_eq!(first(&("a- ".repeat(40) + &"a+ ".repeat(20))), Moves::Allowed, "slowly, in a large zone");
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_go_one_by_one() {
        let nodes = nodes("a- a- a+ a+ b- b+");
        let mut pace = Pace::default();
        let mut moves = |node: usize| pace.moves(&nodes[node], nodes.iter(), false, Instant::now());
        assert_eq!(moves(0), (Moves::Allowed, None));
        assert_eq!(moves(1), (Moves::Held, Some(EVICTION_PERIOD)));
        assert_eq!(moves(4), (Moves::Allowed, None), "another zone has a pace of its own");
        tokio::time::advance(EVICTION_PERIOD).await;
        assert_eq!(moves(1), (Moves::Allowed, None));
        assert_eq!(pace.moves(&nodes[1], nodes.iter(), true, Instant::now()), (Moves::Held, None), "has had its turn");
    }
}
