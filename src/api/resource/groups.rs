//! The rows of the named groups, in the order in which upstream's discovery lists the groups.

use super::row::{Row, row};
use super::{Resource, fields};
use crate::{defaults, validation};

pub(super) fn rows() -> Vec<Resource> {
    let groups = [
        apiregistration(),
        apps(),
        events(),
        authentication(),
        authorization(),
        autoscaling(),
        batch(),
        certificates(),
        networking(),
        policy(),
        rbac(),
        storage(),
        admissionregistration(),
        apiextensions(),
        scheduling(),
        coordination(),
        node(),
        discovery(),
        flowcontrol(),
        resource(),
    ];
    groups.into_iter().flatten().map(Row::done).collect()
}

fn apiregistration() -> Vec<Row> {
    vec![
        row("apiregistration.k8s.io", "v1", "APIService", "apiservices")
            .cluster()
            .extension()
            .rules(validation::api_service_create, validation::api_service_update)
            .status()
            .status_rules(validation::api_service_status)
            .default(defaults::api_service)
            .fields(fields::api_service),
    ]
}

fn apps() -> Vec<Row> {
    let apps = |kind, plural| row("apps", "v1", kind, plural);
    vec![
        apps("ControllerRevision", "controllerrevisions"),
        apps("DaemonSet", "daemonsets")
            .rules(validation::daemon_set_create, validation::daemon_set_update)
            .status_rules(validation::daemon_set_status)
            .short(&["ds"])
            .all()
            .status()
            .generation()
            .default(defaults::daemon_set),
        apps("Deployment", "deployments")
            .rules(validation::deployment_create, validation::deployment_update)
            .status_rules(validation::deployment_status)
            .short(&["deploy"])
            .all()
            .status()
            .scale()
            .generation()
            .default(defaults::deployment),
        apps("ReplicaSet", "replicasets")
            .rules(validation::replica_set_create, validation::replica_set_update)
            .status_rules(validation::replica_set_status)
            .short(&["rs"])
            .all()
            .status()
            .scale()
            .generation()
            .default(defaults::replica_set)
            .fields(fields::replica_set),
        apps("StatefulSet", "statefulsets")
            .rules(validation::stateful_set_create, validation::stateful_set_update)
            .status_rules(validation::stateful_set_status)
            .short(&["sts"])
            .all()
            .status()
            .scale()
            .generation()
            .default(defaults::stateful_set),
    ]
}

fn events() -> Vec<Row> {
    vec![
        row("events.k8s.io", "v1", "Event", "events")
            .short(&["ev"])
            .create_on_update()
            .stored_as("", "v1")
            .fields(fields::new_event),
    ]
}

fn authentication() -> Vec<Row> {
    let authentication = |kind, plural| row("authentication.k8s.io", "v1", kind, plural).cluster().create_only();
    vec![authentication("SelfSubjectReview", "selfsubjectreviews"), authentication("TokenReview", "tokenreviews")]
}

fn authorization() -> Vec<Row> {
    let authorization = |kind, plural| row("authorization.k8s.io", "v1", kind, plural).create_only();
    vec![
        authorization("LocalSubjectAccessReview", "localsubjectaccessreviews"),
        authorization("SelfSubjectAccessReview", "selfsubjectaccessreviews").cluster(),
        authorization("SelfSubjectRulesReview", "selfsubjectrulesreviews").cluster(),
        authorization("SubjectAccessReview", "subjectaccessreviews").cluster(),
    ]
}

fn autoscaling() -> Vec<Row> {
    let autoscaler = |version| {
        row("autoscaling", version, "HorizontalPodAutoscaler", "horizontalpodautoscalers")
            .rules(validation::horizontal_pod_autoscaler_create, validation::horizontal_pod_autoscaler_update)
            .short(&["hpa"])
            .all()
            .status()
            .default(defaults::horizontal_pod_autoscaler)
    };
    vec![autoscaler("v2"), autoscaler("v1").stored_as("autoscaling", "v2")]
}

fn batch() -> Vec<Row> {
    let batch = |kind, plural| row("batch", "v1", kind, plural).all().status().generation();
    vec![
        batch("CronJob", "cronjobs")
            .rules(validation::cron_job_create, validation::cron_job_update)
            .short(&["cj"])
            .default(defaults::cron_job),
        batch("Job", "jobs")
            .rules(validation::job_create, validation::job_update)
            .status_rules(validation::job_status)
            .default(defaults::job)
            .fields(fields::job),
    ]
}

fn certificates() -> Vec<Row> {
    vec![
        row("certificates.k8s.io", "v1", "CertificateSigningRequest", "certificatesigningrequests")
            .rules(validation::certificate_signing_request_create, validation::certificate_signing_request_update)
            .status_rules(validation::certificate_signing_request_status)
            .cluster()
            .short(&["csr"])
            .status()
            .part("approval")
            .fields(fields::certificate_signing_request),
    ]
}

fn networking() -> Vec<Row> {
    let networking = |kind, plural| row("networking.k8s.io", "v1", kind, plural);
    vec![
        networking("IngressClass", "ingressclasses")
            .rules(validation::ingress_class_create, validation::ingress_class_update)
            .cluster()
            .generation()
            .default(defaults::ingress_class),
        networking("Ingress", "ingresses")
            .rules(validation::ingress_create, validation::ingress_update)
            .short(&["ing"])
            .status()
            .generation(),
        networking("IPAddress", "ipaddresses")
            .rules(validation::ip_address_create, validation::ip_address_update)
            .cluster()
            .short(&["ip"]),
        networking("NetworkPolicy", "networkpolicies")
            .rules(validation::network_policy_create, validation::network_policy_update)
            .short(&["netpol"])
            .generation()
            .default(defaults::network_policy),
        networking("ServiceCIDR", "servicecidrs")
            .rules(validation::service_cidr_create, validation::service_cidr_update)
            .cluster()
            .status(),
    ]
}

