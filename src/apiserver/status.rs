//! Errors as clients see them: `metav1.Status`, with upstream's reasons, codes and texts.

use std::borrow::Cow;

use http::{HeaderValue, StatusCode, header};
use mussel_api::field::FieldErrors;
use mussel_store::{CommitError, ReadError, WatchError};
use serde_json::{Map, Value, json};

use crate::encryption::TransformError;
use crate::handler::{Body, Response};

/// A refusal. Every error that leaves the API server is one of these.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    pub code: u16,
    /// `NotFound`, `Conflict`, …; the machine-readable why.
    pub reason: Cow<'static, str>,
    pub message: String,
    /// Boxed to keep results small.
    pub details: Option<Box<Details>>,
    /// Goes on with an expired list, inconsistently.
    pub continue_token: Option<String>,
}

/// What the refusal is about.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    pub name: String,
    pub group: String,
    pub kind: String,
    pub uid: String,
    pub causes: Vec<Cause>,
    pub retry_after_seconds: u32,
}

/// One of several reasons; `reason` and `field` may be empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cause {
    pub reason: String,
    pub message: String,
    pub field: String,
}

/// `pods`, `deployments.apps`: as upstream prints a GroupResource or GroupKind.
pub fn qualified(group: &str, name: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}

impl Status {
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), message: message.into(), details: None, continue_token: None }
    }

    #[must_use]
    pub fn with_details(mut self, details: Details) -> Self {
        self.details = Some(Box::new(details));
        self
    }

    #[must_use]
    pub fn with_cause(mut self, reason: &str, message: &str, field: &str) -> Self {
        let cause = Cause { reason: reason.to_owned(), message: message.to_owned(), field: field.to_owned() };
        self.details.get_or_insert_default().causes.push(cause);
        self
    }

    #[must_use]
    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        self.details.get_or_insert_default().retry_after_seconds = seconds;
        self
    }

    /// The list can be gone on with by this token.
    #[must_use]
    pub fn with_continue(mut self, token: String) -> Self {
        self.continue_token = Some(token);
        self
    }

    fn about(code: u16, reason: &'static str, group: &str, kind: &str, name: &str, message: String) -> Self {
        let details =
            Details { name: name.to_owned(), group: group.to_owned(), kind: kind.to_owned(), ..Details::default() };
        Self::new(code, reason, message).with_details(details)
    }

    /// `pods "x" not found`
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {name:?} not found", qualified(group, resource));
        Self::about(404, "NotFound", group, resource, name, message)
    }

    /// The path names nothing that is served.
    pub fn unknown_resource() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource").with_details(Details::default())
    }

    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", qualified(group, resource));
        Self::about(409, "AlreadyExists", group, resource, name, message)
    }

    pub fn generate_name_conflict(group: &str, resource: &str, name: &str) -> Self {
        let message = format!(
            "{} {name:?} already exists, the server was not able to generate a unique name for the object",
            qualified(group, resource)
        );
        Self::about(409, "AlreadyExists", group, resource, name, message).with_retry_after(1)
    }

    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// `pods "x" is forbidden: <why>`; without a resource, `forbidden: <why>`.
    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = match (resource.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (false, true) => format!("{} is forbidden: {why}", qualified(group, resource)),
            (false, false) => format!("{} {name:?} is forbidden: {why}", qualified(group, resource)),
        };
        Self::about(403, "Forbidden", group, resource, name, message)
    }

    /// `Operation cannot be fulfilled on pods "x": <why>`
    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", qualified(group, resource));
        Self::about(409, "Conflict", group, resource, name, message)
    }

    /// The conflict of an update made from an old version of the object.
    pub fn modified(group: &str, resource: &str, name: &str) -> Self {
        Self::conflict(group, resource, name, MODIFIED)
    }

    /// Server-side apply met fields of other managers.
    pub fn apply_conflict(message: impl Into<String>, causes: Vec<Cause>) -> Self {
        Self::new(409, "Conflict", message).with_details(Details { causes, ..Details::default() })
    }

    /// The object does not pass validation: `Pod "x" is invalid: [..]`.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &FieldErrors) -> Self {
        let mut texts: Vec<String> = Vec::with_capacity(errors.len());
        let mut causes = Vec::with_capacity(errors.len());
        for error in errors {
            let text = error.to_string();
            causes.push(Cause {
                reason: error.kind.reason().to_owned(),
                message: error.body(),
                field: error.path.to_string(),
            });
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let subject = format!("{} {name:?} is invalid", qualified(group, kind));
        let message = match texts.as_slice() {
            [] => subject,
            [one] => format!("{subject}: {one}"),
            many => format!("{subject}: [{}]", many.join(", ")),
        };
        let mut status = Self::about(422, "Invalid", group, kind, name, message);
        status.details.get_or_insert_default().causes = causes;
        status
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// `<verb> is not supported on resources of kind "x"`
    pub fn method_not_supported(group: &str, resource: &str, verb: &str) -> Self {
        let message = format!("{verb} is not supported on resources of kind {:?}", qualified(group, resource));
        Self::about(405, "MethodNotAllowed", group, resource, "", message)
    }

    /// The path is served, but not for this method.
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(405, "MethodNotAllowed", message).with_details(Details::default())
    }

    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let list = accepted.join(", ");
        Self::new(406, "NotAcceptable", format!("only the following media types are accepted: {list}"))
    }

    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let list = accepted.join(", ");
        let message =
            format!("the body of the request was in an unknown format - accepted media types include: {list}");
        Self::new(415, "UnsupportedMediaType", message)
    }

    pub fn too_large(why: &str) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("Request entity too large: {why}"))
    }

    /// HTTP 410 for a list or watch from a revision that is no longer kept.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        Self::new(429, "TooManyRequests", message).with_retry_after(retry_after_seconds)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    pub fn timeout(message: &str) -> Self {
        Self::new(504, "Timeout", format!("Timeout: {message}")).with_details(Details::default())
    }

    /// The requested resourceVersion lies in the future: retry.
    pub fn too_large_resource_version(requested: u64, current: u64) -> Self {
        Self::timeout(&format!("Too large resource version: {requested}, current: {current}"))
            .with_cause("ResourceVersionTooLarge", "Too large resource version", "")
            .with_retry_after(1)
    }

    pub fn server_timeout(group: &str, resource: &str, operation: &str) -> Self {
        let message = format!(
            "The {operation} operation against {} could not be completed at this time, please try again.",
            qualified(group, resource)
        );
        Self::about(500, "ServerTimeout", group, resource, "", message)
    }

    pub fn internal(why: impl std::fmt::Display) -> Self {
        let why = why.to_string();
        Self::new(500, "InternalError", format!("Internal error occurred: {why}")).with_cause("", &why, "")
    }

    /// The object form, as bodies and `ERROR` watch events carry it.
    pub fn to_value(&self) -> Value {
        let mut object = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"});
        if let Some(token) = &self.continue_token {
            object["metadata"]["continue"] = token.as_str().into();
        }
        object["message"] = self.message.as_str().into();
        if !self.reason.is_empty() {
            object["reason"] = self.reason.as_ref().into();
        }
        if let Some(details) = &self.details {
            object["details"] = details.to_value();
        }
        object["code"] = self.code.into();
        object
    }

    pub fn into_response(self) -> Response {
        let body = Body::from(self.to_value().to_string());
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.details.map(|d| d.retry_after_seconds).filter(|s| *s > 0) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// Why an update from an old version is refused.
pub const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

impl Details {
    fn to_value(&self) -> Value {
        let mut map = Map::new();
        let mut put = |key: &str, value: &str| {
            if !value.is_empty() {
                map.insert(key.to_owned(), value.into());
            }
        };
        put("name", &self.name);
        put("group", &self.group);
        put("kind", &self.kind);
        put("uid", &self.uid);
        if !self.causes.is_empty() {
            map.insert("causes".to_owned(), self.causes.iter().map(Cause::to_value).collect());
        }
        if self.retry_after_seconds > 0 {
            map.insert("retryAfterSeconds".to_owned(), self.retry_after_seconds.into());
        }
        Value::Object(map)
    }
}

impl Cause {
    fn to_value(&self) -> Value {
        let fields = [("reason", &self.reason), ("message", &self.message), ("field", &self.field)];
        let set = fields.into_iter().filter(|(_, value)| !value.is_empty());
        Value::Object(set.map(|(key, value)| (key.to_owned(), value.as_str().into())).collect())
    }
}

/// What the caller has not turned into something more telling.
impl From<CommitError> for Status {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::TooLarge { .. } => Self::new(413, "RequestEntityTooLarge", "etcdserver: request is too large"),
            CommitError::NoLeader => Self::unavailable("the store has no leader; try again"),
            CommitError::Unwritable(cause) => Self::internal(format_args!("the store cannot write: {cause}")),
            CommitError::Refused { .. } => Self::internal("a precondition of the store did not hold"),
            CommitError::Unknown => {
                Self::new(504, "Timeout", "the store gave no answer in time; the request may still take effect")
            }
            CommitError::Stopped => Self::unavailable("the store is stopped"),
        }
    }
}

