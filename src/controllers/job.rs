//! Jobs: Pods that run until enough of them succeeded or too many failed.
//!
//! A finished Pod is counted exactly once: its uid is noted in the status, then its finalizer goes, then the note
//! becomes a number. A crash between any two of these repeats a step, and counts nothing twice.

mod index;
mod plan;
mod scale;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::Selector;
use kube::{Api, Client};
use mussel_client::{Change, EventType, Informer, Recorder, WorkQueue, reference};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use self::plan::{Counts, FailureAction, Verdict};
use crate::Context;
use crate::control::{self, Key, follow, follow_keys, key_of, queue_all};
use crate::error::{Error, Outcome, gone_is_fine, is_not_found};
use crate::expectations::Expectations;
use crate::owner::{Owner, claim, controlled_by};
use crate::pods::{self, PodControl, until};

const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const CONTROLLER_NAME: &str = "kubernetes.io/job-controller";

struct Controller {
    client: Client,
    /// Deletes Jobs that ended long ago.
    ttl: Client,
    recorder: Recorder,
    control: PodControl,
    jobs: Informer<Job>,
    pods: Informer<Pod>,
    expectations: Arc<Expectations>,
    /// Failures in a row, and the time of the last.
    failures: Mutex<HashMap<Key, (u32, Timestamp)>>,
    /// Pods that were counted and let go, while the informer may still show their finalizer.
    counted: Mutex<HashMap<Key, BTreeSet<String>>>,
}

pub async fn run(context: Context, stop: CancellationToken) {
    let jobs = context.informers.of::<Job>();
    let pods = context.informers.of::<Pod>();
    let queue = WorkQueue::new();
    let expectations = Arc::new(Expectations::default());
    let recorder = context.recorder("job-controller");
    let controller = Controller {
        client: context.client(),
        ttl: context.client_as("ttl-after-finished-controller"),
        recorder: recorder.clone(),
        control: PodControl { client: context.client(), recorder },
        jobs: jobs.clone(),
        pods: pods.clone(),
        expectations: expectations.clone(),
        failures: Mutex::default(),
        counted: Mutex::default(),
    };
    let resync = || {
        expectations.forget_all();
        queue_all(&jobs, &queue);
    };
    let owner = |pod: &Pod| controlled_by(&pod.metadata, "Job");
    let on_pod = |change: &Change<Pod>| expectations.pod_changed(change, owner, &queue);
    tokio::join!(
        follow_keys(jobs.clone(), queue.clone(), stop.clone()),
        follow(pods.clone(), stop.clone(), on_pod, resync),
        async {
            tokio::select! {
                () = stop.cancelled() => return,
                () = async { tokio::join!(jobs.synced(), pods.synced()); } => (),
            }
            control::work("job", queue.clone(), 5, stop.clone(), |key| controller.reconcile(key)).await;
        },
    );
}

fn condition<'a>(status: &'a JobStatus, type_: &str) -> Option<&'a JobCondition> {
    status.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

fn holds(status: &JobStatus, type_: &str) -> bool {
    condition(status, type_).is_some_and(|condition| condition.status == "True")
}

pub fn is_finished(job: &Job) -> bool {
    job.status.as_ref().is_some_and(|status| holds(status, "Complete") || holds(status, "Failed"))
}

fn set_condition(status: &mut JobStatus, type_: &str, value: bool, reason: &str, message: &str) {
    let wanted = if value { "True" } else { "False" };
    if condition(status, type_).is_some_and(|c| c.status == wanted && c.reason.as_deref() == Some(reason)) {
        return;
    }
    let now = Some(Time(Timestamp::now()));
    let list = status.conditions.get_or_insert_default();
    list.retain(|condition| condition.type_ != type_);
    list.push(JobCondition {
        type_: type_.to_owned(),
        status: wanted.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: now.clone(),
        last_transition_time: now,
    });
}

fn has_finalizer(pod: &Pod) -> bool {
    pod.metadata.finalizers.as_ref().is_some_and(|list| list.iter().any(|f| f == FINALIZER))
}

fn index_of(pod: &Pod) -> Option<i32> {
    pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok()
}

