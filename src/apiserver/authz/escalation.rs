//! Nobody may grant through a role or binding what they do not hold themselves, unless they may `escalate` or `bind`.

use serde_json::Value;

use super::rbac::{RoleRef, Rule};
use super::{Attributes, Authorizer, MASTERS};
use crate::handler::UserInfo;

const GROUP: &str = "rbac.authorization.k8s.io";

impl Authorizer {
    /// May `user` write these rules into a role? `resource` is `roles` or `clusterroles`; `old` is what it holds now.
    ///
    /// # Errors
    /// Why not: to be wrapped as `roles.rbac.authorization.k8s.io "x" is forbidden: <why>`.
    pub async fn may_write_role(
        &self,
        user: &UserInfo,
        resource: &str,
        new: &Value,
        old: Option<&Value>,
    ) -> Result<(), String> {
        if user.in_group(MASTERS) || old.is_some_and(|old| old["rules"] == new["rules"] && same_aggregation(old, new)) {
            return Ok(());
        }
        let namespace = new["metadata"]["namespace"].as_str().unwrap_or_default();
        let name = new["metadata"]["name"].as_str().unwrap_or_default();
        let asks = Attributes::resource(user, "escalate", GROUP, resource, namespace, name);
        if self.authorize(&asks).await.allowed {
            return Ok(());
        }
        // A role that selects others grants whatever they will hold: only who holds all may make it.
        if new["aggregationRule"].is_object() && !old.is_some_and(|old| same_aggregation(old, new)) {
            self.covers(user, namespace, &[Rule::everything(), Rule::every_path()])
                .map_err(|_| "must have cluster-admin privileges to use the aggregationRule".to_owned())?;
        }
        let rules: Vec<Rule> = serde_json::from_value(new["rules"].clone()).unwrap_or_default();
        self.covers(user, namespace, &rules)
    }

    /// May `user` write this binding? `resource` is `rolebindings` or `clusterrolebindings`.
    ///
    /// # Errors
    /// Why not, as for [`Authorizer::may_write_role`]; or that the role does not exist.
    pub async fn may_write_binding(&self, user: &UserInfo, new: &Value, old: Option<&Value>) -> Result<(), String> {
        let unchanged = |old: &Value| old["roleRef"] == new["roleRef"] && old["subjects"] == new["subjects"];
        if user.in_group(MASTERS) || old.is_some_and(unchanged) {
            return Ok(());
        }
        let namespace = new["metadata"]["namespace"].as_str().unwrap_or_default();
        let role: RoleRef = serde_json::from_value(new["roleRef"].clone()).unwrap_or_default();
        let resource = if role.kind == "ClusterRole" { "clusterroles" } else { "roles" };
        let asks = Attributes::resource(user, "bind", GROUP, resource, namespace, &role.name);
        if self.authorize(&asks).await.allowed {
            return Ok(());
        }
        let rules = self.with_rbac(|index| index.referenced(&role, namespace).map(<[Rule]>::to_vec))?;
        self.covers(user, namespace, &rules)
    }

    /// # Errors
    /// Upstream's text, with the rules that the user lacks.
    fn covers(&self, user: &UserInfo, namespace: &str, wanted: &[Rule]) -> Result<(), String> {
        let held = self.rules_for(user, namespace);
        let missing: Vec<Rule> =
            wanted.iter().flat_map(split).filter(|one| !held.iter().any(|h| covers(h, one))).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let groups: Vec<String> = user.groups.iter().map(|group| format!("{group:?}")).collect();
        let mut lines: Vec<String> = compact(missing).iter().map(print).collect();
        lines.sort();
        Err(format!(
            "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
            user.name,
            groups.join(" "),
            lines.join("\n")
        ))
    }
}

fn same_aggregation(old: &Value, new: &Value) -> bool {
    old.get("aggregationRule") == new.get("aggregationRule")
}

