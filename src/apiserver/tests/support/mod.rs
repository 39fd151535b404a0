//! An API server on a temporary store, with a CA of its own, reached over TLS or in process.

#![allow(dead_code)]

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mussel_apiserver::{ApiServer, Config, ServerTls, ServingCert};
use mussel_client::{Tls, TokenSource};
use mussel_store::Store;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Ca {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Certificate and key, PEM. At most one group: rcgen keeps one value of each kind in a name.
    pub fn issue(&self, name: &str, groups: &[&str], sans: &[&str]) -> (String, String) {
        let mut params = CertificateParams::new(sans.iter().map(|san| (*san).to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().unwrap();
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        (pem, key.serialize_pem())
    }
}

pub struct TestServer {
    pub api: ApiServer,
    pub address: SocketAddr,
    pub ca: Ca,
    pub front_proxy_ca: Ca,
    pub store: Store,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl TestServer {
    pub async fn start() -> Self {
        Self::start_with(|_, _| ()).await
    }

    /// `change` may alter the configuration before the start.
    pub async fn start_with(change: impl FnOnce(&mut Config, &Ca)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(mussel_store::Config::new(dir.path().join("db"))).await.unwrap();
        let ca = Ca::new("test-ca");
        let front_proxy_ca = Ca::new("front-proxy-ca");
        let (cert, key) = ca.issue("kube-apiserver", &[], &["127.0.0.1", "localhost"]);
        let service_account_key = KeyPair::generate().unwrap().serialize_pem();
        let mut config = Config {
            client_ca_pem: ca.pem.clone().into_bytes(),
            request_header_ca_pem: Some(front_proxy_ca.pem.clone().into_bytes()),
            request_header_allowed_names: vec!["front-proxy".to_owned()],
            service_account_key_pem: service_account_key.into_bytes(),
            advertise_address: "192.0.2.1".parse().unwrap(),
            ..Config::default()
        };
        change(&mut config, &ca);
        let stop = CancellationToken::new();
        let tls = ServerTls::new(
            ServingCert::new(cert.as_bytes(), key.as_bytes()).unwrap(),
            &config.client_ca_pem,
            config.request_header_ca_pem.as_deref(),
        )
        .unwrap();
        let api = ApiServer::start(config, store.clone(), stop.clone()).await.unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = api.clone();
        let stopped = stop.clone();
        tokio::spawn(async move { server.serve(listener, tls, stopped).await });
        api.ready().await;
        Self { api, address, ca, front_proxy_ca, store, stop, _dir: dir }
    }

    pub fn url(&self) -> http::Uri {
        format!("https://{}", self.address).parse().unwrap()
    }

    /// A `kube::Client` over TLS with a client certificate.
    pub fn tls_client(&self, user: &str, groups: &[&str]) -> kube::Client {
        let (cert, key) = self.ca.issue(user, groups, &[]);
        let tls = Tls {
            ca_pem: self.ca.pem.clone().into_bytes(),
            cert_pem: Some(cert.into_bytes()),
            key_pem: Some(key.into_bytes()),
            token: None,
        };
        mussel_client::over_tls(self.url(), tls).unwrap()
    }

    pub fn token_client(&self, token: &str) -> kube::Client {
        let token = Some(TokenSource::Literal(token.to_owned()));
        let tls = Tls { ca_pem: self.ca.pem.clone().into_bytes(), cert_pem: None, key_pem: None, token };
        mussel_client::over_tls(self.url(), tls).unwrap()
    }

    pub fn admin(&self) -> kube::Client {
        self.api.client("system:admin", &["system:masters"])
    }

    /// One request over TLS, as it is on the wire. `identity`: certificate and key.
    pub async fn raw(
        &self,
        identity: Option<(String, String)>,
        http2: bool,
        request: http::Request<Full<Bytes>>,
    ) -> (http::response::Parts, Bytes) {
        let stream = self.tls_stream(identity, http2).await;
        let response = if http2 {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            let mut request = request;
            let uri = format!("https://{}{}", self.address, request.uri());
            *request.uri_mut() = uri.parse().unwrap();
            sender.send_request(request).await.unwrap()
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection.with_upgrades());
            let mut request = request;
            request.headers_mut().insert("host", "localhost".parse().unwrap());
            sender.send_request(request).await.unwrap()
        };
        let (parts, body) = response.into_parts();
        (parts, body.collect().await.unwrap().to_bytes())
    }

    pub async fn tls_stream(
        &self,
        identity: Option<(String, String)>,
        http2: bool,
    ) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
        use rustls::pki_types::pem::PemObject as _;
        use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca.pem.as_bytes()).unwrap()).unwrap();
        let builder = rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match identity {
            Some((cert, key)) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
                )
                .unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        let stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        tokio_rustls::TlsConnector::from(std::sync::Arc::new(config)).connect(name, stream).await.unwrap()
    }

    /// A GET as this user (a certificate), over HTTP/1.1: status code and body.
    pub async fn get(&self, user: &str, groups: &[&str], path: &str) -> (u16, String) {
        let identity = self.ca.issue(user, groups, &[]);
        let request = http::Request::get(path).body(Full::default()).unwrap();
        let (parts, body) = self.raw(Some(identity), false, request).await;
        (parts.status.as_u16(), String::from_utf8_lossy(&body).into_owned())
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.api.shutdown().await;
        self.store.shutdown().await;
    }
}

pub fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}
