//! Walks over objects along their schema: which fields there are, which changed, merging and removing.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::set::{FieldSet, printed};
use crate::schema::{ListType, Schema, Type};

/// How a value is owned: as one, by member, or by element.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Leaf,
    Map,
    /// A list whose elements are told apart by key or value.
    List,
}

fn shape(value: &Value, schema: Option<&Schema>) -> Shape {
    match (value, schema) {
        (Value::Object(_), None) => Shape::Map,
        (Value::Object(_), Some(schema)) => match schema.ty() {
            _ if schema.map_type_atomic() => Shape::Leaf,
            Type::Object => Shape::Map,
            Type::Any if schema.preserve_unknown() => Shape::Map,
            _ => Shape::Leaf,
        },
        (Value::Array(_), Some(schema)) if schema.list_type() != ListType::Atomic => Shape::List,
        _ => Shape::Leaf,
    }
}

fn member(schema: Option<&Schema>, name: &str) -> Option<Schema> {
    let schema = schema?;
    schema.property(name).or_else(|| schema.additional_properties())
}

/// Whether `name` is a field of the type, not a key of a map.
fn is_named(schema: Option<&Schema>, name: &str) -> bool {
    schema.is_some_and(|schema| schema.property(name).is_some())
}

/// What tells a list element from the others.
fn element(item: &Value, schema: &Schema) -> Option<String> {
    if schema.list_type() == ListType::Set {
        return (!item.is_object() && !item.is_array()).then(|| format!("v:{item}"));
    }
    let item_schema = schema.items();
    let mut keys = Map::new();
    for key in schema.list_map_keys() {
        let default = || item_schema.as_ref()?.property(key)?.default().cloned();
        if let Some(value) = item.get(key).filter(|v| !v.is_null()).cloned().or_else(default) {
            keys.insert(key.clone(), value);
        }
    }
    (item.is_object() && !keys.is_empty()).then(|| format!("k:{}", Value::Object(keys)))
}

