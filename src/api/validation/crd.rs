//! CustomResourceDefinitions.
//!
//! Paths are those that upstream reports: what is the same in all versions is named once, as in the older form of the API
//! (`spec.validation.openAPIV3Schema`), everything else with its version.

mod schema;
mod structural;

use std::collections::HashSet;

use serde_json::Value;

use super::cursor::{Field, too_many};
use crate::custom::{self, JsonPath, Props};
use crate::field::{FieldError, FieldErrors, Path};
use crate::names;

/// Upstream's bound on `selectableFields`.
const SELECTABLE_MAX: usize = 8;
/// Ours on printer columns, versions and names.
const COLUMNS_MAX: usize = 256;
const VERSIONS_MAX: usize = 100;
const NAMES_MAX: usize = 100;

const APPROVED: &str = "api-approved.kubernetes.io";
const APPROVAL_URL: &str = "https://github.com/kubernetes/enhancements/pull/1111";

/// What becomes of a CRD of a protected group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Approval {
    /// The group is nobody's in particular.
    NotNeeded,
    Approved(String),
    Bypassed(String),
    Invalid(String),
    Missing(String),
}

pub fn crd_create(crd: &Value) -> FieldErrors {
    let mut errors = name(crd);
    errors.extend(spec(crd));
    errors.extend(status_names(crd));
    errors.extend(approval_errors(crd, None));
    errors
}

pub fn crd_update(new: &Value, old: &Value) -> FieldErrors {
    let mut errors = spec(new);
    let (now, before) = (Field::root(new).get("spec"), Field::root(old).get("spec"));
    if is_true(old, "Established") {
        errors.extend(now.get("scope").immutable(&before.get("scope")));
        errors.extend(now.get("names").get("kind").immutable(&before.get("names").get("kind")));
    }
    errors.extend(now.get("group").immutable(&before.get("group")));
    errors.extend(now.get("names").get("plural").immutable(&before.get("names").get("plural")));
    errors.extend(status_names(new));
    errors.extend(stored_versions(new));
    errors.extend(approval_errors(new, Some(old)));
    errors
}

pub fn crd_status(new: &Value, _old: &Value) -> FieldErrors {
    let mut errors = status_names(new);
    errors.extend(stored_versions(new));
    errors
}

fn is_true(crd: &Value, condition: &str) -> bool {
    let conditions = crd["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|c| c["type"] == condition && c["status"] == "True")
}

fn name(crd: &Value) -> FieldErrors {
    let root = Field::root(crd);
    let (name, spec) = (root.get("metadata").get("name"), root.get("spec"));
    let wanted = format!("{}.{}", spec.get("names").get("plural").text(), spec.get("group").text());
    if name.is_present() && name.text() != wanted {
        return vec![name.invalid("must be spec.names.plural+\".\"+spec.group")];
    }
    Vec::new()
}

/// The fields of all versions that may be named once: the version's own field, and where the older API had it.
struct Shared<'a> {
    versions: Vec<Field<'a>>,
    spec: Field<'a>,
}

impl<'a> Shared<'a> {
    /// `(path, value)` of a field, for each version, or once when all versions have the same.
    fn each(&self, field: &str, once: &str) -> Vec<(Field<'a>, Option<usize>)> {
        let values: Vec<Field<'a>> = self.versions.iter().map(|version| version.get(field)).collect();
        let Some(first) = values.first() else { return Vec::new() };
        if first.is_present() && values.iter().all(|value| value.value == first.value) {
            return vec![(Field { value: first.value, path: self.spec.path.child(once) }, None)];
        }
        values.into_iter().enumerate().map(|(at, value)| (value, Some(at))).collect()
    }
}

