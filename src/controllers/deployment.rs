//! Deployments: a ReplicaSet per pod template, and the way from one to the next.
//!
//! `plan.rs` holds the arithmetic, `conditions.rs` the status, this file the requests.

mod conditions;
mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::api::{DeleteParams, PostParams};
use kube::core::Selector;
use kube::{Api, Client};
use mussel_client::{Change, EventType, Informer, Recorder, WorkQueue, reference};
use tokio_util::sync::CancellationToken;

use self::conditions::{available, replicas};
pub use self::plan::scaled;
use self::plan::{Bounds, Set, Share};
use crate::Context;
use crate::control::{self, Key, follow, follow_keys, key_of, queue_all};
use crate::error::{Error, Outcome, gone_is_fine, is_already_exists};
use crate::hash::hash;
use crate::owner::{Owner, claim, controller_of, is_controlled_by, matches};
use crate::pods;

const HASH: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of a Deployment that its ReplicaSets do not inherit.
const OWN: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

struct Controller {
    client: Client,
    recorder: Recorder,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
}

pub async fn run(context: Context, stop: CancellationToken) {
    let deployments = context.informers.of::<Deployment>();
    let sets = context.informers.of::<ReplicaSet>();
    let pods = context.informers.of::<Pod>();
    let queue = WorkQueue::new();
    let controller = Controller {
        client: context.client(),
        recorder: context.recorder("deployment-controller"),
        deployments: deployments.clone(),
        sets: sets.clone(),
        pods: pods.clone(),
    };
    let on_set = |change: &Change<ReplicaSet>| {
        let (Change::Applied { new: set, .. } | Change::Deleted(set)) = change else { return };
        let namespace = set.metadata.namespace.clone().unwrap_or_default();
        match controller_of(&set.metadata) {
            Some(owner) if owner.kind == "Deployment" => queue.add((namespace, owner.name.clone())),
            Some(_) => {}
            None => {
                for deployment in deployments.list_in(&namespace) {
                    if selector(&deployment).is_ok_and(|selector| matches(&selector, &set.metadata)) {
                        queue.add(key_of(&*deployment));
                    }
                }
            }
        }
    };
    // Only Recreate waits for Pods, and only for the last one to go.
    let on_pod = |change: &Change<Pod>| {
        let pod = match change {
            Change::Deleted(pod) => pod,
            Change::Applied { new, .. } if pods::is_terminal(new) => new,
            _ => return,
        };
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let Some(owner) = controller_of(&pod.metadata).filter(|owner| owner.kind == "ReplicaSet") else { return };
        let set = sets.get(&namespace, &owner.name);
        let parent = set.as_ref().and_then(|set| controller_of(&set.metadata));
        if let Some(deployment) = parent.and_then(|parent| deployments.get(&namespace, &parent.name))
            && is_recreate(&deployment)
        {
            queue.add(key_of(&*deployment));
        }
    };
    let resync = || queue_all(&deployments, &queue);
    tokio::join!(
        follow_keys(deployments.clone(), queue.clone(), stop.clone()),
        follow(sets.clone(), stop.clone(), on_set, resync),
        follow(pods.clone(), stop.clone(), on_pod, resync),
        async {
            tokio::select! {
                () = stop.cancelled() => return,
                () = async { tokio::join!(deployments.synced(), sets.synced(), pods.synced()); } => (),
            }
            control::work("deployment", queue.clone(), 5, stop.clone(), |key| controller.reconcile(key)).await;
        },
    );
}

fn selector(deployment: &Deployment) -> Result<Selector, Error> {
    let selector = deployment.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default();
    Ok(selector.try_into()?)
}

fn is_recreate(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

/// Everything one pass works with.
struct Pass<'a> {
    deployment: &'a Deployment,
    spec: &'a DeploymentSpec,
    bounds: Bounds,
    /// All that the Deployment controls, oldest first.
    sets: Vec<Arc<ReplicaSet>>,
    new: Option<Arc<ReplicaSet>>,
}

