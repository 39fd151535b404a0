//! Certificate signing requests.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::cursor::{Field, same};
use crate::field::FieldErrors;
use crate::names;

/// `certificates.k8s.io/v1`, in the order in which upstream lists them.
const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
/// Only the first, beta API had it.
const LEGACY_SIGNER: &str = "kubernetes.io/legacy-unknown";
const SECONDS_MIN: i64 = 600;
/// They are there, with this status, or they are not.
const TRUE_OR_ABSENT: [&str; 3] = ["Approved", "Denied", "Failed"];

/// Whether the request in it holds is for who can check its signature.
pub fn certificate_signing_request_create(request: &Value) -> FieldErrors {
    let spec = Field::root(request).get("spec");
    let mut errors = Vec::new();
    let usages = spec.get("usages");
    if usages.is_zero() {
        errors.push(usages.required(""));
    }
    let mut seen = BTreeSet::new();
    for usage in usages.items() {
        errors.extend(usage.one_of(&USAGES));
        if !seen.insert(usage.text()) {
            errors.push(usage.duplicate());
        }
    }
    let signer = spec.get("signerName");
    match signer.text().split_once('/') {
        _ if signer.is_zero() => errors.push(signer.required("")),
        _ if signer.text() == LEGACY_SIGNER => {
            errors.push(signer.invalid("the legacy signerName is not allowed via this API version"));
        }
        Some((domain, path)) if !path.is_empty() && domain.contains('.') => {
            errors.extend(signer.each_invalid(names::is_dns1123_subdomain(domain)));
        }
        _ => errors
            .push(signer.invalid("must be a fully qualified domain and path of the form 'example.com/signer-name'")),
    }
    let seconds = spec.get("expirationSeconds");
    if seconds.int().is_some_and(|seconds| seconds < SECONDS_MIN) {
        errors.push(seconds.invalid("may not specify a duration less than 600 seconds (10 minutes)"));
    }
    errors
}

pub fn certificate_signing_request_update(new: &Value, old: &Value) -> FieldErrors {
    Field::root(new).get("spec").immutable(&Field::root(old).get("spec"))
}

/// Of `…/status` and `…/approval`.
pub fn certificate_signing_request_status(new: &Value, old: &Value) -> FieldErrors {
    let (status, before) = (Field::root(new).get("status"), Field::root(old).get("status"));
    let mut errors = conditions(&status.get("conditions"));
    for kind in TRUE_OR_ABSENT {
        let has = |status: &Field<'_>| status.list("conditions").iter().any(|c| c.get("type").text() == kind);
        if has(&before) && !has(&status) {
            let detail = format!("updates may not remove a condition of type {kind:?}");
            errors.push(status.get("conditions").forbidden(detail));
        }
    }
    let (certificate, had) = (status.get("certificate"), before.get("certificate"));
    if !same(certificate.value, had.value) {
        if had.is_zero() {
            errors.extend(chain(certificate.text()).err().map(|why| {
                // The content tells nobody anything.
                let shown = Value::from("<certificate data>");
                Field { value: &shown, path: certificate.path.clone() }.invalid(why)
            }));
        } else {
            errors.push(certificate.forbidden("updates may not modify existing certificate content"));
        }
    }
    errors
}

fn conditions(list: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for condition in list.items() {
        let (kind, status) = (condition.get("type"), condition.get("status"));
        if kind.is_zero() {
            errors.push(kind.required(""));
        }
        if status.is_zero() {
            errors.push(status.required(""));
        } else if TRUE_OR_ABSENT.contains(&kind.text()) {
            errors.extend(status.one_of(&["True"]));
        } else {
            errors.extend(status.one_of(&["False", "True", "Unknown"]));
        }
        let other = match kind.text() {
            "Approved" => "Denied",
            "Denied" => "Approved",
            _ => "",
        };
        if seen.contains(other) && !other.is_empty() {
            errors.push(kind.invalid("Approved and Denied conditions are mutually exclusive"));
        }
        if !seen.insert(kind.text()) {
            errors.push(kind.duplicate());
        }
    }
    errors
}

/// A chain of certificates in base64 of PEM. What is in the blocks is for the signer to answer for.
fn chain(text: &str) -> Result<(), String> {
    let pem = STANDARD.decode(text).ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
    let labels = pem.lines().filter_map(|line| line.strip_prefix("-----BEGIN ")?.strip_suffix("-----"));
    let mut blocks = 0;
    for label in labels {
        if label != "CERTIFICATE" {
            return Err(format!("only CERTIFICATE PEM blocks are allowed, found {label:?}"));
        }
        blocks += 1;
    }
    let ends = pem.lines().filter(|line| *line == "-----END CERTIFICATE-----").count();
    if blocks == 0 || ends != blocks {
        return Err("must contain at least one CERTIFICATE PEM block".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(errors: FieldErrors) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_asked_for_is_checked() {
        let ask = |spec: Value| said(certificate_signing_request_create(&json!({"spec": spec})));
        assert!(ask(json!({"usages": ["client auth"], "signerName": "example.com/x"})).is_empty());
        let errors =
            ask(json!({"usages": ["signing", "no", "signing"], "signerName": LEGACY_SIGNER, "expirationSeconds": 599}));
        let found = [
            "spec.usages[1]: Unsupported value",
            "spec.usages[2]: Duplicate value",
            "spec.signerName: Invalid value",
            "spec.expirationSeconds: Invalid value",
        ];
        assert_eq!(errors.len(), found.len(), "{errors:?}");
        assert!(errors.iter().zip(found).all(|(error, start)| error.starts_with(start)), "{errors:?}");
    }

    #[test]
    fn a_status_only_grows() {
        let condition = |kind: &str, status: &str| json!({"type": kind, "status": status});
        let object = |conditions: &[Value], certificate: &str| json!({"status": {"conditions": conditions, "certificate": STANDARD.encode(certificate)}});
        const PEM: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let (approved, denied) = (condition("Approved", "True"), condition("Denied", "True"));
        let check = |new: &Value, old: &Value| said(certificate_signing_request_status(new, old)).join("; ");
        let none = json!({});
        assert_eq!(check(&object(std::slice::from_ref(&approved), PEM), &none), "");
        assert!(
            check(&object(&[approved.clone(), denied], PEM), &none)
                .contains("[1].type: Invalid value: \"Denied\": Approved and")
        );
        assert!(
            check(&object(&[approved.clone(), approved.clone()], PEM), &none).contains("[1].type: Duplicate value")
        );
        assert!(check(&object(&[condition("Failed", "False")], PEM), &none).contains("[0].status: Unsupported value"));
        assert!(check(&object(&[], "x"), &none).contains("at least one CERTIFICATE"));
        assert!(check(&object(&[], &PEM.replace("CERT", "X CERT")), &none).contains("found \"X CERTIFICATE\""));
        let old = object(std::slice::from_ref(&approved), PEM);
        assert!(check(&object(&[], PEM), &old).contains("may not remove a condition of type \"Approved\""));
        assert!(check(&object(&[approved], &PEM.repeat(2)), &old).contains("may not modify existing certificate"));
    }
}
