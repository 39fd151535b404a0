//! Nodes that went silent: marks them, taints them, and moves Pods away that do not tolerate it.
//!
//! A node is alive while its Lease or its heartbeat changes; the clock that counts is ours, so that a node's wrong
//! clock does no harm, and a new leader waits a whole grace period before it judges.

mod disruption;
mod taints;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use mussel_client::{Change, EventType, Informer, Recorder, WorkQueue, reference};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::disruption::{Moves, Pace};
pub use self::taints::tolerates;
use self::taints::{Eviction, eviction, is_no_execute, moves_pods, wanted};
use crate::Context;
use crate::control::{self, Key, follow, key_of, queue_all};
use crate::error::{Error, Outcome, gone_is_fine, is_not_found};
use crate::pods;

const LEASE_NAMESPACE: &str = "kube-node-lease";
/// Upstream's default of `--node-monitor-grace-period`.
pub const GRACE_PERIOD: Duration = Duration::from_secs(50);

struct Controller {
    client: Client,
    recorder: Recorder,
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    pods: Informer<Pod>,
    heard: Mutex<HashMap<String, Heard>>,
    pace: Mutex<Pace>,
    grace_period: Duration,
}

/// The last sign of life of a node, and when we saw it.
struct Heard {
    renewed: Option<MicroTime>,
    heartbeat: Option<Time>,
    at: Instant,
}

pub async fn run(context: Context, stop: CancellationToken) {
    let nodes = context.informers.of::<Node>();
    let leases = context.informers.of_fields::<Lease>(&format!("metadata.namespace={LEASE_NAMESPACE}"));
    let pods = context.informers.of::<Pod>();
    let queue = WorkQueue::new();
    let controller = Controller {
        client: context.client(),
        recorder: context.recorder("node-controller"),
        nodes: nodes.clone(),
        leases: leases.clone(),
        pods: pods.clone(),
        heard: Mutex::default(),
        pace: Mutex::default(),
        grace_period: context.config.node_monitor_grace_period,
    };
    // How many are silent decides what may be done about each.
    let on_node = |change: &Change<Node>| {
        let (node, before) = match change {
            Change::Applied { old, new } => (new, old.as_deref().map(ready_status)),
            Change::Deleted(node) => (node, None),
            Change::Resync => return,
        };
        queue.add(key_of(&**node));
        if before != Some(ready_status(node)) {
            for other in nodes.list().iter().filter(|other| ready_status(other) != "True") {
                queue.add(key_of(&**other));
            }
        }
    };
    // A renewal of a healthy node needs no pass: the deadline that is already queued finds it.
    let on_lease = |change: &Change<Lease>| {
        let (Change::Applied { new: lease, .. } | Change::Deleted(lease)) = change else { return };
        let name = lease.metadata.name.clone().unwrap_or_default();
        // When it was heard of counts from now, not from when somebody looks.
        if let Some(node) = nodes.get("", &name) {
            controller.time_left(&node, &name);
        }
        let silent = nodes.get("", &name).is_some_and(|node| ready_status(&node) == "Unknown");
        if silent || matches!(change, Change::Applied { old: None, .. }) {
            queue.add((String::new(), name));
        }
    };
    // A Pod that is bound to a tainted node after the taint was judged.
    let on_pod = |change: &Change<Pod>| {
        let Change::Applied { old, new } = change else { return };
        let node_of = |pod: &Pod| pod.spec.as_ref().and_then(|s| s.node_name.clone()).filter(|n| !n.is_empty());
        let Some(name) = node_of(new) else { return };
        let same = old.as_ref().is_some_and(|old| {
            node_of(old).is_some()
                && old.spec.as_ref().map(|s| &s.tolerations) == new.spec.as_ref().map(|s| &s.tolerations)
        });
        if !same && nodes.get("", &name).is_some_and(|node| no_execute(&node) || ready_status(&node) != "True") {
            queue.add((String::new(), name));
        }
    };
    let resync = || queue_all(&nodes, &queue);
    tokio::join!(
        follow(nodes.clone(), stop.clone(), on_node, resync),
        follow(leases.clone(), stop.clone(), on_lease, resync),
        follow(pods.clone(), stop.clone(), on_pod, resync),
        async {
            tokio::select! {
                () = stop.cancelled() => return,
                () = async { tokio::join!(nodes.synced(), leases.synced(), pods.synced()); } => (),
            }
            control::work("nodelifecycle", queue.clone(), 5, stop.clone(), |key| controller.reconcile(key)).await;
        },
    );
}

fn no_execute(node: &Node) -> bool {
    node.spec.as_ref().and_then(|spec| spec.taints.as_ref()).is_some_and(|list| list.iter().any(is_no_execute))
}

fn condition<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

fn ready_status(node: &Node) -> &str {
    condition(node, "Ready").map_or("Unknown", |ready| ready.status.as_str())
}

