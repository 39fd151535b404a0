//! Pod security standards, as labels of the namespace ask for them: `pod-security.kubernetes.io/enforce`, `…/warn`.

use mussel_api::object::ObjectExt;
use serde_json::Value;

use super::{Attributes, Operation, Plugin, pod_template};
use crate::status::Status;

mod checks;

pub struct PodSecurity;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    /// As upstream, a level that cannot be read is the strictest one.
    fn parse(text: &str) -> Self {
        match text {
            "privileged" | "" => Self::Privileged,
            "baseline" => Self::Baseline,
            _ => Self::Restricted,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }
}

impl Plugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn validate(&self, attributes: &Attributes<'_>, object: Option<&Value>) -> Result<(), Status> {
        let Some(object) = object.filter(|_| attributes.operation != Operation::Delete) else { return Ok(()) };
        let looked_at = matches!(attributes.subresource, "" | "ephemeralcontainers");
        let Some(template) = pod_template(attributes.stored_as, object).filter(|_| looked_at) else { return Ok(()) };
        let Some(namespace) = attributes.view.get("namespaces", "", attributes.namespace) else { return Ok(()) };
        let Some(labels) = namespace.labels() else { return Ok(()) };
        let label = |name: &str| {
            let key = format!("pod-security.kubernetes.io/{name}");
            labels.get(&key).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        // Only what bears on security may make an update of a running pod fail.
        if attributes.operation == Operation::Update
            && attributes.subresource.is_empty()
            && attributes.old.is_some_and(|old| {
                pod_template(attributes.stored_as, old).is_some_and(|old| old["spec"] == template["spec"])
            })
        {
            return Ok(());
        }
        let is_pod = attributes.stored_as == "pods";
        let enforce = Level::parse(&label("enforce"));
        if is_pod && enforce > Level::Privileged {
            let problems = problems(enforce, template);
            if !problems.is_empty() {
                return Err(attributes.forbidden(&format!(
                    "violates PodSecurity \"{}:{}\": {}",
                    enforce.name(),
                    version(&label("enforce-version")),
                    problems.join(", ")
                )));
            }
        }
        let warn = Level::parse(&label("warn"));
        if warn > Level::Privileged {
            let problems = problems(warn, template);
            if !problems.is_empty() {
                attributes.warnings.add(format!(
                    "would violate PodSecurity \"{}:{}\": {}",
                    warn.name(),
                    version(&label("warn-version")),
                    problems.join(", ")
                ));
            }
        }
        Ok(())
    }
}

fn version(label: &str) -> &str {
    if label.is_empty() { "latest" } else { label }
}

fn problems(level: Level, template: &Value) -> Vec<String> {
    let mut problems = checks::baseline(template);
    if level == Level::Restricted {
        checks::restrict(template, &mut problems);
    }
    problems.sort();
    problems
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn problems_are_worded_as_upstream_does() {
        let pod = json!({"spec": {"containers": [{"name": "c", "securityContext": {"privileged": true}}]}});
        assert_eq!(
            problems(Level::Baseline, &pod),
            ["privileged (container \"c\" must not set securityContext.privileged=true)"]
        );
        let plain = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        assert!(problems(Level::Baseline, &plain).is_empty());
        assert_eq!(
            problems(Level::Restricted, &plain),
            [
                "allowPrivilegeEscalation != false (containers \"a\", \"b\" must set securityContext.allowPrivilegeEscalation=false)",
                "runAsNonRoot != true (pod or containers \"a\", \"b\" must set securityContext.runAsNonRoot=true)",
                "seccompProfile (pod or containers \"a\", \"b\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")",
                "unrestricted capabilities (containers \"a\", \"b\" must set securityContext.capabilities.drop=[\"ALL\"])",
            ]
        );
        let good = json!({"spec": {"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "a", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]}});
        assert!(problems(Level::Restricted, &good).is_empty());
    }
}
