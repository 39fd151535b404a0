//! Pieces of cells that several kinds share.

use serde_json::{Map, Value};

use crate::object::ObjectExt;

pub(super) const NONE: &str = "<none>";
pub(super) const UNSET: &str = "<unset>";

pub(super) fn name(object: &Value) -> Value {
    object.name().into()
}

/// The text at a dotted path, or `other` when it is empty.
pub(super) fn or<'a>(object: &'a Value, path: &str, other: &'a str) -> &'a str {
    match object.str_at(path) {
        "" => other,
        text => text,
    }
}

/// The number at a dotted path, 0 when absent.
pub(super) fn number(object: &Value, path: &str) -> i64 {
    object.at(path).and_then(Value::as_i64).unwrap_or_default()
}

pub(super) fn flag(object: &Value, path: &str) -> bool {
    object.at(path).and_then(Value::as_bool).unwrap_or_default()
}

/// The list at a dotted path, empty when absent.
pub(super) fn list<'a>(object: &'a Value, path: &str) -> &'a [Value] {
    object.at(path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

pub(super) fn map<'a>(object: &'a Value, path: &str) -> Option<&'a Map<String, Value>> {
    object.at(path).and_then(Value::as_object)
}

pub(super) fn len(object: &Value, path: &str) -> usize {
    match object.at(path) {
        Some(Value::Array(list)) => list.len(),
        Some(Value::Object(map)) => map.len(),
        _ => 0,
    }
}

/// A scalar as it is written: strings without quotes. Absent: `other`.
pub(super) fn scalar(value: Option<&Value>, other: &str) -> String {
    match value {
        None | Some(Value::Null) => other.to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    }
}

/// The texts at `path` of every element, joined by commas.
pub(super) fn join(list: &[Value], path: &str) -> String {
    list.iter().map(|value| value.str_at(path)).collect::<Vec<_>>().join(",")
}

/// A list of texts, joined by commas.
pub(super) fn strings(list: &[Value]) -> String {
    list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
}

/// `a=1,b=2`
pub(super) fn labels(labels: Option<&Map<String, Value>>) -> String {
    let pairs: Vec<_> =
        labels.into_iter().flatten().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    if pairs.is_empty() { NONE.to_owned() } else { pairs.join(",") }
}

/// A `LabelSelector` as kubectl's `-l` would take it.
pub(super) fn selector(selector: Option<&Value>) -> String {
    let Some(selector) = selector else { return NONE.to_owned() };
    let mut parts: Vec<(String, String)> = map(selector, "matchLabels")
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.clone(), format!("{key}={}", value.as_str().unwrap_or_default())))
        .collect();
    for expression in list(selector, "matchExpressions") {
        let key = expression.str_at("key");
        let mut values: Vec<_> = list(expression, "values").iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let part = match expression.str_at("operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        };
        parts.push((key.to_owned(), part));
    }
    parts.sort();
    if parts.is_empty() {
        return NONE.to_owned();
    }
    parts.into_iter().map(|(_, part)| part).collect::<Vec<_>>().join(",")
}

/// The first `max` of a list, and how many more there are.
pub(super) fn some(list: &[String], max: usize, empty: &str) -> String {
    match list.len() {
        0 => empty.to_owned(),
        n if n <= max => list.join(","),
        n => format!("{} + {} more...", list[..max].join(","), n - max),
    }
}

/// The status of a condition, empty when there is none of the type.
pub(super) fn condition<'a>(object: &'a Value, ty: &str) -> &'a str {
    let conditions = list(object, "status.conditions");
    conditions.iter().find(|c| c.str_at("type") == ty).map(|c| c.str_at("status")).unwrap_or_default()
}

/// Names and images of a pod template's containers.
pub(super) fn containers(object: &Value, template_spec: &str) -> [Value; 2] {
    let list = list(object, &format!("{template_spec}.containers"));
    [join(list, "name").into(), join(list, "image").into()]
}
