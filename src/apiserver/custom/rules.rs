//! `x-kubernetes-validations`: where the rules in CEL of CRDs are compiled, and applied to objects.

use mussel_api::custom::Custom;
use mussel_api::field::{FieldErrors, Path};
use serde_json::Value;

use crate::cel::rules::Rules;
use crate::handler::Warnings;

/// Rules of a CRD that do not compile. Called when all else about the CRD is right. What an update leaves as it was, `old`, is
/// not looked at: it was let in before, perhaps by another version of ours.
pub fn check_definition(new: &Value, old: Option<&Value>) -> FieldErrors {
    let versions = |crd: &Value| crd["spec"]["versions"].as_array().cloned().unwrap_or_default();
    let schema = |version: &Value| version["schema"]["openAPIV3Schema"].clone();
    let before: Vec<_> = old.map(versions).unwrap_or_default().iter().map(schema).collect();
    let path = Path::root().child("spec").child("versions");
    let mut errors = FieldErrors::new();
    for (index, version) in versions(new).iter().enumerate() {
        let schema = schema(version);
        if schema.is_object() && !before.contains(&schema) {
            let path = path.index(index).child("schema").child("openAPIV3Schema");
            errors.extend(Rules::compile(&schema, &path).1);
        }
    }
    errors
}

/// Rules of the schema that the object breaks. Called when it fits the schema otherwise; `old` is what it was before an
/// update, and what that did not change is no reason to refuse it.
pub fn check(custom: &Custom, new: &Value, old: Option<&Value>, warnings: &Warnings) -> FieldErrors {
    let compiled = custom.compiled().rules.get_or_init(|| {
        let schema = custom.definition.schema(custom.index);
        Box::new(Rules::compile(&schema, &Path::root()).0)
    });
    let Some(rules) = compiled.downcast_ref::<Rules>() else { return FieldErrors::new() };
    let verdict = rules.validate(new, old);
    verdict.warnings.into_iter().for_each(|warning| warnings.add(warning));
    verdict.errors
}
