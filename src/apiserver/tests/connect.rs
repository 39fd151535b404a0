//! Logs, exec and proxies, against a kubelet and a pod that this test plays.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt as _;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, LogParams, PostParams};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use support::{Ca, TestServer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{self, Message};

/// Answers every request with its own path, or an upgraded echo. Speaks TLS with a certificate for `node`.
async fn kubelet(ca: &Ca) -> SocketAddr {
    let (cert, key) = ca.issue("system:node:n1", &["system:nodes"], &["n1"]);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients.unwrap())
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = hyper::service::service_fn(answer);
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades();
                let _ = connection.await;
            });
        }
    });
    address
}

async fn answer(
    mut request: http::Request<hyper::body::Incoming>,
) -> Result<http::Response<Full<bytes::Bytes>>, std::convert::Infallible> {
    let uri = request.uri().to_string();
    assert!(!request.headers().contains_key("authorization"));
    if request.headers().contains_key("upgrade") {
        let protocol = request.headers().get("sec-websocket-protocol").cloned();
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgrade.await.unwrap());
            stream.write_all(format!("{uri}\n").as_bytes()).await.unwrap();
            let mut buffer = [0; 64];
            while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                stream.write_all(&buffer[..count]).await.unwrap();
            }
        });
        let mut response =
            http::Response::builder().status(101).header("connection", "Upgrade").header("upgrade", "websocket");
        if let Some(protocol) = protocol {
            response = response.header("sec-websocket-protocol", protocol);
        }
        return Ok(response.body(Full::default()).unwrap());
    }
    if uri == "/metrics/resource" {
        // A CPU second more each time.
        let cpu = SCRAPES.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 10;
        let of = |name: &str| format!("{{container=\"c\",namespace=\"default\",pod=\"{name}\"}}");
        let mut text = format!("node_cpu_usage_seconds_total {cpu}\nnode_memory_working_set_bytes 1048576\n");
        for pod in ["web", "gone"] {
            let of = of(pod);
            text.push_str(&format!(
                "container_cpu_usage_seconds_total{of} {cpu}\ncontainer_memory_working_set_bytes{of} 2048\n\
                 container_start_time_seconds{of} 1000\n"
            ));
        }
        return Ok(http::Response::new(Full::from(text)));
    }
    let code = if uri.contains("/broken") { 400 } else { 200 };
    Ok(http::Response::builder().status(code).body(Full::from(uri)).unwrap())
}

/// How often this process's kubelets were asked what is used.
static SCRAPES: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

