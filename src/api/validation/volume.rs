//! Volumes of pods, and the sources they share with PersistentVolumes.

use std::collections::HashMap;

use super::container::{field_ref, local_descending, resource_field_ref};
use super::cursor::Field;
use super::resources;
use crate::field::{FieldError, FieldErrors};
use crate::names;

/// The volumes by name, and whether each is a claim; and all that is wrong with them.
pub(super) fn volumes<'a>(list: &Field<'a>) -> (HashMap<&'a str, bool>, FieldErrors) {
    let mut errors = Vec::new();
    let mut found = HashMap::new();
    for volume in list.items() {
        let name = volume.get("name");
        let mut own = source(&volume);
        if name.is_zero() {
            own.push(name.required(""));
        } else {
            own.extend(name.each_invalid(names::is_dns1123_label(name.text())));
        }
        if found.contains_key(name.text()) {
            own.push(name.duplicate());
        }
        let claim = volume.get("persistentVolumeClaim").is_present() || volume.get("ephemeral").is_present();
        if own.is_empty() {
            found.insert(name.text(), claim);
        }
        errors.extend(own);
    }
    (found, errors)
}

fn source(volume: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    let mut sources = 0;
    for (kind, _) in volume.entries() {
        let source = volume.get(kind);
        if kind == "name" || source.is_absent() {
            continue;
        }
        sources += 1;
        if sources > 1 {
            errors.push(source.forbidden("may not specify more than 1 volume type"));
            continue;
        }
        match kind {
            "emptyDir" => {
                let limit = source.get("sizeLimit");
                if resources::amount(Some(limit.value)).is_some_and(|limit| limit.is_negative()) {
                    errors.push(limit.forbidden("SizeLimit field must be a valid resource quantity"));
                }
            }
            "persistentVolumeClaim" => errors.extend(source.get("claimName").not_empty()),
            "secret" => {
                errors.extend(source.get("secretName").not_empty());
                errors.extend(mode(&source.get("defaultMode")));
                errors.extend(key_items(&source));
            }
            "configMap" => {
                errors.extend(source.get("name").not_empty());
                errors.extend(mode(&source.get("defaultMode")));
                errors.extend(key_items(&source));
            }
            "downwardAPI" => {
                errors.extend(mode(&source.get("defaultMode")));
                errors.extend(downward_items(&source));
            }
            "projected" => errors.extend(projected(&source)),
            "ephemeral" => {
                let template = source.get("volumeClaimTemplate");
                if template.is_absent() {
                    errors.push(template.required(""));
                } else {
                    errors.extend(super::storage::claim_spec(&template.get("spec")));
                }
            }
            "image" => {
                errors.extend(source.get("reference").not_empty());
                errors.extend(source.get("pullPolicy").none_or_one_of(&["Always", "IfNotPresent", "Never"]));
            }
            _ => errors.extend(shared_source(kind, &source)),
        }
    }
    if sources == 0 {
        errors.push(volume.required("must specify a volume type"));
    }
    errors
}

/// The sources that pods and PersistentVolumes have in common.
pub(super) fn shared_source(kind: &str, source: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    let needed: &[&str] = match kind {
        "hostPath" => {
            let path = source.get("path");
            if path.is_zero() {
                return vec![path.required("")];
            }
            if path.text().split('/').any(|part| part == "..") {
                errors.push(path.invalid("must not contain '..'"));
            }
            const TYPES: [&str; 8] =
                ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
            errors.extend(source.get("type").none_or_one_of(&TYPES));
            return errors;
        }
        "nfs" => {
            let path = source.get("path");
            if !path.is_zero() && !path.text().starts_with('/') {
                errors.push(path.invalid("must be an absolute path"));
            }
            &["server", "path"]
        }
        "local" => &["path"],
        "csi" => {
            let driver = source.get("driver");
            if !driver.is_zero() {
                errors.extend(driver.each_invalid(names::is_dns1123_subdomain(&driver.text().to_lowercase())));
            }
            &["driver"]
        }
        "iscsi" => &["targetPortal", "iqn"],
        "gcePersistentDisk" => &["pdName"],
        "awsElasticBlockStore" => &["volumeID"],
        "glusterfs" => &["endpoints", "path"],
        "cephfs" | "rbd" => &["monitors"],
        "flexVolume" => &["driver"],
        "azureFile" => &["secretName", "shareName"],
        "vsphereVolume" => &["volumePath"],
        _ => &[],
    };
    for field in needed {
        errors.extend(source.get(field).not_empty());
    }
    errors
}

fn mode(mode: &Field<'_>) -> FieldErrors {
    match mode.int() {
        Some(number) if !(0..=0o777).contains(&number) => {
            vec![mode.invalid("must be a number between 0 and 0777 (octal), both inclusive")]
        }
        _ => Vec::new(),
    }
}

fn key_items(source: &Field<'_>) -> FieldErrors {
    let mut errors = Vec::new();
    for item in source.list("items") {
        errors.extend(item.get("key").not_empty());
        errors.extend(item_path(&item.get("path")));
        errors.extend(mode(&item.get("mode")));
    }
    errors
}

fn item_path(path: &Field<'_>) -> FieldErrors {
    if path.is_zero() {
        return vec![path.required("")];
    }
    let mut errors = local_descending(path);
    if path.text().starts_with("..") && path.text() != ".." && !path.text().starts_with("../") {
        errors.push(path.invalid("must not start with '..'"));
    }
    errors
}

fn downward_items(source: &Field<'_>) -> FieldErrors {
    const SUPPORTED: [&str; 5] =
        ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
    let mut errors = Vec::new();
    for item in source.list("items") {
        errors.extend(item_path(&item.get("path")));
        let (field, resource) = (item.get("fieldRef"), item.get("resourceFieldRef"));
        if field.is_present() {
            errors.extend(field_ref(&field, &SUPPORTED));
            if resource.is_present() {
                let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.push(FieldError::invalid(&source.path, "resource", detail));
            }
        } else if resource.is_present() {
            errors.extend(resource_field_ref(&resource, true));
        } else {
            errors.push(source.required("one of fieldRef and resourceFieldRef is required"));
        }
        errors.extend(mode(&item.get("mode")));
    }
    errors
}

fn projected(volume: &Field<'_>) -> FieldErrors {
    let mut errors = mode(&volume.get("defaultMode"));
    for projection in volume.list("sources") {
        let mut sources = 0;
        for (kind, _) in projection.entries() {
            let source = projection.get(kind);
            if source.is_absent() {
                continue;
            }
            sources += 1;
            if sources > 1 {
                errors.push(source.forbidden("may not specify more than 1 volume type"));
                continue;
            }
            match kind {
                "secret" | "configMap" => {
                    errors.extend(source.get("name").not_empty());
                    errors.extend(key_items(&source));
                }
                "downwardAPI" => errors.extend(downward_items(&source)),
                "serviceAccountToken" => {
                    let seconds = source.get("expirationSeconds");
                    match seconds.int() {
                        Some(number) if number < 600 => {
                            errors.push(seconds.invalid("may not specify a duration less than 10 minutes"));
                        }
                        Some(number) if number > 1 << 32 => {
                            errors.push(seconds.invalid("may not specify a duration larger than 2^32 seconds"));
                        }
                        _ => (),
                    }
                    errors.extend(source.get("path").not_empty());
                }
                "clusterTrustBundle" => errors.extend(source.get("path").not_empty()),
                _ => (),
            }
        }
        if sources == 0 {
            errors.push(projection.required("must specify a projected volume type"));
        }
    }
    errors
}
