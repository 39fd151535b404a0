//! What upstream refuses, in its words. `<kind>_create` looks at an object as it will be stored, `<kind>_update` and
//! `<kind>_status` at the new one and the old. The common rules of metadata are apart: [`meta_create`], [`meta_update`].

mod admission;
mod admission_policy;
mod batch;
mod certificates;
mod config;
mod container;
mod crd;
mod cursor;
mod meta;
mod network;
mod pod;
mod policy;
mod rbac;
mod registration;
mod resources;
mod selector;
mod service;
mod storage;
mod volume;
mod workload;

pub use admission::{webhook_configuration_create, webhook_configuration_update};
pub use admission_policy::*;
pub use batch::*;
pub use certificates::*;
pub use config::*;
pub use crd::{Approval, crd_approval, crd_create, crd_status, crd_update};
pub use cursor::{Field, same};
pub use meta::{ANNOTATIONS_BYTES_MAX, NameRule, meta_create, meta_update, standard_finalizers};
pub use network::*;
pub use pod::{
    pod_create, pod_ephemeral_containers_update, pod_resize_update, pod_status, pod_template_create, pod_update,
};
pub use policy::*;
pub use rbac::*;
pub use registration::*;
pub use service::*;
pub use storage::{
    csi_driver_create, csi_driver_update, persistent_volume_claim_create, persistent_volume_claim_status,
    persistent_volume_claim_update, persistent_volume_create, persistent_volume_update, storage_class_create,
    storage_class_update, volume_attachment_create, volume_attachment_update,
};
pub use workload::{
    daemon_set_create, daemon_set_status, daemon_set_update, deployment_create, deployment_status, deployment_update,
    replica_set_create, replica_set_status, replica_set_update, replication_controller_create,
    replication_controller_status, replication_controller_update, stateful_set_create, stateful_set_status,
    stateful_set_update,
};

#[cfg(test)]
mod tests;
