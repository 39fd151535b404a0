//! Admission: named plugins in one fixed order. Each may change an object before it is validated, or refuse a request.
//!
//! Plugins decide from the request and one snapshot of the store, so they neither wait nor fail half way. Webhooks and
//! policies run behind them: see [`dynamic`].

mod default_class;
pub mod dynamic;
mod limit_ranger;
mod namespace_lifecycle;
mod node_restriction;
mod pod_security;
mod priority;
mod protection;
mod resource_quota;
mod runtime_class;
mod service_account;
mod taint_nodes;
mod tolerations;
pub mod type_check;

use mussel_api::resource::Resource;
use mussel_api::schema::Schema;
use mussel_store::Txn;
use serde_json::Value;

use self::dynamic::{Dynamic, Memory};
use crate::Context;
use crate::config::Config;
use crate::handler::{UserInfo, Warnings};
use crate::registry::view::View;
use crate::status::Status;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    /// As rules and reviews have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// Another form in which webhooks and policies see an object: the scale of a workload.
pub trait Face: Sync {
    fn show(&self, object: &Value) -> Value;

    /// Takes over what has changed in what was shown.
    fn take(&self, object: &mut Value, shown: &Value);
}

/// What is to be done, and by whom.
pub struct Attributes<'a> {
    pub operation: Operation,
    pub resource: &'a Resource,
    /// `pods`, `deployments.apps`: the resource without its version.
    pub stored_as: &'a str,
    pub subresource: &'a str,
    /// Empty for cluster-scoped resources.
    pub namespace: &'a str,
    pub name: &'a str,
    pub user: &'a UserInfo,
    pub dry_run: bool,
    /// The object as it is now; for updates and deletions.
    pub old: Option<&'a Value>,
    pub view: &'a View,
    pub warnings: &'a Warnings,
    pub config: &'a Config,
    pub context: &'a Context,
    /// Of the object in the request.
    pub schema: Option<&'a Schema>,
    /// The options of the request, as `meta.k8s.io/v1` has them.
    pub options: &'a (dyn Fn() -> Value + Sync),
    /// The name was made up from `generateName`.
    pub generated: bool,
    /// The object is not stored: an eviction, a review, the options of a connection.
    pub is_virtual: bool,
    pub face: Option<&'a dyn Face>,
}

impl Attributes<'_> {
    /// The creation of an object of this resource itself.
    fn creates(&self, stored_as: &str) -> bool {
        self.operation == Operation::Create && self.subresource.is_empty() && self.stored_as == stored_as
    }

    fn forbidden(&self, why: &str) -> Status {
        Status::forbidden(&self.resource.group, &self.resource.plural, self.name, why)
    }
}

/// One admission plugin.
pub trait Plugin: Send + Sync {
    /// Upstream's name, by which it is disabled.
    fn name(&self) -> &'static str;

    /// Changes the object. For creations and updates.
    fn mutate(&self, _attributes: &Attributes<'_>, _object: &mut Value) -> Result<(), Status> {
        Ok(())
    }

    /// Looks at the final object; there is none for deletions.
    fn validate(&self, _attributes: &Attributes<'_>, _object: Option<&Value>) -> Result<(), Status> {
        Ok(())
    }

    /// Takes what a new object needs of something that is shared, in the transaction that creates it.
    fn reserve(&self, _attributes: &Attributes<'_>, _object: &Value, _txn: &mut Txn) -> Result<(), Status> {
        Ok(())
    }
}

/// The plugins, in the order they run.
pub struct Chain {
    plugins: Vec<Box<dyn Plugin>>,
    dynamic: Dynamic,
}

impl Chain {
    /// All built-in plugins but those disabled by name.
    pub fn new(config: &Config) -> Self {
        let all: Vec<Box<dyn Plugin>> = vec![
            Box::new(namespace_lifecycle::NamespaceLifecycle),
            Box::new(limit_ranger::LimitRanger),
            Box::new(service_account::ServiceAccount),
            Box::new(node_restriction::NodeRestriction),
            Box::new(taint_nodes::TaintNodesByCondition),
            Box::new(pod_security::PodSecurity),
            Box::new(priority::Priority),
            Box::new(tolerations::DefaultTolerationSeconds::new(config)),
            Box::new(protection::StorageObjectInUseProtection),
            Box::new(default_class::DefaultStorageClass),
            Box::new(default_class::DefaultIngressClass),
            Box::new(runtime_class::RuntimeClass),
            // The last one: it counts what the others have let through.
            Box::new(resource_quota::ResourceQuota),
        ];
        let is_enabled = |name: &str| !config.disable_admission.iter().any(|disabled| disabled == name);
        let plugins = all.into_iter().filter(|plugin| is_enabled(plugin.name())).collect();
        Self { plugins, dynamic: Dynamic::new(is_enabled) }
    }

    /// Returns whether webhooks or policies were asked, which may have cost time.
    pub async fn mutate(&self, attributes: &Attributes<'_>, object: &mut Value) -> Result<bool, Status> {
        let mut memory = Memory::default();
        loop {
            for plugin in self.plugins.iter().filter(|_| !attributes.is_virtual) {
                plugin.mutate(attributes, object)?;
            }
            if !self.dynamic.mutate(attributes, object, &mut memory).await? {
                return Ok(memory.asked());
            }
        }
    }

    pub fn reserve(&self, attributes: &Attributes<'_>, object: &Value, txn: &mut Txn) -> Result<(), Status> {
        for plugin in &self.plugins {
            plugin.reserve(attributes, object, txn)?;
        }
        Ok(())
    }

    /// Returns whether webhooks or policies were asked, which may have cost time.
    pub async fn validate(&self, attributes: &Attributes<'_>, object: Option<&Value>) -> Result<bool, Status> {
        for plugin in self.plugins.iter().filter(|_| !attributes.is_virtual) {
            plugin.validate(attributes, object)?;
        }
        self.dynamic.validate(attributes, object).await
    }
}

/// The pod in an object: itself, or the template it makes pods of. `None` for other kinds.
fn pod_template<'v>(stored_as: &str, object: &'v Value) -> Option<&'v Value> {
    match stored_as {
        "pods" => Some(object),
        "podtemplates" => object.get("template"),
        "cronjobs.batch" => object.get("spec")?.get("jobTemplate")?.get("spec")?.get("template"),
        "deployments.apps"
        | "replicasets.apps"
        | "daemonsets.apps"
        | "statefulsets.apps"
        | "jobs.batch"
        | "replicationcontrollers" => object.get("spec")?.get("template"),
        _ => None,
    }
}
