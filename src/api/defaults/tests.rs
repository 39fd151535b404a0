use serde_json::json;

use super::*;

fn defaulted(function: fn(&mut Value), mut value: Value) -> Value {
    function(&mut value);
    let once = value.clone();
    function(&mut value);
    assert_eq!(once, value, "a repeat changes nothing");
    value
}

#[test]
fn a_minimal_pod() {
    let pod = defaulted(
        super::pod,
        json!({"spec": {
            "serviceAccount": "me",
            "containers": [{
                "name": "a", "image": "nginx",
                "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m"}},
                "livenessProbe": {"httpGet": {"port": 80}},
                "env": [{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            }],
            "volumes": [{"name": "scratch"}, {"name": "s", "secret": {"secretName": "x"}}],
        }}),
    );
    assert_eq!(
        pod,
        json!({"spec": {
            "containers": [{
                "name": "a", "image": "nginx", "imagePullPolicy": "Always",
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m", "memory": "1Gi"}},
                "livenessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1,
                    "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                "env": [{"name": "X", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}}],
            }],
            "volumes": [{"name": "scratch", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}}],
            "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler",
            "terminationGracePeriodSeconds": 30, "securityContext": {}, "enableServiceLinks": true,
            "serviceAccount": "me", "serviceAccountName": "me",
        }})
    );
}

#[test]
fn host_network_ports_are_host_ports_in_pods_only() {
    let spec =
        json!({"hostNetwork": true, "containers": [{"name": "a", "image": "a:1", "ports": [{"containerPort": 80}]}]});
    let pod = defaulted(super::pod, json!({"spec": spec.clone()}));
    assert_eq!(pod["spec"]["containers"][0]["ports"][0]["hostPort"], 80);
    let deployment = defaulted(super::deployment, json!({"spec": {"template": {"spec": spec}}}));
    let template = &deployment["spec"]["template"]["spec"];
    assert_eq!(template["containers"][0]["ports"][0], json!({"containerPort": 80, "protocol": "TCP"}));
    assert_eq!(template.get("enableServiceLinks"), None);
    assert_eq!(deployment["spec"]["strategy"]["rollingUpdate"], json!({"maxSurge": "25%", "maxUnavailable": "25%"}));
}

#[test]
fn pull_policy_follows_the_tag() {
    for (image, policy) in [
        ("nginx", "Always"),
        ("nginx:latest", "Always"),
        ("nginx:1", "IfNotPresent"),
        ("host:5000/nginx", "Always"),
        ("host:5000/nginx:1", "IfNotPresent"),
        ("nginx@sha256:00", "IfNotPresent"),
        ("nginx:latest@sha256:00", "Always"),
    ] {
        assert_eq!(image_pull_policy(image), policy, "{image}");
    }
}

#[test]
fn pod_level_requests_are_what_the_containers_ask_for() {
    let pod = defaulted(
        super::pod,
        json!({"spec": {
            "resources": {"limits": {"cpu": "4", "memory": "1Gi"}},
            "initContainers": [{"name": "i", "image": "a", "resources": {"requests": {"cpu": "3"}}}],
            "containers": [{"name": "a", "image": "a", "resources": {"requests": {"cpu": "1"}}}],
        }}),
    );
    assert_eq!(pod["spec"]["resources"]["requests"], json!({"cpu": "3", "memory": "1Gi"}));
}

#[test]
fn services() {
    let service = defaulted(
        super::service,
        json!({"spec": {"ports": [{"port": 80}], "sessionAffinity": "ClientIP", "type": "LoadBalancer"}}),
    );
    assert_eq!(
        service["spec"],
        json!({"ports": [{"port": 80, "targetPort": 80, "protocol": "TCP"}], "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}}, "type": "LoadBalancer",
            "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster", "allocateLoadBalancerNodePorts": true})
    );
    let external = defaulted(super::service, json!({"spec": {"type": "ExternalName", "externalName": "a.b"}}));
    assert_eq!(external["spec"], json!({"type": "ExternalName", "externalName": "a.b", "sessionAffinity": "None"}));
}

#[test]
fn jobs_and_secrets() {
    let job = defaulted(
        super::job,
        json!({"spec": {"template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}}}}),
    );
    assert_eq!(job["metadata"]["labels"], json!({"a": "b"}));
    assert_eq!((&job["spec"]["completions"], &job["spec"]["parallelism"]), (&json!(1), &json!(1)));
    let queue = defaulted(super::job, json!({"spec": {"parallelism": 3}}));
    assert_eq!(queue["spec"].get("completions"), None);
    let secret = defaulted(super::secret, json!({"data": {"a": "eA=="}, "stringData": {"a": "y", "b": "z"}}));
    assert_eq!(secret, json!({"type": "Opaque", "data": {"a": "eQ==", "b": "eg=="}}));
}

#[test]
fn limit_ranges_fill_from_max_and_min() {
    let range = defaulted(
        super::limit_range,
        json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}}]}}),
    );
    assert_eq!(
        range["spec"]["limits"][0],
        json!({"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}, "default": {"cpu": "2"},
            "defaultRequest": {"cpu": "2", "memory": "1Mi"}})
    );
}
