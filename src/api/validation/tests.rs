use serde_json::{Value, json};

use super::*;
use crate::defaults;
use crate::field::FieldErrors;

fn texts(errors: FieldErrors) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

fn pod(spec: Value) -> Value {
    let mut pod =
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"}, "spec": spec});
    defaults::pod(&mut pod);
    pod
}

/// The errors of a pod with one container that has `extra` besides its name and image.
fn container(extra: Value) -> Vec<String> {
    let mut container = json!({"name": "a", "image": "a"});
    container.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    texts(pod_create(&pod(json!({"containers": [container]}))))
}

#[test]
fn a_fat_pod_is_fine() {
    let spec = json!({
        "initContainers": [{"name": "i", "image": "a:1", "restartPolicy": "Always",
            "readinessProbe": {"tcpSocket": {"port": "http"}}}],
        "containers": [{
            "name": "a", "image": "a:1", "ports": [{"containerPort": 80, "name": "http"}],
            "env": [{"name": "A", "value": "b"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "C", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                {"name": "D", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}],
            "envFrom": [{"configMapRef": {"name": "c"}}],
            "volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "x"}],
            "resources": {"limits": {"cpu": "1", "memory": "1Gi", "example.com/gpu": "2"}},
            "livenessProbe": {"exec": {"command": ["true"]}},
            "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
            "securityContext": {"privileged": true, "capabilities": {"add": ["NET_ADMIN"]}},
        }],
        "volumes": [{"name": "v", "emptyDir": {}}, {"name": "t", "projected": {"sources": [
            {"serviceAccountToken": {"path": "token"}}, {"configMap": {"name": "c", "items": [{"key": "a", "path": "a"}]}},
            {"downwardAPI": {"items": [{"path": "ns", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}]}}],
        "tolerations": [{"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}],
             "matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}]}}},
        "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet",
    });
    let pod = pod(spec);
    assert_eq!(texts(pod_create(&pod)), [""; 0]);
    assert_eq!(texts(meta_create(&pod, true, NameRule::of("", "Pod"))), [""; 0]);
    assert_eq!(texts(pod_update(&pod, &pod)), [""; 0]);
}

#[test]
fn bad_containers_are_told_as_upstream_tells() {
    for (extra, expected) in [
        (json!({"image": ""}), &["spec.containers[0].image: Required value"][..]),
        (
            json!({"image": " a"}),
            &["spec.containers[0].image: Invalid value: \" a\": must not have leading or trailing whitespace"],
        ),
        (
            json!({"ports": [{"containerPort": -1}]}),
            &["spec.containers[0].ports[0].containerPort: Invalid value: -1: must be between 1 and 65535, inclusive"],
        ),
        (
            json!({"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}}),
            &[
                "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            ],
        ),
        (
            json!({"resources": {"limits": {"cpu": "-1"}}}),
            &[
                "spec.containers[0].resources.limits[cpu]: Invalid value: \"-1\": must be greater than or equal to 0",
                "spec.containers[0].resources.requests[cpu]: Invalid value: \"-1\": must be greater than or equal to 0",
            ],
        ),
        (
            json!({"volumeMounts": [{"name": "x", "mountPath": "/x"}]}),
            &["spec.containers[0].volumeMounts[0].name: Not found: \"x\""],
        ),
        (
            json!({"imagePullPolicy": "Sometimes"}),
            &[
                "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
            ],
        ),
        (
            json!({"livenessProbe": {}}),
            &["spec.containers[0].livenessProbe: Required value: must specify a handler type"],
        ),
        (
            json!({"livenessProbe": {"exec": {"command": ["x"]}, "successThreshold": 2}}),
            &["spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1"],
        ),
        (
            json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.foo"}}}]}),
            &[
                "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.foo\": error converting fieldPath: field label not supported: spec.foo",
            ],
        ),
        (
            json!({"securityContext": {"privileged": true, "allowPrivilegeEscalation": false}}),
            &[
                "spec.containers[0].securityContext: Invalid value: {\"allowPrivilegeEscalation\":false,\"privileged\":true}: cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            ],
        ),
    ] {
        assert_eq!(container(extra.clone()), expected, "{extra}");
    }
    let twice = pod(json!({"containers": [{"name": "a", "image": "a"}, {"name": "a", "image": "a"}]}));
    assert_eq!(texts(pod_create(&twice)), ["spec.containers[1].name: Duplicate value: \"a\""]);
    assert_eq!(texts(pod_create(&pod(json!({"containers": []})))), ["spec.containers: Required value"]);
}

#[test]
fn kernel_parameters_have_names_of_parts() {
    let named = |name: &str| {
        let sysctls = json!([{"name": name, "value": "1"}]);
        texts(pod_create(&pod(
            json!({"containers": [{"name": "c", "image": "i"}], "securityContext": {"sysctls": sysctls}}),
        )))
    };
    for name in ["kernel.shmmax", "net/ipv4/conf.eth0/x", "safe-and-unsafe", "a_b.c"] {
        assert_eq!(named(name), [""; 0], "{name}");
    }
    for name in ["foo-", "bar..", "-a", "a_.b", "A.b", "a b"] {
        let told = named(name);
        assert!(
            told.len() == 1 && told[0].starts_with("spec.securityContext.sysctls[0].name: Invalid value"),
            "{told:?}"
        );
    }
}

#[test]
fn pods_change_their_images_and_little_else() {
    let old = pod(json!({"containers": [{"name": "a", "image": "a:1"}]}));
    let mut new = old.clone();
    new["spec"]["containers"][0]["image"] = "a:2".into();
    new["spec"]["activeDeadlineSeconds"] = 5.into();
    new["spec"]["tolerations"] = json!([{"operator": "Exists"}]);
    assert_eq!(texts(pod_update(&new, &old)), [""; 0]);
    new["spec"]["nodeName"] = "n".into();
    let errors = texts(pod_update(&new, &old));
    assert!(
        errors[0]
            .starts_with("spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,"),
        "{errors:?}"
    );
    assert!(errors[0].contains("spec.nodeName"), "{errors:?}");
    let more = pod(json!({"containers": [{"name": "a", "image": "a:1"}, {"name": "b", "image": "b"}]}));
    assert_eq!(
        texts(pod_update(&more, &old)),
        ["spec.containers: Forbidden: pod updates may not add or remove containers"]
    );
}

#[test]
fn metadata() {
    let check = |meta: Value| texts(meta_create(&json!({"metadata": meta}), true, NameRule::Subdomain));
    assert_eq!(check(json!({"namespace": "a"})), ["metadata.name: Required value: name or generateName is required"]);
    assert_eq!(check(json!({"name": "a"})), ["metadata.namespace: Required value"]);
    assert_eq!(
        check(json!({"name": "a".repeat(300), "namespace": "a"})),
        [format!("metadata.name: Invalid value: \"{}\": must be no more than 253 bytes", "a".repeat(300))]
    );
    assert!(
        check(json!({"name": "A", "namespace": "a"}))[0]
            .starts_with("metadata.name: Invalid value: \"A\": a lowercase RFC 1123 subdomain must consist of")
    );
    assert_eq!(
        check(json!({"name": "a", "namespace": "a", "generateName": "a-", "ownerReferences": [
            {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": ""}]})),
        ["metadata.ownerReferences.uid: Invalid value: \"\": must not be empty"]
    );
    let big = json!({"name": "a", "namespace": "a", "annotations": {"x": "y".repeat(300_000)}});
    assert_eq!(check(big), ["metadata.annotations: Too long: may not be more than 262144 bytes"]);
    let old = json!({"metadata": {"name": "a", "uid": "1"}});
    let new = json!({"metadata": {"name": "b", "uid": "1"}});
    assert_eq!(texts(meta_update(&new, &old)), ["metadata.name: Invalid value: \"b\": field is immutable"]);
}

fn deployment(spec: Value) -> Value {
    let mut deployment = json!({"spec": spec});
    defaults::deployment(&mut deployment);
    deployment
}

#[test]
fn deployments() {
    let template = json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "a", "image": "a"}]}});
    let good = deployment(json!({"selector": {"matchLabels": {"app": "a"}}, "template": template}));
    assert_eq!(texts(deployment_create(&good)), [""; 0]);
    let bad = deployment(json!({"replicas": -1, "selector": {"matchLabels": {"app": "b"}}, "template": template}));
    assert_eq!(
        texts(deployment_create(&bad)),
        [
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
            "spec.template.metadata.labels: Invalid value: {\"app\":\"a\"}: `selector` does not match template `labels`"
        ]
    );
    let mut moved = good.clone();
    moved["spec"]["selector"] = json!({"matchLabels": {"app": "a", "b": "c"}});
    moved["spec"]["template"]["metadata"]["labels"] = json!({"app": "a", "b": "c"});
    assert_eq!(
        texts(deployment_update(&moved, &good)),
        ["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"a\",\"b\":\"c\"}}: field is immutable"]
    );
}

#[test]
fn stateful_sets_mount_volumes_of_their_claims() {
    let set = |mounted: &str| {
        json!({"metadata": {"name": "db"}, "spec": {
            "podManagementPolicy": "OrderedReady", "updateStrategy": {"type": "OnDelete"},
            "selector": {"matchLabels": {"app": "db"}},
            "template": {"metadata": {"labels": {"app": "db"}}, "spec": {
                "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "containers": [{
                    "name": "main", "image": "x", "imagePullPolicy": "Always", "terminationMessagePolicy": "File",
                    "volumeMounts": [{"name": mounted, "mountPath": "/data"}]}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}}]}})
    };
    assert_eq!(texts(super::workload::stateful_set_create(&set("data"))), Vec::<String>::new());
    let errors = texts(super::workload::stateful_set_create(&set("other")));
    assert_eq!(errors, ["spec.template.spec.containers[0].volumeMounts[0].name: Not found: \"other\""]);
}

#[test]
fn services() {
    let service = |spec: Value| {
        let mut service = json!({"spec": spec});
        defaults::service(&mut service);
        service
    };
    let check = |spec: Value| texts(service_create(&service(spec)));
    assert_eq!(check(json!({"ports": [{"port": 80}], "selector": {"a": "b"}})), [""; 0]);
    assert_eq!(check(json!({"selector": {"a": "b"}})), ["spec.ports: Required value"]);
    assert_eq!(check(json!({"clusterIP": "None"})), [""; 0]);
    assert_eq!(check(json!({"type": "ExternalName"})), ["spec.externalName: Required value"]);
    assert_eq!(
        check(json!({"ports": [{"port": 80}, {"port": 80, "name": "b"}]})),
        [
            "spec.ports[0].name: Required value",
            "spec.ports[1]: Duplicate value: {\"port\":80,\"protocol\":\"TCP\",\"targetPort\":0}"
        ]
    );
    let old = service(json!({"ports": [{"port": 80}], "clusterIP": "10.43.0.1"}));
    let new = service(json!({"ports": [{"port": 80}], "clusterIP": "10.43.0.2"}));
    assert_eq!(
        texts(service_update(&new, &old)),
        ["spec.clusterIPs[0]: Invalid value: \"10.43.0.2\": may not change once set"]
    );
}

#[test]
fn jobs() {
    let mut job = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"spec": {
        "restartPolicy": "Never", "containers": [{"name": "a", "image": "a"}]}}}});
    defaults::job(&mut job);
    // As the registry does on create, from the Job's uid.
    job["spec"]["selector"] = json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}});
    job["spec"]["template"]["metadata"] = json!({"labels": {"batch.kubernetes.io/controller-uid": "u"}});
    assert_eq!(texts(job_create(&job)), [""; 0]);
    let mut changed = job.clone();
    changed["spec"]["completions"] = 2.into();
    assert_eq!(texts(job_update(&changed, &job)), ["spec.completions: Invalid value: 2: field is immutable"]);
    job["spec"]["template"]["spec"]["restartPolicy"] = "Always".into();
    assert_eq!(
        texts(job_create(&job)),
        ["spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""]
    );
    let mut cron = json!({"metadata": {"name": "c"}, "spec": {"schedule": "* * *", "jobTemplate": changed}});
    cron["spec"]["jobTemplate"].as_object_mut().unwrap().remove("metadata");
    defaults::cron_job(&mut cron);
    assert_eq!(
        texts(cron_job_create(&cron)),
        ["spec.schedule: Invalid value: \"* * *\": expected exactly 5 fields, found 3: [* * *]"]
    );
}

#[test]
fn config_maps_and_secrets() {
    assert_eq!(texts(config_map_create(&json!({"data": {"a": "b"}, "binaryData": {"b": "eA=="}}))), [""; 0]);
    assert!(
        texts(config_map_create(&json!({"data": {"a/b": ""}})))[0]
            .starts_with("data[a/b]: Invalid value: \"a/b\": a valid config key")
    );
    let big = json!({"data": {"a": "x".repeat(1024 * 1024 + 1)}});
    assert_eq!(texts(config_map_create(&big)), ["[]: Too long: may not be more than 1048576 bytes"]);
    let old = json!({"immutable": true, "data": {"a": "b"}});
    let new = json!({"immutable": true, "data": {"a": "c"}});
    assert_eq!(texts(config_map_update(&new, &old)), ["data: Forbidden: field is immutable when `immutable` is set"]);
    let tls = json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}});
    assert_eq!(texts(secret_create(&tls)), ["data[tls.key]: Required value"]);
    assert_eq!(
        texts(secret_update(&json!({"type": "b"}), &json!({"type": "a"}))),
        ["type: Invalid value: \"b\": field is immutable"]
    );
}

