//! StatefulSets: Pods with a number, a name and a volume of their own, made and removed in order.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::core::Selector;
use kube::{Api, Client};
use mussel_client::{Change, EventType, Informer, Recorder, WorkQueue, reference};
use tokio_util::sync::CancellationToken;

use crate::Context;
use crate::control::{self, Key, follow, follow_keys, key_of, queue_all};
use crate::error::{Error, Outcome, gone_is_fine, is_already_exists, is_not_found, text};
use crate::owner::{Owner, claim, controlled_by};
use crate::{pods, revision};

const HASH: &str = "controller-revision-hash";
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

struct Controller {
    client: Client,
    recorder: Recorder,
    sets: Informer<StatefulSet>,
    revisions: Informer<ControllerRevision>,
    claims: Informer<PersistentVolumeClaim>,
    pods: Informer<Pod>,
}

pub async fn run(context: Context, stop: CancellationToken) {
    let sets = context.informers.of::<StatefulSet>();
    let pods = context.informers.of::<Pod>();
    let queue = WorkQueue::new();
    let controller = Controller {
        client: context.client(),
        recorder: context.recorder("statefulset-controller"),
        sets: sets.clone(),
        revisions: context.informers.of(),
        claims: context.informers.of(),
        pods: pods.clone(),
    };
    let on_pod = |change: &Change<Pod>| {
        let (Change::Applied { new: pod, .. } | Change::Deleted(pod)) = change else { return };
        if let Some(key) = controlled_by(&pod.metadata, "StatefulSet") {
            queue.add(key);
        }
    };
    let resync = || queue_all(&sets, &queue);
    tokio::join!(
        follow_keys(sets.clone(), queue.clone(), stop.clone()),
        follow(pods.clone(), stop.clone(), on_pod, resync),
        async {
            let (revisions, claims) = (&controller.revisions, &controller.claims);
            tokio::select! {
                () = stop.cancelled() => return,
                () = async { tokio::join!(sets.synced(), pods.synced(), revisions.synced(), claims.synced()); } => (),
            }
            control::work("statefulset", queue.clone(), 5, stop.clone(), |key| controller.reconcile(key)).await;
        },
    );
}

/// The number in `name-3`, when the Pod belongs to this set by its name.
fn ordinal(set: &str, pod: &Pod) -> Option<i32> {
    let digits = pod.metadata.name.as_deref()?.strip_prefix(set)?.strip_prefix('-')?;
    let number = digits.parse::<i32>().ok().filter(|number| *number >= 0)?;
    (number.to_string() == digits).then_some(number)
}

fn hash_of(pod: &Pod) -> &str {
    pod.metadata.labels.as_ref().and_then(|labels| labels.get(HASH)).map(String::as_str).unwrap_or_default()
}

/// One step; everything else waits for its outcome.
#[derive(Debug, PartialEq)]
enum Step {
    Create(i32),
    /// By name, because it may be beyond the range.
    Delete(String),
}

