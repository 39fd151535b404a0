//! Which requests a webhook or policy is about: rules on resources, and selectors on namespaces and objects.

use mussel_api::object::ObjectExt;
use mussel_api::selector::LabelSelector;
use serde_json::Value;

use super::asked::{Asked, Place};
use crate::status::Status;

/// A `RuleWithOperations`, and the resource names of a policy's rule.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<(String, String)>,
    names: Vec<String>,
    scope: Scope,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Scope {
    #[default]
    All,
    Namespaced,
    Cluster,
}

impl Rule {
    pub fn of(rule: &Value) -> Self {
        let resource = |text: String| match text.split_once('/') {
            Some((resource, subresource)) => (resource.to_owned(), subresource.to_owned()),
            None => (text, String::new()),
        };
        Self {
            operations: texts(&rule["operations"]),
            groups: texts(&rule["apiGroups"]),
            versions: texts(&rule["apiVersions"]),
            resources: texts(&rule["resources"]).into_iter().map(resource).collect(),
            names: texts(&rule["resourceNames"]),
            scope: match rule["scope"].as_str() {
                Some("Namespaced") => Scope::Namespaced,
                Some("Cluster") => Scope::Cluster,
                _ => Scope::All,
            },
        }
    }

    pub fn all_of(list: &Value) -> Vec<Self> {
        list.as_array().into_iter().flatten().map(Self::of).collect()
    }

    /// Whether the rule is about this request, seen as one to `place`.
    pub fn matches(&self, asked: &Asked<'_>, place: &Place) -> bool {
        let is_namespace = place.group.is_empty() && place.resource == "namespaces";
        let in_namespace = !is_namespace && !asked.namespace.is_empty();
        let in_scope = match self.scope {
            Scope::All => true,
            Scope::Namespaced => in_namespace,
            Scope::Cluster => !in_namespace,
        };
        let has = |list: &[String], wanted: &str| list.iter().any(|item| item == "*" || item == wanted);
        in_scope
            && has(&self.operations, asked.operation)
            && has(&self.groups, &place.group)
            && has(&self.versions, &place.version)
            && self.resources.iter().any(|(resource, subresource)| {
                (resource == "*" || *resource == place.resource)
                    && (subresource == "*" || subresource == asked.subresource)
            })
            && (self.names.is_empty() || self.names.iter().any(|name| name == asked.name))
    }
}

/// What is selected, beside by rules.
#[derive(Debug)]
pub struct Selectors {
    namespaces: Result<LabelSelector, String>,
    objects: Result<LabelSelector, String>,
}

impl Selectors {
    /// From what carries `namespaceSelector` and `objectSelector`.
    pub fn of(value: &Value) -> Self {
        let read = |field: &str| match &value[field] {
            Value::Null => Ok(LabelSelector::everything()),
            selector => LabelSelector::from_value(Some(selector)).map_err(|error| error.to_string()),
        };
        Self { namespaces: read("namespaceSelector"), objects: read("objectSelector") }
    }

    /// # Errors
    /// When a selector is none, or the namespace does not exist.
    pub fn matches(&self, asked: &Asked<'_>) -> Result<bool, Status> {
        Ok(self.matches_namespace(asked)? && self.matches_object(asked)?)
    }

    fn matches_namespace(&self, asked: &Asked<'_>) -> Result<bool, Status> {
        let selector = self.namespaces.as_ref().map_err(Status::internal)?;
        if selector.is_empty() || (asked.namespace.is_empty() && !asked.is_namespace()) {
            return Ok(true);
        }
        // A namespace that is written is judged by the labels it is to have.
        if asked.is_namespace() && asked.subresource.is_empty() && matches!(asked.operation, "CREATE" | "UPDATE") {
            return Ok(selector.matches(asked.object().and_then(ObjectExt::labels)));
        }
        let namespace = asked.attributes.view.get("namespaces", "", asked.namespace);
        let namespace = namespace.ok_or_else(|| Status::not_found("", "namespaces", asked.namespace))?;
        Ok(selector.matches(namespace.labels()))
    }

    fn matches_object(&self, asked: &Asked<'_>) -> Result<bool, Status> {
        let selector = self.objects.as_ref().map_err(Status::internal)?;
        if selector.is_empty() {
            return Ok(true);
        }
        // The options of a connection have no metadata.
        let has_metadata = asked.operation != "CONNECT";
        let fits =
            |object: Option<&Value>| has_metadata && object.is_some_and(|object| selector.matches(object.labels()));
        Ok(fits(asked.object()) || fits(asked.old()))
    }
}

pub fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
}
