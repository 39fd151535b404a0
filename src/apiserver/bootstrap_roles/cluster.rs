//! Roles of users and of the cluster's own components.

use super::{READ, READ_WRITE, RoleSpec, WRITE, events, role, rule};
use crate::authz::{Rule, node_rules};

const TO_ADMIN: &str = "rbac.authorization.k8s.io/aggregate-to-admin";
const TO_EDIT: &str = "rbac.authorization.k8s.io/aggregate-to-edit";
const TO_VIEW: &str = "rbac.authorization.k8s.io/aggregate-to-view";

pub(super) fn roles() -> Vec<RoleSpec> {
    let mut all = vec![
        role("cluster-admin", vec![Rule::everything(), Rule::every_path()]),
        role(
            "system:discovery",
            vec![Rule::paths(
                &["get"],
                &[
                    "/api",
                    "/api/*",
                    "/apis",
                    "/apis/*",
                    "/healthz",
                    "/livez",
                    "/openapi",
                    "/openapi/*",
                    "/readyz",
                    "/version",
                    "/version/",
                ],
            )],
        ),
        role(
            "system:public-info-viewer",
            vec![Rule::paths(&["get"], &["/healthz", "/livez", "/readyz", "/version", "/version/"])],
        ),
        role(
            "system:basic-user",
            vec![
                rule("create", "authorization.k8s.io", "selfsubjectaccessreviews selfsubjectrulesreviews"),
                rule("create", "authentication.k8s.io", "selfsubjectreviews"),
            ],
        ),
        role(
            "system:monitoring",
            vec![Rule::paths(
                &["get"],
                &["/healthz", "/healthz/*", "/livez", "/livez/*", "/metrics", "/metrics/slis", "/readyz", "/readyz/*"],
            )],
        ),
        role(
            "system:service-account-issuer-discovery",
            vec![Rule::paths(
                &["get"],
                &[
                    "/.well-known/openid-configuration",
                    "/.well-known/openid-configuration/",
                    "/openid/v1/jwks",
                    "/openid/v1/jwks/",
                ],
            )],
        ),
        RoleSpec { aggregates: Some(TO_ADMIN), ..role("admin", vec![]) },
        RoleSpec { aggregates: Some(TO_EDIT), labels: &[(TO_ADMIN, "true")], ..role("edit", vec![]) },
        RoleSpec { aggregates: Some(TO_VIEW), labels: &[(TO_EDIT, "true")], ..role("view", vec![]) },
        RoleSpec { labels: &[(TO_ADMIN, "true")], ..role("system:aggregate-to-admin", admin()) },
        RoleSpec { labels: &[(TO_EDIT, "true")], ..role("system:aggregate-to-edit", edit()) },
        RoleSpec { labels: &[(TO_VIEW, "true")], ..role("system:aggregate-to-view", view()) },
        RoleSpec {
            labels: &[(TO_ADMIN, "true"), (TO_EDIT, "true"), (TO_VIEW, "true")],
            ..role("system:aggregated-metrics-reader", vec![rule(READ, "metrics.k8s.io", "nodes pods")])
        },
        role("system:node", node_rules().to_vec()),
        role(
            "system:node-proxier",
            vec![
                rule("list watch", "core", "endpoints services"),
                rule(READ, "core", "nodes"),
                events(),
                rule("list watch", "discovery.k8s.io", "endpointslices"),
                rule("list watch", "networking.k8s.io", "servicecidrs"),
            ],
        ),
        // What a node enforces policies by; its kubelet may see no pods but its own.
        role(
            "system:mussel:network-policy",
            vec![
                rule("list watch", "core", "namespaces pods"),
                rule("list watch", "networking.k8s.io", "networkpolicies"),
            ],
        ),
        role(
            "system:kubelet-api-admin",
            vec![
                rule(READ, "core", "nodes"),
                rule("proxy", "core", "nodes"),
                rule(
                    "*",
                    "core",
                    "nodes/configz nodes/healthz nodes/log nodes/metrics nodes/pods nodes/proxy nodes/stats",
                ),
            ],
        ),
        role(
            "system:node-bootstrapper",
            vec![rule("create get list watch", "certificates.k8s.io", "certificatesigningrequests")],
        ),
        role(
            "system:node-problem-detector",
            vec![rule("get", "core", "nodes"), rule("patch", "core", "nodes/status"), events()],
        ),
        role(
            "system:auth-delegator",
            vec![
                rule("create", "authentication.k8s.io", "tokenreviews"),
                rule("create", "authorization.k8s.io", "subjectaccessreviews"),
            ],
        ),
        role("system:kube-aggregator", vec![rule(READ, "core", "endpoints services")]),
        role(
            "system:heapster",
            vec![rule(READ, "core", "events namespaces nodes pods"), rule(READ, "extensions", "deployments")],
        ),
        role(
            "system:kube-dns",
            vec![
                rule("list watch", "core", "endpoints services"),
                rule("list watch", "discovery.k8s.io", "endpointslices"),
            ],
        ),
        role(
            "system:kube-controller-manager",
            vec![
                events(),
                rule("create", "coordination.k8s.io", "leases"),
                rule("get update", "coordination.k8s.io", "leases").named(&["kube-controller-manager"]),
                rule("create", "core", "secrets serviceaccounts"),
                rule("delete", "core", "secrets"),
                rule("get", "core", "configmaps namespaces secrets serviceaccounts"),
                rule("update", "core", "secrets serviceaccounts"),
                rule("create", "authentication.k8s.io", "tokenreviews"),
                rule("create", "authorization.k8s.io", "subjectaccessreviews"),
                rule("list watch", "*", "*"),
                rule("create", "core", "serviceaccounts/token"),
            ],
        ),
        role(
            "system:kube-scheduler",
            vec![
                events(),
                rule("create", "coordination.k8s.io", "leases"),
                rule("get update", "coordination.k8s.io", "leases").named(&["kube-scheduler"]),
                rule(READ, "core", "nodes"),
                rule("delete get list watch", "core", "pods"),
                rule("create", "core", "bindings pods/binding"),
                rule("patch update", "core", "pods/status"),
                rule(READ, "core", "replicationcontrollers services"),
                rule(READ, "apps extensions", "replicasets"),
                rule(READ, "apps", "statefulsets"),
                rule(READ, "policy", "poddisruptionbudgets"),
                rule(READ, "core", "persistentvolumeclaims persistentvolumes"),
                rule("create", "authentication.k8s.io", "tokenreviews"),
                rule("create", "authorization.k8s.io", "subjectaccessreviews"),
                rule(READ, "storage.k8s.io", "csidrivers csinodes csistoragecapacities volumeattachments"),
                rule(READ, "core", "namespaces"),
                rule(READ, "resource.k8s.io", "deviceclasses resourceclaims resourceslices"),
                rule("patch update", "resource.k8s.io", "resourceclaims resourceclaims/status"),
                rule("patch update", "core", "pods/finalizers"),
            ],
        ),
        role(
            "system:volume-scheduler",
            vec![
                rule("get list patch update watch", "core", "persistentvolumes"),
                rule(READ, "storage.k8s.io", "storageclasses"),
                rule("get list patch update watch", "core", "persistentvolumeclaims"),
            ],
        ),
        role(
            "system:persistent-volume-provisioner",
            vec![
                rule("create delete get list watch", "core", "persistentvolumes"),
                rule("get list update watch", "core", "persistentvolumeclaims"),
                rule(READ, "storage.k8s.io", "storageclasses"),
                rule("watch", "core", "events"),
                events(),
            ],
        ),
        role("system:cluster-trust-bundle-discovery", vec![rule(READ, "certificates.k8s.io", "clustertrustbundles")]),
    ];
    for kind in ["nodeclient", "selfnodeclient"] {
        let name = format!("system:certificates.k8s.io:certificatesigningrequests:{kind}");
        let resource = format!("certificatesigningrequests/{kind}");
        all.push(role(name, vec![rule("create", "certificates.k8s.io", &resource)]));
    }
    for (name, signer) in [
        ("legacy-unknown-approver", "kubernetes.io/legacy-unknown"),
        ("kubelet-serving-approver", "kubernetes.io/kubelet-serving"),
        ("kube-apiserver-client-approver", "kubernetes.io/kube-apiserver-client"),
        ("kube-apiserver-client-kubelet-approver", "kubernetes.io/kube-apiserver-client-kubelet"),
    ] {
        let rules = vec![rule("approve", "certificates.k8s.io", "signers").named(&[signer])];
        all.push(role(format!("system:certificates.k8s.io:{name}"), rules));
    }
    all
}

