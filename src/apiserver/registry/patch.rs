//! PATCH: JSON patch, merge patch, strategic merge patch and server-side apply.

use http::StatusCode;
use mussel_api::apply::{self, ApplyError, Manager, Operation};
use mussel_api::decode::{self, Format, Strictness};
use mussel_api::field::{FieldError, Path};
use mussel_api::object::ObjectExt;
use mussel_api::patch::{self, PatchError};
use serde_json::Value;

use super::body::{self, Expected};
use super::call::Call;
use super::negotiate;
use super::options::WriteOptions;
use super::write::{Made, Part};
use crate::handler::{Response, Warnings};
use crate::status::{Cause, Status};

const ACCEPTED: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

/// Custom kinds have no strategy to merge by.
const ACCEPTED_CUSTOM: [&str; 3] =
    ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];

/// A patch, read from the request.
pub enum Patch {
    Json(bytes::Bytes),
    Merge(Value),
    Strategic(Value),
    Apply(Value),
}

impl Patch {
    pub fn of(call: &Call<'_>) -> Result<Self, Status> {
        let body = &call.request.body;
        let parse = |format| decode::parse(body, format).map_err(|error| Status::bad_request(error.to_string()));
        let is_custom = call.resource.custom.is_some();
        let object = |value: Value| match value {
            value @ Value::Object(_) => Ok(value),
            other => Err(Status::bad_request(format!(
                "error decoding patch: json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
                kind_of(&other)
            ))),
        };
        match body::media_type(&call.request.headers).as_str() {
            "application/json-patch+json" => {
                let operations = parse(Format::Json)?;
                if !operations.is_array() {
                    return Err(Status::bad_request(format!(
                        "error decoding patch: json: cannot unmarshal {} into Go value of type jsonpatch.Patch",
                        kind_of(&operations)
                    )));
                }
                Ok(Self::Json(body.clone()))
            }
            "application/merge-patch+json" => Ok(Self::Merge(object(parse(Format::Json)?)?)),
            "application/strategic-merge-patch+json" if !is_custom => {
                Ok(Self::Strategic(object(parse(Format::Json)?)?))
            }
            "application/apply-patch+yaml" => {
                // Upstream's parser of YAML takes no key twice.
                if let Some(duplicate) = decode::yaml_duplicate(body).filter(|_| is_custom) {
                    return Err(Status::bad_request(format!("error decoding YAML: {duplicate}")));
                }
                let value = parse(Format::Yaml)?;
                match value {
                    value @ Value::Object(_) => Ok(Self::Apply(value)),
                    _ => Err(Status::bad_request("error decoding YAML: the applied configuration is not an object")),
                }
            }
            _ if is_custom => Err(Status::unsupported_media_type(&ACCEPTED_CUSTOM)),
            _ => Err(Status::unsupported_media_type(&ACCEPTED)),
        }
    }

    pub fn is_apply(&self) -> bool {
        matches!(self, Self::Apply(_))
    }

    /// The patched object, for every kind of patch but apply.
    pub fn patched(
        &self,
        old: &Value,
        expected: &Expected<'_>,
        strictness: Strictness,
        warnings: &Warnings,
    ) -> Result<Value, Status> {
        let patched = match self {
            Self::Json(bytes) => patch::json(old, bytes).map_err(patch_error)?,
            Self::Merge(value) => patch::merge(old, value),
            Self::Strategic(value) => patch::strategic(old, value, expected.schema).map_err(patch_error)?,
            Self::Apply(_) => return Err(Status::internal("an applied configuration is not a patch")),
        };
        let mut object = body::check(patched, expected, strictness, warnings).map_err(|error| {
            let error = FieldError::invalid(&Path::new("patch"), format!("{}", PrettyPatch(self)), error.to_string());
            Status::invalid("", "", "", &vec![error])
        })?;
        if object["apiVersion"] != old["apiVersion"] || object["kind"] != old["kind"] {
            let data = object.api_version().to_owned();
            return Err(Status::bad_request(format!(
                "the API version in the data ({data}) does not match the expected API version ({})",
                expected.api_version
            )));
        }
        if !object["metadata"].is_object() {
            object.meta_mut();
        }
        Ok(object)
    }
}

struct PrettyPatch<'a>(&'a Patch);

impl std::fmt::Display for PrettyPatch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Patch::Json(bytes) => f.write_str(&String::from_utf8_lossy(bytes)),
            Patch::Merge(value) | Patch::Strategic(value) | Patch::Apply(value) => write!(f, "{value}"),
        }
    }
}

