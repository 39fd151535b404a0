//! The three ways of patching: JSON patch (RFC 6902), merge patch (RFC 7386) and Kubernetes' strategic merge patch.

mod strategic;

use serde_json::{Map, Value};

pub use strategic::strategic;

/// Upstream's bound on the operations of one JSON patch.
pub const JSON_PATCH_OPERATIONS_MAX: usize = 10_000;

/// Why a patch could not be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch is not what its content type says: a bad request.
    #[error("{0}")]
    Syntax(String),
    /// Too much of it: request entity too large.
    #[error("The allowed maximum operations in a JSON patch is {JSON_PATCH_OPERATIONS_MAX}, got {0}")]
    TooMany(usize),
    /// A `test` operation of a JSON patch found another value: unprocessable.
    #[error("testing value {0} failed: test failed")]
    Test(String),
    /// The patch does not fit the object: unprocessable.
    #[error("{0}")]
    NotApplicable(String),
}

/// Applies a JSON patch, all of it or nothing.
///
/// # Errors
/// When the patch is malformed, too long or does not fit `target`.
pub fn json(target: &Value, patch: &[u8]) -> Result<Value, PatchError> {
    let parsed: Value =
        serde_json::from_slice(patch).map_err(|error| PatchError::Syntax(format!("error decoding patch: {error}")))?;
    let count = parsed.as_array().map_or(0, Vec::len);
    if count > JSON_PATCH_OPERATIONS_MAX {
        return Err(PatchError::TooMany(count));
    }
    let operations: json_patch::Patch =
        serde_json::from_value(parsed).map_err(|error| PatchError::Syntax(format!("error decoding patch: {error}")))?;
    let mut patched = target.clone();
    json_patch::patch(&mut patched, &operations).map_err(|error| json_error(&error, &operations))?;
    Ok(patched)
}

fn json_error(error: &json_patch::PatchError, operations: &json_patch::Patch) -> PatchError {
    use json_patch::{PatchErrorKind, PatchOperation};
    let path = error.path.to_string();
    if matches!(error.kind, PatchErrorKind::TestFailed) {
        return PatchError::Test(path);
    }
    let name = match operations.0.get(error.operation) {
        Some(PatchOperation::Add(_)) => "add",
        Some(PatchOperation::Remove(_)) => "remove",
        Some(PatchOperation::Replace(_)) => "replace",
        Some(PatchOperation::Move(_)) => "move",
        Some(PatchOperation::Copy(_)) => "copy",
        Some(PatchOperation::Test(_)) | None => return PatchError::Test(path),
    };
    PatchError::NotApplicable(format!("{name} operation does not apply: doc is missing path: {path:?}: missing value"))
}

/// Applies a merge patch: `null` deletes, objects merge, all else replaces.
pub fn merge(target: &Value, patch: &Value) -> Value {
    let Value::Object(changes) = patch else { return patch.clone() };
    let mut merged = target.as_object().cloned().unwrap_or_default();
    for (key, change) in changes {
        if change.is_null() {
            merged.remove(key);
        } else {
            let old = merged.remove(key).unwrap_or(Value::Null);
            merged.insert(key.clone(), merge(&old, change));
        }
    }
    Value::Object(merged)
}

/// `value` without the members that are `null`, at any depth of objects.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept: Map<String, Value> =
                map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v))).collect();
            Value::Object(kept)
        }
        Value::Array(list) => Value::Array(list.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests;
