//! The kinds that keep pods running.

use serde_json::{Map, Value};

use super::pod::template_of;
use super::{fill, fill_zero, get, is_zero, items, made};

pub fn deployment(deployment: &mut Value) {
    let Some(spec) = made(deployment, "spec") else { return };
    fill(spec, "replicas", 1);
    fill(spec, "revisionHistoryLimit", 10);
    fill(spec, "progressDeadlineSeconds", 600);
    if let Some(strategy) = made(spec, "strategy") {
        fill_zero(strategy, "type", "RollingUpdate");
        if get(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = made(strategy, "rollingUpdate")
        {
            fill(rolling, "maxUnavailable", "25%");
            fill(rolling, "maxSurge", "25%");
        }
    }
    template_of(spec);
}

pub fn replica_set(set: &mut Value) {
    let Some(spec) = made(set, "spec") else { return };
    fill(spec, "replicas", 1);
    template_of(spec);
}

pub fn replication_controller(controller: &mut Value) {
    let labels = controller
        .get("spec")
        .and_then(|spec| spec.get("template")?.get("metadata")?.get("labels"))
        .filter(|labels| !is_zero(labels))
        .cloned();
    if let Some(labels) = labels {
        if let Some(spec) = made(controller, "spec") {
            fill_zero(spec, "selector", labels.clone());
        }
        if let Some(metadata) = made(controller, "metadata") {
            fill_zero(metadata, "labels", labels);
        }
    }
    let Some(spec) = made(controller, "spec") else { return };
    fill(spec, "replicas", 1);
    template_of(spec);
}

pub fn daemon_set(set: &mut Value) {
    let Some(spec) = made(set, "spec") else { return };
    fill(spec, "revisionHistoryLimit", 10);
    if let Some(strategy) = made(spec, "updateStrategy") {
        fill_zero(strategy, "type", "RollingUpdate");
        if get(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = made(strategy, "rollingUpdate")
        {
            fill(rolling, "maxUnavailable", 1);
            fill(rolling, "maxSurge", 0);
        }
    }
    template_of(spec);
}

pub fn stateful_set(set: &mut Value) {
    let Some(spec) = made(set, "spec") else { return };
    fill(spec, "replicas", 1);
    fill(spec, "revisionHistoryLimit", 10);
    fill_zero(spec, "podManagementPolicy", "OrderedReady");
    if let Some(strategy) = made(spec, "updateStrategy") {
        fill_zero(strategy, "type", "RollingUpdate");
        if get(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = made(strategy, "rollingUpdate")
        {
            fill(rolling, "partition", 0);
        }
    }
    if let Some(policy) = made(spec, "persistentVolumeClaimRetentionPolicy") {
        fill_zero(policy, "whenDeleted", "Retain");
        fill_zero(policy, "whenScaled", "Retain");
    }
    for claim in items(spec, "volumeClaimTemplates") {
        fill(claim, "metadata", Map::new());
        super::storage::persistent_volume_claim(claim);
        fill_zero(claim, "apiVersion", "v1");
        fill_zero(claim, "kind", "PersistentVolumeClaim");
    }
    template_of(spec);
}
