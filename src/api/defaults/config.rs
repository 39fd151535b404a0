//! Secrets, namespaces, nodes, limits, priorities and the API's own configuration.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{child, fill, fill_zero, get, is_zero, items, made};

/// `stringData` becomes part of `data`, over which it wins.
pub fn secret(secret: &mut Value) {
    fill_zero(secret, "type", "Opaque");
    let plain = secret.as_object_mut().and_then(|secret| secret.remove("stringData"));
    let Some(Value::Object(plain)) = plain else { return };
    if plain.is_empty() {
        return;
    }
    if let Some(data) = made(secret, "data") {
        for (key, text) in plain {
            data[key] = Value::String(STANDARD.encode(text.as_str().unwrap_or_default()));
        }
    }
}

pub fn namespace(namespace: &mut Value) {
    let name = namespace.get("metadata").map(|metadata| get(metadata, "name").clone()).unwrap_or_default();
    if !is_zero(&name)
        && let Some(labels) = made(namespace, "metadata").and_then(|metadata| made(metadata, "labels"))
    {
        labels["kubernetes.io/metadata.name"] = name;
    }
    if let Some(status) = made(namespace, "status") {
        fill_zero(status, "phase", "Active");
    }
}

pub fn node(node: &mut Value) {
    let Some(status) = child(node, "status") else { return };
    let capacity = get(status, "capacity").clone();
    if !capacity.is_null() {
        fill(status, "allocatable", capacity);
    }
}

pub fn limit_range(range: &mut Value) {
    let Some(spec) = child(range, "spec") else { return };
    for limit in items(spec, "limits").filter(|limit| get(limit, "type") == "Container") {
        for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
            let source = get(limit, from).as_object().cloned().unwrap_or_default();
            if source.is_empty() {
                continue;
            }
            if let Some(target) = made(limit, to) {
                for (name, amount) in source {
                    fill(target, &name, amount);
                }
            }
        }
    }
}

pub fn priority_class(class: &mut Value) {
    fill(class, "preemptionPolicy", "PreemptLowerPriority");
}

pub fn token_request(request: &mut Value) {
    if let Some(spec) = made(request, "spec") {
        fill(spec, "expirationSeconds", 3600);
    }
}

pub fn api_service(service: &mut Value) {
    if let Some(reference) = child(service, "spec").and_then(|spec| child(spec, "service")) {
        fill(reference, "port", 443);
    }
}

pub fn custom_resource_definition(definition: &mut Value) {
    let Some(spec) = made(definition, "spec") else { return };
    if let Some(names) = made(spec, "names") {
        let kind = get(names, "kind").as_str().unwrap_or_default().to_owned();
        if !kind.is_empty() {
            fill_zero(names, "singular", kind.to_lowercase());
            fill_zero(names, "listKind", format!("{kind}List"));
        }
    }
    if let Some(conversion) = made(spec, "conversion") {
        fill_zero(conversion, "strategy", "None");
        let client = child(conversion, "webhook").and_then(|webhook| child(webhook, "clientConfig"));
        if let Some(service) = client.and_then(|client| child(client, "service")) {
            fill(service, "port", 443);
        }
    }
}

pub fn flow_schema(schema: &mut Value) {
    if let Some(spec) = made(schema, "spec") {
        fill_zero(spec, "matchingPrecedence", 1000);
    }
}

pub fn priority_level_configuration(level: &mut Value) {
    let Some(spec) = made(level, "spec") else { return };
    if let Some(exempt) = child(spec, "exempt") {
        fill(exempt, "nominalConcurrencyShares", 0);
        fill(exempt, "lendablePercent", 0);
    }
    if let Some(limited) = child(spec, "limited") {
        fill(limited, "nominalConcurrencyShares", 30);
        fill(limited, "lendablePercent", 0);
        if let Some(response) = made(limited, "limitResponse") {
            fill_zero(response, "type", "Reject");
            if get(response, "type") == "Queue"
                && let Some(queuing) = child(response, "queuing")
            {
                for (field, value) in [("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)] {
                    fill_zero(queuing, field, json!(value));
                }
            }
        }
    }
}