fn admin() -> Vec<Rule> {
    vec![
        rule("create", "authorization.k8s.io", "localsubjectaccessreviews"),
        rule(READ_WRITE, "rbac.authorization.k8s.io", "rolebindings roles"),
    ]
}

fn edit() -> Vec<Rule> {
    vec![
        rule(READ, "core", "pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy"),
        rule("impersonate", "core", "serviceaccounts"),
        rule(WRITE, "core", "pods pods/attach pods/exec pods/portforward pods/proxy"),
        rule("create", "core", "pods/eviction"),
        rule(
            WRITE,
            "core",
            "configmaps events persistentvolumeclaims replicationcontrollers replicationcontrollers/scale secrets \
             serviceaccounts services services/proxy",
        ),
        rule("create", "core", "serviceaccounts/token"),
        rule(
            WRITE,
            "apps",
            "daemonsets deployments deployments/rollback deployments/scale replicasets replicasets/scale statefulsets \
             statefulsets/scale",
        ),
        rule(WRITE, "autoscaling", "horizontalpodautoscalers"),
        rule(WRITE, "batch", "cronjobs jobs"),
        rule(
            WRITE,
            "extensions",
            "daemonsets deployments deployments/rollback deployments/scale ingresses networkpolicies replicasets \
             replicasets/scale replicationcontrollers/scale",
        ),
        rule(WRITE, "policy", "poddisruptionbudgets"),
        rule(WRITE, "networking.k8s.io", "ingresses networkpolicies"),
        rule(READ_WRITE, "coordination.k8s.io", "leases"),
        rule(WRITE, "resource.k8s.io", "resourceclaims resourceclaimtemplates"),
    ]
}

