//! Makes the Pods that a Job lacks, and deletes those it has too many.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use mussel_client::reference;

use super::plan::{self, Counts};
use super::{Controller, FINALIZER, INDEX, index, index_of};
use crate::control::Key;
use crate::error::Error;
use crate::owner::Owner;
use crate::pods::{self, until};

const BURST_MAX: usize = 500;

impl Controller {
    /// Creates or deletes Pods; answers the change in number and when to look again.
    pub(super) async fn scale(
        &self,
        key: &Key,
        job: &Job,
        spec: &JobSpec,
        owner: &Owner,
        active: &[&Arc<Pod>],
        terminating: usize,
        counts: &Counts,
        completed: &BTreeSet<i32>,
        per_index: Option<&index::Survey>,
        now: Timestamp,
    ) -> Result<(i32, Option<Duration>), Error> {
        let wanted = usize::try_from(plan::wanted_active(spec, counts)).unwrap_or(0);
        let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let mut surplus: Vec<&Arc<Pod>> = Vec::new();
        let mut taken: BTreeSet<i32> = completed.clone();
        taken.extend(per_index.iter().flat_map(|survey| &survey.failed));
        if plan::is_indexed(spec) {
            for pod in active {
                match index_of(pod) {
                    Some(index) if taken.insert(index) => {}
                    // Two Pods for one index, or none that we know.
                    _ => surplus.push(pod),
                }
            }
        }
        if active.len() - surplus.len() > wanted {
            let mut rest: Vec<_> =
                active.iter().filter(|p| !surplus.iter().any(|s| Arc::ptr_eq(s, p))).copied().collect();
            rest.sort_by(|a, b| pods::deletion_order((a, 0), (b, 0)));
            surplus.extend(rest.into_iter().take(active.len() - surplus.len() - wanted));
        }
        if !surplus.is_empty() {
            self.delete_pods(key, job, &surplus).await?;
            return Ok((-number(surplus.len()), None));
        }
        let waiting = if spec.pod_replacement_policy.as_deref() == Some("Failed") { terminating } else { 0 };
        let missing = wanted.saturating_sub(active.len() + waiting).min(BURST_MAX);
        if missing == 0 {
            return Ok((0, None));
        }
        let failed_before = self.lock_failures().get(key).copied();
        if let Some((failures, at)) = failed_before {
            let wait = until(at, i64::try_from(plan::back_off(failures).as_secs()).unwrap_or(600), now);
            if !wait.is_zero() {
                return Ok((0, Some(wait)));
            }
        }
        let mut wait = None;
        let pods: Vec<Pod> = if plan::is_indexed(spec) {
            let open = (0..spec.completions.unwrap_or(0)).filter(|index| !taken.contains(index));
            let ready = open.filter(|index| {
                let left = per_index.map_or(Duration::ZERO, |survey| survey.wait(*index, now));
                if !left.is_zero() {
                    wait = Some(wait.map_or(left, |other: Duration| other.min(left)));
                }
                left.is_zero()
            });
            let ready: Vec<i32> = ready.take(missing).collect();
            let made = ready.into_iter().map(|index| {
                let mut pod = indexed_pod(spec, owner, index);
                if let Some(survey) = per_index {
                    index::annotate(&mut pod, survey.failures(index));
                }
                pod
            });
            made.collect()
        } else {
            vec![new_pod(spec, owner); missing]
        };
        self.expectations.expect(key, pods.len(), []);
        let (made, failure) = self.control.create_batches(&pods, &reference(job)).await;
        for _ in made.len()..pods.len() {
            self.expectations.created(key);
        }
        match failure {
            Some(error) if made.is_empty() => Err(error.into()),
            // What was made shows in the status; its events bring the next pass.
            _ => Ok((number(made.len()), wait)),
        }
    }

    pub(super) async fn delete_pods(&self, key: &Key, job: &Job, pods: &[&Arc<Pod>]) -> Result<(), Error> {
        let uid = |pod: &Pod| pod.metadata.uid.clone().unwrap_or_default();
        self.expectations.expect(key, 0, pods.iter().map(|pod| uid(pod)));
        let mut trouble = None;
        for pod in pods {
            let result = self.control.delete(pod, &reference(job)).await;
            if !matches!(result, Ok(true)) {
                self.expectations.deleted(key, &uid(pod));
            }
            trouble = trouble.or(result.err());
        }
        trouble.map_or(Ok(()), Err)
    }
}

fn new_pod(spec: &JobSpec, owner: &Owner) -> Pod {
    let mut pod = pods::from_template(&spec.template, &owner.reference(), &owner.namespace);
    let finalizers = pod.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|f| f == FINALIZER) {
        finalizers.push(FINALIZER.to_owned());
    }
    pod
}

/// The Pod learns its index from an annotation, a label, an environment variable and its host name.
fn indexed_pod(spec: &JobSpec, owner: &Owner, index: i32) -> Pod {
    let mut pod = new_pod(spec, owner);
    pod.metadata.generate_name = Some(format!("{}-{index}-", owner.name));
    let text = index.to_string();
    pod.metadata.annotations.get_or_insert_default().insert(INDEX.to_owned(), text.clone());
    pod.metadata.labels.get_or_insert_default().insert(INDEX.to_owned(), text);
    let pod_spec = pod.spec.get_or_insert_default();
    pod_spec.hostname = Some(format!("{}-{index}", owner.name));
    let source = EnvVarSource {
        field_ref: Some(ObjectFieldSelector {
            field_path: format!("metadata.labels['{INDEX}']"),
            ..ObjectFieldSelector::default()
        }),
        ..EnvVarSource::default()
    };
    let variable = EnvVar { name: "JOB_COMPLETION_INDEX".to_owned(), value_from: Some(source), value: None };
    for container in pod_spec.containers.iter_mut().chain(pod_spec.init_containers.iter_mut().flatten()) {
        let env = container.env.get_or_insert_default();
        if !env.iter().any(|v| v.name == variable.name) {
            env.push(variable.clone());
        }
    }
    pod
}
