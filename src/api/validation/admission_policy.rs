//! Admission policies and their bindings. Their CEL expressions are for the API server to compile; it looks at them apart.

use std::collections::HashSet;

use serde_json::Value;

use super::admission::{match_conditions, rule};
use super::cursor::Field;
use super::meta::label_name;
use super::selector::label_selector;
use crate::field::{FieldError, FieldErrors};
use crate::names;

/// Most audit annotations of one policy.
const ANNOTATIONS_MAX: usize = 20;

fn match_resources(resources: &Field<'_>) -> FieldErrors {
    if resources.is_absent() {
        return Vec::new();
    }
    let mut errors = resources.get("matchPolicy").one_of(&["Equivalent", "Exact"]);
    errors.extend(label_selector(&resources.get("namespaceSelector")));
    errors.extend(label_selector(&resources.get("objectSelector")));
    for list in ["resourceRules", "excludeResourceRules"] {
        for named in resources.list(list) {
            let mut seen = HashSet::new();
            for name in named.list("resourceNames") {
                errors.extend(name.each_invalid(names::is_path_segment_name(name.text())));
                if !seen.insert(name.text()) {
                    errors.push(name.duplicate());
                }
            }
            errors.extend(rule(&named));
        }
    }
    errors
}

fn param_kind(kind: &Field<'_>) -> FieldErrors {
    if kind.is_absent() {
        return Vec::new();
    }
    let mut errors = Vec::new();
    let version = kind.get("apiVersion");
    match version.text().split('/').collect::<Vec<_>>().as_slice() {
        [""] => errors.push(version.required("")),
        [name] => errors.extend(group_version(&version, "", name)),
        [group, name] => errors.extend(group_version(&version, group, name)),
        _ => errors.push(version.invalid(format!("unexpected GroupVersion string: {}", version.text()))),
    }
    let name = kind.get("kind");
    if name.is_zero() {
        errors.push(name.required(""));
    } else {
        let problems = names::is_dns1035_label(&name.text().to_lowercase());
        if !problems.is_empty() {
            let detail = format!("may have mixed case, but should otherwise match: {}", problems.join(","));
            errors.push(name.invalid(detail));
        }
    }
    errors
}

fn group_version(field: &Field<'_>, group: &str, version: &str) -> FieldErrors {
    let mut errors = Vec::new();
    let problems = if group.is_empty() { Vec::new() } else { names::is_dns1123_subdomain(group) };
    if !problems.is_empty() {
        errors.push(FieldError::invalid(&field.path, group, problems.join(",")));
    }
    let problems = names::is_dns1035_label(version);
    if version.is_empty() {
        errors.push(field.invalid("version must be specified"));
    } else if !problems.is_empty() {
        errors.push(FieldError::invalid(&field.path, version, problems.join(",")));
    }
    errors
}

/// What both kinds of policy have in common.
fn policy(spec: &Field<'_>) -> FieldErrors {
    let mut errors = spec.get("failurePolicy").one_of(&["Fail", "Ignore"]);
    errors.extend(param_kind(&spec.get("paramKind")));
    let constraints = spec.get("matchConstraints");
    if constraints.is_absent() {
        errors.push(constraints.required(""));
    } else {
        errors.extend(match_resources(&constraints));
        if constraints.get("resourceRules").is_zero() {
            errors.push(constraints.get("resourceRules").required(""));
        }
    }
    errors.extend(match_conditions(&spec.get("matchConditions")));
    for variable in spec.list("variables") {
        let (name, expression) = (variable.get("name"), variable.get("expression"));
        if name.text().trim().is_empty() {
            errors.push(name.required("name is not specified"));
        } else if !is_cel_identifier(name.text()) {
            errors.push(name.invalid("name is not a valid CEL identifier"));
        }
        if expression.text().trim().is_empty() {
            errors.push(expression.required("expression is not specified"));
        }
    }
    errors
}

fn is_cel_identifier(name: &str) -> bool {
    const RESERVED: [&str; 21] = [
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
    ];
    let mut bytes = name.bytes();
    let begins = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    begins && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_') && !RESERVED.contains(&name)
}

