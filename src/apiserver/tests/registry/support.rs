//! An API server over a temporary store, and short ways to ask it.

use base64::Engine;
use futures::StreamExt;
use http::StatusCode;
use http_body_util::BodyExt;
use mussel_apiserver::{ApiServer, Config, UserInfo};
use mussel_store::Store;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

pub struct Cluster {
    pub server: ApiServer,
    pub store: Store,
    user: UserInfo,
    _dir: std::sync::Arc<tempfile::TempDir>,
}

pub struct Answer {
    pub code: u16,
    pub headers: http::HeaderMap,
    pub body: Value,
}

impl Answer {
    /// The answer's body, when it is a success.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert!(self.code < 300, "{} {}", self.code, self.body);
        self.body
    }

    /// Code, reason and message of a refusal.
    #[track_caller]
    pub fn refused(self) -> (u16, String, String) {
        assert!(self.code >= 400, "{} {}", self.code, self.body);
        let text = |field: &str| self.body[field].as_str().unwrap_or_default().to_owned();
        (self.code, text("reason"), text("message"))
    }
}

impl Cluster {
    pub async fn start() -> Self {
        Self::start_with(|config| config, |_| {}).await
    }

    pub async fn start_with(
        store_config: impl FnOnce(mussel_store::Config) -> mussel_store::Config,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(store_config(mussel_store::Config::new(dir.path().join("db")))).await.unwrap();
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let key = base64::engine::general_purpose::STANDARD.encode(key.as_ref());
        let mut config = Config {
            service_account_key_pem: format!("-----BEGIN PRIVATE KEY-----\n{key}\n-----END PRIVATE KEY-----\n")
                .into_bytes(),
            ..Config::default()
        };
        change(&mut config);
        let server = ApiServer::start(config, store.clone(), CancellationToken::new()).await.unwrap();
        server.ready().await;
        let user = UserInfo::new("system:admin", &["system:masters"]);
        let cluster = Self { server, store, user, _dir: std::sync::Arc::new(dir) };
        cluster.post("/api/v1/namespaces/default/serviceaccounts", account("default")).await.ok();
        cluster
    }

    /// Another server of the same cluster: over the same store.
    pub async fn another(&self, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::clone(&self.server.context().config);
        change(&mut config);
        let server = ApiServer::start(config, self.store.clone(), CancellationToken::new()).await.unwrap();
        server.ready().await;
        let (store, user) = (self.store.clone(), self.user.clone());
        Self { server, store, user, _dir: std::sync::Arc::clone(&self._dir) }
    }

    /// The same cluster, asked by somebody else.
    pub fn as_user(&self, name: &str, groups: &[&str]) -> Self {
        let (server, store) = (self.server.clone(), self.store.clone());
        Self { server, store, user: UserInfo::new(name, groups), _dir: std::sync::Arc::clone(&self._dir) }
    }

    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Answer {
        let mut request = http::Request::builder().method(method).uri(path).header("user-agent", "test/1");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(kube::client::Body::from(body.into())).unwrap();
        let response = self.server.service_as(self.user.clone()).oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Answer { code: parts.status.as_u16(), headers: parts.headers, body }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string()).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.send("PUT", path, &[("content-type", "application/json")], body.to_string()).await
    }

    pub async fn patch(&self, path: &str, kind: &str, body: Value) -> Answer {
        let kind = format!("application/{kind}-patch+{}", if kind == "apply" { "yaml" } else { "json" });
        self.send("PATCH", path, &[("content-type", &kind)], body.to_string()).await
    }

    pub async fn delete(&self, path: &str, options: Value) -> Answer {
        let body = if options.is_null() { String::new() } else { options.to_string() };
        self.send("DELETE", path, &[("content-type", "application/json")], body).await
    }

    /// A watch; its events come one by one.
    pub async fn watch(&self, path: &str) -> Events {
        self.watch_as(path, "application/json").await
    }

    pub async fn watch_as(&self, path: &str, accept: &str) -> Events {
        let request = http::Request::builder().uri(path).header("accept", accept);
        let request = request.body(kube::client::Body::empty()).unwrap();
        let response = self.server.service_as(self.user.clone()).oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        Events { body: response.into_body().into_data_stream(), buffer: Vec::new() }
    }
}

pub struct Events {
    body: axum::body::BodyDataStream,
    buffer: Vec<u8>,
}

impl Events {
    /// The next event; `None` at the end of the watch.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let chunk = tokio::time::timeout(std::time::Duration::from_secs(20), self.body.next());
            match chunk.await.expect("an event within 20 s") {
                Some(chunk) => self.buffer.extend_from_slice(&chunk.unwrap()),
                None => return None,
            }
        }
    }

    /// Type and name of the next event.
    pub async fn brief(&mut self) -> String {
        match self.next().await {
            None => "end".to_owned(),
            Some(event) => format!(
                "{} {}",
                event["type"].as_str().unwrap(),
                event["object"]["metadata"]["name"].as_str().unwrap_or_default()
            ),
        }
    }
}

pub fn account(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}})
}

pub fn config_map(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"key": value}})
}

pub fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": "busybox"}]}})
}

pub const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
pub const PODS: &str = "/api/v1/namespaces/default/pods";
