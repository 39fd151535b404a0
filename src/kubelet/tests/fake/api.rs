//! As much of an API server as a kubelet needs: objects by path, watches, graceful deletion, status patches.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::watch;

#[derive(Default)]
struct Inner {
    /// By resource, namespace and name.
    objects: BTreeMap<(String, String, String), Value>,
    history: Vec<(u64, String, &'static str, Value)>,
    revision: u64,
}

pub struct Api {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct Target {
    resource: String,
    namespace: String,
    name: Option<String>,
    sub: Option<String>,
}

fn target(path: &str) -> Target {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let rest = if parts[0] == "api" { &parts[2..] } else { &parts[3..] };
    let (namespace, rest) = if rest[0] == "namespaces" && rest.len() > 2 { (rest[1], &rest[2..]) } else { ("", rest) };
    Target {
        resource: rest[0].into(),
        namespace: namespace.into(),
        name: rest.get(1).map(|s| (*s).to_owned()),
        sub: rest.get(2).map(|s| (*s).to_owned()),
    }
}

fn merge(target: &mut Value, patch: &Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    target.remove(key);
                } else {
                    merge(target.entry(key.clone()).or_insert(Value::Null), value);
                }
            }
        }
        (Value::Array(target), Value::Array(patch)) if patch.iter().all(|p| p["type"].is_string()) => {
            for item in patch {
                match target.iter_mut().find(|t| t["type"] == item["type"]) {
                    Some(known) => merge(known, item),
                    None => target.push(item.clone()),
                }
            }
        }
        (target, Value::Array(patch)) => {
            *target = patch.iter().filter(|p| p["$patch"].is_null()).cloned().collect();
        }
        (target @ (Value::Null | Value::Array(_)), Value::Object(_)) => {
            *target = json!({});
            merge(target, patch);
        }
        (target, patch) => *target = patch.clone(),
    }
}

fn matches(object: &Value, selector: &str) -> bool {
    selector.split(',').filter(|s| !s.is_empty()).all(|part| {
        let (path, wanted) = part.split_once('=').unwrap();
        let pointer = format!("/{}", path.replace('.', "/"));
        object.pointer(&pointer).and_then(Value::as_str).unwrap_or_default() == wanted
    })
}

fn refusal(code: u16, reason: &str) -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
        "message": reason});
    (StatusCode::from_u16(code).unwrap(), axum::Json(status)).into_response()
}

