//! Pruning: what a schema does not know goes, but for metadata, which is that of every object.

use std::sync::OnceLock;

use serde_json::{Map, Value, json};

use super::Props;
use crate::decode::{self, DecodeError, Strictness};
use crate::schema::Schema;

/// What [`coerce`] found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Coerced {
    /// `unknown field "spec.foo"`, in the words of strict decoding.
    pub unknown: Vec<String>,
}

/// More findings than this are not listed.
const FINDINGS_MAX: usize = 100;

const META: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// Removes from an object what its schema does not know. The object's own metadata has been looked at by whoever decoded
/// it; that of embedded objects is looked at here.
///
/// # Errors
/// When an embedded object has metadata of the wrong shape.
pub fn coerce(object: &mut Value, props: &Props) -> Result<Coerced, DecodeError> {
    let mut walk = Walk { found: Coerced::default(), path: String::new(), failure: None };
    walk.prune(object, props, true, false);
    match walk.failure {
        Some(error) => Err(error),
        None => Ok(walk.found),
    }
}

/// The same for a part of an object: what its schema does not know, by name.
pub fn coerce_part(value: &mut Value, props: &Props) -> Result<Vec<String>, DecodeError> {
    let mut walk = Walk { found: Coerced::default(), path: String::new(), failure: None };
    walk.prune(value, props, false, false);
    match walk.failure {
        Some(error) => Err(error),
        None => Ok(walk.found.unknown),
    }
}

struct Walk {
    found: Coerced,
    path: String,
    failure: Option<DecodeError>,
}

impl Walk {
    fn unknown(&mut self, name: &str) {
        if self.found.unknown.len() < FINDINGS_MAX {
            let dot = if self.path.is_empty() { "" } else { "." };
            self.found.unknown.push(format!("unknown field \"{}{dot}{name}\"", self.path));
        }
    }

    fn inside(&mut self, name: &str, act: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        if length > 0 && !name.starts_with('[') {
            self.path.push('.');
        }
        self.path.push_str(name);
        act(self);
        self.path.truncate(length);
    }

    /// `open`: unknown fields stay, by what a list around this says.
    fn prune(&mut self, value: &mut Value, props: &Props, is_object: bool, open: bool) {
        let is_object = is_object || props.embedded;
        let open = open || props.preserve_unknown;
        match value {
            Value::Object(map) => {
                if props.embedded && !self.path.is_empty() {
                    self.metadata(map);
                }
                self.members(map, props, is_object, open);
            }
            Value::Array(list) => {
                let none = Props::default();
                let items = props.items.as_deref();
                if items.is_none() && open {
                    return;
                }
                for (at, item) in list.iter_mut().enumerate() {
                    self.inside(&format!("[{at}]"), |walk| walk.prune(item, items.unwrap_or(&none), false, open));
                }
            }
            _ => {}
        }
    }

    fn members(&mut self, map: &mut Map<String, Value>, props: &Props, is_object: bool, open: bool) {
        let none = Props::default();
        let mut gone = Vec::new();
        for (name, value) in map.iter_mut() {
            let is_meta = is_object && META.contains(&name.as_str());
            let known = props
                .property(name)
                .or_else(|| props.additional_properties.as_ref().map(|_| props.values().unwrap_or(&none)));
            match known {
                _ if is_meta => {}
                Some(known) => self.inside(name, |walk| walk.prune(value, known, false, false)),
                None if open => {}
                None => gone.push(name.clone()),
            }
        }
        for name in gone {
            map.remove(&name);
            self.unknown(&name);
        }
    }

    /// The metadata of an embedded object, as that of any object.
    fn metadata(&mut self, map: &mut Map<String, Value>) {
        let Some(metadata) = map.get("metadata").cloned() else { return };
        match decode::check(json!({"metadata": metadata}), any_object(), Strictness::Warn) {
            Ok(decoded) => {
                for warning in decoded.warnings {
                    let field = warning.replacen(" field \"", &format!(" field \"{}.", self.path), 1);
                    self.found.unknown.push(field);
                }
                map.insert("metadata".to_owned(), decoded.object["metadata"].clone());
            }
            Err(error) => {
                self.failure.get_or_insert(error);
            }
        }
    }
}

/// An object of which nothing is known but that it has metadata.
pub fn any_object() -> &'static Schema {
    static ANY: OnceLock<Schema> = OnceLock::new();
    ANY.get_or_init(|| Schema::custom(&json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})))
}
