//! A webhook: speaks TLS with a certificate of its own CA and answers as the test says.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::Cluster;

/// What a request at a path is answered with; `None`: 404.
type Answers = dyn Fn(&str, &Value) -> Option<Value> + Send + Sync;

pub struct Hook {
    pub address: SocketAddr,
    ca: String,
    /// Path and request of each review, in order.
    pub seen: Arc<Mutex<Vec<(String, Value)>>>,
    /// The protocols of the connections' requests.
    pub versions: Arc<Mutex<Vec<http::Version>>>,
}

impl Hook {
    /// `answers` makes the `response` of a review from its path and `request`; the uid is added. A path that begins with
    /// `/slow` is answered after a while.
    pub async fn start(alpn: &[&str], answers: impl Fn(&str, &Value) -> Option<Value> + Send + Sync + 'static) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let names = vec!["hook.default.svc".to_owned(), "127.0.0.1".to_owned()];
        let params = CertificateParams::new(names).unwrap();
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &issuer).unwrap().pem();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, versions) = (Arc::default(), Arc::default());
        let hook = Self { address, ca, seen: Arc::clone(&seen), versions: Arc::clone(&versions) };
        let answers: Arc<Answers> = Arc::new(answers);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, answers) = (acceptor.clone(), Arc::clone(&answers));
                let (seen, versions) = (Arc::clone(&seen), Arc::clone(&versions));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = hyper::service::service_fn(move |request| {
                        answer(request, Arc::clone(&answers), Arc::clone(&seen), Arc::clone(&versions))
                    });
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        hook
    }

    pub fn requests(&self) -> Vec<(String, Value)> {
        self.seen.lock().unwrap().clone()
    }

    pub fn forget(&self) {
        self.seen.lock().unwrap().clear();
    }

    /// A client configuration by URL.
    pub fn at(&self, path: &str) -> Value {
        json!({"url": format!("https://{}{path}", self.address), "caBundle": STANDARD.encode(&self.ca)})
    }

    /// A client configuration by Service; its objects are written to `cluster`.
    pub async fn service(&self, cluster: &Cluster, path: &str) -> Value {
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hook"},
            "spec": {"ports": [{"name": "https", "port": 8443, "targetPort": 1}], "selector": {"a": "b"}}});
        cluster.post("/api/v1/namespaces/default/services", service).await.ok();
        let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "hook-1", "labels": {"kubernetes.io/service-name": "hook"}}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}],
            "ports": [{"name": "https", "port": self.address.port()}]});
        // Loopback addresses are nothing an endpoint may have; the check is not what this is about.
        let key = "/registry/endpointslices.discovery.k8s.io/default/hook-1";
        let mut txn = mussel_store::Txn::default();
        let mut stored = slice;
        stored["metadata"]["namespace"] = "default".into();
        txn.puts.push((key.into(), mussel_api::object::encode(&stored)));
        cluster.store.commit(txn).await.unwrap();
        json!({"service": {"namespace": "default", "name": "hook", "port": 8443, "path": path},
            "caBundle": STANDARD.encode(&self.ca)})
    }
}

async fn answer(
    request: http::Request<Incoming>,
    answers: Arc<Answers>,
    seen: Arc<Mutex<Vec<(String, Value)>>>,
    versions: Arc<Mutex<Vec<http::Version>>>,
) -> Result<http::Response<Full<Bytes>>, std::convert::Infallible> {
    let path = request.uri().path().to_owned();
    versions.lock().unwrap().push(request.version());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let review: Value = serde_json::from_slice(&body).unwrap();
    seen.lock().unwrap().push((path.clone(), review["request"].clone()));
    if path.starts_with("/slow") {
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    let response = match answers(&path, &review["request"]) {
        Some(mut response) => {
            if response["uid"].is_null() {
                response["uid"] = review["request"]["uid"].clone();
            }
            let review = json!({"apiVersion": review["apiVersion"], "kind": review["kind"], "response": response});
            http::Response::new(Full::new(Bytes::from(review.to_string())))
        }
        None => {
            let mut response = http::Response::new(Full::new(Bytes::from_static(b"nothing here")));
            *response.status_mut() = http::StatusCode::NOT_FOUND;
            response
        }
    };
    Ok(response)
}

/// An answer that allows and patches.
pub fn patch(operations: Value) -> Value {
    json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(operations.to_string())})
}

/// A webhook of a configuration, for all operations on ConfigMaps.
pub fn hook(name: &str, client: &Value) -> Value {
    json!({"name": format!("{name}.example.com"), "clientConfig": client, "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "rules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]})
}

pub async fn configure(cluster: &Cluster, kind: &str, name: &str, hooks: Value) {
    let configuration = json!({"apiVersion": "admissionregistration.k8s.io/v1",
        "kind": format!("{kind}WebhookConfiguration"), "metadata": {"name": name}, "webhooks": hooks});
    cluster.post(&configurations(kind), configuration).await.ok();
}

pub fn configurations(kind: &str) -> String {
    format!("/apis/admissionregistration.k8s.io/v1/{}webhookconfigurations", kind.to_lowercase())
}
