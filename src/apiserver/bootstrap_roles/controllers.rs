//! Roles of the controllers: each acts as its own service account, `kube-system/<name>`, and may no more than it must.

use super::{READ, RoleSpec, events, role, rule};
use crate::authz::Rule;

/// Name of the controller and its rules.
fn table() -> Vec<(&'static str, Vec<Rule>)> {
    const CONTROL: &str = "create delete get list patch update watch";
    vec![
        (
            "attachdetach-controller",
            vec![
                rule("list watch", "core", "persistentvolumeclaims persistentvolumes"),
                rule(READ, "core", "nodes"),
                rule("patch update", "core", "nodes/status"),
                rule("list watch", "core", "pods"),
                events(),
                rule("create delete get list watch", "storage.k8s.io", "volumeattachments"),
                rule(READ, "storage.k8s.io", "csidrivers csinodes"),
            ],
        ),
        (
            "certificate-controller",
            vec![
                rule("delete get list watch", "certificates.k8s.io", "certificatesigningrequests"),
                rule(
                    "update",
                    "certificates.k8s.io",
                    "certificatesigningrequests/approval certificatesigningrequests/status",
                ),
                rule("approve", "certificates.k8s.io", "signers")
                    .named(&["kubernetes.io/kube-apiserver-client-kubelet"]),
                rule("sign", "certificates.k8s.io", "signers").named(&[
                    "kubernetes.io/kube-apiserver-client",
                    "kubernetes.io/kube-apiserver-client-kubelet",
                    "kubernetes.io/kubelet-serving",
                    "kubernetes.io/legacy-unknown",
                ]),
                rule("create", "authorization.k8s.io", "subjectaccessreviews"),
                events(),
            ],
        ),
        (
            "clusterrole-aggregation-controller",
            vec![rule("escalate get list patch update watch", "rbac.authorization.k8s.io", "clusterroles")],
        ),
        (
            "cronjob-controller",
            vec![
                rule("get list update watch", "batch", "cronjobs"),
                rule(CONTROL, "batch", "jobs"),
                rule("update", "batch", "cronjobs/status"),
                rule("update", "batch", "cronjobs/finalizers"),
                rule("delete list watch", "core", "pods"),
                events(),
            ],
        ),
        (
            "daemon-set-controller",
            vec![
                rule(READ, "apps extensions", "daemonsets"),
                rule("update", "apps extensions", "daemonsets/status"),
                rule("update", "apps extensions", "daemonsets/finalizers"),
                rule("list watch", "core", "nodes"),
                rule("create delete list patch watch", "core", "pods"),
                rule("create", "core", "pods/binding"),
                rule(CONTROL, "apps", "controllerrevisions"),
                events(),
            ],
        ),
        (
            "deployment-controller",
            vec![
                rule("get list update watch", "apps extensions", "deployments"),
                rule("update", "apps extensions", "deployments/status"),
                rule("update", "apps extensions", "deployments/finalizers"),
                rule(CONTROL, "apps extensions", "replicasets"),
                rule("get list update watch", "core", "pods"),
                events(),
            ],
        ),
        (
            "disruption-controller",
            vec![
                rule(READ, "apps extensions", "deployments"),
                rule(READ, "apps extensions", "replicasets"),
                rule(READ, "core", "replicationcontrollers"),
                rule(READ, "policy", "poddisruptionbudgets"),
                rule(READ, "apps", "statefulsets"),
                rule("update", "policy", "poddisruptionbudgets/status"),
                rule("list watch", "core", "pods"),
                rule("patch update", "core", "pods/status"),
                rule("get", "*", "*/scale"),
                events(),
            ],
        ),
        (
            "endpoint-controller",
            vec![
                rule(READ, "core", "pods services"),
                rule("create delete get list update watch", "core", "endpoints"),
                rule("create", "core", "endpoints/restricted"),
                events(),
            ],
        ),
        (
            "endpointslice-controller",
            vec![
                rule(READ, "core", "nodes pods services"),
                rule("update", "core", "services/finalizers"),
                rule("create delete get list update watch", "discovery.k8s.io", "endpointslices"),
                rule("create", "discovery.k8s.io", "endpointslices/restricted"),
                events(),
            ],
        ),
        (
            "endpointslicemirroring-controller",
            vec![
                rule(READ, "core", "endpoints services"),
                rule("update", "core", "services/finalizers"),
                rule("update", "core", "endpoints/finalizers"),
                rule("create delete get list update watch", "discovery.k8s.io", "endpointslices"),
                rule("create", "discovery.k8s.io", "endpointslices/restricted"),
                events(),
            ],
        ),
        (
            "ephemeral-volume-controller",
            vec![
                rule("update", "core", "pods/finalizers"),
                rule(READ, "core", "pods"),
                rule("create get list watch", "core", "persistentvolumeclaims"),
                events(),
            ],
        ),
        (
            "expand-controller",
            vec![
                rule("get list patch update watch", "core", "persistentvolumes"),
                rule("patch update", "core", "persistentvolumeclaims/status"),
                rule(READ, "core", "persistentvolumeclaims"),
                rule(READ, "core", "pods"),
                rule(READ, "storage.k8s.io", "storageclasses"),
                rule("get", "core", "endpoints services"),
                rule("get", "core", "secrets"),
                events(),
            ],
        ),
        ("generic-garbage-collector", vec![rule("delete get list patch update watch", "*", "*"), events()]),
        (
            "horizontal-pod-autoscaler",
            vec![
                rule(READ, "autoscaling", "horizontalpodautoscalers"),
                rule("update", "autoscaling", "horizontalpodautoscalers/status"),
                rule("get update", "*", "*/scale"),
                rule("list watch", "core", "pods"),
                rule("list watch", "metrics.k8s.io", "pods"),
                rule(READ, "custom.metrics.k8s.io", "*"),
                rule(READ, "external.metrics.k8s.io", "*"),
                events(),
            ],
        ),
        (
            "job-controller",
            vec![
                rule("get list patch update watch", "batch", "jobs"),
                rule("update", "batch", "jobs/status"),
                rule("update", "batch", "jobs/finalizers"),
                rule("create delete list patch watch", "core", "pods"),
                events(),
            ],
        ),
        (
            "legacy-service-account-token-cleaner",
            vec![
                rule("get", "core", "configmaps").named(&["kube-apiserver-legacy-service-account-token-tracking"]),
                rule("delete patch", "core", "secrets"),
            ],
        ),
        (
            "namespace-controller",
            vec![
                rule("delete get list watch", "core", "namespaces"),
                rule("update", "core", "namespaces/finalize namespaces/status"),
                rule("delete deletecollection get list watch", "*", "*"),
            ],
        ),
        (
            "node-controller",
            vec![
                rule("delete get list patch update watch", "core", "nodes"),
                rule("patch update", "core", "nodes/status"),
                rule("patch update", "core", "pods/status"),
                rule("delete get list watch", "core", "pods"),
                rule(READ, "apps", "daemonsets"),
                rule(READ, "coordination.k8s.io", "leases"),
                events(),
            ],
        ),
        (
            "persistent-volume-binder",
            vec![
                rule(CONTROL, "core", "persistentvolumes"),
                rule("update", "core", "persistentvolumes/status"),
                rule("get list patch update watch", "core", "persistentvolumeclaims"),
                rule("update", "core", "persistentvolumeclaims/status"),
                rule("create delete get list watch", "core", "pods"),
                rule(READ, "storage.k8s.io", "storageclasses"),
                rule(READ, "core", "nodes"),
                rule("create delete get list", "core", "endpoints services"),
                rule("get list", "core", "secrets"),
                rule("watch", "core", "events"),
                events(),
            ],
        ),
        (
            "pod-garbage-collector",
            vec![
                rule("delete list watch", "core", "pods"),
                rule("get list watch", "core", "nodes"),
                rule("patch update", "core", "pods/status"),
                events(),
            ],
        ),
        ("pv-protection-controller", vec![rule("get list update watch", "core", "persistentvolumes"), events()]),
        (
            "pvc-protection-controller",
            vec![rule("get list update watch", "core", "persistentvolumeclaims"), rule(READ, "core", "pods"), events()],
        ),
        (
            "replicaset-controller",
            vec![
                rule("get list update watch", "apps extensions", "replicasets"),
                rule("update", "apps extensions", "replicasets/status"),
                rule("update", "apps extensions", "replicasets/finalizers"),
                rule("create delete list patch watch", "core", "pods"),
                events(),
            ],
        ),
        (
            "replication-controller",
            vec![
                rule("get list update watch", "core", "replicationcontrollers"),
                rule("update", "core", "replicationcontrollers/status"),
                rule("update", "core", "replicationcontrollers/finalizers"),
                rule("create delete list patch watch", "core", "pods"),
                events(),
            ],
        ),
        (
            "resource-claim-controller",
            vec![
                rule("update", "core", "pods/finalizers"),
                rule(READ, "core", "pods"),
                rule("create delete get list watch", "resource.k8s.io", "resourceclaims"),
                rule(READ, "resource.k8s.io", "resourceclaimtemplates"),
                rule("patch update", "resource.k8s.io", "resourceclaims resourceclaims/status"),
                rule("update", "core", "pods/status"),
                events(),
            ],
        ),
        (
            "resourcequota-controller",
            vec![rule("list watch", "*", "*"), rule("update", "core", "resourcequotas/status"), events()],
        ),
        (
            "root-ca-cert-publisher",
            vec![rule("create update", "core", "configmaps"), rule(READ, "core", "namespaces"), events()],
        ),
        (
            "route-controller",
            vec![rule("list watch", "core", "nodes"), rule("patch", "core", "nodes/status"), events()],
        ),
        ("service-account-controller", vec![rule("create", "core", "serviceaccounts"), events()]),
        (
            "service-cidrs-controller",
            vec![
                rule("get list patch update watch", "networking.k8s.io", "servicecidrs"),
                rule("patch update", "networking.k8s.io", "servicecidrs/finalizers"),
                rule("patch update", "networking.k8s.io", "servicecidrs/status"),
                rule(READ, "networking.k8s.io", "ipaddresses"),
                events(),
            ],
        ),
        // Directories are made and removed by the kubelets of their nodes.
        (
            "local-path-provisioner",
            vec![
                rule("get list patch watch", "core", "persistentvolumeclaims"),
                rule("create delete get list patch watch", "core", "persistentvolumes"),
                rule("get", "core", "configmaps").named(&["local-path-config"]),
                rule(READ, "core", "nodes"),
                rule("create", "core", "nodes/proxy"),
                rule(READ, "storage.k8s.io", "storageclasses"),
                events(),
            ],
        ),
        (
            "service-controller",
            vec![
                rule(READ, "core", "services"),
                rule("patch update", "core", "services/status"),
                rule("list watch", "core", "nodes"),
                events(),
            ],
        ),
        (
            "statefulset-controller",
            vec![
                rule("list watch", "core", "pods"),
                rule(READ, "apps", "statefulsets"),
                rule("update", "apps", "statefulsets/status"),
                rule("update", "apps", "statefulsets/finalizers"),
                rule("create delete get patch update", "core", "pods"),
                rule("update", "core", "pods/finalizers"),
                rule(CONTROL, "apps", "controllerrevisions"),
                rule("create delete get list patch update watch", "core", "persistentvolumeclaims"),
                events(),
            ],
        ),
        (
            "selinux-warning-controller",
            vec![
                rule(READ, "core", "persistentvolumeclaims persistentvolumes pods"),
                rule(READ, "storage.k8s.io", "csidrivers"),
                events(),
            ],
        ),
        (
            "volumeattributesclass-protection-controller",
            vec![
                rule(READ, "core", "persistentvolumeclaims persistentvolumes"),
                rule("get list update watch", "storage.k8s.io", "volumeattributesclasses"),
                events(),
            ],
        ),
        ("ttl-after-finished-controller", vec![rule("delete get list watch", "batch", "jobs"), events()]),
        ("ttl-controller", vec![rule("list patch update watch", "core", "nodes"), events()]),
        (
            "validatingadmissionpolicy-status-controller",
            vec![
                rule(READ, "admissionregistration.k8s.io", "validatingadmissionpolicies"),
                rule("get patch update", "admissionregistration.k8s.io", "validatingadmissionpolicies/status"),
                events(),
            ],
        ),
    ]
}

pub(super) fn roles() -> Vec<RoleSpec> {
    table().into_iter().map(|(name, rules)| role(format!("system:controller:{name}"), rules)).collect()
}

pub(super) fn bindings() -> Vec<(String, Vec<String>)> {
    table()
        .into_iter()
        .map(|(name, _)| (format!("system:controller:{name}"), vec![format!("ServiceAccount kube-system/{name}")]))
        .collect()
}
