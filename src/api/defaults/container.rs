//! Containers: pull policy, probes, ports, hooks, resources.

use serde_json::Value;

use super::{child, fill, fill_zero, get, items};
use crate::quantity::Quantity;

pub(super) fn container(container: &mut Value) {
    let policy = image_pull_policy(get(container, "image").as_str().unwrap_or_default());
    fill_zero(container, "imagePullPolicy", policy);
    fill_zero(container, "terminationMessagePath", "/dev/termination-log");
    fill_zero(container, "terminationMessagePolicy", "File");
    // A plain struct upstream, so that it is always there.
    fill(container, "resources", Value::Object(Default::default()));
    for port in items(container, "ports") {
        fill_zero(port, "protocol", "TCP");
    }
    for env in items(container, "env") {
        if let Some(source) = child(env, "valueFrom") {
            if let Some(field) = child(source, "fieldRef") {
                fill_zero(field, "apiVersion", "v1");
            }
            if let Some(file) = child(source, "fileKeyRef") {
                fill(file, "optional", false);
            }
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(found) = child(container, name) {
            probe(found);
        }
    }
    if let Some(lifecycle) = child(container, "lifecycle") {
        for name in ["postStart", "preStop"] {
            if let Some(http) = child(lifecycle, name).and_then(|hook| child(hook, "httpGet")) {
                http_get(http);
            }
        }
    }
    if let Some(resources) = child(container, "resources") {
        for list in ["limits", "requests"] {
            round_to_milli(resources.get_mut(list));
        }
    }
}

/// `Always` for images whose tag is or defaults to `latest`.
pub fn image_pull_policy(image: &str) -> &'static str {
    let last = image.rsplit('/').next().unwrap_or_default();
    let (name, digest) = last.split_once('@').map_or((last, None), |(name, digest)| (name, Some(digest)));
    let latest = match name.split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => digest.is_none(),
    };
    if latest && !image.is_empty() { "Always" } else { "IfNotPresent" }
}

fn probe(probe: &mut Value) {
    fill_zero(probe, "timeoutSeconds", 1);
    fill_zero(probe, "periodSeconds", 10);
    fill_zero(probe, "successThreshold", 1);
    fill_zero(probe, "failureThreshold", 3);
    if let Some(http) = child(probe, "httpGet") {
        http_get(http);
    }
    if let Some(grpc) = child(probe, "grpc") {
        fill(grpc, "service", "");
    }
}

fn http_get(http: &mut Value) {
    fill_zero(http, "path", "/");
    fill_zero(http, "scheme", "HTTP");
}

/// Resource lists are kept to thousandths, rounded up.
pub(super) fn round_to_milli(list: Option<&mut Value>) {
    for amount in list.and_then(Value::as_object_mut).into_iter().flat_map(|list| list.values_mut()) {
        if let Ok(quantity) = Quantity::try_from(&*amount)
            && !quantity.is_whole_milli()
        {
            *amount = Value::String(Quantity::from_milli(quantity.to_milli()).to_string());
        }
    }
}

/// A resource that has a limit and no request is requested at its limit.
pub(super) fn requests_from_limits(container: &mut Value) {
    let Some(resources) = child(container, "resources") else { return };
    let Some(limits) = get(resources, "limits").as_object().cloned() else { return };
    if limits.is_empty() {
        return;
    }
    if let Some(requests) = super::made(resources, "requests") {
        for (name, limit) in limits {
            fill(requests, &name, limit);
        }
    }
}
