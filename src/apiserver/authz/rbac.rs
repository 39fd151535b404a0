//! Roles and bindings, and what they allow. Permissions only add up; there is no deny.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Attributes, Decision};
use crate::handler::UserInfo;

/// The four kinds that RBAC reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    ClusterRole,
    Role,
    ClusterRoleBinding,
    RoleBinding,
}

pub const KINDS: [Kind; 4] = [Kind::ClusterRole, Kind::Role, Kind::ClusterRoleBinding, Kind::RoleBinding];

impl Kind {
    pub fn qualified(self) -> &'static str {
        match self {
            Self::ClusterRole => "clusterroles.rbac.authorization.k8s.io",
            Self::Role => "roles.rbac.authorization.k8s.io",
            Self::ClusterRoleBinding => "clusterrolebindings.rbac.authorization.k8s.io",
            Self::RoleBinding => "rolebindings.rbac.authorization.k8s.io",
        }
    }
}

/// `rbac.authorization.k8s.io/v1` PolicyRule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Rule {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", rename = "nonResourceURLs")]
    pub non_resource_urls: Vec<String>,
    pub verbs: Vec<String>,
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

fn has(list: &[String], value: &str) -> bool {
    list.iter().any(|entry| entry == "*" || entry == value)
}

impl Rule {
    pub fn new(verbs: &[&str], groups: &[&str], resources: &[&str]) -> Self {
        Self { verbs: strings(verbs), api_groups: strings(groups), resources: strings(resources), ..Self::default() }
    }

    #[must_use]
    pub fn named(mut self, names: &[&str]) -> Self {
        self.resource_names = strings(names);
        self
    }

    pub fn paths(verbs: &[&str], paths: &[&str]) -> Self {
        Self { verbs: strings(verbs), non_resource_urls: strings(paths), ..Self::default() }
    }

    pub fn everything() -> Self {
        Self::new(&["*"], &["*"], &["*"])
    }

    pub fn every_path() -> Self {
        Self::paths(&["*"], &["*"])
    }

    pub fn allows(&self, attributes: &Attributes) -> bool {
        if !has(&self.verbs, &attributes.verb) {
            return false;
        }
        if !attributes.is_resource {
            return self.non_resource_urls.iter().any(|url| path_matches(url, &attributes.path));
        }
        has(&self.api_groups, &attributes.group)
            && self.resources.iter().any(|r| resource_matches(r, &attributes.resource, &attributes.subresource))
            && (self.resource_names.is_empty() || self.resource_names.contains(&attributes.name))
    }
}

fn path_matches(pattern: &str, path: &str) -> bool {
    pattern == "*"
        || pattern == path
        || pattern.strip_suffix('*').is_some_and(|p| path.starts_with(p.trim_end_matches('*')))
}

