//! The scheduler's one task: it hears of nodes and pods, tries who is waiting, and binds in the background.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use mussel_client::Recorder;
use mussel_client::event::{EventType, reference};
use mussel_client::informer::{Change, Informer};
use rand::seq::IndexedRandom;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Context;
use crate::affinity::Affinity;
use crate::cluster::{Cluster, Placed, uid};
use crate::filter::{Unfit, message, unfit};
use crate::preempt::{self, Preemption};
use crate::queue::{Attempt, Queue};
use crate::score::score;

const NAME: &str = "default-scheduler";
/// Bindings on their way at once.
const BINDINGS_MAX: usize = 64;

/// A binding that the API refused.
struct Unbound {
    attempt: Attempt,
    /// The pod is gone or somebody else has placed it.
    for_good: bool,
}

struct Scheduler {
    client: kube::Client,
    recorder: Recorder,
    cluster: Cluster,
    queue: Queue,
    tasks: TaskTracker,
    unbound: mpsc::Sender<Unbound>,
    permits: Arc<tokio::sync::Semaphore>,
}

pub async fn run(context: Context, stop: CancellationToken) {
    let (nodes, pods): (Informer<Node>, Informer<Pod>) = (context.informers.of(), context.informers.of());
    let (mut node_changes, mut pod_changes) = (nodes.changes(), pods.changes());
    let (unbound, mut failures) = mpsc::channel(BINDINGS_MAX);
    let mut scheduler = Scheduler {
        recorder: Recorder::new(context.client.clone(), NAME, ""),
        client: context.client,
        cluster: Cluster::default(),
        queue: Queue::default(),
        tasks: TaskTracker::new(),
        unbound,
        permits: Arc::new(tokio::sync::Semaphore::new(BINDINGS_MAX)),
    };
    tokio::select! {
        () = stop.cancelled() => return,
        // Without all that is there already, pods would be put on top of each other.
        () = async { tokio::join!(nodes.synced(), pods.synced()); } => {}
    }
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            // Cancel-safe: what was not taken stays in its stream. What is known comes before what is decided.
            change = node_changes.next() => match change {
                Some(change) => scheduler.node_changed(change, &nodes, &pods),
                None => break,
            },
            change = pod_changes.next() => match change {
                Some(change) => scheduler.pod_changed(change, &nodes, &pods),
                None => break,
            },
            Some(failure) = failures.recv() => scheduler.not_bound(failure),
            () = wake_at(scheduler.queue.next_wake()) => scheduler.queue.wake(Instant::now()),
            () = std::future::ready(()) => match scheduler.queue.next() {
                Some(attempt) => scheduler.schedule(attempt).await,
                // Nobody to try: wait for whatever comes first.
                None => tokio::select! {
                    () = stop.cancelled() => break,
                    change = node_changes.next() => match change {
                        Some(change) => scheduler.node_changed(change, &nodes, &pods),
                        None => break,
                    },
                    change = pod_changes.next() => match change {
                        Some(change) => scheduler.pod_changed(change, &nodes, &pods),
                        None => break,
                    },
                    Some(failure) = failures.recv() => scheduler.not_bound(failure),
                    () = wake_at(scheduler.queue.next_wake()) => scheduler.queue.wake(Instant::now()),
                },
            },
        }
    }
    scheduler.tasks.close();
    scheduler.tasks.wait().await;
}

