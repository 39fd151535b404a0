//! Defaults of a schema, filled in on the way in and on the way out of the store.

use serde_json::Value;

use super::{Additional, Props};

/// Fills in defaults. A null where none is allowed counts as absent; without a default it goes.
pub fn default(value: &mut Value, props: &Props) {
    match value {
        Value::Object(map) => {
            map.retain(|name, value| {
                if !value.is_null() {
                    return true;
                }
                let known = props.property(name).or_else(|| props.values());
                known.is_none_or(|known| known.nullable || known.ty.is_empty())
            });
            for (name, property) in &props.properties {
                if let Some(default) = &property.default
                    && !map.contains_key(name)
                {
                    map.insert(name.clone(), default.clone());
                }
            }
            for (name, value) in map.iter_mut() {
                match (props.property(name), &props.additional_properties) {
                    (Some(known), _) => default(value, known),
                    (None, Some(Additional::Of(known))) => default(value, known),
                    _ => {}
                }
            }
        }
        Value::Array(list) => {
            if let Some(items) = &props.items {
                list.iter_mut().for_each(|item| default(item, items));
            }
        }
        _ => {}
    }
}
