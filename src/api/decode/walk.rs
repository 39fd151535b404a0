//! The walk over a body along its schema. It works on serde's events, so that duplicate keys are seen, and so that the
//! same code reads JSON, YAML and values.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::scalar::{self, Misfit};
use super::{DecodeError, Decoded, Format, Strictness};
use crate::schema::{Schema, Type};

/// More findings than this are not listed.
const FINDINGS_MAX: usize = 100;

/// What one walk collects. Shared by all of its visitors, each of which lives only for its own value.
pub(super) struct Walk {
    strictness: Strictness,
    format: Format,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    /// `spec.containers[0]`
    path: String,
    /// `spec.containers`: as Go names fields in type errors.
    fields: String,
    /// The innermost named struct and, at its end, the field of it that is being read.
    structs: Vec<String>,
    findings: Vec<String>,
    /// The first value that does not fit; it ends the walk.
    misfit: Option<String>,
}

impl Walk {
    pub fn new(strictness: Strictness, format: Format) -> Self {
        Self { strictness, format, state: RefCell::default() }
    }

    pub fn root<'w>(&'w self, schema: &Schema) -> Typed<'w> {
        Typed { walk: self, schema: schema.clone() }
    }

    pub fn finish(self, outcome: Result<Option<Value>, String>) -> Result<Decoded, DecodeError> {
        let state = self.state.into_inner();
        match outcome {
            _ if state.misfit.is_some() => Err(DecodeError::Type(state.misfit.unwrap_or_default())),
            Err(text) => Err(DecodeError::Syntax(text)),
            Ok(_) if self.strictness == Strictness::Strict && !state.findings.is_empty() => {
                Err(DecodeError::Strict(state.findings))
            }
            Ok(object) => {
                Ok(Decoded { object: object.unwrap_or_else(|| Value::Object(Map::new())), warnings: state.findings })
            }
        }
    }

    fn found(&self, what: &str, field: &str) {
        if self.strictness == Strictness::Ignore {
            return;
        }
        let mut state = self.state.borrow_mut();
        let dot = if state.path.is_empty() { "" } else { "." };
        let text = format!("{what} field \"{}{dot}{field}\"", state.path);
        if state.findings.len() < FINDINGS_MAX && !state.findings.contains(&text) {
            state.findings.push(text);
        }
    }

    /// Runs `read` one step deeper. Path and fields are as before when it returns.
    fn inside<T>(&self, step: Step<'_>, read: impl FnOnce() -> T) -> T {
        let (path_len, fields_len) = {
            let mut state = self.state.borrow_mut();
            let lengths = (state.path.len(), state.fields.len());
            match step {
                Step::Field(name) => {
                    push_dotted(&mut state.path, name);
                    push_dotted(&mut state.fields, name);
                }
                Step::Key(name) => push_dotted(&mut state.path, name),
                Step::Index(index) => state.path.push_str(&format!("[{index}]")),
            }
            lengths
        };
        let out = read();
        let mut state = self.state.borrow_mut();
        // After a misfit the place is of interest to nobody.
        state.path.truncate(path_len);
        state.fields.truncate(fields_len);
        out
    }

    fn misfit<E: Error>(&self, misfit: Misfit, schema: &Schema) -> E {
        let mut state = self.state.borrow_mut();
        let text = match misfit {
            Misfit::Text(text) => text,
            Misfit::Type(value) => {
                let go = scalar::go_type(schema);
                match state.structs.last().filter(|_| !state.fields.is_empty()) {
                    Some(name) => {
                        format!(
                            "json: cannot unmarshal {value} into Go struct field {name}.{} of type {go}",
                            state.fields
                        )
                    }
                    None => format!("json: cannot unmarshal {value} into Go value of type {go}"),
                }
            }
        };
        state.misfit.get_or_insert(text);
        E::custom("misfit")
    }
}

enum Step<'a> {
    Field(&'a str),
    Key(&'a str),
    Index(usize),
}

fn push_dotted(path: &mut String, name: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(name);
}

/// Reads a value that has a schema. `None` stands for null.
pub(super) struct Typed<'w> {
    walk: &'w Walk,
    schema: Schema,
}

