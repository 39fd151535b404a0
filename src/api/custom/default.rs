//! Defaults of a schema, filled in on the way in and on the way out of the store.

use serde_json::Value;

use super::{Additional, Props};

/// Fills in defaults. A null where none is allowed counts as absent; without a default it goes.
pub fn default(value: &mut Value, props: &Props) {
    match value {
        Value::Object(map) => {
            map.retain(|name, value| {
                let known = props.property(name).or_else(|| props.values());
                let Some(known) = known.filter(|known| value.is_null() && !known.nullable) else { return true };
                if let Some(known) = &known.default {
                    *value = known.clone();
                }
                !value.is_null()
            });
            for (name, property) in &props.properties {
                if let Some(known) = &property.default
                    && !map.contains_key(name)
                {
                    map.insert(name.clone(), known.clone());
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
            let Some(items) = &props.items else { return };
            for item in list {
                // A null in a list has a place, and stays for validation to refuse.
                if let Some(known) = items.default.as_ref().filter(|_| item.is_null() && !items.nullable) {
                    *item = known.clone();
                }
                default(item, items);
            }
        }
        _ => {}
    }
}
