//! Reads the Kubernetes protobuf form of an object into its JSON form.
//!
//! Clients generated from upstream's types write bodies in this form (`kubectl create deployment` and the like), so
//! that it must be read; answers are JSON, which all of them accept. No code is generated: one walker follows a table,
//! `protobuf/fields.tsv`, of which numbers and types the fields have.
//!
//! Upstream's encoder writes strings, numbers and booleans that its types hold by value even when they are zero, which
//! means absent. The table marks those with a `0`; for them a zero is left out, for the others it is kept.

use std::collections::HashMap;
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

/// What every such body begins with.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// Deeper messages are refused: no kind nests like that.
const DEPTH_MAX: usize = 64;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProtobufError {
    #[error("provided data does not appear to be a protobuf message, expected prefix {MAGIC:?}")]
    NoPrefix,
    #[error("unexpected end of protobuf message")]
    Truncated,
    #[error("illegal wire type in field {0}")]
    WireType(u64),
    #[error("string in field {0} is not UTF-8")]
    NotUtf8(u64),
    #[error("embedded JSON in field {0} is broken")]
    Json(u64),
    #[error("message is nested too deeply")]
    TooDeep,
    #[error("no kind {kind:?} is known in version {api_version:?}")]
    UnknownKind { api_version: String, kind: String },
}

/// An object with `apiVersion` and `kind` from its JSON-independent binary form.
///
/// # Errors
/// When the bytes are not such a form, or of a kind that the table does not have.
pub fn decode(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let body = bytes.strip_prefix(MAGIC).ok_or(ProtobufError::NoPrefix)?;
    let mut api_version = String::new();
    let mut kind = String::new();
    let mut raw: &[u8] = &[];
    for field in Fields(body) {
        match field? {
            (1, Wire::Bytes(type_meta)) => {
                for field in Fields(type_meta) {
                    match field? {
                        (1, Wire::Bytes(text)) => api_version = utf8(1, text)?.to_owned(),
                        (2, Wire::Bytes(text)) => kind = utf8(2, text)?.to_owned(),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let message = message_of(&api_version, &kind)
        .ok_or_else(|| ProtobufError::UnknownKind { api_version: api_version.clone(), kind: kind.clone() })?;
    let mut object = Map::new();
    object.insert("apiVersion".to_owned(), api_version.into());
    object.insert("kind".to_owned(), kind.into());
    read_message(raw, message, &mut object, 0)?;
    Ok(Value::Object(object))
}

/// Message name to the rest of its line.
fn table() -> &'static HashMap<&'static str, &'static str> {
    static TABLE: OnceLock<HashMap<&str, &str>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let lines = include_str!("protobuf/fields.tsv").lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.split_once('\t').unwrap_or((line, ""))).collect()
    })
}

/// The fields of the message that a kind is.
fn message_of(api_version: &str, kind: &str) -> Option<&'static str> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let package = match group {
        "" => "api.core".to_owned(),
        "apiextensions.k8s.io" => "apiextensions-apiserver.pkg.apis.apiextensions".to_owned(),
        "apiregistration.k8s.io" => "kube-aggregator.pkg.apis.apiregistration".to_owned(),
        // Packages are named by the first word of the group.
        group => format!("api.{}", group.split('.').next().unwrap_or_default()),
    };
    // DeleteOptions and the like belong to every group.
    let name = format!("{package}.{version}.{kind}");
    table()
        .get(name.as_str())
        .or_else(|| table().get(format!("apimachinery.pkg.apis.meta.v1.{kind}").as_str()))
        .copied()
}

struct Field {
    name: &'static str,
    ty: &'static str,
}

fn field_of(message: &'static str, number: u64) -> Option<Field> {
    message.split('\t').find_map(|column| {
        let (tag, rest) = column.split_once(':')?;
        if tag.parse() != Ok(number) {
            return None;
        }
        let (name, ty) = rest.split_once(':')?;
        Some(Field { name, ty })
    })
}