impl Pass<'_> {
    /// Old sets, oldest first.
    fn old(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        let new = self.new.as_ref().and_then(|set| set.metadata.uid.clone());
        self.sets.iter().filter(move |set| set.metadata.uid != new)
    }

    fn total(&self) -> i32 {
        self.old().map(|set| replicas(set)).sum::<i32>() + self.new.as_ref().map_or(0, |set| replicas(set))
    }
}

impl Controller {
    fn sets_api(&self, namespace: &str) -> Api<ReplicaSet> {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn reconcile(&self, key: Key) -> Outcome {
        let Some(deployment) = self.deployments.get(&key.0, &key.1) else { return Ok(None) };
        let Some(spec) = &deployment.spec else { return Ok(None) };
        let selector = selector(&deployment)?;
        let mut sets =
            claim(&self.client, &Owner::of(&*deployment), &selector, self.sets.list_in(&key.0), |_| true).await?;
        sets.sort_by(|a, b| {
            let age =
                |set: &ReplicaSet| (set.metadata.creation_timestamp.clone().map(|t| t.0), set.metadata.name.clone());
            age(a).cmp(&age(b))
        });
        let rolling = spec.strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
        let bounds = if is_recreate(&deployment) {
            Bounds { replicas: spec.replicas.unwrap_or(1), max_surge: 0, max_unavailable: 0 }
        } else {
            let (surge, unavailable) =
                (rolling.and_then(|r| r.max_surge.as_ref()), rolling.and_then(|r| r.max_unavailable.as_ref()));
            Bounds::new(spec.replicas.unwrap_or(1), surge, unavailable)
        };
        let new = sets.iter().find(|set| same_template(set, &spec.template)).cloned();
        let mut pass = Pass { deployment: &deployment, spec, bounds, sets, new };
        if deployment.metadata.deletion_timestamp.is_some() {
            return self.finish(&pass).await;
        }
        let paused = spec.paused == Some(true);
        let rescaled = pass.sets.iter().filter(|set| replicas(set) > 0).any(|set| {
            annotation::<i32>(&set.metadata, DESIRED).is_some_and(|desired| desired != pass.bounds.replicas)
        });
        // Recreate has no way to scale several sets at once; it first gets rid of the old ones.
        let several = pass.sets.iter().filter(|set| replicas(set) > 0).count() > 1;
        let rescaled = rescaled && !(several && is_recreate(&deployment));
        if paused || rescaled {
            if pass.new.is_some() {
                self.sync_new(&mut pass, false).await?;
            }
            self.rescale(&mut pass).await?;
            if paused {
                self.cleanup(&pass).await?;
            }
            return self.finish(&pass).await;
        }
        let pause =
            if is_recreate(&deployment) { self.recreate(&mut pass).await? } else { self.roll(&mut pass).await? };
        if pause {
            return self.finish(&pass).await;
        }
        self.cleanup(&pass).await?;
        self.finish(&pass).await
    }

    /// Old Pods go completely before the first new one comes. True when something was changed that has to settle.
    async fn recreate(&self, pass: &mut Pass<'_>) -> Result<bool, Error> {
        let old: Vec<_> = pass.old().filter(|set| replicas(set) > 0).cloned().collect();
        for set in &old {
            self.scale(pass, set, 0).await?;
        }
        if !old.is_empty() {
            return Ok(true);
        }
        let old: Vec<_> = pass.old().filter_map(|set| set.metadata.uid.clone()).collect();
        let namespace = pass.deployment.metadata.namespace.as_deref().unwrap_or_default();
        let running = self.pods.list_in(namespace).iter().any(|pod| {
            !pods::is_terminal(pod) && controller_of(&pod.metadata).is_some_and(|owner| old.contains(&owner.uid))
        });
        if running {
            return Ok(true);
        }
        self.sync_new(pass, true).await?;
        if let Some(new) = pass.new.clone()
            && replicas(&new) != pass.bounds.replicas
        {
            let scaled = self.scale(pass, &new, pass.bounds.replicas).await?;
            pass.new = Some(scaled);
            return Ok(true);
        }
        Ok(false)
    }

    async fn roll(&self, pass: &mut Pass<'_>) -> Result<bool, Error> {
        self.sync_new(pass, true).await?;
        let Some(new) = pass.new.clone() else { return Ok(true) };
        let wanted = plan::new_replicas(&pass.bounds, replicas(&new), pass.total());
        if wanted != replicas(&new) {
            pass.new = Some(self.scale(pass, &new, wanted).await?);
            return Ok(true);
        }
        let old: Vec<_> = pass.old().cloned().collect();
        let numbers = |set: &Arc<ReplicaSet>| Set { replicas: replicas(set), available: available(set) };
        let sizes: Vec<_> = old.iter().map(numbers).collect();
        let mut changed = false;
        for (set, wanted) in old.iter().zip(plan::old_replicas(&pass.bounds, numbers(&new), &sizes)) {
            if wanted != replicas(set) {
                self.scale(pass, set, wanted).await?;
                changed = true;
            }
        }
        Ok(changed)
    }

    /// `spec.replicas` changed, maybe in the middle of a rollout.
    async fn rescale(&self, pass: &mut Pass<'_>) -> Result<(), Error> {
        let active: Vec<_> = pass.sets.iter().rev().filter(|set| replicas(set) > 0).cloned().collect();
        let only = match active.as_slice() {
            [] => pass.new.clone().or_else(|| pass.sets.last().cloned()),
            [one] => Some(one.clone()),
            _ => None,
        };
        if let Some(only) = only {
            if replicas(&only) != pass.bounds.replicas
                || annotation(&only.metadata, DESIRED) != Some(pass.bounds.replicas)
            {
                self.scale(pass, &only, pass.bounds.replicas).await?;
            }
            return Ok(());
        }
        let saturated = pass.new.as_ref().is_some_and(|new| {
            replicas(new) == pass.bounds.replicas
                && annotation(&new.metadata, DESIRED) == Some(pass.bounds.replicas)
                && available(new) == pass.bounds.replicas
        });
        if saturated {
            for set in pass.old().filter(|set| replicas(set) > 0).cloned().collect::<Vec<_>>() {
                self.scale(pass, &set, 0).await?;
            }
            return Ok(());
        }
        if is_recreate(pass.deployment) {
            return Ok(());
        }
        let shares: Vec<_> = active
            .iter()
            .map(|set| Share { replicas: replicas(set), max_then: annotation(&set.metadata, MAX).unwrap_or(0) })
            .collect();
        for (set, wanted) in active.iter().zip(plan::proportional(&pass.bounds, &shares)) {
            self.scale(pass, set, wanted).await?;
        }
        Ok(())
    }

    /// Writes size and the annotations that remember what it was computed from.
    async fn scale(&self, pass: &Pass<'_>, set: &ReplicaSet, wanted: i32) -> Result<Arc<ReplicaSet>, Error> {
        let (namespace, name) = key_of(set);
        let before = replicas(set);
        let mut set = set.clone();
        let spec = set.spec.get_or_insert_default();
        let annotations = set.metadata.annotations.get_or_insert_default();
        let marks = [(DESIRED, pass.bounds.replicas.to_string()), (MAX, pass.bounds.pods_max().to_string())];
        let marked = marks.iter().all(|(key, value)| annotations.get(*key) == Some(value));
        if spec.replicas == Some(wanted) && marked {
            return Ok(Arc::new(set));
        }
        spec.replicas = Some(wanted);
        annotations.extend(marks.map(|(key, value)| (key.to_owned(), value)));
        let set = self.sets_api(&namespace).replace(&name, &PostParams::default(), &set).await?;
        if before != wanted {
            let direction = if wanted > before { "up" } else { "down" };
            let message = format!("Scaled {direction} replica set {name} from {before} to {wanted}");
            self.recorder.event(reference(pass.deployment), EventType::Normal, "ScalingReplicaSet", message);
        }
        Ok(Arc::new(set))
    }

    /// Finds or makes the ReplicaSet of the current template and brings its revision up to date.
    async fn sync_new(&self, pass: &mut Pass<'_>, create: bool) -> Result<(), Error> {
        let highest = pass.old().filter_map(|set| annotation::<i64>(&set.metadata, REVISION)).max().unwrap_or(0);
        match pass.new.clone() {
            Some(new) => {
                let mut updated = (*new).clone();
                annotate(&mut updated, pass, highest + 1, true);
                let spec = updated.spec.get_or_insert_default();
                spec.min_ready_seconds = pass.spec.min_ready_seconds;
                let same_ready = new.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
                    == spec.min_ready_seconds.unwrap_or(0);
                if updated.metadata.annotations != new.metadata.annotations || !same_ready {
                    let (namespace, name) = key_of(&updated);
                    let api = self.sets_api(&namespace);
                    pass.new = Some(Arc::new(api.replace(&name, &PostParams::default(), &updated).await?));
                }
            }
            None if create => self.create_new(pass, highest + 1).await?,
            None => {}
        }
        Ok(())
    }

    async fn create_new(&self, pass: &mut Pass<'_>, revision: i64) -> Result<(), Error> {
        let deployment = pass.deployment;
        let (namespace, name) = key_of(deployment);
        let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
        let hash = hash(&pass.spec.template, collisions)?;
        let wanted = if is_recreate(deployment) {
            pass.bounds.replicas
        } else {
            plan::new_replicas(&pass.bounds, 0, pass.total())
        };
        let mut set = new_set(deployment, pass.spec, &hash, wanted);
        annotate(&mut set, pass, revision, false);
        let set_name = format!("{name}-{hash}");
        let api = self.sets_api(&namespace);
        match api.create(&PostParams::default(), &set).await {
            Ok(created) => {
                if wanted > 0 {
                    let message = format!("Scaled up replica set {set_name} from 0 to {wanted}");
                    self.recorder.event(reference(deployment), EventType::Normal, "ScalingReplicaSet", message);
                }
                pass.new = Some(Arc::new(created));
                Ok(())
            }
            Err(error) if is_already_exists(&error) => {
                let existing = api.get(&set_name).await?;
                let uid = deployment.metadata.uid.as_deref().unwrap_or_default();
                if is_controlled_by(&existing.metadata, uid) && same_template(&existing, &pass.spec.template) {
                    pass.new = Some(Arc::new(existing));
                    return Ok(());
                }
                // Another template has our name: next time the hash is salted with one more collision.
                let mut counted = deployment.clone();
                counted.status.get_or_insert_default().collision_count = Some(collisions.unwrap_or(0) + 1);
                let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), &namespace);
                deployments.replace_status(&name, &PostParams::default(), &counted).await?;
                Err(error.into())
            }
            Err(error) => {
                let message = crate::error::text(&error);
                let mut failed = deployment.clone();
                let status = failed.status.get_or_insert_default();
                if pass.spec.progress_deadline_seconds.is_some() {
                    let text = format!("Failed to create new replica set {set_name:?}: {message}");
                    conditions::set(status, conditions::make("Progressing", false, "ReplicaSetCreateError", text));
                    let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), &namespace);
                    if failed.status != deployment.status {
                        deployments.replace_status(&name, &PostParams::default(), &failed).await?;
                    }
                }
                if pods::is_terminating(&error) { Ok(()) } else { Err(error.into()) }
            }
        }
    }

    /// Deletes the oldest empty sets beyond the history limit.
    async fn cleanup(&self, pass: &Pass<'_>) -> Result<(), Error> {
        let status = pass.deployment.status.clone().unwrap_or_default();
        if !conditions::is_complete(pass.deployment, &status) && pass.spec.paused != Some(true) {
            return Ok(());
        }
        let limit = pass.spec.revision_history_limit.unwrap_or(10);
        let Ok(limit) = usize::try_from(limit) else { return Ok(()) };
        let mut old: Vec<_> = pass.old().filter(|set| set.metadata.deletion_timestamp.is_none()).collect();
        old.sort_by_key(|set| annotation::<i64>(&set.metadata, REVISION).unwrap_or(0));
        let surplus = old.len().saturating_sub(limit);
        for set in old.into_iter().take(surplus) {
            let idle = replicas(set) == 0
                && set
                    .status
                    .as_ref()
                    .is_none_or(|s| s.replicas == 0 && s.observed_generation >= set.metadata.generation);
            if idle {
                let (namespace, name) = key_of(&**set);
                gone_is_fine(self.sets_api(&namespace).delete(&name, &DeleteParams::background()).await)?;
            }
        }
        Ok(())
    }

    /// Brings revision annotation and status up to date.
    async fn finish(&self, pass: &Pass<'_>) -> Outcome {
        let (namespace, name) = key_of(pass.deployment);
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &namespace);
        let mut deployment = pass.deployment.clone();
        let revision = pass.new.as_ref().and_then(|set| annotation::<i64>(&set.metadata, REVISION));
        if let Some(revision) = revision.filter(|_| deployment.metadata.deletion_timestamp.is_none())
            && annotation(&deployment.metadata, REVISION) != Some(revision)
        {
            let annotations = deployment.metadata.annotations.get_or_insert_default();
            annotations.insert(REVISION.to_owned(), revision.to_string());
            deployment = api.replace(&name, &PostParams::default(), &deployment).await?;
        }
        let all: Vec<&ReplicaSet> = pass.old().map(AsRef::as_ref).chain(pass.new.as_deref()).collect();
        let mut status = conditions::counts(&deployment, pass.new.as_deref(), &all, &pass.bounds);
        let paused = pass.spec.paused == Some(true);
        let reason = conditions::condition(&status, "Progressing").and_then(|c| c.reason.clone());
        if pass.spec.progress_deadline_seconds.is_some() {
            let found = pass.new.as_ref().filter(|_| reason.is_none()).map(|set| key_of(&**set).1);
            let stuck = reason.as_deref() == Some("DeploymentPaused");
            if paused && !stuck && reason.as_deref() != Some("ProgressDeadlineExceeded") {
                let text = "Deployment is paused".to_owned();
                let mut condition = conditions::make("Progressing", true, "DeploymentPaused", text);
                condition.status = "Unknown".to_owned();
                conditions::set(&mut status, condition);
            } else if !paused && stuck {
                let text = "Deployment is resumed".to_owned();
                let mut condition = conditions::make("Progressing", true, "DeploymentResumed", text);
                condition.status = "Unknown".to_owned();
                conditions::set(&mut status, condition);
            } else if let Some(set) = found {
                let text = format!("Created new replica set {set:?}");
                conditions::set(&mut status, conditions::make("Progressing", true, "NewReplicaSetCreated", text));
            } else if reason.as_deref() == Some("NewReplicaSetAvailable")
                && status.replicas != status.updated_replicas
                && !paused
                && pass.deployment.metadata.generation
                    != pass.deployment.status.as_ref().and_then(|s| s.observed_generation)
            {
                let set = pass.new.as_ref().map(|set| key_of(&**set).1).unwrap_or_default();
                let text = format!("Found new replica set {set:?}");
                conditions::set(&mut status, conditions::make("Progressing", true, "FoundNewReplicaSet", text));
            }
        }
        if !paused {
            conditions::progress(&deployment, pass.new.as_deref(), &all, &mut status);
        }
        let wait = if paused { None } else { conditions::stuck_in(&deployment, &status) };
        if deployment.status.as_ref() != Some(&status) {
            deployment.status = Some(status);
            api.replace_status(&name, &PostParams::default(), &deployment).await?;
        }
        Ok(wait)
    }
}

