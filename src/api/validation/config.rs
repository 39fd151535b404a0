//! ConfigMaps, Secrets, Namespaces, Nodes, quotas and other settings.

use std::collections::HashSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::cursor::{Field, same};
use super::meta::{label_name, standard_finalizers};
use super::resources;
use super::selector::TAINT_EFFECTS;
use crate::field::{FieldError, FieldErrors, Path};
use crate::names;

/// Most bytes that a Secret or ConfigMap may hold.
const DATA_BYTES_MAX: usize = 1024 * 1024;

fn decoded_length(value: &Field<'_>) -> usize {
    base64::decoded_len_estimate(value.text().len())
        .saturating_sub(value.text().bytes().rev().take_while(|b| *b == b'=').count())
}

fn data_key(path: &Path, key: &str) -> FieldErrors {
    names::is_config_map_key(key).into_iter().map(|message| FieldError::invalid(path, key, message)).collect()
}

pub fn config_map_create(map: &Value) -> FieldErrors {
    let root = Field::root(map);
    let (data, binary) = (root.get("data"), root.get("binaryData"));
    let mut errors = Vec::new();
    let mut bytes = 0;
    for (key, value) in data.entries() {
        errors.extend(data_key(&value.path, key));
        if binary.get(key).is_present() {
            errors.push(FieldError::invalid(&value.path, key, "duplicate of key present in binaryData"));
        }
        bytes += value.text().len();
    }
    for (key, value) in binary.entries() {
        errors.extend(data_key(&value.path, key));
        bytes += decoded_length(&value);
    }
    if bytes > DATA_BYTES_MAX {
        // Upstream complains about the object as a whole, whose path prints as empty brackets.
        errors.push(FieldError::too_long(&Path::new("[]"), DATA_BYTES_MAX));
    }
    errors
}

fn immutable_data(new: &Value, old: &Value, fields: &[&str]) -> FieldErrors {
    let (root, before) = (Field::root(new), Field::root(old));
    if !before.get("immutable").flag() {
        return Vec::new();
    }
    let mut errors = Vec::new();
    let detail = "field is immutable when `immutable` is set";
    if !root.get("immutable").flag() {
        errors.push(root.get("immutable").forbidden(detail));
    }
    for field in fields {
        if !same(root.get(field).value, before.get(field).value) {
            errors.push(root.get(field).forbidden(detail));
        }
    }
    errors
}

pub fn config_map_update(new: &Value, old: &Value) -> FieldErrors {
    let mut errors = immutable_data(new, old, &["data", "binaryData"]);
    errors.extend(config_map_create(new));
    errors
}

pub fn secret_create(secret: &Value) -> FieldErrors {
    let root = Field::root(secret);
    let data = root.get("data");
    let mut errors = Vec::new();
    let mut bytes = 0;
    for (key, value) in data.entries() {
        errors.extend(data_key(&value.path, key));
        bytes += decoded_length(&value);
    }
    if bytes > DATA_BYTES_MAX {
        errors.push(FieldError::too_long(&data.path, DATA_BYTES_MAX));
    }
    let entry = |key: &str| Field { value: data.get(key).value, path: data.path.key(key) };
    let mut need = |key: &str| {
        if entry(key).is_absent() {
            errors.push(entry(key).required(""));
        }
    };
    match root.get("type").text() {
        "kubernetes.io/service-account-token" => {
            const NAME: &str = "kubernetes.io/service-account.name";
            let annotations = root.get("metadata").get("annotations");
            if annotations.get(NAME).is_zero() {
                errors.push(FieldError::required(&annotations.path.key(NAME), ""));
            }
        }
        "kubernetes.io/dockercfg" => errors.extend(json_entry(&entry(".dockercfg"))),
        "kubernetes.io/dockerconfigjson" => errors.extend(json_entry(&entry(".dockerconfigjson"))),
        "kubernetes.io/basic-auth" if entry("username").is_absent() && entry("password").is_absent() => {
            need("username");
            need("password");
        }
        "kubernetes.io/ssh-auth" => need("ssh-privatekey"),
        "kubernetes.io/tls" => {
            need("tls.crt");
            need("tls.key");
        }
        _ => (),
    }
    errors
}

fn json_entry(entry: &Field<'_>) -> FieldErrors {
    if entry.is_absent() {
        return vec![entry.required("")];
    }
    let bytes = STANDARD.decode(entry.text()).unwrap_or_default();
    match serde_json::from_slice::<serde_json::Map<String, Value>>(&bytes) {
        Ok(_) => Vec::new(),
        Err(_) => vec![FieldError::invalid(&entry.path, "<secret contents redacted>", "invalid character in JSON")],
    }
}

