//! Admission webhooks. Their CEL expressions are for the API server to compile; it looks at them apart.

use std::collections::HashSet;

use serde_json::Value;

use super::cursor::{Field, too_many};
use super::meta::label_name;
use super::selector::label_selector;
use crate::field::{FieldError, FieldErrors};
use crate::names;

/// Most match conditions of one webhook or policy.
const CONDITIONS_MAX: usize = 64;
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

pub(super) fn rule(rule: &Field<'_>) -> FieldErrors {
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

pub(super) fn match_conditions(conditions: &Field<'_>) -> FieldErrors {
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
}