impl Typed<'_> {
    fn of(&self, schema: Schema) -> Self {
        Self { walk: self.walk, schema }
    }

    /// A value that is wrong for a built-in kind is an error; in a custom resource validation will say so.
    fn scalar<E: Error>(&self, value: Value) -> Result<Option<Value>, E> {
        if self.schema.ty() == Type::Any {
            return Ok(Some(value));
        }
        match scalar::fit(value.clone(), &self.schema, self.walk.format) {
            Ok(value) => Ok(Some(value)),
            Err(Misfit::Type(_)) if !self.schema.is_builtin() => Ok(Some(value)),
            Err(misfit) => Err(self.walk.misfit(misfit, &self.schema)),
        }
    }

    /// A reader of values without a schema. In custom objects it looks for duplicates, as upstream does; in built-in ones
    /// such values are raw.
    fn anything(&self) -> Anything<'_> {
        Anything { format: self.walk.format, walk: (!self.schema.is_builtin()).then_some(self.walk) }
    }

    /// How the members of an object are read: `None` when it is taken as it is.
    fn members(&self) -> Option<Schema> {
        match self.schema.ty() {
            Type::Object => Some(self.schema.clone()),
            Type::Any => self.schema.when_object(),
            _ => None,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Typed<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Typed<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(if self.schema.nullable() { Some(Value::Null) } else { None })
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        self.visit_unit()
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        self.scalar(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        self.scalar(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        self.scalar(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
        self.scalar(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Self::Value, E> {
        self.scalar(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Self::Value, E> {
        self.scalar(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let items = match self.schema.ty() {
            Type::Array => self.schema.items(),
            Type::Any => None,
            _ if !self.schema.is_builtin() => None,
            _ => return Err(self.walk.misfit(Misfit::Type("array".to_owned()), &self.schema)),
        };
        let mut list = Vec::new();
        let Some(items) = items else {
            while let Some(value) =
                self.walk.inside(Step::Index(list.len()), || seq.next_element_seed(self.anything()))?
            {
                list.push(value);
            }
            return Ok(Some(Value::Array(list)));
        };
        while let Some(value) =
            self.walk.inside(Step::Index(list.len()), || seq.next_element_seed(self.of(items.clone())))?
        {
            list.push(value.unwrap_or_else(|| scalar::zero(&items)));
        }
        Ok(Some(Value::Array(list)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let Some(schema) = self.members() else {
            if self.schema.ty() != Type::Any && self.schema.is_builtin() {
                return Err(self.walk.misfit(Misfit::Type("object".to_owned()), &self.schema));
            }
            return self.anything().visit_map(map).map(Some);
        };
        let named = schema.name().and_then(|name| name.rsplit('.').next());
        if let Some(name) = named {
            self.walk.state.borrow_mut().structs.push(name.to_owned());
        }
        let mut object = Map::new();
        let mut seen = HashSet::new();
        while let Some(Key(name)) = map.next_key()? {
            let property = schema.property(&name);
            let known = property.is_some() || schema.additional_properties().is_some() || schema.preserve_unknown();
            if !known {
                self.walk.found("unknown", &name);
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if !seen.insert(name.clone()) {
                self.walk.found("duplicate", &name);
            }
            let value = match (property, schema.additional_properties()) {
                (Some(property), _) => {
                    self.walk.inside(Step::Field(&name), || map.next_value_seed(self.of(property)))?
                }
                (None, Some(values)) => {
                    let value = self.walk.inside(Step::Key(&name), || map.next_value_seed(self.of(values.clone())))?;
                    Some(value.unwrap_or_else(|| scalar::zero(&values)))
                }
                (None, None) => Some(self.walk.inside(Step::Key(&name), || map.next_value_seed(self.anything()))?),
            };
            match value {
                Some(value) => object.insert(name, value),
                None => object.remove(&name),
            };
        }
        if named.is_some() {
            self.walk.state.borrow_mut().structs.pop();
        }
        Ok(Some(Value::Object(object)))
    }
}

/// A key of a mapping. YAML has keys that are no strings; they read as JSON would write them.
struct Key(String);

impl<'de> serde::Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Key;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string key")
            }
            fn visit_str<E: Error>(self, value: &str) -> Result<Key, E> {
                Ok(Key(value.to_owned()))
            }
            fn visit_string<E: Error>(self, value: String) -> Result<Key, E> {
                Ok(Key(value))
            }
        }
        deserializer.deserialize_string(Text)
    }
}

/// Reads any value as it is. With a walk, duplicate keys are told to it.
#[derive(Clone, Copy)]
pub(super) struct Anything<'w> {
    pub format: Format,
    pub walk: Option<&'w Walk>,
}

impl Anything<'_> {
    fn inside<T>(self, step: Step<'_>, read: impl FnOnce() -> T) -> T {
        match self.walk {
            Some(walk) => walk.inside(step, read),
            None => read(),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Anything<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Anything<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        let whole = self.format == Format::Yaml && value.fract() == 0.0 && value.abs() < 9e15;
        Ok(if whole { (value as i64).into() } else { value.into() })
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = self.inside(Step::Index(list.len()), || seq.next_element_seed(self))? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(Key(name)) = map.next_key()? {
            let value = self.inside(Step::Key(&name), || map.next_value_seed(self))?;
            if let (Some(walk), true) = (self.walk, object.contains_key(&name)) {
                walk.found("duplicate", &name);
            }
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}