/// `*`, `pods`, `pods/log`, `*/scale`.
fn resource_matches(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == "*" {
        return true;
    }
    match rule.split_once('/') {
        None => subresource.is_empty() && rule == resource,
        Some((rule_resource, rule_sub)) => {
            !subresource.is_empty() && rule_sub == subresource && (rule_resource == "*" || rule_resource == resource)
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Subject {
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_group: String,
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
}

impl Subject {
    fn is(&self, user: &UserInfo, binding_namespace: &str) -> bool {
        match self.kind.as_str() {
            "User" => self.name == user.name,
            "Group" => user.in_group(&self.name),
            "ServiceAccount" => {
                let namespace = if self.namespace.is_empty() { binding_namespace } else { &self.namespace };
                let rest = user.name.strip_prefix("system:serviceaccount:").and_then(|r| r.split_once(':'));
                !namespace.is_empty() && rest == Some((namespace, self.name.as_str()))
            }
            _ => false,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RoleRef {
    pub api_group: String,
    pub kind: String,
    pub name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Binding {
    subjects: Vec<Subject>,
    role_ref: RoleRef,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Role {
    metadata: Labels,
    rules: Vec<Rule>,
    aggregation_rule: Option<AggregationRule>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Labels {
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct AggregationRule {
    cluster_role_selectors: Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector>,
}

/// All roles and bindings, decoded.
#[derive(Debug, Default)]
pub struct RbacIndex {
    cluster_roles: HashMap<String, Role>,
    /// What aggregated cluster roles add up to; kept here so that they act before their controller has written them.
    aggregated: HashMap<String, Arc<[Rule]>>,
    roles: HashMap<String, Role>,
    cluster_bindings: BTreeMap<String, Binding>,
    /// By namespace, then name.
    bindings: HashMap<String, BTreeMap<String, Binding>>,
    aggregation_is_stale: bool,
}

impl RbacIndex {
    pub fn clear(&mut self, kind: Kind) {
        match kind {
            Kind::ClusterRole => {
                self.cluster_roles.clear();
                self.aggregation_is_stale = true;
            }
            Kind::Role => self.roles.clear(),
            Kind::ClusterRoleBinding => self.cluster_bindings.clear(),
            Kind::RoleBinding => self.bindings.clear(),
        }
    }

    /// An object that cannot be read grants nothing.
    pub fn put(&mut self, kind: Kind, key: &str, value: &[u8]) {
        match kind {
            Kind::ClusterRole => {
                self.cluster_roles.insert(key.to_owned(), read(key, value));
                self.aggregation_is_stale = true;
            }
            Kind::Role => {
                self.roles.insert(key.to_owned(), read(key, value));
            }
            Kind::ClusterRoleBinding => {
                self.cluster_bindings.insert(key.to_owned(), read(key, value));
            }
            Kind::RoleBinding => {
                let (namespace, name) = key.split_once('/').unwrap_or(("", key));
                self.bindings.entry(namespace.to_owned()).or_default().insert(name.to_owned(), read(key, value));
            }
        }
    }

    pub fn remove(&mut self, kind: Kind, key: &str) {
        match kind {
            Kind::ClusterRole => {
                self.cluster_roles.remove(key);
                self.aggregation_is_stale = true;
            }
            Kind::Role => {
                self.roles.remove(key);
            }
            Kind::ClusterRoleBinding => {
                self.cluster_bindings.remove(key);
            }
            Kind::RoleBinding => {
                let (namespace, name) = key.split_once('/').unwrap_or(("", key));
                if let Some(list) = self.bindings.get_mut(namespace) {
                    list.remove(name);
                    if list.is_empty() {
                        self.bindings.remove(namespace);
                    }
                }
            }
        }
    }

    /// Works out the aggregated cluster roles again after a batch that changed any cluster role.
    pub fn aggregate(&mut self) {
        if !std::mem::take(&mut self.aggregation_is_stale) {
            return;
        }
        self.aggregated.clear();
        let names: Vec<&String> = self.cluster_roles.keys().collect();
        let mut result = HashMap::new();
        for name in names {
            if self.cluster_roles[name].aggregation_rule.is_some() {
                let mut rules = Vec::new();
                let mut seen = vec![name.as_str()];
                self.collect(name, &mut seen, &mut rules);
                result.insert(name.clone(), Arc::from(rules));
            }
        }
        self.aggregated = result;
    }

    /// The rules of a cluster role and, when it aggregates, of those it selects. `seen` ends cycles.
    fn collect<'a>(&'a self, name: &'a str, seen: &mut Vec<&'a str>, rules: &mut Vec<Rule>) {
        let Some(role) = self.cluster_roles.get(name) else { return };
        for rule in &role.rules {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
        for selector in role.aggregation_rule.iter().flat_map(|a| &a.cluster_role_selectors) {
            let Ok(selector) = mussel_api::selector::LabelSelector::from_spec(selector) else { continue };
            for (other, role) in &self.cluster_roles {
                if !seen.contains(&other.as_str()) && selector.matches_map(&role.metadata.labels) {
                    seen.push(other);
                    self.collect(other, seen, rules);
                }
            }
        }
    }

    pub fn authorize(&self, attributes: &Attributes) -> Decision {
        let mut missing = Vec::new();
        let mut reason = None;
        self.visit(&attributes.user, &attributes.namespace, &mut |binding, rules| match rules {
            Ok(rules) => {
                if rules.iter().any(|rule| rule.allows(attributes)) {
                    reason = Some(format!("RBAC: allowed by {binding}"));
                }
                reason.is_none()
            }
            Err(role) => {
                missing.push(role);
                true
            }
        });
        match reason {
            Some(reason) => Decision { allowed: true, reason },
            None if missing.is_empty() => Decision::default(),
            None => {
                missing.dedup();
                let list = if missing.len() == 1 { missing.remove(0) } else { format!("[{}]", missing.join(", ")) };
                Decision { allowed: false, reason: format!("RBAC: {list}") }
            }
        }
    }

    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        let mut all: Vec<Rule> = Vec::new();
        self.visit(user, namespace, &mut |_, rules| {
            all.extend(rules.unwrap_or_default().iter().cloned());
            true
        });
        all
    }

    /// The rules that a role reference stands for, seen from `namespace`.
    pub fn referenced(&self, role: &RoleRef, namespace: &str) -> Result<&[Rule], String> {
        match role.kind.as_str() {
            "ClusterRole" => match (self.aggregated.get(&role.name), self.cluster_roles.get(&role.name)) {
                (Some(rules), _) => Ok(rules),
                (None, Some(found)) => Ok(&found.rules),
                (None, None) => Err(format!("clusterrole.rbac.authorization.k8s.io {:?} not found", role.name)),
            },
            "Role" => match self.roles.get(&format!("{namespace}/{}", role.name)) {
                Some(found) => Ok(&found.rules),
                None => Err(format!("role.rbac.authorization.k8s.io {:?} not found", role.name)),
            },
            other => Err(format!("unsupported role reference kind: {other:?}")),
        }
    }

    /// Calls `visitor` with each binding of the user and its rules until it returns false.
    fn visit(
        &self,
        user: &UserInfo,
        namespace: &str,
        visitor: &mut dyn FnMut(BindingName<'_>, Result<&[Rule], String>) -> bool,
    ) {
        for (name, binding) in &self.cluster_bindings {
            let Some(subject) = binding.subjects.iter().find(|subject| subject.is(user, "")) else { continue };
            let label =
                BindingName { kind: "ClusterRoleBinding", name, namespace: "", role: &binding.role_ref, subject };
            if !visitor(label, self.referenced(&binding.role_ref, "")) {
                return;
            }
        }
        if namespace.is_empty() {
            return;
        }
        for (name, binding) in self.bindings.get(namespace).into_iter().flatten() {
            let Some(subject) = binding.subjects.iter().find(|subject| subject.is(user, namespace)) else { continue };
            let label = BindingName { kind: "RoleBinding", name, namespace, role: &binding.role_ref, subject };
            if !visitor(label, self.referenced(&binding.role_ref, namespace)) {
                return;
            }
        }
    }
}

/// Prints as upstream names the binding that allowed a request.
struct BindingName<'a> {
    kind: &'static str,
    name: &'a str,
    namespace: &'a str,
    role: &'a RoleRef,
    subject: &'a Subject,
}

impl std::fmt::Display for BindingName<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let full =
            if self.namespace.is_empty() { self.name.to_owned() } else { format!("{}/{}", self.name, self.namespace) };
        write!(f, "{} {full:?} of {} {:?} to {}", self.kind, self.role.kind, self.role.name, self.subject.kind)?;
        match self.subject.namespace.as_str() {
            "" => write!(f, " {:?}", self.subject.name),
            namespace => write!(f, " {:?}", format!("{}/{namespace}", self.subject.name)),
        }
    }
}

fn read<T: Default + for<'a> Deserialize<'a>>(key: &str, value: &[u8]) -> T {
    serde_json::from_slice(value).unwrap_or_else(|error| {
        tracing::warn!(%key, %error, "an RBAC object cannot be read and grants nothing");
        T::default()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn index() -> RbacIndex {
        let mut index = RbacIndex::default();
        let mut put = |kind, key: &str, value: serde_json::Value| index.put(kind, key, value.to_string().as_bytes());
        let view = json!({"metadata": {"labels": {"to-view": "true"}},
            "rules": [{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log"]}]});
        put(Kind::ClusterRole, "base", view);
        let aggregated = json!({"aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to-view": "true"}}]}});
        put(Kind::ClusterRole, "view", aggregated);
        let scale = json!({"rules": [{"verbs": ["*"], "apiGroups": ["apps"], "resources": ["*/scale"]},
            {"verbs": ["get"], "nonResourceURLs": ["/healthz", "/logs/*"]}]});
        put(Kind::ClusterRole, "scale", scale);
        let one = json!({"rules": [{"verbs": ["update"], "apiGroups": [""], "resources": ["configmaps"],
            "resourceNames": ["mine"]}]});
        put(Kind::Role, "a/one", one);
        let subject = |kind: &str, name: &str| json!([{"kind": kind, "name": name}]);
        let bind = |kind: &str, role: &str, subjects: serde_json::Value| {
            json!({"roleRef": {"kind": kind, "name": role, "apiGroup": "rbac.authorization.k8s.io"},
                "subjects": subjects})
        };
        put(Kind::ClusterRoleBinding, "all-scale", bind("ClusterRole", "scale", subject("Group", "ops")));
        put(Kind::RoleBinding, "a/view", bind("ClusterRole", "view", subject("User", "ann")));
        put(Kind::RoleBinding, "a/one", bind("Role", "one", subject("ServiceAccount", "bot")));
        put(Kind::RoleBinding, "b/gone", bind("Role", "gone", subject("User", "ann")));
        index.aggregate();
        index
    }

    #[test]
    fn rules_allow_what_they_say_and_no_more() {
        let index = index();
        let table = [
            ("ann", "", "get", "a", "", "pods", "", "x", true),
            ("ann", "", "get", "a", "", "pods", "log", "x", true),
            ("ann", "", "get", "a", "", "pods", "exec", "x", false),
            ("ann", "", "get", "b", "", "pods", "", "x", false),
            ("ann", "", "list", "", "", "pods", "", "", false),
            ("ann", "", "delete", "a", "", "pods", "", "x", false),
            ("bob", "ops", "update", "a", "apps", "deployments", "scale", "x", true),
            ("bob", "ops", "update", "a", "apps", "deployments", "", "x", false),
            ("bob", "", "update", "a", "apps", "deployments", "scale", "x", false),
            ("system:serviceaccount:a:bot", "", "update", "a", "", "configmaps", "", "mine", true),
            ("system:serviceaccount:a:bot", "", "update", "a", "", "configmaps", "", "other", false),
            ("system:serviceaccount:b:bot", "", "update", "a", "", "configmaps", "", "mine", false),
        ];
        for (user, groups, verb, namespace, group, resource, subresource, name, allowed) in table {
            let groups: Vec<&str> = groups.split(',').filter(|g| !g.is_empty()).collect();
            let user = UserInfo::new(user, &groups);
            let mut attributes = Attributes::resource(&user, verb, group, resource, namespace, name);
            attributes.subresource = subresource.to_owned();
            assert_eq!(index.authorize(&attributes).allowed, allowed, "{attributes:?}");
        }
        for (path, allowed) in [("/healthz", true), ("/healthz/x", false), ("/logs/a/b", true), ("/", false)] {
            let user = UserInfo::new("bob", &["ops"]);
            let attributes = Attributes { user, verb: "get".into(), path: path.into(), ..Attributes::default() };
            assert_eq!(index.authorize(&attributes).allowed, allowed, "{path}");
        }
    }

    #[test]
    fn a_refusal_names_the_missing_role_and_a_permission_its_binding() {
        let index = index();
        let ann = UserInfo::new("ann", &[]);
        let refused = index.authorize(&Attributes::resource(&ann, "get", "", "pods", "b", "x"));
        assert_eq!(refused.reason, "RBAC: role.rbac.authorization.k8s.io \"gone\" not found");
        let allowed = index.authorize(&Attributes::resource(&ann, "get", "", "pods", "a", "x"));
        assert_eq!(allowed.reason, "RBAC: allowed by RoleBinding \"view/a\" of ClusterRole \"view\" to User \"ann\"");
    }
}
