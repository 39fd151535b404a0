//! ResourceQuotas' status: what a namespace has in use.
//!
//! Admission counts for itself; the status is for people and clients. Pods, Services and claims are counted from the
//! shared informers, everything else by asking the API for the number of objects.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaStatus, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, PostParams};
use kube::{Api, Client};
use mussel_api::quantity::{Format, Quantity};
use mussel_api::quota::{Amounts, counted_kind, in_scope, is_over, usage};
use mussel_client::informer::Kind;
use mussel_client::{Change, Informer, WorkQueue};
use serde_json::Value;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use crate::Context;
use crate::census::Census;
use crate::control::{self, Key, follow, follow_keys, key_of, queue_all};
use crate::discovery::deletable;
use crate::error::{Error, Outcome, gone_is_fine};
use crate::pods;

struct Controller {
    client: Client,
    quotas: Informer<ResourceQuota>,
    pods: Informer<Pod>,
    services: Informer<Service>,
    claims: Informer<PersistentVolumeClaim>,
}

pub async fn run(context: Context, census: Census, stop: CancellationToken) {
    let quotas = context.informers.of::<ResourceQuota>();
    let pods = context.informers.of::<Pod>();
    let services = context.informers.of::<Service>();
    let claims = context.informers.of::<PersistentVolumeClaim>();
    let queue = WorkQueue::new();
    let controller = Controller {
        client: context.client(),
        quotas: quotas.clone(),
        pods: pods.clone(),
        services: services.clone(),
        claims: claims.clone(),
    };
    let wake = |kind: &str, namespace: &str| {
        for quota in quotas.list_in(namespace) {
            if hard(&quota).keys().any(|name| counted_kind(name) == Some(kind)) {
                queue.add(key_of(&*quota));
            }
        }
    };
    let resync = || queue_all(&quotas, &queue);
    let on_pod = |change: &Change<Pod>| {
        if let Change::Applied { old: Some(old), new } = change
            && old.spec == new.spec
            && pods::is_terminal(old) == pods::is_terminal(new)
        {
            return;
        }
        wake("pods", namespace_of(change).as_str());
    };
    let on_service = |change: &Change<Service>| wake("services", namespace_of(change).as_str());
    let on_claim =
        |change: &Change<PersistentVolumeClaim>| wake("persistentvolumeclaims", namespace_of(change).as_str());
    tokio::join!(
        follow_keys(quotas.clone(), queue.clone(), stop.clone()),
        follow(pods.clone(), stop.clone(), on_pod, resync),
        follow(services.clone(), stop.clone(), on_service, resync),
        follow(claims.clone(), stop.clone(), on_claim, resync),
        async {
            let mut turnovers = census.listen();
            loop {
                let turnover = tokio::select! {
                    () = stop.cancelled() => return,
                    turnover = turnovers.recv() => turnover,
                };
                match turnover {
                    Ok(turnover) => wake(&turnover.resource, &turnover.namespace),
                    Err(RecvError::Lagged(_)) => resync(),
                    Err(RecvError::Closed) => return,
                }
            }
        },
        async {
            tokio::select! {
                () = stop.cancelled() => return,
                () = async { tokio::join!(quotas.synced(), pods.synced(), services.synced(), claims.synced()); } => (),
            }
            control::work("resourcequota", queue.clone(), 5, stop.clone(), |key| controller.reconcile(key)).await;
        },
    );
}

fn namespace_of<K: Kind>(change: &Change<K>) -> String {
    match change {
        Change::Applied { new: object, .. } | Change::Deleted(object) => {
            object.meta().namespace.clone().unwrap_or_default()
        }
        Change::Resync => String::new(),
    }
}

