//! What the server serves, for controllers that work on every kind: the namespace and the garbage collector.

use kube::Client;
use kube::api::ApiResource;
use kube::core::discovery::v2::{APIGroupDiscovery, APIVersionDiscovery};

use crate::error::Error;

/// A kind that objects can be listed and deleted of, at the version the server prefers.
#[derive(Clone, Debug)]
pub struct Served {
    pub resource: ApiResource,
    pub namespaced: bool,
    pub watchable: bool,
    pub deletes_collections: bool,
}

/// What there is to work on, as far as it is known.
#[derive(Clone, Debug, Default)]
pub struct Kinds {
    pub served: Vec<Served>,
    /// Group versions whose server is away, as in `apiVersion`: what they serve now is not known.
    pub stale: Vec<String>,
}

/// All kinds with `list` and `delete`, each once, without events, which nobody owns and which expire by themselves.
pub async fn deletable(client: &Client, with_events: bool) -> Result<Kinds, Error> {
    let core = client.list_core_api_versions_aggregated().await?;
    let named = client.list_api_groups_aggregated().await?;
    Ok(kinds(core.items.into_iter().chain(named.items), with_events))
}

fn kinds(groups: impl IntoIterator<Item = APIGroupDiscovery>, with_events: bool) -> Kinds {
    let mut kinds = Kinds::default();
    for group in groups {
        let name = group.metadata.and_then(|metadata| metadata.name).unwrap_or_default();
        for (index, version) in group.versions.into_iter().enumerate() {
            if version.freshness.as_deref() == Some("Stale") {
                kinds.stale.push(api_version(&name, version.version.as_deref().unwrap_or_default()));
            } else if index == 0 {
                // The first one is the preferred one.
                kinds.served.extend(of_version(&name, version, with_events));
            }
        }
    }
    kinds
}

fn of_version(group: &str, version: APIVersionDiscovery, with_events: bool) -> Vec<Served> {
    let of_version = version.version.unwrap_or_default();
    let served = version.resources.into_iter().filter_map(|resource| {
        let can = |verb: &str| resource.verbs.iter().any(|known| known == verb);
        let kind = resource.response_kind.as_ref().and_then(|kind| kind.kind.clone())?;
        // Events are the same objects in two groups.
        let event = kind == "Event" && (group.is_empty() || group == "events.k8s.io");
        if !can("list") || !can("delete") || (event && !(with_events && group.is_empty())) {
            return None;
        }
        Some(Served {
            namespaced: resource.scope.as_deref() == Some("Namespaced"),
            watchable: can("watch"),
            deletes_collections: can("deletecollection"),
            resource: ApiResource {
                group: group.to_owned(),
                version: of_version.clone(),
                api_version: api_version(group, &of_version),
                kind,
                plural: resource.resource.clone()?,
            },
        })
    });
    served.collect()
}

fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn stale_versions_are_told_apart() {
        let resource = |name: &str, verbs: &[&str]| {
            json!({"resource": name, "scope": "Namespaced", "verbs": verbs,
                "responseKind": {"group": "", "version": "", "kind": name.to_uppercase()}})
        };
        let groups = json!([
            {"metadata": {"name": "a"}, "versions": [
                {"version": "v2", "freshness": "Current", "resources": [
                    resource("xs", &["list", "delete", "watch"]), resource("ys", &["list"])]},
                {"version": "v1", "freshness": "Current", "resources": [resource("xs", &["list", "delete"])]}]},
            {"metadata": {"name": "b"}, "versions": [
                {"version": "v1", "freshness": "Stale", "resources": [resource("zs", &["list", "delete"])]}]},
        ]);
        let groups: Vec<APIGroupDiscovery> = serde_json::from_value(groups).unwrap();
        let kinds = kinds(groups, false);
        assert_eq!(kinds.stale, ["b/v1"]);
        let served: Vec<_> = kinds.served.iter().map(|k| (&*k.resource.api_version, &*k.resource.plural)).collect();
        assert_eq!(served, [("a/v2", "xs")]);
        assert!(kinds.served[0].watchable && kinds.served[0].namespaced && !kinds.served[0].deletes_collections);
    }
}
