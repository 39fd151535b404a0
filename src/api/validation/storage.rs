//! PersistentVolumes, claims and classes.

use serde_json::Value;

use super::cursor::{Field, differing, same};
use super::resources::{amount, non_negative_quantity};
use super::selector::{label_selector, node_selector};
use super::volume::shared_source;
use crate::field::{FieldError, FieldErrors};
use crate::names;

const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

fn access_modes(spec: &Field<'_>, empty: &str) -> FieldErrors {
    let modes = spec.get("accessModes");
    if modes.is_zero() {
        return vec![modes.required(empty)];
    }
    let mut errors = Vec::new();
    for mode in modes.items() {
        if !ACCESS_MODES.contains(&mode.text()) {
            errors.push(FieldError::not_supported(&modes.path, mode.text(), &ACCESS_MODES));
        }
    }
    let has = |wanted: &str| modes.items().iter().any(|mode| mode.text() == wanted);
    if has("ReadWriteOncePod") && modes.count() > 1 {
        errors.push(modes.forbidden("may not use ReadWriteOncePod with other access modes"));
    }
    errors
}

pub(super) fn claim_spec(spec: &Field<'_>) -> FieldErrors {
    let mut errors = access_modes(spec, "at least 1 access mode is required");
    errors.extend(label_selector(&spec.get("selector")));
    let requests = spec.get("resources").get("requests");
    let path = spec.path.child("resources").key("storage");
    match requests.get("storage").value {
        Value::Null => errors.push(FieldError::required(&path, "")),
        value => {
            let storage = Field { value, path };
            if amount(Some(value)).is_some_and(|amount| amount.is_negative() || amount.is_zero()) {
                errors.push(storage.invalid("must be greater than zero"));
            }
            errors.extend(
                non_negative_quantity(&storage).into_iter().filter(|error| !error.detail.contains("greater than")),
            );
        }
    }
    let class = spec.get("storageClassName");
    if !class.is_zero() {
        errors.extend(class.each_invalid(names::is_dns1123_subdomain(class.text())));
    }
    errors.extend(spec.get("volumeMode").none_or_one_of(&["Block", "Filesystem"]));
    for source in ["dataSource", "dataSourceRef"] {
        let source = spec.get(source);
        if source.is_present() {
            errors.extend(source.get("name").not_empty());
            errors.extend(source.get("kind").not_empty());
        }
    }
    errors
}

pub fn persistent_volume_claim_create(claim: &Value) -> FieldErrors {
    claim_spec(&Field::root(claim).get("spec"))
}

pub fn persistent_volume_claim_update(new: &Value, old: &Value) -> FieldErrors {
    let (root, before) = (Field::root(new), Field::root(old));
    let (spec, was) = (root.get("spec"), before.get("spec"));
    let mut errors = claim_spec(&spec);
    // The binding may be filled in, and the request may grow once bound.
    let mut allowed = was.value.clone();
    if let Some(map) = allowed.as_object_mut() {
        if was.get("volumeName").is_zero() {
            map.insert("volumeName".to_owned(), spec.get("volumeName").value.clone());
        }
        if before.get("status").get("phase").text() == "Bound" {
            map.insert("resources".to_owned(), spec.get("resources").value.clone());
        }
        if was.get("storageClassName").is_absent() && was.get("volumeName").is_zero() {
            map.insert("storageClassName".to_owned(), spec.get("storageClassName").value.clone());
        }
        map.insert("volumeAttributesClassName".to_owned(), spec.get("volumeAttributesClassName").value.clone());
    }
    let request = |spec: &Field<'_>| spec.get("resources").get("requests").get("storage").value.clone();
    if !same(&allowed, spec.value) {
        let mut places = Vec::new();
        differing(spec.value, &allowed, &spec.path, 5, &mut places);
        errors.push(spec.forbidden(format!(
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n{}",
            places.join("\n")
        )));
    } else if let (Some(wanted), Some(had)) = (amount(Some(&request(&spec))), amount(Some(&request(&was)))) {
        let real = amount(Some(root.get("status").get("capacity").get("storage").value));
        if wanted < had && real.is_none_or(|real| wanted < real) {
            let path = spec.path.child("resources").child("requests").child("storage");
            errors.push(FieldError::forbidden(&path, "field can not be less than status.capacity"));
        }
    }
    errors
}