fn new_set(deployment: &Deployment, spec: &DeploymentSpec, hash: &str, replicas: i32) -> ReplicaSet {
    let mut template = spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH.to_owned(), hash.to_owned());
    let labels = labels.clone();
    let mut selector: LabelSelector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(HASH.to_owned(), hash.to_owned());
    let owner = Owner::of(deployment);
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", owner.name)),
            namespace: Some(owner.namespace.clone()),
            labels: Some(labels),
            owner_references: Some(vec![owner.reference()]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    }
}

/// The Deployment's annotations, the revision with its history, and the marks of the size.
fn annotate(set: &mut ReplicaSet, pass: &Pass<'_>, revision: i64, exists: bool) {
    let annotations = set.metadata.annotations.get_or_insert_default();
    for (key, value) in pass.deployment.metadata.annotations.iter().flatten() {
        if !OWN.contains(&key.as_str()) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    let current = annotations.get(REVISION).and_then(|text| text.parse::<i64>().ok());
    if current.is_none_or(|current| current < revision) {
        // A set that is rolled back to remembers the numbers it had.
        if let Some(current) = current {
            let history = match annotations.get(HISTORY).filter(|history| !history.is_empty()) {
                Some(history) => format!("{history},{current}"),
                None => current.to_string(),
            };
            annotations.insert(HISTORY.to_owned(), history);
        }
        annotations.insert(REVISION.to_owned(), revision.to_string());
    }
    if !exists {
        annotations.insert(DESIRED.to_owned(), pass.bounds.replicas.to_string());
        annotations.insert(MAX.to_owned(), pass.bounds.pods_max().to_string());
    }
}

fn annotation<T: std::str::FromStr>(meta: &ObjectMeta, key: &str) -> Option<T> {
    meta.annotations.as_ref()?.get(key)?.parse().ok()
}

/// Equal but for the hash label that only the set's template has.
fn same_template(set: &ReplicaSet, template: &PodTemplateSpec) -> bool {
    let Some(theirs) = set.spec.as_ref().and_then(|spec| spec.template.as_ref()) else { return false };
    theirs.spec == template.spec && bare(theirs) == bare(template)
}

type Labels = BTreeMap<String, String>;

fn bare(template: &PodTemplateSpec) -> (Labels, Labels, Vec<String>) {
    let meta = template.metadata.clone().unwrap_or_default();
    let mut labels = meta.labels.unwrap_or_default();
    labels.remove(HASH);
    (labels, meta.annotations.unwrap_or_default(), meta.finalizers.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment() -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "a", "uid": "u",
                "annotations": {"note": "x", REVISION: "7", "kubectl.kubernetes.io/last-applied-configuration": "{}"}},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}]}}}}))
        .unwrap()
    }

    #[test]
    fn a_new_set_carries_hash_owner_and_annotations() {
        let deployment = deployment();
        let spec = deployment.spec.as_ref().unwrap();
        let mut set = new_set(&deployment, spec, "abc", 3);
        let bounds = Bounds::new(3, None, None);
        let pass = Pass { deployment: &deployment, spec, bounds, sets: Vec::new(), new: None };
        annotate(&mut set, &pass, 8, false);
        assert!(same_template(&set, &spec.template));
        let seen = serde_json::to_value(&set).unwrap();
        assert_eq!(seen["spec"]["selector"]["matchLabels"], json!({"app": "web", HASH: "abc"}));
        assert_eq!(seen["metadata"]["annotations"], json!({"note": "x", REVISION: "8", DESIRED: "3", MAX: "4"}));
        assert_eq!(seen["metadata"]["ownerReferences"][0]["controller"], true);
        annotate(&mut set, &pass, 9, true);
        let annotations = set.metadata.annotations.unwrap();
        assert_eq!((annotations[REVISION].as_str(), annotations[HISTORY].as_str()), ("9", "8"));
    }
}
