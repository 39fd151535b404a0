//! The rules for `openAPIV3Schema` that look at one node at a time.

use serde_json::Value;

use super::structural;
use crate::custom::Props;
use crate::field::FieldErrors;
use crate::validation::cursor::Field;

/// What the root of a schema may say when the status is a resource of its own.
const ROOT_FIELDS: &[&str] = &[
    "description",
    "type",
    "format",
    "title",
    "maximum",
    "exclusiveMaximum",
    "minimum",
    "exclusiveMinimum",
    "maxLength",
    "minLength",
    "pattern",
    "maxItems",
    "minItems",
    "uniqueItems",
    "multipleOf",
    "required",
    "items",
    "properties",
    "externalDocs",
    "example",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
];
const TYPES: &[&str] = &["array", "boolean", "integer", "number", "object", "string"];
const META: [&str; 3] = ["metadata", "kind", "apiVersion"];

#[derive(Clone)]
struct Place {
    forbidden_default: Option<String>,
    in_metadata: bool,
    is_root: bool,
}

/// All rules for the schema of a version.
pub(super) fn version(schema: &Field<'_>, has_status: bool) -> FieldErrors {
    if schema.is_absent() {
        return Vec::new();
    }
    let mut errors = FieldErrors::new();
    if has_status {
        if schema.get("type").is_present() && schema.get("type").text() != "object" {
            errors.push(schema.get("type").invalid(
                "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled",
            ));
        }
        let known = |name: &String| ROOT_FIELDS.contains(&name.as_str());
        if schema.map().is_some_and(|map| map.iter().any(|(name, value)| !known(name) && !value.is_null())) {
            let words: Vec<String> = ROOT_FIELDS.iter().map(|field| go_name(field)).collect();
            errors.push(schema.invalid(format!(
                "only [{}] fields are allowed at the root of the schema if the status subresource is enabled",
                words.join(" ")
            )));
        }
    }
    if schema.get("nullable").flag() {
        errors.push(schema.get("nullable").forbidden("nullable cannot be true at the root"));
    }
    let props = match Props::parse(schema.value) {
        Ok(props) => props,
        Err(error) => {
            errors.push(schema.invalid(error.to_string()));
            return errors;
        }
    };
    node(schema, &Place { forbidden_default: None, in_metadata: false, is_root: true }, &mut errors);
    let of_structure = structural::check(&props, &schema.path);
    if of_structure.is_empty() {
        errors.extend(structural::defaults(&props, &schema.path));
    }
    errors.extend(of_structure);
    errors
}

/// `x-kubernetes-validations` → `XValidations`, as Go names the field.
fn go_name(field: &str) -> String {
    let short = field.replace("x-kubernetes-", "x-");
    short
        .split('-')
        .map(|part| {
            let mut chars = part.chars();
            chars.next().map(|c| c.to_ascii_uppercase()).into_iter().chain(chars).collect::<String>()
        })
        .collect()
}

fn node(schema: &Field<'_>, place: &Place, errors: &mut FieldErrors) {
    if schema.map().is_none() {
        return;
    }
    supported(schema, place, errors);
    let below = Place { is_root: false, ..place.clone() };
    if schema.get("uniqueItems").flag() {
        errors.push(
            schema
                .get("uniqueItems")
                .forbidden("uniqueItems cannot be set to true since the runtime complexity becomes quadratic"),
        );
    }
    let additional = schema.get("additionalProperties");
    if additional.is_present() {
        if schema.get("properties").count() > 0 && additional.value != &Value::Bool(true) {
            errors.push(additional.forbidden("additionalProperties and properties are mutual exclusive"));
        }
        let mut inner = below.clone();
        if place.in_metadata {
            inner.forbidden_default = Some("inside additionalProperties applying to object metadata".to_owned());
        }
        node(&additional, &inner, errors);
    }
    for (name, property) in schema.get("properties").entries() {
        let mut inner = below.clone();
        if (place.is_root || schema.get("x-kubernetes-embedded-resource").flag()) && META.contains(&name) {
            inner.in_metadata = true;
            if place.is_root {
                inner.forbidden_default = Some(format!("in top-level {name}"));
            }
        }
        node(&property, &inner, errors);
    }
    node(&schema.get("not"), &below, errors);
    for junctor in ["allOf", "oneOf", "anyOf"] {
        for one in schema.list(junctor) {
            node(&one, &below, errors);
        }
    }
    node(&schema.get("items"), &below, errors);
    extensions(schema, errors);
}

fn supported(schema: &Field<'_>, place: &Place, errors: &mut FieldErrors) {
    let ty = schema.get("type");
    if !ty.is_zero() && !TYPES.contains(&ty.text()) {
        errors.push(ty.not_supported(TYPES));
    }
    let has_default = schema.map().is_some_and(|map| map.contains_key("default"));
    if let Some(reason) = place.forbidden_default.as_ref().filter(|_| has_default) {
        errors.push(schema.get("default").forbidden(format!("must not be set {reason}")));
    }
    for field in ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"] {
        if !schema.get(field).is_zero() {
            errors.push(schema.get(field).forbidden(format!("{field} is not supported")));
        }
    }
    if ty.text() == "null" {
        errors.push(ty.forbidden("type cannot be set to null, use nullable as an alternative"));
    }
    if schema.get("items").value.is_array() {
        errors.push(schema.get("items").forbidden("items must be a schema object and not an array"));
    }
    let embedded = schema.get("x-kubernetes-embedded-resource");
    if place.in_metadata && embedded.flag() {
        errors.push(embedded.forbidden("must not be used inside of resource meta"));
    }
}

