//! Volumes, claims and classes.

use serde_json::{Value, json};

use super::{child, fill, fill_zero, made};

pub fn persistent_volume(volume: &mut Value) {
    if let Some(status) = made(volume, "status") {
        fill_zero(status, "phase", "Pending");
    }
    let Some(spec) = made(volume, "spec") else { return };
    fill_zero(spec, "persistentVolumeReclaimPolicy", "Retain");
    fill(spec, "volumeMode", "Filesystem");
    volume_source(spec);
}

pub fn persistent_volume_claim(claim: &mut Value) {
    if let Some(status) = made(claim, "status") {
        fill_zero(status, "phase", "Pending");
    }
    if let Some(spec) = made(claim, "spec") {
        claim_spec(spec);
    }
}

pub(super) fn claim_spec(spec: &mut Value) {
    fill(spec, "volumeMode", "Filesystem");
    fill(spec, "resources", json!({}));
}

/// The sources that pods and PersistentVolumes have in common.
pub(super) fn volume_source(holder: &mut Value) {
    if let Some(path) = child(holder, "hostPath") {
        fill(path, "type", "");
    }
    if let Some(iscsi) = child(holder, "iscsi") {
        fill_zero(iscsi, "iscsiInterface", "default");
    }
    if let Some(rbd) = child(holder, "rbd") {
        fill_zero(rbd, "pool", "rbd");
        fill_zero(rbd, "user", "admin");
        fill_zero(rbd, "keyring", "/etc/ceph/keyring");
    }
    if let Some(disk) = child(holder, "azureDisk") {
        fill(disk, "cachingMode", "ReadWrite");
        fill(disk, "kind", "Shared");
        fill(disk, "fsType", "ext4");
        fill(disk, "readOnly", false);
    }
    if let Some(scale) = child(holder, "scaleIO") {
        fill_zero(scale, "storageMode", "ThinProvisioned");
        fill_zero(scale, "fsType", "xfs");
    }
}

pub fn storage_class(class: &mut Value) {
    fill(class, "reclaimPolicy", "Delete");
    fill(class, "volumeBindingMode", "Immediate");
}

pub fn csi_driver(driver: &mut Value) {
    let Some(spec) = made(driver, "spec") else { return };
    fill(spec, "attachRequired", true);
    fill(spec, "podInfoOnMount", false);
    fill(spec, "storageCapacity", false);
    fill(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    fill_zero(spec, "volumeLifecycleModes", json!(["Persistent"]));
    fill(spec, "requiresRepublish", false);
    fill(spec, "seLinuxMount", false);
}
