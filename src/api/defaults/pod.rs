//! Pods and pod templates.

use serde_json::{Map, Value};

use super::container::{container, image_pull_policy, requests_from_limits, round_to_milli};
use super::{child, fill, fill_zero, get, is_zero, items, made};
use crate::quantity::Quantity;

const CONTAINER_LISTS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

pub fn pod(pod: &mut Value) {
    let Some(spec) = made(pod, "spec") else { return };
    // Requests follow limits in Pods only: a template may still meet a LimitRange as it was written.
    for list in ["containers", "initContainers"] {
        items(spec, list).for_each(requests_from_limits);
    }
    pod_level_requests(spec);
    fill(spec, "enableServiceLinks", true);
    if get(spec, "hostNetwork").as_bool() == Some(true) {
        for list in ["containers", "initContainers"] {
            for port in items(spec, list).flat_map(|container| items(container, "ports")) {
                let number = get(port, "containerPort").clone();
                fill_zero(port, "hostPort", number);
            }
        }
    }
    pod_spec(spec);
}

/// The kind PodTemplate.
pub fn pod_template(object: &mut Value) {
    template_of(object);
}

/// The `template` of a workload's spec.
pub(super) fn template_of(holder: &mut Value) {
    if let Some(spec) = child(holder, "template").and_then(|template| child(template, "spec")) {
        pod_spec(spec);
    }
}

pub fn pod_spec(spec: &mut Value) {
    fill_zero(spec, "dnsPolicy", "ClusterFirst");
    fill_zero(spec, "restartPolicy", "Always");
    fill_zero(spec, "schedulerName", "default-scheduler");
    fill(spec, "terminationGracePeriodSeconds", 30);
    fill(spec, "securityContext", Map::new());
    // `serviceAccount` is the field's old name; upstream keeps both equal.
    let name = match get(spec, "serviceAccountName") {
        name if is_zero(name) => get(spec, "serviceAccount").clone(),
        name => name.clone(),
    };
    if !is_zero(&name) {
        spec["serviceAccount"] = name.clone();
        spec["serviceAccountName"] = name;
    }
    for list in CONTAINER_LISTS {
        items(spec, list).for_each(container);
    }
    items(spec, "volumes").for_each(volume);
    round_to_milli(spec.get_mut("overhead"));
    if let Some(resources) = child(spec, "resources") {
        for list in ["limits", "requests"] {
            round_to_milli(resources.get_mut(list));
        }
    }
}

/// Pod-level requests where only pod-level limits were given: the sum over containers where they ask for anything, the
/// limit otherwise.
fn pod_level_requests(spec: &mut Value) {
    let limits = get(get(spec, "resources"), "limits").as_object().cloned().unwrap_or_default();
    if limits.is_empty() {
        return;
    }
    let asked = |name: &str| -> Option<Quantity> {
        let request =
            |container: &Value| Quantity::try_from(get(get(get(container, "resources"), "requests"), name)).ok();
        let list = |name: &str| get(spec, name).as_array().into_iter().flatten();
        let sidecar = |container: &Value| get(container, "restartPolicy").as_str() == Some("Always");
        let running: Vec<Quantity> = list("containers").filter_map(request).collect();
        let mut beside = Quantity::ZERO;
        let mut peak: Option<Quantity> = None;
        for container in list("initContainers") {
            let Some(amount) = request(container) else { continue };
            if sidecar(container) {
                beside += amount;
                peak = peak.max(Some(beside));
            } else {
                peak = peak.max(Some(beside + amount));
            }
        }
        let sum = (!running.is_empty()).then(|| running.into_iter().sum::<Quantity>() + beside);
        sum.max(peak)
    };
    let defaults: Vec<(String, Value)> = limits
        .iter()
        .map(|(name, limit)| {
            let sum = asked(name).map(|sum| Value::String(sum.to_string()));
            (name.clone(), sum.unwrap_or_else(|| limit.clone()))
        })
        .collect();
    if let Some(requests) = child(spec, "resources").and_then(|resources| made(resources, "requests")) {
        for (name, amount) in defaults {
            fill(requests, &name, amount);
        }
    }
}

fn volume(volume: &mut Value) {
    let named_only = volume.as_object().is_some_and(|v| v.iter().all(|(key, value)| key == "name" || value.is_null()));
    if named_only {
        volume["emptyDir"] = Value::Object(Map::new());
    }
    for source in ["secret", "configMap", "projected", "downwardAPI"] {
        if let Some(found) = child(volume, source) {
            fill(found, "defaultMode", 0o644);
        }
    }
    if let Some(source) = child(volume, "downwardAPI") {
        downward_items(source);
    }
    if let Some(projected) = child(volume, "projected") {
        for source in items(projected, "sources") {
            if let Some(token) = child(source, "serviceAccountToken") {
                fill(token, "expirationSeconds", 3600);
            }
            if let Some(downward) = child(source, "downwardAPI") {
                downward_items(downward);
            }
            if let Some(certificate) = child(source, "podCertificate") {
                fill(certificate, "maxExpirationSeconds", 86400);
            }
        }
    }
    if let Some(image) = child(volume, "image") {
        let policy = image_pull_policy(get(image, "reference").as_str().unwrap_or_default());
        fill_zero(image, "pullPolicy", policy);
    }
    if let Some(template) = child(volume, "ephemeral").and_then(|source| child(source, "volumeClaimTemplate"))
        && let Some(spec) = child(template, "spec")
    {
        super::storage::claim_spec(spec);
    }
    super::storage::volume_source(volume);
}

fn downward_items(source: &mut Value) {
    for item in items(source, "items") {
        if let Some(field) = child(item, "fieldRef") {
            fill_zero(field, "apiVersion", "v1");
        }
    }
}
