//! APIServices, and the extension API servers behind them.

use std::sync::atomic::Ordering;
use std::time::Duration;

use mussel_apiserver::{ServerTls, ServingCert};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::extension_server::{Extension, FLUNDERS, FrontProxy, GROUP, authority};
use crate::support::{Answer, Cluster};

const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const OURS: &str = "/apis/apiregistration.k8s.io/v1/apiservices/v1.wardle.example.com";
const AGGREGATED: (&str, &str) =
    ("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json");

/// Asks until the answer is as wanted.
async fn until(cluster: &Cluster, path: &str, headers: &[(&str, &str)], wanted: impl Fn(&Answer) -> bool) -> Answer {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let answer = cluster.send("GET", path, headers, "").await;
        if wanted(&answer) {
            return answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "{path}: {} {}", answer.code, answer.body);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn available(answer: &Answer) -> (&str, &str) {
    let condition = &answer.body["status"]["conditions"][0];
    (condition["status"].as_str().unwrap_or_default(), condition["reason"].as_str().unwrap_or_default())
}

async fn passed(cluster: &Cluster) {
    until(cluster, OURS, &[], |answer| available(answer) == ("True", "Passed")).await;
}

fn groups(list: &Value) -> Vec<&str> {
    let groups = list["groups"].as_array().unwrap().iter();
    groups.map(|group| group["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn what_is_served_here_has_its_api_services() {
    let cluster = Cluster::start().await;
    let apps = cluster.get(&format!("{SERVICES}/v1.apps")).await.ok();
    assert_eq!(apps["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "onstart");
    assert_eq!((&apps["spec"]["groupPriorityMinimum"], &apps["spec"]["versionPriority"]), (&json!(17_800), &json!(15)));
    assert_eq!(apps["status"]["conditions"][0]["message"], "Local APIServices are always available");
    assert_eq!(cluster.get(&format!("{SERVICES}/v1.")).await.ok()["spec"]["groupPriorityMinimum"], 18_000);

    // A deleted one comes back.
    let uid = apps["metadata"]["uid"].clone();
    cluster.delete(&format!("{SERVICES}/v1.apps"), Value::Null).await.ok();
    let path = format!("{SERVICES}/v1.apps");
    until(&cluster, &path, &[], |answer| answer.code == 200 && answer.body["metadata"]["uid"] != uid).await;

    // One of a CRD comes and goes with it.
    let crd = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "cows.farm.example.com"},
        "spec": {"group": "farm.example.com", "scope": "Cluster", "names": {"plural": "cows", "kind": "Cow"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    cluster.post(crds, crd).await.ok();
    let path = format!("{SERVICES}/v1.farm.example.com");
    let cows = until(&cluster, &path, &[], |answer| answer.code == 200).await.ok();
    assert_eq!(cows["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "true");
    assert_eq!(cows["spec"]["groupPriorityMinimum"], 1_000);
    cluster.delete(&format!("{crds}/cows.farm.example.com"), Value::Null).await.ok();
    until(&cluster, &path, &[], |answer| answer.code == 404).await;

    // A second server finds nothing to write.
    let second = cluster.another(|_| {}).await;
    let of_api_services = |answer: Answer| answer.ok()["items"].to_string();
    let list = of_api_services(second.get(SERVICES).await);
    assert_eq!(of_api_services(cluster.get(SERVICES).await), list);
    assert!(!list.contains("v1.apiregistration"));
}

#[tokio::test]
async fn requests_go_to_the_extension_server_in_the_clients_name() {
    for alpn in [&["h2", "http/1.1"][..], &["http/1.1"]] {
        let front_proxy = FrontProxy::new();
        let cluster = front_proxy.cluster().await;
        let extension = Extension::start(&front_proxy, alpn).await;
        extension.register(&cluster).await;
        passed(&cluster).await;
        let list = cluster.send("GET", &format!("{FLUNDERS}?limit=5"), &[("x-remote-user", "mallory")], "").await.ok();
        assert_eq!(list["kind"], "FlunderList");
        {
            let seen = extension.seen.lock().unwrap();
            let (method, target, headers) = seen.last().unwrap();
            assert_eq!(
                (method.as_str(), target.as_str()),
                ("GET", "/apis/wardle.example.com/v1/namespaces/default/flunders?limit=5")
            );
            let users: Vec<_> = headers.get_all("x-remote-user").iter().collect();
            assert_eq!(users, ["system:admin"]);
            let groups: Vec<_> = headers.get_all("x-remote-group").iter().collect();
            assert_eq!(groups, ["system:masters", "system:authenticated"]);
        }
        // Bodies beyond what we would take ourselves pass through.
        let large = vec![b'x'; 8 << 20];
        let created = cluster.send("POST", FLUNDERS, &[], large).await.ok();
        assert_eq!(created["bytes"], 8 << 20);
        // A watch is told while it is open.
        let mut events = cluster.watch(&format!("{FLUNDERS}?watch=true")).await;
        assert_eq!(events.brief().await, "ADDED a");
        // Refusals are the extension server's.
        assert_eq!(cluster.get("/apis/wardle.example.com/v1/namespaces/default/cows").await.code, 404);
        // Who may not, does not get there.
        let before = extension.seen.lock().unwrap().len();
        let refused = cluster.as_user("ann", &[]).get(FLUNDERS).await.refused();
        assert_eq!((refused.0, refused.1.as_str()), (403, "Forbidden"));
        assert_eq!(extension.seen.lock().unwrap().len(), before);
    }
}

#[tokio::test]
async fn availability_follows_what_can_be_reached() {
    let front_proxy = FrontProxy::new();
    let cluster = front_proxy.cluster().await;
    let extension = Extension::start(&front_proxy, &["h2"]).await;
    cluster.post(SERVICES, extension.api_service()).await.ok();
    until(&cluster, OURS, &[], |answer| available(answer) == ("False", "ServiceNotFound")).await;
    let answer = cluster.get(FLUNDERS).await;
    assert_eq!((answer.code, &answer.body), (503, &json!("service unavailable\n")));
    extension.service(&cluster).await;
    let seen = until(&cluster, OURS, &[], |answer| available(answer) == ("False", "EndpointsNotFound")).await;
    assert_eq!(
        seen.body["status"]["conditions"][0]["message"],
        "cannot find endpointslices for service/wardle in \"default\""
    );
    extension.endpoints(&cluster, false).await;
    until(&cluster, OURS, &[], |answer| available(answer) == ("False", "MissingEndpoints")).await;
    extension.ill.store(true, Ordering::SeqCst);
    extension.endpoints(&cluster, true).await;
    until(&cluster, OURS, &[], |answer| available(answer) == ("False", "FailedDiscoveryCheck")).await;
    extension.ill.store(false, Ordering::SeqCst);
    passed(&cluster).await;
    assert_eq!(cluster.get(FLUNDERS).await.code, 200);

    // A port that the Service does not have, and another authority.
    let mut other = cluster.get(OURS).await.ok();
    other["spec"]["service"]["port"] = 1.into();
    cluster.put(OURS, other.clone()).await.ok();
    until(&cluster, OURS, &[], |answer| available(answer) == ("False", "ServicePortError")).await;
    let mut other = cluster.get(OURS).await.ok();
    other["spec"]["service"]["port"] = 8443.into();
    other["spec"]["caBundle"] =
        base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &front_proxy.ca).into();
    cluster.put(OURS, other).await.ok();
    let seen = until(&cluster, OURS, &[], |answer| available(answer) == ("False", "FailedDiscoveryCheck")).await;
    let why = seen.body["status"]["conditions"][0]["message"].as_str().unwrap();
    assert!(why.contains("certificate signed by unknown authority"), "{why}");

    // Gone with its APIService.
    cluster.delete(OURS, Value::Null).await.ok();
    until(&cluster, FLUNDERS, &[], |answer| answer.code == 404).await;
    assert!(!groups(&cluster.get("/apis").await.ok()).contains(&GROUP));
}

#[tokio::test]
async fn discovery_and_openapi_have_what_extension_servers_serve() {
    let front_proxy = FrontProxy::new();
    let cluster = front_proxy.cluster().await;
    let extension = Extension::start(&front_proxy, &["h2"]).await;
    extension.register(&cluster).await;
    passed(&cluster).await;

    let list = cluster.get("/apis").await.ok();
    let groups = groups(&list);
    assert_eq!((groups[0], groups[1]), ("apiregistration.k8s.io", "apps"));
    assert_eq!(groups.last(), Some(&GROUP));
    let group = cluster.get("/apis/wardle.example.com").await.ok();
    assert_eq!(group["preferredVersion"]["groupVersion"], "wardle.example.com/v1");
    let resources = cluster.get("/apis/wardle.example.com/v1").await.ok();
    assert_eq!(resources["resources"][0]["name"], "flunders");

    let version = |list: &Value| -> Value {
        let items = list["items"].as_array().unwrap();
        let item = items.iter().find(|item| item["metadata"]["name"] == GROUP);
        item.map(|item| item["versions"][0].clone()).unwrap_or_default()
    };
    let own = version(&cluster.send("GET", "/apis", &[AGGREGATED], "").await.ok());
    assert_eq!((&own["freshness"], &own["version"]), (&json!("Current"), &json!("v1")));
    assert_eq!(own["resources"][0]["resource"], "flunders");
    assert_eq!(own["resources"][0]["responseKind"]["kind"], "Flunder");
    assert_eq!(own["resources"][0]["subresources"][0]["subresource"], "status");
    // Asked once, not with each request.
    let asked = extension.discoveries.load(Ordering::SeqCst);
    for _ in 0..5 {
        cluster.send("GET", "/apis", &[AGGREGATED], "").await.ok();
    }
    assert_eq!(extension.discoveries.load(Ordering::SeqCst), asked);

    let index = cluster.get("/openapi/v3").await.ok();
    let url = index["paths"]["apis/wardle.example.com/v1"]["serverRelativeURL"].as_str().unwrap();
    assert_eq!(url, "/openapi/v3/apis/wardle.example.com/v1?hash=ABC");
    assert!(index["paths"]["apis/other.example.com/v1"].is_null());
    assert_eq!(cluster.get(url).await.ok()["of"], "wardle");
    let v2 = cluster.get("/openapi/v2").await.ok();
    assert!(v2["paths"]["/apis/wardle.example.com/v1/flunders"].is_object());
    assert!(v2["paths"]["/apis/other.example.com/v1/x"].is_null());
    assert!(v2["definitions"]["Flunder"].is_object() && v2["definitions"]["Other"].is_null());
    let meta = &v2["definitions"]["io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta"];
    assert!(meta["properties"].is_object(), "ours stays: {meta}");

    // Unreachable: what was known is told as stale, and all else as ever.
    extension.endpoints(&cluster, false).await;
    until(&cluster, OURS, &[], |answer| available(answer) == ("False", "MissingEndpoints")).await;
    let list = cluster.send("GET", "/apis", &[AGGREGATED], "").await.ok();
    let own = version(&list);
    assert_eq!(own["freshness"], "Stale");
    assert_eq!(own["resources"][0]["resource"], "flunders");
    assert_eq!(list["items"][1]["versions"][0]["freshness"], "Current");
    assert_eq!(cluster.get("/apis/wardle.example.com/v1").await.code, 503);
}

#[tokio::test]
async fn upgrades_go_through() {
    let front_proxy = FrontProxy::new();
    let (ca, issuer) = authority("clients");
    let cluster = Cluster::start_with(
        |config| config,
        |config| {
            config.client_ca_pem = ca.clone().into_bytes();
            config.request_header_ca_pem = Some(front_proxy.ca.clone().into_bytes());
            config.proxy_client_cert_pem = front_proxy.cert.clone().into_bytes();
            config.proxy_client_key_pem = front_proxy.key.clone().into_bytes();
        },
    )
    .await;
    let extension = Extension::start(&front_proxy, &["h2", "http/1.1"]).await;
    extension.register(&cluster).await;
    passed(&cluster).await;

    // The API server on a port, and a client with a certificate of a master.
    let issue = |name: &str, group: &str| {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
    };
    let (cert, key) = issue("server", "servers");
    let serving = ServingCert::new(cert.as_bytes(), key.as_bytes()).unwrap();
    let tls = ServerTls::new(serving, ca.as_bytes(), None).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (server, stop) = (cluster.server.clone(), tokio_util::sync::CancellationToken::new());
    let stopped = stop.clone();
    tokio::spawn(async move { server.serve(listener, tls, stopped).await });
    let (cert, key) = issue("root", "system:masters");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config)).connect(name, stream).await.unwrap();

    let request = format!(
        "POST {FLUNDERS}/a/exec HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\
         X-Remote-Group: other\r\nAuthorization: Basic eDp5\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    stream.write_all(b"hello").await.unwrap();
    let mut echo = [0; 5];
    stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"hello");
    {
        let seen = extension.seen.lock().unwrap();
        let headers = &seen.last().unwrap().2;
        assert_eq!(headers["x-remote-user"], "root");
        let groups: Vec<_> = headers.get_all("x-remote-group").iter().collect();
        assert_eq!(groups, ["system:masters", "system:authenticated"]);
        assert!(!headers.contains_key("authorization"));
    }
    stop.cancel();
}

#[tokio::test]
async fn an_api_service_that_leads_back_is_no_loop() {
    let front_proxy = FrontProxy::new();
    let cluster = front_proxy.cluster().await;
    let extension = Extension::start(&front_proxy, &["h2"]).await;
    extension.register(&cluster).await;
    passed(&cluster).await;
    // Another cluster's mark is nobody's business.
    cluster.send("GET", FLUNDERS, &[("via", "1.1 other")], "").await.ok();
    let mark = extension.seen.lock().unwrap().last().unwrap().2["via"].to_str().unwrap().to_owned();
    assert_eq!(cluster.send("GET", FLUNDERS, &[("via", &mark)], "").await.code, 508);
}

#[tokio::test]
async fn bad_api_services_are_refused() {
    let cluster = Cluster::start().await;
    let service = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1.a.b"},
        "spec": {"group": "a.c", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1}});
    let (code, _, message) = cluster.post(SERVICES, service).await.refused();
    assert_eq!(code, 422);
    assert!(message.contains("must be `spec.version+\".\"+spec.group`: \"v1.a.c\""), "{message}");
}

#[tokio::test]
async fn extension_servers_are_told_whom_to_believe() {
    let front_proxy = FrontProxy::new();
    let cluster = front_proxy.cluster().await;
    let path = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
    let map = cluster.get(path).await.ok();
    assert_eq!(map["data"]["requestheader-client-ca-file"], front_proxy.ca.as_str());
    assert_eq!(map["data"]["requestheader-allowed-names"], "[\"system:auth-proxy\"]");
    assert_eq!(map["data"]["requestheader-username-headers"], "[\"X-Remote-User\"]");
    assert_eq!(map["data"]["requestheader-extra-headers-prefix"], "[\"X-Remote-Extra-\"]");
    cluster.delete(path, Value::Null).await.ok();
    until(&cluster, path, &[], |answer| answer.code == 200 && answer.body["data"] == map["data"]).await;
}