fn read_message(
    bytes: &[u8],
    message: &'static str,
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), ProtobufError> {
    if depth > DEPTH_MAX {
        return Err(ProtobufError::TooDeep);
    }
    for field in Fields(bytes) {
        let (number, wire) = field?;
        let Some(Field { name, ty }) = field_of(message, number) else { continue };
        if let Some(embedded) = ty.strip_prefix('n') {
            read_message(wire.bytes(number)?, fields(embedded), object, depth + 1)?;
        } else if let Some(item) = ty.strip_prefix('*') {
            let values = match (&wire, item) {
                // Numbers may come packed.
                (Wire::Bytes(packed), "i" | "b") => packed_numbers(packed, item)?,
                _ => read_value(number, wire, item, depth)?.into_iter().collect(),
            };
            if let Value::Array(list) = object.entry(name).or_insert_with(|| Value::Array(Vec::new())) {
                list.extend(values);
            }
        } else if let Some(item) = ty.strip_prefix('%') {
            let (key, value) = read_entry(wire.bytes(number)?, item, depth)?;
            if let Value::Object(map) = object.entry(name).or_insert_with(|| Value::Object(Map::new())) {
                map.insert(key, value);
            }
        } else {
            let (ty, by_value) = match ty.strip_suffix('0') {
                Some(ty) => (ty, true),
                None => (ty, false),
            };
            match read_value(number, wire, ty, depth)? {
                Some(value) if by_value && is_zero(&value) => {}
                Some(value) => {
                    object.insert(name.to_owned(), value);
                }
                None => {}
            }
        }
    }
    Ok(())
}

fn fields(message: &str) -> &'static str {
    table().get(message).copied().unwrap_or_default()
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Bool(truth) => !truth,
        Value::Number(number) => number.as_i64() == Some(0),
        _ => false,
    }
}

/// One value; `None` for what JSON leaves out (a zero time).
fn read_value(number: u64, wire: Wire<'_>, ty: &'static str, depth: usize) -> Result<Option<Value>, ProtobufError> {
    let json = |bytes: &[u8]| serde_json::from_slice(bytes).map_err(|_| ProtobufError::Json(number));
    Ok(Some(match ty {
        "s" => utf8(number, wire.bytes(number)?)?.into(),
        "y" => STANDARD.encode(wire.bytes(number)?).into(),
        "b" => (wire.varint(number)? != 0).into(),
        "i" => wire.varint(number)?.cast_signed().into(),
        "d" => wire.double(number)?.into(),
        "T" | "U" => return time(wire.bytes(number)?, ty == "U"),
        "D" => go_duration(first_varint(wire.bytes(number)?)?).into(),
        "Q" => {
            let text = first_bytes(wire.bytes(number)?)?.map_or(Ok("0"), |text| utf8(1, text))?;
            if text.is_empty() { "0".into() } else { text.into() }
        }
        "I" => int_or_string(wire.bytes(number)?)?,
        "F" | "R" => match first_bytes(wire.bytes(number)?)? {
            Some(bytes) if !bytes.is_empty() => json(bytes)?,
            _ => return Ok(None),
        },
        // A message that only wraps a list of strings.
        "L" => {
            let mut list = Vec::new();
            for field in Fields(wire.bytes(number)?) {
                if let (1, Wire::Bytes(text)) = field? {
                    list.push(utf8(1, text)?.into());
                }
            }
            Value::Array(list)
        }
        "A" | "B" | "P" => return schema_alternative(wire.bytes(number)?, ty, depth),
        _ => match ty.strip_prefix('m') {
            Some(message) => {
                let mut object = Map::new();
                read_message(wire.bytes(number)?, fields(message), &mut object, depth + 1)?;
                Value::Object(object)
            }
            None => return Ok(None),
        },
    }))
}

/// In the schemas of CRDs: a schema, or (A) a list of them, (B) a boolean, (P) a list of names.
fn schema_alternative(bytes: &[u8], ty: &str, depth: usize) -> Result<Option<Value>, ProtobufError> {
    const SCHEMA: &str = "apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
    let schema = |bytes| {
        let mut object = Map::new();
        read_message(bytes, fields(SCHEMA), &mut object, depth + 1).map(|()| Value::Object(object))
    };
    let mut list = Vec::new();
    let mut one = None;
    let mut allows = false;
    for field in Fields(bytes) {
        match (ty, field?) {
            ("A" | "P", (1, Wire::Bytes(bytes))) | ("B", (2, Wire::Bytes(bytes))) => one = Some(schema(bytes)?),
            ("A", (2, Wire::Bytes(bytes))) => list.push(schema(bytes)?),
            ("P", (2, Wire::Bytes(bytes))) => list.push(utf8(2, bytes)?.into()),
            ("B", (1, Wire::Varint(truth))) => allows = truth != 0,
            _ => {}
        }
    }
    Ok(Some(match one {
        Some(schema) => schema,
        None if ty == "B" => allows.into(),
        None => Value::Array(list),
    }))
}

fn read_entry(bytes: &[u8], item: &'static str, depth: usize) -> Result<(String, Value), ProtobufError> {
    let mut key = String::new();
    let mut value = None;
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Bytes(text)) => key = utf8(1, text)?.to_owned(),
            (2, wire) => value = read_value(2, wire, item, depth)?,
            _ => {}
        }
    }
    // An absent value is the zero one.
    let value = value.unwrap_or_else(|| match item {
        "s" | "y" => "".into(),
        "i" => 0.into(),
        "b" => false.into(),
        "Q" => "0".into(),
        "L" => Value::Array(Vec::new()),
        _ => Value::Object(Map::new()),
    });
    Ok((key, value))
}

