//! Volumes whose files come from the API: configMap, secret, downwardAPI, and projected, which joins them.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, Container, DownwardAPIVolumeFile, DownwardAPIVolumeSource, KeyToPath, Pod,
    ProjectedVolumeSource, SecretVolumeSource,
};

use super::atomic::{File, Payload};
use super::{Context, VolumeError, Volumes};
use crate::objects::{Kind, ObjectError, Payload as Object};
use crate::{fields, pod};

const MODE: i32 = 0o644;
const TOKEN_SECONDS: i64 = 3600;

fn mode(own: Option<i32>, default: Option<i32>) -> u32 {
    u32::try_from(own.or(default).unwrap_or(MODE)).unwrap_or(0o644) & 0o7777
}

async fn object(
    volumes: &Volumes,
    context: &Context<'_>,
    kind: Kind,
    name: &str,
    optional: bool,
) -> Result<Option<std::sync::Arc<Object>>, VolumeError> {
    let pod = context.pod;
    match volumes.objects.get(pod::uid(pod), kind, pod::namespace(pod), name).await {
        Ok(object) => Ok(Some(object)),
        Err(ObjectError::NotFound { .. }) if optional => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn pick(
    object: &Object,
    items: Option<&Vec<KeyToPath>>,
    default: Option<i32>,
    optional: bool,
    kind: &'static str,
    into: &mut Payload,
) -> Result<(), VolumeError> {
    let file = |data: &Vec<u8>, own| File { data: data.clone(), mode: mode(own, default), owner: None };
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        into.extend(object.data.iter().map(|(key, data)| (key.clone(), file(data, None))));
        return Ok(());
    };
    for item in items {
        match object.data.get(&item.key) {
            Some(data) => {
                into.insert(item.path.clone(), file(data, item.mode));
            }
            None if optional => {}
            None => return Err(VolumeError::Key { kind, key: item.key.clone() }),
        }
    }
    Ok(())
}

pub async fn config_map(
    volumes: &Volumes,
    context: &Context<'_>,
    source: &ConfigMapVolumeSource,
) -> Result<Payload, VolumeError> {
    let mut files = Payload::new();
    let optional = source.optional.unwrap_or(false);
    if let Some(object) = object(volumes, context, Kind::ConfigMap, &source.name, optional).await? {
        pick(&object, source.items.as_ref(), source.default_mode, optional, "config", &mut files)?;
    }
    Ok(files)
}

pub async fn secret(
    volumes: &Volumes,
    context: &Context<'_>,
    source: &SecretVolumeSource,
) -> Result<Payload, VolumeError> {
    let mut files = Payload::new();
    let optional = source.optional.unwrap_or(false);
    let name = source.secret_name.as_deref().unwrap_or_default();
    if let Some(object) = object(volumes, context, Kind::Secret, name, optional).await? {
        pick(&object, source.items.as_ref(), source.default_mode, optional, "secret", &mut files)?;
    }
    Ok(files)
}

pub fn downward(context: &Context<'_>, source: &DownwardAPIVolumeSource) -> Result<Payload, VolumeError> {
    let mut files = Payload::new();
    items(context, source.items.as_deref().unwrap_or_default(), source.default_mode, &mut files)?;
    Ok(files)
}

fn items(
    context: &Context<'_>,
    items: &[DownwardAPIVolumeFile],
    default: Option<i32>,
    into: &mut Payload,
) -> Result<(), VolumeError> {
    let none = Container::default();
    for item in items {
        let text = if let Some(field) = &item.field_ref {
            fields::field(context.pod, &field.field_path, context.facts)?
        } else if let Some(resource) = &item.resource_field_ref {
            fields::resource(context.pod, &none, resource, context.facts)?
        } else {
            continue;
        };
        into.insert(item.path.clone(), File { data: text.into_bytes(), mode: mode(item.mode, default), owner: None });
    }
    Ok(())
}

pub async fn projected(
    volumes: &Volumes,
    context: &Context<'_>,
    source: &ProjectedVolumeSource,
    renew_at: &mut Option<Timestamp>,
) -> Result<Payload, VolumeError> {
    let mut files = Payload::new();
    let default = source.default_mode;
    for part in source.sources.iter().flatten() {
        if let Some(from) = &part.config_map {
            let optional = from.optional.unwrap_or(false);
            if let Some(object) = object(volumes, context, Kind::ConfigMap, &from.name, optional).await? {
                pick(&object, from.items.as_ref(), default, optional, "config", &mut files)?;
            }
        }
        if let Some(from) = &part.secret {
            let optional = from.optional.unwrap_or(false);
            if let Some(object) = object(volumes, context, Kind::Secret, &from.name, optional).await? {
                pick(&object, from.items.as_ref(), default, optional, "secret", &mut files)?;
            }
        }
        if let Some(from) = &part.downward_api {
            items(context, from.items.as_deref().unwrap_or_default(), default, &mut files)?;
        }
        if let Some(from) = &part.service_account_token {
            let audience = from.audience.as_deref().unwrap_or_default();
            let seconds = from.expiration_seconds.unwrap_or(TOKEN_SECONDS);
            let token = volumes.tokens.get(context.pod, audience, seconds, context.now).await?;
            *renew_at = Some(renew_at.map_or(token.renew_at, |t| t.min(token.renew_at)));
            // A token is for the pod's user and its group, where it has them (KEP-1205).
            let owner = single_user(context.pod);
            let narrow = owner.is_some() || super::fs_group(context.pod).is_some();
            let mode = if narrow { 0o600 } else { mode(None, default) };
            files.insert(from.path.clone(), File { data: token.text.into_bytes(), mode, owner });
        }
        if part.cluster_trust_bundle.is_some() || part.pod_certificate.is_some() {
            return Err(VolumeError::Unsupported);
        }
    }
    Ok(files)
}

/// The user that every container of the pod runs as, if the spec says so.
fn single_user(pod: &Pod) -> Option<u32> {
    let spec = pod::spec(pod)?;
    let default = spec.security_context.as_ref().and_then(|s| s.run_as_user);
    let mut users = pod::all_containers(pod)
        .into_iter()
        .map(|c| c.security_context.and_then(|s| s.run_as_user).or(default))
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter();
    match (users.next(), users.next()) {
        (Some(Some(user)), None) => u32::try_from(user).ok(),
        _ => None,
    }
}
