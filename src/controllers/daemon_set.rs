//! DaemonSets: one Pod on every node that fits, bound there by node affinity and started whatever the scheduler's
//! taints for sick nodes say.

mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams};
use kube::core::Selector;
use kube::{Api, Client};
use mussel_client::{Change, EventType, Informer, Recorder, WorkQueue, reference};
use tokio_util::sync::CancellationToken;

use self::plan::{Fit, fit, pod_for};
use crate::Context;
use crate::control::{self, Key, follow, follow_keys, key_of, queue_all};
use crate::deployment::scaled;
use crate::error::{Error, Outcome, gone_is_fine, is_not_found};
use crate::expectations::Expectations;
use crate::owner::{Owner, claim, controlled_by};
use crate::pods::{self, PodControl};
use crate::revision;

const HASH: &str = "controller-revision-hash";
const BURST_MAX: usize = 250;

struct Controller {
    client: Client,
    recorder: Recorder,
    control: PodControl,
    sets: Informer<DaemonSet>,
    revisions: Informer<ControllerRevision>,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    expectations: Arc<Expectations>,
}

pub async fn run(context: Context, stop: CancellationToken) {
    let sets = context.informers.of::<DaemonSet>();
    let revisions = context.informers.of::<ControllerRevision>();
    let nodes = context.informers.of::<Node>();
    let pods = context.informers.of::<Pod>();
    let queue = WorkQueue::new();
    let expectations = Arc::new(Expectations::default());
    let recorder = context.recorder("daemonset-controller");
    let controller = Controller {
        client: context.client(),
        recorder: recorder.clone(),
        control: PodControl { client: context.client(), recorder },
        sets: sets.clone(),
        revisions: revisions.clone(),
        nodes: nodes.clone(),
        pods: pods.clone(),
        expectations: expectations.clone(),
    };
    let resync = || {
        expectations.forget_all();
        queue_all(&sets, &queue);
    };
    let on_node = |change: &Change<Node>| {
        let facts = |node: &Node| {
            let spec = node.spec.clone().unwrap_or_default();
            (node.metadata.labels.clone(), spec.taints, spec.unschedulable)
        };
        match change {
            Change::Applied { old: Some(old), new } if facts(old) == facts(new) => {}
            _ => queue_all(&sets, &queue),
        }
    };
    let owner = |pod: &Pod| controlled_by(&pod.metadata, "DaemonSet");
    let on_pod = |change: &Change<Pod>| expectations.pod_changed(change, owner, &queue);
    tokio::join!(
        follow_keys(sets.clone(), queue.clone(), stop.clone()),
        follow(nodes.clone(), stop.clone(), on_node, resync),
        follow(pods.clone(), stop.clone(), on_pod, resync),
        async {
            tokio::select! {
                () = stop.cancelled() => return,
                () = async { tokio::join!(sets.synced(), revisions.synced(), nodes.synced(), pods.synced()); } => (),
            }
            control::work("daemonset", queue.clone(), 2, stop.clone(), |key| controller.reconcile(key)).await;
        },
    );
}

/// A node's Pods of this set.
#[derive(Default)]
struct OnNode {
    old: Vec<Arc<Pod>>,
    new: Vec<Arc<Pod>>,
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Outcome {
        let Some(set) = self.sets.get(&key.0, &key.1) else {
            self.expectations.forget(&key);
            return Ok(None);
        };
        let Some(spec) = &set.spec else { return Ok(None) };
        let owner = Owner::of(&*set);
        if owner.deleting {
            return Ok(None);
        }
        let selector: Selector = spec.selector.clone().try_into()?;
        let may_act = self.expectations.met(&key);
        let pods = claim(&self.client, &owner, &selector, self.pods.list_in(&key.0), |_| true).await?;
        let current = self.revision(&set, spec, &owner, &selector, &pods).await?;
        let hash = current.metadata.labels.as_ref().and_then(|l| l.get(HASH)).cloned().unwrap_or_default();
        let mut failure = None;
        if may_act {
            failure = self.manage(&key, &set, spec, &owner, &pods, &hash).await.err();
        }
        self.update_status(&set, spec, &pods, &hash).await?;
        match failure {
            Some(Error::Api(error)) if pods::is_terminating(&error) => Ok(None),
            Some(error) => Err(error),
            None => {
                let wait =
                    |pod: &Arc<Pod>| pods::available_in(pod, spec.min_ready_seconds.unwrap_or(0), Timestamp::now());
                Ok(pods.iter().filter_map(wait).filter(|wait: &Duration| !wait.is_zero()).min())
            }
        }
    }

