//! The scheduler's one task: it hears of nodes and pods, tries who is waiting, and binds in the background.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use mussel_client::event::{EventType, Recorder, reference};
use mussel_client::informer::{Change, Informer};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Context;
use crate::bind::{self, BindError};
use crate::cluster::{Cluster, Placed, uid};
use crate::decide::{Decision, decide};
use crate::filter::{Cause, Causes};
use crate::queue::{Attempt, Queue};
use crate::report::{self, NAME, Nomination, names};
use crate::term::labels;
use crate::volumes::{Step, Volumes};

/// Bindings on their way at once.
const BINDINGS_MAX: usize = 64;
/// Everything may be different.
const ANYTHING: Causes = Causes::of(&[Cause::Node, Cause::Room, Cause::Neighbours, Cause::Volumes]);
const NEIGHBOURS: Causes = Causes::of(&[Cause::Neighbours]);
const VOLUMES: Causes = Causes::of(&[Cause::Volumes]);
/// A pod that leaves gives way in every sense.
const LEFT: Causes = Causes::of(&[Cause::Room, Cause::Neighbours]);

/// What background work has to say.
enum Outcome {
    NotBound {
        attempt: Attempt,
        error: BindError,
    },
    /// All that could be told to go for this pod has been.
    Preempted {
        uid: String,
    },
}

/// A pod that is being bound.
struct Assumed {
    pod: Arc<Pod>,
    node: String,
    cancel: CancellationToken,
}

/// What the scheduler reads but does not follow into [`Cluster`] in another form.
struct Known {
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    namespaces: Informer<Namespace>,
    budgets: Informer<PodDisruptionBudget>,
}

struct Scheduler {
    client: kube::Client,
    recorder: Recorder,
    known: Known,
    cluster: Cluster,
    volumes: Volumes,
    queue: Queue,
    /// By uid, until the binding is seen or has failed.
    assumed: HashMap<String, Assumed>,
    /// Uids of those for whom others are being told to go.
    preempting: HashSet<String>,
    tasks: TaskTracker,
    outcomes: mpsc::Sender<Outcome>,
    permits: Arc<tokio::sync::Semaphore>,
    stop: CancellationToken,
}

