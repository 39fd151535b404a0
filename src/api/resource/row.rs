//! How the built-in table is written down: a row starts from what most kinds have, and says where it differs.

use std::borrow::Cow;

use serde_json::Value;

use super::{Resource, Strategy, Subresource, no_field, none_create, none_update, nothing};
use crate::field::FieldErrors;

pub const STANDARD: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const CREATE: &[&str] = &["create"];
const READ_WRITE: &[&str] = &["get", "patch", "update"];
const CONNECT: &[&str] = &["create", "get"];
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];

pub(super) struct Row(Resource);

/// A namespaced resource with the standard verbs.
pub(super) fn row(group: &'static str, version: &'static str, kind: &'static str, plural: &'static str) -> Row {
    Row(Resource {
        group: group.into(),
        version: version.into(),
        kind: kind.into(),
        plural: plural.into(),
        singular: kind.to_ascii_lowercase().into(),
        short_names: Vec::new(),
        namespaced: true,
        verbs: Cow::Borrowed(STANDARD),
        categories: Vec::new(),
        subresources: Cow::Borrowed(&[]),
        schema: schema_name(group, version, kind).into(),
        storage: None,
        strategy: Strategy {
            has_status: false,
            has_generation: false,
            create_on_update: false,
            grace_seconds: None,
            default: nothing,
            validate_create: none_create,
            validate_update: none_update,
            validate_status: none_update,
            select_field: no_field,
        },
        custom: None,
    })
}

/// The name of a kind's definition: its Go package, turned around.
pub(super) fn schema_name(group: &str, version: &str, kind: &str) -> String {
    match group {
        "" => format!("io.k8s.api.core.{version}.{kind}"),
        "apiextensions.k8s.io" => format!("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.{version}.{kind}"),
        "apiregistration.k8s.io" => format!("io.k8s.kube-aggregator.pkg.apis.apiregistration.{version}.{kind}"),
        _ => format!("io.k8s.api.{}.{version}.{kind}", group.split('.').next().unwrap_or(group)),
    }
}

impl Row {
    pub fn cluster(mut self) -> Self {
        self.0.namespaced = false;
        self
    }

    pub fn short(mut self, names: &'static [&'static str]) -> Self {
        self.0.short_names = names.iter().map(|name| Cow::Borrowed(*name)).collect();
        self
    }

    /// In the category `all` of `kubectl get all`.
    pub fn all(mut self) -> Self {
        self.0.categories = vec!["all".into()];
        self
    }

    /// In the category of what extends the API.
    pub fn extension(mut self) -> Self {
        self.0.categories = vec!["api-extensions".into()];
        self
    }

    pub fn verbs(mut self, verbs: &'static [&'static str]) -> Self {
        self.0.verbs = verbs.into();
        self
    }

    /// Only ever created, never stored: reviews.
    pub fn create_only(self) -> Self {
        self.verbs(CREATE)
    }

    pub fn stored_as(mut self, group: &'static str, version: &'static str) -> Self {
        self.0.storage = Some((group, version));
        self
    }

    fn sub(
        mut self,
        name: &'static str,
        kind: Option<(&'static str, &'static str, &'static str)>,
        verbs: &'static [&'static str],
    ) -> Self {
        self.0.subresources.to_mut().push(Subresource { name, kind, verbs });
        self
    }

    pub fn status(mut self) -> Self {
        self.0.strategy.has_status = true;
        self.sub("status", None, READ_WRITE)
    }

    pub fn scale(self) -> Self {
        self.sub("scale", Some(("autoscaling", "v1", "Scale")), READ_WRITE)
    }

    /// A subresource that reads and writes a part of the object itself.
    pub fn part(self, name: &'static str) -> Self {
        self.sub(name, None, READ_WRITE)
    }

    pub fn verb_of_own(self, name: &'static str, verbs: &'static [&'static str]) -> Self {
        self.sub(name, None, verbs)
    }

    /// A subresource that takes an object of another kind.
    pub fn takes(self, name: &'static str, group: &'static str, version: &'static str, kind: &'static str) -> Self {
        self.sub(name, Some((group, version, kind)), CREATE)
    }

    pub fn connect(self, name: &'static str, options: &'static str) -> Self {
        self.sub(name, Some(("", "v1", options)), CONNECT)
    }

    pub fn proxy(self, options: &'static str) -> Self {
        self.sub("proxy", Some(("", "v1", options)), PROXY)
    }

    pub fn generation(mut self) -> Self {
        self.0.strategy.has_generation = true;
        self
    }

    pub fn create_on_update(mut self) -> Self {
        self.0.strategy.create_on_update = true;
        self
    }

    pub fn grace(mut self, seconds: i64) -> Self {
        self.0.strategy.grace_seconds = Some(seconds);
        self
    }

    pub fn default(mut self, default: fn(&mut Value)) -> Self {
        self.0.strategy.default = default;
        self
    }

    pub fn rules(mut self, create: fn(&Value) -> FieldErrors, update: fn(&Value, &Value) -> FieldErrors) -> Self {
        self.0.strategy.validate_create = create;
        self.0.strategy.validate_update = update;
        self
    }

    pub fn status_rules(mut self, status: fn(&Value, &Value) -> FieldErrors) -> Self {
        self.0.strategy.validate_status = status;
        self
    }

    pub fn fields(mut self, select: fn(&Value, &str) -> Option<String>) -> Self {
        self.0.strategy.select_field = select;
        self
    }

    /// Subresources end up in the order of their names, as discovery lists them.
    pub fn done(mut self) -> Resource {
        self.0.subresources.to_mut().sort_by_key(|s| s.name);
        self.0
    }
}