impl Api {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), changed: watch::Sender::new(0) })
    }

    pub fn client(self: &Arc<Self>) -> kube::Client {
        let router = axum::Router::new().fallback(handle).with_state(self.clone());
        kube::Client::new(router.into_service::<kube::client::Body>(), "default")
    }

    pub fn put(&self, resource: &str, mut object: Value) {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]));
        let mut inner = self.inner.lock().unwrap();
        inner.revision += 1;
        let revision = inner.revision;
        let key = (resource.to_owned(), namespace, name);
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = format!("uid-{revision}").into();
        }
        object["metadata"]["resourceVersion"] = revision.to_string().into();
        let kind = if inner.objects.contains_key(&key) { "MODIFIED" } else { "ADDED" };
        inner.objects.insert(key, object.clone());
        inner.history.push((revision, resource.to_owned(), kind, object));
        drop(inner);
        self.changed.send_replace(revision);
    }

    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        self.inner.lock().unwrap().objects.get(&key).cloned()
    }

    pub fn list(&self, resource: &str) -> Vec<Value> {
        let inner = self.inner.lock().unwrap();
        inner.objects.iter().filter(|((r, ..), _)| r == resource).map(|(_, o)| o.clone()).collect()
    }

    pub fn delete(&self, resource: &str, namespace: &str, name: &str, grace: i64) {
        let Some(mut object) = self.get(resource, namespace, name) else { return };
        if resource == "pods" && grace > 0 {
            object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            object["metadata"]["deletionGracePeriodSeconds"] = grace.into();
            self.put(resource, object);
            return;
        }
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        let mut inner = self.inner.lock().unwrap();
        inner.objects.remove(&key);
        inner.revision += 1;
        let revision = inner.revision;
        object["metadata"]["resourceVersion"] = revision.to_string().into();
        inner.history.push((revision, resource.to_owned(), "DELETED", object));
        drop(inner);
        self.changed.send_replace(revision);
    }

    /// Waits until `holds` of the object, and returns it. `None` is an absent object.
    pub async fn until(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
        holds: impl Fn(Option<&Value>) -> bool,
    ) -> Option<Value> {
        let mut changed = self.changed.subscribe();
        let wait = async {
            loop {
                let object = self.get(resource, namespace, name);
                if holds(object.as_ref()) {
                    return object;
                }
                changed.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(Duration::from_secs(20), wait).await {
            Ok(object) => object,
            Err(_) => panic!("{resource} {name} never became so: {:#?}", self.get(resource, namespace, name)),
        }
    }
}

async fn handle(State(api): State<Arc<Api>>, request: Request) -> Response {
    let uri = request.uri().clone();
    let target = target(uri.path());
    let pairs: BTreeMap<String, String> = uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|p| p.split_once('='))
        .map(|(k, v)| (k.to_owned(), v.replace("%3D", "=").replace("%2C", ",")))
        .collect();
    let get = |name: &str| pairs.get(name).cloned().unwrap_or_default();
    let method = request.method().clone();
    let body = to_bytes(request.into_body(), 1 << 20).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    match (method, target.name.clone()) {
        (Method::GET, None) if get("watch") == "true" => {
            let since = get("resourceVersion").parse().unwrap_or(0);
            follow(api, target, get("fieldSelector"), since)
        }
        (Method::GET, None) => {
            let selector = get("fieldSelector");
            let inner = api.inner.lock().unwrap();
            let fits = |(r, ns, _): &(String, String, String)| {
                *r == target.resource && (target.namespace.is_empty() || *ns == target.namespace)
            };
            let items: Vec<&Value> =
                inner.objects.iter().filter(|(k, o)| fits(k) && matches(o, &selector)).map(|(_, o)| o).collect();
            let list = json!({"kind": "List", "apiVersion": "v1",
                "metadata": {"resourceVersion": inner.revision.to_string()}, "items": items});
            axum::Json(list).into_response()
        }
        (Method::GET, Some(name)) => match api.get(&target.resource, &target.namespace, &name) {
            Some(object) => axum::Json(object).into_response(),
            None => refusal(404, "NotFound"),
        },
        (Method::POST, Some(_)) if target.sub.as_deref() == Some("token") => {
            let mut answer = body;
            answer["status"] = json!({"token": "the-token", "expirationTimestamp": "2099-01-01T00:00:00Z"});
            axum::Json(answer).into_response()
        }
        (Method::POST, None) => {
            let mut object = body;
            if !target.namespace.is_empty() {
                object["metadata"]["namespace"] = target.namespace.clone().into();
            }
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            if api.get(&target.resource, &target.namespace, &name).is_some() {
                return refusal(409, "AlreadyExists");
            }
            api.put(&target.resource, object.clone());
            axum::Json(object).into_response()
        }
        (Method::PUT, Some(_)) => {
            api.put(&target.resource, body.clone());
            axum::Json(body).into_response()
        }
        (Method::PATCH, Some(name)) => {
            let Some(mut object) = api.get(&target.resource, &target.namespace, &name) else {
                return refusal(404, "NotFound");
            };
            merge(&mut object, &body);
            api.put(&target.resource, object.clone());
            axum::Json(object).into_response()
        }
        (Method::DELETE, Some(name)) => {
            let Some(object) = api.get(&target.resource, &target.namespace, &name) else {
                return refusal(404, "NotFound");
            };
            let wanted = &body["preconditions"]["uid"];
            if !wanted.is_null() && *wanted != object["metadata"]["uid"] {
                return refusal(409, "Conflict");
            }
            let grace = body["gracePeriodSeconds"].as_i64().unwrap_or(30);
            api.delete(&target.resource, &target.namespace, &name, grace);
            axum::Json(object).into_response()
        }
        _ => refusal(405, "MethodNotAllowed"),
    }
}

fn follow(api: Arc<Api>, target: Target, selector: String, since: u64) -> Response {
    let mut changed = api.changed.subscribe();
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<Result<String, std::io::Error>>(64);
    tokio::spawn(async move {
        let mut last = since;
        loop {
            let news: Vec<_> = {
                let inner = api.inner.lock().unwrap();
                inner.history.iter().filter(|(revision, ..)| *revision > last).cloned().collect()
            };
            for (revision, resource, kind, object) in news {
                last = revision;
                let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
                let fits = resource == target.resource
                    && (target.namespace.is_empty() || namespace == target.namespace)
                    && matches(&object, &selector);
                if fits && sender.send(Ok(format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n"))).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                result = changed.changed() => if result.is_err() { return },
                () = sender.closed() => return,
            }
        }
    });
    Response::new(Body::from_stream(futures::stream::poll_fn(move |context| receiver.poll_recv(context))))
}
