//! Schemas as types, and values of a schema: what `self` is in a rule, and `object` when policies are checked.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mussel_api::schema::{Schema, Type as Kind};
use mussel_cel::{Key, ObjectType, Type, Value, parse_duration, parse_timestamp};
use serde_json::Value as Json;

/// The name by which expressions select a property; `None` when there is none.
pub fn escape(property: &str) -> Option<String> {
    // Words of the language, which fields cannot be selected by.
    if matches!(property, "true" | "false" | "null") || mussel_cel::RESERVED.contains(&property) {
        return Some(format!("__{property}__"));
    }
    let mut out = String::with_capacity(property.len());
    let mut rest = property;
    while let Some(c) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("__") {
            out.push_str("__underscores__");
            rest = after;
            continue;
        }
        match c {
            '.' => out.push_str("__dot__"),
            '-' => out.push_str("__dash__"),
            '/' => out.push_str("__slash__"),
            c if c.is_ascii_alphanumeric() || c == '_' => out.push(c),
            _ => return None,
        }
        rest = &rest[c.len_utf8()..];
    }
    let begins = out.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    begins.then_some(out)
}

/// An object of a schema.
struct SchemaObject {
    schema: Schema,
    name: String,
    names: Names,
}

/// By which names properties are selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// Those of [`escape`]: in rules of schemas.
    Escaped,
    /// As they are: objects in admission are plain maps.
    Plain,
}

impl ObjectType for SchemaObject {
    fn name(&self) -> &str {
        &self.name
    }

    fn field(&self, name: &str) -> Option<Type> {
        let known = |property: &str| match self.names {
            Names::Escaped => escape(property).as_deref() == Some(name),
            Names::Plain => property == name,
        };
        let direct = self.schema.property(name).filter(|_| known(name)).map(|schema| (name, schema));
        let (property, schema) = direct.or_else(|| self.schema.properties().find(|(property, _)| known(property)))?;
        type_of(&schema, &format!("{}.{property}", self.name), self.names)
    }
}

/// The type of a schema's values; `None` when nothing is known of them, and expressions cannot get at them.
///
/// `name` is what messages call an object of it.
pub fn type_of(schema: &Schema, name: &str, names: Names) -> Option<Type> {
    Some(match schema.ty() {
        Kind::IntOrString | Kind::Quantity => Type::Dyn,
        Kind::Any if schema.is_builtin() => Type::Dyn,
        Kind::Any => return None,
        Kind::Boolean => Type::Bool,
        Kind::Integer => Type::Int,
        Kind::Number => Type::Double,
        Kind::String => match schema.format() {
            Some("byte") => Type::Bytes,
            Some("duration") => Type::Duration,
            Some("date" | "date-time") => Type::Timestamp,
            _ => Type::String,
        },
        Kind::Array => Type::list(type_of(&schema.items()?, &format!("{name}.@idx"), names)?),
        Kind::Object => match schema.additional_properties() {
            Some(values) => Type::map(Type::String, type_of(&values, &format!("{name}.@elem"), names)?),
            None => Type::Object(Arc::new(SchemaObject { schema: schema.clone(), name: name.to_owned(), names })),
        },
    })
}

/// A value of a schema, with the types that the schema says.
pub fn value(json: &Json, schema: Option<&Schema>) -> Value {
    let Some(schema) = schema else { return Value::from_json(json) };
    match (json, schema.ty()) {
        (Json::Number(number), Kind::Number) => Value::Double(number.as_f64().unwrap_or(f64::NAN)),
        (Json::String(text), Kind::String) => match schema.format() {
            Some("byte") => {
                STANDARD.decode(text).map_or_else(|_| text.as_str().into(), |bytes| Value::Bytes(bytes.into()))
            }
            Some("duration") => parse_duration(text).map_or_else(|_| text.as_str().into(), Value::Duration),
            Some("date-time") => parse_timestamp(text).map_or_else(|_| text.as_str().into(), Value::Timestamp),
            Some("date") => {
                parse_timestamp(&format!("{text}T00:00:00Z")).map_or_else(|_| text.as_str().into(), Value::Timestamp)
            }
            _ => text.as_str().into(),
        },
        (Json::Array(items), Kind::Array) => {
            let of = schema.items();
            Value::list(items.iter().map(|item| value(item, of.as_ref())).collect())
        }
        (Json::Object(map), Kind::Object) => {
            let others = schema.additional_properties();
            let mut made = BTreeMap::new();
            for (name, member) in map {
                // A property by its escaped name; the key of a map as it is.
                let (key, of) = match (schema.property(name), &others) {
                    (Some(of), _) => match escape(name) {
                        Some(key) => (key, Some(of)),
                        None => continue,
                    },
                    (None, Some(of)) => (name.clone(), Some(of.clone())),
                    (None, None) => match escape(name) {
                        Some(key) => (key, None),
                        None => continue,
                    },
                };
                made.insert(Key::String(key.into()), value(member, of.as_ref()));
            }
            Value::Map(Arc::new(made))
        }
        _ => Value::from_json(json),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_have_names_in_expressions() {
        for (property, expected) in [
            ("a", Some("a")),
            ("a-b", Some("a__dash__b")),
            ("a.b/c", Some("a__dot__b__slash__c")),
            ("namespace", Some("__namespace__")),
            ("x__y", Some("x__underscores__y")),
            ("1a", None),
            ("a b", None),
        ] {
            assert_eq!(escape(property).as_deref(), expected, "{property}");
        }
    }
}
