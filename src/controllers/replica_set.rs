//! ReplicaSets and ReplicationControllers: as many Pods as asked for, no more, no fewer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    ObjectReference, Pod, PodTemplateSpec, ReplicationController, ReplicationControllerCondition,
    ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::PostParams;
use kube::core::Selector;
use mussel_client::informer::Kind;
use mussel_client::{Change, Informer, WorkQueue, reference};
use tokio_util::sync::CancellationToken;

use crate::Context;
use crate::control::{self, Key, follow, follow_keys, key_of, queue_all};
use crate::error::{Error, Outcome, is_not_found};
use crate::expectations::Expectations;
use crate::owner::{Owner, claim, controller_of, is_controlled_by, matches};
use crate::pods::{self, PodControl};

/// Pods created or deleted in one pass at most.
const BURST_MAX: usize = 500;

/// A set of equal Pods, whatever its kind.
struct View {
    owner: Owner,
    about: ObjectReference,
    selector: Selector,
    replicas: i32,
    min_ready_seconds: i32,
    template: Option<PodTemplateSpec>,
}

/// What a pass found, for the status.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    replicas: i32,
    fully_labeled: i32,
    ready: i32,
    available: i32,
    terminating: i32,
}

/// The kinds this engine drives.
trait Replicated: Kind {
    const CONTROLLER: &'static str;
    fn view(&self) -> Result<View, Error>;
    /// The object with its new status, or `None` when the status stays.
    fn with_status(&self, counts: &Counts, failure: Option<(&str, String)>) -> Option<Self>;
    fn api(client: kube::Client, namespace: &str) -> Api<Self>;
}

struct Controller<K> {
    sets: Informer<K>,
    pods: Informer<Pod>,
    control: PodControl,
    expectations: Arc<Expectations>,
}

pub async fn run_replica_sets(context: Context, stop: CancellationToken) {
    run::<ReplicaSet>(context, stop).await;
}

pub async fn run_replication_controllers(context: Context, stop: CancellationToken) {
    run::<ReplicationController>(context, stop).await;
}

async fn run<K: Replicated + serde::Serialize>(context: Context, stop: CancellationToken) {
    let sets = context.informers.of::<K>();
    let pods = context.informers.of::<Pod>();
    let queue = WorkQueue::new();
    let expectations = Arc::new(Expectations::default());
    let controller = Controller {
        sets: sets.clone(),
        pods: pods.clone(),
        control: PodControl { client: context.client(), recorder: context.recorder(K::CONTROLLER) },
        expectations: expectations.clone(),
    };
    let on_pod = |change: &Change<Pod>| pod_changed(change, &sets, &queue, &expectations);
    let resync = || {
        expectations.forget_all();
        queue_all(&sets, &queue);
    };
    tokio::join!(
        follow_keys(sets.clone(), queue.clone(), stop.clone()),
        follow(pods.clone(), stop.clone(), on_pod, resync),
        async {
            tokio::select! {
                () = stop.cancelled() => return,
                () = async { tokio::join!(sets.synced(), pods.synced()); } => (),
            }
            control::work(K::CONTROLLER, queue.clone(), 5, stop.clone(), |key| controller.reconcile(key)).await;
        },
    );
}

fn pod_changed<K: Replicated>(
    change: &Change<Pod>,
    sets: &Informer<K>,
    queue: &WorkQueue<Key>,
    expectations: &Expectations,
) {
    let owner_key = |pod: &Pod| {
        let reference = controller_of(&pod.metadata).filter(|r| r.kind == K::kind(&()))?;
        let key = (pod.metadata.namespace.clone().unwrap_or_default(), reference.name.clone());
        sets.get(&key.0, &key.1)
            .is_none_or(|set| set.meta().uid.as_deref() == Some(reference.uid.as_str()))
            .then_some(key)
    };
    expectations.pod_changed(change, owner_key, queue);
    if let Change::Applied { new, .. } = change
        && controller_of(&new.metadata).is_none()
    {
        for set in sets.list_in(new.metadata.namespace.as_deref().unwrap_or_default()) {
            if set.view().is_ok_and(|view| matches(&view.selector, &new.metadata)) {
                queue.add(key_of(&*set));
            }
        }
    }
}