fn extensions(schema: &Field<'_>, errors: &mut FieldErrors) {
    let preserve = schema.get("x-kubernetes-preserve-unknown-fields");
    if preserve.value == &Value::Bool(false) {
        errors.push(preserve.invalid("must be true or undefined"));
    }
    let ty = schema.get("type");
    let (map_type, list_type) = (schema.get("x-kubernetes-map-type"), schema.get("x-kubernetes-list-type"));
    for (extension, wanted, name) in
        [(&map_type, "object", "x-kubernetes-map-type"), (&list_type, "array", "x-kubernetes-list-type")]
    {
        if extension.is_present() && ty.text() != wanted {
            let detail = format!("must be {wanted} if {name} is specified");
            errors.push(if ty.is_zero() { ty.required(detail) } else { ty.invalid(detail) });
        }
    }
    errors.extend(map_type.none_or_one_of(&["atomic", "granular"]));
    let items = schema.get("items");
    if list_type.text() == "set" && ty.text() == "array" {
        let (inner_list, inner_map) = (items.get("x-kubernetes-list-type"), items.get("x-kubernetes-map-type"));
        let detail = "must be atomic as item of a list with x-kubernetes-list-type=set";
        match items.get("type").text() {
            "array" if !matches!(inner_list.text(), "" | "atomic") => errors.push(inner_list.invalid(detail)),
            "object" if inner_map.text() != "atomic" => errors.push(inner_map.invalid(detail)),
            _ => {}
        }
    }
    errors.extend(list_type.none_or_one_of(&["atomic", "set", "map"]));
    map_keys(schema, &list_type, &items, errors);
    rules(schema, errors);
}

fn map_keys(schema: &Field<'_>, list_type: &Field<'_>, items: &Field<'_>, errors: &mut FieldErrors) {
    let keys = schema.get("x-kubernetes-list-map-keys");
    if keys.count() > 0 && list_type.text() != "map" {
        let detail = "must be map if x-kubernetes-list-map-keys is non-empty";
        errors.push(if list_type.is_absent() { list_type.required(detail) } else { list_type.invalid(detail) });
    }
    if list_type.text() == "map" {
        if keys.count() == 0 {
            errors.push(keys.required("must not be empty if x-kubernetes-list-type is map"));
        }
        if items.is_absent() {
            errors.push(items.required("must have a schema if x-kubernetes-list-type is map"));
        } else if items.get("type").text() != "object" {
            errors.push(items.get("type").invalid("must be object if parent array's x-kubernetes-list-type is map"));
        } else {
            let mut seen = Vec::new();
            for key in keys.items() {
                let name = key.text();
                let property = Field {
                    value: items.get("properties").get(name).value,
                    path: items.path.child("properties").key(name),
                };
                if property.is_absent() {
                    errors.push(keys.invalid("entries must all be names of item properties"));
                } else if matches!(property.get("type").text(), "array" | "object") {
                    errors.push(
                        property
                            .get("type")
                            .invalid("must be a scalar type if parent array's x-kubernetes-list-type is map"),
                    );
                }
                if seen.contains(&name) {
                    errors.push(keys.invalid("must not contain duplicate entries"));
                }
                seen.push(name);
                if property.is_absent() {
                    continue;
                }
                let required = items.list("required").iter().any(|one| one.text() == name);
                if !required && property.get("default").is_absent() {
                    errors.push(property.get("default").required(
                        "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required \
                         property",
                    ));
                }
                if property.get("nullable").flag() {
                    errors.push(
                        property
                            .get("nullable")
                            .forbidden("this property is in x-kubernetes-list-map-keys, so it cannot be nullable"),
                    );
                }
            }
        }
    }
    if matches!(list_type.text(), "set" | "map") && items.get("nullable").flag() {
        errors.push(
            items
                .get("nullable")
                .forbidden(format!("cannot be nullable when x-kubernetes-list-type is {}", list_type.text())),
        );
    }
}

fn rules(schema: &Field<'_>, errors: &mut FieldErrors) {
    for rule in schema.list("x-kubernetes-validations") {
        let (text, message) = (rule.get("rule"), rule.get("message"));
        let broken = |text: &str| text.contains(['\n', '\r']);
        if text.text().trim().is_empty() {
            errors.push(text.required("rule is not specified"));
        } else if !message.is_zero() && message.text().trim().is_empty() {
            errors.push(message.invalid("message must be non-empty if specified"));
        } else if broken(message.text().trim()) {
            errors.push(message.invalid("message must not contain line breaks"));
        } else if broken(text.text().trim()) && message.text().trim().is_empty() {
            errors.push(message.required("message must be specified if rule contains line breaks"));
        }
    }
}
