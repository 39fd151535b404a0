//! Structural schemas: every field is specified once, outside of `anyOf` and its like, so that it is known what to prune and
//! where a value belongs.

use crate::custom::{self, Additional, Props};
use crate::field::{FieldError, FieldErrors, Path};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// The invariants of a structural schema, in the order of their texts.
pub(super) fn check(props: &Props, path: &Path) -> FieldErrors {
    let mut errors = FieldErrors::new();
    invariants(props, Level::Root, path, &mut errors);
    completeness(props, path, &mut errors);
    errors.sort_by_key(ToString::to_string);
    errors
}

fn invariants(props: &Props, level: Level, path: &Path, errors: &mut FieldErrors) {
    let ty = path.child("type");
    if props.ty == "array" && props.items.is_none() {
        errors.push(FieldError::required(&path.child("items"), "must be specified"));
    }
    if let Some(items) = &props.items {
        invariants(items, Level::Item, &path.child("items"), errors);
    }
    for (name, property) in &props.properties {
        invariants(property, Level::Field, &path.child("properties").key(name), errors);
    }
    if let Some(additional) = &props.additional_properties {
        let place = path.child("additionalProperties");
        if level == Level::Root {
            errors.push(FieldError::forbidden(&place, "must not be used at the root"));
        }
        if props.embedded {
            let detail = "must not be used if x-kubernetes-embedded-resource is set";
            errors.push(FieldError::forbidden(&place, detail));
        }
        if let Additional::Of(values) = additional {
            invariants(values, Level::Field, &place, errors);
        }
    }
    if props.int_or_string {
        let detail = "must be false if x-kubernetes-int-or-string is true";
        for (set, name) in [
            (props.preserve_unknown, "x-kubernetes-preserve-unknown-fields"),
            (props.embedded, "x-kubernetes-embedded-resource"),
        ] {
            if set {
                errors.push(FieldError::invalid(&path.child(name), true, detail));
            }
        }
    }
    let skips_any = is_int_or_string(&props.any_of);
    let skips_first = props.all_of.first().is_some_and(|first| is_int_or_string(&first.any_of));
    junctors(props, skips_any, skips_first, path, errors);
    if let Some(pattern) = &props.pattern
        && let Err(error) = pattern.check()
    {
        let detail = format!("must be a valid regular expression, but isn't: {error}");
        errors.push(FieldError::invalid(&path.child("pattern"), pattern.as_str(), detail));
    }

    if props.embedded && props.ty != "object" {
        let detail = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(match props.ty.as_str() {
            "" => FieldError::required(&ty, detail),
            other => FieldError::invalid(&ty, other, detail),
        });
    } else if props.ty.is_empty() && !props.int_or_string && !props.preserve_unknown {
        let detail = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        errors.push(FieldError::required(&ty, detail));
    }
    if level == Level::Root && !props.ty.is_empty() && props.ty != "object" {
        errors.push(FieldError::invalid(&ty, props.ty.as_str(), "must be object at the root"));
    }
    if level == Level::Root || props.embedded {
        for name in ["kind", "apiVersion"] {
            if let Some(property) = props.property(name).filter(|property| property.ty != "string") {
                let place = path.child("properties").key(name).child("type");
                errors.push(FieldError::invalid(&place, property.ty.as_str(), "must be string"));
            }
        }
    }
    if let Some(metadata) = props.property("metadata") {
        of_metadata(metadata, level, props.embedded, &path.child("properties").key("metadata"), errors);
    }
    if props.embedded && !props.preserve_unknown && props.properties.is_empty() {
        errors.push(FieldError::required(
            &path.child("properties"),
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
        ));
    }
}

/// At the root a schema may restrict names, and nothing else of metadata.
fn of_metadata(metadata: &Props, level: Level, embedded: bool, path: &Path, errors: &mut FieldErrors) {
    if (level == Level::Root || embedded) && metadata.ty != "object" {
        errors.push(FieldError::invalid(&path.child("type"), metadata.ty.as_str(), "must be object"));
    }
    let says_more = metadata.properties.keys().any(|name| !matches!(name.as_str(), "name" | "generateName"))
        || metadata.additional_properties.is_some()
        || metadata.items.is_some()
        || metadata.nullable
        || metadata.preserve_unknown
        || metadata.embedded
        || metadata.int_or_string
        || metadata.list_type.is_some()
        || metadata.map_type.is_some()
        || metadata.has_description
        || metadata.has_title
        || !metadata.required.is_empty()
        || !metadata.rules.is_empty();
    if level == Level::Root && says_more {
        errors.push(FieldError::forbidden(
            path,
            "must not specify anything other than name and generateName, but metadata is implicitly specified",
        ));
    }
}

/// `anyOf: [{type: integer}, {type: string}]`: the one exception from the rule that types are given once.
fn is_int_or_string(any_of: &[Props]) -> bool {
    let plain = |props: &Props, ty: &str| props.ty == ty && props.properties.is_empty() && props.items.is_none();
    matches!(any_of, [a, b] if plain(a, "integer") && plain(b, "string"))
}

