use serde_json::{Value, json};

use super::*;

fn zone() -> Zone {
    let services = [
        json!({"metadata": {"name": "web", "namespace": "default"},
            "spec": {"clusterIP": "10.43.0.7", "clusterIPs": ["10.43.0.7"], "ports": [{"name": "http", "port": 80}]}}),
        json!({"metadata": {"name": "db", "namespace": "default"}, "spec": {"clusterIP": "None"}}),
        json!({"metadata": {"name": "out", "namespace": "default"},
            "spec": {"type": "ExternalName", "externalName": "example.org"}}),
    ];
    let slice = json!({
        "metadata": {"name": "db-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "db"}},
        "addressType": "IPv4",
        "endpoints": [
            {"addresses": ["10.42.0.5"], "hostname": "db-0", "conditions": {"ready": true}},
            {"addresses": ["10.42.0.6"]},
            {"addresses": ["10.42.0.9"], "conditions": {"ready": false}},
        ],
        "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}],
    });
    let node = json!({"metadata": {"name": "edge-1"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": "edge-1"}]}});
    Zone::over("Cluster.Local", fixed(services), fixed([slice]), fixed([node])).unwrap()
}

fn fixed<K: mussel_client::informer::Kind>(objects: impl IntoIterator<Item = Value>) -> Informer<K> {
    Informer::fixed(objects.into_iter().map(|object| serde_json::from_value(object).unwrap()))
}

fn ask(name: &str, record_type: RecordType) -> Vec<String> {
    match zone().lookup(&Name::from_utf8(name).unwrap(), record_type) {
        Answer::Records { answers, .. } => answers.iter().map(|record| record.data.to_string()).collect(),
        Answer::Alias { record, .. } => vec![record.data.to_string()],
        Answer::NoSuchName => vec!["no such name".to_owned()],
        Answer::NotOurs => vec!["not ours".to_owned()],
        Answer::NotYet => vec!["not yet".to_owned()],
    }
}

#[test]
fn services_have_their_address() {
    assert_eq!(ask("web.default.svc.cluster.local.", RecordType::A), ["10.43.0.7"]);
    assert_eq!(ask("WEB.default.SVC.cluster.local.", RecordType::A), ["10.43.0.7"]);
    assert_eq!(ask("web.default.svc.cluster.local.", RecordType::AAAA), Vec::<String>::new());
    assert_eq!(ask("nope.default.svc.cluster.local.", RecordType::A), ["no such name"]);
    assert_eq!(ask("web.other.svc.cluster.local.", RecordType::A), ["no such name"]);
}

#[test]
fn headless_services_have_their_ready_endpoints() {
    assert_eq!(ask("db.default.svc.cluster.local.", RecordType::A), ["10.42.0.5", "10.42.0.6"]);
    assert_eq!(ask("db-0.db.default.svc.cluster.local.", RecordType::A), ["10.42.0.5"]);
    assert_eq!(ask("10-42-0-6.db.default.svc.cluster.local.", RecordType::A), ["10.42.0.6"]);
    assert_eq!(ask("db-1.db.default.svc.cluster.local.", RecordType::A), ["no such name"]);
}

#[test]
fn ports_are_srv_records() {
    assert_eq!(
        ask("_http._tcp.web.default.svc.cluster.local.", RecordType::SRV),
        ["0 100 80 web.default.svc.cluster.local."]
    );
    assert_eq!(
        ask("_sql._tcp.db.default.svc.cluster.local.", RecordType::SRV),
        ["0 50 5432 db-0.db.default.svc.cluster.local.", "0 50 5432 10-42-0-6.db.default.svc.cluster.local."]
    );
    assert_eq!(ask("_http._udp.web.default.svc.cluster.local.", RecordType::SRV), ["no such name"]);
    assert_eq!(ask("_tcp.web.default.svc.cluster.local.", RecordType::SRV), Vec::<String>::new());
}

#[test]
fn addresses_have_their_names() {
    assert_eq!(ask("7.0.43.10.in-addr.arpa.", RecordType::PTR), ["web.default.svc.cluster.local."]);
    assert_eq!(ask("5.0.42.10.in-addr.arpa.", RecordType::PTR), ["db-0.db.default.svc.cluster.local."]);
    assert_eq!(ask("1.2.0.192.in-addr.arpa.", RecordType::PTR), ["not ours"]);
}

#[test]
fn the_rest_of_the_specification() {
    assert_eq!(ask("dns-version.cluster.local.", RecordType::TXT), ["1.1.0"]);
    assert_eq!(ask("out.default.svc.cluster.local.", RecordType::A), ["example.org."]);
    assert_eq!(ask("10-42-0-7.default.pod.cluster.local.", RecordType::A), ["10.42.0.7"]);
    assert_eq!(ask("cluster.local.", RecordType::SOA).len(), 1);
    assert_eq!(ask("default.svc.cluster.local.", RecordType::A), Vec::<String>::new());
    assert_eq!(ask("empty.svc.cluster.local.", RecordType::A), ["no such name"]);
    assert_eq!(ask("edge-1.", RecordType::A), ["192.0.2.1"]);
    assert_eq!(ask("edge-2.", RecordType::A), ["not ours"]);
    assert_eq!(ask("example.org.", RecordType::A), ["not ours"]);
}