impl<K: Replicated + serde::Serialize> Controller<K> {
    async fn reconcile(&self, key: Key) -> Outcome {
        let Some(set) = self.sets.get(&key.0, &key.1) else {
            self.expectations.forget(&key);
            return Ok(None);
        };
        let view = set.view()?;
        let may_act = self.expectations.met(&key);
        let all = self.pods.list_in(&key.0);
        let pods = claim(&self.control.client, &view.owner, &view.selector, all, pods::is_active).await?;
        let now = Timestamp::now();
        let (terminating, rest): (Vec<_>, Vec<_>) = pods
            .into_iter()
            .filter(|pod| !pods::is_terminal(pod))
            .partition(|p| p.metadata.deletion_timestamp.is_some());
        let mut failure = None;
        if may_act && !view.owner.deleting {
            failure = self.manage(&key, &view, &rest).await.err();
        }
        let counts = count(&view, &rest, terminating.len(), now);
        let reason = failure.as_ref().map(|error| {
            let wanted = usize::try_from(view.replicas).unwrap_or(0);
            let message = match error {
                Error::Api(api) => crate::error::text(api),
                other => other.to_string(),
            };
            (if rest.len() < wanted { "FailedCreate" } else { "FailedDelete" }, message)
        });
        if let Some(updated) = set.with_status(&counts, reason) {
            let api = K::api(self.control.client.clone(), &key.0);
            match api.replace_status(&key.1, &PostParams::default(), &updated).await {
                Ok(_) => {}
                Err(error) if is_not_found(&error) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        match failure {
            Some(error) if matches!(&error, Error::Api(api) if pods::is_terminating(api)) => Ok(None),
            Some(error) => Err(error),
            None => Ok(next_available(&view, &rest, now)),
        }
    }

    async fn manage(&self, key: &Key, view: &View, pods: &[Arc<Pod>]) -> Result<(), Error> {
        let wanted = usize::try_from(view.replicas).unwrap_or(0);
        if pods.len() < wanted {
            let Some(template) = &view.template else { return Ok(()) };
            let missing = (wanted - pods.len()).min(BURST_MAX);
            let pod = pods::from_template(template, &view.owner.reference(), &key.0);
            self.expectations.expect(key, missing, []);
            let (made, failure) = self.control.create_batches(&vec![pod; missing], &view.about).await;
            for _ in made.len()..missing {
                self.expectations.created(key);
            }
            return failure.map_or(Ok(()), |error| Err(error.into()));
        }
        let surplus = (pods.len() - wanted).min(BURST_MAX);
        if surplus == 0 {
            return Ok(());
        }
        let victims = self.victims(view, pods, surplus);
        let uid = |pod: &Pod| pod.metadata.uid.clone().unwrap_or_default();
        self.expectations.expect(key, 0, victims.iter().map(|pod| uid(pod)));
        let deletions = victims.iter().map(|pod| async {
            let result = self.control.delete(pod, &view.about).await;
            if !matches!(result, Ok(true)) {
                self.expectations.deleted(key, &uid(pod));
            }
            result
        });
        let results = futures::future::join_all(deletions).await;
        results.into_iter().find_map(Result::err).map_or(Ok(()), Err)
    }

    fn victims(&self, view: &View, pods: &[Arc<Pod>], surplus: usize) -> Vec<Arc<Pod>> {
        let node = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
        // Pods of the sets with the same parent count as neighbours: a rollout then thins out crowded nodes first.
        let mine = self.sets.get(&view.owner.namespace, &view.owner.name);
        let parent = mine.as_ref().and_then(|set| controller_of(set.meta()).map(|r| r.uid.clone()));
        let related: Vec<String> = match parent {
            Some(parent) => self
                .sets
                .list_in(&view.owner.namespace)
                .iter()
                .filter(|set| is_controlled_by(set.meta(), &parent))
                .filter_map(|set| set.meta().uid.clone())
                .collect(),
            None => vec![view.owner.uid.clone()],
        };
        let mut crowd: HashMap<String, usize> = HashMap::new();
        for pod in self.pods.list_in(&view.owner.namespace) {
            let of_us = controller_of(&pod.metadata).is_some_and(|r| related.contains(&r.uid));
            if of_us && pods::is_active(&pod) {
                *crowd.entry(node(&pod)).or_default() += 1;
            }
        }
        let mut ranked: Vec<_> =
            pods.iter().map(|pod| (pod.clone(), crowd.get(&node(pod)).copied().unwrap_or(0))).collect();
        ranked.sort_by(|a, b| pods::deletion_order((&a.0, a.1), (&b.0, b.1)));
        ranked.into_iter().take(surplus).map(|(pod, _)| pod).collect()
    }
}

fn count(view: &View, pods: &[Arc<Pod>], terminating: usize, now: Timestamp) -> Counts {
    let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    let template_labels = view.template.as_ref().and_then(|t| t.metadata.as_ref()).and_then(|m| m.labels.as_ref());
    let labeled = |pod: &&Arc<Pod>| {
        let labels = pod.metadata.labels.as_ref();
        template_labels.is_none_or(|wanted| wanted.iter().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v)))
    };
    Counts {
        replicas: number(pods.len()),
        fully_labeled: number(pods.iter().filter(labeled).count()),
        ready: number(pods.iter().filter(|pod| pods::is_ready(pod)).count()),
        available: number(pods.iter().filter(|p| pods::is_available(p, view.min_ready_seconds, now)).count()),
        terminating: number(terminating),
    }
}

