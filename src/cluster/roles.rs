//! Labels a server's own Node with its role.
//!
//! The kubelet must not do that itself: NodeRestriction keeps nodes from giving themselves roles.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use mussel_client::Informers;
use serde_json::json;
use tokio::time;
use tokio_util::sync::CancellationToken;

const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";
const RETRY: Duration = Duration::from_secs(5);

/// Keeps the control-plane role on the node until `stop`.
pub async fn run(client: Client, informers: Informers, node_name: String, stop: CancellationToken) {
    let nodes = informers.of_fields::<Node>(&format!("metadata.name={node_name}"));
    let api: Api<Node> = Api::all(client);
    let mut changes = nodes.changes();
    loop {
        let wanting = nodes
            .get("", &node_name)
            .is_some_and(|node| node.metadata.labels.as_ref().is_none_or(|labels| !labels.contains_key(CONTROL_PLANE)));
        let mut failed = false;
        if wanting {
            let patch = json!({"metadata": {"labels": {CONTROL_PLANE: "true"}}});
            if let Err(error) = api.patch(&node_name, &PatchParams::default(), &Patch::Merge(patch)).await {
                tracing::warn!(node = node_name, %error, "node is not labelled with its role");
                failed = true;
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            change = changes.next() => if change.is_none() { return stop.cancelled().await },
            () = time::sleep(RETRY), if failed => {}
        }
    }
}
