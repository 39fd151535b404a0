//! Tells load balancers whether this node has endpoints of a Service that must not be sent elsewhere: `healthCheckNodePort`.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time;

use super::plan::{self, Settings};

/// Load balancers ask one question at a time.
const CONNECTIONS_MAX: usize = 64;
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// After `accept` failed, for want of descriptors for example.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// What is answered at one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    pub namespace: String,
    pub name: String,
    pub local_endpoints: usize,
}

/// What is to be answered, by port.
pub fn wanted(settings: &Settings, services: &[Arc<Service>], slices: &[Arc<EndpointSlice>]) -> BTreeMap<u16, Health> {
    let with_port = services.iter().filter_map(|service| {
        let port = service.spec.as_ref()?.health_check_node_port?;
        Some((u16::try_from(port).ok().filter(|port| *port > 0)?, service))
    });
    let health = |(port, service): (u16, &Arc<Service>)| {
        let planned = plan::plan(settings, std::slice::from_ref(service), slices);
        let local: BTreeSet<_> = planned.iter().flat_map(|port| port.local.0.iter().map(SocketAddr::ip)).collect();
        let (namespace, name) = (service.metadata.namespace.clone(), service.metadata.name.clone());
        let (namespace, name) = (namespace.unwrap_or_default(), name.unwrap_or_default());
        (port, Health { namespace, name, local_endpoints: local.len() })
    };
    with_port.map(health).collect()
}

/// The listeners. They end when dropped.
#[derive(Default)]
pub struct HealthChecks(BTreeMap<u16, Listener>);

struct Listener {
    state: watch::Sender<Health>,
    task: JoinHandle<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl HealthChecks {
    /// Listens where it is wanted, and nowhere else. A port that is taken is tried again at the next call.
    pub async fn set(&mut self, wanted: BTreeMap<u16, Health>) {
        self.0.retain(|port, _| wanted.contains_key(port));
        for (port, health) in wanted {
            if let Some(listener) = self.0.get(&port) {
                listener.state.send_replace(health);
                continue;
            }
            match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await {
                Ok(listener) => {
                    let (state, seen) = watch::channel(health);
                    let task = tokio::spawn(serve(listener, seen));
                    self.0.insert(port, Listener { state, task });
                }
                Err(error) => {
                    let (namespace, name) = (health.namespace, health.name);
                    tracing::warn!(port, namespace, name, %error, "healthCheckNodePort does not answer");
                }
            }
        }
    }
}

async fn serve(listener: TcpListener, state: watch::Receiver<Health>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // Never closed.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            time::sleep(ACCEPT_AGAIN).await;
            continue;
        };
        let state = state.clone();
        tokio::spawn(async move {
            let _slot = slot;
            let service = service_fn(move |_| {
                let answer = answer(&state.borrow());
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST_TIME)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // A client that went away has no use for an answer.
            let _ = time::timeout(REQUEST_TIME * 2, connection).await;
        });
    }
}

fn answer(health: &Health) -> Response<Full<Bytes>> {
    let count = health.local_endpoints;
    let body = json!({
        "service": {"namespace": health.namespace, "name": health.name},
        "localEndpoints": count,
        "serviceProxyHealthy": true,
    });
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = if count > 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    headers.insert("x-load-balancing-endpoint-weight", http::HeaderValue::from(count));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn ask(port: u16) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn a_node_without_endpoints_says_so() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": "web"},
            "spec": {"clusterIP": "10.43.0.7", "healthCheckNodePort": 1, "ports": [{"port": 80}]}}))
        .unwrap();
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"name": "", "port": 8080}],
            "endpoints": [{"addresses": ["10.42.0.5"], "nodeName": "a"}]}))
        .unwrap();
        let seen_from = |node: &str| {
            let settings =
                Settings { node_name: node.into(), local_addresses: BTreeSet::new(), node_addresses: Vec::new() };
            wanted(&settings, &[Arc::new(service.clone())], &[Arc::new(slice.clone())])[&1].clone()
        };
        // A port that is free right now.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap().port();
        let mut checks = HealthChecks::default();
        checks.set(BTreeMap::from([(port, seen_from("a"))])).await;
        let text = ask(port).await;
        assert!(text.starts_with("HTTP/1.1 200") && text.contains("\"localEndpoints\":1"), "{text}");
        checks.set(BTreeMap::from([(port, seen_from("b"))])).await;
        assert!(ask(port).await.starts_with("HTTP/1.1 503"));
        checks.set(BTreeMap::new()).await;
        tokio::task::yield_now().await;
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err());
    }
}