fn packed_numbers(bytes: &[u8], item: &str) -> Result<Vec<Value>, ProtobufError> {
    let mut rest = bytes;
    let mut list = Vec::new();
    while !rest.is_empty() {
        let number = varint(&mut rest)?;
        list.push(if item == "b" { (number != 0).into() } else { number.cast_signed().into() });
    }
    Ok(list)
}

fn time(bytes: &[u8], micro: bool) -> Result<Option<Value>, ProtobufError> {
    let (mut seconds, mut nanos) = (0, 0);
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Varint(number)) => seconds = number.cast_signed(),
            (2, Wire::Varint(number)) => nanos = i32::try_from(number.cast_signed()).unwrap_or(0),
            _ => {}
        }
    }
    if (seconds, nanos) == (0, 0) {
        return Ok(None);
    }
    let format = if micro { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    Ok(jiff::Timestamp::new(seconds, nanos).ok().map(|time| time.strftime(format).to_string().into()))
}

/// Go's spelling: `1h30m0s`, `1.5s`.
fn go_duration(nanos: i64) -> String {
    const SECOND: u64 = 1_000_000_000;
    let sign = if nanos < 0 { "-" } else { "" };
    let total = nanos.unsigned_abs();
    let (seconds, rest) = (total / SECOND, total % SECOND);
    if seconds == 0 && rest != 0 {
        return format!("{sign}{}ms", rest as f64 / 1_000_000.0);
    }
    let fraction = if rest == 0 { String::new() } else { format!(".{rest:09}").trim_end_matches('0').to_owned() };
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{sign}{seconds}{fraction}s"),
        (0, minutes) => format!("{sign}{minutes}m{seconds}{fraction}s"),
        (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}{fraction}s"),
    }
}

fn int_or_string(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let (mut is_text, mut number, mut text) = (false, 0, "");
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Varint(kind)) => is_text = kind == 1,
            (2, Wire::Varint(value)) => number = value.cast_signed(),
            (3, Wire::Bytes(value)) => text = utf8(3, value)?,
            _ => {}
        }
    }
    Ok(if is_text { text.into() } else { number.into() })
}

fn first_bytes(bytes: &[u8]) -> Result<Option<&[u8]>, ProtobufError> {
    for field in Fields(bytes) {
        if let (1, Wire::Bytes(bytes)) = field? {
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

fn first_varint(bytes: &[u8]) -> Result<i64, ProtobufError> {
    for field in Fields(bytes) {
        if let (1, Wire::Varint(number)) = field? {
            return Ok(number.cast_signed());
        }
    }
    Ok(0)
}

fn utf8(number: u64, bytes: &[u8]) -> Result<&str, ProtobufError> {
    std::str::from_utf8(bytes).map_err(|_| ProtobufError::NotUtf8(number))
}

/// A field's value as it is on the wire.
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
    fn bytes(&self, number: u64) -> Result<&'a [u8], ProtobufError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(ProtobufError::WireType(number)),
        }
    }

    fn varint(&self, number: u64) -> Result<u64, ProtobufError> {
        match self {
            Self::Varint(value) => Ok(*value),
            _ => Err(ProtobufError::WireType(number)),
        }
    }

    fn double(&self, number: u64) -> Result<f64, ProtobufError> {
        match self {
            Self::Fixed64(bits) => Ok(f64::from_bits(*bits)),
            Self::Fixed32(bits) => Ok(f64::from(f32::from_bits(*bits))),
            _ => Err(ProtobufError::WireType(number)),
        }
    }
}

/// The fields of a message, one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Wire<'a>), ProtobufError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = next_field(&mut self.0);
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

fn next_field<'a>(rest: &mut &'a [u8]) -> Result<(u64, Wire<'a>), ProtobufError> {
    let key = varint(rest)?;
    let number = key >> 3;
    let wire = match key & 7 {
        0 => Wire::Varint(varint(rest)?),
        1 => Wire::Fixed64(u64::from_le_bytes(take_array(rest)?)),
        2 => {
            let length = usize::try_from(varint(rest)?).map_err(|_| ProtobufError::Truncated)?;
            let (head, tail) = rest.split_at_checked(length).ok_or(ProtobufError::Truncated)?;
            *rest = tail;
            Wire::Bytes(head)
        }
        5 => Wire::Fixed32(u32::from_le_bytes(take_array(rest)?)),
        _ => return Err(ProtobufError::WireType(number)),
    };
    Ok((number, wire))
}

