//! Which PersistentVolume does for which PersistentVolumeClaim: what the binder and the scheduler must agree on.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::quantity::Quantity;
use crate::selector::LabelSelector;

/// The claim and its volume know each other.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// The older way to name a class.
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";

pub fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// The class that the claim names; `None` also for the empty one.
pub fn class_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    annotation(&claim.metadata, CLASS)
        .or_else(|| claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref()))
        .filter(|name| !name.is_empty())
}

/// Bytes.
pub fn requested(claim: &PersistentVolumeClaim) -> i64 {
    let requests = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    let storage = requests.and_then(|requests| requests.get("storage"));
    storage.and_then(|storage| Quantity::try_from(storage).ok()).map_or(0, |storage| storage.value())
}

/// Bytes.
pub fn capacity(volume: &PersistentVolume) -> i64 {
    let capacity = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()?.get("storage"));
    capacity.and_then(|capacity| Quantity::try_from(capacity).ok()).map_or(0, |capacity| capacity.value())
}

/// The volume was set aside for the claim.
pub fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let owner = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    owner.is_some_and(|owner| {
        owner.namespace == claim.metadata.namespace
            && owner.name == claim.metadata.name
            && (owner.uid.as_deref().is_none_or(str::is_empty) || owner.uid == claim.metadata.uid)
    })
}

/// The volume is free, or set aside for the claim, and is all that the claim wants. `labels` is the claim's selector.
pub fn suits(volume: &PersistentVolume, claim: &PersistentVolumeClaim, labels: &LabelSelector) -> bool {
    let (Some(has), Some(wants)) = (&volume.spec, &claim.spec) else { return false };
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    let free = volume.metadata.deletion_timestamp.is_none()
        && matches!(phase, "" | "Pending" | "Available")
        && (has.claim_ref.is_none() || is_for(volume, claim));
    let class = annotation(&volume.metadata, CLASS).or(has.storage_class_name.as_deref()).unwrap_or_default();
    let mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".to_owned());
    let modes = has.access_modes.as_deref().unwrap_or_default();
    free && class == class_name(claim).unwrap_or_default()
        && mode(&has.volume_mode) == mode(&wants.volume_mode)
        && wants.access_modes.iter().flatten().all(|wanted| modes.contains(wanted))
        && has.volume_attributes_class_name == wants.volume_attributes_class_name
        && capacity(volume) >= requested(claim)
        && labels.matches_map(volume.metadata.labels.as_ref().unwrap_or(&BTreeMap::new()))
}

pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    let named = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).is_some_and(|name| !name.is_empty());
    named && (annotation(&claim.metadata, BIND_COMPLETED).is_some() || phase(claim) == "Bound")
}

pub fn phase(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}
