//! Certificate signing requests: they say who asked, and only the right people approve.

use futures::future::BoxFuture;
use mussel_api::field::FieldErrors;
use mussel_api::object::ObjectExt;
use serde_json::{Value, json};

use super::Rules;
use crate::authz;
use crate::registry::write::{Part, Write, keep_all_but, now, set};
use crate::status::Status;

pub struct SigningRequests;

impl Rules for SigningRequests {
    fn prepare_create(&self, write: &Write<'_>, new: &mut Value) -> Result<(), Status> {
        let user = &write.call.request.user;
        let spec = &mut new["spec"];
        if !spec.is_object() {
            *spec = json!({});
        }
        spec["username"] = user.name.as_str().into();
        set(spec, "uid", (!user.uid.is_empty()).then(|| user.uid.as_str().into()).as_ref());
        set(spec, "groups", (!user.groups.is_empty()).then(|| user.groups.clone().into()).as_ref());
        set(spec, "extra", (!user.extra.is_empty()).then(|| json!(user.extra)).as_ref());
        Ok(())
    }

    fn prepare_update(&self, _write: &Write<'_>, new: &mut Value, old: &Value) -> Result<(), Status> {
        set(new, "spec", old.get("spec"));
        Ok(())
    }

    fn prepare_status(&self, _write: &Write<'_>, new: &mut Value, old: &Value) -> Result<(), Status> {
        // Whether it is approved is said through `…/approval` alone.
        let decided = |object: &Value| -> Vec<Value> {
            let list = object["status"]["conditions"].as_array().into_iter().flatten();
            list.filter(|c| is_decision(c)).cloned().collect()
        };
        let rest = new["status"]["conditions"].as_array().into_iter().flatten();
        let mut conditions: Vec<Value> = rest.filter(|c| !is_decision(c)).cloned().collect();
        conditions.splice(0..0, decided(old));
        set_conditions(new, conditions);
        Ok(())
    }
}

fn is_decision(condition: &Value) -> bool {
    matches!(condition["type"].as_str(), Some("Approved" | "Denied"))
}

fn set_conditions(object: &mut Value, mut conditions: Vec<Value>) {
    for condition in &mut conditions {
        for field in ["lastUpdateTime", "lastTransitionTime"] {
            if condition[field].is_null() {
                condition[field] = now().into();
            }
        }
    }
    if !object["status"].is_object() {
        object["status"] = json!({});
    }
    let conditions = (!conditions.is_empty()).then_some(Value::Array(conditions));
    set(&mut object["status"], "conditions", conditions.as_ref());
}

/// `…/approval`: the conditions, and nothing else.
pub struct Approval;

impl Part for Approval {
    fn subresource(&self) -> &'static str {
        "approval"
    }

    fn prepare(&self, _write: &Write<'_>, new: &mut Value, old: &Value) -> Result<(), Status> {
        let conditions = new["status"]["conditions"].as_array().cloned().unwrap_or_default();
        keep_all_but(new, old, &[]);
        set_conditions(new, conditions);
        Ok(())
    }

    fn validate(&self, write: &Write<'_>, new: &Value, old: &Value) -> FieldErrors {
        (write.call.resource.strategy.validate_status)(new, old)
    }

    /// Approving takes the right to approve for the request's signer.
    fn authorize<'a>(
        &'a self,
        write: &'a Write<'_>,
        new: &'a Value,
        _old: &'a Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            let signer = new.str_at("spec.signerName");
            let any = signer.split_once('/').map(|(domain, _)| format!("{domain}/*")).unwrap_or_default();
            let user = &write.call.request.user;
            for name in [signer, &any] {
                let asks = authz::Attributes::resource(user, "approve", "certificates.k8s.io", "signers", "", name);
                if write.call.context.authorizer.authorize(&asks).await.allowed {
                    return Ok(());
                }
            }
            let why = format!("user not permitted to approve requests with signerName {signer:?}");
            Err(write.call.forbidden(new.name(), &why))
        })
    }
}
