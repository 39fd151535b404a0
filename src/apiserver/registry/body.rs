//! Request bodies: their format, and decoding them to objects of an expected kind.

use bytes::Bytes;
use http::{HeaderMap, header};
use mussel_api::custom::Custom;
use mussel_api::decode::{self, DecodeError, Format, Strictness};
use mussel_api::schema::Schema;
use serde::Deserialize;
use serde_json::Value;

use crate::handler::Warnings;
use crate::status::Status;

const ACCEPTED: [&str; 2] = ["application/json", "application/yaml"];

/// Enough of a bad body to recognize it by.
const SUMMARY_BYTES: usize = 30;

/// The kind of object a body has to hold.
pub struct Expected<'a> {
    pub api_version: String,
    pub kind: &'a str,
    pub schema: &'a Schema,
    /// The schema is that of a custom kind.
    pub custom: Option<&'a Custom>,
}

/// From `Content-Type`; JSON when there is none.
pub fn format(headers: &HeaderMap) -> Result<Format, Status> {
    match media_type(headers).as_str() {
        "" | "application/json" => Ok(Format::Json),
        "application/yaml" => Ok(Format::Yaml),
        _ => Err(Status::unsupported_media_type(&ACCEPTED)),
    }
}

/// `Content-Type` without its parameters, in lower case.
pub fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Decodes `body` and checks that it is what is expected. Absent `apiVersion` and `kind` are filled in.
pub fn decode(
    body: &Bytes,
    format: Format,
    expected: &Expected<'_>,
    strictness: Strictness,
    warnings: &Warnings,
) -> Result<Value, Status> {
    let named = match type_meta(body, format) {
        Ok(named) => named,
        Err(error) => return Err(unrecognized(body, expected.kind, &error)),
    };
    let kind = if named.kind.is_empty() { expected.kind } else { &named.kind };
    let api_version = if named.api_version.is_empty() { &expected.api_version } else { &named.api_version };
    let decoded = if kind == expected.kind {
        match expected.custom {
            Some(custom) => decode::decode_custom(body, format, &custom.compiled().props, strictness),
            None => decode::decode(body, format, expected.schema, strictness),
        }
        .map_err(|error| cannot_be_handled(api_version, kind, expected.kind, &error))?
    } else {
        let why = format!(
            "no kind {kind:?} is registered for version {:?} in scheme \"k8s.io/kubernetes/pkg/api/legacyscheme/scheme.go:30\"",
            expected.api_version
        );
        return Err(Status::bad_request(format!(
            "{kind} in version {:?} cannot be handled as a {}: {why}",
            version_of(api_version),
            expected.kind
        )));
    };
    if *api_version != expected.api_version {
        return Err(Status::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({})",
            expected.api_version
        )));
    }
    for warning in decoded.warnings {
        warnings.add(warning);
    }
    let mut object = decoded.object;
    object["apiVersion"] = expected.api_version.as_str().into();
    object["kind"] = expected.kind.into();
    Ok(object)
}

/// The same for the outcome of a patch.
pub fn check(
    value: Value,
    expected: &Expected<'_>,
    strictness: Strictness,
    warnings: &Warnings,
) -> Result<Value, DecodeError> {
    let decoded = match expected.custom {
        Some(custom) => decode::check_custom(value, &custom.compiled().props, strictness)?,
        None => decode::check(value, expected.schema, strictness)?,
    };
    for warning in decoded.warnings {
        warnings.add(warning);
    }
    Ok(decoded.object)
}

#[derive(Default, Deserialize)]
struct TypeMeta {
    #[serde(rename = "apiVersion", default)]
    api_version: String,
    #[serde(default)]
    kind: String,
}

fn type_meta(body: &Bytes, format: Format) -> Result<TypeMeta, String> {
    match format {
        Format::Json => serde_json::from_slice(body).map_err(|error| match decode::parse(body, format) {
            Err(DecodeError::Syntax(text)) => text,
            _ => format!("json: {error}"),
        }),
        Format::Yaml => {
            let value = decode::parse(body, format).map_err(|error| error.to_string())?;
            serde_json::from_value(value).map_err(|error| error.to_string())
        }
    }
}

fn unrecognized(body: &[u8], kind: &str, error: &str) -> Status {
    let error = match error.strip_prefix("couldn't get version/kind") {
        Some(_) => error.to_owned(),
        None => format!("couldn't get version/kind; json parse error: {error}"),
    };
    Status::bad_request(format!(
        "the object provided is unrecognized (must be of type {kind}): {error} ({})",
        summary(body)
    ))
}

fn cannot_be_handled(api_version: &str, kind: &str, expected: &str, error: &DecodeError) -> Status {
    let version = version_of(api_version);
    Status::bad_request(format!("{kind} in version {version:?} cannot be handled as a {expected}: {error}"))
}

fn version_of(api_version: &str) -> &str {
    api_version.rsplit('/').next().unwrap_or_default()
}

/// The beginning of a body: text when it looks like JSON, else hexadecimal.
fn summary(body: &[u8]) -> String {
    let head = &body[..body.len().min(SUMMARY_BYTES)];
    let text = match body.first() {
        None => return "<empty>".to_owned(),
        Some(b'{') => String::from_utf8_lossy(head).into_owned(),
        Some(_) => head.iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    if body.len() > SUMMARY_BYTES { format!("{text} ...") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_summed_up_as_upstream_does() {
        assert_eq!(summary(b""), "<empty>");
        assert_eq!(summary(b"{\"a\":1}"), "{\"a\":1}");
        assert_eq!(summary(b"abc"), "616263");
        assert_eq!(summary(&[b'{'; 40]), format!("{} ...", "{".repeat(30)));
    }
}
