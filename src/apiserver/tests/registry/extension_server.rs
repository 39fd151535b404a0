//! An extension API server: speaks TLS with a certificate of its own CA, asks for the front proxy's, and tells what it saw.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::Cluster;

pub const GROUP: &str = "wardle.example.com";
pub const FLUNDERS: &str = "/apis/wardle.example.com/v1/namespaces/default/flunders";

/// The front proxy's authority and certificate, as the API server is given them.
pub struct FrontProxy {
    pub ca: String,
    pub cert: String,
    pub key: String,
}

impl FrontProxy {
    pub fn new() -> Self {
        let (ca, issuer) = authority("front-proxy");
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "system:auth-proxy");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &issuer).unwrap().pem();
        Self { ca, cert, key: key.serialize_pem() }
    }

    pub async fn cluster(&self) -> Cluster {
        Cluster::start_with(
            |config| config,
            |config| {
                config.request_header_ca_pem = Some(self.ca.clone().into_bytes());
                config.request_header_allowed_names = vec!["system:auth-proxy".to_owned()];
                config.proxy_client_cert_pem = self.cert.clone().into_bytes();
                config.proxy_client_key_pem = self.key.clone().into_bytes();
            },
        )
        .await
    }
}

pub fn authority(name: &str) -> (String, Issuer<'static, KeyPair>) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    (pem, Issuer::new(params, key))
}

pub struct Extension {
    pub address: SocketAddr,
    ca: String,
    /// Answers 500 to everything while set.
    pub ill: Arc<AtomicBool>,
    /// How often its resources were asked for.
    pub discoveries: Arc<AtomicUsize>,
    /// Method, path and headers of clients' requests.
    pub seen: Arc<Mutex<Vec<(String, String, http::HeaderMap)>>>,
}

impl Extension {
    pub async fn start(front_proxy: &FrontProxy, alpn: &[&str]) -> Self {
        let (ca, issuer) = authority("wardle");
        let params = CertificateParams::new(vec!["wardle.default.svc".to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &issuer).unwrap().pem();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(front_proxy.ca.as_bytes()).unwrap()).unwrap();
        let clients =
            rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .unwrap();
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let extension = Self {
            address: listener.local_addr().unwrap(),
            ca,
            ill: Arc::default(),
            discoveries: Arc::default(),
            seen: Arc::default(),
        };
        let (ill, discoveries, seen) =
            (Arc::clone(&extension.ill), Arc::clone(&extension.discoveries), Arc::clone(&extension.seen));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, ill, discoveries, seen) =
                    (acceptor.clone(), Arc::clone(&ill), Arc::clone(&discoveries), Arc::clone(&seen));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = hyper::service::service_fn(move |request| {
                        answer(request, Arc::clone(&ill), Arc::clone(&discoveries), Arc::clone(&seen))
                    });
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
                });
            }
        });
        extension
    }

    /// Writes the Service, its endpoints and the APIService.
    pub async fn register(&self, cluster: &Cluster) {
        self.service(cluster).await;
        self.endpoints(cluster, true).await;
        cluster.post("/apis/apiregistration.k8s.io/v1/apiservices", self.api_service()).await.ok();
    }

    pub fn api_service(&self) -> Value {
        json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": format!("v1.{GROUP}")},
            "spec": {"group": GROUP, "version": "v1", "groupPriorityMinimum": 2_000, "versionPriority": 200,
                "caBundle": STANDARD.encode(&self.ca),
                "service": {"namespace": "default", "name": "wardle", "port": 8443}}})
    }

    pub async fn service(&self, cluster: &Cluster) {
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "wardle"},
            "spec": {"ports": [{"name": "https", "port": 8443, "targetPort": 1}], "selector": {"a": "b"}}});
        cluster.post("/api/v1/namespaces/default/services", service).await.ok();
    }

    pub async fn endpoints(&self, cluster: &Cluster, ready: bool) {
        let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "wardle-1", "namespace": "default",
                "labels": {"kubernetes.io/service-name": "wardle"}}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": ready}}],
            "ports": [{"name": "https", "port": self.address.port()}]});
        // Loopback addresses are nothing an endpoint may have; the check is not what this is about.
        let mut txn = mussel_store::Txn::default();
        let key = "/registry/endpointslices.discovery.k8s.io/default/wardle-1";
        txn.puts.push((key.into(), mussel_api::object::encode(&slice)));
        cluster.store.commit(txn).await.unwrap();
    }
}

