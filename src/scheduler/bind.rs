//! Binds a pod to the node that was chosen for it: first its volumes, then itself.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Binding, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams, PostParams};
use mussel_api::claim::{annotation, is_bound};
use mussel_client::informer::{Change, Informer};
use serde_json::json;

use crate::report::names;
use crate::volumes::Step;

const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// As upstream. A provisioner may have to make a disk.
const VOLUMES_TIMEOUT: Duration = Duration::from_secs(600);

/// Why a pod was not bound. It may be tried again.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("give volume {volume} to claim {claim}")]
    ClaimVolume { volume: String, claim: String, source: kube::Error },
    #[error("select a node for claim {claim}")]
    SelectNode { claim: String, source: kube::Error },
    #[error("claim {claim} got no volume on the selected node")]
    Refused { claim: String },
    #[error("binding volumes: context deadline exceeded")]
    VolumesTimeout,
    #[error("bind pod to node {node}")]
    Pod { node: String, source: kube::Error },
}

impl BindError {
    /// The pod is gone, or somebody else has placed it: no news for anybody.
    pub fn is_moot(&self) -> bool {
        matches!(self, Self::Pod { source: kube::Error::Api(status), .. } if matches!(status.code, 404 | 409))
    }
}

/// # Cancel safety
/// What was done to volumes stays, and is found by the next attempt.
pub async fn bind(
    client: kube::Client,
    claims: Informer<PersistentVolumeClaim>,
    permits: Arc<tokio::sync::Semaphore>,
    pod: &Pod,
    node: &str,
    steps: &[Step],
) -> Result<(), BindError> {
    for step in steps {
        match step {
            Step::Claim { volume, claim } => give(&client, volume, claim).await?,
            Step::Provision { claim } => select_node(&client, claim, node).await?,
        }
    }
    if !steps.is_empty() {
        let volumes = tokio::time::timeout(VOLUMES_TIMEOUT, volumes_bound(&claims, steps, node));
        volumes.await.map_err(|_| BindError::VolumesTimeout)??;
    }
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
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    // Never closed. Only what is on its way to the API is limited, not what waits for volumes.
    let _permit = permits.acquire_owned().await.ok();
    let api: Api<Pod> = Api::namespaced(client, &namespace);
    let bound: Result<serde_json::Value, _> =
        api.create_subresource("binding", &name, &PostParams::default(), &binding).await;
    bound.map(drop).map_err(|source| BindError::Pod { node: node.to_owned(), source })
}

async fn give(
    client: &kube::Client,
    volume: &PersistentVolume,
    claim: &PersistentVolumeClaim,
) -> Result<(), BindError> {
    let name = volume.metadata.name.clone().unwrap_or_default();
    let owner = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.metadata.namespace,
        "name": claim.metadata.name, "uid": claim.metadata.uid});
    // With the version that was looked at: somebody else may have taken it since.
    let patch = json!({"spec": {"claimRef": owner}, "metadata": {"resourceVersion": volume.metadata.resource_version,
        "annotations": {"pv.kubernetes.io/bound-by-controller": "yes"}}});
    let api: Api<PersistentVolume> = Api::all(client.clone());
    let patched = api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
    let claim = claim.metadata.name.clone().unwrap_or_default();
    patched.map(drop).map_err(|source| BindError::ClaimVolume { volume: name, claim, source })
}

async fn select_node(client: &kube::Client, claim: &PersistentVolumeClaim, node: &str) -> Result<(), BindError> {
    if annotation(&claim.metadata, SELECTED_NODE) == Some(node) {
        return Ok(());
    }
    let name = claim.metadata.name.clone().unwrap_or_default();
    let patch = json!({"metadata": {"uid": claim.metadata.uid, "annotations": {SELECTED_NODE: node}}});
    let api: Api<PersistentVolumeClaim> =
        Api::namespaced(client.clone(), claim.metadata.namespace.as_deref().unwrap_or_default());
    let patched = api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
    patched.map(drop).map_err(|source| BindError::SelectNode { claim: name, source })
}

/// Waits until every claim has its volume.
async fn volumes_bound(claims: &Informer<PersistentVolumeClaim>, steps: &[Step], node: &str) -> Result<(), BindError> {
    let mut waiting: Vec<Waiting<'_>> = steps.iter().map(Waiting::of).collect();
    let mut changes = claims.changes();
    while !waiting.is_empty() {
        match changes.next().await {
            Some(Change::Applied { new, .. }) => settle(&mut waiting, &new, node)?,
            Some(Change::Deleted(gone)) => {
                if waiting.iter().any(|waiting| waiting.claim.metadata.uid == gone.metadata.uid) {
                    return Err(BindError::Refused { claim: gone.metadata.name.clone().unwrap_or_default() });
                }
            }
            Some(Change::Resync) => {
                for claim in claims.list() {
                    settle(&mut waiting, &claim, node)?;
                }
            }
            // The server stops; the task that waits for us is cancelled too.
            None => return Err(BindError::VolumesTimeout),
        }
    }
    Ok(())
}

struct Waiting<'a> {
    claim: &'a PersistentVolumeClaim,
    provisioned: bool,
    /// The claim has been seen with the node that we selected.
    selected: bool,
}

impl<'a> Waiting<'a> {
    fn of(step: &'a Step) -> Self {
        match step {
            Step::Claim { claim, .. } => Self { claim, provisioned: false, selected: false },
            Step::Provision { claim } => Self { claim, provisioned: true, selected: false },
        }
    }
}

fn settle(waiting: &mut Vec<Waiting<'_>>, seen: &PersistentVolumeClaim, node: &str) -> Result<(), BindError> {
    let Some(index) = waiting.iter().position(|waiting| waiting.claim.metadata.uid == seen.metadata.uid) else {
        return Ok(());
    };
    if is_bound(seen) {
        waiting.swap_remove(index);
        return Ok(());
    }
    let selected = annotation(&seen.metadata, SELECTED_NODE) == Some(node);
    // A provisioner that cannot serve the node takes the annotation away.
    if waiting[index].provisioned && waiting[index].selected && !selected {
        return Err(BindError::Refused { claim: seen.metadata.name.clone().unwrap_or_default() });
    }
    waiting[index].selected |= selected;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(more: serde_json::Value) -> PersistentVolumeClaim {
        let mut claim = json!({"metadata": {"name": "c", "uid": "c"}, "spec": {}});
        claim.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(claim).unwrap()
    }

    #[test]
    fn a_provisioner_may_refuse_a_node() {
        let selected = claim(json!({"metadata": {"name": "c", "uid": "c", "annotations": {SELECTED_NODE: "a"}}}));
        let bound = claim(json!({"spec": {"volumeName": "v"}, "status": {"phase": "Bound"}}));
        let before = claim(json!({}));
        let step = Step::Provision { claim: Arc::new(before.clone()) };
        for (last, refused, left) in [(&bound, false, 0), (&before, true, 1), (&selected, false, 1)] {
            let mut waiting = vec![Waiting::of(&step)];
            // What the informer still has from before says nothing.
            settle(&mut waiting, &before, "a").unwrap();
            settle(&mut waiting, &selected, "a").unwrap();
            assert_eq!(settle(&mut waiting, last, "a").is_err(), refused);
            assert_eq!(waiting.len(), left);
        }
    }
}