fn spec(crd: &Value) -> FieldErrors {
    let spec = Field::root(crd).get("spec");
    let mut errors = FieldErrors::new();
    let group = spec.get("group");
    let bad = names::is_dns1123_subdomain(group.text());
    if group.is_zero() {
        errors.push(group.required(""));
    } else if !bad.is_empty() {
        errors.push(group.invalid(bad.join(",")));
    } else if !group.text().contains('.') {
        errors.push(group.invalid("should be a domain with at least one dot"));
    }
    errors.extend(spec.get("scope").one_of(&["Cluster", "Namespaced"]));
    if spec.get("preserveUnknownFields").flag() {
        errors.push(
            spec.get("preserveUnknownFields").invalid(
                "cannot set to true, set x-preserve-unknown-fields to true in spec.versions[*].schema instead",
            ),
        );
    }

    let versions = spec.list("versions");
    if versions.len() > VERSIONS_MAX {
        errors.push(too_many(&spec.get("versions"), versions.len(), VERSIONS_MAX));
        return errors;
    }
    let mut seen = HashSet::new();
    let mut unique = true;
    for version in &versions {
        let schema = version.get("schema").get("openAPIV3Schema");
        if schema.is_absent() {
            errors.push(schema.required("schemas are required"));
        }
    }
    for version in &versions {
        let name = version.get("name");
        unique &= seen.insert(name.text());
        let bad = names::is_dns1035_label(name.text());
        if !bad.is_empty() {
            errors.push(name.invalid(bad.join(",")));
        }
        errors.extend(deprecation(version));
    }
    let list = spec.get("versions");
    if !unique {
        errors.push(list.invalid("must contain unique version names"));
    }
    if versions.iter().filter(|version| version.get("storage").flag()).count() != 1 {
        errors.push(list.invalid("must have exactly one version marked as storage version"));
    }

    let called = spec.get("names");
    for field in ["plural", "singular", "kind", "listKind"] {
        if called.get(field).is_zero() {
            errors.push(called.get(field).required(""));
        }
    }
    errors.extend(names(&called));
    let shared = Shared { versions, spec: spec.clone() };
    errors.extend(of_versions(&shared));
    errors.extend(conversion(&spec.get("conversion")));
    errors
}

fn of_versions(shared: &Shared<'_>) -> FieldErrors {
    let mut errors = FieldErrors::new();
    let status = |version: &Field<'_>| version.get("subresources").get("status").is_present();
    for (schema, at) in shared.each("schema", "validation") {
        let has_status = match at {
            Some(at) => status(&shared.versions[at]),
            None => shared.versions.iter().any(status),
        };
        errors.extend(schema::version(&schema.get("openAPIV3Schema"), has_status));
    }
    for (subresources, _) in shared.each("subresources", "subresources") {
        errors.extend(scale(&subresources));
    }
    for (columns, _) in shared.each("additionalPrinterColumns", "additionalPrinterColumns") {
        if columns.count() > COLUMNS_MAX {
            errors.push(too_many(&columns, columns.count(), COLUMNS_MAX));
            continue;
        }
        for one in columns.items() {
            errors.extend(column(&one));
        }
    }
    for (fields, at) in shared.each("selectableFields", "selectableFields") {
        let schema = shared.versions[at.unwrap_or(0)].get("schema").get("openAPIV3Schema");
        errors.extend(selectable(&fields, schema.value));
    }
    errors
}

fn deprecation(version: &Field<'_>) -> FieldErrors {
    let warning = version.get("deprecationWarning");
    if warning.is_absent() {
        return Vec::new();
    }
    let text = warning.text();
    let mut messages = Vec::new();
    if !version.get("deprecated").flag() {
        messages.push("can only be set for deprecated versions".to_owned());
    } else {
        if text.len() > 256 {
            messages.push("must be <= 256 characters long".to_owned());
        }
        if text.is_empty() {
            messages.push("must not be an empty string".to_owned());
        }
        if let Some((at, _)) = text.char_indices().find(|(_, c)| c.is_control()) {
            messages.push(format!(
                "must only contain printable UTF-8 characters; non-printable character found at index {at}"
            ));
        }
    }
    warning.each_invalid(messages)
}