type Response = http::Response<http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>>;

fn reply(code: u16, value: &Value) -> Response {
    let body = http_body_util::Full::new(Bytes::from(value.to_string())).boxed();
    http::Response::builder().status(code).header("content-type", "application/json").body(body).unwrap()
}

async fn answer(
    mut request: http::Request<Incoming>,
    ill: Arc<AtomicBool>,
    discoveries: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<(String, String, http::HeaderMap)>>>,
) -> Result<Response, std::convert::Infallible> {
    let path = request.uri().path().to_owned();
    if ill.load(Ordering::SeqCst) {
        return Ok(reply(500, &json!("ill")));
    }
    let own = request.headers()["x-remote-user"] == "system:kube-aggregator";
    if !own {
        let target = request.uri().path_and_query().unwrap().as_str().to_owned();
        seen.lock().unwrap().push((request.method().to_string(), target, request.headers().clone()));
    }
    if request.headers().contains_key("upgrade") {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgrade.await.unwrap());
            let mut buffer = [0; 64];
            while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                stream.write_all(&buffer[..count]).await.unwrap();
            }
        });
        let empty = http_body_util::Empty::new().boxed();
        let response = http::Response::builder().status(101).header("connection", "Upgrade").header("upgrade", "echo");
        return Ok(response.body(empty).unwrap());
    }
    Ok(match path.as_str() {
        "/apis/wardle.example.com/v1" => {
            discoveries.fetch_add(1, Ordering::SeqCst);
            reply(
                200,
                &json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "wardle.example.com/v1",
                    "resources": [
                        {"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder",
                            "verbs": ["create", "delete", "get", "list", "watch"], "shortNames": ["fl"]},
                        {"name": "flunders/status", "singularName": "", "namespaced": true, "kind": "Flunder",
                            "verbs": ["get", "update"]}]}),
            )
        }
        "/openapi/v3" => reply(
            200,
            &json!({"paths": {"apis/wardle.example.com/v1":
                {"serverRelativeURL": "/openapi/v3/apis/wardle.example.com/v1?hash=ABC"},
                "apis/other.example.com/v1": {"serverRelativeURL": "/openapi/v3/apis/other.example.com/v1?hash=D"}}}),
        ),
        "/openapi/v3/apis/wardle.example.com/v1" => reply(200, &json!({"openapi": "3.0.0", "of": "wardle"})),
        "/openapi/v2" => reply(
            200,
            &json!({"swagger": "2.0", "paths": {
                "/apis/wardle.example.com/v1/flunders": {"get": {"schema": {"$ref": "#/definitions/FlunderList"}}},
                "/apis/other.example.com/v1/x": {"get": {"schema": {"$ref": "#/definitions/Other"}}}},
                "definitions": {"FlunderList": {"properties": {"items": {"items": {"$ref": "#/definitions/Flunder"}},
                        "metadata": {"$ref": "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta"}}},
                    "Flunder": {"type": "object"}, "Other": {"type": "object"},
                    "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta": {"description": "foreign"}}}),
        ),
        FLUNDERS if request.uri().query() == Some("watch=true") => {
            // One event, and then silence.
            let event = Bytes::from_static(b"{\"type\": \"ADDED\", \"object\": {\"metadata\": {\"name\": \"a\"}}}\n");
            let events = futures::stream::iter([Ok(Frame::data(event))]).chain(futures::stream::pending());
            http::Response::new(http_body_util::BodyExt::boxed(StreamBody::new(events)))
        }
        FLUNDERS if request.method() == "POST" => {
            // As much as comes, frame by frame.
            let mut bytes = 0;
            let mut body = request.into_body();
            while let Some(Ok(frame)) = body.frame().await {
                bytes += frame.data_ref().map_or(0, Bytes::len);
            }
            reply(201, &json!({"kind": "Flunder", "bytes": bytes}))
        }
        FLUNDERS => reply(200, &json!({"kind": "FlunderList", "items": []})),
        _ => reply(404, &json!({"kind": "Status", "code": 404})),
    })
}
