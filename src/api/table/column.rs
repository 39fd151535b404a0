//! How printers are written down.

use jiff::Timestamp;
use serde_json::{Value, json};

/// The columns of a kind and the function that fills them.
pub(super) struct Printer {
    pub columns: &'static [Column],
    pub cells: fn(&Value, Timestamp) -> Vec<Value>,
}

pub(super) struct Column {
    name: &'static str,
    ty: &'static str,
    format: &'static str,
    description: &'static str,
    /// 0 is always shown, more only with `-o wide`.
    priority: u8,
}

pub(super) const NAME: Column = Column {
    name: "Name",
    ty: "string",
    format: "name",
    description: "Name must be unique within a namespace; it is given by the client or generated on creation, and cannot be updated.",
    priority: 0,
};
pub(super) const AGE: Column =
    Column { name: "Age", ty: "string", format: "", description: "Time since the object was created.", priority: 0 };
pub(super) const CREATED_AT: Column =
    Column { name: "Created At", ty: "date", format: "", description: "When the object was created.", priority: 0 };

pub(super) const fn text(name: &'static str, description: &'static str) -> Column {
    Column { name, ty: "string", format: "", description, priority: 0 }
}

pub(super) const fn integer(name: &'static str, description: &'static str) -> Column {
    Column { name, ty: "integer", format: "", description, priority: 0 }
}

pub(super) const fn boolean(name: &'static str, description: &'static str) -> Column {
    Column { name, ty: "boolean", format: "", description, priority: 0 }
}

impl Column {
    pub const fn wide(mut self) -> Self {
        self.priority = 1;
        self
    }

    pub fn definition(&self) -> Value {
        json!({
            "name": self.name,
            "type": self.ty,
            "format": self.format,
            "description": self.description,
            "priority": self.priority,
        })
    }
}

pub(super) const CONTAINERS: Column = text("Containers", "Names of each container in the template.").wide();
pub(super) const IMAGES: Column = text("Images", "Images referenced by each container in the template.").wide();
pub(super) const SELECTOR: Column = text("Selector", "What selects the objects that belong to this one.").wide();