fn view() -> Vec<Rule> {
    vec![
        rule(
            READ,
            "core",
            "configmaps endpoints persistentvolumeclaims persistentvolumeclaims/status pods replicationcontrollers \
             replicationcontrollers/scale serviceaccounts services services/status",
        ),
        rule(
            READ,
            "core",
            "bindings events limitranges namespaces/status pods/log pods/status replicationcontrollers/status \
             resourcequotas resourcequotas/status",
        ),
        rule(READ, "core", "namespaces"),
        rule(READ, "discovery.k8s.io", "endpointslices"),
        rule(
            READ,
            "apps",
            "controllerrevisions daemonsets daemonsets/status deployments deployments/scale deployments/status \
             replicasets replicasets/scale replicasets/status statefulsets statefulsets/scale statefulsets/status",
        ),
        rule(READ, "autoscaling", "horizontalpodautoscalers horizontalpodautoscalers/status"),
        rule(READ, "batch", "cronjobs cronjobs/status jobs jobs/status"),
        rule(
            READ,
            "extensions",
            "daemonsets daemonsets/status deployments deployments/scale deployments/status ingresses ingresses/status \
             networkpolicies replicasets replicasets/scale replicasets/status replicationcontrollers/scale",
        ),
        rule(READ, "policy", "poddisruptionbudgets poddisruptionbudgets/status"),
        rule(READ, "networking.k8s.io", "ingresses ingresses/status networkpolicies"),
        rule(READ, "resource.k8s.io", "resourceclaims resourceclaims/status resourceclaimtemplates"),
    ]
}