fn names(called: &Field<'_>) -> FieldErrors {
    let mut errors = FieldErrors::new();
    for field in ["plural", "singular"] {
        let name = called.get(field);
        let bad = names::is_dns1035_label(name.text());
        if !name.is_zero() && !bad.is_empty() {
            errors.push(name.invalid(bad.join(",")));
        }
    }
    for field in ["kind", "listKind"] {
        let name = called.get(field);
        let bad = names::is_dns1035_label(&name.text().to_lowercase());
        if !name.is_zero() && !bad.is_empty() {
            errors.push(name.invalid(format!("may have mixed case, but should otherwise match: {}", bad.join(","))));
        }
    }
    for list in ["shortNames", "categories"] {
        let list = called.get(list);
        if list.count() > NAMES_MAX {
            errors.push(too_many(&list, list.count(), NAMES_MAX));
            continue;
        }
        for name in list.items() {
            let bad = names::is_dns1035_label(name.text());
            if !bad.is_empty() {
                errors.push(name.invalid(bad.join(",")));
            }
        }
        if list.path.as_str().ends_with("shortNames") {
            let (kind, list_kind) = (called.get("kind"), called.get("listKind"));
            if !kind.is_zero() && kind.text() == list_kind.text() {
                errors.push(list_kind.invalid("kind and listKind may not be the same"));
            }
        }
    }
    errors
}

fn status_names(crd: &Value) -> FieldErrors {
    names(&Field::root(crd).get("status").get("acceptedNames"))
}

fn stored_versions(crd: &Value) -> FieldErrors {
    let root = Field::root(crd);
    let stored = root.get("status").get("storedVersions");
    if stored.count() == 0 {
        let empty = Value::Array(Vec::new());
        return vec![FieldError::invalid(&stored.path, empty, "must have at least one stored version")];
    }
    let mut errors = FieldErrors::new();
    let versions = root.get("spec").list("versions");
    let known = |name: &str| versions.iter().any(|version| version.get("name").text() == name);
    for version in versions.iter().filter(|version| version.get("storage").flag()) {
        let name = version.get("name").text();
        if !stored.items().iter().any(|one| one.text() == name) {
            errors.push(stored.invalid(format!("must have the storage version {name}")));
        }
    }
    errors.extend(
        stored
            .items()
            .into_iter()
            .filter(|one| !known(one.text()))
            .map(|one| one.invalid("must appear in spec.versions")),
    );
    errors
}

fn scale(subresources: &Field<'_>) -> FieldErrors {
    let scale = subresources.get("scale");
    if scale.is_absent() {
        return Vec::new();
    }
    let mut errors = FieldErrors::new();
    let at = |field: &str| Field { value: scale.get(field).value, path: subresources.path.child("scale").child(field) };
    for (field, under, word) in [("specReplicasPath", ".spec.", ".spec"), ("statusReplicasPath", ".status.", ".status")]
    {
        let path = at(field);
        if path.is_zero() {
            errors.push(path.required(""));
        } else if let Some(error) = simple_path(&path) {
            errors.push(error);
        } else if !path.text().starts_with(under) {
            errors.push(path.invalid(format!("should be a json path under {word}")));
        }
    }
    let selector = at("labelSelectorPath");
    if !selector.is_zero() {
        if let Some(error) = simple_path(&selector) {
            errors.push(error);
        } else if !selector.text().starts_with(".spec.") && !selector.text().starts_with(".status.") {
            errors.push(selector.invalid("should be a json path under either .spec or .status"));
        }
    }
    errors
}

fn simple_path(path: &Field<'_>) -> Option<FieldError> {
    match path.text() {
        text if !text.starts_with('.') => Some(path.invalid("must be a simple json path starting with .")),
        text if !custom::simple(text) => Some(path.invalid("must be a json path in the dot notation")),
        _ => None,
    }
}

