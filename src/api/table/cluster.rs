//! Nodes, namespaces, events, quotas: the cluster itself.

use jiff::Timestamp;
use serde_json::Value;

use super::age;
use super::column::{AGE, CREATED_AT, NAME, Printer, integer, text as column};
use super::text::{self, NONE, condition, list, number};
use crate::object::ObjectExt;

const ROLE_PREFIX: &str = "node-role.kubernetes.io/";

pub(super) fn printer(kind: &str) -> Option<&'static Printer> {
    Some(match kind {
        "Node" => &NODE,
        "Namespace" => &NAMESPACE,
        "Event" => &EVENT,
        "ResourceQuota" => &QUOTA,
        "LimitRange" => &LIMIT_RANGE,
        "ComponentStatus" => &COMPONENT_STATUS,
        _ => return None,
    })
}

static NODE: Printer = Printer {
    columns: &[
        NAME,
        column("Status", "The status of the node"),
        column("Roles", "The roles of the node"),
        AGE,
        column("Version", "Version of the kubelet."),
        column("Internal-IP", "Address in the cluster's network.").wide(),
        column("External-IP", "Address outside.").wide(),
        column("OS-Image", "Operating system of the node.").wide(),
        column("Kernel-Version", "Kernel of the node.").wide(),
        column("Container-Runtime", "Runtime of the node, and its version.").wide(),
    ],
    cells: |node, now| {
        vec![
            text::name(node),
            node_status(node).into(),
            node_roles(node).into(),
            age::of(node, now),
            node.str_at("status.nodeInfo.kubeletVersion").into(),
            node_address(node, "InternalIP").into(),
            node_address(node, "ExternalIP").into(),
            text::or(node, "status.nodeInfo.osImage", "<unknown>").into(),
            text::or(node, "status.nodeInfo.kernelVersion", "<unknown>").into(),
            text::or(node, "status.nodeInfo.containerRuntimeVersion", "<unknown>").into(),
        ]
    },
};

fn node_status(node: &Value) -> String {
    let ready = match condition(node, "Ready") {
        "" => "Unknown",
        "True" => "Ready",
        _ => "NotReady",
    };
    let cordoned = if text::flag(node, "spec.unschedulable") { ",SchedulingDisabled" } else { "" };
    format!("{ready}{cordoned}")
}

fn node_roles(node: &Value) -> String {
    let labels = node.labels().into_iter().flatten();
    let mut roles: Vec<&str> = labels
        .filter_map(|(key, value)| match key.strip_prefix(ROLE_PREFIX) {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() { NONE.to_owned() } else { roles.join(",") }
}

fn node_address<'a>(node: &'a Value, ty: &str) -> &'a str {
    let addresses = list(node, "status.addresses");
    addresses.iter().find(|a| a.str_at("type") == ty).map_or(NONE, |a| a.str_at("address"))
}

static NAMESPACE: Printer = Printer {
    columns: &[NAME, column("Status", "The status of the namespace"), AGE],
    cells: |object, now| vec![text::name(object), object.str_at("status.phase").into(), age::of(object, now)],
};

static EVENT: Printer = Printer {
    columns: &[
        column("Last Seen", "Time since the event was last seen."),
        column("Type", "Normal or Warning."),
        column("Reason", "Why the event was made, in one word."),
        column("Object", "The object that the event is about."),
        column("Subobject", "The part of the object.").wide(),
        column("Source", "Who reports the event.").wide(),
        column("Message", "What happened."),
        column("First Seen", "Time since the event was first seen.").wide(),
        integer("Count", "How often the event was seen.").wide(),
        super::column::NAME.wide(),
    ],
    cells: event,
};

/// Reads core events and those of `events.k8s.io`, where the same fields have other names.
fn event(event: &Value, now: Timestamp) -> Vec<Value> {
    let either = |core: &str, new: &str| match event.str_at(core) {
        "" => event.str_at(new),
        text => text,
    };
    let first_time = match either("firstTimestamp", "deprecatedFirstTimestamp") {
        "" => event.str_at("eventTime"),
        time => time,
    };
    let mut last_time = match either("lastTimestamp", "deprecatedLastTimestamp") {
        "" => first_time,
        time => time,
    };
    let mut count = number(event, "count").max(number(event, "deprecatedCount")).max(1);
    if let Some(series) = event.at("series") {
        last_time = series.str_at("lastObservedTime");
        count = number(series, "count");
    }
    let object = event.at("involvedObject").or_else(|| event.at("regarding")).unwrap_or(&Value::Null);
    let target = match object.str_at("name") {
        "" => object.kind().to_lowercase(),
        name => format!("{}/{name}", object.kind().to_lowercase()),
    };
    let source = event.at("source").or_else(|| event.at("deprecatedSource")).unwrap_or(&Value::Null);
    let component = match source.str_at("component") {
        "" => either("reportingComponent", "reportingController"),
        component => component,
    };
    let host = match source.str_at("host") {
        "" => event.str_at("reportingInstance"),
        host => host,
    };
    let source = if host.is_empty() { component.to_owned() } else { format!("{component}, {host}") };
    vec![
        age::since(last_time, now).into(),
        event.str_at("type").into(),
        event.str_at("reason").into(),
        target.into(),
        object.str_at("fieldPath").into(),
        source.into(),
        either("message", "note").trim().into(),
        age::since(first_time, now).into(),
        count.into(),
        text::name(event),
    ]
}

static QUOTA: Printer = Printer {
    columns: &[
        NAME,
        column("Request", "What is used, of what may be requested."),
        column("Limit", "What is used, of what limits may add up to."),
        AGE,
    ],
    cells: |object, now| {
        let (mut requests, mut limits) = (Vec::new(), Vec::new());
        for (resource, hard) in text::map(object, "status.hard").into_iter().flatten() {
            let used = object["status"]["used"].get(resource);
            let shown = format!("{resource}: {}/{}", text::scalar(used, "0"), text::scalar(Some(hard), "0"));
            if resource.starts_with("limits.") { limits.push(shown) } else { requests.push(shown) }
        }
        vec![text::name(object), requests.join(", ").into(), limits.join(", ").into(), age::of(object, now)]
    },
};

static LIMIT_RANGE: Printer = Printer {
    columns: &[NAME, CREATED_AT],
    cells: |object, _| vec![text::name(object), object.meta_str("creationTimestamp").into()],
};

static COMPONENT_STATUS: Printer = Printer {
    columns: &[
        NAME,
        column("Status", "Status of the component conditions"),
        column("Message", "Message of the component conditions"),
        column("Error", "Error of the component conditions"),
    ],
    cells: |object, _| {
        let healthy = list(object, "conditions").iter().find(|c| c.str_at("type") == "Healthy");
        let (status, message, error) = match healthy {
            Some(c) if c.str_at("status") == "True" => ("Healthy", c.str_at("message"), c.str_at("error")),
            Some(c) => ("Unhealthy", c.str_at("message"), c.str_at("error")),
            None => ("Unknown", "", ""),
        };
        vec![text::name(object), status.into(), message.into(), error.into()]
    },
};