    fn by_node(pods: &[Arc<Pod>], hash: &str) -> BTreeMap<String, OnNode> {
        let mut nodes: BTreeMap<String, OnNode> = BTreeMap::new();
        for pod in pods {
            let Some(node) = plan::target_node(pod) else { continue };
            let entry = nodes.entry(node).or_default();
            let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get(HASH));
            if label.is_some_and(|label| label == hash) {
                entry.new.push(pod.clone())
            } else {
                entry.old.push(pod.clone())
            }
        }
        nodes
    }

    async fn manage(
        &self,
        key: &Key,
        set: &DaemonSet,
        spec: &DaemonSetSpec,
        owner: &Owner,
        pods: &[Arc<Pod>],
        hash: &str,
    ) -> Result<(), Error> {
        let by_node = Self::by_node(pods, hash);
        let mut create = Vec::new();
        let mut delete: Vec<Arc<Pod>> = Vec::new();
        let nodes = self.nodes.list();
        for node in &nodes {
            let name = key_of(&**node).1;
            let there: Vec<&Arc<Pod>> =
                by_node.get(&name).into_iter().flat_map(|n| n.old.iter().chain(&n.new)).collect();
            let Fit { run, keep } = fit(&spec.template, node);
            if !keep {
                delete.extend(there.iter().filter(|p| p.metadata.deletion_timestamp.is_none()).map(|p| (*p).clone()));
                continue;
            }
            let mut alive = 0;
            for pod in &there {
                if pod.metadata.deletion_timestamp.is_some() {
                    // It frees the node soon; until then there must not be two.
                    alive += 1;
                } else if pods::phase(pod) == "Failed" {
                    let message = format!(
                        "Found failed daemon pod {}/{} on node {name}, will try to kill it",
                        key.0,
                        key_of(&***pod).1
                    );
                    self.recorder.event(reference(set), EventType::Warning, "FailedDaemonPod", message);
                    delete.push((*pod).clone());
                } else if pods::phase(pod) == "Succeeded" {
                    let message = format!(
                        "Found succeeded daemon pod {}/{} on node {name}, will try to delete it",
                        key.0,
                        key_of(&***pod).1
                    );
                    self.recorder.event(reference(set), EventType::Normal, "SucceededDaemonPod", message);
                    delete.push((*pod).clone());
                } else {
                    alive += 1;
                    if alive > 1 {
                        delete.push((*pod).clone());
                    }
                }
            }
            // A finished Pod is replaced on the pass after its deletion, so that a crashing one cannot spin.
            if run && alive == 0 && there.is_empty() {
                create.push(pod_for(set, spec, owner, &name, hash));
            }
        }
        let rolling = spec.update_strategy.as_ref().is_none_or(|s| s.type_.as_deref() != Some("OnDelete"));
        if rolling {
            self.roll(spec, &nodes, &by_node, &mut delete);
        }
        self.apply(key, set, create, delete).await
    }

    /// Picks old Pods to go, within `maxUnavailable`.
    fn roll(
        &self,
        spec: &DaemonSetSpec,
        nodes: &[Arc<Node>],
        by_node: &BTreeMap<String, OnNode>,
        delete: &mut Vec<Arc<Pod>>,
    ) {
        let wanted: Vec<String> =
            nodes.iter().filter(|node| fit(&spec.template, node).run).map(|node| key_of(&**node).1).collect();
        let rolling = spec.update_strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
        let total = i32::try_from(wanted.len()).unwrap_or(i32::MAX);
        let max = rolling.and_then(|r| r.max_unavailable.as_ref()).and_then(|v| scaled(v, total, true)).unwrap_or(1);
        let min_ready = spec.min_ready_seconds.unwrap_or(0);
        let now = Timestamp::now();
        let mut unavailable = 0;
        let mut candidates = Vec::new();
        for name in &wanted {
            let on = by_node.get(name);
            let all = on.iter().flat_map(|n| n.old.iter().chain(&n.new));
            let is_up =
                all.filter(|p| p.metadata.deletion_timestamp.is_none()).any(|p| pods::is_available(p, min_ready, now));
            if !is_up {
                unavailable += 1;
            }
            for pod in on.iter().flat_map(|n| &n.old).filter(|p| p.metadata.deletion_timestamp.is_none()) {
                if is_up { candidates.push(pod.clone()) } else { delete.push(pod.clone()) }
            }
        }
        let room = usize::try_from(max.max(1) - unavailable).unwrap_or(0);
        delete.extend(candidates.into_iter().take(room));
        delete.sort_by(|a, b| a.metadata.uid.cmp(&b.metadata.uid));
        delete.dedup_by(|a, b| a.metadata.uid == b.metadata.uid);
    }

    async fn apply(
        &self,
        key: &Key,
        set: &DaemonSet,
        mut create: Vec<Pod>,
        mut delete: Vec<Arc<Pod>>,
    ) -> Result<(), Error> {
        create.truncate(BURST_MAX);
        delete.truncate(BURST_MAX);
        let uid = |pod: &Pod| pod.metadata.uid.clone().unwrap_or_default();
        self.expectations.expect(key, create.len(), delete.iter().map(|pod| uid(pod)));
        let about = reference(set);
        let (made, mut failure) = self.control.create_batches(&create, &about).await;
        for _ in made.len()..create.len() {
            self.expectations.created(key);
        }
        let mut trouble = None;
        for pod in delete {
            match self.control.delete(&pod, &about).await {
                Ok(true) => {}
                Ok(false) => self.expectations.deleted(key, &uid(&pod)),
                Err(error) => {
                    self.expectations.deleted(key, &uid(&pod));
                    trouble = Some(error);
                }
            }
        }
        match failure.take() {
            Some(error) => Err(error.into()),
            None => trouble.map_or(Ok(()), Err),
        }
    }

    async fn update_status(
        &self,
        set: &DaemonSet,
        spec: &DaemonSetSpec,
        pods: &[Arc<Pod>],
        hash: &str,
    ) -> Result<(), Error> {
        let by_node = Self::by_node(pods, hash);
        let (mut desired, mut current, mut mis, mut ready, mut available, mut updated) = (0, 0, 0, 0, 0, 0);
        for node in self.nodes.list() {
            let name = key_of(&*node).1;
            let on = by_node.get(&name);
            let scheduled = on.is_some();
            if !fit(&spec.template, &node).run {
                mis += i32::from(scheduled);
                continue;
            }
            desired += 1;
            let Some(on) = on else { continue };
            current += 1;
            // The oldest Pod that is not on its way out speaks for the node.
            let mut all: Vec<_> = on.old.iter().chain(&on.new).collect();
            all.sort_by_key(|p| {
                (p.metadata.deletion_timestamp.is_some(), p.metadata.creation_timestamp.clone().map(|t| t.0))
            });
            let Some(pod) = all.first().filter(|pod| pods::is_ready(pod) || pod.metadata.deletion_timestamp.is_none())
            else {
                continue;
            };
            if pods::is_ready(pod) {
                ready += 1;
                available += i32::from(pods::is_available(pod, spec.min_ready_seconds.unwrap_or(0), Timestamp::now()));
            }
            updated += i32::from(pod.metadata.labels.as_ref().and_then(|l| l.get(HASH)).is_some_and(|l| l == hash));
        }
        let status = DaemonSetStatus {
            observed_generation: set.metadata.generation,
            desired_number_scheduled: desired,
            current_number_scheduled: current,
            number_misscheduled: mis,
            number_ready: ready,
            updated_number_scheduled: Some(updated),
            number_available: Some(available),
            number_unavailable: Some(desired - available),
            collision_count: set.status.as_ref().and_then(|s| s.collision_count),
            conditions: set.status.as_ref().and_then(|s| s.conditions.clone()),
        };
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let (namespace, name) = key_of(set);
        let api: Api<DaemonSet> = Api::namespaced(self.client.clone(), &namespace);
        match api
            .replace_status(&name, &PostParams::default(), &DaemonSet { status: Some(status), ..set.clone() })
            .await
        {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// The ControllerRevision of the current template, made when there is none; old ones beyond the limit go.
    async fn revision(
        &self,
        set: &DaemonSet,
        spec: &DaemonSetSpec,
        owner: &Owner,
        selector: &Selector,
        pods: &[Arc<Pod>],
    ) -> Result<Arc<ControllerRevision>, Error> {
        let history = claim(&self.client, owner, selector, self.revisions.list_in(&owner.namespace), |_| true).await?;
        let data = revision::template_patch(&spec.template)?;
        let hash = crate::hash::hash(&spec.template, set.status.as_ref().and_then(|s| s.collision_count))?;
        let mut labels = spec.template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
        labels.insert(HASH.to_owned(), hash.clone());
        let meta = ObjectMeta {
            name: Some(format!("{}-{hash}", owner.name)),
            namespace: Some(owner.namespace.clone()),
            labels: Some(labels),
            annotations: set.metadata.annotations.clone(),
            owner_references: Some(vec![owner.reference()]),
            ..ObjectMeta::default()
        };
        let current = revision::ensure(&self.client, &history, data, meta).await?;
        let used: Vec<String> = pods.iter().filter_map(|p| p.metadata.labels.as_ref()?.get(HASH).cloned()).collect();
        let limit = usize::try_from(spec.revision_history_limit.unwrap_or(10)).unwrap_or(10);
        let mut old: Vec<_> = history
            .iter()
            .filter(|r| r.metadata.name != current.metadata.name)
            .filter(|r| r.metadata.labels.as_ref().and_then(|l| l.get(HASH)).is_none_or(|h| !used.contains(h)))
            .collect();
        old.sort_by_key(|r| r.revision);
        let surplus = old.len().saturating_sub(limit);
        let api: Api<ControllerRevision> = Api::namespaced(self.client.clone(), &owner.namespace);
        for revision in old.into_iter().take(surplus) {
            let name = revision.metadata.name.as_deref().unwrap_or_default();
            gone_is_fine(api.delete(name, &DeleteParams::default()).await)?;
        }
        Ok(current)
    }
}
