//! Labels a server's own Node with its role.
//!
//! The kubelet must not do that itself: NodeRestriction keeps nodes from giving themselves roles.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use mussel_client::Informers;
use serde_json::{Value, json};
use tokio::time;
use tokio_util::sync::CancellationToken;

/// What a server is for, as `kubectl get nodes` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    ControlPlane,
    /// It keeps the store, and leaves the API to others.
    Etcd,
}

impl Role {
    fn label(self) -> &'static str {
        match self {
            Self::ControlPlane => "node-role.kubernetes.io/control-plane",
            Self::Etcd => "node-role.kubernetes.io/etcd",
        }
    }

    /// What is to change of the labels.
    fn change(self, labels: &BTreeMap<String, String>) -> Option<Value> {
        let other = if self == Self::Etcd { Self::ControlPlane } else { Self::Etcd };
        let mut change = serde_json::Map::new();
        if !labels.contains_key(self.label()) {
            change.insert(self.label().to_owned(), "true".into());
        }
        // Of a start with other flags.
        if labels.contains_key(other.label()) {
            change.insert(other.label().to_owned(), Value::Null);
        }
        (!change.is_empty()).then_some(Value::Object(change))
    }
}

const RETRY: Duration = Duration::from_secs(5);

/// Keeps the role on the node until `stop`.
pub async fn run(client: Client, informers: Informers, node_name: String, role: Role, stop: CancellationToken) {
    let nodes = informers.of_fields::<Node>(&format!("metadata.name={node_name}"));
    let api: Api<Node> = Api::all(client);
    let mut changes = nodes.changes();
    loop {
        let node = nodes.get("", &node_name);
        let change = node.and_then(|node| role.change(&node.metadata.labels.clone().unwrap_or_default()));
        let mut failed = false;
        if let Some(labels) = change {
            let patch = json!({"metadata": {"labels": labels}});
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_the_role_of_its_last_start() {
        let labels = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), "true".to_owned())).collect();
        let (api, store) = (Role::ControlPlane.label(), Role::Etcd.label());
        assert_eq!(Role::ControlPlane.change(&labels(&[api])), None);
        assert_eq!(Role::ControlPlane.change(&labels(&[])), Some(json!({api: "true"})));
        assert_eq!(Role::Etcd.change(&labels(&[api])), Some(json!({store: "true", api: null})));
    }
}