/// Deleted Pods count as failed, because they may never get to say how they ended.
fn has_failed(pod: &Pod, only_terminal: bool) -> bool {
    let deleted = pod.metadata.deletion_timestamp.is_some() && pods::phase(pod) != "Succeeded";
    pods::phase(pod) == "Failed" || (deleted && !only_terminal)
}

/// Pods that are still ending have not failed yet.
fn counts_only_terminal(spec: &JobSpec) -> bool {
    spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some()
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Outcome {
        let Some(job) = self.jobs.get(&key.0, &key.1) else {
            self.expectations.forget(&key);
            self.lock_failures().remove(&key);
            self.lock_counted().remove(&key);
            // Nobody will count these any more; without this they could never be deleted.
            return self.release_orphans(&key).await;
        };
        let Some(spec) = &job.spec else { return Ok(None) };
        if spec.managed_by.as_deref().is_some_and(|by| by != CONTROLLER_NAME) {
            return Ok(None);
        }
        let owner = Owner::of(&*job);
        let selector: Selector = spec.selector.clone().unwrap_or_default().try_into()?;
        let may_act = self.expectations.met(&key);
        let mine = claim(&self.client, &owner, &selector, self.pods.list_in(&key.0), |_| true).await?;
        let mine = self.without_counted(&key, mine);
        if is_finished(&job) {
            for pod in mine.iter().filter(|pod| has_finalizer(pod)) {
                self.release(pod).await?;
            }
            return self.expire(&job, spec).await;
        }
        if !may_act {
            // The events we wait for wake us.
            return Ok(None);
        }
        self.sync(&key, &job, spec, &owner, &mine).await
    }

    async fn sync(&self, key: &Key, job: &Job, spec: &JobSpec, owner: &Owner, mine: &[Arc<Pod>]) -> Outcome {
        let now = Timestamp::now();
        let mut status = job.status.clone().unwrap_or_default();
        let suspended = spec.suspend == Some(true);
        if !suspended && status.start_time.is_none() {
            status.start_time = Some(Time(now));
        }
        let only_terminal = counts_only_terminal(spec);
        let known = |text: &Option<String>| plan::parse_indexes(text.as_deref().unwrap_or_default());
        let per_index = index::survey(
            spec,
            mine,
            known(&status.failed_indexes),
            &known(&status.completed_indexes),
            index_of,
            |pod| has_failed(pod, only_terminal),
        );
        if let Some(survey) = &per_index {
            status.failed_indexes = Some(plan::format_indexes(&survey.failed));
        }
        let (released, policy_failure) = self.note_finished(key, spec, &mut status, mine, per_index.as_ref(), now);
        let mut completed = plan::parse_indexes(status.completed_indexes.as_deref().unwrap_or_default());
        let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
        let number = |list: &Option<Vec<String>>| i32::try_from(list.as_ref().map_or(0, Vec::len)).unwrap_or(i32::MAX);
        completed.retain(|index| spec.completions.is_none_or(|completions| *index < completions));
        let active: Vec<&Arc<Pod>> = mine.iter().filter(|pod| pods::is_active(pod)).collect();
        let terminating =
            mine.iter().filter(|p| p.metadata.deletion_timestamp.is_some() && !pods::is_terminal(p)).count();
        let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let restarts = active
            .iter()
            .flat_map(|pod| {
                pod.status.iter().flat_map(|s| s.init_container_statuses.iter().chain(&s.container_statuses).flatten())
            })
            .map(|container| container.restart_count)
            .sum();
        let mut counts = Counts {
            active: count(active.len()),
            succeeded: if plan::is_indexed(spec) {
                count(completed.len())
            } else {
                status.succeeded.unwrap_or(0) + number(&uncounted.succeeded)
            },
            failed: status.failed.unwrap_or(0) + number(&uncounted.failed),
            failed_indexes: per_index.as_ref().map_or(0, |survey| count(survey.failed.len())),
            restarts,
        };
        let age = status.start_time.as_ref().map(|start| {
            Duration::from_millis(u64::try_from(now.as_millisecond() - start.0.as_millisecond()).unwrap_or(0))
        });
        let verdict = self.verdict(spec, &mut status, &counts, &completed, age.filter(|_| !suspended), policy_failure);
        let mut next = None;
        let mut failure = None;
        if owner.deleting {
            // The garbage collector has it from here; only counting goes on.
        } else if verdict.is_some() || suspended {
            if suspended && verdict.is_none() {
                if !holds(&status, "Suspended") {
                    set_condition(&mut status, "Suspended", true, "JobSuspended", "Job suspended");
                    self.recorder.event(reference(job), EventType::Normal, "Suspended", "Job suspended".to_owned());
                }
                status.start_time = None;
            }
            failure = self.delete_pods(key, job, &active).await.err();
            if failure.is_none() {
                counts.active = 0;
            }
        } else {
            if holds(&status, "Suspended") {
                set_condition(&mut status, "Suspended", false, "JobResumed", "Job resumed");
                self.recorder.event(reference(job), EventType::Normal, "Resumed", "Job resumed".to_owned());
                status.start_time = Some(Time(now));
            }
            match self
                .scale(key, job, spec, owner, &active, terminating, &counts, &completed, per_index.as_ref(), now)
                .await
            {
                Ok((change, wait)) => {
                    counts.active += change;
                    next = wait;
                }
                Err(error) => failure = Some(error),
            }
            if let (Some(deadline), Some(start)) = (spec.active_deadline_seconds, &status.start_time) {
                let left = until(start.0, deadline, now);
                next = Some(next.map_or(left, |wait: Duration| wait.min(left)));
            }
        }
        status.active = Some(counts.active);
        status.ready = Some(count(active.iter().filter(|pod| pods::is_ready(pod)).count()));
        status.terminating = Some(count(terminating));
        let job = self.write(job, status).await?;
        let Some(job) = job else { return Ok(None) };
        self.settle(job, spec, &released, verdict, &counts, mine).await?;
        match failure {
            Some(Error::Api(error)) if pods::is_terminating(&error) => Ok(None),
            Some(error) => Err(error),
            None => Ok(next),
        }
    }

    /// Notes the uids of Pods that finished, and answers all whose finalizer may go, and what a failure policy says.
    fn note_finished(
        &self,
        key: &Key,
        spec: &JobSpec,
        status: &mut JobStatus,
        mine: &[Arc<Pod>],
        per_index: Option<&index::Survey>,
        now: Timestamp,
    ) -> (Vec<Arc<Pod>>, Option<String>) {
        let ending = holds(status, "FailureTarget") || holds(status, "SuccessCriteriaMet");
        let only_terminal = counts_only_terminal(spec);
        let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
        let mut completed = plan::parse_indexes(status.completed_indexes.as_deref().unwrap_or_default());
        let mut released = Vec::new();
        let mut policy_failure = None;
        let (mut succeeded, mut failed) = (0, 0);
        for pod in mine.iter().filter(|pod| has_finalizer(pod)) {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            if pods::phase(pod) == "Succeeded" {
                if plan::is_indexed(spec) {
                    completed.extend(index_of(pod));
                    succeeded += 1;
                } else {
                    let list = uncounted.succeeded.get_or_insert_default();
                    if !list.contains(&uid) {
                        list.push(uid);
                        succeeded += 1;
                    }
                }
                released.push(pod.clone());
            } else if has_failed(pod, only_terminal) {
                match plan::failure_action(spec, pod) {
                    FailureAction::Ignore if pods::is_terminal(pod) => {}
                    action => {
                        if let FailureAction::FailJob(message) = action {
                            policy_failure = policy_failure.or(Some(message));
                        }
                        let list = uncounted.failed.get_or_insert_default();
                        if !list.contains(&uid) {
                            list.push(uid);
                            failed += 1;
                        }
                    }
                }
                if ending || !per_index.is_some_and(|survey| survey.keeps(pod)) {
                    released.push(pod.clone());
                }
            }
        }
        if plan::is_indexed(spec) {
            status.completed_indexes = Some(plan::format_indexes(&completed)).filter(|text| !text.is_empty());
        }
        let mut failures = self.lock_failures();
        if succeeded > 0 {
            failures.remove(key);
        }
        // Indexes that fail for themselves also wait for themselves.
        if failed > 0 && per_index.is_none() {
            let entry = failures.entry(key.clone()).or_insert((0, now));
            *entry = (entry.0 + failed, now);
        }
        (released, policy_failure)
    }

    /// A verdict once spoken stands, whatever the numbers do while the last Pods go.
    fn verdict(
        &self,
        spec: &JobSpec,
        status: &mut JobStatus,
        counts: &Counts,
        completed: &BTreeSet<i32>,
        age: Option<Duration>,
        policy_failure: Option<String>,
    ) -> Option<Verdict> {
        let stands = |type_: &str| condition(status, type_).filter(|c| c.status == "True").cloned();
        let message = |c: &JobCondition| c.message.clone().unwrap_or_default();
        let known = |c: &JobCondition| match c.reason.as_deref() {
            Some("PodFailurePolicy") => "PodFailurePolicy",
            Some("DeadlineExceeded") => "DeadlineExceeded",
            Some("SuccessPolicy") => "SuccessPolicy",
            Some("CompletionsReached") => "CompletionsReached",
            Some("FailedIndexes") => "FailedIndexes",
            Some("MaxFailedIndexesExceeded") => "MaxFailedIndexesExceeded",
            _ => "BackoffLimitExceeded",
        };
        if let Some(c) = stands("FailureTarget") {
            return Some(Verdict::Failed { reason: known(&c), message: message(&c) });
        }
        if let Some(c) = stands("SuccessCriteriaMet") {
            return Some(Verdict::Succeeded { reason: known(&c), message: message(&c) });
        }
        let verdict = match policy_failure {
            Some(message) => Some(Verdict::Failed { reason: "PodFailurePolicy", message }),
            None => plan::verdict(spec, counts, completed, age),
        };
        match &verdict {
            Some(Verdict::Failed { reason, message }) => set_condition(status, "FailureTarget", true, reason, message),
            Some(Verdict::Succeeded { reason, message }) => {
                set_condition(status, "SuccessCriteriaMet", true, reason, message)
            }
            None => {}
        }
        verdict
    }

    async fn write(&self, job: &Job, mut status: JobStatus) -> Result<Option<Job>, Error> {
        let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
        for list in [&mut uncounted.succeeded, &mut uncounted.failed] {
            *list = list.take().filter(|list| !list.is_empty());
        }
        if job.status.as_ref() == Some(&status) {
            return Ok(Some(job.clone()));
        }
        let (namespace, name) = key_of(job);
        let api: Api<Job> = Api::namespaced(self.client.clone(), &namespace);
        match api.replace_status(&name, &PostParams::default(), &Job { status: Some(status), ..job.clone() }).await {
            Ok(job) => Ok(Some(job)),
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Lets the noted Pods go, turns notes into numbers, and ends the Job when nothing is left to wait for.
    async fn settle(
        &self,
        job: Job,
        spec: &JobSpec,
        released: &[Arc<Pod>],
        verdict: Option<Verdict>,
        counts: &Counts,
        mine: &[Arc<Pod>],
    ) -> Result<(), Error> {
        for pod in released {
            self.release(pod).await?;
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            self.lock_counted().entry(key_of(&job)).or_default().insert(uid);
        }
        let mut status = job.status.clone().unwrap_or_default();
        let free: BTreeSet<&str> = released.iter().filter_map(|pod| pod.metadata.uid.as_deref()).collect();
        let held: BTreeSet<&str> = mine
            .iter()
            .filter(|pod| has_finalizer(pod))
            .filter_map(|pod| pod.metadata.uid.as_deref())
            .filter(|uid| !free.contains(uid))
            .collect();
        let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
        let take = |list: &mut Option<Vec<String>>| {
            let before = list.as_ref().map_or(0, Vec::len);
            if let Some(list) = list.as_mut() {
                list.retain(|uid| held.contains(uid.as_str()));
            }
            i32::try_from(before - list.as_ref().map_or(0, Vec::len)).unwrap_or(i32::MAX)
        };
        let (succeeded, failed) = (take(&mut uncounted.succeeded), take(&mut uncounted.failed));
        let all_counted =
            [&uncounted.succeeded, &uncounted.failed].iter().all(|list| list.as_ref().is_none_or(Vec::is_empty));
        if plan::is_indexed(spec) {
            status.succeeded = Some(counts.succeeded);
        } else {
            status.succeeded = Some(status.succeeded.unwrap_or(0) + succeeded);
        }
        status.failed = Some(status.failed.unwrap_or(0) + failed);
        let alive = mine.iter().any(|pod| !pods::is_terminal(pod));
        if let Some(verdict) = verdict.filter(|_| all_counted && !alive && counts.active == 0) {
            let (type_, reason, message) = match &verdict {
                Verdict::Succeeded { reason, message } => ("Complete", *reason, message),
                Verdict::Failed { reason, message } => ("Failed", *reason, message),
            };
            set_condition(&mut status, type_, true, reason, message);
            if type_ == "Complete" {
                status.completion_time = Some(Time(Timestamp::now()));
                self.recorder.event(reference(&job), EventType::Normal, "Completed", "Job completed".to_owned());
            } else {
                self.recorder.event(reference(&job), EventType::Warning, reason, message.clone());
            }
            status.terminating = Some(0);
        }
        self.write(&job, status).await.map(drop)
    }

    async fn release(&self, pod: &Pod) -> Result<(), Error> {
        let (namespace, name) = key_of(pod);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let patch = json!({"metadata": {"uid": pod.metadata.uid, "$deleteFromPrimitiveList/finalizers": [FINALIZER]}});
        gone_is_fine(api.patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await)
    }

    async fn release_orphans(&self, key: &Key) -> Outcome {
        for pod in self.pods.list_in(&key.0) {
            if controlled_by(&pod.metadata, "Job").as_ref() == Some(key) && has_finalizer(&pod) {
                self.release(&pod).await?;
            }
        }
        Ok(None)
    }

    /// Deletes a finished Job when its time to live is over.
    async fn expire(&self, job: &Job, spec: &JobSpec) -> Outcome {
        let Some(ttl) = spec.ttl_seconds_after_finished.filter(|_| job.metadata.deletion_timestamp.is_none()) else {
            return Ok(None);
        };
        let status = job.status.clone().unwrap_or_default();
        let ended = condition(&status, "Complete").or_else(|| condition(&status, "Failed"));
        let Some(at) = ended.and_then(|c| c.last_transition_time.clone()) else { return Ok(None) };
        let left = until(at.0, i64::from(ttl), Timestamp::now());
        if !left.is_zero() {
            return Ok(Some(left));
        }
        let (namespace, name) = key_of(job);
        let api: Api<Job> = Api::namespaced(self.ttl.clone(), &namespace);
        gone_is_fine(api.delete(&name, &DeleteParams::foreground()).await)?;
        Ok(None)
    }

    fn lock_counted(&self) -> std::sync::MutexGuard<'_, HashMap<Key, BTreeSet<String>>> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The Pods with a finalizer that is already gone taken off, so that none is counted twice.
    fn without_counted(&self, key: &Key, mut mine: Vec<Arc<Pod>>) -> Vec<Arc<Pod>> {
        let mut all = self.lock_counted();
        let Some(counted) = all.get_mut(key) else { return mine };
        let shown: BTreeSet<String> =
            mine.iter().filter(|pod| has_finalizer(pod)).filter_map(|pod| pod.metadata.uid.clone()).collect();
        counted.retain(|uid| shown.contains(uid));
        for pod in &mut mine {
            if pod.metadata.uid.as_ref().is_some_and(|uid| counted.contains(uid))
                && let Some(list) = &mut Arc::make_mut(pod).metadata.finalizers
            {
                list.retain(|finalizer| finalizer != FINALIZER);
            }
        }
        if counted.is_empty() {
            all.remove(key);
        }
        mine
    }

    fn lock_failures(&self) -> std::sync::MutexGuard<'_, HashMap<Key, (u32, Timestamp)>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