/// The elements by what tells them apart; `None` when two are alike or one has no key, so that the list is one leaf.
fn indexed<'a>(list: &'a [Value], schema: &Schema) -> Option<Vec<(String, &'a Value)>> {
    let mut found = Vec::with_capacity(list.len());
    let mut seen = BTreeMap::new();
    for item in list {
        let element = element(item, schema)?;
        if seen.insert(element.clone(), ()).is_some() {
            return None;
        }
        found.push((element, item));
    }
    Some(found)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

/// All fields of an applied configuration.
///
/// # Errors
/// What the schema does not know, and lists that hold an element twice; each with its path.
pub fn fields(value: &Value, schema: &Schema) -> Result<FieldSet, Vec<String>> {
    let mut errors = Vec::new();
    let set = fields_below(value, Some(schema), &mut String::new(), &mut errors);
    if errors.is_empty() { Ok(set) } else { Err(errors) }
}

/// All fields of an object that is known to fit its schema.
pub fn fields_of_live(value: &Value, schema: &Schema) -> FieldSet {
    fields_below(value, Some(schema), &mut String::new(), &mut Vec::new())
}

fn fields_below(value: &Value, schema: Option<&Schema>, path: &mut String, errors: &mut Vec<String>) -> FieldSet {
    let mut set = FieldSet::default();
    match (shape(value, schema), value) {
        (Shape::Map, Value::Object(map)) => {
            let closed = schema.is_some_and(|s| {
                s.ty() == Type::Object
                    && !s.preserve_unknown()
                    && s.additional_properties().is_none()
                    && s.properties().next().is_some()
            });
            for (name, value) in map {
                let length = path.len();
                path.push('.');
                path.push_str(name);
                let named = is_named(schema, name);
                if closed && !named {
                    errors.push(format!("{path}: field not declared in schema"));
                }
                let mut child = fields_below(value, member(schema, name).as_ref(), path, errors);
                child.member |= !named || is_empty(value) && !value.is_array();
                set.attach(format!("f:{name}"), child);
                path.truncate(length);
            }
        }
        (Shape::List, Value::Array(list)) => {
            let Some(schema) = schema else { return FieldSet::leaf() };
            let items = schema.items();
            for (at, item) in list.iter().enumerate() {
                let Some(element) = element(item, schema) else {
                    let keys = schema.list_map_keys();
                    errors.push(format!(
                        "{path}: element {at}: associative list with keys has an element that omits all key \
                        fields {keys:?} (and doesn't have default values for any key fields)"
                    ));
                    continue;
                };
                if set.children.contains_key(&element) {
                    errors.push(format!("{path}: duplicate entries for key {}", printed(&element)));
                }
                let length = path.len();
                path.push_str(&printed(&element));
                let mut child = fields_below(item, items.as_ref(), path, errors);
                child.member = true;
                set.attach(element, child);
                path.truncate(length);
            }
        }
        _ => set.member = true,
    }
    set
}

/// What differs between two objects.
#[derive(Debug, Default)]
pub struct Comparison {
    pub added: FieldSet,
    pub modified: FieldSet,
    pub removed: FieldSet,
}

impl Comparison {
    fn attach(&mut self, element: &str, below: Self) {
        self.added.attach(element.to_owned(), below.added);
        self.modified.attach(element.to_owned(), below.modified);
        self.removed.attach(element.to_owned(), below.removed);
    }

    pub fn changed(&self) -> FieldSet {
        self.modified.clone().union(&self.added)
    }

    #[must_use]
    pub fn without(self, path: &[&str]) -> Self {
        Self {
            added: self.added.without(path),
            modified: self.modified.without(path),
            removed: self.removed.without(path),
        }
    }

    #[must_use]
    pub fn minus(self, set: &FieldSet) -> Self {
        Self {
            added: self.added.difference(set),
            modified: self.modified.difference(set),
            removed: self.removed.difference(set),
        }
    }
}

/// Structs that upstream's types always have: setting something in them is not setting them.
const ALWAYS_THERE: [&str; 8] =
    ["metadata", "spec", "status", "template", "strategy", "updateStrategy", "jobTemplate", "containers"];

pub fn compare(old: Option<&Value>, new: Option<&Value>, schema: &Schema) -> Comparison {
    compare_below(old, new, Some(schema), true)
}

fn compare_below(old: Option<&Value>, new: Option<&Value>, schema: Option<&Schema>, implied: bool) -> Comparison {
    let mut found = Comparison::default();
    let how = match (old, new) {
        (None, None) => return found,
        (Some(value), None) | (None, Some(value)) => shape(value, schema),
        (Some(old), Some(new)) => match (shape(old, schema), shape(new, schema)) {
            (a, b) if a == b => a,
            _ => Shape::Leaf,
        },
    };
    let both_empty = old.is_none_or(is_empty) && new.is_none_or(is_empty);
    let walked = !both_empty
        && match how {
            Shape::Leaf => false,
            Shape::Map => {
                compare_maps(&mut found, old.and_then(Value::as_object), new.and_then(Value::as_object), schema);
                true
            }
            Shape::List => {
                let list = |value: Option<&'_ Value>| {
                    value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default().to_vec()
                };
                compare_lists(&mut found, &list(old), &list(new), schema)
            }
        };
    match (old, new) {
        (None, _) => found.added.member = !walked || !implied,
        (_, None) => found.removed.member = !walked || !implied,
        (Some(old), Some(new)) => found.modified.member = !walked && old != new,
    }
    found
}

fn compare_maps(
    found: &mut Comparison,
    old: Option<&Map<String, Value>>,
    new: Option<&Map<String, Value>>,
    schema: Option<&Schema>,
) {
    let fresh = new.into_iter().flatten().filter(|(name, _)| old.is_none_or(|old| !old.contains_key(*name)));
    let names = old.into_iter().flatten().map(|(name, _)| name).chain(fresh.map(|(name, _)| name));
    for name in names {
        let implied = is_named(schema, name) && ALWAYS_THERE.contains(&name.as_str());
        let old = old.and_then(|old| old.get(name));
        let new = new.and_then(|new| new.get(name));
        let below = compare_below(old, new, member(schema, name).as_ref(), implied);
        found.attach(&format!("f:{name}"), below);
    }
}

/// Whether the lists could be told apart by element.
fn compare_lists(found: &mut Comparison, old: &[Value], new: &[Value], schema: Option<&Schema>) -> bool {
    let Some(schema) = schema else { return false };
    let (Some(old), Some(new)) = (indexed(old, schema), indexed(new, schema)) else { return false };
    let items = schema.items();
    let old: BTreeMap<String, &Value> = old.into_iter().collect();
    let new: BTreeMap<String, &Value> = new.into_iter().collect();
    let fresh = new.keys().filter(|element| !old.contains_key(*element));
    for element in old.keys().chain(fresh) {
        let below = compare_below(old.get(element).copied(), new.get(element).copied(), items.as_ref(), false);
        found.attach(element, below);
    }
    true
}

