//! Values that are more than their JSON type: times, quantities, bytes, numbers of a size.

use std::str::FromStr;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::Value;

use super::Format;
use crate::quantity::Quantity;
use crate::schema::{Schema, Type};

const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";
/// Go's decoder wants the padding, but does not mind stray bits before it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// Why a scalar does not fit.
pub(super) enum Misfit {
    /// `json: cannot unmarshal <this> into Go …`
    Type(String),
    /// A text of its own.
    Text(String),
}

/// A scalar as its schema wants it.
pub(super) fn fit(value: Value, schema: &Schema, format: Format) -> Result<Value, Misfit> {
    match (schema.ty(), value) {
        (Type::String, Value::String(text)) => string(text, schema),
        (Type::IntOrString, value @ Value::String(_)) | (Type::Boolean, value @ Value::Bool(_)) => Ok(value),
        (Type::Integer | Type::IntOrString, Value::Number(number)) => {
            // YAML has been JSON by the time upstream sees it, and there 1.0 is written 1.
            let whole = number.as_f64().filter(|f| format == Format::Yaml && f.fract() == 0.0 && f.abs() < 9e15);
            let integer = number.as_i64().or_else(|| whole.map(|f| f as i64));
            let small = schema.ty() == Type::IntOrString || schema.format() == Some("int32");
            match integer.filter(|i| !small || i32::try_from(*i).is_ok()) {
                Some(integer) => Ok(integer.into()),
                None => Err(Misfit::Type(format!("number {number}"))),
            }
        }
        (Type::Number, value @ Value::Number(_)) => Ok(value),
        (Type::Quantity, Value::String(text)) => quantity(&text),
        (Type::Quantity, Value::Number(number)) => quantity(&number.to_string()),
        (_, value) => Err(Misfit::Type(kind(&value).to_owned())),
    }
}

/// The word Go has for the type of a JSON value.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The Go type that a schema stands for: `int32`, `[]v1.Container`.
pub(super) fn go_type(schema: &Schema) -> String {
    if let Some(name) = schema.name().filter(|_| schema.ty() == Type::Object) {
        let mut parts = name.rsplit('.');
        let (kind, version) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        return format!("{version}.{kind}");
    }
    match schema.ty() {
        Type::Array => format!("[]{}", schema.items().map_or_else(|| "interface {}".to_owned(), |s| go_type(&s))),
        Type::Object => {
            let values = schema.additional_properties();
            format!("map[string]{}", values.map_or_else(|| "interface {}".to_owned(), |s| go_type(&s)))
        }
        Type::String if schema.format() == Some("byte") => "[]uint8".to_owned(),
        Type::String if schema.format() == Some("date-time") => "time.Time".to_owned(),
        Type::String => "string".to_owned(),
        Type::Integer => schema.format().unwrap_or("int64").to_owned(),
        Type::IntOrString => "int32".to_owned(),
        Type::Number => "float64".to_owned(),
        Type::Boolean => "bool".to_owned(),
        Type::Quantity => "resource.Quantity".to_owned(),
        Type::Any => "interface {}".to_owned(),
    }
}

/// What Go makes of `null` where it cannot leave the value out: in lists and maps.
pub(super) fn zero(schema: &Schema) -> Value {
    match schema.ty() {
        Type::Object => Value::Object(serde_json::Map::new()),
        Type::Array => Value::Array(Vec::new()),
        Type::String => "".into(),
        Type::Integer | Type::Number | Type::IntOrString => 0.into(),
        Type::Boolean => false.into(),
        Type::Quantity => "0".into(),
        Type::Any => Value::Null,
    }
}

fn string(text: String, schema: &Schema) -> Result<Value, Misfit> {
    // Custom resources keep what they were sent; only validation looks at their formats.
    match schema.format().filter(|_| schema.is_builtin()) {
        Some("byte") => {
            let text = if text.contains(['\r', '\n']) { text.replace(['\r', '\n'], "") } else { text };
            BASE64.decode(&text).map_err(|error| Misfit::Text(base64_error(&text, error)))?;
            Ok(text.into())
        }
        Some("date-time") => time(&text, schema.name() == Some(MICRO_TIME)),
        _ => Ok(text.into()),
    }
}

fn base64_error(text: &str, error: base64::DecodeError) -> String {
    let at = match error {
        base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
        base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => text.len(),
    };
    format!("illegal base64 data at input byte {at}")
}

fn time(text: &str, micro: bool) -> Result<Value, Misfit> {
    let shaped = matches!(text.as_bytes().get(10), Some(b'T')) && text.as_bytes().get(19) != Some(&b',');
    let parsed = jiff::Timestamp::from_str(text).ok().filter(|_| shaped);
    let Some(time) = parsed else {
        let layout = if micro { "2006-01-02T15:04:05.000000Z07:00" } else { "2006-01-02T15:04:05Z07:00" };
        let text = format!("parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\"");
        return Err(Misfit::Text(text));
    };
    let layout = if micro { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    Ok(time.strftime(layout).to_string().into())
}

fn quantity(text: &str) -> Result<Value, Misfit> {
    match Quantity::from_str(text.trim()) {
        Ok(quantity) => Ok(quantity.to_string().into()),
        Err(error) => Err(Misfit::Text(error.to_string())),
    }
}
