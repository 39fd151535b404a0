//! Nothing is created in a namespace that does not exist or is going; some namespaces stay.

use mussel_api::object::ObjectExt;
use serde_json::Value;

use super::{Attributes, Operation, Plugin};
use crate::status::Status;

pub struct NamespaceLifecycle;

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

impl Plugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn mutate(&self, attributes: &Attributes<'_>, _object: &mut Value) -> Result<(), Status> {
        if attributes.operation != Operation::Create || attributes.namespace.is_empty() {
            return Ok(());
        }
        let Some(namespace) = attributes.view.get("namespaces", "", attributes.namespace) else {
            return Err(Status::not_found("", "namespaces", attributes.namespace));
        };
        let is_terminating = namespace.is_deleting() || namespace.str_at("status.phase") == "Terminating";
        // Who may, is asked in reviews as well, and those are not stored.
        if is_terminating && attributes.stored_as != "localsubjectaccessreviews.authorization.k8s.io" {
            let name = attributes.namespace;
            let why = format!("unable to create new content in namespace {name} because it is being terminated");
            let cause = format!("namespace {name} is being terminated");
            return Err(attributes.forbidden(&why).with_cause("NamespaceTerminating", &cause, "metadata.namespace"));
        }
        Ok(())
    }

    fn validate(&self, attributes: &Attributes<'_>, _object: Option<&Value>) -> Result<(), Status> {
        let deletes = attributes.operation == Operation::Delete && attributes.stored_as == "namespaces";
        if deletes && IMMORTAL.contains(&attributes.name) {
            return Err(attributes.forbidden("this namespace may not be deleted"));
        }
        Ok(())
    }
}