impl Controller {
    fn heard(&self) -> MutexGuard<'_, HashMap<String, Heard>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn reconcile(&self, (_, name): Key) -> Outcome {
        let Some(mut node) = self.nodes.get("", &name) else {
            self.heard().remove(&name);
            return Ok(None);
        };
        let left = self.time_left(&node, &name);
        if left.is_zero() && ready_status(&node) != "Unknown" {
            node = self.mark_silent(&node).await?;
        }
        let status = ready_status(&node).to_owned();
        let (moves, ask_again) = self.moves(&node);
        node = self.taint(node, moves).await?;
        if status != "True" && condition(&node, "Ready").is_some() {
            self.mark_pods(&name).await?;
        }
        let next = self.evict(&node, &name).await?;
        let deadline = (!left.is_zero()).then_some(left);
        Ok([deadline, next, ask_again].into_iter().flatten().min())
    }

    /// Whether Pods may be moved away from the node, if its state calls for it.
    fn moves(&self, node: &Arc<Node>) -> (Moves, Option<Duration>) {
        let calls_for_it = condition(node, "Ready").is_some_and(|ready| ready.status != "True");
        if !calls_for_it {
            return (Moves::Held, None);
        }
        let mut nodes = self.nodes.list();
        // The informer may not show yet what was just written.
        let (_, name) = key_of(&**node);
        nodes.retain(|other| other.metadata.name.as_deref() != Some(&name));
        nodes.push(node.clone());
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        pace.moves(node, nodes.iter().map(|node| &**node), moves_pods(taints), Instant::now())
    }

    /// How long the node may stay silent from now on.
    fn time_left(&self, node: &Node, name: &str) -> Duration {
        let lease = self.leases.get(LEASE_NAMESPACE, name);
        let renewed = lease.and_then(|lease| lease.spec.as_ref()?.renew_time.clone());
        let heartbeat = condition(node, "Ready").and_then(|ready| ready.last_heartbeat_time.clone());
        let mut heard = self.heard();
        let now = Instant::now();
        let entry = heard.entry(name.to_owned()).or_insert_with(|| Heard { renewed: None, heartbeat: None, at: now });
        if entry.renewed != renewed || entry.heartbeat != heartbeat {
            *entry = Heard { renewed, heartbeat, at: now };
        }
        self.grace_period.saturating_sub(entry.at.elapsed())
    }

    async fn mark_silent(&self, node: &Arc<Node>) -> Result<Arc<Node>, Error> {
        let name = key_of(&**node).1;
        let mut node = (**node).clone();
        let created = node.metadata.creation_timestamp.clone();
        let conditions = node.status.get_or_insert_default().conditions.get_or_insert_default();
        let now = Some(Time(Timestamp::now()));
        for type_ in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
            match conditions.iter_mut().find(|condition| condition.type_ == type_) {
                Some(condition) if condition.status == "Unknown" => {}
                Some(condition) => {
                    condition.status = "Unknown".to_owned();
                    condition.reason = Some("NodeStatusUnknown".to_owned());
                    condition.message = Some("Kubelet stopped posting node status.".to_owned());
                    condition.last_transition_time.clone_from(&now);
                }
                None => conditions.push(NodeCondition {
                    type_: type_.to_owned(),
                    status: "Unknown".to_owned(),
                    reason: Some("NodeStatusNeverUpdated".to_owned()),
                    message: Some("Kubelet never posted node status.".to_owned()),
                    last_heartbeat_time: created.clone(),
                    last_transition_time: now.clone(),
                }),
            }
        }
        let api: Api<Node> = Api::all(self.client.clone());
        let node = api.replace_status(&name, &PostParams::default(), &node).await?;
        let message = format!("Node {name} status is now: NodeNotReady");
        self.recorder.event(reference(&node), EventType::Normal, "NodeNotReady", message);
        Ok(Arc::new(node))
    }

    async fn taint(&self, node: Arc<Node>, moves: Moves) -> Result<Arc<Node>, Error> {
        let old = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
        let new = wanted(&node, &old, moves, Timestamp::now());
        if new == old {
            return Ok(node);
        }
        let name = key_of(&*node).1;
        let mut changed = (*node).clone();
        changed.spec.get_or_insert_default().taints = Some(new).filter(|taints| !taints.is_empty());
        let api: Api<Node> = Api::all(self.client.clone());
        Ok(Arc::new(api.replace(&name, &PostParams::default(), &changed).await?))
    }

    fn pods_on(&self, node: &str) -> Vec<Arc<Pod>> {
        let on = |pod: &Arc<Pod>| pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_deref() == Some(node));
        self.pods.list().into_iter().filter(on).collect()
    }

    /// Pods of a node that is not ready are not ready either: Services must not send anything there.
    async fn mark_pods(&self, node: &str) -> Result<(), Error> {
        for pod in self.pods_on(node).iter().filter(|pod| pods::is_ready(pod) && !pods::is_terminal(pod)) {
            let (namespace, name) = key_of(&**pod);
            let now = Time(Timestamp::now());
            let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [
                {"type": "Ready", "status": "False", "lastTransitionTime": now}]}});
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
            match api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(_) => {
                    let message = "Node is not ready".to_owned();
                    self.recorder.event(reference(&**pod), EventType::Warning, "NodeNotReady", message);
                }
                Err(error) if is_not_found(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Deletes the Pods that do not tolerate the node's taints; answers when the next one's time is up.
    async fn evict(&self, node: &Node, name: &str) -> Result<Option<Duration>, Error> {
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
        if !taints.iter().any(is_no_execute) {
            return Ok(None);
        }
        let mut next: Option<Duration> = None;
        for pod in self.pods_on(name).iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
            let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.clone()).unwrap_or_default();
            match eviction(&taints, &tolerations, Timestamp::now()) {
                Eviction::Never => {}
                Eviction::In(wait) if !wait.is_zero() => next = Some(next.map_or(wait, |n| n.min(wait))),
                Eviction::In(_) => self.evict_pod(pod).await?,
            }
        }
        Ok(next)
    }

    async fn evict_pod(&self, pod: &Pod) -> Result<(), Error> {
        let (namespace, name) = key_of(pod);
        let message = format!("Marking for deletion Pod {namespace}/{name}");
        self.recorder.event(reference(pod), EventType::Normal, "TaintManagerEviction", message);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": Time(Timestamp::now())});
        let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [condition]}});
        match api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            Err(error) if is_not_found(&error) => return Ok(()),
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
        gone_is_fine(api.delete(&name, &DeleteParams::default()).await)
    }
}