pub(super) fn bindings() -> Vec<(String, Vec<String>)> {
    let table: [(&str, &[&str]); 13] = [
        ("cluster-admin", &["Group system:masters"]),
        ("system:monitoring", &["Group system:monitoring"]),
        ("system:discovery", &["Group system:authenticated"]),
        ("system:basic-user", &["Group system:authenticated"]),
        ("system:public-info-viewer", &["Group system:authenticated", "Group system:unauthenticated"]),
        ("system:service-account-issuer-discovery", &["Group system:serviceaccounts"]),
        ("system:node-proxier", &["User system:kube-proxy"]),
        ("system:mussel:network-policy", &["User system:kube-proxy"]),
        ("system:kube-controller-manager", &["User system:kube-controller-manager"]),
        ("system:kube-dns", &["ServiceAccount kube-system/kube-dns"]),
        ("system:kube-scheduler", &["User system:kube-scheduler"]),
        ("system:volume-scheduler", &["User system:kube-scheduler"]),
        // Kept without subjects, as upstream: the node authorizer decides for nodes.
        ("system:node", &[]),
    ];
    table
        .into_iter()
        .map(|(name, subjects)| (name.to_owned(), subjects.iter().map(|s| (*s).to_owned()).collect()))
        .collect()
}

pub(super) fn namespaced_roles() -> Vec<(&'static str, RoleSpec)> {
    let leader = |name: &'static str, component: &'static str| {
        role(
            name,
            vec![rule("watch", "core", "configmaps"), rule("get update", "core", "configmaps").named(&[component])],
        )
    };
    vec![
        (
            "kube-system",
            role(
                "extension-apiserver-authentication-reader",
                vec![rule(READ, "core", "configmaps").named(&["extension-apiserver-authentication"])],
            ),
        ),
        ("kube-system", role("system:controller:bootstrap-signer", vec![rule(READ, "core", "secrets")])),
        (
            "kube-system",
            role(
                "system:controller:cloud-provider",
                vec![rule("create get list watch", "core", "configmaps"), rule("get update", "core", "configmaps")],
            ),
        ),
        (
            "kube-system",
            role("system:controller:token-cleaner", vec![rule("delete get list watch", "core", "secrets"), events()]),
        ),
        ("kube-system", leader("system::leader-locking-kube-controller-manager", "kube-controller-manager")),
        ("kube-system", leader("system::leader-locking-kube-scheduler", "kube-scheduler")),
        (
            "kube-public",
            role(
                "system:controller:bootstrap-signer",
                vec![
                    rule(READ, "core", "configmaps"),
                    rule("update", "core", "configmaps").named(&["cluster-info"]),
                    events(),
                ],
            ),
        ),
    ]
}

type NamespacedBinding = (&'static str, &'static str, &'static str, &'static [&'static str]);

/// Namespace, name, role, subjects.
pub(super) fn namespaced_bindings() -> Vec<NamespacedBinding> {
    let manager = "system::leader-locking-kube-controller-manager";
    let scheduler = "system::leader-locking-kube-scheduler";
    let signer = "system:controller:bootstrap-signer";
    let reader = "extension-apiserver-authentication-reader";
    vec![
        (
            "kube-system",
            manager,
            manager,
            &["User system:kube-controller-manager", "ServiceAccount kube-system/kube-controller-manager"],
        ),
        (
            "kube-system",
            scheduler,
            scheduler,
            &["User system:kube-scheduler", "ServiceAccount kube-system/kube-scheduler"],
        ),
        ("kube-system", signer, signer, &["ServiceAccount kube-system/bootstrap-signer"]),
        (
            "kube-system",
            "system:controller:cloud-provider",
            "system:controller:cloud-provider",
            &["ServiceAccount kube-system/cloud-provider"],
        ),
        (
            "kube-system",
            "system:controller:token-cleaner",
            "system:controller:token-cleaner",
            &["ServiceAccount kube-system/token-cleaner"],
        ),
        (
            "kube-system",
            "system::extension-apiserver-authentication-reader",
            reader,
            &["User system:kube-controller-manager", "User system:kube-scheduler"],
        ),
        ("kube-public", signer, signer, &["ServiceAccount kube-system/bootstrap-signer"]),
    ]
}