async fn wake_at(when: Option<Instant>) {
    match when {
        Some(when) => time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// Takes room on its node.
fn placed_on(pod: &Pod) -> Option<&str> {
    let ended = matches!(phase(pod), "Succeeded" | "Failed");
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).filter(|node| !node.is_empty());
    node.filter(|_| !ended)
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// Ours to place.
fn wants_node(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    let ours = spec.and_then(|spec| spec.scheduler_name.as_deref()).unwrap_or(NAME) == NAME;
    let gated = spec.and_then(|spec| spec.scheduling_gates.as_ref()).is_some_and(|gates| !gates.is_empty());
    let unplaced = spec.and_then(|spec| spec.node_name.as_deref()).unwrap_or_default().is_empty();
    ours && unplaced
        && !gated
        && pod.metadata.deletion_timestamp.is_none()
        && !matches!(phase(pod), "Succeeded" | "Failed")
}

impl Scheduler {
    fn node_changed(&mut self, change: Change<Node>, nodes: &Informer<Node>, pods: &Informer<Pod>) {
        match change {
            Change::Applied { old, new } => {
                // Heartbeats and image lists make no difference to who fits.
                let same = old.as_ref().is_some_and(|old| {
                    let capacity = |node: &Node| node.status.as_ref().and_then(|status| status.allocatable.clone());
                    old.spec == new.spec
                        && old.metadata.labels == new.metadata.labels
                        && capacity(old) == capacity(&new)
                });
                self.cluster.set_node(new);
                if !same {
                    self.queue.something_changed(Instant::now());
                }
            }
            Change::Deleted(node) => self.cluster.remove_node(node.metadata.name.as_deref().unwrap_or_default()),
            Change::Resync => self.learn_anew(nodes, pods),
        }
    }

    fn pod_changed(&mut self, change: Change<Pod>, nodes: &Informer<Node>, pods: &Informer<Pod>) {
        match change {
            Change::Applied { new, .. } => self.pod_applied(new),
            Change::Deleted(pod) => {
                self.queue.remove(uid(&pod));
                if self.cluster.take_away(uid(&pod)) {
                    self.queue.something_changed(Instant::now());
                }
            }
            Change::Resync => self.learn_anew(nodes, pods),
        }
    }

    fn pod_applied(&mut self, pod: Arc<Pod>) {
        if let Some(node) = placed_on(&pod).map(str::to_owned) {
            self.queue.remove(uid(&pod));
            self.cluster.place(pod, &node);
        } else if wants_node(&pod) {
            self.queue.add(pod);
        } else {
            self.queue.remove(uid(&pod));
            if self.cluster.take_away(uid(&pod)) {
                self.queue.something_changed(Instant::now());
            }
            self.tell_gated(&pod);
        }
    }

    fn learn_anew(&mut self, nodes: &Informer<Node>, pods: &Informer<Pod>) {
        self.cluster = Cluster::default();
        nodes.list().into_iter().for_each(|node| self.cluster.set_node(node));
        pods.list().into_iter().for_each(|pod| self.pod_applied(pod));
        self.queue.something_changed(Instant::now());
    }

    async fn schedule(&mut self, attempt: Attempt) {
        let pod = Arc::clone(&attempt.pod);
        let wanted = Placed::new(Arc::clone(&pod));
        let affinity = Affinity::new(&pod, &self.cluster);
        let mut unfits: Vec<(String, Vec<Unfit>)> = Vec::new();
        let mut best: Vec<(&str, f64)> = Vec::new();
        for node in self.cluster.known() {
            let why = unfit(&wanted, node, &affinity);
            if !why.is_empty() {
                unfits.push((node.name().to_owned(), why));
                continue;
            }
            let points = score(&wanted, node);
            match best.first() {
                Some((_, top)) if points < *top => {}
                Some((_, top)) if points <= *top => best.push((node.name(), points)),
                _ => best = vec![(node.name(), points)],
            }
        }
        // Among equals by chance, so that nodes fill evenly.
        let chosen = best.choose(&mut rand::rng()).map(|(name, _)| (*name).to_owned());
        match chosen {
            Some(node) => {
                self.cluster.place(Arc::clone(&pod), &node);
                self.bind(attempt, node).await;
            }
            None => self.no_node(attempt, &wanted, &unfits),
        }
    }

    async fn bind(&mut self, attempt: Attempt, node: String) {
        // Waits only when very many are on their way.
        let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else { return };
        let (client, recorder, unbound) = (self.client.clone(), self.recorder.clone(), self.unbound.clone());
        self.tasks.spawn(async move {
            let pod = &attempt.pod;
            let (namespace, name) = names(pod);
            let binding = Binding {
                metadata: ObjectMeta {
                    name: Some(name.clone()),
                    namespace: Some(namespace.clone()),
                    uid: pod.metadata.uid.clone(),
                    ..ObjectMeta::default()
                },
                target: ObjectReference {
                    kind: Some("Node".to_owned()),
                    name: Some(node.clone()),
                    ..ObjectReference::default()
                },
            };
            let api: Api<Pod> = Api::namespaced(client, &namespace);
            let bound: Result<serde_json::Value, _> =
                api.create_subresource("binding", &name, &PostParams::default(), &binding).await;
            drop(permit);
            match bound {
                Ok(_) => {
                    let message = format!("Successfully assigned {namespace}/{name} to {node}");
                    recorder.event(reference(pod.as_ref()), EventType::Normal, "Scheduled", message);
                }
                Err(error) => {
                    let for_good =
                        matches!(&error, kube::Error::Api(status) if status.code == 404 || status.code == 409);
                    tracing::debug!(pod = name, namespace, node, %error, "not bound");
                    // Only gone when the scheduler is.
                    let _ = unbound.send(Unbound { attempt, for_good }).await;
                }
            }
        });
    }

    fn not_bound(&mut self, failure: Unbound) {
        self.cluster.take_away(uid(&failure.attempt.pod));
        self.queue.something_changed(Instant::now());
        if !failure.for_good {
            self.queue.retry(failure.attempt, Instant::now());
        }
    }

    fn no_node(&mut self, attempt: Attempt, wanted: &Placed, unfits: &[(String, Vec<Unfit>)]) {
        let all: Vec<Vec<Unfit>> = unfits.iter().map(|(_, why)| why.clone()).collect();
        let mut text = message(unfits.len(), &all);
        let pod = Arc::clone(&attempt.pod);
        let preemption = match preempt::is_under_way(&pod, &self.cluster) {
            true => None,
            false => preempt::choose(wanted, &self.cluster, unfits),
        };
        let nominated = preemption.as_ref().map(|preemption| preemption.node.clone());
        match preemption {
            Some(preemption) => self.preempt(&pod, preemption),
            None if !unfits.is_empty() => text.push_str(&hopeless(unfits)),
            None => {}
        }
        self.recorder.event(reference(pod.as_ref()), EventType::Warning, "FailedScheduling", text.clone());
        self.report(&pod, "Unschedulable", text, nominated);
        self.queue.failed(attempt, Instant::now());
    }

    fn preempt(&self, pod: &Arc<Pod>, preemption: Preemption) {
        let (client, recorder, pod) = (self.client.clone(), self.recorder.clone(), Arc::clone(pod));
        self.tasks.spawn(async move {
            for victim in preemption.victims {
                let (namespace, name) = names(&victim);
                let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
                let condition = json!({"status": {"conditions": [{
                    "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
                    "message": format!("{NAME}: preempting to accommodate a higher priority pod"),
                    "lastTransitionTime": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                }]}});
                let marked = api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(condition)).await;
                let preconditions = Preconditions { uid: victim.metadata.uid.clone(), resource_version: None };
                let delete = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
                let deleted = api.delete(&name, &delete).await;
                if let Err(error) = marked.map(drop).and(deleted.map(drop)) {
                    tracing::warn!(pod = name, namespace, %error, "victim of preemption stays");
                    continue;
                }
                let message = format!("Preempted by pod {} on node {}", uid(&pod), preemption.node);
                recorder.event(reference(victim.as_ref()), EventType::Normal, "Preempted", message);
            }
        });
    }

    fn tell_gated(&self, pod: &Arc<Pod>) {
        let gated = pod.spec.as_ref().and_then(|spec| spec.scheduling_gates.as_ref()).is_some_and(|g| !g.is_empty());
        if gated && pod.metadata.deletion_timestamp.is_none() {
            let text = "Scheduling is blocked due to non-empty scheduling gates".to_owned();
            self.report(pod, "SchedulingGated", text, None);
        }
    }

    /// Says in the pod's status why it has no node, unless it says so already.
    fn report(&self, pod: &Arc<Pod>, reason: &str, text: String, nominated: Option<String>) {
        let status = pod.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_ref());
        let said = conditions.into_iter().flatten().any(|condition| {
            condition.type_ == "PodScheduled"
                && condition.reason.as_deref() == Some(reason)
                && condition.message.as_deref() == Some(&text)
        });
        if said && nominated.is_none() {
            return;
        }
        let (client, (namespace, name), reason) = (self.client.clone(), names(pod), reason.to_owned());
        self.tasks.spawn(async move {
            let mut patch = json!({"status": {"conditions": [{
                "type": "PodScheduled", "status": "False", "reason": reason, "message": text,
                "lastTransitionTime": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            }]}});
            if let Some(node) = nominated {
                patch["status"]["nominatedNodeName"] = node.into();
            }
            let api: Api<Pod> = Api::namespaced(client, &namespace);
            if let Err(error) = api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                tracing::debug!(pod = name, namespace, %error, "status of an unschedulable pod is not written");
            }
        });
    }
}

/// What upstream adds about preemption.
fn hopeless(unfits: &[(String, Vec<Unfit>)]) -> String {
    let unhelpful = unfits.iter().filter(|(_, why)| why.iter().any(|unfit| !unfit.preemption_may_help)).count();
    let without_victims = unfits.len() - unhelpful;
    let mut reasons = Vec::new();
    if without_victims > 0 {
        reasons.push(format!("{without_victims} No preemption victims found for incoming pod"));
    }
    if unhelpful > 0 {
        reasons.push(format!("{unhelpful} Preemption is not helpful for scheduling"));
    }
    format!(" preemption: 0/{} nodes are available: {}.", unfits.len(), reasons.join(", "))
}

fn names(pod: &Pod) -> (String, String) {
    (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default())
}
