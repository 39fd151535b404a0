//! `metadata.managedFields`: reading, writing, and keeping it short.

use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;
use serde_json::{Value, json};

use super::set::FieldSet;
use super::{Manager, Operation};
use crate::object::ObjectExt;

/// Update managers beyond this many are folded into one, the oldest first.
const UPDATE_MANAGERS_MAX: usize = 10;
const ANCIENT: &str = "ancient-changes";

/// One entry of managedFields.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub manager: String,
    pub operation: Operation,
    pub api_version: String,
    pub subresource: String,
    pub time: Option<Timestamp>,
    pub fields: FieldSet,
}

impl Entry {
    pub fn new(manager: &Manager<'_>, fields: FieldSet) -> Self {
        Self {
            manager: manager.name.to_owned(),
            operation: manager.operation,
            api_version: manager.api_version.to_owned(),
            subresource: manager.subresource.to_owned(),
            time: Some(manager.time),
            fields,
        }
    }

    /// Whether the entry is that of `manager`. Appliers stay the same across versions.
    pub fn is_of(&self, manager: &Manager<'_>) -> bool {
        self.manager == manager.name
            && self.operation == manager.operation
            && self.subresource == manager.subresource
            && (self.operation == Operation::Apply || self.api_version == manager.api_version)
    }

    /// As conflicts name it.
    pub fn printed(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == Operation::Update {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }

    fn decode(value: &Value) -> Option<Self> {
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let operation = match text("operation").as_str() {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return None,
        };
        Some(Self {
            manager: text("manager"),
            operation,
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: text("time").parse().ok(),
            fields: FieldSet::from_fields_v1(value.get("fieldsV1")?)?,
        })
    }

    fn encode(&self) -> Value {
        let mut value = json!({
            "manager": self.manager,
            "operation": match self.operation { Operation::Apply => "Apply", Operation::Update => "Update" },
            "apiVersion": self.api_version,
            "fieldsType": "FieldsV1",
            "fieldsV1": self.fields.to_fields_v1(),
        });
        if let Some(time) = self.time {
            // Metadata times are whole seconds.
            value["time"] = DateTimePrinter::new().precision(Some(0)).timestamp_to_string(&time).into();
        }
        if !self.subresource.is_empty() {
            value["subresource"] = self.subresource.clone().into();
        }
        value
    }
}

/// The entries of an object; none when any is malformed, as upstream does.
pub fn read(object: Option<&Value>) -> Vec<Entry> {
    let list = object.and_then(|o| o.meta()).and_then(|m| m.get("managedFields")).and_then(Value::as_array);
    list.and_then(|list| list.iter().map(Entry::decode).collect()).unwrap_or_default()
}

/// Whether the client asks to forget all managers: a list of one empty entry.
pub fn is_reset(object: &Value) -> bool {
    let list = object.meta().and_then(|m| m.get("managedFields")).and_then(Value::as_array);
    list.is_some_and(|list| matches!(list.as_slice(), [Value::Object(entry)] if entry.is_empty()))
}

/// Writes the entries in upstream's order: operation, time, manager, version, subresource.
pub fn write(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|entry| !entry.fields.is_empty());
    fold_ancient(&mut entries);
    entries.sort_by(|a, b| {
        let rank = |e: &Entry| (e.operation == Operation::Update, e.time.map(Timestamp::as_second));
        rank(a).cmp(&rank(b)).then_with(|| {
            (&a.manager, &a.api_version, &a.subresource).cmp(&(&b.manager, &b.api_version, &b.subresource))
        })
    });
    let metadata = object.meta_mut();
    if entries.is_empty() {
        metadata.remove("managedFields");
    } else {
        metadata.insert("managedFields".to_owned(), entries.iter().map(Entry::encode).collect());
    }
}

fn fold_ancient(entries: &mut Vec<Entry>) {
    let updates = |entries: &[Entry]| entries.iter().filter(|e| e.operation == Operation::Update).count();
    while updates(entries) > UPDATE_MANAGERS_MAX {
        let oldest = entries
            .iter()
            .enumerate()
            .filter(|(_, e)| e.operation == Operation::Update && e.manager != ANCIENT)
            .min_by_key(|(_, e)| (e.time, e.manager.clone()))
            .map(|(at, _)| at);
        let Some(at) = oldest else { return };
        let mut old = entries.remove(at);
        let bucket = entries
            .iter_mut()
            .find(|e| e.manager == ANCIENT && e.operation == Operation::Update && e.api_version == old.api_version);
        match bucket {
            Some(bucket) => {
                bucket.fields = std::mem::take(&mut bucket.fields).union(&old.fields);
                bucket.time = bucket.time.max(old.time);
            }
            None => {
                old.manager = ANCIENT.to_owned();
                old.subresource.clear();
                entries.push(old);
            }
        }
    }
}