async fn server_with_kubelet() -> (TestServer, SocketAddr) {
    let mut ca_pem = String::new();
    let server = TestServer::start_with(|config, ca| {
        ca_pem.clone_from(&ca.pem);
        let (cert, key) = ca.issue("kube-apiserver-kubelet-client", &["system:masters"], &[]);
        config.resource_metrics = true;
        config.kubelet_ca_pem = ca.pem.clone().into_bytes();
        config.kubelet_client_cert_pem = cert.into_bytes();
        config.kubelet_client_key_pem = key.into_bytes();
    })
    .await;
    let address = kubelet(&server.ca).await;
    let admin = server.admin();
    let nodes: Api<Node> = Api::all(admin.clone());
    nodes
        .create(&PostParams::default(), &serde_json::from_value(json!({"metadata": {"name": "n1"}})).unwrap())
        .await
        .unwrap();
    let status = json!({"metadata": {"name": "n1"}, "status": {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": address.port()}}}});
    nodes.patch_status("n1", &Default::default(), &kube::api::Patch::Merge(status)).await.unwrap();
    let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::namespaced(admin.clone(), "default");
    let account = json!({"metadata": {"name": "default"}});
    accounts.create(&PostParams::default(), &serde_json::from_value(account).unwrap()).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(admin, "default");
    for (name, node, containers) in
        [("web", "n1", vec!["c"]), ("two", "n1", vec!["a", "broken"]), ("waiting", "", vec!["c"])]
    {
        let containers: Vec<_> = containers.into_iter().map(|c| json!({"name": c, "image": "x"})).collect();
        let mut pod = json!({"metadata": {"name": name}, "spec": {"containers": containers}});
        if !node.is_empty() {
            pod["spec"]["nodeName"] = node.into();
        }
        pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    }
    (server, address)
}

#[tokio::test]
async fn logs_come_from_the_kubelet() {
    let (server, _) = server_with_kubelet().await;
    let pods: Api<Pod> = Api::namespaced(server.admin(), "default");
    let params = LogParams { tail_lines: Some(3), follow: true, ..Default::default() };
    assert_eq!(pods.logs("web", &params).await.unwrap(), "/containerLogs/default/web/c?follow=true&tailLines=3");
    assert_eq!(pods.logs("waiting", &LogParams::default()).await.unwrap(), "");
    let error = |error| match error {
        kube::Error::Api(status) => (status.code, status.message),
        other => panic!("{other}"),
    };
    let (status, message) = error(pods.logs("two", &LogParams::default()).await.unwrap_err());
    assert_eq!(status, 400);
    assert_eq!(message, "a container name must be specified for pod two, choose one of: [a broken]");
    let params = LogParams { container: Some("broken".into()), ..Default::default() };
    let (status, message) = error(pods.logs("two", &params).await.unwrap_err());
    assert_eq!((status, message.as_str()), (400, "/containerLogs/default/two/broken"));
    let (status, message) = error(pods.logs("none", &LogParams::default()).await.unwrap_err());
    assert_eq!((status, message.as_str()), (404, "pods \"none\" not found"));
    server.stop().await;
}

#[tokio::test]
async fn metrics_are_what_kubelets_measure() {
    let (server, _) = server_with_kubelet().await;
    let pods: Api<Pod> = Api::namespaced(server.admin(), "default");
    let running = json!({"status": {"phase": "Running"}});
    pods.patch_status("web", &Default::default(), &kube::api::Patch::Merge(running)).await.unwrap();
    let get = async |path: &str| {
        let (code, body) =
            server.get("admin", &["system:masters"], &format!("/apis/metrics.k8s.io/v1beta1{path}")).await;
        (code, support::json(&body))
    };
    let (code, nodes) = get("/nodes").await;
    assert_eq!((code, nodes["kind"].as_str()), (200, Some("NodeMetricsList")));
    let node = &nodes["items"][0];
    assert_eq!((&node["metadata"]["name"], &node["usage"]["memory"]), (&json!("n1"), &json!("1Mi")));
    // A second of CPU in two seconds, or in some more.
    let nano: u64 = node["usage"]["cpu"].as_str().unwrap().trim_end_matches('n').parse().unwrap();
    assert!((1..=500_000_000).contains(&nano), "{node}");
    let window = node["window"].as_str().unwrap().trim_end_matches('s').parse::<f64>().unwrap();
    assert!(window >= 2.0, "{node}");

    // Pods that run, by name, label and namespace; nobody asks the kubelet again so soon.
    let (_, list) = get("/pods").await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1, "{list}");
    assert_eq!(list["items"][0]["containers"][0]["name"], "c");
    assert_eq!(get("/namespaces/default/pods/web").await.1["kind"], "PodMetrics");
    assert_eq!(get("/namespaces/default/pods/two").await.0, 404);
    assert_eq!(get("/namespaces/default/pods?labelSelector=a%3Db").await.1["items"], json!([]));
    assert_eq!(SCRAPES.load(std::sync::atomic::Ordering::SeqCst), 2);

    let resources = get("").await.1;
    let names: Vec<_> = resources["resources"].as_array().unwrap().iter().map(|r| r["name"].clone()).collect();
    assert_eq!(names, ["nodes", "pods"]);
    let (code, _) = server.get("ann", &[], "/apis/metrics.k8s.io/v1beta1/nodes").await;
    assert_eq!(code, 403);
    let service = "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.metrics.k8s.io";
    assert_eq!(server.get("admin", &["system:masters"], service).await.0, 200);
    server.stop().await;
}

/// A log that is asked for by WebSocket: what was agreed on, and all messages until the close.
async fn log_by_websocket(
    server: &TestServer,
    pod: &str,
    offered: &'static str,
) -> Result<(String, Vec<Message>), u16> {
    let stream = server.tls_stream(Some(server.ca.issue("admin", &["system:masters"], &[])), false).await;
    let path = format!("wss://localhost/api/v1/namespaces/default/pods/{pod}/log?follow=true");
    let mut request = path.into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", offered.parse().unwrap());
    let (mut socket, response) = match tokio_tungstenite::client_async(request, stream).await {
        Ok(open) => open,
        Err(tungstenite::Error::Http(response)) => return Err(response.status().as_u16()),
        Err(other) => panic!("{other}"),
    };
    let mut messages = Vec::new();
    while let Some(message) = socket.next().await {
        messages.push(message.unwrap());
    }
    Ok((response.headers()["sec-websocket-protocol"].to_str().unwrap().to_owned(), messages))
}

#[tokio::test]
async fn logs_are_read_by_websocket_too() {
    let (server, _) = server_with_kubelet().await;
    let (protocol, messages) = log_by_websocket(&server, "web", "binary.k8s.io").await.unwrap();
    assert_eq!(protocol, "binary.k8s.io");
    let log = "/containerLogs/default/web/c?follow=true";
    let close = |message: &Message| matches!(message, Message::Close(Some(frame)) if u16::from(frame.code) == 1000);
    assert!(messages.last().is_some_and(close), "{messages:?}");
    let binary = |message: &Message| match message {
        Message::Binary(bytes) => bytes.to_vec(),
        other => panic!("{other:?}"),
    };
    let seen: Vec<u8> = messages[..messages.len() - 1].iter().flat_map(binary).collect();
    assert_eq!(String::from_utf8(seen).unwrap(), log);

    let (protocol, messages) = log_by_websocket(&server, "web", "base64.binary.k8s.io").await.unwrap();
    assert_eq!(protocol, "base64.binary.k8s.io");
    let text = |message: &Message| STANDARD.decode(message.to_text().unwrap()).unwrap();
    let seen: Vec<u8> = messages[..messages.len() - 1].iter().flat_map(text).collect();
    assert_eq!(String::from_utf8(seen).unwrap(), log);

    let (_, messages) = log_by_websocket(&server, "waiting", "binary.k8s.io").await.unwrap();
    assert!(messages.iter().all(|message| message.is_close() || message.is_empty()), "{messages:?}");
    assert_eq!(log_by_websocket(&server, "web", "v4.channel.k8s.io").await.unwrap_err(), 403);
    assert_eq!(log_by_websocket(&server, "two", "binary.k8s.io").await.unwrap_err(), 400);
    assert_eq!(log_by_websocket(&server, "none", "binary.k8s.io").await.unwrap_err(), 404);
    server.stop().await;
}

#[tokio::test]
async fn exec_is_an_open_pipe_to_the_kubelet() {
    let (server, _) = server_with_kubelet().await;
    let open = |identity, path: &'static str| {
        let server = &server;
        async move {
            let stream = server.tls_stream(Some(identity), false).await;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection.with_upgrades());
            let request = http::Request::get(path)
                .header("host", "localhost")
                .header("connection", "Upgrade")
                .header("upgrade", "websocket")
                .header("sec-websocket-protocol", "v5.channel.k8s.io")
                .body(Full::<bytes::Bytes>::default())
                .unwrap();
            sender.send_request(request).await.unwrap()
        }
    };
    let path = "/api/v1/namespaces/default/pods/web/exec?command=sh&stdin=true&stdout=true";
    let admin = server.ca.issue("admin", &["system:masters"], &[]);
    let mut response = open(admin.clone(), path).await;
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
    let mut stream = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    let greeting = "/exec/default/web/c?input=1&output=1&command=sh\n";
    let mut seen = vec![0; greeting.len()];
    stream.read_exact(&mut seen).await.unwrap();
    assert_eq!(String::from_utf8(seen).unwrap(), greeting);
    stream.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"ping");

    // Who may only read pods may not exec, though a WebSocket is a GET.
    let roles: Api<k8s_openapi::api::rbac::v1::ClusterRole> = Api::all(server.admin());
    let role = json!({"metadata": {"name": "reader"},
        "rules": [{"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["get"]}]});
    roles.create(&PostParams::default(), &serde_json::from_value(role).unwrap()).await.unwrap();
    let bindings: Api<k8s_openapi::api::rbac::v1::ClusterRoleBinding> = Api::all(server.admin());
    let binding = json!({"metadata": {"name": "reader"}, "subjects": [{"kind": "User", "name": "ann", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reader"}});
    bindings.create(&PostParams::default(), &serde_json::from_value(binding).unwrap()).await.unwrap();
    let response = open(server.ca.issue("ann", &[], &[]), path).await;
    assert_eq!(response.status(), 403);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("cannot create resource \\\"pods/exec\\\""), "{body:?}");
    let path = "/api/v1/namespaces/default/pods/waiting/exec?command=sh&stdout=true";
    assert_eq!(open(admin, path).await.status(), 400);
    server.stop().await;
}

#[tokio::test]
async fn proxies_reach_the_kubelet_but_not_this_machine() {
    let (server, address) = server_with_kubelet().await;
    let masters = &["system:masters"];
    let (status, body) = server.get("admin", masters, "/api/v1/nodes/n1/proxy/metrics?x=y").await;
    assert_eq!((status, body.as_str()), (200, "/metrics?x=y"));
    let path = format!("/api/v1/nodes/n1:{}/proxy/configz", address.port());
    assert_eq!(server.get("admin", masters, &path).await, (200, "/configz".to_owned()));
    let request = http::Request::get("/api/v1/nodes/n1/proxy?x=y").body(Full::default()).unwrap();
    let identity = server.ca.issue("admin", masters, &[]);
    let (parts, _) = server.raw(Some(identity), true, request).await;
    assert_eq!(
        (parts.status.as_u16(), parts.headers["location"].to_str().unwrap()),
        (301, "/api/v1/nodes/n1/proxy/?x=y")
    );
    assert_eq!(server.get("ann", &[], "/api/v1/nodes/n1/proxy/metrics").await.0, 403);

    let services: Api<Service> = Api::namespaced(server.admin(), "default");
    let service = json!({"metadata": {"name": "web"}, "spec": {"ports": [{"name": "http", "port": 80}]}});
    services.create(&PostParams::default(), &serde_json::from_value(service).unwrap()).await.unwrap();
    let ask = |path: &'static str| server.get("admin", masters, path);
    let (status, body) = ask("/api/v1/namespaces/default/services/web:http/proxy/").await;
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("no endpoints available for service \\\"web\\\""), "{body}");
    let slices: Api<EndpointSlice> = Api::namespaced(server.admin(), "default");
    let slice = json!({"metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": address.port(), "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.42.0.9"], "conditions": {"ready": false}}]});
    slices.create(&PostParams::default(), &serde_json::from_value(slice).unwrap()).await.unwrap();
    assert_eq!(ask("/api/v1/namespaces/default/services/web:http/proxy/").await.0, 503);
    assert_eq!(ask("/api/v1/namespaces/default/services/web:81/proxy/").await.0, 503);
    assert_eq!(ask("/api/v1/namespaces/default/services/ftp:web:http/proxy/").await.0, 400);
    server.stop().await;
}
