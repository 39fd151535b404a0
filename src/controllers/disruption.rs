//! PodDisruptionBudgets: how many Pods an eviction may take right now.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::PostParams;
use kube::core::Selector;
use kube::{Api, Client};
use mussel_client::{Change, Informer, WorkQueue};
use tokio_util::sync::CancellationToken;

use crate::Context;
use crate::control::{self, Key, follow, follow_keys, key_of, queue_all};
use crate::deployment::scaled;
use crate::error::{Error, Outcome, is_not_found};
use crate::owner::{controller_of, matches};
use crate::pods::{self, until};

/// An eviction that was granted and not followed by a deletion is forgotten after this long.
const DELETION_TIMEOUT_SECONDS: i64 = 120;

struct Controller {
    client: Client,
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    sets: Informer<ReplicaSet>,
    deployments: Informer<Deployment>,
    stateful: Informer<StatefulSet>,
    controllers: Informer<ReplicationController>,
}

pub async fn run(context: Context, stop: CancellationToken) {
    let informers = &context.informers;
    let controller = Controller {
        client: context.client(),
        budgets: informers.of(),
        pods: informers.of(),
        sets: informers.of(),
        deployments: informers.of(),
        stateful: informers.of(),
        controllers: informers.of(),
    };
    let queue = WorkQueue::new();
    let budgets = controller.budgets.clone();
    let on_pod = |change: &Change<Pod>| {
        let (Change::Applied { new: pod, .. } | Change::Deleted(pod)) = change else { return };
        for budget in budgets.list_in(pod.metadata.namespace.as_deref().unwrap_or_default()) {
            if selector(&budget).is_ok_and(|s| s.is_some_and(|s| matches(&s, &pod.metadata))) {
                queue.add(key_of(&*budget));
            }
        }
    };
    let resync = || queue_all(&budgets, &queue);
    tokio::join!(
        follow_keys(budgets.clone(), queue.clone(), stop.clone()),
        follow(controller.pods.clone(), stop.clone(), on_pod, resync),
        async {
            let synced = async {
                tokio::join!(
                    budgets.synced(),
                    controller.pods.synced(),
                    controller.sets.synced(),
                    controller.deployments.synced(),
                    controller.stateful.synced(),
                    controller.controllers.synced()
                );
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = synced => (),
            }
            control::work("disruption", queue.clone(), 1, stop.clone(), |key| controller.reconcile(key)).await;
        },
    );
}

