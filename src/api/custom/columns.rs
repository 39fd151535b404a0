//! `additionalPrinterColumns`: the cells of custom objects in tables.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Custom, JsonPath};
use crate::object::ObjectExt;
use crate::table;

/// One column.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    /// `integer`, `number`, `string`, `boolean`, `date`.
    pub ty: String,
    pub format: String,
    pub description: String,
    /// 0 is always shown, more only with `-o wide`.
    pub priority: i64,
    pub path: JsonPath,
}

/// `columnDefinitions` of a table of this kind.
pub fn definitions(custom: &Custom) -> Value {
    let [name, mut age] = table::name_and_age();
    age["type"] = "date".into();
    let mut columns = vec![name];
    if custom.version().columns.is_empty() {
        columns.push(age);
    }
    columns.extend(custom.version().columns.iter().map(|column| {
        json!({"name": column.name, "type": column.ty, "format": column.format, "description": column.description,
            "priority": column.priority})
    }));
    columns.into()
}

/// The cells of one object.
pub fn row(custom: &Custom, object: &Value, now: Timestamp) -> Vec<Value> {
    let mut cells = vec![object.name().into()];
    if custom.version().columns.is_empty() {
        cells.push(table::age(object.meta_str("creationTimestamp"), now).into());
    }
    cells.extend(custom.version().columns.iter().map(|column| column.cell(object, now)));
    cells
}

impl Column {
    fn cell(&self, object: &Value, now: Timestamp) -> Value {
        let found = self.path.find(object);
        let Some(first) = found.first().filter(|value| !value.is_null()) else { return Value::Null };
        match self.ty.as_str() {
            "integer" => match first {
                Value::Number(number) => number.as_i64().or_else(|| number.as_f64().map(|f| f as i64)).into(),
                _ => Value::Null,
            },
            "number" => match first {
                Value::Number(_) => (*first).clone(),
                _ => Value::Null,
            },
            "boolean" => match first {
                Value::Bool(_) => (*first).clone(),
                _ => Value::Null,
            },
            "date" => match first {
                Value::String(time) if time.parse::<Timestamp>().is_ok() => table::age(time, now).into(),
                Value::String(_) => "<invalid>".into(),
                _ => Value::Null,
            },
            _ => match first {
                Value::String(text) => text.as_str().into(),
                other => other.to_string().into(),
            },
        }
    }
}
