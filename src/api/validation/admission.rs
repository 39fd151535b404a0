//! Admission webhooks and policies. Their CEL expressions are for the API server to compile; it looks at them apart.

use std::collections::HashSet;

use serde_json::Value;

use super::cursor::{Field, too_many};
use super::meta::label_name;
use super::selector::label_selector;
use crate::field::{FieldError, FieldErrors};
use crate::names;

/// Most match conditions of one webhook or policy.
const CONDITIONS_MAX: usize = 64;
/// Most audit annotations of one policy.
const ANNOTATIONS_MAX: usize = 20;
const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];
const NO_SIDE_EFFECTS: [&str; 2] = ["None", "NoneOnDryRun"];
const SIDE_EFFECTS: [&str; 4] = ["None", "NoneOnDryRun", "Some", "Unknown"];
const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const FORM: &str = "; desired format: https://host[/path]";

/// What older objects may have and new ones may not.
#[derive(Clone, Copy, Default)]
struct Leniency {
    side_effects: bool,
    review_versions: bool,
    repeated_names: bool,
}

pub fn webhook_configuration_create(configuration: &Value) -> FieldErrors {
    webhook_configuration(configuration, Leniency::default())
}

pub fn webhook_configuration_update(new: &Value, old: &Value) -> FieldErrors {
    let before = Field::root(old).list("webhooks");
    let any = |bad: &dyn Fn(&Field<'_>) -> bool| before.iter().any(bad);
    let mut names = HashSet::new();
    let leniency = Leniency {
        side_effects: any(&|hook| !NO_SIDE_EFFECTS.contains(&hook.get("sideEffects").text())),
        review_versions: any(&|hook| {
            let versions = hook.list("admissionReviewVersions");
            !versions.is_empty() && !versions.iter().any(|version| REVIEW_VERSIONS.contains(&version.text()))
        }),
        repeated_names: before.iter().any(|hook| !names.insert(hook.get("name").text())),
    };
    webhook_configuration(new, leniency)
}

fn webhook_configuration(configuration: &Value, leniency: Leniency) -> FieldErrors {
    let mut errors = Vec::new();
    let mut names = HashSet::new();
    for hook in Field::root(configuration).list("webhooks") {
        errors.extend(webhook(&hook, leniency));
        let name = hook.get("name");
        if !name.is_zero() && !names.insert(name.text()) && !leniency.repeated_names {
            errors.push(name.duplicate());
        }
    }
    errors
}

fn webhook(hook: &Field<'_>, leniency: Leniency) -> FieldErrors {
    let mut errors = fully_qualified_name(&hook.get("name"));
    errors.extend(hook.list("rules").iter().flat_map(rule));
    errors.extend(hook.get("failurePolicy").none_or_one_of(&["Fail", "Ignore"]));
    errors.extend(hook.get("matchPolicy").none_or_one_of(&["Equivalent", "Exact"]));
    let effects = hook.get("sideEffects");
    let allowed: &[&str] = if leniency.side_effects { &SIDE_EFFECTS } else { &NO_SIDE_EFFECTS };
    if effects.is_absent() {
        errors.push(effects.required(format!("must specify one of {}", allowed.join(", "))));
    } else if !allowed.contains(&effects.text()) {
        errors.push(effects.not_supported(allowed));
    }
    let timeout = hook.get("timeoutSeconds");
    if timeout.int().is_some_and(|seconds| !(1..=30).contains(&seconds)) {
        errors.push(timeout.invalid("the timeout value must be between 1 and 30 seconds"));
    }
    errors.extend(label_selector(&hook.get("namespaceSelector")));
    errors.extend(label_selector(&hook.get("objectSelector")));
    errors.extend(hook.get("reinvocationPolicy").none_or_one_of(&["IfNeeded", "Never"]));
    errors.extend(client_config(&hook.get("clientConfig")));
    errors.extend(match_conditions(&hook.get("matchConditions")));
    errors.extend(review_versions(&hook.get("admissionReviewVersions"), leniency.review_versions));
    errors
}

/// At least three labels, as names within a domain have.
fn fully_qualified_name(name: &Field<'_>) -> FieldErrors {
    if name.is_zero() {
        return vec![name.required("")];
    }
    let problems = names::is_dns1123_subdomain(name.text());
    if !problems.is_empty() {
        return vec![name.invalid(problems.join(","))];
    }
    if name.text().split('.').count() < 3 {
        return vec![name.invalid("should be a domain with at least three segments separated by dots")];
    }
    Vec::new()
}

fn review_versions(versions: &Field<'_>, lenient: bool) -> FieldErrors {
    let known = REVIEW_VERSIONS.join(", ");
    if versions.is_zero() {
        return vec![versions.required(format!("must specify one of {known}"))];
    }
    let mut errors = Vec::new();
    let mut seen = HashSet::new();
    for version in versions.items() {
        if !seen.insert(version.text()) {
            errors.push(version.invalid("duplicate version"));
            continue;
        }
        errors.extend(version.each_invalid(names::is_dns1035_label(version.text())));
    }
    if !lenient && !REVIEW_VERSIONS.iter().any(|version| seen.contains(version)) {
        errors.push(versions.invalid(format!("must include at least one of {known}")));
    }
    errors
}

fn client_config(config: &Field<'_>) -> FieldErrors {
    let (url, service) = (config.get("url"), config.get("service"));
    match (url.is_present(), service.is_present()) {
        (true, false) => webhook_url(&url),
        (false, true) => webhook_service(&service),
        _ => vec![config.required("exactly one of url or service is required")],
    }
}

fn webhook_url(url: &Field<'_>) -> FieldErrors {
    let (scheme, rest) = url.text().split_once("://").unwrap_or(("", url.text()));
    let mut errors = Vec::new();
    if scheme != "https" {
        let detail = format!("'https' is the only allowed URL scheme{FORM}");
        errors.push(FieldError::invalid(&url.path, scheme, detail));
    }
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = if scheme.is_empty() { "" } else { rest.split('/').next().unwrap_or_default() };
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    if host.is_empty() {
        errors.push(FieldError::invalid(&url.path, host, format!("host must be provided{FORM}")));
    } else if host.contains(|c: char| c.is_whitespace() || c.is_control() || "<>\"{}|\\^`".contains(c)) {
        errors.push(url.required(format!("url must be a valid URL: parse {:?}: invalid host{FORM}", url.text())));
    }
    if let Some(user) = user {
        errors.push(FieldError::invalid(&url.path, user, "user information is not permitted in the URL"));
    }
    if !fragment.is_empty() {
        errors.push(FieldError::invalid(&url.path, fragment, "fragments are not permitted in the URL"));
    }
    if !query.is_empty() {
        errors.push(FieldError::invalid(&url.path, query, "query parameters are not permitted in the URL"));
    }
    errors
}

/// The reference to a Service that webhooks, conversions and aggregated APIs have in common.
fn webhook_service(service: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    if service.get("name").is_zero() {
        errors.push(service.get("name").required("service name is required"));
    }
    if service.get("namespace").is_zero() {
        errors.push(service.get("namespace").required("service namespace is required"));
    }
    let port = service.get("port");
    let problems = names::is_port_number(port.int().unwrap_or(443));
    if !problems.is_empty() {
        errors.push(port.invalid(format!("port is not valid: {}", problems.join(", "))));
    }
    let path = service.get("path");
    if path.is_zero() || path.text() == "/" {
        return errors;
    }
    if path.text() == "//" {
        errors.push(path.invalid("segment[0] may not be empty"));
        return errors;
    }
    if !path.text().starts_with('/') {
        errors.push(path.invalid("must start with a '/'"));
    }
    let steps = path.text().strip_prefix('/').unwrap_or(path.text());
    for (at, step) in steps.strip_suffix('/').unwrap_or(steps).split('/').enumerate() {
        if step.is_empty() {
            errors.push(path.invalid(format!("segment[{at}] may not be empty")));
            continue;
        }
        for problem in names::is_dns1123_subdomain(step) {
            errors.push(path.invalid(format!("segment[{at}]: {problem}")));
        }
    }
    errors
}

fn rule(rule: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    let operations = rule.get("operations");
    if operations.is_zero() {
        errors.push(operations.required(""));
    }
    if is_wild_among_others(&operations) {
        errors.push(operations.invalid("if '*' is present, must not specify other operations"));
    }
    for operation in operations.items() {
        if !OPERATIONS.contains(&operation.text()) {
            errors.push(operation.not_supported(&OPERATIONS));
        }
    }
    let groups = rule.get("apiGroups");
    if groups.is_zero() {
        errors.push(groups.required(""));
    }
    if is_wild_among_others(&groups) {
        errors.push(groups.invalid("if '*' is present, must not specify other API groups"));
    }
    let versions = rule.get("apiVersions");
    if versions.is_zero() {
        errors.push(versions.required(""));
    }
    if is_wild_among_others(&versions) {
        errors.push(versions.invalid("if '*' is present, must not specify other API versions"));
    }
    errors.extend(versions.items().iter().filter(|version| version.is_zero()).map(|version| version.required("")));
    errors.extend(rule_resources(&rule.get("resources")));
    errors.extend(rule.get("scope").none_or_one_of(&["*", "Cluster", "Namespaced"]));
    errors
}

fn is_wild_among_others(list: &Field<'_>) -> bool {
    list.count() > 1 && list.items().iter().any(|item| item.text() == "*")
}

fn rule_resources(resources: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    if resources.is_zero() {
        errors.push(resources.required(""));
    }
    let (mut all_subresources, mut all_resources) = (HashSet::new(), HashSet::new());
    let (mut double, mut single, mut plain) = (false, false, false);
    for item in resources.items() {
        match item.text().split_once('/') {
            None if item.is_zero() => errors.push(item.required("")),
            None if item.text() == "*" => single = true,
            None => plain = true,
            Some((resource, subresource)) => {
                double |= item.text() == "*/*";
                if all_subresources.contains(resource) {
                    let detail = format!("if '{resource}/*' is present, must not specify {}", item.text());
                    errors.push(item.invalid(detail));
                }
                if all_resources.contains(subresource) {
                    let detail = format!("if '*/{subresource}' is present, must not specify {}", item.text());
                    errors.push(item.invalid(detail));
                }
                if subresource == "*" {
                    all_subresources.insert(resource);
                }
                if resource == "*" {
                    all_resources.insert(subresource);
                }
            }
        }
    }
    if double && resources.count() > 1 {
        errors.push(resources.invalid("if '*/*' is present, must not specify other resources"));
    }
    if single && plain {
        errors.push(resources.invalid("if '*' is present, must not specify other resources without subresources"));
    }
    errors
}

fn match_conditions(conditions: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    if conditions.count() > CONDITIONS_MAX {
        errors.push(too_many(conditions, conditions.count(), CONDITIONS_MAX));
    }
    let mut seen = HashSet::new();
    for condition in conditions.items() {
        let (name, expression) = (condition.get("name"), condition.get("expression"));
        if expression.text().trim().is_empty() {
            errors.push(expression.required(""));
        }
        if name.is_zero() {
            errors.push(name.required(""));
            continue;
        }
        errors.extend(label_name(&name.path, name.text()));
        if !seen.insert(name.text()) {
            errors.push(name.duplicate());
        }
    }
    errors
}

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

    fn hook() -> Value {
        json!({"name": "a.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"], "timeoutSeconds": 10,
            "failurePolicy": "Fail", "matchPolicy": "Equivalent",
            "clientConfig": {"service": {"name": "s", "namespace": "n", "port": 443}},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "scope": "*"}]})
    }

    #[test]
    fn a_plain_webhook_is_fine() {
        assert_eq!(texts(webhook_configuration_create(&json!({"webhooks": [hook()]}))), Vec::<String>::new());
    }

    #[test]
    fn webhooks_are_refused_in_upstreams_words() {
        let table: [(&str, Value, &[&str]); 9] = [
            (
                "/name",
                json!("a.b"),
                &[
                    "webhooks[0].name: Invalid value: \"a.b\": should be a domain with at least three segments separated by dots",
                ],
            ),
            (
                "/sideEffects",
                json!("Some"),
                &["webhooks[0].sideEffects: Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\""],
            ),
            (
                "/timeoutSeconds",
                json!(31),
                &["webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds"],
            ),
            (
                "/clientConfig",
                json!({}),
                &["webhooks[0].clientConfig: Required value: exactly one of url or service is required"],
            ),
            (
                "/clientConfig",
                json!({"url": "http://a/b"}),
                &[
                    "webhooks[0].clientConfig.url: Invalid value: \"http\": 'https' is the only allowed URL scheme; desired format: https://host[/path]",
                ],
            ),
            (
                "/admissionReviewVersions",
                json!(["v2"]),
                &[
                    "webhooks[0].admissionReviewVersions: Invalid value: [\"v2\"]: must include at least one of v1, v1beta1",
                ],
            ),
            (
                "/rules/0/operations",
                json!(["*", "CREATE"]),
                &[
                    "webhooks[0].rules[0].operations: Invalid value: [\"*\",\"CREATE\"]: if '*' is present, must not specify other operations",
                ],
            ),
            (
                "/rules/0/resources",
                json!(["*/*", "a"]),
                &[
                    "webhooks[0].rules[0].resources: Invalid value: [\"*/*\",\"a\"]: if '*/*' is present, must not specify other resources",
                ],
            ),
            (
                "/clientConfig/service",
                json!({"name": "s", "namespace": "n", "path": "/a//b", "port": 443}),
                &["webhooks[0].clientConfig.service.path: Invalid value: \"/a//b\": segment[1] may not be empty"],
            ),
        ];
        for (at, value, expected) in table {
            let mut hook = hook();
            *hook.pointer_mut(at).unwrap() = value;
            assert_eq!(texts(webhook_configuration_create(&json!({"webhooks": [hook]}))), expected, "{at}");
        }
        let twice = json!({"webhooks": [hook(), hook()]});
        assert_eq!(
            texts(webhook_configuration_create(&twice)),
            ["webhooks[1].name: Duplicate value: \"a.example.com\""]
        );
        assert!(webhook_configuration_update(&twice, &twice).is_empty());
        let mut hook = hook();
        hook["matchConditions"] = json!([{"name": "a", "expression": "true"}, {"name": "a", "expression": " "}]);
        assert_eq!(
            texts(webhook_configuration_create(&json!({"webhooks": [hook]}))),
            [
                "webhooks[0].matchConditions[1].expression: Required value",
                "webhooks[0].matchConditions[1].name: Duplicate value: \"a\""
            ]
        );
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
