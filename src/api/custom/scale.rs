//! The scale of a custom object: which of its fields are replicas and selector.

use serde_json::{Map, Value, json};

use super::jsonpath::select_simple;
use crate::field::{FieldError, FieldErrors, Path};
use crate::object::ObjectExt;

/// `subresources.scale`.
#[derive(Clone, Debug)]
pub struct ScalePaths {
    /// Simple paths: `.spec.replicas`.
    pub spec_replicas: String,
    pub status_replicas: String,
    pub label_selector: Option<String>,
}

/// The object's scale, as `autoscaling/v1` has it.
///
/// # Errors
/// When the replicas are not there or no number, or the selector is no text.
pub fn scale_of(object: &Value, paths: &ScalePaths) -> Result<Value, String> {
    let at = |path: &str| select_simple(object, path.trim_start_matches('.')).filter(|value| !value.is_null());
    let number = |path: &str| match at(path) {
        None => Ok(None),
        Some(value) => value.as_i64().map(Some).ok_or_else(|| format!("the value at {path} is not an integer")),
    };
    let Some(replicas) = number(&paths.spec_replicas)? else {
        return Err(format!("the spec replicas field {:?} does not exist", paths.spec_replicas));
    };
    let mut metadata = Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(field) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
    let mut status = json!({"replicas": number(&paths.status_replicas)?.unwrap_or(0)});
    if let Some(path) = &paths.label_selector {
        match at(path) {
            None => {}
            Some(Value::String(selector)) if selector.is_empty() => {}
            Some(Value::String(selector)) => status["selector"] = selector.as_str().into(),
            Some(_) => return Err(format!("the value at {path} is not a string")),
        }
    }
    let spec = if replicas == 0 { json!({}) } else { json!({"replicas": replicas}) };
    Ok(json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status}))
}

/// Sets the replicas of an object.
///
/// # Errors
/// When something that is no object is in the way.
pub fn with_replicas(object: &mut Value, paths: &ScalePaths, replicas: i64) -> Result<(), String> {
    let path = paths.spec_replicas.trim_start_matches('.');
    let mut at = object;
    let mut names = path.split('.').peekable();
    while let Some(name) = names.next() {
        let map = at.as_object_mut().ok_or_else(|| format!("{path} cannot be set: a value above it is no object"))?;
        if names.peek().is_none() {
            map.insert(name.to_owned(), replicas.into());
            return Ok(());
        }
        at = map.entry(name.to_owned()).or_insert_with(|| json!({}));
    }
    Ok(())
}

/// Upstream's rules for the fields behind the scale.
pub fn validate(object: &Value, paths: &ScalePaths) -> FieldErrors {
    let mut errors = FieldErrors::new();
    for path in [&paths.spec_replicas, &paths.status_replicas] {
        let path = path.trim_start_matches('.');
        let Some(value) = select_simple(object, path).filter(|value| !value.is_null()) else { continue };
        let Some(number) = value.as_i64() else { continue };
        let place = path.split('.').fold(Path::root(), |path, name| path.child(name));
        if number < 0 {
            errors.push(FieldError::invalid(&place, number, "should be a non-negative integer"));
        }
        if number > i64::from(i32::MAX) {
            let detail = format!("should be less than or equal to {}", i32::MAX);
            errors.push(FieldError::invalid(&place, number, detail));
        }
    }
    if let Some(path) = &paths.label_selector {
        let path = path.trim_start_matches('.');
        let text = select_simple(object, path).and_then(Value::as_str).unwrap_or_default();
        if !text.is_empty()
            && let Err(error) = crate::selector::LabelSelector::parse(text)
        {
            let place = path.split('.').fold(Path::root(), |path, name| path.child(name));
            errors.push(FieldError::invalid(&place, object.str_at(path), error.to_string()));
        }
    }
    errors
}
