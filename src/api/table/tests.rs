//! Objects and what `kubectl get` shows of them.

use serde_json::json;

use super::*;
use crate::resource::{self, by_kind};

const NOW: &str = "2026-01-10T00:00:00Z";

/// The cells as text, the wide ones after a bar.
fn show(group: &str, kind: &str, mut object: Value) -> String {
    let version = if group == "autoscaling" { "v2" } else { "v1" };
    let resource = by_kind(group, version, kind).unwrap();
    object["metadata"]["creationTimestamp"] = "2026-01-09T23:55:00Z".into();
    let cells = row(&resource, &object, NOW.parse().unwrap());
    let columns = columns(&resource);
    let columns = columns.as_array().unwrap();
    assert_eq!(columns.len(), cells.len());
    let mut out = String::new();
    for (column, cell) in columns.iter().zip(&cells) {
        if column["priority"] == 1 && !out.contains('|') {
            out.push_str("| ");
        }
        out.push_str(&text::scalar(Some(cell), ""));
        out.push_str("  ");
    }
    out.trim_end().to_owned()
}

#[test]
fn ages() {
    for (seconds, shown) in [
        (-5, "<invalid>"),
        (-1, "0s"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (185, "3m5s"),
        (600, "10m"),
        (3 * 3600 - 1, "179m"),
        (3 * 3600, "3h"),
        (4 * 3600 + 300, "4h5m"),
        (20 * 3600, "20h"),
        (50 * 3600, "2d2h"),
        (9 * 86400 + 3600, "9d"),
        (800 * 86400, "2y70d"),
        (3000 * 86400, "8y"),
    ] {
        assert_eq!(human_duration(seconds), shown, "{seconds}");
    }
}

fn pod(status: Value) -> String {
    let spec = json!({"nodeName": "n1", "containers": [{"name": "a"}, {"name": "b"}],
        "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]});
    show("", "Pod", json!({"metadata": {"name": "p"}, "spec": spec, "status": status}))
}

#[test]
fn pods_tell_what_goes_on() {
    let done = json!({"name": "i", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
    let side = json!({"name": "s", "started": true, "ready": true, "state": {"running": {}}});
    let up = |name: &str| json!({"name": name, "ready": true, "restartCount": 0, "state": {"running": {}}});
    assert_eq!(pod(json!({"phase": "Pending"})), "p  0/3  Pending  0  5m  | <none>  n1  <none>  <none>");
    assert_eq!(
        pod(json!({"phase": "Running", "podIPs": [{"ip": "10.42.0.9"}], "initContainerStatuses": [done, side],
            "containerStatuses": [up("a"), up("b")]})),
        "p  3/3  Running  0  5m  | 10.42.0.9  n1  <none>  <none>"
    );
    let status = json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]});
    assert!(pod(status).starts_with("p  0/3  Init:0/2  0"));
    let status = json!({"phase": "Pending", "initContainerStatuses":
        [{"name": "i", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]});
    assert!(pod(status).starts_with("p  0/3  Init:CrashLoopBackOff  2  "));
    let crashed = json!({"name": "b", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"exitCode": 1, "finishedAt": "2026-01-09T23:59:00Z"}}});
    assert!(
        pod(
            json!({"phase": "Running", "initContainerStatuses": [done, side], "containerStatuses": [up("a"), crashed]})
        )
        .starts_with("p  2/3  CrashLoopBackOff  2 (60s ago)  5m")
    );
    let ended = |code: i64, reason: &str| json!({"state": {"terminated": {"exitCode": code, "reason": reason}}});
    assert!(pod(json!({"phase": "Succeeded", "containerStatuses": [ended(0, "Completed")]})).contains("Completed"));
    assert!(pod(json!({"phase": "Failed", "containerStatuses": [ended(3, "Error")]})).contains("  Error  "));
    assert!(pod(json!({"phase": "Failed", "containerStatuses": [ended(3, "")]})).contains("  ExitCode:3  "));
    assert!(pod(json!({"phase": "Failed", "reason": "Evicted"})).contains("  Evicted  "));
    let deleting = json!({"metadata": {"name": "p", "deletionTimestamp": NOW}, "status": {"phase": "Running"}});
    assert!(show("", "Pod", deleting).contains("  Terminating  "));
}

#[test]
fn workloads() {
    let template = json!({"spec": {"containers": [{"name": "c", "image": "i:1"}, {"name": "d", "image": "j"}]}});
    let selector = json!({"matchLabels": {"app": "w"}, "matchExpressions": [{"key": "x", "operator": "In", "values": ["b", "a"]}]});
    let spec = json!({"replicas": 3, "template": template, "selector": selector});
    assert_eq!(
        show(
            "apps",
            "Deployment",
            json!({"metadata": {"name": "w"}, "spec": spec,
            "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2}})
        ),
        "w  2/3  3  2  5m  | c,d  i:1,j  app=w,x in (a,b)"
    );
    assert_eq!(
        show("apps", "StatefulSet", json!({"metadata": {"name": "w"}, "spec": spec})),
        "w  0/3  5m  | c,d  i:1,j"
    );
    let job = json!({"metadata": {"name": "j"}, "spec": {"completions": 2, "parallelism": 1, "template": template},
        "status": {"succeeded": 1, "startTime": "2026-01-09T23:58:30Z"}});
    assert_eq!(show("batch", "Job", job), "j  Running  1/2  90s  5m  | c,d  i:1,j  <none>");
    let cron = json!({"metadata": {"name": "c"}, "spec": {"schedule": "* * * * *", "suspend": false}});
    assert!(show("batch", "CronJob", cron).starts_with("c  * * * * *  <none>  False  0  <none>  5m"));
    let hpa = json!({"metadata": {"name": "h"}, "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "w"},
        "minReplicas": 1, "maxReplicas": 5, "metrics": [{"type": "Resource", "resource": {"name": "cpu",
        "target": {"type": "Utilization", "averageUtilization": 80}}}]}, "status": {"currentReplicas": 1}});
    assert_eq!(show("autoscaling", "HorizontalPodAutoscaler", hpa), "h  Deployment/w  cpu: <unknown>/80%  1  5  1  5m");
}

#[test]
fn services_and_nodes() {
    let service = json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "clusterIPs": ["10.43.0.1"],
        "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}, {"port": 53, "protocol": "UDP"}], "selector": {"a": "b"}}});
    assert_eq!(show("", "Service", service), "s  NodePort  10.43.0.1  <none>  80:30080/TCP,53/UDP  5m  | a=b");
    let balanced = json!({"metadata": {"name": "s"}, "spec": {"type": "LoadBalancer", "clusterIP": "10.43.0.1"}});
    assert!(show("", "Service", balanced).contains("<pending>  <none>"));
    let endpoints = json!({"metadata": {"name": "e"}, "subsets": [{"addresses": [{"ip": "1.1.1.1"}, {"ip": "1.1.1.2"}],
        "ports": [{"port": 80}, {"port": 81}]}]});
    assert_eq!(show("", "Endpoints", endpoints), "e  1.1.1.1:80,1.1.1.2:80,1.1.1.1:81 + 1 more...  5m");
    let node = json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": "true"}},
        "spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}],
        "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}], "nodeInfo": {"kubeletVersion": "v1"}}});
    assert_eq!(
        show("", "Node", node),
        "n  Ready,SchedulingDisabled  control-plane  5m  v1  | 10.0.0.1  <none>  <unknown>  <unknown>  <unknown>"
    );
}

#[test]
fn events_of_both_groups_show_the_same() {
    let core = json!({"metadata": {"name": "e"}, "type": "Normal", "reason": "Pulled", "message": "ok\n", "count": 3,
        "involvedObject": {"kind": "Pod", "name": "p"}, "source": {"component": "kubelet", "host": "n"},
        "firstTimestamp": "2026-01-09T23:00:00Z", "lastTimestamp": "2026-01-09T23:59:30Z"});
    let shown = show("", "Event", core);
    assert_eq!(shown, "30s  Normal  Pulled  pod/p  |   kubelet, n  ok  60m  3  e");
    let new = json!({"metadata": {"name": "e"}, "type": "Normal", "reason": "Pulled", "note": "ok", "deprecatedCount": 3,
        "regarding": {"kind": "Pod", "name": "p"}, "deprecatedSource": {"component": "kubelet", "host": "n"},
        "deprecatedFirstTimestamp": "2026-01-09T23:00:00Z", "deprecatedLastTimestamp": "2026-01-09T23:59:30Z"});
    assert_eq!(show("events.k8s.io", "Event", new), shown);
}

#[test]
fn every_kind_has_as_many_cells_as_columns() {
    for row in resource::builtin() {
        let object = json!({"metadata": {"name": "x"}});
        let cells = super::row(row, &object, NOW.parse().unwrap());
        assert_eq!(Some(cells.len()), columns(row).as_array().map(Vec::len), "{}", row.schema);
    }
}
