//! Metadata: names, labels, annotations, owners, finalizers.

use serde_json::Value;

use super::cursor::Field;
use crate::field::{FieldError, FieldErrors, Path};
use crate::names;

/// The sum of the lengths of all annotations' keys and values.
pub const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

/// What the name of an object must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    Subdomain,
    Label,
    Dns1035,
    /// Anything that may stand alone in a URL path.
    PathSegment,
}

impl NameRule {
    /// The rule of a built-in kind, and of all custom ones.
    pub fn of(group: &str, kind: &str) -> Self {
        match (group, kind) {
            ("", "Service") => Self::Dns1035,
            ("", "Namespace") => Self::Label,
            ("rbac.authorization.k8s.io" | "apiregistration.k8s.io", _) => Self::PathSegment,
            _ => Self::Subdomain,
        }
    }

    fn check(self, name: &str) -> Vec<String> {
        match self {
            Self::Subdomain => names::is_dns1123_subdomain(name),
            Self::Label => names::is_dns1123_label(name),
            Self::Dns1035 => names::is_dns1035_label(name),
            Self::PathSegment => names::is_path_segment_name(name),
        }
    }

    /// A `generateName` may end in a dash: more will follow.
    fn check_prefix(self, prefix: &str) -> Vec<String> {
        match prefix.strip_suffix('-') {
            Some(stem) if !stem.is_empty() && self != Self::PathSegment => self.check(&format!("{stem}a")),
            _ => self.check(prefix),
        }
    }
}

/// Metadata of an object about to be created, its name already generated where that was asked for.
pub fn meta_create(object: &Value, namespaced: bool, rule: NameRule) -> FieldErrors {
    let meta = Field::root(object).get("metadata");
    let mut errors = Vec::new();
    let prefix = meta.get("generateName");
    if !prefix.is_zero() {
        errors.extend(prefix.each_invalid(rule.check_prefix(prefix.text())));
    }
    let name = meta.get("name");
    if name.is_zero() {
        errors.push(name.required("name or generateName is required"));
    } else {
        errors.extend(name.each_invalid(rule.check(name.text())));
    }
    let namespace = meta.get("namespace");
    match (namespaced, namespace.is_zero()) {
        (true, true) => errors.push(namespace.required("")),
        (true, false) => errors.extend(namespace.each_invalid(names::is_dns1123_label(namespace.text()))),
        (false, false) => errors.push(namespace.forbidden("not allowed on this type")),
        (false, true) => (),
    }
    errors.extend(common(&meta));
    errors
}

/// New, old. Fields that the server fills in from the old object are expected to be filled in.
pub fn meta_update(new: &Value, old: &Value) -> FieldErrors {
    let (meta, before) = (Field::root(new).get("metadata"), Field::root(old).get("metadata"));
    let mut errors = Vec::new();
    if before.get("deletionTimestamp").is_present() {
        let had = before.list("finalizers");
        let fresh: Vec<&str> = meta
            .list("finalizers")
            .iter()
            .filter(|new| !had.iter().any(|old| old.value == new.value))
            .map(Field::text)
            .collect();
        if !fresh.is_empty() {
            let list = fresh.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
            errors.push(meta.get("finalizers").forbidden(format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{list}}}"
            )));
        }
    }
    let generation = meta.get("generation");
    if generation.int().unwrap_or_default() < before.get("generation").int().unwrap_or_default() {
        errors.push(generation.invalid("must not be decremented"));
    }
    for field in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        errors.extend(meta.get(field).immutable(&before.get(field)));
    }
    errors.extend(common(&meta));
    errors
}

fn common(meta: &Field<'_>) -> FieldErrors {
    let mut errors = meta.get("generation").non_negative();
    errors.extend(labels(&meta.get("labels")));
    errors.extend(annotations(&meta.get("annotations")));
    errors.extend(owners(&meta.get("ownerReferences")));
    errors.extend(finalizers(&meta.get("finalizers")));
    errors
}

pub(super) fn label_name(path: &Path, name: &str) -> FieldErrors {
    names::is_qualified_name(name).into_iter().map(|message| FieldError::invalid(path, name, message)).collect()
}

pub(super) fn labels(labels: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    for (key, value) in labels.entries() {
        errors.extend(label_name(&labels.path, key));
        for message in names::is_label_value(value.text()) {
            errors.push(FieldError::invalid(&labels.path, value.text(), message));
        }
    }
    errors
}

pub(super) fn annotations(annotations: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    let mut bytes = 0;
    for (key, value) in annotations.entries() {
        for message in names::is_qualified_name(&key.to_lowercase()) {
            errors.push(FieldError::invalid(&annotations.path, key, message));
        }
        bytes += key.len() + value.text().len();
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        errors.push(FieldError::too_long(&annotations.path, ANNOTATIONS_BYTES_MAX));
    }
    errors
}

fn owners(owners: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    let mut controller: Option<&str> = None;
    for owner in owners.items() {
        // Upstream names the list here, not the element.
        let at = |field: &str| Field { value: owner.get(field).value, path: owners.path.child(field) };
        let version = at("apiVersion");
        if version.text().rsplit('/').next().unwrap_or_default().is_empty() {
            errors.push(version.invalid("version must not be empty"));
        } else if version.text().matches('/').count() > 1 {
            errors.push(version.invalid(format!("unexpected GroupVersion string: {}", version.text())));
        }
        for field in ["kind", "name", "uid"] {
            if at(field).is_zero() {
                errors.push(FieldError::invalid(&owners.path.child(field), "", "must not be empty"));
            }
        }
        if version.text() == "v1" && at("kind").text() == "Event" {
            let owner = Field { value: owner.value, path: owners.path.clone() };
            errors.push(owner.invalid("/v1, Kind=Event is disallowed from being an owner"));
        }
        if owner.get("controller").flag() {
            let name = owner.get("name").text();
            match controller {
                Some(first) => errors.push(owners.invalid(format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {name}"
                ))),
                None => controller = Some(name),
            }
        }
    }
    errors
}

fn finalizers(finalizers: &Field<'_>) -> FieldErrors {
    const ORPHAN: &str = "orphan";
    const FOREGROUND: &str = "foregroundDeletion";
    let mut errors = Vec::new();
    let items = finalizers.items();
    for item in &items {
        for message in names::is_qualified_name(item.text()) {
            errors.push(FieldError::invalid(&finalizers.path, item.text(), message));
        }
    }
    let has = |name: &str| items.iter().any(|item| item.text() == name);
    if has(ORPHAN) && has(FOREGROUND) {
        errors.push(finalizers.invalid(format!("finalizer {ORPHAN} and {FOREGROUND} cannot be both set")));
    }
    errors
}

/// The stricter rule of built-in kinds: a finalizer has a domain, or is one of Kubernetes' own.
pub fn standard_finalizers(object: &Value) -> FieldErrors {
    let list = Field::root(object).get("metadata").list("finalizers");
    let known = |name: &str| name.contains('/') || matches!(name, "kubernetes" | "orphan" | "foregroundDeletion");
    list.iter()
        .filter(|item| !known(item.text()))
        .map(|item| item.invalid("name is neither a standard finalizer name nor is it fully qualified"))
        .collect()
}