pub fn secret_update(new: &Value, old: &Value) -> FieldErrors {
    let mut errors = Field::root(new).get("type").immutable(&Field::root(old).get("type"));
    errors.extend(immutable_data(new, old, &["data"]));
    errors.extend(secret_create(new));
    errors
}

pub fn namespace_create(namespace: &Value) -> FieldErrors {
    let mut errors = standard_finalizers(namespace);
    errors.extend(namespace_finalizers(namespace));
    errors
}

fn namespace_finalizers(namespace: &Value) -> FieldErrors {
    let mut errors = Vec::new();
    for finalizer in Field::root(namespace).get("spec").list("finalizers") {
        let messages = names::is_qualified_name(finalizer.text());
        let plain = messages.is_empty() && !finalizer.text().contains('/');
        errors.extend(finalizer.each_invalid(messages));
        if plain && !matches!(finalizer.text(), "kubernetes" | "orphan" | "foregroundDeletion") {
            errors.push(finalizer.invalid("name is neither a standard finalizer name nor is it fully qualified"));
        }
    }
    errors
}

pub fn namespace_update(new: &Value, _old: &Value) -> FieldErrors {
    namespace_finalizers(new)
}

pub fn namespace_status(new: &Value, _old: &Value) -> FieldErrors {
    let root = Field::root(new);
    let phase = root.get("status").get("phase");
    let deleting = root.get("metadata").get("deletionTimestamp").is_present();
    match (deleting, phase.text()) {
        (true, "Terminating") | (false, "" | "Active") => Vec::new(),
        (true, _) => vec![phase.invalid("may only be 'Terminating' if `deletionTimestamp` is not empty")],
        (false, _) => vec![phase.invalid("may only be 'Active' if `deletionTimestamp` is empty")],
    }
}

pub fn node_create(node: &Value) -> FieldErrors {
    let root = Field::root(node);
    let spec = root.get("spec");
    let mut errors = taints(&spec.get("taints"));
    let ranges = spec.list("podCIDRs");
    for range in &ranges {
        errors.extend(range.each_invalid(names::is_cidr(range.text())));
    }
    if ranges.len() > 2 {
        let detail = "may specify no more than one CIDR for each IP family";
        errors.push(FieldError::invalid(&spec.path.child("podCIDRs"), spec.get("podCIDRs").value.clone(), detail));
    }
    for field in ["capacity", "allocatable"] {
        errors.extend(resources::list(&root.get("status").get(field)));
    }
    errors
}

fn taints(taints: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    let mut seen = HashSet::new();
    for taint in taints.items() {
        let (key, value, effect) = (taint.get("key"), taint.get("value"), taint.get("effect"));
        errors.extend(label_name(&key.path, key.text()));
        let messages = names::is_label_value(value.text());
        if !messages.is_empty() {
            errors.push(value.invalid(messages.join(";")));
        }
        errors.extend(effect.one_of(&TAINT_EFFECTS));
        if !seen.insert((key.text(), effect.text())) {
            let detail = "taints must be unique by key and effect pair";
            let mut error = taint.duplicate();
            error.detail = detail.to_owned();
            errors.push(error);
        }
    }
    errors
}

pub fn node_update(new: &Value, old: &Value) -> FieldErrors {
    let (spec, before) = (Field::root(new).get("spec"), Field::root(old).get("spec"));
    let mut errors = node_create(new);
    let changed = |field: &str| !before.get(field).is_zero() && !same(spec.get(field).value, before.get(field).value);
    if changed("podCIDRs") {
        errors.push(spec.get("podCIDRs").forbidden("node updates may not change podCIDR except from \"\" to valid"));
    }
    if changed("providerID") {
        errors
            .push(spec.get("providerID").forbidden("node updates may not change providerID except from \"\" to valid"));
    }
    errors
}

pub fn node_status(new: &Value, _old: &Value) -> FieldErrors {
    let status = Field::root(new).get("status");
    let mut errors = Vec::new();
    for field in ["capacity", "allocatable"] {
        errors.extend(resources::list(&status.get(field)));
    }
    let mut seen = HashSet::new();
    for address in status.list("addresses") {
        if !seen.insert((address.get("type").text(), address.get("address").text())) {
            errors.push(address.duplicate());
        }
    }
    errors
}

