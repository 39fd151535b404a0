//! Role bindings.

use serde_json::Value;

use super::{child, fill_zero, get, items};

const GROUP: &str = "rbac.authorization.k8s.io";

pub fn role_binding(binding: &mut Value) {
    if let Some(role) = child(binding, "roleRef") {
        fill_zero(role, "apiGroup", GROUP);
    }
    for subject in items(binding, "subjects") {
        if matches!(get(subject, "kind").as_str(), Some("User" | "Group")) {
            fill_zero(subject, "apiGroup", GROUP);
        }
    }
}

pub fn cluster_role_binding(binding: &mut Value) {
    role_binding(binding);
}