fn hard(quota: &ResourceQuota) -> BTreeMap<String, ApiQuantity> {
    quota.spec.as_ref().and_then(|spec| spec.hard.clone()).unwrap_or_default()
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Outcome {
        let Some(quota) = self.quotas.get(&key.0, &key.1) else { return Ok(None) };
        if quota.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let hard = hard(&quota);
        let mut amounts = Amounts::new();
        let as_value = serde_json::to_value(&*quota)?;
        for kind in hard.keys().filter_map(|name| counted_kind(name)).collect::<BTreeSet<_>>() {
            match kind {
                "pods" => add_up(kind, &as_value, self.pods.list_in(&key.0), &mut amounts)?,
                "services" => add_up(kind, &as_value, self.services.list_in(&key.0), &mut amounts)?,
                "persistentvolumeclaims" => add_up(kind, &as_value, self.claims.list_in(&key.0), &mut amounts)?,
                // Scopes select nothing but pods.
                _ if !in_scope(&as_value, kind, &Value::Null) => {}
                _ => {
                    let count = self.count(kind, &key.0).await?;
                    for name in usage(kind, &Value::Null).into_keys() {
                        amounts.insert(name, Quantity::from_value(count, Format::DecimalSi));
                    }
                }
            }
        }
        let used = |name: &String| amounts.get(name).copied().unwrap_or(Quantity::ZERO);
        let used = hard.keys().map(|name| (name.clone(), ApiQuantity(used(name).to_string()))).collect();
        let status = ResourceQuotaStatus { hard: Some(hard), used: Some(used) };
        if quota.status.as_ref() == Some(&status) {
            return Ok(None);
        }
        let api: Api<ResourceQuota> = Api::namespaced(self.client.clone(), &key.0);
        let updated = ResourceQuota { status: Some(status), ..(*quota).clone() };
        gone_is_fine(api.replace_status(&key.1, &PostParams::default(), &updated).await)?;
        Ok(None)
    }

    /// How many objects of a kind there are; zero for kinds that are not served.
    async fn count(&self, kind: &str, namespace: &str) -> Result<i64, Error> {
        let (plural, group) = kind.split_once('.').unwrap_or((kind, ""));
        let resource = if matches!(kind, "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas") {
            ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", ""), plural)
        } else {
            let served = deletable(&self.client, true).await?.served;
            let found = served.into_iter().map(|s| s.resource).find(|r| r.group == group && r.plural == plural);
            let Some(resource) = found else { return Ok(0) };
            resource
        };
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource);
        let page = api.list_metadata(&ListParams::default().limit(1)).await?;
        let first = i64::try_from(page.items.len()).unwrap_or(i64::MAX);
        Ok(first.saturating_add(page.metadata.remaining_item_count.unwrap_or(0)))
    }
}

/// Adds what the objects in the quota's scope take.
fn add_up<K: Kind + serde::Serialize>(
    kind: &str,
    quota: &Value,
    objects: Vec<std::sync::Arc<K>>,
    amounts: &mut Amounts,
) -> Result<(), Error> {
    for object in objects {
        let object = serde_json::to_value(&*object)?;
        if in_scope(quota, kind, &object) && !is_over(kind, &object) {
            for (name, amount) in usage(kind, &object) {
                *amounts.entry(name).or_default() += amount;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    #[test]
    fn pods_that_are_over_or_out_of_scope_take_nothing() {
        let pod = |phase: &str, cpu: &str| -> Arc<Pod> {
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": "p"}, "status": {"phase": phase},
                    "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}}))
                .unwrap(),
            )
        };
        let pods = vec![pod("Running", "100m"), pod("Pending", "200m"), pod("Succeeded", "1")];
        for (quota, expected) in [
            (json!({"spec": {}}), Some("300m")),
            (json!({"spec": {"scopes": ["NotBestEffort"]}}), Some("300m")),
            (json!({"spec": {"scopes": ["Terminating"]}}), None),
        ] {
            let mut amounts = Amounts::new();
            add_up("pods", &quota, pods.clone(), &mut amounts).unwrap();
            assert_eq!(amounts.get("requests.cpu").map(ToString::to_string).as_deref(), expected, "{quota}");
        }
    }
}