/// What may be done now. `parallel` does all that is due at once; otherwise one step at a time, in order.
fn plan(
    spec: &StatefulSetSpec,
    name: &str,
    existing: &BTreeMap<i32, Arc<Pod>>,
    update: &str,
    now: Timestamp,
) -> Vec<Step> {
    let start = spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or(0);
    let replicas = spec.replicas.unwrap_or(1);
    let end = start.saturating_add(replicas);
    let parallel = spec.pod_management_policy.as_deref() == Some("Parallel");
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let name_of = |ordinal: i32| format!("{name}-{ordinal}");
    let deleting = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
    let mut steps = Vec::new();
    for ordinal in start..end {
        match existing.get(&ordinal) {
            None => steps.push(Step::Create(ordinal)),
            // A finished Pod is replaced under its own name.
            Some(pod) if pods::is_terminal(pod) && !deleting(pod) => steps.push(Step::Delete(name_of(ordinal))),
            Some(pod) if !deleting(pod) && pods::is_available(pod, min_ready, now) => continue,
            Some(_) if parallel => continue,
            // Not there yet: all later ones wait for it.
            Some(pod) => {
                // A Pod of an old template that never gets ready would block its own update.
                return broken(spec, ordinal, pod, update, start)
                    .map(|o| Step::Delete(name_of(o)))
                    .into_iter()
                    .collect();
            }
        }
        if !parallel {
            return steps;
        }
    }
    let surplus: Vec<_> = existing.iter().rev().filter(|(ordinal, _)| **ordinal < start || **ordinal >= end).collect();
    for (ordinal, pod) in surplus {
        if !deleting(pod) {
            steps.push(Step::Delete(name_of(*ordinal)));
        }
        if !parallel {
            return steps;
        }
    }
    if !steps.is_empty() || spec.update_strategy.as_ref().is_some_and(|s| s.type_.as_deref() == Some("OnDelete")) {
        return steps;
    }
    let partition = partition(spec).max(start);
    for ordinal in (partition..end).rev() {
        let Some(pod) = existing.get(&ordinal) else { return steps };
        if hash_of(pod) != update {
            return if deleting(pod) { steps } else { vec![Step::Delete(name_of(ordinal))] };
        }
        if !pods::is_available(pod, min_ready, now) {
            return steps;
        }
    }
    steps
}

fn partition(spec: &StatefulSetSpec) -> i32 {
    let rolling = spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
    rolling.and_then(|rolling| rolling.partition).unwrap_or(0)
}

