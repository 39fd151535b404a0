//! The v2 document as protobuf (`openapi.v2.Document` of gnostic's OpenAPIv2.proto), which kubectl asks for when it
//! validates kinds that no v3 document names, `List` among them.
//!
//! Only what clients read: the head and the definitions. Paths stay empty; they are in the v3 documents.

use serde_json::{Map, Value};

/// Encodes a v2 document.
pub fn encode(document: &Value) -> Vec<u8> {
    let mut out = Message::default();
    out.text(1, "2.0");
    let mut info = Message::default();
    info.text(1, document.pointer("/info/title").and_then(Value::as_str).unwrap_or("Kubernetes"));
    info.text(2, document.pointer("/info/version").and_then(Value::as_str).unwrap_or_default());
    out.message(2, &info);
    out.message(8, &Message::default());
    out.0.extend(encode_definitions(document.get("definitions").unwrap_or(&Value::Null)));
    out.0
}

/// Definitions alone: appended to a document they join those that are in it.
pub fn encode_definitions(members: &Value) -> Vec<u8> {
    let mut definitions = Message::default();
    for (name, schema) in members.as_object().into_iter().flatten() {
        definitions.message(1, &named(name, &self::schema(schema)));
    }
    let mut out = Message::default();
    out.message(9, &definitions);
    out.0
}

fn named(name: &str, value: &Message) -> Message {
    let mut out = Message::default();
    out.text(1, name);
    out.message(2, value);
    out
}

/// Field numbers of `openapi.v2.Schema`.
fn schema(schema: &Value) -> Message {
    let mut out = Message::default();
    let Value::Object(fields) = schema else { return out };
    let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
    for (number, name) in [(1, "$ref"), (2, "format"), (3, "title"), (4, "description")] {
        out.text(number, text(name));
    }
    if let Some(default) = fields.get("default") {
        out.message(5, &any(default));
    }
    for required in strings(fields, "required") {
        out.text_even_if_empty(19, required);
    }
    if let Some(additional) = fields.get("additionalProperties") {
        let mut item = Message::default();
        match additional {
            Value::Bool(allowed) => item.flag(2, *allowed),
            other => item.message(1, &self::schema(other)),
        }
        out.message(21, &item);
    }
    if !text("type").is_empty() {
        let mut item = Message::default();
        item.text(1, text("type"));
        out.message(22, &item);
    }
    if let Some(items) = fields.get("items") {
        let mut item = Message::default();
        item.message(1, &self::schema(items));
        out.message(23, &item);
    }
    for part in fields.get("allOf").and_then(Value::as_array).into_iter().flatten() {
        out.message(24, &self::schema(part));
    }
    if let Some(Value::Object(properties)) = fields.get("properties") {
        let mut item = Message::default();
        for (name, property) in properties {
            item.message(1, &named(name, &self::schema(property)));
        }
        out.message(25, &item);
    }
    for (name, extension) in fields.iter().filter(|(name, _)| name.starts_with("x-")) {
        out.message(31, &named(name, &any(extension)));
    }
    out
}

/// `openapi.v2.Any` holds YAML, and JSON is YAML.
fn any(value: &Value) -> Message {
    let mut out = Message::default();
    out.text(2, &format!("{value}\n"));
    out
}

fn strings<'a>(fields: &'a Map<String, Value>, name: &str) -> impl Iterator<Item = &'a str> {
    fields.get(name).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// A protobuf message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn text(&mut self, number: u64, text: &str) {
        if !text.is_empty() {
            self.text_even_if_empty(number, text);
        }
    }

    fn text_even_if_empty(&mut self, number: u64, text: &str) {
        self.bytes(number, text.as_bytes());
    }

    fn message(&mut self, number: u64, message: &Self) {
        self.bytes(number, &message.0);
    }

    fn flag(&mut self, number: u64, value: bool) {
        self.varint(number << 3);
        self.varint(u64::from(value));
    }

    fn bytes(&mut self, number: u64, bytes: &[u8]) {
        self.varint(number << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schema_has_its_fields_in_their_places() {
        let out = schema(&json!({"type": "array", "items": {"$ref": "#/x"}, "x-set": 1}));
        let expected = [
            &[0xb2, 1, 7, 0x0a, 5][..],
            b"array",
            &[0xba, 1, 7, 0x0a, 5, 0x0a, 3],
            b"#/x",
            &[0xfa, 1, 13, 0x0a, 5],
            b"x-set",
            &[0x12, 4, 0x12, 2],
            b"1\n",
        ]
        .concat();
        assert_eq!(out.0, expected);
    }

    #[test]
    fn numbers_take_as_many_bytes_as_they_need() {
        let mut message = Message::default();
        message.bytes(1, &[0; 300]);
        assert_eq!(message.0[..3], [0x0a, 0xac, 2]);
    }
}
