//! Admission webhooks and policies.

use serde_json::{Value, json};

use super::{child, fill, items, made};

pub fn mutating_webhook_configuration(configuration: &mut Value) {
    for webhook in items(configuration, "webhooks") {
        fill(webhook, "reinvocationPolicy", "Never");
        common(webhook);
    }
}

pub fn validating_webhook_configuration(configuration: &mut Value) {
    items(configuration, "webhooks").for_each(common);
}

fn common(webhook: &mut Value) {
    fill(webhook, "failurePolicy", "Fail");
    fill(webhook, "matchPolicy", "Equivalent");
    fill(webhook, "namespaceSelector", json!({}));
    fill(webhook, "objectSelector", json!({}));
    fill(webhook, "timeoutSeconds", 10);
    for rule in items(webhook, "rules") {
        fill(rule, "scope", "*");
    }
    if let Some(service) = child(webhook, "clientConfig").and_then(|client| child(client, "service")) {
        fill(service, "port", 443);
    }
}

fn match_resources(resources: &mut Value) {
    fill(resources, "matchPolicy", "Equivalent");
    fill(resources, "namespaceSelector", json!({}));
    fill(resources, "objectSelector", json!({}));
    for list in ["resourceRules", "excludeResourceRules"] {
        for rule in items(resources, list) {
            fill(rule, "scope", "*");
        }
    }
}

pub fn validating_admission_policy(policy: &mut Value) {
    let Some(spec) = made(policy, "spec") else { return };
    fill(spec, "failurePolicy", "Fail");
    if let Some(resources) = child(spec, "matchConstraints") {
        match_resources(resources);
    }
}

pub fn validating_admission_policy_binding(binding: &mut Value) {
    if let Some(resources) = child(binding, "spec").and_then(|spec| child(spec, "matchResources")) {
        match_resources(resources);
    }
}

pub fn mutating_admission_policy(policy: &mut Value) {
    validating_admission_policy(policy);
}

pub fn mutating_admission_policy_binding(binding: &mut Value) {
    validating_admission_policy_binding(binding);
}
