//! Volumes, claims, classes, drivers.

use serde_json::Value;

use super::age;
use super::column::{AGE, NAME, Printer, boolean, integer, text as column};
use super::text::{self, UNSET, list};
use crate::object::ObjectExt;

pub(super) fn core(kind: &str) -> Option<&'static Printer> {
    match kind {
        "PersistentVolume" => Some(&VOLUME),
        "PersistentVolumeClaim" => Some(&CLAIM),
        _ => None,
    }
}

pub(super) fn printer(kind: &str) -> Option<&'static Printer> {
    Some(match kind {
        "StorageClass" => &STORAGE_CLASS,
        "VolumeAttributesClass" => &ATTRIBUTES_CLASS,
        "VolumeAttachment" => &ATTACHMENT,
        "CSINode" => &CSI_NODE,
        "CSIDriver" => &CSI_DRIVER,
        "CSIStorageCapacity" => &CAPACITY,
        _ => return None,
    })
}

static VOLUME: Printer = Printer {
    columns: &[
        NAME,
        column("Capacity", "How much the volume holds."),
        column("Access Modes", "How the volume can be mounted."),
        column("Reclaim Policy", "What becomes of the volume when its claim is gone."),
        column("Status", "Whether the volume is free, bound, released."),
        column("Claim", "The claim that the volume is bound to."),
        column("StorageClass", "The class of the volume."),
        column("VolumeAttributesClass", "The attributes class of the volume."),
        column("Reason", "Why the volume is in this state."),
        AGE,
        column("VolumeMode", "File system or raw block device.").wide(),
    ],
    cells: |volume, now| {
        let claim = volume.at("spec.claimRef").map(|c| format!("{}/{}", c.str_at("namespace"), c.str_at("name")));
        vec![
            text::name(volume),
            volume.str_at("spec.capacity.storage").into(),
            access_modes(list(volume, "spec.accessModes")).into(),
            volume.str_at("spec.persistentVolumeReclaimPolicy").into(),
            phase(volume).into(),
            claim.unwrap_or_default().into(),
            class(volume).into(),
            text::or(volume, "spec.volumeAttributesClassName", UNSET).into(),
            volume.str_at("status.reason").into(),
            age::of(volume, now),
            text::or(volume, "spec.volumeMode", UNSET).into(),
        ]
    },
};

static CLAIM: Printer = Printer {
    columns: &[
        NAME,
        column("Status", "Whether the claim is bound."),
        column("Volume", "The volume that the claim is bound to."),
        column("Capacity", "How much the volume holds."),
        column("Access Modes", "How the volume can be mounted."),
        column("StorageClass", "The class asked for."),
        column("VolumeAttributesClass", "The attributes class asked for."),
        AGE,
        column("VolumeMode", "File system or raw block device.").wide(),
    ],
    cells: |claim, now| {
        let bound = !claim.str_at("spec.volumeName").is_empty();
        let modes = if bound { access_modes(list(claim, "status.accessModes")) } else { String::new() };
        vec![
            text::name(claim),
            phase(claim).into(),
            claim.str_at("spec.volumeName").into(),
            if bound { claim.str_at("status.capacity.storage") } else { "" }.into(),
            modes.into(),
            class(claim).into(),
            text::or(claim, "spec.volumeAttributesClassName", UNSET).into(),
            age::of(claim, now),
            text::or(claim, "spec.volumeMode", UNSET).into(),
        ]
    },
};

fn phase(object: &Value) -> &str {
    if object.is_deleting() { "Terminating" } else { object.str_at("status.phase") }
}

fn class(object: &Value) -> &str {
    let annotated = object.annotations().and_then(|a| a.get("volume.beta.kubernetes.io/storage-class"));
    annotated.and_then(Value::as_str).unwrap_or_else(|| object.str_at("spec.storageClassName"))
}

fn access_modes(modes: &[Value]) -> String {
    let short =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let has = |mode: &str| modes.iter().any(|m| m == mode);
    short.iter().filter(|(mode, _)| has(mode)).map(|(_, short)| *short).collect::<Vec<_>>().join(",")
}