/// `live` with all that `applied` says.
pub fn merge(live: &Value, applied: &Value, schema: Option<&Schema>) -> Value {
    match (shape(live, schema), shape(applied, schema), live, applied) {
        (Shape::Map, Shape::Map, Value::Object(live), Value::Object(applied)) => {
            let mut merged = live.clone();
            for (name, value) in applied {
                let node = member(schema, name);
                let value = match live.get(name) {
                    Some(old) => merge(old, value, node.as_ref()),
                    None => value.clone(),
                };
                merged.insert(name.clone(), value);
            }
            Value::Object(merged)
        }
        (Shape::List, Shape::List, Value::Array(live), Value::Array(applied)) => {
            let Some(schema) = schema else { return Value::Array(applied.clone()) };
            match (indexed(live, schema), indexed(applied, schema)) {
                (Some(live), Some(applied)) => Value::Array(merge_lists(&live, &applied, schema)),
                _ => Value::Array(applied.clone()),
            }
        }
        _ => applied.clone(),
    }
}

/// Applied elements in their order, live ones between them where they stood.
fn merge_lists(live: &[(String, &Value)], applied: &[(String, &Value)], schema: &Schema) -> Vec<Value> {
    let items = schema.items();
    let find = |list: &[(String, &Value)], element: &str| list.iter().position(|(other, _)| other == element);
    let join = |element: &str, value: &Value| match find(live, element) {
        Some(at) => merge(live[at].1, value, items.as_ref()),
        None => value.clone(),
    };
    let mut out = Vec::with_capacity(live.len() + applied.len());
    let mut shared = applied.iter().filter(|(element, _)| find(live, element).is_some()).map(|(e, _)| e).peekable();
    let (mut l, mut r) = (0, 0);
    while l < live.len() || r < applied.len() {
        if let Some((element, value)) = live.get(l) {
            if find(applied, element).is_none() {
                out.push((*value).clone());
                l += 1;
                continue;
            }
            // A shared element that is not next in the applied order was or will be placed by that order.
            if shared.peek().is_some_and(|next| *next != element) || r >= applied.len() {
                l += 1;
                continue;
            }
        }
        if let Some((element, value)) = applied.get(r) {
            out.push(join(element, value));
            if shared.peek() == Some(&element) {
                shared.next();
            }
            if live.get(l).is_some_and(|(other, _)| other == element) {
                l += 1;
            }
            r += 1;
        } else {
            l += 1;
        }
    }
    out
}

/// Removes the members of `set`, and what they leave empty.
pub fn remove(value: &mut Value, set: &FieldSet, schema: Option<&Schema>) {
    match (shape(value, schema), value) {
        (Shape::Map, Value::Object(map)) => map.retain(|name, child| {
            let Some(below) = set.children.get(&format!("f:{name}")) else { return true };
            if below.member {
                return false;
            }
            let before = is_empty(child);
            remove(child, below, member(schema, name).as_ref());
            before || !is_empty(child)
        }),
        (Shape::List, Value::Array(list)) => {
            let Some(schema) = schema else { return };
            let items = schema.items();
            list.retain_mut(|item| {
                let below = element(item, schema).and_then(|element| set.children.get(&element));
                let Some(below) = below else { return true };
                if below.member {
                    return false;
                }
                remove(item, below, items.as_ref());
                true
            });
        }
        _ => (),
    }
}

/// `set` with the struct fields above its members: owning `spec.strategy.type` keeps `spec.strategy` in being.
pub fn with_named_parents(set: &FieldSet, schema: Option<&Schema>) -> FieldSet {
    let mut out = FieldSet { member: set.member, children: BTreeMap::new() };
    for (edge, child) in &set.children {
        let name = edge.strip_prefix("f:");
        let below = match name {
            Some(name) => member(schema, name),
            None => schema.and_then(Schema::items),
        };
        let mut child = with_named_parents(child, below.as_ref());
        child.member |= name.is_some_and(|name| is_named(schema, name));
        out.children.insert(edge.clone(), child);
    }
    out
}
