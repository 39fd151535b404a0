//! Lists of type `set` and `map` hold nothing twice.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::Props;
use crate::field::{FieldError, FieldErrors, Path};

/// Duplicates in the lists of `value`.
pub fn duplicates(value: &Value, props: &Props, path: &Path) -> FieldErrors {
    let mut errors = FieldErrors::new();
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                match props.property(name) {
                    Some(known) => errors.extend(duplicates(value, known, &path.child(name))),
                    None => {
                        if let Some(known) = props.values() {
                            errors.extend(duplicates(value, known, &path.key(name)));
                        }
                    }
                }
            }
        }
        Value::Array(list) => {
            match props.list_type.as_deref() {
                Some("set") => twice(list.iter().cloned(), path, &mut errors),
                Some("map") => twice(list.iter().map(|item| key(item, props)), path, &mut errors),
                _ => {}
            }
            if let Some(items) = &props.items {
                for (at, item) in list.iter().enumerate() {
                    errors.extend(duplicates(item, items, &path.index(at)));
                }
            }
        }
        _ => {}
    }
    errors
}

/// What tells an element of a `map` list from the others.
pub fn key(item: &Value, props: &Props) -> Value {
    let mut key = Map::new();
    for name in &props.list_map_keys {
        if let Some(value) = item.get(name).filter(|value| !value.is_null()) {
            key.insert(name.clone(), value.clone());
        }
    }
    Value::Object(key)
}

fn twice(keys: impl Iterator<Item = Value>, path: &Path, errors: &mut FieldErrors) {
    let mut seen = HashSet::new();
    for (at, key) in keys.enumerate() {
        // Elements without keys are reported by `required`.
        if key.as_object().is_some_and(Map::is_empty) {
            continue;
        }
        if !seen.insert(canonical(&key)) {
            errors.push(FieldError::duplicate(&path.index(at), key));
        }
    }
}

/// The same text for values that differ in the order of their members only.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut members: Vec<_> = map.iter().map(|(key, value)| format!("{key:?}:{}", canonical(value))).collect();
            members.sort_unstable();
            format!("{{{}}}", members.join(","))
        }
        Value::Array(list) => format!("[{}]", list.iter().map(canonical).collect::<Vec<_>>().join(",")),
        other => other.to_string(),
    }
}
