//! Deleted namespaces: empties them of every kind of object, then lets them go.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, DynamicObject, ListParams, PostParams};
use kube::{Api, Client};
use mussel_client::{Change, Informer, WorkQueue};
use tokio_util::sync::CancellationToken;

use crate::Context;
use crate::control::{self, Key, follow, follow_keys, queue_all};
use crate::discovery::{Kinds, Served, deletable};
use crate::error::{Error, Outcome, gone_is_fine, is_not_found, text};

const FINALIZER: &str = "kubernetes";
/// Pods among the remains.
const PODS: &str = "pods.";
/// Waits between looks at a namespace whose objects have not gone yet. Pods wake us; other finalizers do not.
const LOOK_FIRST: Duration = Duration::from_millis(50);
const LOOK_MAX: Duration = Duration::from_secs(15);

struct Controller {
    client: Client,
    namespaces: Informer<Namespace>,
    looks: Mutex<HashMap<String, u32>>,
}

/// What is left of a namespace's content.
#[derive(Debug, Default)]
struct Remains {
    /// Per resource, as `pods.` or `deployments.apps`.
    resources: BTreeMap<String, usize>,
    finalizers: BTreeMap<String, usize>,
    discovery_failure: Option<String>,
    deletion_failures: Vec<String>,
}

pub async fn run(context: Context, stop: CancellationToken) {
    let namespaces = context.informers.of::<Namespace>();
    let pods = context.informers.of::<Pod>();
    let queue = WorkQueue::new();
    let controller = Controller { client: context.client(), namespaces: namespaces.clone(), looks: Mutex::default() };
    let on_pod = |change: &Change<Pod>| {
        let Change::Deleted(pod) = change else { return };
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let going = namespaces.get("", &namespace).is_some_and(|n| n.metadata.deletion_timestamp.is_some());
        if going {
            queue.add((String::new(), namespace));
        }
    };
    let resync = || queue_all(&namespaces, &queue);
    tokio::join!(
        follow_keys(namespaces.clone(), queue.clone(), stop.clone()),
        follow(pods.clone(), stop.clone(), on_pod, resync),
        async {
            tokio::select! {
                () = stop.cancelled() => return,
                () = namespaces.synced() => (),
            }
            control::work("namespace", queue.clone(), 5, stop.clone(), |key| controller.reconcile(key)).await;
        },
    );
}

impl Controller {
    fn looks(&self) -> std::sync::MutexGuard<'_, HashMap<String, u32>> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn reconcile(&self, (_, name): Key) -> Outcome {
        let known = self.namespaces.get("", &name).filter(|n| n.metadata.deletion_timestamp.is_some());
        if known.is_none() {
            self.looks().remove(&name);
            return Ok(None);
        }
        let api: Api<Namespace> = Api::all(self.client.clone());
        let Some(mut namespace) = api.get_opt(&name).await? else { return Ok(None) };
        if namespace.metadata.deletion_timestamp.is_none() {
            return Ok(None);
        }
        if namespace.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Terminating") {
            namespace.status.get_or_insert_default().phase = Some("Terminating".to_owned());
            namespace = api.replace_status(&name, &PostParams::default(), &namespace).await?;
        }
        if !has_finalizer(&namespace) {
            return Ok(None);
        }
        let remains = self.empty(&name).await;
        let conditions = conditions(&remains, &namespace);
        let status = namespace.status.get_or_insert_default();
        if status.conditions.as_ref() != Some(&conditions) {
            status.conditions = Some(conditions);
            namespace = match api.replace_status(&name, &PostParams::default(), &namespace).await {
                Ok(namespace) => namespace,
                Err(error) if is_not_found(&error) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
        }
        if remains.is_empty() {
            if let Some(list) = namespace.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
                list.retain(|finalizer| finalizer != FINALIZER);
            }
            let done = api.replace_subresource("finalize", &name, &PostParams::default(), &namespace).await;
            self.looks().remove(&name);
            gone_is_fine(done)?;
            return Ok(None);
        }
        let mut looks = self.looks();
        let look = looks.entry(name).or_insert(0);
        let wait = LOOK_FIRST.saturating_mul(1 << (*look).min(12)).min(LOOK_MAX);
        *look += 1;
        Ok(Some(wait))
    }

    async fn empty(&self, namespace: &str) -> Remains {
        let mut remains = Remains::default();
        let Kinds { served, stale } = match deletable(&self.client, true).await {
            Ok(kinds) => kinds,
            Err(error) => {
                remains.discovery_failure = Some(error.to_string());
                return remains;
            }
        };
        // What can be emptied is; but the namespace stays, as long as there may be more in it.
        remains.discovery_failure = stale_groups(&stale);
        // Pods go first, and all else only after them (KEP-5080): a policy or a Secret must not be taken from under them.
        let is_pods = |kind: &Served| kind.resource.group.is_empty() && kind.resource.plural == "pods";
        let (pods, rest): (Vec<_>, Vec<_>) =
            served.iter().filter(|kind| kind.namespaced).partition(|kind| is_pods(kind));
        for kind in pods.into_iter().chain(rest) {
            if !is_pods(kind) && remains.resources.contains_key(PODS) {
                break;
            }
            if let Err(error) = self.empty_of(namespace, kind, &mut remains).await {
                let message = match &error {
                    Error::Api(error) => text(error),
                    other => other.to_string(),
                };
                remains.deletion_failures.push(message);
            }
        }
        remains
    }

    async fn empty_of(&self, namespace: &str, kind: &Served, remains: &mut Remains) -> Result<(), Error> {
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &kind.resource);
        // Look first: most kinds have nothing in most namespaces, and a read is no write.
        let mut list = api.list_metadata(&ListParams::default()).await?.items;
        if list.is_empty() {
            return Ok(());
        }
        let params = DeleteParams::background();
        if kind.deletes_collections {
            gone_is_fine(api.delete_collection(&params, &ListParams::default()).await)?;
        } else {
            for object in list.iter().filter(|object| object.metadata.deletion_timestamp.is_none()) {
                gone_is_fine(api.delete(object.metadata.name.as_deref().unwrap_or_default(), &params).await)?;
            }
        }
        list = api.list_metadata(&ListParams::default()).await?.items;
        if !list.is_empty() {
            let (group, plural) = (&kind.resource.group, &kind.resource.plural);
            remains.resources.insert(format!("{plural}.{group}"), list.len());
        }
        for finalizer in list.iter().flat_map(|object| object.metadata.finalizers.iter().flatten()) {
            *remains.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
        Ok(())
    }
}

