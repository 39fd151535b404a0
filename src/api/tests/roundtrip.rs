//! A Pod with much in it: what decoding makes of a body is what k8s-openapi's types make of it.

use k8s_openapi::api::core::v1::Pod;
use mussel_api::decode::{Format, Strictness, decode};
use mussel_api::schema::definition;
use serde_json::{Value, json};

fn fat_pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "fat", "namespace": "default", "uid": "1", "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": {"app": "fat"}, "annotations": {"a/b": "c"}, "finalizers": ["x/y"], "generation": 3,
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "2", "controller": true}],
            "managedFields": [{"manager": "m", "operation": "Apply", "apiVersion": "v1", "time": "2026-01-02T03:04:05Z",
                "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {"f:labels": {".": {}, "f:app": {}}}}}],
        },
        "spec": {
            "nodeName": "n", "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "hostNetwork": false,
            "nodeSelector": {"disk": "ssd"}, "tolerations": [{"key": "k", "operator": "Exists", "tolerationSeconds": 300}],
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "k", "operator": "In", "values": ["a", "b"]}]}]}}},
            "securityContext": {"runAsUser": 1000, "fsGroup": 5, "sysctls": [{"name": "s", "value": "1"}]},
            "initContainers": [{"name": "i", "image": "i", "command": ["sh", "-c", "true"], "restartPolicy": "Always"}],
            "containers": [{
                "name": "c", "image": "i:1", "args": ["--x"], "workingDir": "/", "imagePullPolicy": "Always", "tty": true,
                "env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "C", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": true}}}],
                "envFrom": [{"configMapRef": {"name": "cm"}, "prefix": "P_"}],
                "ports": [{"containerPort": 80, "name": "http", "protocol": "TCP", "hostPort": 8080}],
                "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "100m"}},
                "livenessProbe": {"httpGet": {"path": "/", "port": "http", "scheme": "HTTP",
                    "httpHeaders": [{"name": "h", "value": "v"}]}, "periodSeconds": 10},
                "readinessProbe": {"tcpSocket": {"port": 80}, "failureThreshold": 3},
                "lifecycle": {"preStop": {"exec": {"command": ["true"]}}},
                "securityContext": {"capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}, "privileged": false},
                "volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": true, "subPath": "s"}],
            }],
            "volumes": [
                {"name": "v", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
                {"name": "t", "projected": {"defaultMode": 420, "sources": [
                    {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
                    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                    {"downwardAPI": {"items": [{"path": "n", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}}]}},
            ],
        },
        "status": {
            "phase": "Running", "startTime": "2026-01-02T03:04:06Z", "podIP": "10.42.0.2", "podIPs": [{"ip": "10.42.0.2"}],
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-02T03:04:07Z"}],
            "containerStatuses": [{"name": "c", "image": "i:1", "imageID": "sha256:x", "ready": true, "restartCount": 1,
                "state": {"running": {"startedAt": "2026-01-02T03:04:07Z"}},
                "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "containerID": "mussel://1"}}}],
        },
    })
}

#[test]
fn decoding_agrees_with_the_typed_pod() {
    let body = serde_json::to_vec(&fat_pod()).unwrap();
    let schema = definition("io.k8s.api.core.v1.Pod").unwrap();
    let decoded = decode(&body, Format::Json, &schema, Strictness::Strict).unwrap();
    assert_eq!(decoded.object, fat_pod());
    let typed: Pod = serde_json::from_slice(&body).unwrap();
    assert_eq!(decoded.object, serde_json::to_value(typed).unwrap());
}