#[test]
fn roles_and_bindings() {
    let role =
        json!({"rules": [{"verbs": ["get"], "nonResourceURLs": ["/x"]}, {"apiGroups": [""], "resources": ["pods"]}]});
    assert_eq!(
        texts(role_create(&role)),
        [
            "rules[0].nonResourceURLs: Invalid value: [\"/x\"]: namespaced rules cannot apply to non-resource URLs",
            "rules[1].verbs: Required value: verbs must contain at least one value"
        ]
    );
    let mut binding =
        json!({"roleRef": {"kind": "ClusterRole", "name": "a"}, "subjects": [{"kind": "User", "name": "u"}]});
    defaults::cluster_role_binding(&mut binding);
    assert_eq!(texts(cluster_role_binding_create(&binding)), [""; 0]);
    let mut other = binding.clone();
    other["roleRef"]["name"] = "b".into();
    assert!(texts(cluster_role_binding_update(&other, &binding))[0].ends_with(": cannot change roleRef"));
}

#[test]
fn claims_and_volumes() {
    let mut claim = json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    defaults::persistent_volume_claim(&mut claim);
    assert_eq!(texts(persistent_volume_claim_create(&claim)), [""; 0]);
    let mut larger = claim.clone();
    larger["spec"]["resources"]["requests"]["storage"] = "2Gi".into();
    assert!(
        texts(persistent_volume_claim_update(&larger, &claim))[0]
            .starts_with("spec: Forbidden: spec is immutable after creation")
    );
    claim["status"]["phase"] = "Bound".into();
    assert_eq!(texts(persistent_volume_claim_update(&larger, &claim)), [""; 0]);
    let volume =
        json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "local": {"path": "/x"}}});
    assert_eq!(
        texts(persistent_volume_create(&volume)),
        ["spec.nodeAffinity: Required value: Local volume requires node affinity"]
    );
}

