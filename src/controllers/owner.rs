//! Who owns what: controller references, adoption of orphans, release of what no longer matches.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::core::{Selector, SelectorExt};
use kube::{Api, Client, Resource};
use mussel_client::informer::Kind;
use serde_json::json;

use crate::control::Key;
use crate::error::{Error, is_not_found};

/// The object a pass is about, as owner of others.
#[derive(Clone, Debug)]
pub struct Owner {
    pub api_version: String,
    pub kind: String,
    pub plural: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub deleting: bool,
}

impl Owner {
    pub fn of<K: Resource<DynamicType = ()>>(object: &K) -> Self {
        let meta = object.meta();
        Self {
            api_version: K::api_version(&()).into_owned(),
            kind: K::kind(&()).into_owned(),
            plural: K::plural(&()).into_owned(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
        }
    }

    pub fn reference(&self) -> OwnerReference {
        OwnerReference {
            api_version: self.api_version.clone(),
            kind: self.kind.clone(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }
    }

    /// Asks the server, not the informer: adopting for an owner that is being deleted would undo its orphaning.
    async fn may_adopt(&self, client: &Client) -> Result<bool, Error> {
        let (group, version) = self.api_version.split_once('/').unwrap_or(("", &self.api_version));
        let resource =
            ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, &self.kind), &self.plural);
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &self.namespace, &resource);
        let live = api.get_metadata_opt(&self.name).await?;
        Ok(live.is_some_and(|live| {
            live.metadata.uid.as_deref() == Some(&self.uid) && live.metadata.deletion_timestamp.is_none()
        }))
    }
}

pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.as_ref()?.iter().find(|reference| reference.controller == Some(true))
}

/// Where the controller of that kind is, if it has one.
pub fn controlled_by(meta: &ObjectMeta, kind: &str) -> Option<Key> {
    let owner = controller_of(meta).filter(|owner| owner.kind == kind)?;
    Some((meta.namespace.clone().unwrap_or_default(), owner.name.clone()))
}

pub fn is_controlled_by(meta: &ObjectMeta, uid: &str) -> bool {
    controller_of(meta).is_some_and(|reference| reference.uid == uid)
}

pub fn matches(selector: &Selector, meta: &ObjectMeta) -> bool {
    match &meta.labels {
        Some(labels) => selector.matches(labels),
        None => selector.matches(&BTreeMap::new()),
    }
}

/// The objects among `candidates` that `owner` controls, after adopting matching orphans that `adoptable` lets through
/// and releasing what does not match any more.
pub async fn claim<K>(
    client: &Client,
    owner: &Owner,
    selector: &Selector,
    candidates: Vec<Arc<K>>,
    adoptable: impl Fn(&K) -> bool,
) -> Result<Vec<Arc<K>>, Error>
where
    K: Kind + Resource<Scope = NamespaceResourceScope>,
{
    let mut claimed = Vec::new();
    let mut may_adopt = None;
    let api: Api<K> = Api::namespaced(client.clone(), &owner.namespace);
    for object in candidates {
        let meta = object.meta();
        let name = meta.name.as_deref().unwrap_or_default();
        match controller_of(meta) {
            Some(reference) if reference.uid != owner.uid => {}
            Some(_) if matches(selector, meta) => claimed.push(object),
            Some(_) if owner.deleting || meta.deletion_timestamp.is_some() => {}
            Some(_) => {
                let patch = json!({"metadata": {"uid": meta.uid, "ownerReferences": [
                    {"$patch": "delete", "uid": owner.uid}]}});
                match api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                    Ok(_) => {}
                    Err(error) if is_not_found(&error) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            None if owner.deleting || meta.deletion_timestamp.is_some() => {}
            None if matches(selector, meta) && adoptable(&object) => {
                if may_adopt.is_none() {
                    may_adopt = Some(owner.may_adopt(client).await?);
                }
                if may_adopt != Some(true) {
                    continue;
                }
                let patch = json!({"metadata": {"uid": meta.uid, "ownerReferences": [owner.reference()]}});
                match api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                    Ok(adopted) => claimed.push(Arc::new(adopted)),
                    Err(error) if is_not_found(&error) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            None => {}
        }
    }
    Ok(claimed)
}