pub fn persistent_volume_claim_status(new: &Value, _old: &Value) -> FieldErrors {
    let capacity = Field::root(new).get("status").get("capacity");
    capacity.entries().iter().flat_map(|(_, entry)| non_negative_quantity(entry)).collect()
}

/// The members of a PersistentVolume's spec that are not its source.
const NOT_SOURCES: [&str; 10] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
    "readOnly",
];

fn sources<'a>(spec: &Field<'a>) -> Vec<(&'a str, Field<'a>)> {
    let source = |(name, _): (&'a str, Field<'a>)| (name, spec.get(name));
    let all = spec.entries().into_iter().map(source);
    all.filter(|(name, field)| !NOT_SOURCES.contains(name) && field.is_present()).collect()
}

pub fn persistent_volume_create(volume: &Value) -> FieldErrors {
    let spec = Field::root(volume).get("spec");
    let mut errors = access_modes(&spec, "");
    let capacity = spec.get("capacity");
    if capacity.is_zero() {
        errors.push(capacity.required(""));
    } else if capacity.get("storage").is_absent() || capacity.count() > 1 {
        errors.push(capacity.not_supported(&["storage"]));
    }
    for (_, entry) in capacity.entries() {
        errors.extend(non_negative_quantity(&entry));
        if amount(Some(entry.value)).is_some_and(|amount| amount.is_zero()) {
            errors.push(entry.invalid("must be greater than zero"));
        }
    }
    let policy = spec.get("persistentVolumeReclaimPolicy");
    errors.extend(policy.none_or_one_of(&["Delete", "Recycle", "Retain"]));
    let affinity = spec.get("nodeAffinity");
    if affinity.is_present() {
        let required = affinity.get("required");
        if required.is_absent() {
            errors.push(required.required("must specify required node constraints"));
        } else {
            errors.extend(node_selector(&required));
        }
    }
    let found = sources(&spec);
    for (at, (name, source)) in found.iter().enumerate() {
        if at > 0 {
            errors.push(source.forbidden("may not specify more than 1 volume type"));
            continue;
        }
        errors.extend(shared_source(name, source));
        if *name == "local" && affinity.is_absent() {
            errors.push(affinity.required("Local volume requires node affinity"));
        }
        if *name == "hostPath" && source.get("path").text() == "/" && policy.text() == "Recycle" {
            errors.push(policy.forbidden("may not be 'recycle' for a hostPath mount of '/'"));
        }
    }
    if found.is_empty() {
        errors.push(spec.required("must specify a volume type"));
    }
    let class = spec.get("storageClassName");
    if !class.is_zero() {
        errors.extend(class.each_invalid(names::is_dns1123_subdomain(class.text())));
    }
    errors.extend(spec.get("volumeMode").none_or_one_of(&["Block", "Filesystem"]));
    errors
}

pub fn persistent_volume_update(new: &Value, old: &Value) -> FieldErrors {
    let (spec, before) = (Field::root(new).get("spec"), Field::root(old).get("spec"));
    let mut errors = persistent_volume_create(new);
    let source = |spec: &Field<'_>| {
        sources(spec)
            .into_iter()
            .map(|(name, field)| (name.to_owned(), field.value.clone()))
            .collect::<serde_json::Map<_, _>>()
    };
    let (now, was) = (Value::Object(source(&spec)), Value::Object(source(&before)));
    if !same(&now, &was) {
        let mut places = Vec::new();
        differing(&now, &was, &spec.path, 5, &mut places);
        let path = spec.path.child("persistentvolumesource");
        let detail = format!("spec.persistentvolumesource is immutable after creation\n{}", places.join("\n"));
        errors.push(FieldError::forbidden(&path, detail));
    }
    errors.extend(spec.get("volumeMode").immutable(&before.get("volumeMode")));
    if !before.get("nodeAffinity").is_zero() {
        errors.extend(spec.get("nodeAffinity").immutable(&before.get("nodeAffinity")));
    }
    errors
}

