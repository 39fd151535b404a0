//! Objects as JSON: accessors to the metadata that all of them have, and the form in which they are stored.

use bytes::Bytes;
use serde_json::{Map, Value};

/// Accessors to what every Kubernetes object has. Absent and mistyped fields read as empty.
pub trait ObjectExt {
    fn api_version(&self) -> &str;
    fn kind(&self) -> &str;
    fn meta(&self) -> Option<&Map<String, Value>>;
    /// The metadata, made when absent.
    fn meta_mut(&mut self) -> &mut Map<String, Value>;
    fn meta_str(&self, field: &str) -> &str;
    fn name(&self) -> &str {
        self.meta_str("name")
    }
    fn namespace(&self) -> &str {
        self.meta_str("namespace")
    }
    fn uid(&self) -> &str {
        self.meta_str("uid")
    }
    fn resource_version(&self) -> &str {
        self.meta_str("resourceVersion")
    }
    fn labels(&self) -> Option<&Map<String, Value>>;
    fn annotations(&self) -> Option<&Map<String, Value>>;
    fn generation(&self) -> i64;
    fn is_deleting(&self) -> bool;
    fn finalizers(&self) -> Vec<&str>;
    /// The value at a dotted path of object keys: `spec.nodeName`.
    fn at(&self, dotted: &str) -> Option<&Value>;
    fn str_at(&self, dotted: &str) -> &str;
}

impl ObjectExt for Value {
    fn api_version(&self) -> &str {
        self["apiVersion"].as_str().unwrap_or_default()
    }

    fn kind(&self) -> &str {
        self["kind"].as_str().unwrap_or_default()
    }

    fn meta(&self) -> Option<&Map<String, Value>> {
        self.get("metadata")?.as_object()
    }

    fn meta_mut(&mut self) -> &mut Map<String, Value> {
        if !self.is_object() {
            *self = Value::Object(Map::new());
        }
        let metadata = &mut self["metadata"];
        if !metadata.is_object() {
            *metadata = Value::Object(Map::new());
        }
        match metadata {
            Value::Object(map) => map,
            _ => unreachable!("just made an object"),
        }
    }

    fn meta_str(&self, field: &str) -> &str {
        self.meta().and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or_default()
    }

    fn labels(&self) -> Option<&Map<String, Value>> {
        self.meta()?.get("labels")?.as_object()
    }

    fn annotations(&self) -> Option<&Map<String, Value>> {
        self.meta()?.get("annotations")?.as_object()
    }

    fn generation(&self) -> i64 {
        self.meta().and_then(|m| m.get("generation")).and_then(Value::as_i64).unwrap_or_default()
    }

    fn is_deleting(&self) -> bool {
        self.meta().and_then(|m| m.get("deletionTimestamp")).is_some_and(|t| !t.is_null())
    }

    fn finalizers(&self) -> Vec<&str> {
        let list = self.meta().and_then(|m| m.get("finalizers")).and_then(Value::as_array);
        list.map(|l| l.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
    }

    fn at(&self, dotted: &str) -> Option<&Value> {
        dotted.split('.').try_fold(self, |value, key| value.get(key))
    }

    fn str_at(&self, dotted: &str) -> &str {
        self.at(dotted).and_then(Value::as_str).unwrap_or_default()
    }
}

/// The stored form: compact JSON that opens with `{"apiVersion":…,"kind":…,"metadata":{`, without `resourceVersion`
/// (which is the store's revision), so that [`with_resource_version`] can add it without decoding.
pub fn encode(object: &Value) -> Bytes {
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(b"{\"apiVersion\":");
    write_json(&mut out, &object["apiVersion"]);
    out.extend_from_slice(b",\"kind\":");
    write_json(&mut out, &object["kind"]);
    out.extend_from_slice(b",\"metadata\":{");
    let mut first = true;
    for (key, value) in object.meta().into_iter().flatten().filter(|(key, _)| *key != "resourceVersion") {
        write_member(&mut out, &mut first, key, value);
    }
    out.push(b'}');
    first = false;
    for (key, value) in object.as_object().into_iter().flatten() {
        if !matches!(key.as_str(), "apiVersion" | "kind" | "metadata") {
            write_member(&mut out, &mut first, key, value);
        }
    }
    out.push(b'}');
    out.into()
}

/// The object as clients see it: the stored form with `metadata.resourceVersion` in it.
pub fn with_resource_version(stored: &[u8], revision: u64) -> Vec<u8> {
    const MARK: &[u8] = b",\"metadata\":{";
    let mut out = Vec::with_capacity(stored.len() + 40);
    // The first occurrence is the real one: only apiVersion and kind, which cannot contain it, come before.
    match stored.windows(MARK.len()).position(|window| window == MARK) {
        Some(at) => {
            let (head, tail) = stored.split_at(at + MARK.len());
            out.extend_from_slice(head);
            out.extend_from_slice(format!("\"resourceVersion\":\"{revision}\"").as_bytes());
            if tail.first() != Some(&b'}') {
                out.push(b',');
            }
            out.extend_from_slice(tail);
        }
        None => out.extend_from_slice(stored),
    }
    out
}

/// Decodes the stored form and sets `metadata.resourceVersion`.
///
/// # Errors
/// When the bytes are not JSON.
pub fn decode(stored: &[u8], revision: u64) -> serde_json::Result<Value> {
    let mut object: Value = serde_json::from_slice(stored)?;
    object.meta_mut().insert("resourceVersion".to_owned(), Value::String(revision.to_string()));
    Ok(object)
}

fn write_member(out: &mut Vec<u8>, first: &mut bool, key: &str, value: &Value) {
    if !std::mem::take(first) {
        out.push(b',');
    }
    write_json(out, &Value::String(key.to_owned()));
    out.push(b':');
    write_json(out, value);
}

fn write_json(out: &mut Vec<u8>, value: &Value) {
    serde_json::to_writer(out, value).expect("a Value with string keys encodes into memory");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_resource_version_is_spliced_into_the_stored_form() {
        let object = json!({"kind": "ConfigMap", "apiVersion": "v1", "data": {"a": ",\"metadata\":{"},
            "metadata": {"name": "x", "resourceVersion": "3"}});
        let stored = encode(&object);
        assert!(stored.starts_with(b"{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\""));
        let seen: Value = serde_json::from_slice(&with_resource_version(&stored, 7)).unwrap();
        assert_eq!(seen, decode(&stored, 7).unwrap());
        assert_eq!(seen.resource_version(), "7");
        assert_eq!(seen["data"], object["data"]);
    }
}
