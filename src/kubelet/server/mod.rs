//! The kubelet's HTTPS server: logs, exec, statistics and metrics of this node.
//!
//! Every request needs an identity and a right to it; both are asked of the API server, and remembered for a while.

mod auth;
mod local_volumes;
mod logs;
mod metrics;
mod node_logs;
mod stats;
mod streams;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get, post};
use http::{StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::WebPkiClientVerifier;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::shared::Shared;
use crate::tuning::Threshold;
use crate::{KubeletError, pod};

/// A client must have said who it is within this time.
const HANDSHAKE: Duration = Duration::from_secs(10);
const CONNECTIONS_MAX: usize = 1024;

#[derive(Clone)]
struct Server {
    shared: Arc<Shared>,
    auth: Arc<auth::Auth>,
}

/// The port is ours.
pub struct Listening {
    server: Server,
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listening {
    /// # Errors
    /// `Serve` when the port is taken or the CA cannot be read.
    pub async fn open(shared: Arc<Shared>) -> Result<Self, KubeletError> {
        let Some(config) = &shared.config.server else {
            return Err(KubeletError::Serve { listen: ([0, 0, 0, 0], 0).into(), cause: "not configured".into() });
        };
        let listen = config.listen;
        let failed = |cause: String| KubeletError::Serve { listen, cause };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&config.client_ca_pem) {
            let certificate = certificate.map_err(|e| failed(format!("client CA: {e}")))?;
            roots.add(certificate).map_err(|e| failed(format!("client CA: {e}")))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|e| failed(format!("client CA: {e}")))?;
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| failed(e.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(config.certificate.clone());
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let listener = TcpListener::bind(listen).await.map_err(|e| failed(e.to_string()))?;
        let auth = Arc::new(auth::Auth::new(shared.config.client.clone(), shared.config.node_name.clone()));
        Ok(Self { server: Server { shared, auth }, listener, acceptor: Arc::new(tls).into() })
    }

    pub async fn run(self) {
        let router = router(self.server.clone());
        let shared = self.server.shared;
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = shared.stop.cancelled() => return,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely. Accepting at once again would only burn time.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(permit) = permits.clone().try_acquire_owned() else { continue };
            let (router, acceptor, stop) = (router.clone(), self.acceptor.clone(), shared.stop.clone());
            shared.spawn(async move {
                let _permit = permit;
                tokio::select! {
                    () = serve(stream, acceptor, router) => {}
                    () = stop.cancelled() => {}
                }
            });
        }
    }
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, router: Router) {
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    let certificates = stream.get_ref().1.peer_certificates();
    let peer = auth::Peer(certificates.and_then(|c| c.first()).and_then(auth::identity_of));
    let service = TowerToHyperService::new(router.layer(axum::Extension(peer)));
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE);
    builder.http2().timer(TokioTimer::new());
    if let Err(error) = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "connection broke");
    }
}

fn router(server: Server) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/healthz/ping", get(async || "ok"))
        .route("/healthz/syncloop", get(async || "ok"))
        .route("/pods", get(pods))
        .route("/pods/", get(pods))
        .route("/runningpods", get(running_pods))
        .route("/runningpods/", get(running_pods))
        .route("/configz", get(configz))
        .route("/stats/summary", get(stats::summary))
        .route("/metrics", get(metrics::own))
        .route("/metrics/resource", get(metrics::resource))
        .route("/metrics/cadvisor", get(metrics::cadvisor))
        .route("/metrics/probes", get(metrics::probes))
        .route("/logs/", get(node_logs::root))
        .route("/logs/{*path}", get(node_logs::entry))
        .route("/localVolumes/make", post(local_volumes::make))
        .route("/localVolumes/remove", post(local_volumes::remove))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(logs::container))
        .route("/run/{namespace}/{pod}/{container}", any(streams::run))
        .route("/run/{namespace}/{pod}/{uid}/{container}", any(streams::run_uid))
        .route("/exec/{namespace}/{pod}/{container}", any(streams::exec))
        .route("/exec/{namespace}/{pod}/{uid}/{container}", any(streams::exec_uid))
        .route("/attach/{namespace}/{pod}/{container}", any(streams::attach))
        .route("/attach/{namespace}/{pod}/{uid}/{container}", any(streams::attach_uid))
        .route("/portForward/{namespace}/{pod}", any(streams::port_forward))
        .route("/portForward/{namespace}/{pod}/{uid}", any(streams::port_forward_uid))
        .layer(axum::middleware::from_fn_with_state(server.clone(), guard))
        .with_state(server)
}

