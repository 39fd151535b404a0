//! The rows of the core group.

use super::row::{Row, row};
use super::{Resource, fields, none_update};
use crate::{defaults, validation};

fn core(kind: &'static str, plural: &'static str) -> Row {
    row("", "v1", kind, plural)
}

pub(super) fn rows() -> Vec<Resource> {
    vec![
        core("Binding", "bindings").rules(validation::binding_create, none_update).create_only().done(),
        core("ComponentStatus", "componentstatuses").cluster().short(&["cs"]).verbs(&["get", "list"]).done(),
        core("ConfigMap", "configmaps")
            .rules(validation::config_map_create, validation::config_map_update)
            .short(&["cm"])
            .done(),
        core("Endpoints", "endpoints")
            .rules(validation::endpoints_create, validation::endpoints_update)
            .short(&["ep"])
            .create_on_update()
            .default(defaults::endpoints)
            .done(),
        core("Event", "events")
            .rules(validation::event_create, validation::event_update)
            .short(&["ev"])
            .create_on_update()
            .fields(fields::event)
            .done(),
        core("LimitRange", "limitranges")
            .rules(validation::limit_range_create, validation::limit_range_update)
            .short(&["limits"])
            .create_on_update()
            .default(defaults::limit_range)
            .done(),
        core("Namespace", "namespaces")
            .rules(validation::namespace_create, validation::namespace_update)
            .status_rules(validation::namespace_status)
            .cluster()
            .short(&["ns"])
            .verbs(&["create", "delete", "get", "list", "patch", "update", "watch"])
            .status()
            .verb_of_own("finalize", &["update"])
            .default(defaults::namespace)
            .fields(fields::namespace)
            .done(),
        core("Node", "nodes")
            .rules(validation::node_create, validation::node_update)
            .status_rules(validation::node_status)
            .cluster()
            .short(&["no"])
            .status()
            .proxy("NodeProxyOptions")
            .default(defaults::node)
            .fields(fields::node)
            .done(),
        core("PersistentVolumeClaim", "persistentvolumeclaims")
            .rules(validation::persistent_volume_claim_create, validation::persistent_volume_claim_update)
            .status_rules(validation::persistent_volume_claim_status)
            .short(&["pvc"])
            .status()
            .default(defaults::persistent_volume_claim)
            .done(),
        core("PersistentVolume", "persistentvolumes")
            .rules(validation::persistent_volume_create, validation::persistent_volume_update)
            .cluster()
            .short(&["pv"])
            .status()
            .default(defaults::persistent_volume)
            .done(),
        core("Pod", "pods")
            .rules(validation::pod_create, validation::pod_update)
            .status_rules(validation::pod_status)
            .short(&["po"])
            .all()
            .status()
            .connect("attach", "PodAttachOptions")
            .takes("binding", "", "v1", "Binding")
            .part("ephemeralcontainers")
            .takes("eviction", "policy", "v1", "Eviction")
            .connect("exec", "PodExecOptions")
            .verb_of_own("log", &["get"])
            .connect("portforward", "PodPortForwardOptions")
            .proxy("PodProxyOptions")
            .part("resize")
            .generation()
            .grace(30)
            .default(defaults::pod)
            .fields(fields::pod)
            .done(),
        core("PodTemplate", "podtemplates")
            .rules(validation::pod_template_create, none_update)
            .default(defaults::pod_template)
            .done(),
        core("ReplicationController", "replicationcontrollers")
            .rules(validation::replication_controller_create, validation::replication_controller_update)
            .status_rules(validation::replication_controller_status)
            .short(&["rc"])
            .all()
            .status()
            .scale()
            .generation()
            .default(defaults::replication_controller)
            .fields(fields::replica_set)
            .done(),
        core("ResourceQuota", "resourcequotas")
            .rules(validation::resource_quota_create, validation::resource_quota_update)
            .status_rules(validation::resource_quota_status)
            .short(&["quota"])
            .status()
            .done(),
        core("Secret", "secrets")
            .rules(validation::secret_create, validation::secret_update)
            .default(defaults::secret)
            .fields(fields::secret)
            .done(),
        core("ServiceAccount", "serviceaccounts")
            .short(&["sa"])
            .takes("token", "authentication.k8s.io", "v1", "TokenRequest")
            .done(),
        core("Service", "services")
            .rules(validation::service_create, validation::service_update)
            .status_rules(validation::service_status)
            .short(&["svc"])
            .all()
            .status()
            .proxy("ServiceProxyOptions")
            .create_on_update()
            .default(defaults::service)
            .done(),
    ]
}
