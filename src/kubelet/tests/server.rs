//! The kubelet's HTTPS server: who gets in, logs, and streams that are handed to the runtime.

mod fake;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use axum::body::Body;
use fake::{NODE, Node};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

struct Pki {
    ca_pem: String,
    ca: CertificateDer<'static>,
    server: (CertificateDer<'static>, Vec<u8>),
    admin: (CertificateDer<'static>, Vec<u8>),
    port: u16,
}

fn pki() -> &'static Pki {
    static PKI: OnceLock<Pki> = OnceLock::new();
    PKI.get_or_init(|| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let leaf = |names: &[&str], user: &str, group: &str, usage| {
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            let mut params = CertificateParams::new(names).unwrap();
            params.distinguished_name.push(DnType::CommonName, user);
            params.distinguished_name.push(DnType::OrganizationName, group);
            params.extended_key_usages = vec![usage];
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap();
            (certificate.der().clone(), key.serialize_der())
        };
        Pki {
            ca_pem: ca.pem(),
            ca: ca.der().clone(),
            server: leaf(&["localhost"], NODE, "x", ExtendedKeyUsagePurpose::ServerAuth),
            admin: leaf(&[], "admin", "system:masters", ExtendedKeyUsagePurpose::ClientAuth),
            port: std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port(),
        }
    })
}

fn key(der: &[u8]) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der.to_vec()))
}

fn server_config() -> mussel_kubelet::ServerConfig {
    let pki = pki();
    let signing = rustls::crypto::ring::sign::any_supported_type(&key(&pki.server.1)).unwrap();
    mussel_kubelet::ServerConfig {
        listen: SocketAddr::from(([127, 0, 0, 1], pki.port)),
        certificate: Arc::new(SingleCertAndKey::from(CertifiedKey::new(vec![pki.server.0.clone()], signing))),
        client_ca_pem: pki.ca_pem.clone().into_bytes(),
    }
}

async fn ask(path: &str, admin: bool, upgrade: bool) -> Response<hyper::body::Incoming> {
    let pki = pki();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(pki.ca.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match admin {
        true => builder.with_client_auth_cert(vec![pki.admin.0.clone()], key(&pki.admin.1)).unwrap(),
        false => builder.with_no_client_auth(),
    };
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let tcp = tokio::net::TcpStream::connect(("127.0.0.1", pki.port)).await.unwrap();
    let stream = connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let mut request = Request::get(path).header("host", "localhost");
    if upgrade {
        request = request.header("connection", "Upgrade").header("upgrade", "test");
    }
    sender.send_request(request.body(Body::empty()).unwrap()).await.unwrap()
}

async fn text(response: Response<hyper::body::Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_those_who_may_get_answers_and_streams_reach_the_runtime() {
    let Some(mut node) = Node::new() else { return };
    node.server = Some(server_config);
    let api = node.api.clone();
    api.put(
        "pods",
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"},
        "spec": {"nodeName": NODE, "containers": [{"name": "c", "image": "busybox"}]}}),
    );
    node.start();
    let pod = api
        .until("pods", "default", "p", |o| {
            o.is_some_and(|o| o.pointer("/status/containerStatuses/0/state/running").is_some())
        })
        .await
        .unwrap();

    assert_eq!(ask("/pods", false, false).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(text(ask("/healthz", true, false).await).await, "ok");
    let pods = text(ask("/pods", true, false).await).await;
    assert!(pods.contains("\"phase\":\"Running\""), "{pods}");
    let metrics = text(ask("/metrics", true, false).await).await;
    assert!(metrics.contains("kubelet_running_pods 1\n"), "{metrics}");
    let resource = text(ask("/metrics/resource", true, false).await).await;
    assert!(resource.contains("node_memory_working_set_bytes "), "{resource}");
    let summary: serde_json::Value =
        serde_json::from_str(&text(ask("/stats/summary", true, false).await).await).unwrap();
    assert_eq!(summary["node"]["nodeName"], NODE);
    assert_eq!(summary["pods"][0]["podRef"]["name"], "p");

    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let log = node.dir.path().join(format!("logs/default_p_{uid}/c/0.log"));
    std::fs::write(&log, "2026-01-01T00:00:01Z stdout F one\n2026-01-01T00:00:02Z stdout F two\n").unwrap();
    assert_eq!(text(ask("/containerLogs/default/p/c?tailLines=1", true, false).await).await, "two\n");
    let missing = ask("/containerLogs/default/p/c?previous=true", true, false).await;
    assert_eq!(missing.status(), StatusCode::BAD_REQUEST);
    assert_eq!(text(missing).await, "previous terminated container \"c\" in pod \"p\" not found");
    assert_eq!(ask("/containerLogs/default/none/c", true, false).await.status(), StatusCode::NOT_FOUND);

    // The runtime's own server: answers one upgrade and echoes.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    *node.runtime.streams.lock().unwrap() = format!("http://{}", listener.local_addr().unwrap());
    let runtime = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: test\r\n\r\n")
            .await
            .unwrap();
        let mut word = [0; 5];
        stream.read_exact(&mut word).await.unwrap();
        stream.write_all(&word).await.unwrap();
        String::from_utf8(head).unwrap()
    });
    let path = "/exec/default/p/c?command=echo&command=hi&output=1";
    let mut answer = ask(path, true, true).await;
    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(answer.headers()["upgrade"], "test");
    let mut stream = TokioIo::new(hyper::upgrade::on(&mut answer).await.unwrap());
    stream.write_all(b"hello").await.unwrap();
    let mut echo = Vec::new();
    stream.read_to_end(&mut echo).await.unwrap();
    assert_eq!(echo, b"hello");
    assert!(runtime.await.unwrap().starts_with("GET /exec/echo-hi HTTP/1.1\r\n"));
    node.stop().await;
}