impl From<ReadError> for Status {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Compacted { requested, oldest } => {
                Self::expired(format!("too old resource version: {} ({})", requested.0, oldest.0))
            }
            ReadError::Future { requested, newest } => Self::too_large_resource_version(requested.0, newest.0),
            ReadError::NoLeader => Self::unavailable("the store has no leader; try again"),
            ReadError::Stopped => Self::unavailable("the store is stopped"),
        }
    }
}

impl From<TransformError> for Status {
    fn from(error: TransformError) -> Self {
        match error {
            // As if the history ended after it: whoever asked lists again.
            TransformError::Forgotten { .. } => Self::expired(error.to_string()),
            error => Self::internal(error),
        }
    }
}

impl From<WatchError> for Status {
    fn from(error: WatchError) -> Self {
        match error {
            WatchError::Compacted { requested, oldest } => {
                Self::expired(format!("too old resource version: {} ({})", requested.0, oldest.0))
            }
            WatchError::TooSlow => Self::expired("the watcher was too slow"),
            WatchError::Stopped => Self::unavailable("the store is stopped"),
        }
    }
}

#[cfg(test)]
mod tests {
    use mussel_api::field::{FieldError, Path};

    use super::*;

    #[test]
    fn texts_are_upstreams() {
        let table = [
            (Status::not_found("", "pods", "x"), "pods \"x\" not found"),
            (Status::not_found("apps", "deployments", "x"), "deployments.apps \"x\" not found"),
            (Status::already_exists("", "pods", "x"), "pods \"x\" already exists"),
            (
                Status::modified("", "pods", "x"),
                "Operation cannot be fulfilled on pods \"x\": the object has been modified; please apply your changes \
                 to the latest version and try again",
            ),
            (Status::forbidden("", "pods", "", "no"), "pods is forbidden: no"),
            (Status::forbidden("", "", "", "no"), "forbidden: no"),
            (Status::too_large("limit is 3145728"), "Request entity too large: limit is 3145728"),
        ];
        for (status, text) in table {
            assert_eq!(status.message, text);
        }
    }

    #[test]
    fn validation_errors_are_joined_and_become_causes() {
        let path = Path::new("spec").child("containers");
        let one = vec![FieldError::required(&path, "")];
        let status = Status::invalid("", "Pod", "x", &one);
        assert_eq!(status.message, "Pod \"x\" is invalid: spec.containers: Required value");
        let two = vec![FieldError::required(&path, ""), FieldError::invalid(&path, 1, "bad")];
        let value = Status::invalid("apps", "Deployment", "x", &two).to_value();
        assert_eq!(
            value["message"],
            "Deployment.apps \"x\" is invalid: [spec.containers: Required value, spec.containers: Invalid value: 1: bad]"
        );
        assert_eq!(value["details"]["causes"][0]["reason"], "FieldValueRequired");
        assert_eq!(value["details"]["causes"][1]["field"], "spec.containers");
        assert_eq!(value["code"], 422);
    }
}
