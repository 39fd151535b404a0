//! The fields that `fieldSelector` knows, kind by kind, beyond metadata.name and metadata.namespace.

use serde_json::Value;

use crate::object::ObjectExt;

pub(super) fn pod(object: &Value, field: &str) -> Option<String> {
    match field {
        "spec.nodeName"
        | "spec.restartPolicy"
        | "spec.schedulerName"
        | "spec.serviceAccountName"
        | "status.phase"
        | "status.podIP"
        | "status.nominatedNodeName" => text(object, field),
        "spec.hostNetwork" => flag(object, field),
        _ => None,
    }
}

pub(super) fn node(object: &Value, field: &str) -> Option<String> {
    (field == "spec.unschedulable").then(|| flag(object, field)).flatten()
}

pub(super) fn namespace(object: &Value, field: &str) -> Option<String> {
    // Upstream knows the name under its short name too.
    match field {
        "status.phase" => text(object, field),
        "name" => Some(object.name().to_owned()),
        _ => None,
    }
}

pub(super) fn secret(object: &Value, field: &str) -> Option<String> {
    (field == "type").then(|| text(object, field)).flatten()
}

/// Core events, with `source` standing for its component, or for the reporting one in newer events.
pub(super) fn event(object: &Value, field: &str) -> Option<String> {
    match field {
        "involvedObject.kind"
        | "involvedObject.namespace"
        | "involvedObject.name"
        | "involvedObject.uid"
        | "involvedObject.apiVersion"
        | "involvedObject.resourceVersion"
        | "involvedObject.fieldPath"
        | "reason"
        | "type" => text(object, field),
        "reportingComponent" => text(object, "reportingComponent"),
        "source" => {
            let source = object.str_at("source.component");
            if source.is_empty() { text(object, "reportingComponent") } else { Some(source.to_owned()) }
        }
        _ => None,
    }
}

/// `events.k8s.io`: other names for the same.
pub(super) fn new_event(object: &Value, field: &str) -> Option<String> {
    match field {
        "reason" | "type" => text(object, field),
        "reportingController" => text(object, field),
        _ => {
            let rest = field.strip_prefix("regarding.")?;
            let known = ["kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath"];
            known.contains(&rest).then(|| text(object, field)).flatten()
        }
    }
}

pub(super) fn replica_set(object: &Value, field: &str) -> Option<String> {
    (field == "status.replicas").then(|| number(object, field)).flatten()
}

pub(super) fn job(object: &Value, field: &str) -> Option<String> {
    (field == "status.successful").then(|| number(object, "status.succeeded")).flatten()
}

pub(super) fn certificate_signing_request(object: &Value, field: &str) -> Option<String> {
    (field == "spec.signerName").then(|| text(object, field)).flatten()
}

pub(super) fn api_service(object: &Value, field: &str) -> Option<String> {
    match field {
        "spec.group" | "spec.version" => text(object, field),
        _ => None,
    }
}

pub(super) fn resource_slice(object: &Value, field: &str) -> Option<String> {
    match field {
        "spec.nodeName" | "spec.driver" => text(object, field),
        _ => None,
    }
}

fn text(object: &Value, field: &str) -> Option<String> {
    Some(object.str_at(field).to_owned())
}

fn flag(object: &Value, field: &str) -> Option<String> {
    Some(object.at(field).and_then(Value::as_bool).unwrap_or_default().to_string())
}

fn number(object: &Value, field: &str) -> Option<String> {
    Some(object.at(field).and_then(Value::as_i64).unwrap_or_default().to_string())
}