pub fn validating_admission_policy_create(object: &Value) -> FieldErrors {
    let root = Field::root(object);
    let spec = root.get("spec");
    let mut errors = policy(&spec);
    let (validations, annotations) = (spec.get("validations"), spec.get("auditAnnotations"));
    if validations.is_zero() && annotations.is_zero() {
        let detail = "validations or auditAnnotations must contain at least one item";
        errors.push(validations.required(detail));
        errors.push(annotations.required(detail));
    }
    for validation in validations.items() {
        let (expression, message) = (validation.get("expression"), validation.get("message"));
        let own = validation.get("messageExpression");
        if expression.text().trim().is_empty() {
            errors.push(expression.required("expression is not specified"));
        }
        if !own.is_zero() && own.text().trim().is_empty() {
            errors.push(own.invalid("must be non-empty if specified"));
        }
        if !message.is_zero() && message.text().trim().is_empty() {
            errors.push(message.invalid("message must be non-empty if specified"));
        } else if message.text().trim().contains(['\n', '\r']) {
            errors.push(message.invalid("message must not contain line breaks"));
        }
        let reasons = ["Forbidden", "Invalid", "RequestEntityTooLarge"];
        errors.extend(validation.get("reason").none_or_one_of(&reasons));
    }
    if annotations.count() > ANNOTATIONS_MAX {
        errors.push(annotations.invalid(format!("must not have more than {ANNOTATIONS_MAX} auditAnnotations")));
    }
    let mut keys = HashSet::new();
    for annotation in annotations.items() {
        let (key, expression) = (annotation.get("key"), annotation.get("valueExpression"));
        let name = root.get("metadata").get("name").text().to_owned();
        if name.is_empty() {
            errors.push(key.invalid("requires metadata.name be non-empty"));
        } else {
            errors.extend(label_name(&key.path, &format!("{name}/{}", key.text())));
        }
        if expression.text().trim().is_empty() {
            errors.push(expression.required("valueExpression is not specified"));
        } else if expression.text().trim().len() > 5 * 1024 {
            errors.push(expression.required("must not exceed 5120 bytes in length"));
        }
        if !keys.insert(key.text()) {
            errors.push(key.duplicate());
        }
    }
    errors
}

pub fn validating_admission_policy_update(new: &Value, _old: &Value) -> FieldErrors {
    validating_admission_policy_create(new)
}

pub fn validating_admission_policy_status(new: &Value, _old: &Value) -> FieldErrors {
    let mut errors = Vec::new();
    for warning in Field::root(new).get("status").get("typeChecking").list("expressionWarnings") {
        for field in ["warning", "fieldRef"] {
            errors.extend(warning.get(field).not_empty());
        }
    }
    errors
}

pub fn mutating_admission_policy_create(object: &Value) -> FieldErrors {
    let spec = Field::root(object).get("spec");
    let mut errors = policy(&spec);
    errors.extend(spec.get("reinvocationPolicy").one_of(&["IfNeeded", "Never"]));
    // What is deleted cannot be changed.
    for rule in spec.get("matchConstraints").list("resourceRules") {
        for operation in rule.list("operations").iter().filter(|operation| operation.text() == "DELETE") {
            errors.push(operation.not_supported(&["*", "CONNECT", "CREATE", "UPDATE"]));
        }
    }
    let mutations = spec.get("mutations");
    if mutations.is_zero() {
        errors.push(mutations.required("mutations must contain at least one item"));
    }
    for mutation in mutations.items() {
        let kind = mutation.get("patchType");
        errors.extend(kind.one_of(&["ApplyConfiguration", "JSONPatch"]));
        let (apply, patch) = (mutation.get("applyConfiguration"), mutation.get("jsonPatch"));
        let (wanted, other) = match kind.text() {
            "ApplyConfiguration" => (&apply, &patch),
            "JSONPatch" => (&patch, &apply),
            _ => continue,
        };
        if wanted.is_absent() {
            errors.push(wanted.required(format!("must be specified when patchType is {}", kind.text())));
        } else if wanted.get("expression").text().trim().is_empty() {
            errors.push(wanted.get("expression").required("expression is not specified"));
        }
        if other.is_present() {
            errors.push(other.invalid(format!("must not be specified when patchType is {}", kind.text())));
        }
    }
    errors
}