fn junctors(props: &Props, skips_any: bool, skips_first: bool, path: &Path, errors: &mut FieldErrors) {
    if !skips_any {
        for (at, one) in props.any_of.iter().enumerate() {
            nested(one, false, &path.child("anyOf").index(at), errors);
        }
    }
    for (at, one) in props.all_of.iter().enumerate() {
        nested(one, skips_first && at == 0, &path.child("allOf").index(at), errors);
    }
    for (at, one) in props.one_of.iter().enumerate() {
        nested(one, false, &path.child("oneOf").index(at), errors);
    }
    if let Some(not) = &props.not {
        nested(not, false, &path.child("not"), errors);
    }
}

fn nested(props: &Props, skips_any: bool, path: &Path, errors: &mut FieldErrors) {
    junctors(props, skips_any, false, path, errors);
    if let Some(pattern) = &props.pattern
        && let Err(error) = pattern.check()
    {
        let detail = format!("must be a valid regular expression, but isn't: {error}");
        errors.push(FieldError::invalid(&path.child("pattern"), pattern.as_str(), detail));
    }
    if let Some(items) = &props.items {
        nested(items, false, &path.child("items"), errors);
    }
    for (name, property) in &props.properties {
        nested(property, false, &path.child("properties").key(name), errors);
    }
    let rules: [(bool, &str, &str); 14] = [
        (!props.ty.is_empty(), "type", "must be empty to be structural"),
        (props.additional_properties.is_some(), "additionalProperties", "must be undefined to be structural"),
        (props.default.is_some(), "default", "must be undefined to be structural"),
        (props.has_title, "title", "must be empty to be structural"),
        (props.has_description, "description", "must be empty to be structural"),
        (props.nullable, "nullable", "must be false to be structural"),
        (props.has_external_docs, "externalDocs", "must be undefined to be structural"),
        (props.preserve_unknown, "x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
        (props.embedded, "x-kubernetes-embedded-resource", "must be false to be structural"),
        (props.int_or_string, "x-kubernetes-int-or-string", "must be false to be structural"),
        (!props.list_map_keys.is_empty(), "x-kubernetes-list-map-keys", "must be empty to be structural"),
        (props.list_type.is_some(), "x-kubernetes-list-type", "must be undefined to be structural"),
        (props.map_type.is_some(), "x-kubernetes-map-type", "must be undefined to be structural"),
        (!props.rules.is_empty(), "x-kubernetes-validations", "must be empty to be structural"),
    ];
    for (broken, field, detail) in rules {
        if broken {
            errors.push(FieldError::forbidden(&path.child(field), detail));
        }
    }
    if props.property("metadata").is_some() {
        let place = path.child("properties").key("metadata");
        errors.push(FieldError::forbidden(&place, "must not be specified in a nested context"));
    }
}

/// What `anyOf` and its like speak of is specified outside of them.
fn completeness(props: &Props, path: &Path, errors: &mut FieldErrors) {
    of_junctors(props, Some(props), path, path, errors);
    if let Some(items) = &props.items {
        completeness(items, &path.child("items"), errors);
    }
    for (name, property) in &props.properties {
        completeness(property, &path.child("properties").key(name), errors);
    }
    if let Some(values) = props.values() {
        completeness(values, &path.child("additionalProperties"), errors);
    }
}

fn of_junctors(said: &Props, props: Option<&Props>, place: &Path, path: &Path, errors: &mut FieldErrors) {
    for (junctor, list) in [("allOf", &said.all_of), ("anyOf", &said.any_of), ("oneOf", &said.one_of)] {
        for (at, one) in list.iter().enumerate() {
            of_nested(one, props, place, &path.child(junctor).index(at), errors);
        }
    }
    if let Some(not) = &said.not {
        of_nested(not, props, place, &path.child("not"), errors);
    }
}

fn of_nested(said: &Props, props: Option<&Props>, place: &Path, path: &Path, errors: &mut FieldErrors) {
    let Some(known) = props else {
        errors.push(FieldError::required(place, format!("because it is defined in {path}")));
        return;
    };
    of_junctors(said, props, place, path, errors);
    if let Some(items) = &said.items {
        of_nested(items, known.items.as_deref(), &place.child("items"), &path.child("items"), errors);
    }
    for (name, property) in &said.properties {
        let (place, path) = (place.child("properties").key(name), path.child("properties").key(name));
        of_nested(property, known.property(name), &place, &path, errors);
    }
}

/// Defaults are what they would be anyway: pruned, and right by their own schema.
pub(super) fn defaults(props: &Props, path: &Path) -> FieldErrors {
    let mut errors = FieldErrors::new();
    walk_defaults(props, path, &mut errors);
    errors
}

fn walk_defaults(props: &Props, path: &Path, errors: &mut FieldErrors) {
    if let Some(default) = &props.default {
        let place = path.child("default");
        let mut value = default.clone();
        match custom::coerce_part(&mut value, props) {
            Ok(unknown) if unknown.is_empty() => {}
            Ok(_) => errors.push(FieldError::invalid(&place, default.clone(), "must not have unknown fields")),
            Err(error) => errors.push(FieldError::invalid(&place, default.clone(), error.to_string())),
        }
        custom::default(&mut value, props);
        errors.extend(custom::validate_part(props, &value, None, &place));
    }
    for (name, property) in &props.properties {
        walk_defaults(property, &path.child("properties").key(name), errors);
    }
    if let Some(values) = props.values() {
        walk_defaults(values, &path.child("additionalProperties"), errors);
    }
    if let Some(items) = &props.items {
        walk_defaults(items, &path.child("items"), errors);
    }
}