/// One rule for each verb, group, resource and name, so that several held rules may cover it together.
fn split(rule: &Rule) -> Vec<Rule> {
    let mut out = Vec::new();
    for verb in &rule.verbs {
        for group in &rule.api_groups {
            for resource in &rule.resources {
                let one = Rule::new(&[verb], &[group], &[resource]);
                if rule.resource_names.is_empty() {
                    out.push(one);
                } else {
                    out.extend(rule.resource_names.iter().map(|name| one.clone().named(&[name])));
                }
            }
        }
        out.extend(rule.non_resource_urls.iter().map(|url| Rule::paths(&[verb], &[url])));
    }
    out
}

/// Whether the held rule covers a split one.
fn covers(held: &Rule, one: &Rule) -> bool {
    let all = |have: &[String], want: &[String]| have.iter().any(|h| h == "*") || want.iter().all(|w| have.contains(w));
    if !all(&held.verbs, &one.verbs) {
        return false;
    }
    if let Some(url) = one.non_resource_urls.first() {
        return held
            .non_resource_urls
            .iter()
            .any(|h| h == "*" || h == url || h.strip_suffix('*').is_some_and(|prefix| url.starts_with(prefix)));
    }
    let resource = one.resources.first().map(String::as_str).unwrap_or_default();
    let resource_is_held = held.resources.iter().any(|h| {
        h == "*"
            || h == resource
            || h.strip_prefix("*/").is_some_and(|sub| resource.split_once('/').is_some_and(|(_, s)| s == sub))
    });
    let names_are_held = held.resource_names.is_empty()
        || (!one.resource_names.is_empty() && one.resource_names.iter().all(|n| held.resource_names.contains(n)));
    all(&held.api_groups, &one.api_groups) && resource_is_held && names_are_held
}

/// Joins the verbs of what is otherwise equal, so that the text stays short.
fn compact(rules: Vec<Rule>) -> Vec<Rule> {
    let mut out: Vec<Rule> = Vec::new();
    for rule in rules {
        let same =
            |r: &&mut Rule| Rule { verbs: Vec::new(), ..(**r).clone() } == Rule { verbs: Vec::new(), ..rule.clone() };
        match out.iter_mut().find(same) {
            Some(found) => {
                found.verbs.extend(rule.verbs.into_iter().filter(|v| !found.verbs.contains(v)).collect::<Vec<_>>())
            }
            None => out.push(rule),
        }
    }
    out
}

/// `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`
fn print(rule: &Rule) -> String {
    let fields = [
        ("NonResourceURLs", &rule.non_resource_urls),
        ("APIGroups", &rule.api_groups),
        ("Resources", &rule.resources),
        ("ResourceNames", &rule.resource_names),
        ("Verbs", &rule.verbs),
    ];
    let set = fields.iter().filter(|(_, list)| !list.is_empty()).map(|(title, list)| {
        let list: Vec<String> = list.iter().map(|text| format!("{text:?}")).collect();
        format!("{title}:[{}]", list.join(" "))
    });
    format!("{{{}}}", set.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_rules_cover_together_what_none_covers_alone() {
        let held = [
            Rule::new(&["get"], &[""], &["pods"]),
            Rule::new(&["list"], &["*"], &["*"]),
            Rule::new(&["update"], &["apps"], &["*/scale"]),
            Rule::paths(&["get"], &["/logs/*"]),
        ];
        let covered = |rule: &Rule| split(rule).iter().all(|one| held.iter().any(|h| covers(h, one)));
        assert!(covered(&Rule::new(&["get", "list"], &[""], &["pods"])));
        assert!(covered(&Rule::new(&["get"], &[""], &["pods"]).named(&["x"])));
        assert!(covered(&Rule::new(&["update"], &["apps"], &["deployments/scale"])));
        assert!(covered(&Rule::paths(&["get"], &["/logs/x"])));
        assert!(!covered(&Rule::new(&["get"], &[""], &["secrets"])));
        assert!(!covered(&Rule::new(&["*"], &[""], &["pods"])));
        assert!(!covered(&Rule::paths(&["get"], &["/metrics"])));
        assert_eq!(
            print(&Rule::new(&["get"], &[""], &["pods"])),
            "{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"get\"]}"
        );
    }
}