/// No selector selects nothing; an empty one selects all.
fn selector(budget: &PodDisruptionBudget) -> Result<Option<Selector>, Error> {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.clone());
    Ok(selector.map(TryInto::try_into).transpose()?)
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Outcome {
        let Some(budget) = self.budgets.get(&key.0, &key.1) else { return Ok(None) };
        let Some(spec) = &budget.spec else { return Ok(None) };
        let now = Timestamp::now();
        let selector = selector(&budget)?;
        let pods: Vec<Arc<Pod>> = self
            .pods
            .list_in(&key.0)
            .into_iter()
            .filter(|pod| selector.as_ref().is_some_and(|s| matches(s, &pod.metadata)) && !pods::is_terminal(pod))
            .collect();
        let old = budget.status.clone().unwrap_or_default();
        let mut next: Option<Duration> = None;
        let mut disrupted = BTreeMap::new();
        for (name, at) in old.disrupted_pods.clone().unwrap_or_default() {
            let there =
                pods.iter().any(|p| p.metadata.name.as_ref() == Some(&name) && p.metadata.deletion_timestamp.is_none());
            let left = until(at.0, DELETION_TIMEOUT_SECONDS, now);
            if there && !left.is_zero() {
                next = Some(next.map_or(left, |n| n.min(left)));
                disrupted.insert(name, at);
            }
        }
        let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let percent = matches!(&spec.min_available, Some(v) if scaled(v, 0, true).is_some() && is_percent(v));
        let (expected, desired) = match (&spec.max_unavailable, &spec.min_available) {
            (Some(max), _) => {
                let expected = self.expected(&pods);
                (expected, (expected - scaled(max, expected, true).unwrap_or(0)).max(0))
            }
            (None, Some(min)) if percent => {
                let expected = self.expected(&pods);
                (expected, scaled(min, expected, true).unwrap_or(0))
            }
            (None, Some(min)) => (count(pods.len()), scaled(min, 0, true).unwrap_or(0)),
            (None, None) => (count(pods.len()), 0),
        };
        let is_healthy = |pod: &&Arc<Pod>| {
            pod.metadata.deletion_timestamp.is_none()
                && pods::is_ready(pod)
                && !disrupted.contains_key(pod.metadata.name.as_deref().unwrap_or_default())
        };
        let healthy = count(pods.iter().filter(is_healthy).count());
        let allowed = if expected > 0 { (healthy - desired).max(0) } else { 0 };
        let mut status = PodDisruptionBudgetStatus {
            current_healthy: Some(healthy),
            desired_healthy: Some(desired),
            expected_pods: Some(expected),
            disruptions_allowed: Some(allowed),
            disrupted_pods: Some(disrupted).filter(|d| !d.is_empty()),
            observed_generation: budget.metadata.generation,
            conditions: None,
        };
        status.conditions = Some(vec![condition(&old, allowed, budget.metadata.generation)]);
        if budget.status.as_ref() == Some(&status) {
            return Ok(next);
        }
        let api: Api<PodDisruptionBudget> = Api::namespaced(self.client.clone(), &key.0);
        let updated = PodDisruptionBudget { status: Some(status), ..(*budget).clone() };
        match api.replace_status(&key.1, &PostParams::default(), &updated).await {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(next),
        }
    }

    /// What the Pods' controllers ask for; a Pod that has none counts for itself.
    fn expected(&self, pods: &[Arc<Pod>]) -> i32 {
        let mut scales: BTreeMap<String, i32> = BTreeMap::new();
        for pod in pods {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let Some(owner) = controller_of(&pod.metadata) else {
                scales.insert(pod.metadata.uid.clone().unwrap_or_default(), 1);
                continue;
            };
            let set = || self.sets.get(namespace, &owner.name);
            let found = match owner.kind.as_str() {
                "ReplicaSet" => set().map(|set| {
                    let parent = controller_of(&set.metadata).filter(|parent| parent.kind == "Deployment");
                    let deployment = parent.and_then(|parent| self.deployments.get(namespace, &parent.name));
                    match deployment {
                        Some(d) => (d.metadata.uid.clone(), d.spec.as_ref().and_then(|s| s.replicas)),
                        None => (set.metadata.uid.clone(), set.spec.as_ref().and_then(|s| s.replicas)),
                    }
                }),
                "StatefulSet" => self
                    .stateful
                    .get(namespace, &owner.name)
                    .map(|set| (set.metadata.uid.clone(), set.spec.as_ref().and_then(|s| s.replicas))),
                "ReplicationController" => self
                    .controllers
                    .get(namespace, &owner.name)
                    .map(|set| (set.metadata.uid.clone(), set.spec.as_ref().and_then(|s| s.replicas))),
                _ => None,
            };
            if let Some((Some(uid), replicas)) = found {
                scales.insert(uid, replicas.unwrap_or(1));
            }
        }
        scales.values().sum()
    }
}

fn is_percent(value: &k8s_openapi::apimachinery::pkg::util::intstr::IntOrString) -> bool {
    matches!(value, k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::String(_))
}

fn condition(old: &PodDisruptionBudgetStatus, allowed: i32, generation: Option<i64>) -> Condition {
    let (status, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let before = old.conditions.iter().flatten().find(|c| c.type_ == "DisruptionAllowed" && c.status == status);
    Condition {
        type_: "DisruptionAllowed".to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: String::new(),
        observed_generation: generation,
        last_transition_time: before.map_or_else(|| Time(Timestamp::now()), |c| c.last_transition_time.clone()),
    }
}
