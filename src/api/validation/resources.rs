//! Resource lists: requests and limits of containers and pods.

use serde_json::Value;

use super::cursor::Field;
use crate::field::{FieldError, FieldErrors};
use crate::names;
use crate::quantity::Quantity;

fn is_hugepages(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Names with a domain other than `kubernetes.io`.
pub(super) fn is_extended(name: &str) -> bool {
    match name.split_once('/') {
        Some((domain, _)) => {
            domain != "kubernetes.io" && !domain.ends_with(".kubernetes.io") && !name.starts_with("requests.")
        }
        None => false,
    }
}

fn container_resource_name(entry: &Field<'_>, name: &str) -> FieldErrors {
    let invalid = |message: String| FieldError::invalid(&entry.path, name, message);
    let messages = names::is_qualified_name(name);
    if !messages.is_empty() {
        return messages.into_iter().map(invalid).collect();
    }
    if name.contains('/') {
        return Vec::new();
    }
    match name {
        "cpu" | "memory" | "ephemeral-storage" => Vec::new(),
        _ if is_hugepages(name) => Vec::new(),
        "storage" | "pods" | "services" => vec![invalid("must be a standard resource for containers".to_owned())],
        _ => vec![invalid("must be a standard resource type or fully qualified".to_owned())],
    }
}

/// A quantity that must not be negative, and whole where the resource has no fractions.
pub(super) fn quantity(entry: &Field<'_>, name: &str) -> FieldErrors {
    let Ok(amount) = Quantity::try_from(entry.value) else {
        let text = crate::quantity::QuantityError::Format.to_string();
        return vec![entry.invalid(text)];
    };
    let mut errors = Vec::new();
    if amount.is_negative() {
        errors.push(FieldError::invalid(&entry.path, amount.to_string(), "must be greater than or equal to 0"));
    }
    if (is_extended(name) || is_hugepages(name)) && !amount.is_whole() {
        errors.push(FieldError::invalid(&entry.path, amount.to_string(), "must be an integer"));
    }
    errors
}

/// A required, positive or zero amount such as a claim's storage.
pub(super) fn non_negative_quantity(entry: &Field<'_>) -> FieldErrors {
    quantity(entry, "")
}

pub(super) fn requirements(resources: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    let (limits, requests) = (resources.get("limits"), resources.get("requests"));
    let mut huge = false;
    let mut basic = false;
    for (name, limit) in limits.entries() {
        errors.extend(container_resource_name(&limit, name));
        errors.extend(quantity(&limit, name));
        huge |= is_hugepages(name);
        basic |= matches!(name, "cpu" | "memory");
    }
    for (name, request) in requests.entries() {
        errors.extend(container_resource_name(&request, name));
        errors.extend(quantity(&request, name));
        huge |= is_hugepages(name);
        basic |= matches!(name, "cpu" | "memory");
        let Ok(asked) = Quantity::try_from(request.value) else { continue };
        let limit = limits.map().and_then(|limits| limits.get(name)).map(Quantity::try_from);
        let fixed = is_extended(name) || is_hugepages(name);
        match limit {
            Some(Ok(limit)) if fixed && asked != limit => errors.push(FieldError::invalid(
                &requests.path,
                asked.to_string(),
                format!("must be equal to {name} limit of {limit}"),
            )),
            Some(Ok(limit)) if !fixed && asked > limit => errors.push(FieldError::invalid(
                &requests.path,
                asked.to_string(),
                format!("must be less than or equal to {name} limit of {limit}"),
            )),
            None if fixed => errors.push(limits.required("Limit must be set for non overcommitable resources")),
            _ => (),
        }
    }
    if huge && !basic {
        errors.push(resources.forbidden("HugePages require cpu or memory"));
    }
    errors
}

/// The resource list of a quota, a limit range or a node's capacity.
pub(super) fn list(list: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    for (name, amount) in list.entries() {
        for message in names::is_qualified_name(name) {
            errors.push(FieldError::invalid(&amount.path, name, message));
        }
        errors.extend(quantity(&amount, name));
    }
    errors
}

/// The amount as a quantity, where it is one.
pub(super) fn amount(value: Option<&Value>) -> Option<Quantity> {
    Quantity::try_from(value?).ok()
}