pub fn resource_quota_create(quota: &Value) -> FieldErrors {
    const SCOPES: [&str; 7] = [
        "BestEffort",
        "CrossNamespacePodAffinity",
        "NotBestEffort",
        "NotTerminating",
        "PriorityClass",
        "Terminating",
        "VolumeAttributesClass",
    ];
    let spec = Field::root(quota).get("spec");
    let mut errors = resources::list(&spec.get("hard"));
    for (name, hard) in spec.get("hard").entries() {
        if !name.contains('/') && !is_quota_resource(name) {
            errors.push(FieldError::invalid(&hard.path, name, "must be a standard resource for quota"));
        }
    }
    for scope in spec.list("scopes") {
        if !SCOPES.contains(&scope.text()) {
            errors.push(FieldError::invalid(
                &spec.path.child("scopes"),
                spec.get("scopes").value.clone(),
                "unsupported scope",
            ));
        }
    }
    for expression in spec.get("scopeSelector").list("matchExpressions") {
        let (scope, operator, values) =
            (expression.get("scopeName"), expression.get("operator"), expression.get("values"));
        if !SCOPES.contains(&scope.text()) {
            errors.push(scope.invalid("unsupported scope"));
        }
        match operator.text() {
            "In" | "NotIn" if values.is_zero() => {
                errors.push(
                    values.required("must be at least one value when `operator` is 'In' or 'NotIn' for scope selector"),
                );
            }
            "Exists" | "DoesNotExist" if !values.is_zero() => {
                let detail = "must be no value when `operator` is 'Exists' or 'DoesNotExist' for scope selector";
                errors.push(values.invalid(detail));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => (),
            _ => errors.push(operator.invalid("not a valid selector operator")),
        }
    }
    errors
}

fn is_quota_resource(name: &str) -> bool {
    let compute = name.strip_prefix("requests.").or_else(|| name.strip_prefix("limits.")).unwrap_or(name);
    matches!(
        name,
        "pods"
            | "services"
            | "replicationcontrollers"
            | "resourcequotas"
            | "secrets"
            | "configmaps"
            | "persistentvolumeclaims"
            | "services.nodeports"
            | "services.loadbalancers"
            | "requests.storage"
    ) || matches!(compute, "cpu" | "memory" | "ephemeral-storage")
        || compute.starts_with("hugepages-")
}

pub fn resource_quota_update(new: &Value, old: &Value) -> FieldErrors {
    let (spec, before) = (Field::root(new).get("spec"), Field::root(old).get("spec"));
    let mut errors = resource_quota_create(new);
    errors.extend(spec.get("scopes").immutable(&before.get("scopes")));
    errors.extend(spec.get("scopeSelector").immutable(&before.get("scopeSelector")));
    errors
}

pub fn resource_quota_status(new: &Value, _old: &Value) -> FieldErrors {
    let status = Field::root(new).get("status");
    ["hard", "used"].iter().flat_map(|field| resources::list(&status.get(field))).collect()
}

pub fn limit_range_create(range: &Value) -> FieldErrors {
    let mut errors = Vec::new();
    let mut kinds = HashSet::new();
    for limit in Field::root(range).get("spec").list("limits") {
        let kind = limit.get("type");
        errors.extend(kind.each_invalid(names::is_qualified_name(kind.text())));
        if !kinds.insert(kind.text()) {
            errors.push(FieldError::duplicate(&limit.path.child("type"), kind.text()));
        }
        let list = |name: &str| limit.get(name);
        for name in ["min", "max", "default", "defaultRequest", "maxLimitRequestRatio"] {
            errors.extend(resources::list(&list(name)));
        }
        if kind.text() == "Pod" {
            for field in ["default", "defaultRequest"] {
                if !list(field).is_zero() {
                    errors.push(list(field).forbidden("may not be specified when `type` is 'Pod'"));
                }
            }
        }
        if kind.text() == "PersistentVolumeClaim"
            && list("min").get("storage").is_absent()
            && list("max").get("storage").is_absent()
        {
            errors
                .push(limit.required("either minimum or maximum storage value is required, but neither was provided"));
        }
        for (low, low_word, high, high_word) in [
            ("min", "min", "max", "max"),
            ("min", "min", "default", "default"),
            ("min", "min", "defaultRequest", "default request"),
            ("default", "default", "max", "max"),
            ("defaultRequest", "default request", "max", "max"),
            ("defaultRequest", "default request", "default", "default limit"),
        ] {
            for (name, field) in list(low).entries() {
                let (Some(a), Some(b)) = (
                    resources::amount(Some(field.value)),
                    resources::amount(list(high).map().and_then(|m| m.get(name))),
                ) else {
                    continue;
                };
                if a > b {
                    // Upstream names the default where it undercuts the minimum, and the smaller side otherwise.
                    let undercut = low == "min" && high != "max";
                    let (path, shown) = if undercut { (list(high).path.key(name), b) } else { (field.path.clone(), a) };
                    let detail = format!("{low_word} value {a} is greater than {high_word} value {b}");
                    errors.push(FieldError::invalid(&path, shown.to_string(), detail));
                }
            }
        }
    }
    errors
}

pub fn limit_range_update(new: &Value, _old: &Value) -> FieldErrors {
    limit_range_create(new)
}

pub fn priority_class_create(class: &Value) -> FieldErrors {
    const USER_MAX: i64 = 1_000_000_000;
    let root = Field::root(class);
    let (name, value) = (root.get("metadata").get("name"), root.get("value"));
    let mut errors = Vec::new();
    let system = match name.text() {
        "system-cluster-critical" => Some(2 * USER_MAX),
        "system-node-critical" => Some(2 * USER_MAX + 1000),
        _ => None,
    };
    if name.text().starts_with("system-") {
        if system != value.int() {
            errors.push(name.forbidden(format!(
                "priority class names with 'system-' prefix are reserved for system use only. error: {} is not a known \
                 system priority class",
                name.text()
            )));
        }
    } else if value.int().is_some_and(|value| value > USER_MAX) {
        errors.push(value.forbidden(format!("maximum allowed value of a user defined priority is {USER_MAX}")));
    }
    errors.extend(root.get("preemptionPolicy").none_or_one_of(&["Never", "PreemptLowerPriority"]));
    errors
}

pub fn priority_class_update(new: &Value, old: &Value) -> FieldErrors {
    let (root, before) = (Field::root(new), Field::root(old));
    let mut errors = Vec::new();
    if root.get("value").int().unwrap_or_default() != before.get("value").int().unwrap_or_default() {
        errors.push(root.get("value").forbidden("may not be changed in an update."));
    }
    errors.extend(root.get("preemptionPolicy").immutable(&before.get("preemptionPolicy")));
    errors
}

pub fn runtime_class_create(class: &Value) -> FieldErrors {
    let handler = Field::root(class).get("handler");
    handler.each_invalid(names::is_dns1123_label(handler.text()))
}

pub fn runtime_class_update(new: &Value, old: &Value) -> FieldErrors {
    Field::root(new).get("handler").immutable(&Field::root(old).get("handler"))
}

pub fn lease_create(lease: &Value) -> FieldErrors {
    let spec = Field::root(lease).get("spec");
    let mut errors = spec.get("leaseDurationSeconds").positive();
    errors.extend(spec.get("leaseTransitions").non_negative());
    errors
}

pub fn lease_update(new: &Value, _old: &Value) -> FieldErrors {
    lease_create(new)
}

/// Both kinds of Event; the older calls its object `involvedObject`.
pub fn event_create(event: &Value) -> FieldErrors {
    let root = Field::root(event);
    let old = root.get("involvedObject").is_present();
    let about = root.get(if old { "involvedObject" } else { "regarding" });
    let namespace = root.get("metadata").get("namespace").text();
    let theirs = about.get("namespace");
    let mut errors = Vec::new();
    // Events on objects without a namespace live in `default` or in the one the object is about.
    let cluster_wide = theirs.is_zero() && matches!(namespace, "default" | "kube-system");
    if !cluster_wide && !theirs.is_zero() && theirs.text() != namespace {
        errors.push(theirs.invalid("does not match event.namespace"));
    } else if theirs.is_zero() && !cluster_wide {
        errors.push(FieldError::invalid(&theirs.path, "", "does not match event.namespace"));
    }
    errors
}

pub fn event_update(new: &Value, _old: &Value) -> FieldErrors {
    event_create(new)
}

pub fn binding_create(binding: &Value) -> FieldErrors {
    let target = Field::root(binding).get("target");
    let (kind, name) = (target.get("kind"), target.get("name"));
    let mut errors = Vec::new();
    if !matches!(kind.text(), "" | "Node") {
        errors.push(kind.not_supported(&["Node", "<empty>"]));
    }
    if name.is_zero() {
        errors.push(name.required(""));
    }
    errors
}