fn policy() -> Vec<Row> {
    vec![
        row("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
            .rules(validation::pod_disruption_budget_create, validation::pod_disruption_budget_update)
            .status_rules(validation::pod_disruption_budget_status)
            .short(&["pdb"])
            .status()
            .generation(),
    ]
}

fn rbac() -> Vec<Row> {
    let rbac = |kind, plural| row("rbac.authorization.k8s.io", "v1", kind, plural).create_on_update();
    vec![
        rbac("ClusterRoleBinding", "clusterrolebindings")
            .rules(validation::cluster_role_binding_create, validation::cluster_role_binding_update)
            .cluster()
            .default(defaults::cluster_role_binding),
        rbac("ClusterRole", "clusterroles")
            .rules(validation::cluster_role_create, validation::cluster_role_update)
            .cluster(),
        rbac("RoleBinding", "rolebindings")
            .rules(validation::role_binding_create, validation::role_binding_update)
            .default(defaults::role_binding),
        rbac("Role", "roles").rules(validation::role_create, validation::role_update),
    ]
}

fn storage() -> Vec<Row> {
    let storage = |kind, plural| row("storage.k8s.io", "v1", kind, plural).cluster();
    vec![
        storage("CSIDriver", "csidrivers")
            .rules(validation::csi_driver_create, validation::csi_driver_update)
            .generation()
            .default(defaults::csi_driver),
        storage("CSINode", "csinodes"),
        row("storage.k8s.io", "v1", "CSIStorageCapacity", "csistoragecapacities"),
        storage("StorageClass", "storageclasses")
            .rules(validation::storage_class_create, validation::storage_class_update)
            .short(&["sc"])
            .default(defaults::storage_class),
        storage("VolumeAttachment", "volumeattachments")
            .rules(validation::volume_attachment_create, validation::volume_attachment_update)
            .status(),
        storage("VolumeAttributesClass", "volumeattributesclasses").short(&["vac"]),
    ]
}

fn admissionregistration() -> Vec<Row> {
    let extension =
        |kind, plural| row("admissionregistration.k8s.io", "v1", kind, plural).cluster().extension().generation();
    vec![
        extension("MutatingAdmissionPolicy", "mutatingadmissionpolicies")
            .rules(validation::mutating_admission_policy_create, validation::mutating_admission_policy_update)
            .default(defaults::mutating_admission_policy),
        extension("MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings")
            .rules(
                validation::mutating_admission_policy_binding_create,
                validation::mutating_admission_policy_binding_update,
            )
            .default(defaults::mutating_admission_policy_binding),
        extension("MutatingWebhookConfiguration", "mutatingwebhookconfigurations")
            .rules(validation::webhook_configuration_create, validation::webhook_configuration_update)
            .default(defaults::mutating_webhook_configuration),
        extension("ValidatingAdmissionPolicy", "validatingadmissionpolicies")
            .rules(validation::validating_admission_policy_create, validation::validating_admission_policy_update)
            .status()
            .status_rules(validation::validating_admission_policy_status)
            .default(defaults::validating_admission_policy),
        extension("ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings")
            .rules(
                validation::validating_admission_policy_binding_create,
                validation::validating_admission_policy_binding_update,
            )
            .default(defaults::validating_admission_policy_binding),
        extension("ValidatingWebhookConfiguration", "validatingwebhookconfigurations")
            .rules(validation::webhook_configuration_create, validation::webhook_configuration_update)
            .default(defaults::validating_webhook_configuration),
    ]
}

fn apiextensions() -> Vec<Row> {
    vec![
        row("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions")
            .cluster()
            .short(&["crd", "crds"])
            .extension()
            .status()
            .generation()
            .rules(validation::crd_create, validation::crd_update)
            .status_rules(validation::crd_status)
            .default(defaults::custom_resource_definition),
    ]
}

fn scheduling() -> Vec<Row> {
    vec![
        row("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses")
            .rules(validation::priority_class_create, validation::priority_class_update)
            .cluster()
            .short(&["pc"])
            .generation()
            .create_on_update()
            .default(defaults::priority_class),
    ]
}

fn coordination() -> Vec<Row> {
    vec![
        row("coordination.k8s.io", "v1", "Lease", "leases")
            .rules(validation::lease_create, validation::lease_update)
            .create_on_update(),
    ]
}

fn node() -> Vec<Row> {
    vec![
        row("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses")
            .rules(validation::runtime_class_create, validation::runtime_class_update)
            .cluster(),
    ]
}

fn discovery() -> Vec<Row> {
    vec![
        row("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices")
            .rules(validation::endpoint_slice_create, validation::endpoint_slice_update)
            .generation()
            .default(defaults::endpoint_slice),
    ]
}

fn flowcontrol() -> Vec<Row> {
    let flowcontrol =
        |kind, plural| row("flowcontrol.apiserver.k8s.io", "v1", kind, plural).cluster().status().generation();
    vec![
        flowcontrol("FlowSchema", "flowschemas").default(defaults::flow_schema),
        flowcontrol("PriorityLevelConfiguration", "prioritylevelconfigurations")
            .default(defaults::priority_level_configuration),
    ]
}

fn resource() -> Vec<Row> {
    let resource = |kind, plural| row("resource.k8s.io", "v1", kind, plural);
    vec![
        resource("DeviceClass", "deviceclasses").cluster().generation(),
        resource("ResourceClaim", "resourceclaims").status(),
        resource("ResourceClaimTemplate", "resourceclaimtemplates"),
        resource("ResourceSlice", "resourceslices").cluster().generation().fields(fields::resource_slice),
    ]
}
