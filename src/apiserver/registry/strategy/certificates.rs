//! Certificate signing requests: they say who asked, and only the right people approve and sign. The admission plugins
//! `CertificateApproval`, `CertificateSigning` and `CertificateSubjectRestriction` of upstream are here.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::future::BoxFuture;
use mussel_api::field::{FieldError, FieldErrors, Path};
use mussel_api::object::ObjectExt;
use mussel_api::validation::same;
use serde_json::{Value, json};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer;

use super::Rules;
use crate::authz;
use crate::registry::write::{Part, Write, keep_all_but, now, set};
use crate::status::Status;

/// A request of this many bytes is none that anybody means.
const REQUEST_BYTES_MAX: usize = 64 << 10;
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

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

    fn validate(&self, _write: &Write<'_>, new: &Value, old: Option<&Value>) -> FieldErrors {
        let request = new.str_at("spec.request");
        match with_request(request, |_| ()) {
            Err(why) if old.is_none() => {
                vec![FieldError::invalid(&Path::new("spec").child("request"), request, why)]
            }
            _ => FieldErrors::new(),
        }
    }

    /// Who signs for the API server makes nobody an administrator past all rules.
    fn authorize<'a>(
        &'a self,
        write: &'a Write<'_>,
        new: &'a Value,
        old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        let masters = || {
            with_request(new.str_at("spec.request"), |request| {
                let mut groups = request.certification_request_info.subject.iter_organization();
                groups.any(|group| group.as_str().is_ok_and(|group| group == "system:masters"))
            })
        };
        let refused = old.is_none() && new.str_at("spec.signerName") == CLIENT_SIGNER && masters() == Ok(true);
        let result = if refused {
            let why = format!("use of {CLIENT_SIGNER} signer with system:masters group is not allowed");
            Err(write.call.forbidden(new.name(), &why))
        } else {
            Ok(())
        };
        Box::pin(std::future::ready(result))
    }

    /// Signing, and saying that it failed, takes the right to sign for the request's signer.
    fn authorize_status<'a>(
        &'a self,
        write: &'a Write<'_>,
        new: &'a Value,
        old: &'a Value,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            let unchanged = |field: &str| same(&new["status"][field], &old["status"][field]);
            if unchanged("certificate") && unchanged("conditions") {
                return Ok(());
            }
            require(write, new, "sign").await
        })
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

/// Hands `look` the request if its signature is its own key's.
fn with_request<T>(base64: &str, look: impl FnOnce(&X509CertificationRequest<'_>) -> T) -> Result<T, String> {
    if base64.len() > REQUEST_BYTES_MAX {
        return Err(format!("may not be longer than {REQUEST_BYTES_MAX} bytes"));
    }
    let pem = STANDARD.decode(base64).unwrap_or_default();
    let block = match parse_x509_pem(&pem) {
        Ok((_, block)) if block.label == "CERTIFICATE REQUEST" => block,
        _ => return Err("PEM block type must be CERTIFICATE REQUEST".to_owned()),
    };
    let (_, request) = X509CertificationRequest::from_der(&block.contents).map_err(|error| error.to_string())?;
    request.verify_signature().map_err(|error| error.to_string())?;
    Ok(look(&request))
}

/// The right to do `verb` for the request's signer, or for all of the signer's domain.
async fn require(write: &Write<'_>, request: &Value, verb: &str) -> Result<(), Status> {
    let signer = request.str_at("spec.signerName");
    let any = signer.split_once('/').map(|(domain, _)| format!("{domain}/*")).unwrap_or_default();
    let user = &write.call.request.user;
    for name in [signer, &any] {
        let asks = authz::Attributes::resource(user, verb, "certificates.k8s.io", "signers", "", name);
        if write.call.context.authorizer.authorize(&asks).await.allowed {
            return Ok(());
        }
    }
    let why = format!("user not permitted to {verb} requests with signerName {signer:?}");
    Err(write.call.forbidden(request.name(), &why))
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
        Box::pin(require(write, new, "approve"))
    }
}
