//! Mirror pods: objects that show static pods in the API.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};

use crate::pod;
use crate::shared::Shared;

/// Makes the mirror of a static pod, or replaces one that shows an older manifest. Failures are only logged: a static
/// pod does not need the API.
pub async fn ensure(shared: &Shared, pod: &Pod) {
    if !shared.api_pods.is_synced() {
        return;
    }
    let hash = pod::annotation(pod, pod::HASH).unwrap_or_default();
    let found = shared.api_pods.get(pod::namespace(pod), pod::name(pod));
    if let Some(found) = &found {
        if !pod::is_mirror(found) {
            return;
        }
        let current = pod::annotation(found, pod::MIRROR) == Some(hash);
        if current && found.metadata.deletion_timestamp.is_none() {
            return;
        }
        delete(shared, found).await;
    }
    let Some(node) = shared.node.get("", &shared.config.node_name) else { return };
    let mut annotations = pod.metadata.annotations.clone().unwrap_or_default();
    annotations.insert(pod::MIRROR.into(), hash.into());
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: shared.config.node_name.clone(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: None,
    };
    let mirror = Pod {
        metadata: ObjectMeta {
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            labels: pod.metadata.labels.clone(),
            annotations: Some(annotations),
            owner_references: Some(vec![owner]),
            ..Default::default()
        },
        spec: pod.spec.clone(),
        status: None,
    };
    let api: Api<Pod> = Api::namespaced(shared.config.client.clone(), pod::namespace(pod));
    if let Err(error) = api.create(&PostParams::default(), &mirror).await
        && !matches!(&error, kube::Error::Api(s) if s.code == 409)
    {
        tracing::warn!(%error, pod = %pod::full(pod), "cannot create the mirror pod");
    }
}

/// The static pod is gone; so goes its mirror.
pub async fn remove(shared: &Shared, pod: &Pod) {
    if let Some(found) = shared.api_pods.get(pod::namespace(pod), pod::name(pod)).filter(|p| pod::is_mirror(p)) {
        delete(shared, &found).await;
    }
}

pub async fn delete(shared: &Shared, mirror: &Pod) {
    let api: Api<Pod> = Api::namespaced(shared.config.client.clone(), pod::namespace(mirror));
    let parameters = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: mirror.metadata.uid.clone(), resource_version: None }),
        ..DeleteParams::default()
    };
    if let Err(error) = api.delete(pod::name(mirror), &parameters).await
        && !matches!(&error, kube::Error::Api(s) if s.code == 404 || s.code == 409)
    {
        tracing::warn!(%error, pod = %pod::full(mirror), "cannot delete a mirror pod");
    }
}
