//! Roles and bindings.

use serde_json::Value;

use super::cursor::{Field, same};
use super::selector::label_selector;
use crate::field::{FieldError, FieldErrors};
use crate::names;

const GROUP: &str = "rbac.authorization.k8s.io";

fn rules(role: &Value, namespaced: bool) -> FieldErrors {
    let mut errors = Vec::new();
    for rule in Field::root(role).list("rules") {
        let verbs = rule.get("verbs");
        if verbs.is_zero() {
            errors.push(verbs.required("verbs must contain at least one value"));
        }
        let (urls, groups, resources) = (rule.get("nonResourceURLs"), rule.get("apiGroups"), rule.get("resources"));
        if !urls.is_zero() {
            if namespaced {
                errors.push(urls.invalid("namespaced rules cannot apply to non-resource URLs"));
            }
            if !groups.is_zero() || !resources.is_zero() || !rule.get("resourceNames").is_zero() {
                errors.push(urls.invalid("rules cannot apply to both regular resources and non-resource URLs"));
            }
            continue;
        }
        if groups.is_zero() {
            errors.push(groups.required("resource rules must supply at least one api group"));
        }
        if resources.is_zero() {
            errors.push(resources.required("resource rules must supply at least one resource"));
        }
    }
    errors
}

pub fn role_create(role: &Value) -> FieldErrors {
    rules(role, true)
}

pub fn role_update(new: &Value, _old: &Value) -> FieldErrors {
    rules(new, true)
}

pub fn cluster_role_create(role: &Value) -> FieldErrors {
    let mut errors = rules(role, false);
    let aggregation = Field::root(role).get("aggregationRule");
    if aggregation.is_present() {
        let selectors = aggregation.get("clusterRoleSelectors");
        if selectors.is_zero() {
            errors.push(selectors.required("at least one clusterRoleSelector required if aggregationRule is non-nil"));
        }
        for selector in selectors.items() {
            errors.extend(label_selector(&selector));
        }
    }
    errors
}

pub fn cluster_role_update(new: &Value, _old: &Value) -> FieldErrors {
    cluster_role_create(new)
}

fn binding(binding: &Value, kinds: &[&str], namespaced: bool) -> FieldErrors {
    let root = Field::root(binding);
    let role = root.get("roleRef");
    let (group, kind, name) = (role.get("apiGroup"), role.get("kind"), role.get("name"));
    let mut errors = Vec::new();
    if group.text() != GROUP {
        errors.push(group.not_supported(&[GROUP]));
    }
    if !kinds.contains(&kind.text()) {
        errors.push(kind.not_supported(kinds));
    }
    if name.is_zero() {
        errors.push(name.required(""));
    } else {
        errors.extend(name.each_invalid(names::is_path_segment_name(name.text())));
    }
    for subject in root.list("subjects") {
        let (kind, name, group) = (subject.get("kind"), subject.get("name"), subject.get("apiGroup"));
        if name.is_zero() {
            errors.push(name.required(""));
        }
        match kind.text() {
            "ServiceAccount" => {
                if !name.is_zero() {
                    errors.extend(name.each_invalid(names::is_dns1123_subdomain(name.text())));
                }
                if !group.is_zero() {
                    errors.push(group.not_supported(&[""]));
                }
                let namespace = subject.get("namespace");
                // Upstream lets a RoleBinding leave it out; the authorizer then takes the binding's own.
                if !namespaced && namespace.is_zero() {
                    errors.push(namespace.required(""));
                }
            }
            "User" | "Group" => {
                if group.text() != GROUP {
                    errors.push(group.not_supported(&[GROUP]));
                }
            }
            _ => errors.push(kind.not_supported(&["ServiceAccount", "User", "Group"])),
        }
    }
    errors
}

fn binding_update(new: &Value, old: &Value) -> FieldErrors {
    let (role, before) = (Field::root(new).get("roleRef"), Field::root(old).get("roleRef"));
    if same(role.value, before.value) {
        return Vec::new();
    }
    vec![FieldError::invalid(&role.path, role.value.clone(), "cannot change roleRef")]
}

pub fn role_binding_create(object: &Value) -> FieldErrors {
    binding(object, &["Role", "ClusterRole"], true)
}

pub fn role_binding_update(new: &Value, old: &Value) -> FieldErrors {
    let mut errors = role_binding_create(new);
    errors.extend(binding_update(new, old));
    errors
}

pub fn cluster_role_binding_create(object: &Value) -> FieldErrors {
    binding(object, &["ClusterRole"], false)
}

pub fn cluster_role_binding_update(new: &Value, old: &Value) -> FieldErrors {
    let mut errors = cluster_role_binding_create(new);
    errors.extend(binding_update(new, old));
    errors
}
