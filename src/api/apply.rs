//! Server-side apply: who owns which field, and what happens when an owner says something else.

mod managed;
mod set;
mod walk;

use std::fmt;

use jiff::Timestamp;
use serde_json::Value;

pub use managed::Entry;
pub use set::FieldSet;
pub use walk::merge;

use crate::object::ObjectExt;
use crate::schema::Schema;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Apply,
    /// Create, update and the other kinds of patch.
    Update,
}

/// Who writes, and how.
#[derive(Clone, Copy, Debug)]
pub struct Manager<'a> {
    pub name: &'a str,
    pub operation: Operation,
    /// The version that the request speaks: `apps/v1`.
    pub api_version: &'a str,
    /// `status`, `scale`; empty for the resource itself.
    pub subresource: &'a str,
    pub time: Timestamp,
}

/// A field that another manager owns and that the applied configuration would change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// `"kubectl-client-side-apply" using apps/v1`
    pub manager: String,
    /// `.spec.replicas`
    pub field: String,
}

/// Why a configuration was not applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// 409; each has its cause of type `FieldManagerConflict` with message `conflict with <manager>`.
    #[error("{}", ConflictText(.0))]
    Conflicts(Vec<Conflict>),
    #[error("{0}")]
    Invalid(String),
}

struct ConflictText<'a>(&'a [Conflict]);

impl fmt::Display for ConflictText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [one] = self.0 {
            return write!(f, "Apply failed with 1 conflict: conflict with {}: {}", one.manager, one.field);
        }
        write!(f, "Apply failed with {} conflicts: ", self.0.len())?;
        let mut managers: Vec<&str> = self.0.iter().map(|conflict| conflict.manager.as_str()).collect();
        managers.sort_unstable();
        managers.dedup();
        let mut lines = Vec::new();
        for manager in managers {
            lines.push(format!("conflicts with {manager}:"));
            let fields = self.0.iter().filter(|conflict| conflict.manager == manager);
            lines.extend(fields.map(|conflict| format!("- {}", conflict.field)));
        }
        f.write_str(&lines.join("\n"))
    }
}

/// [`apply_resetting`] with what upstream's built-in kinds reset: `status` in the resource, `spec` in its status.
///
/// # Errors
/// As [`apply_resetting`].
pub fn apply(
    live: Option<&Value>,
    applied: &Value,
    manager: &Manager<'_>,
    force: bool,
    schema: &Schema,
) -> Result<Value, ApplyError> {
    apply_resetting(live, applied, manager, force, schema, usual_reset(manager))
}

fn usual_reset(manager: &Manager<'_>) -> &'static [&'static [&'static str]] {
    if manager.subresource == "status" { &[&["spec"]] } else { &[&["status"]] }
}

/// Merges `applied` into `live`, removes what the manager applied before and applies no more, and returns the object
/// with its managedFields. Nobody comes to own the fields below the paths of `reset`: the strategy will undo changes to
/// them.
///
/// # Errors
/// `Conflicts` when another manager owns a field that would change, unless `force`; `Invalid` when `applied` does not
/// fit the schema.
pub fn apply_resetting(
    live: Option<&Value>,
    applied: &Value,
    manager: &Manager<'_>,
    force: bool,
    schema: &Schema,
    reset: &[&[&str]],
) -> Result<Value, ApplyError> {
    if applied.meta().and_then(|m| m.get("managedFields")).and_then(Value::as_array).is_some_and(|l| !l.is_empty()) {
        return Err(ApplyError::Invalid("metadata.managedFields must be nil".to_owned()));
    }
    let applied = without_nulls(applied.clone());
    let mine = walk::fields(&applied, schema).map_err(|errors| ApplyError::Invalid(refusal(&applied, &errors)))?;
    let mine = resetting(mine.difference(&untracked()), reset);

    let mut entries = managed::read(live);
    if let Some(live) = live
        && entries.is_empty()
    {
        // An object from before anything was tracked: what stands in it belongs to someone.
        let before = Manager { name: "before-first-apply", operation: Operation::Update, ..*manager };
        let fields = walk::fields_of_live(&without_managed(live), schema).difference(&untracked());
        entries.push(Entry::new(&before, fields));
    }
    let last = entries.iter().position(|entry| entry.is_of(manager)).map(|at| entries.remove(at));

    let base = live.map_or_else(|| Value::Object(Default::default()), without_managed);
    let mut merged = walk::merge(&base, &applied, Some(schema));
    if let Some(last) = &last {
        let mut owned = walk::with_named_parents(&mine, Some(schema));
        for entry in &entries {
            owned = owned.union(&walk::with_named_parents(&entry.fields, Some(schema)));
        }
        let dropped = walk::with_named_parents(&last.fields, Some(schema)).difference(&owned);
        walk::remove(&mut merged, &dropped, Some(schema));
    }

    let compared = changes(live.map(|_| &base), &merged, schema, reset);
    let conflicts = settle(&mut entries, &compared);
    if !force && !conflicts.is_empty() {
        return Err(ApplyError::Conflicts(conflicts));
    }
    let unchanged = live.is_some() && merged == base && last.as_ref().is_some_and(|last| last.fields == mine);
    let mut entry = Entry::new(manager, mine);
    if unchanged {
        entry.time = last.and_then(|last| last.time);
    }
    entries.push(entry);
    managed::write(&mut merged, entries);
    Ok(merged)
}

