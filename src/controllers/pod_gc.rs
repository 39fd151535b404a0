//! Pods nobody will finish: bound to a node that does not exist any more, deleted before they had one, or finished so
//! long ago that there are too many of them.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client};
use mussel_client::{Change, Informer, WorkQueue};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::Context;
use crate::control::{self, Key, follow, key_of};
use crate::error::{Error, Outcome, gone_is_fine, is_not_found};
use crate::pods;

/// A node that is registered again within this time keeps its Pods.
const QUARANTINE: Duration = Duration::from_secs(40);
/// Upstream's default of `--terminated-pod-gc-threshold`.
pub const TERMINATED_MAX: usize = 12_500;
/// The key under which finished Pods are counted. No node has this name.
const FINISHED: &str = "";

struct Controller {
    client: Client,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    terminated_max: usize,
}

pub async fn run(context: Context, stop: CancellationToken) {
    let nodes = context.informers.of::<Node>();
    let pods = context.informers.of::<Pod>();
    let queue: WorkQueue<Key> = WorkQueue::new();
    let terminated_max = context.config.terminated_pods_max;
    let controller = Controller { client: context.client(), nodes: nodes.clone(), pods: pods.clone(), terminated_max };
    let wake_node = |name: String| queue.add_after((String::new(), name), QUARANTINE);
    let on_node = |change: &Change<Node>| {
        if let Change::Deleted(node) = change {
            wake_node(key_of(&**node).1);
        }
    };
    let on_pod = |change: &Change<Pod>| {
        let Change::Applied { new: pod, .. } = change else { return };
        match node_of(pod) {
            Some(node) if nodes.get("", node).is_none() => wake_node(node.to_owned()),
            // Pod keys have a namespace; node keys do not.
            None if pod.metadata.deletion_timestamp.is_some() => queue.add(key_of(&**pod)),
            _ => {}
        }
        if pods::is_terminal(pod) && pods.len() > terminated_max {
            queue.add((String::new(), FINISHED.to_owned()));
        }
    };
    let resync = || {
        for pod in pods.list() {
            if let Some(node) = node_of(&pod).filter(|node| nodes.get("", node).is_none()) {
                wake_node(node.to_owned());
            }
        }
    };
    tokio::join!(
        follow(nodes.clone(), stop.clone(), on_node, resync),
        follow(pods.clone(), stop.clone(), on_pod, resync),
        async {
            tokio::select! {
                () = stop.cancelled() => return,
                () = async { tokio::join!(nodes.synced(), pods.synced()); } => (),
            }
            control::work("podgc", queue.clone(), 2, stop.clone(), |key| controller.reconcile(key)).await;
        },
    );
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

impl Controller {
    async fn reconcile(&self, (namespace, name): Key) -> Outcome {
        if !namespace.is_empty() {
            let unscheduled = |pod: &Arc<Pod>| node_of(pod).is_none() && pod.metadata.deletion_timestamp.is_some();
            if let Some(pod) = self.pods.get(&namespace, &name).filter(unscheduled) {
                self.delete(&pod, None).await?;
            }
            return Ok(None);
        }
        if name == FINISHED {
            return self.delete_finished().await;
        }
        if self.nodes.get("", &name).is_some() {
            return Ok(None);
        }
        let nodes: Api<Node> = Api::all(self.client.clone());
        if nodes.get_opt(&name).await?.is_some() {
            return Ok(None);
        }
        for pod in self.pods.list().iter().filter(|pod| node_of(pod) == Some(&name)) {
            self.delete(pod, Some("PodGC: node no longer exists")).await?;
        }
        Ok(None)
    }

    async fn delete_finished(&self) -> Outcome {
        let mut finished: Vec<_> = self.pods.list().into_iter().filter(|pod| pods::is_terminal(pod)).collect();
        let surplus = finished.len().saturating_sub(self.terminated_max);
        finished.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
        for pod in finished.iter().take(surplus) {
            self.delete(pod, None).await?;
        }
        Ok(None)
    }

    /// At once: there is no kubelet that could do it gracefully.
    async fn delete(&self, pod: &Pod, lost: Option<&str>) -> Result<(), Error> {
        let (namespace, name) = key_of(pod);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        if let Some(message) = lost.filter(|_| !pods::is_terminal(pod)) {
            let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
                "message": message, "lastTransitionTime": Time(Timestamp::now())});
            let patch = json!({"metadata": {"uid": pod.metadata.uid},
                "status": {"phase": "Failed", "conditions": [condition]}});
            match api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(_) => {}
                Err(error) if is_not_found(&error) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        gone_is_fine(api.delete(&name, &DeleteParams::default().grace_period(0)).await)
    }
}
