//! As much of an API server as routes to other nodes need: Nodes, listed, watched, and patched with annotations.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body;
use mussel_client::in_process;
use serde_json::{Value, json};
use tokio::sync::watch;

#[derive(Default)]
struct Inner {
    nodes: BTreeMap<String, Value>,
    history: Vec<(&'static str, Value)>,
    down: bool,
}

impl Inner {
    fn record(&mut self, kind: &'static str, mut node: Value) -> Value {
        node["metadata"]["resourceVersion"] = json!((self.history.len() + 1).to_string());
        self.history.push((kind, node.clone()));
        node
    }
}

/// Shared by all nodes of a test, each of which has a runtime of its own.
#[derive(Clone)]
pub struct Api {
    inner: Arc<Mutex<Inner>>,
    changed: watch::Sender<usize>,
}

impl Api {
    pub fn new() -> Self {
        Self { inner: Arc::default(), changed: watch::Sender::new(0) }
    }

    pub fn put(&self, name: &str, pod_cidr: &str) {
        let mut inner = self.inner.lock().unwrap();
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "uid": name},
            "spec": {"podCIDR": pod_cidr, "podCIDRs": [pod_cidr]}});
        let node = inner.record("ADDED", node);
        inner.nodes.insert(name.to_owned(), node);
        self.changed.send_replace(inner.history.len());
    }

    pub fn delete(&self, name: &str) {
        let mut inner = self.inner.lock().unwrap();
        let node = inner.nodes.remove(name).unwrap();
        inner.record("DELETED", node);
        self.changed.send_replace(inner.history.len());
    }

    pub fn annotation(&self, node: &str, key: &str) -> Option<String> {
        let inner = self.inner.lock().unwrap();
        let node = inner.nodes.get(node)?;
        Some(node["metadata"]["annotations"][format!("flannel.alpha.coreos.com/{key}")].as_str()?.to_owned())
    }

    pub fn annotate(&self, node: &str, annotations: &Value) {
        let mut inner = self.inner.lock().unwrap();
        let Some(mut node) = inner.nodes.get(node).cloned() else { return };
        for (key, value) in annotations.as_object().unwrap() {
            node["metadata"]["annotations"][key] = value.clone();
        }
        let name = node["metadata"]["name"].as_str().unwrap().to_owned();
        let node = inner.record("MODIFIED", node);
        inner.nodes.insert(name, node);
        self.changed.send_replace(inner.history.len());
    }

    /// Whether requests are refused.
    pub fn set_down(&self, down: bool) {
        self.inner.lock().unwrap().down = down;
        self.changed.send_modify(|_| ());
    }

    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        in_process(tower::service_fn(move |request| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        }))
    }

    async fn answer(&self, request: Request<Body>) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
        let (head, body) = request.into_parts();
        let query = head.uri.query().unwrap_or_default().to_owned();
        if self.inner.lock().unwrap().down {
            return whole(
                StatusCode::SERVICE_UNAVAILABLE,
                &json!({"kind": "Status", "code": 503, "reason": "Down",
                "message": "down", "status": "Failure", "metadata": {}}),
            );
        }
        if head.method == Method::PATCH {
            let patch: Value = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
            let name = head.uri.path().rsplit('/').next().unwrap();
            self.annotate(name, &patch["metadata"]["annotations"]);
            return whole(StatusCode::OK, &self.inner.lock().unwrap().nodes[name]);
        }
        assert_eq!(head.uri.path(), "/api/v1/nodes");
        if !query.contains("watch=true") {
            let inner = self.inner.lock().unwrap();
            let items: Vec<_> = inner.nodes.values().collect();
            return whole(
                StatusCode::OK,
                &json!({"apiVersion": "v1", "kind": "NodeList",
                "metadata": {"resourceVersion": inner.history.len().to_string()}, "items": items}),
            );
        }
        let from = query.split('&').find_map(|part| part.strip_prefix("resourceVersion=")?.parse::<usize>().ok());
        let state = (self.clone(), self.changed.subscribe(), from.unwrap_or_default());
        let events = futures::stream::unfold(state, |(api, mut changed, at)| async move {
            loop {
                {
                    let inner = api.inner.lock().unwrap();
                    if inner.down {
                        return None;
                    }
                    if let Some((kind, node)) = inner.history.get(at) {
                        let line = format!("{{\"type\":\"{kind}\",\"object\":{node}}}\n");
                        drop(inner);
                        let frame = http_body::Frame::data(Bytes::from(line));
                        return Some((Ok::<_, Infallible>(frame), (api, changed, at + 1)));
                    }
                }
                changed.changed().await.ok()?;
            }
        });
        Response::new(BodyExt::boxed_unsync(StreamBody::new(events.boxed())))
    }
}

fn whole(code: StatusCode, body: &Value) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    let body = Full::new(Bytes::from(body.to_string())).boxed_unsync();
    Response::builder().status(code).header("content-type", "application/json").body(body).unwrap()
}