fn take_array<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], ProtobufError> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or(ProtobufError::Truncated)?;
    *rest = tail;
    Ok(*head)
}

fn varint(rest: &mut &[u8]) -> Result<u64, ProtobufError> {
    let mut value = 0_u64;
    for shift in (0..70).step_by(7) {
        let (byte, tail) = rest.split_first().ok_or(ProtobufError::Truncated)?;
        *rest = tail;
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(ProtobufError::Truncated)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A field of bytes; numbers here are below 16 and lengths below 128.
    fn bytes(number: u8, value: impl AsRef<[u8]>) -> Vec<u8> {
        let value = value.as_ref();
        let mut out = vec![number << 3 | 2, u8::try_from(value.len()).unwrap()];
        assert!(value.len() < 128);
        out.extend_from_slice(value);
        out
    }

    fn number(number: u8, value: u8) -> Vec<u8> {
        vec![number << 3, value]
    }

    fn object(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let type_meta = [bytes(1, api_version), bytes(2, kind)].concat();
        [MAGIC.to_vec(), bytes(1, type_meta), bytes(2, raw), bytes(3, ""), bytes(4, "")].concat()
    }

    #[test]
    fn zeros_held_by_value_are_absent_and_others_are_kept() {
        // Name set; generateName and creationTimestamp empty, as upstream writes them; one label.
        let label = bytes(11, [bytes(1, "app"), bytes(2, "")].concat());
        let metadata = [bytes(1, "web"), bytes(2, ""), number(7, 0), bytes(8, ""), label].concat();
        let spec = [number(1, 0), number(5, 0), number(7, 0)].concat();
        let body = object("apps/v1", "Deployment", &[bytes(1, metadata), bytes(2, spec)].concat());
        assert_eq!(
            decode(&body).unwrap(),
            json!({"apiVersion": "apps/v1", "kind": "Deployment",
                "metadata": {"name": "web", "labels": {"app": ""}}, "spec": {"replicas": 0}})
        );
    }

    #[test]
    fn embedded_structs_are_flattened_and_special_types_read() {
        let selector = [bytes(1, bytes(1, "cm")), bytes(2, "key"), number(3, 0)].concat();
        let variable = [bytes(1, "A"), bytes(2, ""), bytes(3, bytes(3, selector))].concat();
        let limits = bytes(1, [bytes(1, "cpu"), bytes(2, bytes(1, "100m"))].concat());
        let container = [bytes(1, "c"), bytes(7, variable), bytes(8, limits)].concat();
        let seen = decode(&object("v1", "Pod", &bytes(2, bytes(2, container)))).unwrap();
        assert_eq!(
            seen["spec"]["containers"][0],
            json!({"name": "c", "resources": {"limits": {"cpu": "100m"}},
                "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "key", "optional": false}}}]})
        );
        let options = decode(&object("policy/v1", "DeleteOptions", &number(1, 0))).unwrap();
        assert_eq!(options["gracePeriodSeconds"], 0);
        assert_eq!(int_or_string(&[number(1, 1), bytes(3, "25%")].concat()).unwrap(), "25%");
        assert_eq!(int_or_string(&[number(1, 0), number(2, 8)].concat()).unwrap(), 8);
        assert_eq!(time(&number(1, 60), false).unwrap(), Some("1970-01-01T00:01:00Z".into()));
        assert_eq!(go_duration(5_400_000_000_000), "1h30m0s");
        assert_eq!(go_duration(1_500_000_000), "1.5s");
    }

    #[test]
    fn broken_bodies_are_refused() {
        assert_eq!(decode(b"{}"), Err(ProtobufError::NoPrefix));
        let good = object("v1", "ConfigMap", &bytes(1, bytes(1, "x")));
        for end in 5..good.len() - 4 {
            let _ = decode(&good[..end]); // Must not panic.
        }
        assert!(matches!(decode(&object("v1", "Nonsense", &[])), Err(ProtobufError::UnknownKind { .. })));
        assert!(matches!(decode(&[MAGIC.as_slice(), &[0x0a, 0xff]].concat()), Err(ProtobufError::Truncated)));
    }

    #[test]
    fn every_type_that_a_field_names_is_in_the_table() {
        for (message, line) in table() {
            for column in line.split('\t').filter(|column| !column.is_empty()) {
                let ty = column.splitn(3, ':').nth(2).unwrap_or_else(|| panic!("{message}: {column}"));
                let ty = ty.trim_start_matches(['*', '%']);
                match ty.strip_prefix(['m', 'n']) {
                    Some(other) => assert!(table().contains_key(other), "{message}: {column}"),
                    None => assert!("sybidTUDQIFRLABP".contains(ty.trim_end_matches('0')), "{message}: {column}"),
                }
            }
        }
    }
}