/// [`track_update_resetting`] with what upstream's built-in kinds reset.
pub fn track_update(live: Option<&Value>, new: &mut Value, manager: &Manager<'_>, schema: &Schema) {
    track_update_resetting(live, new, manager, schema, usual_reset(manager));
}

/// Brings the managedFields of `new` up to date after a create, an update or a patch that turned `live` into it: what
/// changed belongs to `manager` now and to nobody else.
pub fn track_update_resetting(
    live: Option<&Value>,
    new: &mut Value,
    manager: &Manager<'_>,
    schema: &Schema,
    reset: &[&[&str]],
) {
    let mut entries = if manager.subresource.is_empty() && managed::is_reset(new) {
        Vec::new()
    } else {
        // A client may edit managedFields; one that does not know them must not lose them.
        let sent = if manager.subresource.is_empty() { managed::read(Some(new)) } else { Vec::new() };
        if sent.is_empty() { managed::read(live) } else { sent }
    };
    if live.is_some() && entries.is_empty() {
        // Objects that nobody tracked stay so until somebody applies.
        new.meta_mut().remove("managedFields");
        return;
    }
    let base = live.map(without_managed);
    let plain = without_managed(new);
    let compared = changes(base.as_ref(), &plain, schema, reset);
    settle(&mut entries, &compared);
    let mine = compared.changed();
    if !mine.is_empty() {
        match entries.iter_mut().find(|entry| entry.is_of(manager)) {
            Some(entry) => {
                entry.fields = std::mem::take(&mut entry.fields).union(&mine);
                entry.time = Some(manager.time);
            }
            None => entries.push(Entry::new(manager, mine)),
        }
    }
    managed::write(new, entries);
}

/// The managers of an object, as its managedFields tell.
pub fn managers(object: &Value) -> Vec<Entry> {
    managed::read(Some(object))
}

/// Replaces the managers of an object.
pub fn set_managers(object: &mut Value, entries: Vec<Entry>) {
    managed::write(object, entries);
}

fn changes(old: Option<&Value>, new: &Value, schema: &Schema, reset: &[&[&str]]) -> walk::Comparison {
    let compared = walk::compare(old, Some(new), schema).minus(&untracked());
    reset.iter().fold(compared, |compared, path| compared.without(path))
}

/// Takes changed and removed fields from those who owned them; what changed is returned as conflicts.
fn settle(entries: &mut [Entry], compared: &walk::Comparison) -> Vec<Conflict> {
    let changed = compared.changed();
    let mut conflicts = Vec::new();
    for entry in entries.iter_mut() {
        let contested = entry.fields.intersection(&changed);
        let manager = entry.printed();
        conflicts.extend(contested.paths().into_iter().map(|field| Conflict { manager: manager.clone(), field }));
        entry.fields = entry.fields.difference(&contested).difference(&compared.removed);
    }
    conflicts
}

fn resetting(set: FieldSet, reset: &[&[&str]]) -> FieldSet {
    reset.iter().fold(set, |set, path| set.without(path))
}

/// What the API server sets itself, and what names the object.
fn untracked() -> FieldSet {
    const METADATA: [&str; 8] =
        ["creationTimestamp", "generation", "managedFields", "name", "namespace", "resourceVersion", "selfLink", "uid"];
    let mut metadata = FieldSet::leaf();
    for field in METADATA {
        metadata.attach(format!("f:{field}"), FieldSet::leaf());
    }
    let mut set = FieldSet::default();
    set.attach("f:apiVersion".to_owned(), FieldSet::leaf());
    set.attach("f:kind".to_owned(), FieldSet::leaf());
    set.attach("f:metadata".to_owned(), metadata);
    set
}

fn without_managed(object: &Value) -> Value {
    let mut plain = object.clone();
    if let Some(Value::Object(metadata)) = plain.get_mut("metadata") {
        metadata.remove("managedFields");
    }
    plain
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => map
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key, without_nulls(value)))
            .collect(),
        Value::Array(list) => list.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

fn refusal(applied: &Value, errors: &[String]) -> String {
    let namespace = applied.namespace();
    let (group_version, kind) = (applied.api_version(), applied.kind());
    let texts = match errors {
        [one] => one.clone(),
        many => format!("errors:\n  {}", many.join("\n  ")),
    };
    format!(
        "failed to create typed patch object ({namespace}/{}; {group_version}, Kind={kind}): {texts}",
        applied.name()
    )
}

#[cfg(test)]
mod tests;
