//! What the server serves, for controllers that work on every kind: the namespace and the garbage collector.

use kube::Client;
use kube::api::ApiResource;
use kube::discovery::{Discovery, Scope, verbs};

use crate::error::Error;

/// A kind that objects can be listed and deleted of, at the version the server prefers.
#[derive(Clone, Debug)]
pub struct Served {
    pub resource: ApiResource,
    pub namespaced: bool,
    pub watchable: bool,
    pub deletes_collections: bool,
}

/// All kinds with `list` and `delete`, each once, without events, which nobody owns and which expire by themselves.
pub async fn deletable(client: &Client, with_events: bool) -> Result<Vec<Served>, Error> {
    let discovery = Discovery::new(client.clone()).run_aggregated().await?;
    let mut served: Vec<Served> = Vec::new();
    for (resource, capabilities) in discovery.groups().flat_map(|group| group.recommended_resources()) {
        if !capabilities.supports_operation(verbs::LIST) || !capabilities.supports_operation(verbs::DELETE) {
            continue;
        }
        // Events are the same objects in two groups.
        let event = resource.kind == "Event" && (resource.group.is_empty() || resource.group == "events.k8s.io");
        if event && !(with_events && resource.group.is_empty()) {
            continue;
        }
        served.push(Served {
            namespaced: capabilities.scope == Scope::Namespaced,
            watchable: capabilities.supports_operation(verbs::WATCH),
            deletes_collections: capabilities.supports_operation(verbs::DELETE_COLLECTION),
            resource,
        });
    }
    Ok(served)
}