/// In the words of upstream's client, about group versions whose servers are away.
fn stale_groups(stale: &[String]) -> Option<String> {
    let each: Vec<String> = stale.iter().map(|name| format!("{name}: stale GroupVersion discovery: {name}")).collect();
    let told = each.join(", ");
    (!stale.is_empty()).then(|| format!("unable to retrieve the complete list of server APIs: {told}"))
}

impl Remains {
    fn is_empty(&self) -> bool {
        self.resources.is_empty() && self.discovery_failure.is_none() && self.deletion_failures.is_empty()
    }
}

fn has_finalizer(namespace: &Namespace) -> bool {
    namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_ref()).is_some_and(|f| f.iter().any(|f| f == FINALIZER))
}

fn conditions(remains: &Remains, namespace: &Namespace) -> Vec<NamespaceCondition> {
    let listed = |map: &BTreeMap<String, usize>, words: &str| {
        map.iter()
            .map(|(name, count)| format!("{name}{words}{count} resource instances"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let failures = (!remains.deletion_failures.is_empty()).then(|| {
        format!(
            "Failed to delete all resource types, {} remaining: {}",
            remains.deletion_failures.len(),
            remains.deletion_failures.join(", ")
        )
    });
    let resources = (!remains.resources.is_empty())
        .then(|| format!("Some resources are remaining: {}", listed(&remains.resources, " has ")));
    let finalizers = (!remains.finalizers.is_empty()).then(|| {
        format!("Some content in the namespace has finalizers remaining: {}", listed(&remains.finalizers, " in "))
    });
    let discovery =
        remains.discovery_failure.clone().map(|e| format!("Discovery failed for some groups, 1 failing: {e}"));
    let rows = [
        (
            "NamespaceDeletionDiscoveryFailure",
            discovery,
            "DiscoveryFailed",
            "ResourcesDiscovered",
            "All resources successfully discovered",
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            "",
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        (
            "NamespaceDeletionContentFailure",
            failures,
            "ContentDeletionFailed",
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        (
            "NamespaceContentRemaining",
            resources,
            "SomeResourcesRemain",
            "ContentRemoved",
            "All content successfully removed",
        ),
        (
            "NamespaceFinalizersRemaining",
            finalizers,
            "SomeFinalizersRemain",
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished",
        ),
    ];
    let old = namespace.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    rows.into_iter()
        .map(|(type_, bad, bad_reason, good_reason, good)| {
            let status = if bad.is_some() { "True" } else { "False" };
            let reason = if bad.is_some() { bad_reason } else { good_reason };
            let before = old.iter().find(|c| c.type_ == type_ && c.status == status);
            NamespaceCondition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(bad.unwrap_or_else(|| good.to_owned())),
                last_transition_time: before
                    .and_then(|c| c.last_transition_time.clone())
                    .or_else(|| Some(Time(Timestamp::now()))),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_say_what_remains() {
        let mut remains = Remains::default();
        remains.resources.insert("pods.".to_owned(), 2);
        let conditions = conditions(&remains, &Namespace::default());
        assert_eq!(conditions.len(), 5);
        assert_eq!(conditions[3].status, "True");
        assert_eq!(
            conditions[3].message.as_deref(),
            Some("Some resources are remaining: pods. has 2 resource instances")
        );
        assert_eq!(conditions[0].status, "False");
    }

    #[test]
    fn a_namespace_waits_for_servers_that_are_away() {
        let remains = Remains { discovery_failure: stale_groups(&["a.b/v1".to_owned()]), ..Remains::default() };
        assert!(!remains.is_empty());
        let conditions = conditions(&remains, &Namespace::default());
        assert_eq!(conditions[0].reason.as_deref(), Some("DiscoveryFailed"));
        assert_eq!(
            conditions[0].message.as_deref(),
            Some(
                "Discovery failed for some groups, 1 failing: unable to retrieve the complete list of server APIs: \
                 a.b/v1: stale GroupVersion discovery: a.b/v1"
            )
        );
        assert_eq!(stale_groups(&[]), None);
    }
}
