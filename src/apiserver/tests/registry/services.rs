//! Services: addresses and node ports.

use serde_json::{Value, json};

use crate::support::Cluster;

const SERVICES: &str = "/api/v1/namespaces/default/services";

fn service(name: &str, spec: Value) -> Value {
    let mut object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": {"a": "b"}, "ports": [{"port": 80}]}});
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    object
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_taken_kept_and_given_back() {
    let cluster = Cluster::start().await;
    let made = cluster.post(SERVICES, service("s", json!({}))).await.ok();
    let address = made["spec"]["clusterIP"].as_str().unwrap().to_owned();
    assert!(address.starts_with("10.43."), "{address}");
    assert_eq!(made["spec"]["clusterIPs"], json!([address]));
    assert_eq!(
        (made["spec"]["ipFamilyPolicy"].as_str(), &made["spec"]["ipFamilies"]),
        (Some("SingleStack"), &json!(["IPv4"]))
    );
    let reservation = format!("/apis/networking.k8s.io/v1/ipaddresses/{address}");
    assert_eq!(cluster.get(&reservation).await.ok()["spec"]["parentRef"]["name"], "s");

    let taken = cluster.post(SERVICES, service("t", json!({"clusterIP": address}))).await.refused();
    assert_eq!(taken.0, 422);
    assert!(taken.2.contains("provided IP is already allocated"), "{}", taken.2);
    let outside = cluster.post(SERVICES, service("t", json!({"clusterIP": "10.99.0.1"}))).await.refused();
    assert!(outside.2.contains("is not in the valid range. The range of valid IPs is 10.43.0.0/16"), "{}", outside.2);

    let updated = cluster.put(&format!("{SERVICES}/s"), service("s", json!({"ports": [{"port": 81}]}))).await.ok();
    assert_eq!(updated["spec"]["clusterIP"], address);
    cluster.delete(&format!("{SERVICES}/s"), Value::Null).await.ok();
    assert_eq!(cluster.get(&reservation).await.code, 404);
    let wanted = cluster.post(SERVICES, service("t", json!({"clusterIP": address}))).await.ok();
    assert_eq!(wanted["spec"]["clusterIP"], address);
}

#[tokio::test(flavor = "multi_thread")]
async fn node_ports_follow_the_type() {
    let cluster = Cluster::start().await;
    let made = cluster.post(SERVICES, service("s", json!({"type": "NodePort"}))).await.ok();
    let port = made["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    assert!((30000..=32767).contains(&port));
    let clash = service("t", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]}));
    let refused = cluster.post(SERVICES, clash.clone()).await.refused();
    assert!(
        refused.2.contains("spec.ports[0].nodePort: Invalid value: ")
            && refused.2.contains("provided port is already allocated"),
        "{}",
        refused.2
    );
    let low = service("t", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]}));
    let refused = cluster.post(SERVICES, low).await.refused();
    assert!(refused.2.contains("The range of valid ports is 30000-32767"), "{}", refused.2);
    let inner = cluster.patch(&format!("{SERVICES}/s"), "merge", json!({"spec": {"type": "ClusterIP"}})).await.ok();
    assert!(inner["spec"]["ports"][0]["nodePort"].is_null());
    assert_eq!(cluster.post(SERVICES, clash).await.ok()["spec"]["ports"][0]["nodePort"], port);
}

#[tokio::test(flavor = "multi_thread")]
async fn headless_and_external_services_have_no_address() {
    let cluster = Cluster::start().await;
    let headless = cluster.post(SERVICES, service("h", json!({"clusterIP": "None"}))).await.ok();
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    let external = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "e"},
        "spec": {"type": "ExternalName", "externalName": "example.com"}});
    let external = cluster.post(SERVICES, external).await.ok();
    assert!(external["spec"]["clusterIP"].is_null());
    let inner = json!({"spec": {"type": "ClusterIP", "externalName": null, "ports": [{"port": 80}]}});
    let inner = cluster.patch(&format!("{SERVICES}/e"), "merge", inner).await.ok();
    assert!(inner["spec"]["clusterIP"].as_str().unwrap().starts_with("10.43."));
    let back =
        json!({"spec": {"type": "ExternalName", "externalName": "example.com", "clusterIP": null, "clusterIPs": null}});
    let back = cluster.patch(&format!("{SERVICES}/e"), "merge", back).await.ok();
    assert!(back["spec"]["clusterIP"].is_null());
    let addresses = cluster.get("/apis/networking.k8s.io/v1/ipaddresses").await.ok();
    assert_eq!(addresses["items"].as_array().unwrap().len(), 1, "only that of default/kubernetes");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_get_an_address_each() {
    let cluster =
        Cluster::start_with(|config| config, |config| config.service_cidr = "10.43.0.0/26".parse().unwrap()).await;
    let creations = (0..40).map(|index| {
        let cluster = cluster.as_user("system:admin", &["system:masters"]);
        async move { cluster.post(SERVICES, service(&format!("s{index}"), json!({}))).await.ok() }
    });
    let made = futures::future::join_all(creations).await;
    let addresses: std::collections::BTreeSet<String> =
        made.iter().map(|service| service["spec"]["clusterIP"].as_str().unwrap().to_owned()).collect();
    assert_eq!(addresses.len(), 40);
}