fn broken(spec: &StatefulSetSpec, ordinal: i32, pod: &Pod, update: &str, start: i32) -> Option<i32> {
    let on_delete = spec.update_strategy.as_ref().is_some_and(|s| s.type_.as_deref() == Some("OnDelete"));
    let old = hash_of(pod) != update && ordinal >= partition(spec).max(start);
    let never_ready = !pods::is_ready(pod) && pods::phase(pod) == "Pending";
    (!on_delete && old && never_ready && pod.metadata.deletion_timestamp.is_none()).then_some(ordinal)
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Outcome {
        let Some(set) = self.sets.get(&key.0, &key.1) else { return Ok(None) };
        let Some(spec) = &set.spec else { return Ok(None) };
        let owner = Owner::of(&*set);
        let selector: Selector = spec.selector.clone().try_into()?;
        let ours = |pod: &Pod| ordinal(&key.1, pod).is_some();
        let mine = claim(&self.client, &owner, &selector, self.pods.list_in(&key.0), ours).await?;
        let existing: BTreeMap<i32, Arc<Pod>> =
            mine.iter().filter_map(|pod| Some((ordinal(&key.1, pod)?, pod.clone()))).collect();
        if owner.deleting {
            return Ok(None);
        }
        let (current, update, history) = self.revisions(&set, spec, &owner, &selector).await?;
        let now = Timestamp::now();
        let mut failure = None;
        for step in plan(spec, &key.1, &existing, &update, now) {
            let done = match step {
                Step::Create(ordinal) => self.create(&set, spec, &owner, ordinal, &current, &update, &history).await,
                Step::Delete(name) => self.delete(&set, &owner, &name).await,
            };
            if let Err(error) = done {
                failure = Some(error);
                break;
            }
        }
        self.update_status(&set, spec, &existing, &current, &update, now).await?;
        match failure {
            Some(Error::Api(error)) if pods::is_terminating(&error) => Ok(None),
            Some(error) => Err(error),
            None => {
                let wait = |pod: &Arc<Pod>| pods::available_in(pod, spec.min_ready_seconds.unwrap_or(0), now);
                Ok(existing.values().filter_map(wait).filter(|wait| !wait.is_zero()).min())
            }
        }
    }

    /// Names of the revision that is left and the one that is rolled to, and all there are.
    async fn revisions(
        &self,
        set: &StatefulSet,
        spec: &StatefulSetSpec,
        owner: &Owner,
        selector: &Selector,
    ) -> Result<(String, String, Vec<Arc<ControllerRevision>>), Error> {
        let listed = self.revisions.list_in(&owner.namespace);
        let mut history = claim(&self.client, owner, selector, listed, |_| true).await?;
        let status = set.status.clone().unwrap_or_default();
        let hash = crate::hash::hash(&spec.template, status.collision_count)?;
        let name = format!("{}-{hash}", owner.name);
        let mut labels = spec.template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
        labels.insert(HASH.to_owned(), name.clone());
        let meta = ObjectMeta {
            name: Some(name),
            namespace: Some(owner.namespace.clone()),
            labels: Some(labels),
            annotations: set.metadata.annotations.clone(),
            owner_references: Some(vec![owner.reference()]),
            ..ObjectMeta::default()
        };
        let made = revision::ensure(&self.client, &history, revision::template_patch(&spec.template)?, meta).await?;
        let update = made.metadata.name.clone().unwrap_or_default();
        history.retain(|known| known.metadata.name != made.metadata.name);
        let known = |name: &String| history.iter().any(|revision| revision.metadata.name.as_ref() == Some(name));
        let current = status.current_revision.filter(|name| known(name)).unwrap_or_else(|| update.clone());
        self.trim(spec, owner, &history, &current).await?;
        history.push(made);
        Ok((current, update, history))
    }

    async fn trim(
        &self,
        spec: &StatefulSetSpec,
        owner: &Owner,
        old: &[Arc<ControllerRevision>],
        current: &str,
    ) -> Result<(), Error> {
        let pods = self.pods.list_in(&owner.namespace);
        let used = |name: &str| name == current || pods.iter().any(|pod| hash_of(pod) == name);
        let mut unused: Vec<_> = old.iter().filter(|r| !used(r.metadata.name.as_deref().unwrap_or_default())).collect();
        unused.sort_by_key(|revision| revision.revision);
        let limit = usize::try_from(spec.revision_history_limit.unwrap_or(10)).unwrap_or(10);
        let surplus = unused.len().saturating_sub(limit);
        let api: Api<ControllerRevision> = Api::namespaced(self.client.clone(), &owner.namespace);
        for revision in unused.into_iter().take(surplus) {
            let name = revision.metadata.name.as_deref().unwrap_or_default();
            gone_is_fine(api.delete(name, &DeleteParams::default()).await)?;
        }
        Ok(())
    }

    async fn create(
        &self,
        set: &StatefulSet,
        spec: &StatefulSetSpec,
        owner: &Owner,
        ordinal: i32,
        current: &str,
        update: &str,
        history: &[Arc<ControllerRevision>],
    ) -> Result<(), Error> {
        // Below the partition, and on first creation, Pods keep the revision that is being left.
        let on_delete = spec.update_strategy.as_ref().is_some_and(|s| s.type_.as_deref() == Some("OnDelete"));
        let hash = if !on_delete && ordinal < partition(spec) { current } else { update };
        let old = history.iter().find(|revision| revision.metadata.name.as_deref() == Some(hash) && hash != update);
        let template = old.and_then(|revision| template_of(revision)).unwrap_or_else(|| spec.template.clone());
        for claim in claims(spec, owner, ordinal) {
            let name = claim.metadata.name.clone().unwrap_or_default();
            if self.claims.get(&owner.namespace, &name).is_some() {
                continue;
            }
            let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &owner.namespace);
            match api.create(&PostParams::default(), &claim).await {
                Ok(_) => {
                    let message = format!(
                        "create Claim {name} Pod {}-{ordinal} in StatefulSet {} successful",
                        owner.name, owner.name
                    );
                    self.recorder.event(reference(set), EventType::Normal, "SuccessfulCreate", message);
                }
                Err(error) if is_already_exists(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let pod = new_pod(spec, &template, owner, ordinal, hash);
        let name = pod.metadata.name.clone().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &owner.namespace);
        match api.create(&PostParams::default(), &pod).await {
            Ok(_) => {
                let message = format!("create Pod {name} in StatefulSet {} successful", owner.name);
                self.recorder.event(reference(set), EventType::Normal, "SuccessfulCreate", message);
                Ok(())
            }
            // Our own from a moment ago, or a stranger in the way: the watch will tell.
            Err(error) if is_already_exists(&error) => Ok(()),
            Err(error) => {
                if !pods::is_terminating(&error) {
                    let message =
                        format!("create Pod {name} in StatefulSet {} failed error: {}", owner.name, text(&error));
                    self.recorder.event(reference(set), EventType::Warning, "FailedCreate", message);
                }
                Err(error.into())
            }
        }
    }

    async fn delete(&self, set: &StatefulSet, owner: &Owner, name: &str) -> Result<(), Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &owner.namespace);
        // A new Pod may have the old one's name; only the one that was judged may go.
        let uid = self.pods.get(&owner.namespace, name).and_then(|pod| pod.metadata.uid.clone());
        let preconditions = Some(Preconditions { uid, resource_version: None });
        gone_is_fine(api.delete(name, &DeleteParams { preconditions, ..DeleteParams::default() }).await)?;
        let message = format!("delete Pod {name} in StatefulSet {} successful", owner.name);
        self.recorder.event(reference(set), EventType::Normal, "SuccessfulDelete", message);
        Ok(())
    }

    async fn update_status(
        &self,
        set: &StatefulSet,
        spec: &StatefulSetSpec,
        existing: &BTreeMap<i32, Arc<Pod>>,
        current: &str,
        update: &str,
        now: Timestamp,
    ) -> Result<(), Error> {
        let count = |test: &dyn Fn(&Pod) -> bool| {
            i32::try_from(existing.values().filter(|pod| test(pod)).count()).unwrap_or(i32::MAX)
        };
        let alive = |pod: &Pod| pod.metadata.deletion_timestamp.is_none();
        let old = set.status.clone().unwrap_or_default();
        let mut status = StatefulSetStatus {
            observed_generation: set.metadata.generation,
            replicas: count(&|_| true),
            ready_replicas: Some(count(&|pod| pods::is_ready(pod))),
            available_replicas: Some(count(&|pod| pods::is_available(pod, spec.min_ready_seconds.unwrap_or(0), now))),
            current_replicas: Some(count(&|pod| alive(pod) && hash_of(pod) == current)),
            updated_replicas: Some(count(&|pod| alive(pod) && hash_of(pod) == update)),
            current_revision: Some(current.to_owned()),
            update_revision: Some(update.to_owned()),
            collision_count: old.collision_count.or(Some(0)),
            conditions: old.conditions,
        };
        let wanted = spec.replicas.unwrap_or(1);
        if status.updated_replicas == Some(wanted) && status.replicas == wanted && status.ready_replicas == Some(wanted)
        {
            status.current_revision = Some(update.to_owned());
            status.current_replicas = status.updated_replicas;
        }
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let (namespace, name) = key_of(set);
        let api: Api<StatefulSet> = Api::namespaced(self.client.clone(), &namespace);
        let updated = StatefulSet { status: Some(status), ..set.clone() };
        match api.replace_status(&name, &PostParams::default(), &updated).await {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.pointer("/spec/template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

fn claims(spec: &StatefulSetSpec, owner: &Owner, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let labels = spec.selector.match_labels.clone().unwrap_or_default();
    let name = |claim: &PersistentVolumeClaim| claim.metadata.name.clone().unwrap_or_default();
    let templates = spec.volume_claim_templates.iter().flatten();
    templates
        .map(|template| {
            let mut claim = template.clone();
            claim.metadata.name = Some(format!("{}-{}-{ordinal}", name(template), owner.name));
            claim.metadata.namespace = Some(owner.namespace.clone());
            claim.metadata.labels.get_or_insert_default().extend(labels.clone());
            claim.status = None;
            claim
        })
        .collect()
}

fn new_pod(spec: &StatefulSetSpec, template: &PodTemplateSpec, owner: &Owner, ordinal: i32, hash: &str) -> Pod {
    let name = format!("{}-{ordinal}", owner.name);
    let mut pod = pods::from_template(template, &owner.reference(), &owner.namespace);
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(name.clone());
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME.to_owned(), name.clone());
    labels.insert(POD_INDEX.to_owned(), ordinal.to_string());
    labels.insert(HASH.to_owned(), hash.to_owned());
    let pod_spec = pod.spec.get_or_insert_default();
    pod_spec.hostname = Some(name);
    pod_spec.subdomain = spec.service_name.clone().filter(|service| !service.is_empty());
    let volumes = pod_spec.volumes.get_or_insert_default();
    for template in spec.volume_claim_templates.iter().flatten() {
        let volume = template.metadata.name.clone().unwrap_or_default();
        volumes.retain(|other| other.name != volume);
        volumes.push(Volume {
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: format!("{volume}-{}-{ordinal}", owner.name),
                read_only: Some(false),
            }),
            name: volume,
            ..Volume::default()
        });
    }
    if volumes.is_empty() {
        pod_spec.volumes = None;
    }
    pod
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(extra: serde_json::Value) -> StatefulSetSpec {
        let mut spec = json!({"replicas": 3, "selector": {}, "template": {"spec": {"containers": []}}});
        for (key, value) in extra.as_object().unwrap() {
            spec[key] = value.clone();
        }
        serde_json::from_value(spec).unwrap()
    }

    /// `r` ready, `p` pending, `d` on its way out, `o` ready with an old template, `.` absent.
    fn existing(states: &str) -> BTreeMap<i32, Arc<Pod>> {
        let pod = |index: usize, state: char| {
            let mut pod = json!({"metadata": {"name": format!("db-{index}"), "labels": {HASH: if state == 'o' { "old" } else { "new" }}},
                "status": {"phase": if state == 'p' { "Pending" } else { "Running" },
                    "conditions": [{"type": "Ready", "status": if state == 'p' { "False" } else { "True" }}]}});
            if state == 'd' {
                pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        let states = states.chars().enumerate().filter(|(_, state)| *state != '.');
        states.map(|(i, state)| (i32::try_from(i).unwrap(), pod(i, state))).collect()
    }

    #[test]
    fn pods_come_and_go_in_order() {
        let delete = |ordinal: i32| Step::Delete(format!("db-{ordinal}"));
        let parallel = json!({"podManagementPolicy": "Parallel"});
        let partition = json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}});
        for (extra, states, expected) in [
            (json!({}), "", vec![Step::Create(0)]),
            (json!({}), "p", vec![]),
            (json!({}), "r", vec![Step::Create(1)]),
            (json!({}), "r.r", vec![Step::Create(1)]),
            (json!({}), "rrr", vec![]),
            (json!({}), "rrrrr", vec![delete(4)]),
            (json!({}), "rrrrd", vec![]),
            (json!({}), "ooo", vec![delete(2)]),
            (json!({}), "oop", vec![]),
            (json!({}), "oor", vec![delete(1)]),
            (json!({}), "ood", vec![]),
            (parallel.clone(), "p", vec![Step::Create(1), Step::Create(2)]),
            (parallel, "rrrrr", vec![delete(4), delete(3)]),
            (partition, "oor", vec![]),
            (json!({"updateStrategy": {"type": "OnDelete"}}), "ooo", vec![]),
        ] {
            let steps = plan(&spec(extra.clone()), "db", &existing(states), "new", Timestamp::now());
            assert_eq!(steps, expected, "{extra} {states}");
        }
    }

    #[test]
    fn a_pod_has_its_own_name_and_claim() {
        let spec =
            spec(json!({"serviceName": "db", "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}]}));
        let set = StatefulSet {
            metadata: ObjectMeta { name: Some("db".to_owned()), ..ObjectMeta::default() },
            ..StatefulSet::default()
        };
        let owner = Owner::of(&set);
        let seen = serde_json::to_value(new_pod(&spec, &spec.template, &owner, 2, "h")).unwrap();
        assert_eq!(seen["metadata"]["name"], "db-2");
        assert_eq!(seen["spec"]["hostname"], "db-2");
        assert_eq!(seen["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"], "data-db-2");
        assert_eq!(claims(&spec, &owner, 2)[0].metadata.name.as_deref(), Some("data-db-2"));
    }
}