/// Nothing is answered before it is known who asks and that they may.
async fn guard(State(server): State<Server>, request: Request, next: Next) -> Response {
    let asking = auth::Asking::of(&request);
    match server.auth.check(asking).await {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// A text and a code, as upstream's kubelet answers errors.
fn refuse(code: StatusCode, text: impl Into<String>) -> Response {
    (code, text.into()).into_response()
}

fn json(value: &serde_json::Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

async fn pods(State(server): State<Server>) -> Response {
    let items: Vec<serde_json::Value> = server
        .shared
        .registry
        .list()
        .into_iter()
        .filter_map(|(pod, published)| {
            let mut pod = pod.as_ref().clone();
            pod.status = Some(published.status);
            serde_json::to_value(pod).ok()
        })
        .collect();
    json(&serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

async fn running_pods(State(server): State<Server>) -> Response {
    let items: Vec<serde_json::Value> = server
        .shared
        .registry
        .list()
        .into_iter()
        .filter(|(_, published)| published.sandbox.is_some())
        .map(|(p, _)| {
            let containers: Vec<_> = pod::containers(&p)
                .iter()
                .map(|c| serde_json::json!({"name": c.name, "image": c.image, "resources": {}}))
                .collect();
            serde_json::json!({
                "metadata": {"name": pod::name(&p), "namespace": pod::namespace(&p), "uid": pod::uid(&p)},
                "spec": {"containers": containers},
                "status": {},
            })
        })
        .collect();
    json(&serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

async fn configz(State(server): State<Server>) -> Response {
    let config = &server.shared.config;
    let tuning = &config.tuning;
    let memory = u64::try_from(server.shared.machine.memory).unwrap_or(0);
    // The only one that depends on the machine is that of memory.
    let threshold = |least: Option<Threshold>| least.map_or("0".to_owned(), |least| least.show(memory));
    let dns: Vec<String> = config.cluster_dns.iter().map(ToString::to_string).collect();
    json(&serde_json::json!({"kubeletconfig": {
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "staticPodPath": config.pod_manifests_dir,
        "port": config.server.as_ref().map(|s| s.listen.port()),
        "clusterDomain": config.cluster_domain,
        "clusterDNS": dns,
        "cgroupRoot": config.cgroup_root,
        "cgroupDriver": if config.cgroup_root.is_empty() { "" } else { "cgroupfs" },
        "maxPods": tuning.pods_max,
        "resolvConf": config.resolv_conf,
        "podPidsLimit": tuning.pod_pids_max.map_or(-1, |most| i64::try_from(most).unwrap_or(i64::MAX)),
        "containerLogMaxSize": tuning.log_bytes_max.to_string(),
        "containerLogMaxFiles": tuning.log_files_max,
        "imageGCHighThresholdPercent": tuning.image_gc_high_percent,
        "imageGCLowThresholdPercent": tuning.image_gc_low_percent,
        "imageMinimumGCAge": format!("{}s", tuning.image_age_min.as_secs()),
        "maxParallelImagePulls": tuning.pulls_max,
        "evictionPressureTransitionPeriod": format!("{}s", tuning.pressure_transition.as_secs()),
        "nodeStatusReportFrequency": format!("{}s", tuning.status_period.as_secs()),
        "nodeLeaseDurationSeconds": 40,
        "podLogsDir": config.pod_logs_dir,
        "evictionHard": {
            "memory.available": threshold(tuning.eviction.memory),
            "nodefs.available": threshold(tuning.eviction.disk),
            "nodefs.inodesFree": threshold(tuning.eviction.inodes),
            "pid.available": threshold(tuning.eviction.pids),
        },
        "enableServer": true,
        "failSwapOn": false,
    }}))
}
