//! `…/scale`: the replica count of a workload, in the same shape for all of them.

use http::StatusCode;
use mussel_api::custom;
use mussel_api::field::{FieldError, FieldErrors, Path};
use mussel_api::object::ObjectExt;
use mussel_store::Freshness;
use serde_json::{Map, Value, json};

use super::body::{self, Expected};
use super::call::{Call, definition};
use super::negotiate;
use super::options::WriteOptions;
use super::patch::Patch;
use super::write::{Made, Part, Write, keep_all_but};
use crate::admission::Face;
use crate::handler::Response;
use crate::status::Status;

const SCHEMA: &str = "io.k8s.api.autoscaling.v1.Scale";

pub async fn handle(call: &Call<'_>) -> Result<Response, Status> {
    let name = call.name();
    let request = call.request;
    let schema = definition(SCHEMA)?;
    let expected = Expected { api_version: "autoscaling/v1".to_owned(), kind: "Scale", schema: &schema, custom: None };
    let part = Scale { paths: custom_paths(call) };
    let object = match request.info.verb.as_str() {
        "get" => {
            let view = call.view(Freshness::Linearizable).await?;
            call.find(&view, name).await?.ok_or_else(|| call.not_found(name))?.object
        }
        "update" => {
            let options = WriteOptions::of(request, "UpdateOptions")?;
            let format = body::format(&request.headers)?;
            let scale = body::decode(&request.body, format, &expected, options.strictness, &request.warnings)?;
            if !scale.name().is_empty() && scale.name() != name {
                return Err(Status::bad_request(format!(
                    "the name of the object ({}) does not match the name on the URL ({name})",
                    scale.name()
                )));
            }
            let make = |old: Option<&Value>| scaled(call, old, &scale);
            call.change(name, &part, &options, false, make).await?.0
        }
        "patch" => {
            let options = WriteOptions::of(request, "PatchOptions")?;
            let patch = Patch::of(call)?;
            super::patch::check_options(call, &patch)?;
            let make = |old: Option<&Value>| {
                let object = old.ok_or_else(|| call.not_found(name))?;
                let before = scale(call, object)?;
                let after = match &patch {
                    // A scale has one field to own; applying it is setting it.
                    Patch::Apply(applied) => mussel_api::patch::merge(&before, applied),
                    _ => patch.patched(&before, &expected, options.strictness, &request.warnings)?,
                };
                scaled(call, old, &after)
            };
            call.change(name, &part, &options, false, make).await?.0
        }
        _ => return Err(Status::method_not_allowed()),
    };
    negotiate::respond(StatusCode::OK, call.form, &scale(call, &object)?)
}

/// The object with the replicas of `scale`.
fn scaled(call: &Call<'_>, old: Option<&Value>, scale: &Value) -> Result<Made, Status> {
    let mut object = old.cloned().ok_or_else(|| call.not_found(call.name()))?;
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    if replicas < 0 {
        let path = Path::new("spec").child("replicas");
        let error = FieldError::invalid(&path, replicas, "must be greater than or equal to 0");
        return Err(Status::invalid("autoscaling", "Scale", call.name(), &vec![error]));
    }
    match custom_paths(call) {
        Some(paths) => custom::with_replicas(&mut object, paths, replicas).map_err(Status::internal)?,
        None => object["spec"]["replicas"] = replicas.into(),
    }
    let metadata = object.meta_mut();
    for field in ["resourceVersion", "uid"] {
        match scale["metadata"].get(field).filter(|value| value.as_str().is_some_and(|text| !text.is_empty())) {
            Some(value) => metadata.insert(field.to_owned(), value.clone()),
            None => metadata.remove(field),
        };
    }
    Ok(Made::plain(object))
}

fn custom_paths<'c>(call: &'c Call<'_>) -> Option<&'c custom::ScalePaths> {
    call.resource.custom.as_ref()?.version().scale.as_ref()
}

fn scale(call: &Call<'_>, object: &Value) -> Result<Value, Status> {
    match custom_paths(call) {
        Some(paths) => custom::scale_of(object, paths).map_err(Status::internal),
        None => Ok(of(object)),
    }
}

/// The scale of an object of a built-in kind.
fn of(object: &Value) -> Value {
    let mut metadata = Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(field) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
    let selector = selector_text(&object["spec"]["selector"]);
    let mut status = json!({"replicas": object["status"]["replicas"].as_i64().unwrap_or(0)});
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    // A replication controller without a count has one.
    let replicas = object["spec"]["replicas"].as_i64().unwrap_or(1);
    let spec = if replicas == 0 { json!({}) } else { json!({"replicas": replicas}) };
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status})
}

/// A selector in the form of query strings; the older kinds have a plain map.
fn selector_text(selector: &Value) -> String {
    let Some(map) = selector.as_object() else { return String::new() };
    let is_structured = map.contains_key("matchLabels") || map.contains_key("matchExpressions");
    let labels = if is_structured { selector["matchLabels"].as_object() } else { Some(map) };
    let equal =
        labels.into_iter().flatten().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
    let mut terms: Vec<String> = equal.collect();
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let values: Vec<&str> =
            expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        terms.push(match expression["operator"].as_str() {
            Some("In") => format!("{key} in ({})", values.join(",")),
            Some("NotIn") => format!("{key} notin ({})", values.join(",")),
            Some("Exists") => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    terms.sort();
    terms.join(",")
}

struct Scale<'c> {
    /// Of a custom kind.
    paths: Option<&'c custom::ScalePaths>,
}

impl Face for Scale<'_> {
    fn show(&self, object: &Value) -> Value {
        // What came here has been read as a scale before.
        self.paths.map_or_else(|| of(object), |paths| custom::scale_of(object, paths).unwrap_or_default())
    }

    fn take(&self, object: &mut Value, shown: &Value) {
        let replicas = shown["spec"]["replicas"].as_i64().unwrap_or(0);
        match self.paths {
            None => object["spec"]["replicas"] = replicas.into(),
            Some(paths) => {
                if let Err(error) = custom::with_replicas(object, paths, replicas) {
                    tracing::debug!(%error, "a scale that was changed on its way has no place in its object");
                }
            }
        }
    }
}

impl Part for Scale<'_> {
    fn face(&self) -> Option<&dyn Face> {
        Some(self)
    }

    fn subresource(&self) -> &'static str {
        "scale"
    }

    fn prepare(&self, _write: &Write<'_>, new: &mut Value, old: &Value) -> Result<(), Status> {
        keep_all_but(new, old, &["spec"]);
        Ok(())
    }

    fn validate(&self, write: &Write<'_>, new: &Value, old: &Value) -> FieldErrors {
        (write.call.resource.strategy.validate_update)(new, old)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_printed_in_order() {
        assert_eq!(selector_text(&json!({"matchLabels": {"b": "2", "a": "1"}})), "a=1,b=2");
        assert_eq!(selector_text(&json!({"app": "x"})), "app=x");
    }
}