pub async fn run(context: Context, stop: CancellationToken) {
    let informers = &context.informers;
    let known =
        Known { nodes: informers.of(), pods: informers.of(), namespaces: informers.of(), budgets: informers.of() };
    let volumes = Volumes::new(informers);
    tokio::select! {
        () = stop.cancelled() => return,
        // Without all that is there already, pods would be put on top of each other.
        () = async { tokio::join!(known.nodes.synced(), known.pods.synced(), known.namespaces.synced(), volumes.synced()); }
            => {}
    }
    let (mut nodes, mut pods, mut namespaces) =
        (known.nodes.changes(), known.pods.changes(), known.namespaces.changes());
    let (mut claims, mut disks, mut classes) =
        (volumes.claims.changes(), volumes.volumes.changes(), volumes.classes.changes());
    let (outcomes, mut heard) = mpsc::channel(BINDINGS_MAX);
    let mut scheduler = Scheduler {
        recorder: Recorder::new(context.client.clone(), NAME, ""),
        client: context.client,
        known,
        cluster: Cluster::default(),
        volumes,
        queue: Queue::default(),
        assumed: HashMap::new(),
        preempting: HashSet::new(),
        tasks: TaskTracker::new(),
        outcomes,
        permits: Arc::new(tokio::sync::Semaphore::new(BINDINGS_MAX)),
        stop: stop.clone(),
    };
    loop {
        // Cancel-safe: what was not taken stays in its stream. What is known comes before what is decided.
        let more = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            change = nodes.next() => change.map(|change| scheduler.node_changed(change)),
            change = namespaces.next() => change.map(|change| scheduler.namespace_changed(change)),
            change = pods.next() => change.map(|change| scheduler.pod_changed(change)),
            change = claims.next() => change.map(|change| scheduler.claim_changed(&change)),
            change = disks.next() => change.map(|change| scheduler.volume_changed(&change)),
            change = classes.next() => change.map(|change| scheduler.class_changed(&change)),
            outcome = heard.recv() => outcome.map(|outcome| scheduler.heard(outcome)),
            () = wake_at(scheduler.queue.next_wake()) => {
                scheduler.queue.wake(Instant::now());
                Some(())
            }
            // Lets bindings run between two decisions.
            () = tokio::task::yield_now(), if scheduler.queue.has_next() => {
                scheduler.schedule();
                Some(())
            }
        };
        if more.is_none() {
            break;
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

/// Ours to place, once it has no gates.
fn is_ours(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    spec.and_then(|spec| spec.scheduler_name.as_deref()).unwrap_or(NAME) == NAME
        && spec.and_then(|spec| spec.node_name.as_deref()).unwrap_or_default().is_empty()
        && pod.metadata.deletion_timestamp.is_none()
        && !matches!(phase(pod), "Succeeded" | "Failed")
}

fn is_gated(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.scheduling_gates.as_ref()).is_some_and(|gates| !gates.is_empty())
}

impl Scheduler {
    fn changed(&mut self, what: Causes) {
        self.queue.changed(what, Instant::now());
    }

    fn node_changed(&mut self, change: Change<Node>) {
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
                    self.changed(ANYTHING);
                }
            }
            Change::Deleted(node) => {
                self.cluster.remove_node(node.metadata.name.as_deref().unwrap_or_default());
                self.changed(NEIGHBOURS);
            }
            Change::Resync => self.learn_anew(),
        }
    }

    fn namespace_changed(&mut self, change: Change<Namespace>) {
        let name = |namespace: &Namespace| namespace.metadata.name.clone().unwrap_or_default();
        match change {
            Change::Applied { new, .. } => {
                let labels = new.metadata.labels.clone().unwrap_or_default();
                if self.cluster.namespaces.insert(name(&new), labels.clone()) != Some(labels) {
                    self.changed(NEIGHBOURS);
                }
            }
            Change::Deleted(namespace) => drop(self.cluster.namespaces.remove(&name(&namespace))),
            Change::Resync => self.learn_anew(),
        }
    }

    fn claim_changed(&mut self, _: &Change<PersistentVolumeClaim>) {
        self.changed(VOLUMES);
    }

    fn volume_changed(&mut self, _: &Change<PersistentVolume>) {
        self.changed(VOLUMES);
    }

    fn class_changed(&mut self, _: &Change<StorageClass>) {
        self.changed(VOLUMES);
    }

    fn pod_changed(&mut self, change: Change<Pod>) {
        match change {
            Change::Applied { new, .. } => self.pod_applied(new),
            Change::Deleted(pod) => self.gone(&pod),
            Change::Resync => self.learn_anew(),
        }
    }

    /// The pod waits no more and takes no room.
    fn gone(&mut self, pod: &Pod) {
        self.queue.remove(uid(pod));
        self.settled(uid(pod));
        let promised = self.cluster.forget_nomination(uid(pod)).is_some();
        if self.cluster.take_away(uid(pod)) || promised {
            self.changed(LEFT);
        }
    }

    /// Its binding, if any, is not of interest any more.
    fn settled(&mut self, uid: &str) {
        if let Some(assumed) = self.assumed.remove(uid) {
            assumed.cancel.cancel();
        }
        self.volumes.settled(uid);
    }

    fn pod_applied(&mut self, pod: Arc<Pod>) {
        if let Some(node) = placed_on(&pod).map(str::to_owned) {
            self.queue.remove(uid(&pod));
            // Not cancelled: the watch is often faster than the answer to the binding, after which the event is recorded.
            self.assumed.remove(uid(&pod));
            self.volumes.settled(uid(&pod));
            let before = self.cluster.placed(uid(&pod)).map(|placed| (placed.pod.clone(), placed.requests.clone()));
            self.cluster.place(Arc::clone(&pod), &node);
            match before {
                None => self.changed(NEIGHBOURS),
                Some((old, requests)) => {
                    let leaving = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
                    if labels(&old) != labels(&pod) || leaving(&old) != leaving(&pod) {
                        self.changed(NEIGHBOURS);
                    }
                    if self.cluster.placed(uid(&pod)).is_some_and(|now| now.requests != requests) {
                        self.changed(LEFT);
                    }
                }
            }
        } else if !is_ours(&pod) {
            self.gone(&pod);
        } else if is_gated(&pod) {
            self.gone(&pod);
            let text = "Scheduling is blocked due to non-empty scheduling gates";
            self.report(&pod, "SchedulingGated", text, &Nomination::Same);
        } else if !self.assumed.contains_key(uid(&pod)) {
            let nominated = pod.status.as_ref().and_then(|status| status.nominated_node_name.as_deref());
            if let Some(node) = nominated.filter(|node| !node.is_empty()).map(str::to_owned) {
                self.cluster.nominate(Arc::clone(&pod), &node);
            }
            self.queue.add(pod);
        }
    }

    /// Changes were missed: starts over from what is known, and keeps what is on its way.
    fn learn_anew(&mut self) {
        self.cluster = Cluster::default();
        for namespace in self.known.namespaces.list() {
            self.namespace_changed(Change::Applied { old: None, new: namespace });
        }
        self.known.nodes.list().into_iter().for_each(|node| self.cluster.set_node(node));
        let pods = self.known.pods.list();
        let living: HashSet<&str> = pods.iter().map(|pod| uid(pod)).collect();
        self.queue.retain(&living);
        let dead: Vec<_> = self.assumed.keys().filter(|uid| !living.contains(uid.as_str())).cloned().collect();
        dead.iter().for_each(|uid| self.settled(uid));
        pods.into_iter().for_each(|pod| self.pod_applied(pod));
        for assumed in self.assumed.values() {
            self.cluster.place(Arc::clone(&assumed.pod), &assumed.node);
        }
        self.changed(ANYTHING);
    }

    fn schedule(&mut self) {
        let Some(attempt) = self.queue.next() else { return };
        let wanted = Placed::new(Arc::clone(&attempt.pod));
        let preempting = self.preempting.contains(uid(&attempt.pod));
        let budgets = self.known.budgets.list();
        match decide(&wanted, &self.cluster, &self.volumes, &budgets, preempting) {
            Decision::Bind { node, steps } => self.bind(attempt, node, steps),
            Decision::Wait { message, causes, preemption, promise_broken } => {
                let pod = Arc::clone(&attempt.pod);
                let mut nomination = Nomination::Same;
                if let Some(preemption) = preemption {
                    nomination = Nomination::Set(preemption.node.clone());
                    self.preempt(&pod, preemption);
                } else if promise_broken {
                    self.cluster.forget_nomination(uid(&pod));
                    nomination = Nomination::Cleared;
                }
                self.recorder.event(reference(pod.as_ref()), EventType::Warning, "FailedScheduling", message.clone());
                self.report(&pod, "Unschedulable", &message, &nomination);
                self.queue.failed(attempt, causes, Instant::now());
            }
        }
    }

    fn bind(&mut self, attempt: Attempt, node: String, steps: Vec<Step>) {
        let pod = Arc::clone(&attempt.pod);
        self.cluster.place(Arc::clone(&pod), &node);
        self.volumes.promise(&pod, &steps);
        // Whoever wants to be near it need not wait for the API.
        self.changed(NEIGHBOURS);
        let cancel = self.stop.child_token();
        let assumed = Assumed { pod: Arc::clone(&pod), node: node.clone(), cancel: cancel.clone() };
        self.assumed.insert(uid(&pod).to_owned(), assumed);
        let (client, claims, permits) = (self.client.clone(), self.volumes.claims.clone(), self.permits.clone());
        let (recorder, outcomes) = (self.recorder.clone(), self.outcomes.clone());
        self.tasks.spawn(async move {
            let bound = tokio::select! {
                biased;
                bound = bind::bind(client, claims, permits, &pod, &node, &steps) => bound,
                // Its pod is gone, or we lead no more.
                () = cancel.cancelled() => return,
            };
            match bound {
                Ok(()) => {
                    let (namespace, name) = names(&pod);
                    let message = format!("Successfully assigned {namespace}/{name} to {node}");
                    recorder.event(reference(pod.as_ref()), EventType::Normal, "Scheduled", message);
                }
                // Only refused when the scheduler is gone.
                Err(error) => drop(outcomes.send(Outcome::NotBound { attempt, error }).await),
            }
        });
    }

    fn heard(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::NotBound { attempt, error } => self.not_bound(attempt, &error),
            Outcome::Preempted { uid } => {
                self.preempting.remove(&uid);
                // Victims that were gone before their deaths could be waited for.
                self.changed(LEFT);
            }
        }
    }

    fn not_bound(&mut self, mut attempt: Attempt, error: &BindError) {
        let (namespace, name) = names(&attempt.pod);
        tracing::debug!(pod = name, namespace, error = %chain(error), "not bound");
        // Otherwise it is gone already, or seen on a node.
        if self.assumed.remove(uid(&attempt.pod)).is_none() {
            return;
        }
        self.volumes.settled(uid(&attempt.pod));
        self.cluster.take_away(uid(&attempt.pod));
        self.changed(LEFT);
        if !error.is_moot() {
            let message = chain(error);
            self.recorder.event(
                reference(attempt.pod.as_ref()),
                EventType::Warning,
                "FailedScheduling",
                message.clone(),
            );
            self.report(&attempt.pod, "SchedulerError", &message, &Nomination::Same);
        }
        // It may have changed meanwhile.
        let now = self.known.pods.get(&namespace, &name);
        if let Some(pod) = now.filter(|pod| uid(pod) == uid(&attempt.pod) && is_ours(pod) && !is_gated(pod)) {
            attempt.pod = pod;
            self.queue.retry(attempt, Instant::now());
        }
    }

    fn preempt(&mut self, pod: &Arc<Pod>, preemption: crate::preempt::Preemption) {
        let robbed = self.cluster.less_nominated(&preemption.node, pod);
        let robbed: Vec<Value> = robbed
            .iter()
            .filter_map(|pod| {
                self.cluster.forget_nomination(uid(pod))?;
                Some(report::withdrawn(pod))
            })
            .collect();
        self.cluster.nominate(Arc::clone(pod), &preemption.node);
        self.preempting.insert(uid(pod).to_owned());
        let (client, recorder, pod, outcomes) =
            (self.client.clone(), self.recorder.clone(), Arc::clone(pod), self.outcomes.clone());
        self.tasks.spawn(async move {
            report::preempt(client, recorder, &pod, preemption, robbed).await;
            // Only refused when the scheduler is gone.
            drop(outcomes.send(Outcome::Preempted { uid: uid(&pod).to_owned() }).await);
        });
    }

    fn report(&self, pod: &Pod, reason: &str, message: &str, nomination: &Nomination) {
        let Some(patch) = report::not_scheduled(pod, reason, message, nomination) else { return };
        let (client, (namespace, name)) = (self.client.clone(), names(pod));
        self.tasks.spawn(async move { report::write(client, &namespace, &name, patch).await });
    }
}

/// An error with all that caused it.
fn chain(error: &BindError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
