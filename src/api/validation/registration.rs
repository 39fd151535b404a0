//! APIServices.

use serde_json::Value;

use super::cursor::Field;
use crate::field::{FieldError, FieldErrors};
use crate::names;

pub fn api_service_create(service: &Value) -> FieldErrors {
    let root = Field::root(service);
    let spec = root.get("spec");
    let (group, version) = (spec.get("group"), spec.get("version"));
    let mut errors = Vec::new();
    let name = root.get("metadata").get("name");
    let wanted = format!("{}.{}", version.text(), group.text());
    if !name.is_zero() && names::is_path_segment_name(name.text()).is_empty() && name.text() != wanted {
        errors.push(name.invalid(format!("must be `spec.version+\".\"+spec.group`: {wanted:?}")));
    }
    if group.is_zero() && version.text() != "v1" {
        errors.push(group.required("only v1 may have an empty group and it better be legacy kube"));
    }
    if !group.is_zero() {
        errors.extend(group.each_invalid(names::is_dns1123_subdomain(group.text())));
    }
    if version.is_zero() {
        errors.extend(names::is_dns1035_label("").into_iter().map(|why| FieldError::invalid(&version.path, "", why)));
    } else {
        errors.extend(version.each_invalid(names::is_dns1035_label(version.text())));
    }
    for (field, max) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1_000)] {
        let field = spec.get(field);
        let priority = field.int().unwrap_or_default();
        if !(1..=max).contains(&priority) {
            errors.push(FieldError::invalid(&field.path, priority, format!("must be positive and less than {max}")));
        }
    }
    let (bundle, insecure) = (spec.get("caBundle"), spec.get("insecureSkipTLSVerify"));
    let reference = spec.get("service");
    if reference.is_absent() {
        if !bundle.is_zero() {
            // Upstream counts the bytes and does not repeat them.
            let bytes = bundle.text().len() / 4 * 3 - bundle.text().bytes().rev().take_while(|b| *b == b'=').count();
            let told = format!("{bytes} bytes");
            errors.push(FieldError::invalid(&bundle.path, told, "local APIServices may not have a caBundle"));
        }
        if insecure.flag() {
            errors.push(insecure.invalid("local APIServices may not have insecureSkipTLSVerify"));
        }
        return errors;
    }
    for field in ["namespace", "name"] {
        let field = reference.get(field);
        if field.is_zero() {
            errors.push(field.required(""));
        }
    }
    if insecure.flag() && !bundle.is_zero() {
        errors.push(insecure.invalid("may not be true if caBundle is present"));
    }
    errors
}

pub fn api_service_update(new: &Value, _old: &Value) -> FieldErrors {
    api_service_create(new)
}

pub fn api_service_status(new: &Value, _old: &Value) -> FieldErrors {
    let conditions = Field::root(new).get("status").list("conditions");
    conditions.iter().flat_map(|condition| condition.get("status").one_of(&["True", "False", "Unknown"])).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(spec: Value) -> Vec<String> {
        let service = json!({"metadata": {"name": "v1.a.example.com"}, "spec": spec});
        api_service_create(&service).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn api_services_are_checked_as_upstream_checks_them() {
        let good = json!({"group": "a.example.com", "version": "v1", "groupPriorityMinimum": 20_000,
            "versionPriority": 1_000, "service": {"namespace": "n", "name": "s"}});
        assert_eq!(check(good.clone()), Vec::<String>::new());
        let mut both = good.clone();
        both["caBundle"] = "QUJD".into();
        both["insecureSkipTLSVerify"] = true.into();
        assert_eq!(
            check(both),
            ["spec.insecureSkipTLSVerify: Invalid value: true: may not be true if caBundle is present"]
        );
        let mut local = good.clone();
        local.as_object_mut().unwrap().remove("service");
        local["caBundle"] = "QUI=".into();
        local["groupPriorityMinimum"] = 0.into();
        assert_eq!(
            check(local),
            [
                "spec.groupPriorityMinimum: Invalid value: 0: must be positive and less than 20000",
                "spec.caBundle: Invalid value: \"2 bytes\": local APIServices may not have a caBundle",
            ]
        );
        let other = json!({"version": "v2", "groupPriorityMinimum": 1, "versionPriority": 1_001, "service": {}});
        assert_eq!(
            check(other),
            [
                "metadata.name: Invalid value: \"v1.a.example.com\": must be `spec.version+\".\"+spec.group`: \"v2.\"",
                "spec.group: Required value: only v1 may have an empty group and it better be legacy kube",
                "spec.versionPriority: Invalid value: 1001: must be positive and less than 1000",
                "spec.service.namespace: Required value",
                "spec.service.name: Required value",
            ]
        );
    }
}
