//! Aggregated ClusterRoles: the rules of one are the rules of all that its selectors pick.

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::api::{Patch, PatchParams};
use kube::core::Selector;
use kube::{Api, Client};
use mussel_client::{Change, Informer, WorkQueue};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::Context;
use crate::control::{self, Key, follow, key_of};
use crate::error::{Error, Outcome};
use crate::owner::matches;

pub async fn run(context: Context, stop: CancellationToken) {
    let roles = context.informers.of::<ClusterRole>();
    let client = context.client();
    let queue: WorkQueue<Key> = WorkQueue::new();
    // Any role may be part of any aggregate, and there are few aggregates.
    let wake = || {
        for role in roles.list().iter().filter(|role| role.aggregation_rule.is_some()) {
            queue.add(key_of(&**role));
        }
    };
    let on_role = |change: &Change<ClusterRole>| {
        if let Change::Applied { old: Some(old), new } = change
            && old.rules == new.rules
            && old.metadata.labels == new.metadata.labels
            && old.aggregation_rule == new.aggregation_rule
        {
            return;
        }
        if roles.is_synced() {
            wake();
        }
    };
    tokio::join!(follow(roles.clone(), stop.clone(), on_role, wake), async {
        tokio::select! {
            () = stop.cancelled() => return,
            () = roles.synced() => wake(),
        }
        control::work("clusterroleaggregation", queue.clone(), 1, stop.clone(), |key| {
            reconcile(client.clone(), roles.clone(), key)
        })
        .await;
    });
}

async fn reconcile(client: Client, roles: Informer<ClusterRole>, (_, name): Key) -> Outcome {
    let Some(role) = roles.get("", &name).filter(|role| role.aggregation_rule.is_some()) else { return Ok(None) };
    let all = roles.list();
    let rules = aggregate(&role, all.iter().map(AsRef::as_ref))?;
    if role.rules.as_deref().unwrap_or_default() == rules {
        return Ok(None);
    }
    let api: Api<ClusterRole> = Api::all(client);
    let patch = json!({"metadata": {"resourceVersion": role.metadata.resource_version}, "rules": rules});
    api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(None)
}

fn aggregate<'a>(role: &ClusterRole, all: impl Iterator<Item = &'a ClusterRole>) -> Result<Vec<PolicyRule>, Error> {
    let selectors =
        role.aggregation_rule.as_ref().and_then(|rule| rule.cluster_role_selectors.clone()).unwrap_or_default();
    let selectors: Vec<Selector> = selectors.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
    // In the order of their names, each once: the answer must not depend on who asks when.
    let mut parts: Vec<_> = all
        .filter(|other| other.metadata.name != role.metadata.name)
        .filter(|other| selectors.iter().any(|selector| matches(selector, &other.metadata)))
        .collect();
    parts.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let mut rules: Vec<PolicyRule> = Vec::new();
    for rule in parts.into_iter().flat_map(|part| part.rules.iter().flatten()) {
        if !rules.contains(rule) {
            rules.push(rule.clone());
        }
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selected_roles_are_joined() {
        let role = |name: &str, label: &str, verb: &str| -> ClusterRole {
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {"to": label}},
                "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": [verb]}]}))
            .unwrap()
        };
        let whole: ClusterRole = serde_json::from_value(json!({"metadata": {"name": "view"},
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "view"}}]}}))
        .unwrap();
        let all = [
            role("b", "view", "list"),
            role("a", "view", "get"),
            role("c", "edit", "create"),
            role("d", "view", "get"),
        ];
        let rules = aggregate(&whole, all.iter()).unwrap();
        assert_eq!(rules.iter().map(|r| r.verbs[0].as_str()).collect::<Vec<_>>(), ["get", "list"]);
    }
}
