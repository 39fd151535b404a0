//! Bytes of a request to an object that fits its schema: types checked, unknown fields pruned, nulls dropped, and
//! times and quantities in their canonical form, as a round trip through upstream's Go types makes them.

mod scalar;
mod syntax;
mod walk;

use serde::de::DeserializeSeed;
use serde_json::Value;

use self::walk::{Anything, Walk};
use crate::custom::{self, Props};
use crate::schema::Schema;

/// How the bytes are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Yaml,
}

/// The `fieldValidation` of a request: what becomes of unknown and duplicate fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strictness {
    Ignore,
    Warn,
    Strict,
}

/// An object that fits its schema.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    pub object: Value,
    /// Unknown and duplicate fields as upstream words them: `unknown field "spec.foo"`. Empty unless `Warn`.
    pub warnings: Vec<String>,
}

/// Why bytes are no object of the schema. `Display` is upstream's text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON or YAML at all.
    #[error("{0}")]
    Syntax(String),
    /// A value of the wrong type or format.
    #[error("{0}")]
    Type(String),
    /// Unknown or duplicate fields under `Strict`.
    #[error("strict decoding error: {}", .0.join(", "))]
    Strict(Vec<String>),
}

/// Reads one object.
///
/// # Errors
/// See [`DecodeError`]; nothing of the object is returned then.
pub fn decode(bytes: &[u8], format: Format, schema: &Schema, strictness: Strictness) -> Result<Decoded, DecodeError> {
    let walk = Walk::new(strictness, format);
    let outcome = match format {
        Format::Json => {
            let mut reader = serde_json::Deserializer::from_slice(bytes);
            let value = walk.root(schema).deserialize(&mut reader);
            value.and_then(|value| reader.end().map(|()| value)).map_err(|error| syntax::json(bytes, &error))
        }
        Format::Yaml => yaml(bytes, walk.root(schema)).map(Option::flatten),
    };
    let outcome = outcome.map_err(|text| match format {
        Format::Json => format!("couldn't get version/kind; json parse error: {text}"),
        Format::Yaml => text,
    });
    walk.finish(outcome)
}

/// The same for an object that is already a value: the outcome of a patch.
///
/// # Errors
/// See [`DecodeError`].
pub fn check(value: Value, schema: &Schema, strictness: Strictness) -> Result<Decoded, DecodeError> {
    let walk = Walk::new(strictness, Format::Json);
    let outcome = walk.root(schema).deserialize(value).map_err(|error| error.to_string());
    walk.finish(outcome)
}

/// Reads one object of a custom kind: its metadata is checked as that of every object, all else is pruned by the schema.
/// Wrong types are left for validation.
///
/// # Errors
/// See [`DecodeError`].
pub fn decode_custom(
    bytes: &[u8],
    format: Format,
    props: &Props,
    strictness: Strictness,
) -> Result<Decoded, DecodeError> {
    let findings = if strictness == Strictness::Ignore { Strictness::Ignore } else { Strictness::Warn };
    prune(decode(bytes, format, custom::any_object(), findings)?, props, strictness)
}

/// The same for an object that is already a value.
///
/// # Errors
/// See [`DecodeError`].
pub fn check_custom(value: Value, props: &Props, strictness: Strictness) -> Result<Decoded, DecodeError> {
    let findings = if strictness == Strictness::Ignore { Strictness::Ignore } else { Strictness::Warn };
    prune(check(value, custom::any_object(), findings)?, props, strictness)
}

fn prune(mut decoded: Decoded, props: &Props, strictness: Strictness) -> Result<Decoded, DecodeError> {
    let coerced = custom::coerce(&mut decoded.object, props)?;
    match strictness {
        Strictness::Ignore => {}
        Strictness::Warn => decoded.warnings.extend(coerced.unknown),
        Strictness::Strict => {
            decoded.warnings.extend(coerced.unknown);
            if !decoded.warnings.is_empty() {
                return Err(DecodeError::Strict(decoded.warnings));
            }
        }
    }
    Ok(decoded)
}

/// The line and the key of the first duplicate in a YAML mapping, in the words of the parser that upstream uses.
pub fn yaml_duplicate(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::Error,
        with_snippet: false,
    };
    let anything = Anything { format: Format::Yaml, walk: None };
    let read =
        serde_saphyr::with_deserializer_from_str_with_options(text, options, |reader| anything.deserialize(reader));
    let error = read.err()?;
    let line = error.location()?.line();
    let key = text.lines().nth(usize::try_from(line).ok()?.checked_sub(1)?)?.trim_start_matches([' ', '-']);
    let key = key.split(':').next().unwrap_or_default().trim().trim_matches(['"', '\'']);
    error.to_string().contains("duplicate").then(|| {
        format!("error converting YAML to JSON: yaml: unmarshal errors:\n  line {line}: key {key:?} already set in map")
    })
}

/// Any JSON or YAML as it is, for bodies without a schema (patches).
///
/// # Errors
/// `Syntax` only.
pub fn parse(bytes: &[u8], format: Format) -> Result<Value, DecodeError> {
    let outcome = match format {
        Format::Json => serde_json::from_slice(bytes).map_err(|error| syntax::json(bytes, &error)),
        Format::Yaml => yaml(bytes, Anything { format, walk: None }).map(Option::unwrap_or_default),
    };
    outcome.map_err(DecodeError::Syntax)
}

/// Reads the first document through `seed`; `None` when there is none.
fn yaml<'de, S: DeserializeSeed<'de>>(bytes: &'de [u8], seed: S) -> Result<Option<S::Value>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "yaml: invalid leading UTF-8 octet".to_owned())?;
    if text.trim().is_empty() {
        return Ok(None);
    }
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::PassThrough,
        with_snippet: false,
    };
    serde_saphyr::with_deserializer_from_str_with_options(text, options, |reader| seed.deserialize(reader))
        .map(Some)
        .map_err(|error| format!("error converting YAML to JSON: yaml: {error}"))
}

#[cfg(test)]
mod tests;