fn column(column: &Field<'_>) -> FieldErrors {
    const TYPES: &[&str] = &["boolean", "date", "integer", "number", "string"];
    const FORMATS: &[&str] = &["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
    let mut errors = FieldErrors::new();
    if column.get("name").is_zero() {
        errors.push(column.get("name").required(""));
    }
    let ty = column.get("type");
    let types = format!("must be one of {}", TYPES.join(","));
    if ty.is_zero() {
        errors.push(ty.required(types));
    } else if !TYPES.contains(&ty.text()) {
        errors.push(ty.invalid(types));
    }
    let format = column.get("format");
    if !format.is_zero() && !FORMATS.contains(&format.text()) {
        errors.push(format.invalid(format!("must be one of {}", FORMATS.join(","))));
    }
    let path = Field { value: column.get("jsonPath").value, path: column.path.child("JSONPath") };
    if path.is_zero() {
        errors.push(path.required(""));
    } else if !path.text().starts_with('.') {
        errors.push(path.invalid("must be a simple json path starting with ."));
    } else if let Err(error) = JsonPath::parse(path.text()) {
        errors.push(path.invalid(format!("must be a valid json path: {error}")));
    }
    errors
}

fn selectable(fields: &Field<'_>, schema: &Value) -> FieldErrors {
    let mut errors = FieldErrors::new();
    let props = Props::parse(schema).unwrap_or_default();
    let mut seen = HashSet::new();
    for field in fields.items() {
        let path = field.get("jsonPath");
        if path.is_zero() {
            errors.push(path.required(""));
            continue;
        }
        let whole = |detail: &str| FieldError::invalid(&field.path, path.value.clone(), detail);
        let text = path.text();
        if !custom::simple(text) {
            errors.push(path.invalid("is an invalid path: expected a dot notation without array indexes"));
            continue;
        }
        if text.starts_with(".metadata.") || text == ".metadata" {
            errors.push(whole("must not point to fields in metadata"));
            continue;
        }
        let found = text[1..].split('.').try_fold(&props, |props, name| props.property(name));
        match found {
            None => {
                errors.push(path.invalid("is an invalid path: does not refer to a valid field"));
                continue;
            }
            Some(props) if !matches!(props.ty.as_str(), "string" | "boolean" | "integer") => errors.push(whole(
                "must point to a field of type string, boolean or integer. Enum string fields and strings with formats \
                 are allowed.",
            )),
            Some(_) => {}
        }
        if !seen.insert(text) {
            errors.push(FieldError::duplicate(&field.path, path.value.clone()));
        }
    }
    if seen.len() > SELECTABLE_MAX {
        errors.push(too_many(fields, seen.len(), SELECTABLE_MAX));
    }
    errors
}

fn conversion(conversion: &Field<'_>) -> FieldErrors {
    if conversion.is_absent() {
        return Vec::new();
    }
    let mut errors = conversion.get("strategy").one_of(&["None", "Webhook"]);
    let webhook = conversion.get("webhook");
    let config = Field { value: webhook.get("clientConfig").value, path: conversion.path.child("webhookClientConfig") };
    let versions = Field {
        value: webhook.get("conversionReviewVersions").value,
        path: conversion.path.child("conversionReviewVersions"),
    };
    if conversion.get("strategy").text() != "Webhook" {
        if config.is_present() {
            errors.push(config.forbidden("should not be set when strategy is not set to Webhook"));
        }
        if versions.count() > 0 {
            errors.push(versions.forbidden("should not be set when strategy is not set to Webhook"));
        }
        return errors;
    }
    if config.is_absent() {
        errors.push(config.required("required when strategy is set to Webhook"));
    } else {
        errors.extend(client_config(&config));
    }
    if versions.count() == 0 {
        errors.push(versions.required(""));
        return errors;
    }
    let mut seen = HashSet::new();
    for version in versions.items() {
        if !seen.insert(version.text()) {
            errors.push(version.invalid("duplicate version"));
            continue;
        }
        errors.extend(version.each_invalid(names::is_dns1035_label(version.text())));
    }
    if !seen.contains("v1") && !seen.contains("v1beta1") {
        errors.push(versions.invalid("must include at least one of v1, v1beta1"));
    }
    errors
}

fn client_config(config: &Field<'_>) -> FieldErrors {
    let (url, service) = (config.get("url"), config.get("service"));
    if url.is_present() == service.is_present() {
        return vec![config.required("exactly one of url or service is required")];
    }
    if url.is_present() {
        return webhook_url(&url);
    }
    let mut errors = FieldErrors::new();
    for field in ["name", "namespace"] {
        if service.get(field).is_zero() {
            errors.push(service.get(field).required("service ".to_owned() + field + " is required"));
        }
    }
    if let Some(port) = service.get("port").int()
        && !names::is_port_number(port).is_empty()
    {
        errors.push(service.get("port").invalid("port is not valid: must be between 1 and 65535, inclusive"));
    }
    let path = service.get("path");
    if path.is_present() && path.text() != "/" && !path.is_zero() {
        if !path.text().starts_with('/') {
            errors.push(path.invalid("must start with a '/'"));
        }
        let text = path.text().strip_prefix('/').unwrap_or(path.text());
        let text = text.strip_suffix('/').unwrap_or(text);
        for (at, segment) in text.split('/').enumerate() {
            if segment.is_empty() {
                errors.push(path.invalid(format!("segment[{at}] may not be empty")));
                continue;
            }
            for message in names::is_dns1123_subdomain(segment) {
                errors.push(path.invalid(format!("segment[{at}]: {message}")));
            }
        }
    }
    errors
}

/// Upstream's rules for the URLs of webhooks.
fn webhook_url(url: &Field<'_>) -> FieldErrors {
    const FORM: &str = "; desired format: https://host[/path]";
    let mut errors = FieldErrors::new();
    let Some((scheme, rest)) = url.text().split_once("://") else {
        return vec![url.required(format!("url must be a valid URL{FORM}"))];
    };
    if scheme != "https" {
        errors.push(url.invalid(format!("'https' is the only allowed URL scheme{FORM}")));
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (host, tail) = rest.split_at(end);
    if host.is_empty() {
        errors.push(url.invalid(format!("host must be specified{FORM}")));
    }
    if host.contains('@') {
        errors.push(url.invalid("user information is not permitted in the URL"));
    }
    if tail.contains('#') {
        errors.push(url.invalid("fragments are not permitted in the URL"));
    }
    if tail.contains('?') {
        errors.push(url.invalid("query parameters are not permitted in the URL"));
    }
    errors
}

/// Whether the CRD may use its group: those of Kubernetes need a word from its people.
pub fn crd_approval(crd: &Value) -> Approval {
    let group = crd["spec"]["group"].as_str().unwrap_or_default();
    let of = |domain: &str| group == domain || group.ends_with(&format!(".{domain}"));
    if !of("k8s.io") && !of("kubernetes.io") {
        return Approval::NotNeeded;
    }
    let annotation = crd["metadata"]["annotations"][APPROVED].as_str().unwrap_or_default();
    if annotation.is_empty() {
        return Approval::Missing(format!(
            "protected groups must have approval annotation {APPROVED:?}, see {APPROVAL_URL}"
        ));
    }
    if annotation.starts_with("unapproved") {
        return Approval::Bypassed(format!("not approved: {annotation:?}"));
    }
    let is_url = annotation
        .split_once("://")
        .is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.split('/').next().unwrap_or_default().is_empty());
    if is_url {
        return Approval::Approved(format!("approved in {annotation}"));
    }
    Approval::Invalid(format!(
        "protected groups must have approval annotation {APPROVED:?} with either a URL or a reason starting with \
         \"unapproved\", see {APPROVAL_URL}"
    ))
}

fn approval_errors(crd: &Value, old: Option<&Value>) -> FieldErrors {
    let approval = crd_approval(crd);
    let kind = std::mem::discriminant(&approval);
    if old.is_some_and(|old| std::mem::discriminant(&crd_approval(old)) == kind) {
        return Vec::new();
    }
    let path = Path::new("metadata").child("annotations").key(APPROVED);
    match approval {
        Approval::Invalid(reason) => {
            vec![FieldError::invalid(&path, crd["metadata"]["annotations"][APPROVED].clone(), reason)]
        }
        Approval::Missing(reason) => vec![FieldError::required(&path, reason)],
        _ => Vec::new(),
    }
}
