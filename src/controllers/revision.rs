//! ControllerRevisions: the templates that DaemonSets and StatefulSets had, for `rollout history` and `undo`.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::error::{Error, is_already_exists};

/// A strategic merge patch that brings this template back; kubectl applies it as it is.
pub fn template_patch(template: &PodTemplateSpec) -> Result<Value, Error> {
    let mut template = serde_json::to_value(template)?;
    template["$patch"] = json!("replace");
    Ok(json!({"spec": {"template": template}}))
}

fn data(revision: &ControllerRevision) -> Value {
    revision.data.as_ref().map(|data| data.0.clone()).unwrap_or_default()
}

/// The revision with this data, as the newest of its history.
pub async fn ensure(
    client: &Client,
    history: &[Arc<ControllerRevision>],
    wanted: Value,
    meta: ObjectMeta,
) -> Result<Arc<ControllerRevision>, Error> {
    let api: Api<ControllerRevision> = Api::namespaced(client.clone(), meta.namespace.as_deref().unwrap_or_default());
    let newest = history.iter().map(|revision| revision.revision).max().unwrap_or(0);
    let equal = history.iter().filter(|revision| data(revision) == wanted).max_by_key(|revision| revision.revision);
    if let Some(equal) = equal {
        if equal.revision == newest {
            return Ok(equal.clone());
        }
        // Rolled back: the old template is the newest again.
        let mut renewed = (**equal).clone();
        renewed.revision = newest + 1;
        let name = renewed.metadata.name.clone().unwrap_or_default();
        return Ok(Arc::new(api.replace(&name, &PostParams::default(), &renewed).await?));
    }
    let name = meta.name.clone().unwrap_or_default();
    let made = ControllerRevision { metadata: meta, data: Some(RawExtension(wanted.clone())), revision: newest + 1 };
    match api.create(&PostParams::default(), &made).await {
        Ok(made) => Ok(Arc::new(made)),
        Err(error) if is_already_exists(&error) => {
            let existing = api.get(&name).await?;
            if data(&existing) == wanted { Ok(Arc::new(existing)) } else { Err(error.into()) }
        }
        Err(error) => Err(error.into()),
    }
}