pub fn storage_class_create(class: &Value) -> FieldErrors {
    let root = Field::root(class);
    let provisioner = root.get("provisioner");
    let mut errors = Vec::new();
    if provisioner.is_zero() {
        errors.push(provisioner.required(""));
    } else {
        errors.extend(provisioner.each_invalid(names::is_qualified_name(&provisioner.text().to_lowercase())));
    }
    let parameters = root.get("parameters");
    if parameters.count() > 512 {
        errors.push(FieldError::too_long(&parameters.path, 512));
    }
    errors.extend(root.get("reclaimPolicy").none_or_one_of(&["Delete", "Retain"]));
    errors.extend(root.get("volumeBindingMode").one_of(&["Immediate", "WaitForFirstConsumer"]));
    errors
}

pub fn storage_class_update(new: &Value, old: &Value) -> FieldErrors {
    let (root, before) = (Field::root(new), Field::root(old));
    let mut errors = Vec::new();
    for field in ["parameters", "provisioner", "reclaimPolicy"] {
        if !same(root.get(field).value, before.get(field).value) {
            errors.push(root.get(field).forbidden(format!("updates to {field} are forbidden.")));
        }
    }
    errors.extend(root.get("volumeBindingMode").immutable(&before.get("volumeBindingMode")));
    errors
}

pub fn csi_driver_create(driver: &Value) -> FieldErrors {
    let root = Field::root(driver);
    let name = root.get("metadata").get("name");
    let mut errors = Vec::new();
    if name.text().len() > 63 {
        errors.push(FieldError::too_long(&name.path, 63));
    }
    let spec = root.get("spec");
    for field in ["attachRequired", "podInfoOnMount", "storageCapacity"] {
        if spec.get(field).is_absent() {
            errors.push(spec.get(field).required(""));
        }
    }
    errors.extend(spec.get("fsGroupPolicy").none_or_one_of(&["File", "None", "ReadWriteOnceWithFSType"]));
    for mode in spec.list("volumeLifecycleModes") {
        errors.extend(mode.one_of(&["Ephemeral", "Persistent"]));
    }
    errors
}

pub fn csi_driver_update(new: &Value, old: &Value) -> FieldErrors {
    let (spec, before) = (Field::root(new).get("spec"), Field::root(old).get("spec"));
    let mut errors = csi_driver_create(new);
    for field in ["attachRequired", "volumeLifecycleModes"] {
        errors.extend(spec.get(field).immutable(&before.get(field)));
    }
    errors
}

pub fn volume_attachment_create(attachment: &Value) -> FieldErrors {
    let spec = Field::root(attachment).get("spec");
    let mut errors = spec.get("attacher").not_empty();
    errors.extend(spec.get("nodeName").not_empty());
    let source = spec.get("source");
    let (name, inline) = (source.get("persistentVolumeName"), source.get("inlineVolumeSpec"));
    match (name.is_present(), inline.is_present()) {
        (false, false) => {
            errors.push(source.required("must specify exactly one of inlineVolumeSpec and persistentVolumeName"));
        }
        (true, true) => {
            errors.push(source.forbidden("must specify exactly one of inlineVolumeSpec and persistentVolumeName"));
        }
        _ => (),
    }
    errors
}

pub fn volume_attachment_update(new: &Value, old: &Value) -> FieldErrors {
    Field::root(new).get("spec").immutable(&Field::root(old).get("spec"))
}