fn default_name(object: &Value, annotation: &str) -> Value {
    let is_default = object.annotations().and_then(|a| a.get(annotation)).is_some_and(|v| v == "true");
    if is_default { format!("{} (default)", object.name()).into() } else { text::name(object) }
}

static STORAGE_CLASS: Printer = Printer {
    columns: &[
        NAME,
        column("Provisioner", "Who makes the volumes."),
        column("ReclaimPolicy", "What becomes of volumes when their claims are gone."),
        column("VolumeBindingMode", "When volumes are made and bound."),
        column("AllowVolumeExpansion", "Whether volumes can grow."),
        AGE,
    ],
    cells: |object, now| {
        vec![
            default_name(object, "storageclass.kubernetes.io/is-default-class"),
            object.str_at("provisioner").into(),
            text::or(object, "reclaimPolicy", "Delete").into(),
            text::or(object, "volumeBindingMode", "Immediate").into(),
            text::flag(object, "allowVolumeExpansion").into(),
            age::of(object, now),
        ]
    },
};

static ATTRIBUTES_CLASS: Printer = Printer {
    columns: &[NAME, column("DriverName", "The driver that knows the attributes."), AGE],
    cells: |object, now| {
        vec![
            default_name(object, "storage.alpha.kubernetes.io/is-default-class"),
            object.str_at("driverName").into(),
            age::of(object, now),
        ]
    },
};

static ATTACHMENT: Printer = Printer {
    columns: &[
        NAME,
        column("Attacher", "Who attaches the volume."),
        column("PV", "The volume."),
        column("Node", "The node that it is attached to."),
        boolean("Attached", "Whether it is attached."),
        AGE,
    ],
    cells: |object, now| {
        vec![
            text::name(object),
            object.str_at("spec.attacher").into(),
            object.str_at("spec.source.persistentVolumeName").into(),
            object.str_at("spec.nodeName").into(),
            text::flag(object, "status.attached").into(),
            age::of(object, now),
        ]
    },
};

static CSI_NODE: Printer = Printer {
    columns: &[NAME, integer("Drivers", "How many drivers the node has."), AGE],
    cells: |object, now| vec![text::name(object), text::len(object, "spec.drivers").into(), age::of(object, now)],
};

static CSI_DRIVER: Printer = Printer {
    columns: &[
        NAME,
        boolean("AttachRequired", "Whether volumes must be attached."),
        boolean("PodInfoOnMount", "Whether the driver is told of the pod."),
        boolean("StorageCapacity", "Whether the driver reports capacity."),
        column("TokenRequests", "Audiences of the tokens that the driver gets."),
        boolean("RequiresRepublish", "Whether volumes are published again and again."),
        column("Modes", "Kinds of volumes that the driver supports."),
        AGE,
    ],
    cells: |object, now| {
        let attach = object.at("spec.attachRequired").and_then(Value::as_bool).unwrap_or(true);
        let tokens = list(object, "spec.tokenRequests");
        let modes = text::strings(list(object, "spec.volumeLifecycleModes"));
        vec![
            text::name(object),
            attach.into(),
            text::flag(object, "spec.podInfoOnMount").into(),
            text::flag(object, "spec.storageCapacity").into(),
            if tokens.is_empty() { UNSET.to_owned() } else { text::join(tokens, "audience") }.into(),
            text::flag(object, "spec.requiresRepublish").into(),
            if modes.is_empty() { "<none>".to_owned() } else { modes }.into(),
            age::of(object, now),
        ]
    },
};

static CAPACITY: Printer = Printer {
    columns: &[
        NAME,
        column("StorageClassName", "The class that the capacity is of."),
        column("Capacity", "How much is left."),
        AGE,
    ],
    cells: |object, now| {
        vec![
            text::name(object),
            object.str_at("storageClassName").into(),
            text::or(object, "capacity", UNSET).into(),
            age::of(object, now),
        ]
    },
};
