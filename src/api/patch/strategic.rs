//! Strategic merge patch: lists merge by the keys that the schema names, and directives say what data alone cannot.

use serde_json::{Map, Value};

use super::{PatchError, without_nulls};
use crate::schema::Schema;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";

/// Applies a strategic merge patch to an object of the kind that `schema` describes.
///
/// # Errors
/// When a directive is malformed or a list element lacks its merge key.
pub fn strategic(target: &Value, patch: &Value, schema: &Schema) -> Result<Value, PatchError> {
    let Value::Object(changes) = patch else {
        return Err(PatchError::Syntax("invalid JSON document".to_owned()));
    };
    let target = target.as_object().cloned().unwrap_or_default();
    Ok(Value::Object(merge_map(target, changes.clone(), Some(schema))?))
}

fn bad(text: impl Into<String>) -> PatchError {
    PatchError::NotApplicable(text.into())
}

fn merge_map(
    mut original: Map<String, Value>,
    mut patch: Map<String, Value>,
    schema: Option<&Schema>,
) -> Result<Map<String, Value>, PatchError> {
    if let Some(directive) = patch.remove(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => Ok(without_directives_in(patch)),
            Some("delete") => Ok(Map::new()),
            _ => Err(bad(format!("unknown patch type: {} in map: {}", text_of(&directive), Value::Object(patch)))),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    let ordered: Vec<String> = patch.keys().filter_map(|k| k.strip_prefix(SET_ORDER).map(str::to_owned)).collect();
    let deleted: Vec<String> = patch.keys().filter_map(|k| k.strip_prefix(DELETE_FROM).map(str::to_owned)).collect();
    for field in deleted {
        let Some(Value::Array(gone)) = patch.remove(&format!("{DELETE_FROM}{field}")) else {
            return Err(bad("invalid patch format of primitive list"));
        };
        if let Some(Value::Array(list)) = original.get_mut(&field) {
            list.retain(|item| !gone.contains(item));
        }
    }
    for field in ordered {
        let Some(Value::Array(order)) = patch.remove(&format!("{SET_ORDER}{field}")) else {
            return Err(bad("invalid patch format of setElementOrder list"));
        };
        let change = patch.remove(&field);
        merge_ordered(&mut original, &field, change, &order, schema)?;
    }
    for (field, change) in patch {
        if change.is_null() {
            original.remove(&field);
            continue;
        }
        let node = schema.and_then(|schema| member(schema, &field));
        let merged = match original.remove(&field) {
            None => without_directives(without_nulls(change)),
            Some(old) => merge_value(old, change, node.as_ref())?,
        };
        original.insert(field, merged);
    }
    Ok(original)
}

fn member(schema: &Schema, field: &str) -> Option<Schema> {
    schema.property(field).or_else(|| schema.additional_properties())
}

fn merge_value(old: Value, change: Value, node: Option<&Schema>) -> Result<Value, PatchError> {
    let strategy = node.and_then(Schema::patch_strategy).unwrap_or_default();
    match (old, change) {
        (Value::Object(old), Value::Object(change)) if !strategy.replace => {
            Ok(Value::Object(merge_map(old, change, node)?))
        }
        (Value::Array(old), Value::Array(change)) if strategy.merge => Ok(Value::Array(merge_list(old, change, node)?)),
        (_, change) => Ok(without_directives(without_nulls(change))),
    }
}

/// A list whose whole order the patch gives.
fn merge_ordered(
    original: &mut Map<String, Value>,
    field: &str,
    change: Option<Value>,
    order: &[Value],
    schema: Option<&Schema>,
) -> Result<(), PatchError> {
    let node = schema.and_then(|schema| member(schema, field));
    let key = node.as_ref().and_then(Schema::patch_merge_key).map(str::to_owned);
    let before = match original.get(field) {
        Some(Value::Array(list)) => Some(list.clone()),
        _ => None,
    };
    let merged = match (original.remove(field), change) {
        (_, Some(Value::Null)) | (None, None) => return Ok(()),
        (Some(old), Some(change)) => merge_value(old, change, node.as_ref())?,
        (Some(old), None) => old,
        (None, Some(change)) => without_directives(without_nulls(change)),
    };
    let merged = match merged {
        Value::Array(list) => Value::Array(reorder(list, order, &before.unwrap_or_default(), key.as_deref())),
        other => other,
    };
    original.insert(field.to_owned(), merged);
    Ok(())
}

/// Drops from `original` what the patch's `$retainKeys` does not name: the other arms of a union.
fn retain_keys(original: &mut Map<String, Value>, patch: &mut Map<String, Value>) -> Result<(), PatchError> {
    let malformed = || bad("invalid patch format of retainKeys");
    let Some(kept) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let kept = kept.as_array().ok_or_else(malformed)?;
    let named = |key: &str| kept.iter().any(|kept| kept == key);
    if patch.iter().any(|(key, value)| !key.starts_with('$') && !value.is_null() && !named(key)) {
        return Err(malformed());
    }
    original.retain(|key, _| named(key));
    Ok(())
}

fn merge_list(old: Vec<Value>, change: Vec<Value>, node: Option<&Schema>) -> Result<Vec<Value>, PatchError> {
    let key = node.and_then(Schema::patch_merge_key);
    let objects = change.first().or(old.first()).is_some_and(Value::is_object);
    if change.iter().chain(&old).any(|item| item.is_object() != objects) {
        return Err(bad("merging lists of different types is not supported"));
    }
    if !objects {
        let before = old.clone();
        let mut merged = old;
        for item in &change {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        return Ok(reorder(merged, &change, &before, None));
    }
    let Some(key) = key else { return Err(bad("cannot merge lists without merge key")) };
    merge_objects(old, change, key, node.and_then(Schema::items).as_ref())
}

fn merge_objects(
    old: Vec<Value>,
    change: Vec<Value>,
    key: &str,
    items: Option<&Schema>,
) -> Result<Vec<Value>, PatchError> {
    let mut merged = old.clone();
    let mut patched = Vec::with_capacity(change.len());
    let mut replace = false;
    for item in change {
        let Some(directive) = item.get(DIRECTIVE) else {
            patched.push(item);
            continue;
        };
        match directive.as_str() {
            Some("delete") => {
                let Some(value) = item.get(key) else { return Err(no_merge_key(&item, key)) };
                merged.retain(|element| element.get(key) != Some(value));
            }
            Some("replace") => replace = true,
            Some("merge") => return Err(bad("merging lists cannot yet be specified in the patch")),
            _ => return Err(bad(format!("unknown patch type: {} in map: {item}", text_of(directive)))),
        }
    }
    if replace {
        return Ok(patched.into_iter().map(|item| without_directives(without_nulls(item))).collect());
    }
    for item in &patched {
        let Some(value) = item.get(key) else { return Err(no_merge_key(item, key)) };
        match merged.iter_mut().find(|element| element.get(key) == Some(value)) {
            Some(element) => {
                let (Value::Object(old), Value::Object(change)) = (element.take(), item.clone()) else { continue };
                *element = Value::Object(merge_map(old, change, items)?);
            }
            None => merged.push(without_directives(without_nulls(item.clone()))),
        }
    }
    Ok(reorder(merged, &patched, &old, Some(key)))
}

fn no_merge_key(item: &Value, key: &str) -> PatchError {
    bad(format!("map: {item} does not contain declared merge key: {key}"))
}

/// Elements named by `wanted` come in its order; the others keep their order among themselves and go where `before`
/// had them relative to those, as far as both can hold.
fn reorder(merged: Vec<Value>, wanted: &[Value], before: &[Value], key: Option<&str>) -> Vec<Value> {
    let same = |a: &Value, b: &Value| match key {
        Some(key) => a.get(key).is_some() && a.get(key) == b.get(key),
        None => a == b,
    };
    let place = |list: &[Value], item: &Value| list.iter().position(|other| same(other, item));
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| place(wanted, item).is_some());
    named.sort_by_key(|item| place(wanted, item));
    others.sort_by_key(|item| place(before, item).unwrap_or(usize::MAX));
    // Nothing is known of elements that were not there before: the patch's own come first.
    let later = |a: &Value, b: &Value| match (place(before, a), place(before, b)) {
        (Some(a), Some(b)) => a > b,
        _ => false,
    };
    let mut out = Vec::with_capacity(named.len() + others.len());
    let mut others = others.into_iter().peekable();
    for item in named {
        while others.peek().is_some_and(|other| later(&item, other)) {
            out.extend(others.next());
        }
        out.push(item);
    }
    out.extend(others);
    out
}

/// What is left of a patch value that meets nothing to merge into.
fn without_directives(value: Value) -> Value {
    match value {
        Value::Object(map) => match map.get(DIRECTIVE).and_then(Value::as_str) {
            Some("delete") => Value::Object(Map::new()),
            _ => Value::Object(without_directives_in(map)),
        },
        Value::Array(list) => {
            let kept = list.into_iter().filter(|item| item.get(DIRECTIVE).is_none());
            Value::Array(kept.map(without_directives).collect())
        }
        other => other,
    }
}

fn without_directives_in(map: Map<String, Value>) -> Map<String, Value> {
    let directive = |key: &str| {
        key == DIRECTIVE || key == RETAIN_KEYS || key.starts_with(SET_ORDER) || key.starts_with(DELETE_FROM)
    };
    map.into_iter().filter(|(key, _)| !directive(key)).map(|(key, value)| (key, without_directives(value))).collect()
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
