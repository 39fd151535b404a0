//! A value together with where it stands in its object, so that a complaint always names the right field.

use serde_json::{Map, Value};

use crate::field::{ErrorKind, FieldError, FieldErrors, Path};

static NULL: Value = Value::Null;

/// A value of an object, absent ones as `Null`, and its path.
#[derive(Clone)]
pub struct Field<'a> {
    pub value: &'a Value,
    pub path: Path,
}

impl<'a> Field<'a> {
    pub fn root(object: &'a Value) -> Self {
        Self { value: object, path: Path::root() }
    }

    pub fn get(&self, name: &str) -> Field<'a> {
        Field { value: self.value.get(name).unwrap_or(&NULL), path: self.path.child(name) }
    }

    /// The elements of the list `name`, none when absent.
    pub fn list(&self, name: &str) -> Vec<Field<'a>> {
        self.get(name).items()
    }

    pub fn items(&self) -> Vec<Field<'a>> {
        let list = self.value.as_array().into_iter().flatten();
        list.enumerate().map(|(at, value)| Field { value, path: self.path.index(at) }).collect()
    }

    /// The members of a map, with paths as upstream's `Key`: `limits[cpu]`.
    pub fn entries(&self) -> Vec<(&'a str, Field<'a>)> {
        let entry = |(key, value): (&'a String, &'a Value)| (key.as_str(), Field { value, path: self.path.key(key) });
        self.value.as_object().into_iter().flatten().map(entry).collect()
    }

    pub fn map(&self) -> Option<&'a Map<String, Value>> {
        self.value.as_object()
    }

    pub fn text(&self) -> &'a str {
        self.value.as_str().unwrap_or_default()
    }

    pub fn int(&self) -> Option<i64> {
        self.value.as_i64()
    }

    pub fn flag(&self) -> bool {
        self.value.as_bool().unwrap_or_default()
    }

    pub fn is_absent(&self) -> bool {
        self.value.is_null()
    }

    pub fn is_present(&self) -> bool {
        !self.value.is_null()
    }

    /// Absent, or what Go calls the zero value.
    pub fn is_zero(&self) -> bool {
        match self.value {
            Value::Null => true,
            Value::Bool(flag) => !flag,
            Value::Number(number) => number.as_f64() == Some(0.0),
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
        }
    }

    /// How many elements or members there are.
    pub fn count(&self) -> usize {
        match self.value {
            Value::Array(list) => list.len(),
            Value::Object(map) => map.len(),
            _ => 0,
        }
    }

    pub fn required(&self, detail: impl Into<String>) -> FieldError {
        FieldError::required(&self.path, detail)
    }

    pub fn invalid(&self, detail: impl Into<String>) -> FieldError {
        FieldError::invalid(&self.path, self.value.clone(), detail)
    }

    pub fn forbidden(&self, detail: impl Into<String>) -> FieldError {
        FieldError::forbidden(&self.path, detail)
    }

    pub fn duplicate(&self) -> FieldError {
        FieldError::duplicate(&self.path, self.value.clone())
    }

    pub fn not_found(&self) -> FieldError {
        FieldError::not_found(&self.path, self.value.clone())
    }

    pub fn not_supported(&self, supported: &[&str]) -> FieldError {
        FieldError::not_supported(&self.path, self.value.clone(), supported)
    }

    /// One `invalid` for each message.
    pub fn each_invalid(&self, messages: Vec<String>) -> FieldErrors {
        messages.into_iter().map(|message| self.invalid(message)).collect()
    }

    /// Required and one of `supported`.
    pub fn one_of(&self, supported: &[&str]) -> FieldErrors {
        if self.is_zero() { vec![self.required("")] } else { self.none_or_one_of(supported) }
    }

    /// Absent or one of `supported`.
    pub fn none_or_one_of(&self, supported: &[&str]) -> FieldErrors {
        if self.is_zero() || supported.contains(&self.text()) {
            Vec::new()
        } else {
            vec![self.not_supported(supported)]
        }
    }

    pub fn non_negative(&self) -> FieldErrors {
        match self.int() {
            Some(number) if number < 0 => vec![self.invalid("must be greater than or equal to 0")],
            _ => Vec::new(),
        }
    }

    pub fn positive(&self) -> FieldErrors {
        match self.int() {
            Some(number) if number <= 0 => vec![self.invalid("must be greater than 0")],
            _ => Vec::new(),
        }
    }

    pub fn not_empty(&self) -> FieldErrors {
        if self.is_zero() { vec![self.required("")] } else { Vec::new() }
    }

    /// Unchanged since `old`, empty and absent being the same.
    pub fn immutable(&self, old: &Field<'_>) -> FieldErrors {
        if same(self.value, old.value) { Vec::new() } else { vec![self.invalid("field is immutable")] }
    }
}

/// A `Too many` error, as upstream words it.
pub fn too_many(field: &Field<'_>, count: usize, max: usize) -> FieldError {
    let detail = format!("must have at most {max} items");
    FieldError { kind: ErrorKind::TooMany, path: field.path.clone(), value: count.into(), detail }
}

/// Equality as upstream's types see it: absent, null, empty and zero are one.
pub fn same(a: &Value, b: &Value) -> bool {
    let blank = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Bool(true) => false,
    };
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            a.iter().all(|(key, value)| same(value, b.get(key).unwrap_or(&NULL)))
                && b.iter().all(|(key, value)| a.contains_key(key) || same(value, &NULL))
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        // A struct whose members are all empty is as good as none.
        (Value::Object(map), other) | (other, Value::Object(map)) => {
            blank(other) && !other.is_number() && map.values().all(|value| same(value, &NULL))
        }
        (a, b) => a == b || blank(a) && blank(b),
    }
}

/// The paths at which two values differ, for messages; at most `max`.
pub fn differing(a: &Value, b: &Value, path: &Path, max: usize, found: &mut Vec<String>) {
    if found.len() >= max || same(a, b) {
        return;
    }
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let fresh = b.keys().filter(|key| !a.contains_key(*key));
            for key in a.keys().chain(fresh) {
                differing(a.get(key).unwrap_or(&NULL), b.get(key).unwrap_or(&NULL), &path.child(key), max, found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (at, (a, b)) in a.iter().zip(b).enumerate() {
                differing(a, b, &path.index(at), max, found);
            }
        }
        _ => found.push(format!("  {path}: {b} -> {a}")),
    }
}
