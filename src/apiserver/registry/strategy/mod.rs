//! What the API server does for a kind beyond what its row says: initial status, allocations, deletion, escalation checks.

mod admission;
pub mod certificates;
mod custom;
mod definitions;
mod jobs;
pub mod namespaces;
mod nodes;
pub mod pods;
mod rbac;
mod services;
mod simple;

pub use services::ip_address;

use std::collections::BTreeMap;

use futures::future::BoxFuture;
use mussel_api::field::FieldErrors;
use mussel_api::object::ObjectExt;
use mussel_api::resource::Resource;
use mussel_store::Txn;
use serde_json::Value;

use super::write::Write;
use crate::status::Status;

/// The rules of a kind. The defaults are right for most of them.
pub trait Rules: Sync {
    /// The status that a client sends with a new object is kept.
    fn status_on_create(&self) -> bool {
        false
    }

    /// Sets what follows from the creation. The object has its uid and defaults; its status is empty.
    fn prepare_create(&self, _write: &Write<'_>, _new: &mut Value) -> Result<(), Status> {
        Ok(())
    }

    /// Puts back what an update of the object itself may not change.
    fn prepare_update(&self, _write: &Write<'_>, _new: &mut Value, _old: &Value) -> Result<(), Status> {
        Ok(())
    }

    /// Puts back what an update of the status may not change; all but metadata and status has been already.
    fn prepare_status(&self, _write: &Write<'_>, _new: &mut Value, _old: &Value) -> Result<(), Status> {
        Ok(())
    }

    /// The last change, after admission.
    fn finish(&self, _write: &Write<'_>, _new: &mut Value, _old: Option<&Value>) -> Result<(), Status> {
        Ok(())
    }

    /// Rules that need to know the cluster.
    fn validate(&self, _write: &Write<'_>, _new: &Value, _old: Option<&Value>) -> FieldErrors {
        FieldErrors::new()
    }

    /// Takes what the object needs for itself alone, in the transaction that writes it.
    fn reserve(
        &self,
        _write: &Write<'_>,
        _new: &mut Value,
        _old: Option<&Value>,
        _txn: &mut Txn,
    ) -> Result<(), Status> {
        Ok(())
    }

    /// Gives back what was reserved, in the transaction that removes the object.
    fn release(&self, _old: &Value, _txn: &mut Txn) {}

    /// May this user write this, beyond what RBAC says of the request?
    fn authorize<'a>(
        &'a self,
        _write: &'a Write<'_>,
        _new: &'a Value,
        _old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// The same of `…/status`.
    fn authorize_status<'a>(
        &'a self,
        _write: &'a Write<'_>,
        _new: &'a Value,
        _old: &'a Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Does the update raise the generation?
    fn counts_as_change(&self, new: &Value, old: &Value) -> bool {
        changed_beside_metadata(new, old)
    }

    /// How long the object is to stay when it is deleted; `None` for kinds that know no grace.
    fn grace_seconds(&self, _object: &Value, _requested: Option<i64>) -> Option<i64> {
        None
    }

    /// Kinds that are deleted in a way of their own mark the object here and say whether it stays.
    fn begin_delete(&self, _object: &mut Value) -> Option<bool> {
        None
    }

    /// Is this update the end of the object, because nothing holds up its deletion any more?
    fn ends(&self, new: &Value, old: &Value) -> bool {
        old.is_deleting() && old["metadata"]["deletionGracePeriodSeconds"] == 0 && new.finalizers().is_empty()
    }

    /// DELETE answers with the object instead of a Status.
    fn returns_deleted(&self) -> bool {
        false
    }

    /// PUT without a resourceVersion overwrites.
    fn allows_unconditional_update(&self) -> bool {
        true
    }

    /// Dependents stay when no propagation is asked for: an old promise.
    fn orphans_by_default(&self) -> bool {
        false
    }
}

/// Anything but metadata and status differs; in which order it is written does not matter.
pub fn changed_beside_metadata(new: &Value, old: &Value) -> bool {
    let rest = |object: &Value| -> BTreeMap<String, Value> {
        let map = object.as_object().into_iter().flatten();
        map.filter(|(key, _)| !matches!(key.as_str(), "metadata" | "status"))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    };
    rest(new) != rest(old)
}

/// By the name that objects are stored under; custom ones all have the same.
pub fn rules(resource: &Resource, stored_as: &str) -> &'static dyn Rules {
    if resource.custom.is_some() {
        return &custom::CustomObjects;
    }
    match stored_as {
        "pods" => &pods::Pods,
        "services" => &services::Services,
        "namespaces" => &namespaces::Namespaces,
        "nodes" => &nodes::Nodes,
        "jobs.batch" => &jobs::Jobs,
        "certificatesigningrequests.certificates.k8s.io" => &certificates::SigningRequests,
        "roles.rbac.authorization.k8s.io" | "clusterroles.rbac.authorization.k8s.io" => &rbac::Roles,
        "rolebindings.rbac.authorization.k8s.io" | "clusterrolebindings.rbac.authorization.k8s.io" => &rbac::Bindings,
        "persistentvolumeclaims" | "persistentvolumes" | "podtemplates" | "resourcequotas" | "serviceaccounts" => {
            &simple::ReturnsDeleted
        }
        "replicationcontrollers" => &simple::Orphans,
        "deployments.apps" => &simple::Deployments,
        crate::custom::RESOURCE => &definitions::Definitions,
        "leases.coordination.k8s.io" | "poddisruptionbudgets.policy" | "apiservices.apiregistration.k8s.io" => {
            &simple::Conditional
        }
        "mutatingwebhookconfigurations.admissionregistration.k8s.io"
        | "validatingwebhookconfigurations.admissionregistration.k8s.io" => &admission::Webhooks,
        "mutatingadmissionpolicies.admissionregistration.k8s.io"
        | "validatingadmissionpolicies.admissionregistration.k8s.io" => &admission::Policies,
        _ => &simple::Plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_fields_is_no_change() {
        let parse = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
        let old = parse(r#"{"apiVersion": "v1", "kind": "Pod", "spec": {"a": 1, "b": 2}}"#);
        let same = parse(r#"{"spec": {"b": 2, "a": 1}, "kind": "Pod", "apiVersion": "v1", "metadata": {}}"#);
        let other = parse(r#"{"apiVersion": "v1", "kind": "Pod", "spec": {"a": 1, "b": 3}}"#);
        assert!(!changed_beside_metadata(&same, &old) && changed_beside_metadata(&other, &old));
    }
}
