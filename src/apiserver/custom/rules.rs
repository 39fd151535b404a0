//! `x-kubernetes-validations`: rules in CEL.
//!
//! The places where they are to be compiled and evaluated. Nothing is done here yet: rules are kept and published with the
//! schema, and not enforced.

use mussel_api::custom::Custom;
use mussel_api::field::FieldErrors;
use serde_json::Value;

/// Rules of a CRD that do not compile. Called when all else about the CRD is right; `old` is what it was before an update.
pub fn check_definition(_new: &Value, _old: Option<&Value>) -> FieldErrors {
    FieldErrors::new()
}

/// Rules of the schema ([`Custom::compiled`]) that the object breaks. Called when it fits the schema otherwise; `old` is
/// what it was before an update.
pub fn check(_custom: &Custom, _new: &Value, _old: Option<&Value>) -> FieldErrors {
    FieldErrors::new()
}
