//! Bringing a manifest's objects into the cluster, by server-side apply.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::discovery::{Scope, pinned_kind};
use kube::error::DiscoveryError;
use kube::runtime::wait::{await_condition, conditions};
use mussel_api::object::ObjectExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::manifest::{Manifest, ManifestError};

const MANAGER: &str = "mussel-addon";
/// How long a definition may take to be in force: moments, if there is nothing wrong with it.
const ESTABLISH_TIME: Duration = Duration::from_secs(10);
const NAMESPACE: &str = "kube-system";

#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("find out how {kind} of {api_version} is served")]
    Discover { kind: String, api_version: String, source: kube::Error },
    #[error("apply {kind} {name}")]
    Apply { kind: String, name: String, source: kube::Error },
    #[error("delete {kind} {name}, which the manifest no longer holds")]
    Delete { kind: String, name: String, source: kube::Error },
    #[error("keep the list of the manifest's objects")]
    Record(#[source] kube::Error),
}

/// An object as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Brought {
    api_version: String,
    kind: String,
    namespace: String,
    name: String,
}

pub struct Applier {
    client: kube::Client,
    /// Kinds looked up already: how they are served does not change under way.
    served: BTreeMap<(String, String), (ApiResource, Scope)>,
}

impl Applier {
    pub fn new(client: kube::Client) -> Self {
        Self { client, served: BTreeMap::new() }
    }

    pub async fn apply(&mut self, manifest: &Manifest) -> Result<(), ApplyError> {
        // A definition may be another one by now.
        self.served.clear();
        let known = self.recorded(&manifest.name).await?;
        let mut brought = Vec::new();
        for object in &manifest.objects {
            brought.push(self.apply_object(object).await?);
            if object.kind() == "CustomResourceDefinition" {
                self.wait_for_kind(object.name()).await;
            }
        }
        for gone in known.iter().filter(|known| !brought.contains(known)) {
            self.delete(gone).await?;
        }
        self.record(&manifest.name, &brought).await
    }

    /// Deletes all that the manifest of this name brought.
    pub async fn remove_all(&mut self, name: &str) -> Result<(), ApplyError> {
        let known = self.recorded(name).await?;
        if known.is_empty() {
            return Ok(());
        }
        for gone in known.iter().rev() {
            self.delete(gone).await?;
        }
        self.record(name, &[]).await
    }

    async fn apply_object(&mut self, object: &Value) -> Result<Brought, ApplyError> {
        let (kind, name) = (object.kind().to_owned(), object.name().to_owned());
        let (resource, scope) = self.served(object.api_version(), &kind).await?;
        let namespace = match (scope, object.namespace()) {
            (Scope::Cluster, _) => "",
            (Scope::Namespaced, "") => "default",
            (Scope::Namespaced, namespace) => namespace,
        };
        let api = self.api(&resource, namespace);
        let result = api.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(object)).await;
        result.map_err(|source| ApplyError::Apply { kind: kind.clone(), name: name.clone(), source })?;
        Ok(Brought { api_version: object.api_version().to_owned(), kind, namespace: namespace.to_owned(), name })
    }

    /// Gives a new definition the moment it needs to be in force, since its objects may be next in the file.
    async fn wait_for_kind(&self, crd: &str) {
        let api: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        let established = await_condition(api, crd, conditions::is_crd_established());
        // One that is not: its objects cannot be applied, and that is told then.
        let _ = tokio::time::timeout(ESTABLISH_TIME, established).await;
    }

    async fn delete(&mut self, gone: &Brought) -> Result<(), ApplyError> {
        let (resource, _) = match self.served(&gone.api_version, &gone.kind).await {
            // Gone with its kind.
            Err(ApplyError::Discover { source: kube::Error::Api(status), .. }) if status.code == 404 => return Ok(()),
            Err(ApplyError::Discover { source: kube::Error::Discovery(DiscoveryError::MissingKind(_)), .. }) => {
                return Ok(());
            }
            served => served?,
        };
        match self.api(&resource, &gone.namespace).delete(&gone.name, &DeleteParams::background()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(source) => Err(ApplyError::Delete { kind: gone.kind.clone(), name: gone.name.clone(), source }),
            Ok(_) => Ok(()),
        }
    }

    fn api(&self, resource: &ApiResource, namespace: &str) -> Api<DynamicObject> {
        match namespace {
            "" => Api::all_with(self.client.clone(), resource),
            namespace => Api::namespaced_with(self.client.clone(), namespace, resource),
        }
    }

    async fn served(&mut self, api_version: &str, kind: &str) -> Result<(ApiResource, Scope), ApplyError> {
        let key = (api_version.to_owned(), kind.to_owned());
        if let Some((resource, scope)) = self.served.get(&key) {
            return Ok((resource.clone(), scope.clone()));
        }
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let gvk = GroupVersionKind::gvk(group, version, kind);
        let (resource, capabilities) = pinned_kind(&self.client, &gvk).await.map_err(|source| {
            ApplyError::Discover { kind: kind.to_owned(), api_version: api_version.to_owned(), source }
        })?;
        self.served.insert(key, (resource.clone(), capabilities.scope.clone()));
        Ok((resource, capabilities.scope))
    }

    async fn recorded(&self, name: &str) -> Result<Vec<Brought>, ApplyError> {
        let record = self.records().get_opt(&record_name(name)).await.map_err(ApplyError::Record)?;
        let text = record.and_then(|record| record.data?.remove("objects")).unwrap_or_default();
        // A record that somebody broke is as good as none: nothing is deleted on its word.
        Ok(serde_json::from_str(&text).unwrap_or_default())
    }

    async fn record(&self, name: &str, brought: &[Brought]) -> Result<(), ApplyError> {
        let objects = serde_json::to_string(brought).unwrap_or_default();
        let record = ConfigMap {
            metadata: ObjectMeta {
                name: Some(record_name(name)),
                namespace: Some(NAMESPACE.into()),
                ..Default::default()
            },
            data: Some([("objects".to_owned(), objects)].into()),
            ..Default::default()
        };
        let params = PatchParams::apply(MANAGER).force();
        self.records().patch(&record_name(name), &params, &Patch::Apply(&record)).await.map_err(ApplyError::Record)?;
        Ok(())
    }

    fn records(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }
}

fn record_name(addon: &str) -> String {
    format!("mussel-addon-{addon}")
}