pub fn mutating_admission_policy_update(new: &Value, _old: &Value) -> FieldErrors {
    mutating_admission_policy_create(new)
}

/// What both kinds of binding have in common.
fn binding(spec: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    let policy = spec.get("policyName");
    if policy.is_zero() {
        errors.push(policy.required(""));
    } else {
        errors.extend(policy.each_invalid(names::is_dns1123_subdomain(policy.text())));
    }
    errors.extend(param_ref(&spec.get("paramRef")));
    errors.extend(match_resources(&spec.get("matchResources")));
    errors
}

fn param_ref(reference: &Field<'_>) -> FieldErrors {
    if reference.is_absent() {
        return Vec::new();
    }
    let (name, selector) = (reference.get("name"), reference.get("selector"));
    let mut errors = Vec::new();
    if !name.is_zero() {
        errors.extend(name.each_invalid(names::is_path_segment_name(name.text())));
    }
    if !name.is_zero() && selector.is_present() {
        errors.push(name.forbidden("name and selector are mutually exclusive"));
        errors.push(selector.forbidden("name and selector are mutually exclusive"));
    }
    errors.extend(label_selector(&selector));
    if name.is_zero() && selector.is_absent() {
        errors.push(reference.required("one of name or selector must be specified"));
    }
    errors.extend(reference.get("parameterNotFoundAction").one_of(&["Deny", "Allow"]));
    errors
}

pub fn validating_admission_policy_binding_create(object: &Value) -> FieldErrors {
    let spec = Field::root(object).get("spec");
    let mut errors = binding(&spec);
    let actions = spec.get("validationActions");
    let mut seen = HashSet::new();
    for action in actions.items() {
        errors.extend(action.one_of(&["Audit", "Deny", "Warn"]));
        if !seen.insert(action.text()) {
            errors.push(action.duplicate());
        }
    }
    if seen.contains("Deny") && seen.contains("Warn") {
        errors.push(actions.invalid(
            "must not contain both Deny and Warn (repeating the same validation failure information in the API response \
             and headers serves no purpose)",
        ));
    }
    if seen.is_empty() {
        errors.push(actions.required("at least one validation action is required"));
    }
    errors
}

pub fn validating_admission_policy_binding_update(new: &Value, _old: &Value) -> FieldErrors {
    validating_admission_policy_binding_create(new)
}

pub fn mutating_admission_policy_binding_create(object: &Value) -> FieldErrors {
    binding(&Field::root(object).get("spec"))
}

pub fn mutating_admission_policy_binding_update(new: &Value, _old: &Value) -> FieldErrors {
    mutating_admission_policy_binding_create(new)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(errors: FieldErrors) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn policies_and_bindings_are_refused_in_upstreams_words() {
        let policy = json!({"metadata": {"name": "p"}, "spec": {"failurePolicy": "Fail", "matchConstraints": {
            "matchPolicy": "Equivalent", "resourceRules": []}, "variables": [{"name": "in", "expression": "1"}]}});
        assert_eq!(
            texts(validating_admission_policy_create(&policy)),
            [
                "spec.matchConstraints.resourceRules: Required value",
                "spec.variables[0].name: Invalid value: \"in\": name is not a valid CEL identifier",
                "spec.validations: Required value: validations or auditAnnotations must contain at least one item",
                "spec.auditAnnotations: Required value: validations or auditAnnotations must contain at least one item",
            ]
        );
        let binding = json!({"spec": {"policyName": "p", "paramRef": {"parameterNotFoundAction": "Deny"}}});
        assert_eq!(
            texts(validating_admission_policy_binding_create(&binding)),
            [
                "spec.paramRef: Required value: one of name or selector must be specified",
                "spec.validationActions: Required value: at least one validation action is required",
            ]
        );
    }
}