pub async fn patch(call: &Call<'_>, part: &dyn Part) -> Result<Response, Status> {
    let options = WriteOptions::of(call.request, "PatchOptions")?;
    let patch = Patch::of(call)?;
    check_options(call, &patch)?;
    let expected = call.expected();
    let name = call.name();
    let creates = patch.is_apply() && part.subresource().is_empty();
    let warnings = &call.request.warnings;
    let make = |old: Option<&Value>| match &patch {
        Patch::Apply(applied) => {
            let applied = applied_object(call, part, applied, &options, warnings)?;
            let api_version = call.resource.api_version();
            let manager = Manager {
                name: &options.field_manager,
                operation: Operation::Apply,
                api_version: &api_version,
                subresource: part.subresource(),
                time: jiff::Timestamp::now(),
            };
            let reset = call.reset(part.subresource());
            let object = apply::apply_resetting(old, &applied, &manager, options.force, call.schema(), reset)
                .map_err(|error| apply_error(call, name, error))?;
            Ok(Made { object, tracked: true, patched: true })
        }
        _ => match old {
            Some(old) => patch.patched(old, &expected, options.strictness, warnings).map(Made::patched),
            None => Err(call.not_found(name)),
        },
    };
    let (object, created) = call.change(name, part, &options, creates, make).await?;
    let code = if created { StatusCode::CREATED } else { StatusCode::OK };
    negotiate::respond(code, call.form, &negotiate::shape_object(&call.resource, call.form, object))
}

/// What only apply needs, and what only apply may have.
pub fn check_options(call: &Call<'_>, patch: &Patch) -> Result<(), Status> {
    let query = &call.request.query;
    let error = if patch.is_apply() {
        let manager = query.get("fieldManager").unwrap_or_default();
        manager.is_empty().then(|| FieldError::required(&Path::new("fieldManager"), "is required for apply patch"))
    } else {
        query
            .get("force")
            .map(|_| FieldError::forbidden(&Path::new("force"), "may not be specified for non-apply patch"))
    };
    match error {
        Some(error) => Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &vec![error])),
        None => Ok(()),
    }
}

/// The applied configuration, checked, and without the fields this endpoint does not set.
fn applied_object(
    call: &Call<'_>,
    part: &dyn Part,
    applied: &Value,
    options: &WriteOptions,
    warnings: &Warnings,
) -> Result<Value, Status> {
    let expected = call.expected();
    if applied.kind().is_empty() || applied.api_version().is_empty() {
        return Err(Status::bad_request(format!(
            "couldn't get version/kind; json parse error: the applied configuration has no apiVersion or kind ({})",
            expected.kind
        )));
    }
    if applied.api_version() != expected.api_version || applied.kind() != expected.kind {
        return Err(Status::bad_request(format!(
            "invalid object type: {}, Kind={}",
            applied.api_version(),
            applied.kind()
        )));
    }
    if applied["metadata"].get("managedFields").is_some_and(|fields| fields.as_array().is_none_or(|l| !l.is_empty())) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let name = call.name();
    if !applied.name().is_empty() && applied.name() != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({name})",
            applied.name()
        )));
    }
    // What a custom kind does not know, apply itself refuses.
    let mut object = match &call.resource.custom {
        Some(_) => {
            // But its metadata is that of every object.
            body::check(applied.clone(), &expected, Strictness::Ignore, warnings)
                .map_err(|error| Status::bad_request(error.to_string()))?;
            applied.clone()
        }
        None => body::check(applied.clone(), &expected, options.strictness, warnings)
            .map_err(|error| Status::bad_request(error.to_string()))?,
    };
    object.meta_mut().insert("name".to_owned(), name.into());
    if !call.namespace.is_empty() && object.namespace().is_empty() {
        object.meta_mut().insert("namespace".to_owned(), call.namespace.as_str().into());
    }
    if let Some(map) = object.as_object_mut() {
        match part.subresource() {
            "" if call.resource.strategy.has_status => {
                map.remove("status");
            }
            "status" => map.retain(|key, _| matches!(key.as_str(), "apiVersion" | "kind" | "metadata" | "status")),
            _ => {}
        }
    }
    Ok(object)
}

fn apply_error(call: &Call<'_>, name: &str, error: ApplyError) -> Status {
    let message = error.to_string();
    match error {
        ApplyError::Conflicts(conflicts) => {
            let causes = conflicts.iter().map(|conflict| Cause {
                reason: "FieldManagerConflict".to_owned(),
                message: format!("conflict with {}", conflict.manager),
                field: conflict.field.clone(),
            });
            Status::apply_conflict(message, causes.collect())
        }
        ApplyError::Invalid(why) => {
            tracing::debug!(name, resource = %call.stored_as, why, "applied configuration refused");
            Status::bad_request(message)
        }
    }
}

fn patch_error(error: PatchError) -> Status {
    let message = error.to_string();
    match error {
        PatchError::Test(_) | PatchError::NotApplicable(_) => Status::new(422, "Invalid", message),
        PatchError::Syntax(_) => Status::bad_request(message),
        PatchError::TooMany(_) => Status::too_large(&message),
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
