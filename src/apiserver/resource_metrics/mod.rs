//! `metrics.k8s.io/v1beta1`: what nodes and pods use right now, as metrics-server tells it.
//!
//! Kubelets are asked when somebody asks here, and at most every 15 seconds; at rest nobody is. CPU use is the difference of
//! two samples. Where the one before is missing or long ago, two are taken, two seconds apart: the first question after a
//! while takes so long ([`collect`]).

mod collect;
mod sample;

use std::sync::Arc;

use http::StatusCode;
use mussel_api::object::ObjectExt;
use mussel_api::quantity::{Format, Quantity};
use mussel_api::resource::{METRICS_GROUP, Resource};
use mussel_store::Freshness;
use serde_json::{Map, Value, json};

use self::sample::{Interval, Usage};
use crate::api_server::Inner;
use crate::handler::{Query, RequestInfo, Response};
use crate::registry::negotiate::{negotiate, respond, shape_list, shape_object};
use crate::registry::options::ListOptions;
use crate::registry::select::Selection;
use crate::registry::view::View;
use crate::status::Status;

pub(crate) use collect::Meter;

/// Whether this row is answered here.
pub fn is_metrics(row: &Resource) -> bool {
    row.group == METRICS_GROUP && row.custom.is_none()
}

/// Answers a `get` or `list` of a row of [`mussel_api::resource::metrics`].
pub(crate) async fn handle(
    server: &Arc<Inner>,
    row: &Resource,
    info: &RequestInfo,
    query: &Query,
    headers: &http::HeaderMap,
) -> Result<Response, Status> {
    let form = negotiate(headers, query)?;
    let snapshot = server.context.store.snapshot(Freshness::Linearizable).await?;
    let view = View::new(snapshot.clone());
    let is_nodes = row.plural == "nodes";
    let objects: Vec<Value> = if info.verb == "list" {
        let options = ListOptions::of(query, false)?;
        let selection = Selection::new(row, &options)?;
        let plural: &str = &row.plural;
        view.list(plural, &info.namespace).filter(|object| selection.matches(object)).collect()
    } else {
        let found = view.get(&row.plural, &info.namespace, &info.name);
        vec![found.ok_or_else(|| Status::not_found(&row.group, &row.plural, &info.name))?]
    };
    let node_of = |object: &Value| {
        let name = if is_nodes { Some(object.name()) } else { object["spec"]["nodeName"].as_str() };
        name.filter(|name| !name.is_empty()).map(str::to_owned)
    };
    let mut nodes: Vec<String> = objects.iter().filter_map(node_of).collect();
    nodes.sort();
    nodes.dedup();
    let intervals = server.meter.intervals(server, &snapshot, &nodes).await;
    let metrics: Vec<Value> = objects
        .iter()
        .filter_map(|object| {
            let interval = intervals.get(&node_of(object)?)?;
            if is_nodes { node_metrics(object, interval) } else { pod_metrics(object, interval) }
        })
        .collect();
    let value = if info.verb == "list" {
        shape_list(row, form, Map::new(), metrics)
    } else {
        let one = metrics.into_iter().next();
        let name = if is_nodes { info.name.clone() } else { format!("{}/{}", info.namespace, info.name) };
        shape_object(row, form, one.ok_or_else(|| Status::not_found(&row.group, &row.plural, &name))?)
    };
    respond(StatusCode::OK, form, &value)
}

fn node_metrics(node: &Value, interval: &Interval) -> Option<Value> {
    let mut metrics = head("NodeMetrics", node, interval);
    metrics["usage"] = usage(interval.node()?);
    Some(metrics)
}

fn pod_metrics(pod: &Value, interval: &Interval) -> Option<Value> {
    if pod["status"]["phase"] != "Running" {
        return None;
    }
    let containers = interval.containers(pod.namespace(), pod.name())?;
    let mut metrics = head("PodMetrics", pod, interval);
    metrics["containers"] =
        containers.into_iter().map(|(name, used)| json!({"name": name, "usage": usage(used)})).collect();
    Some(metrics)
}

fn head(kind: &str, object: &Value, interval: &Interval) -> Value {
    let mut metadata = json!({"name": object.name(), "creationTimestamp": crate::registry::write::now()});
    if !object.namespace().is_empty() {
        metadata["namespace"] = object.namespace().into();
    }
    if let Some(labels) = object.labels() {
        metadata["labels"] = Value::Object(labels.clone());
    }
    let window = interval.window();
    json!({"kind": kind, "apiVersion": "metrics.k8s.io/v1beta1", "metadata": metadata,
        "timestamp": interval.timestamp(), "window": format!("{}.{:03}s", window.as_secs(), window.subsec_millis())})
}

fn usage(used: Usage) -> Value {
    let memory =
        Quantity::from_value(i64::try_from(used.memory_bytes / 1024 * 1024).unwrap_or(i64::MAX), Format::BinarySi);
    json!({"cpu": Quantity::from_nano(i128::from(used.nano_cores)).to_string(), "memory": memory.to_string()})
}