#[test]
fn the_rest() {
    let policy = json!({"spec": {"podSelector": {}, "ingress": [{"from": [{}, {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]}]}});
    assert_eq!(
        texts(network_policy_create(&policy)),
        [
            "spec.ingress[0].from[0]: Required value: must specify a peer",
            "spec.ingress[0].from[1].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`"
        ]
    );
    let budget = json!({"spec": {"minAvailable": 1, "maxUnavailable": "200%"}});
    assert_eq!(texts(pod_disruption_budget_create(&budget)).len(), 2);
    let range = json!({"spec": {"limits": [{"type": "Container", "min": {"cpu": "2"}, "max": {"cpu": "1"}}]}});
    assert_eq!(
        texts(limit_range_create(&range)),
        ["spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1"]
    );
    let lease = json!({"spec": {"leaseDurationSeconds": 0}});
    assert_eq!(texts(lease_create(&lease)), ["spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"]);
    let event = json!({"metadata": {"namespace": "a"}, "involvedObject": {"namespace": "b"}});
    assert_eq!(
        texts(event_create(&event)),
        ["involvedObject.namespace: Invalid value: \"b\": does not match event.namespace"]
    );
    let class = json!({"metadata": {"name": "c"}, "value": 2_000_000_000});
    assert_eq!(
        texts(priority_class_create(&class)),
        ["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"]
    );
    let ingress = json!({"spec": {"rules": [{"http": {"paths": [{"path": "x", "pathType": "Prefix",
        "backend": {"service": {"name": "s", "port": {"number": 80}}}}]}}]}});
    assert_eq!(
        texts(ingress_create(&ingress)),
        ["spec.rules[0].http.paths[0].path: Invalid value: \"x\": must be an absolute path"]
    );
    let slice = json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"protocol": "TCP", "name": ""}]});
    assert_eq!(texts(endpoint_slice_create(&slice)), [""; 0]);
}

#[test]
fn empty_and_absent_are_the_same() {
    assert!(same(&json!({"a": null, "b": [], "c": {"d": ""}}), &json!({})));
    assert!(!same(&json!({"a": 1}), &json!({})));
    assert!(!same(&json!([1, 2]), &json!([2, 1])));
}