/// The next moment at which a ready Pod becomes available without any event telling so.
fn next_available(view: &View, pods: &[Arc<Pod>], now: Timestamp) -> Option<Duration> {
    pods.iter().filter_map(|p| pods::available_in(p, view.min_ready_seconds, now)).filter(|wait| !wait.is_zero()).min()
}

impl Replicated for ReplicaSet {
    const CONTROLLER: &'static str = "replicaset-controller";

    fn api(client: kube::Client, namespace: &str) -> Api<Self> {
        Api::namespaced(client, namespace)
    }

    fn view(&self) -> Result<View, Error> {
        let spec = self.spec.clone().unwrap_or_default();
        Ok(View {
            owner: Owner::of(self),
            about: reference(self),
            selector: spec.selector.try_into()?,
            replicas: spec.replicas.unwrap_or(1),
            min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
            template: spec.template,
        })
    }

    fn with_status(&self, counts: &Counts, failure: Option<(&str, String)>) -> Option<Self> {
        let old = self.status.clone().unwrap_or_default();
        let mut conditions = old.conditions.clone().unwrap_or_default();
        let known = conditions.iter().any(|c| c.type_ == "ReplicaFailure");
        match failure {
            Some((reason, message)) if !known => conditions.push(ReplicaSetCondition {
                type_: "ReplicaFailure".to_owned(),
                status: "True".to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message),
                last_transition_time: Some(Time(Timestamp::now())),
            }),
            Some(_) => {}
            None => conditions.retain(|c| c.type_ != "ReplicaFailure"),
        }
        let new = ReplicaSetStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: Some(counts.fully_labeled),
            ready_replicas: Some(counts.ready),
            available_replicas: Some(counts.available),
            terminating_replicas: Some(counts.terminating),
            observed_generation: self.metadata.generation,
            conditions: Some(conditions).filter(|c| !c.is_empty()),
        };
        let zero = |n: Option<i32>| n.unwrap_or(0);
        let same = new.replicas == old.replicas
            && self.status.is_some()
            && zero(new.fully_labeled_replicas) == zero(old.fully_labeled_replicas)
            && zero(new.ready_replicas) == zero(old.ready_replicas)
            && zero(new.available_replicas) == zero(old.available_replicas)
            && zero(new.terminating_replicas) == zero(old.terminating_replicas)
            && new.observed_generation == old.observed_generation
            && new.conditions.as_deref().unwrap_or_default() == old.conditions.as_deref().unwrap_or_default();
        (!same).then(|| Self { status: Some(new), ..self.clone() })
    }
}

impl Replicated for ReplicationController {
    const CONTROLLER: &'static str = "replication-controller";

    fn api(client: kube::Client, namespace: &str) -> Api<Self> {
        Api::namespaced(client, namespace)
    }

    fn view(&self) -> Result<View, Error> {
        let spec = self.spec.clone().unwrap_or_default();
        Ok(View {
            owner: Owner::of(self),
            about: reference(self),
            selector: spec.selector.unwrap_or_default().into_iter().collect(),
            replicas: spec.replicas.unwrap_or(1),
            min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
            template: spec.template,
        })
    }

    fn with_status(&self, counts: &Counts, failure: Option<(&str, String)>) -> Option<Self> {
        let old = self.status.clone().unwrap_or_default();
        let mut conditions = old.conditions.clone().unwrap_or_default();
        let known = conditions.iter().any(|c| c.type_ == "ReplicaFailure");
        match failure {
            Some((reason, message)) if !known => conditions.push(ReplicationControllerCondition {
                type_: "ReplicaFailure".to_owned(),
                status: "True".to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message),
                last_transition_time: Some(Time(Timestamp::now())),
            }),
            Some(_) => {}
            None => conditions.retain(|c| c.type_ != "ReplicaFailure"),
        }
        let new = ReplicationControllerStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: Some(counts.fully_labeled),
            ready_replicas: Some(counts.ready),
            available_replicas: Some(counts.available),
            observed_generation: self.metadata.generation,
            conditions: Some(conditions).filter(|c| !c.is_empty()),
        };
        let zero = |n: Option<i32>| n.unwrap_or(0);
        let same = new.replicas == old.replicas
            && self.status.is_some()
            && zero(new.fully_labeled_replicas) == zero(old.fully_labeled_replicas)
            && zero(new.ready_replicas) == zero(old.ready_replicas)
            && zero(new.available_replicas) == zero(old.available_replicas)
            && new.observed_generation == old.observed_generation
            && new.conditions.as_deref().unwrap_or_default() == old.conditions.as_deref().unwrap_or_default();
        (!same).then(|| Self { status: Some(new), ..self.clone() })
    }
}
