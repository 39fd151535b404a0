//! The server's side of joining: what lies beside the Kubernetes API on the one port.
//!
//! `/cacerts` and `/ping` answer anyone; all else takes a token, a bootstrap token or a certificate of the cluster. At most
//! [`READING_MAX`] and [`WRITING_MAX`] requests are worked on at once; machines come back when they are told to.

mod caller;
mod certificates;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use kube::Client;
use mussel_apiserver::authn::Peer;
use mussel_apiserver::{ApiServer, Body, Response, Status};
use mussel_store::Store;
use tokio::sync::Semaphore;
use tokio::time;

use crate::bootstrap::{self, Bootstrap};
use crate::ca_rotation;
use crate::next_version;
use crate::node_password;
use crate::pki::{Leaf, Pki};
use crate::protocol;
use crate::settings::ClusterSettings;
use crate::token::{Secrets, Token};
use crate::token_rotation;
use crate::tunnel::Tunnels;
pub use caller::Caller;

const READING_MAX: usize = 20;
const WRITING_MAX: usize = 10;
/// How long a request waits for its turn.
const TURN_TIME: Duration = Duration::from_secs(5);
const REQUEST_TIME: Duration = Duration::from_secs(30);
/// A wrong secret is answered late, so that guessing takes long. No turn is held meanwhile.
const REFUSAL_DELAY: Duration = Duration::from_millis(500);
const RETRY_AFTER_SECONDS: u32 = 2;

/// What a supervisor answers from.
pub struct Config {
    pub pki: Arc<Pki>,
    pub settings: ClusterSettings,
    pub secrets: Arc<ArcSwap<Secrets>>,
    pub tunnels: Tunnels,
    /// What the servers' certificates say: names that no node may have.
    pub reserved: Leaf,
    /// `<data-dir>/server`
    pub server_dir: PathBuf,
}

#[derive(Clone)]
pub struct Supervisor(Arc<Inner>);

struct Inner {
    config: Config,
    api: OnceLock<(ApiServer, Client)>,
    store: OnceLock<Store>,
    reading: Semaphore,
    writing: Semaphore,
}

impl Supervisor {
    pub fn new(config: Config) -> Self {
        Self(Arc::new(Inner {
            config,
            api: OnceLock::new(),
            store: OnceLock::new(),
            reading: Semaphore::new(READING_MAX),
            writing: Semaphore::new(WRITING_MAX),
        }))
    }

    /// Whether a path is answered here and not by the API.
    pub fn serves(path: &str) -> bool {
        path == protocol::CA_CERTS || path == protocol::PING || path.starts_with(protocol::PREFIX)
    }

    /// From now on answers that need the cluster's objects can be given. Must be called inside a tokio runtime.
    pub fn attach(&self, api: &ApiServer) {
        let client = api.client("system:mussel:supervisor", &["system:masters"]);
        // A second call would bring the same.
        let _ = self.0.api.set((api.clone(), client));
    }

    /// From now on servers can join.
    pub fn attach_store(&self, store: Store) {
        // A second call would bring the same.
        let _ = self.0.store.set(store);
    }

    /// Answers a request; whoever sent it, within a bounded time.
    pub async fn answer(&self, request: http::Request<Body>) -> Response {
        let mut response = match time::timeout(REQUEST_TIME, self.route(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(status)) => status.into_response(),
            Err(_) => Status::timeout("the request took too long").into_response(),
        };
        response.headers_mut().insert(protocol::VERSION_HEADER, next_version::header());
        response
    }

    async fn route(&self, request: http::Request<Body>) -> Result<Response, Status> {
        let path = request.uri().path().to_owned();
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        match path.as_str() {
            protocol::CA_CERTS if reads => return Ok(text(self.0.config.pki.server_ca.cert_pem())),
            protocol::PING if reads => return Ok(text("pong")),
            _ => {}
        }
        if !path.starts_with(protocol::PREFIX) {
            return Err(not_found(&path));
        }
        let caller = match self.caller(request.headers().clone(), peer(&request)).await {
            Ok(caller) => caller,
            Err(status) => {
                time::sleep(REFUSAL_DELAY).await;
                return Err(status);
            }
        };
        // The tunnel's request becomes the tunnel and needs no turn.
        if path == protocol::CONNECT && reads {
            return self.0.config.tunnels.accept(&caller, request);
        }
        let turns = if reads { &self.0.reading } else { &self.0.writing };
        let Ok(Ok(_turn)) = time::timeout(TURN_TIME, turns.acquire()).await else {
            return Err(Status::too_many_requests("too many machines join at once", RETRY_AFTER_SECONDS));
        };
        check_version(request.headers(), path == protocol::SERVER_BOOTSTRAP)?;
        if let Some(certificate) = protocol::Certificate::ALL.into_iter().find(|c| c.path() == path) {
            return self.sign(certificate, &caller, request).await;
        }
        match path.as_str() {
            protocol::CONFIG if reads => Ok(json(&self.0.config.settings)),
            protocol::API_SERVERS if reads => Ok(json(&self.api_servers().await?)),
            "/v1-mussel/client-ca.crt" if reads => Ok(text(self.0.config.pki.client_ca.cert_pem())),
            "/v1-mussel/server-ca.crt" if reads => Ok(text(self.0.config.pki.server_ca.cert_pem())),
            protocol::READY if reads => self.ready(),
            protocol::TOKEN if *request.method() == Method::PUT => self.rotate_token(&caller, request).await,
            protocol::AUTHORITIES if *request.method() == Method::PUT => {
                self.rotate_authorities(&caller, request).await
            }
            protocol::SERVER_BOOTSTRAP if reads => self.bootstrap(&caller, request.headers()).await,
            _ => Err(not_found(&path)),
        }
    }

    fn api(&self) -> Result<&(ApiServer, Client), Status> {
        self.0.api.get().ok_or_else(not_ready)
    }

    fn ready(&self) -> Result<Response, Status> {
        if self.api()?.0.is_ready() { Ok(text("ok")) } else { Err(not_ready()) }
    }

    /// Changes the servers' token; this server and all others take it from the Secret that is written here.
    async fn rotate_token(&self, caller: &Caller, request: http::Request<Body>) -> Result<Response, Status> {
        const TOKEN_BYTES_MAX: usize = 1024;
        if *caller != Caller::Server {
            return Err(Status::new(403, "Forbidden", "only the servers' token changes the servers' token"));
        }
        let body = Limited::new(request.into_body(), TOKEN_BYTES_MAX).collect().await;
        let body = body.map_err(|error| Status::bad_request(format!("the body cannot be read: {error}")))?.to_bytes();
        let text = std::str::from_utf8(&body).map_err(|_| Status::bad_request("the token is not text"))?;
        let token = Token::parse(text).map_err(|error| Status::bad_request(error.to_string()))?;
        let new = token.password().map_err(|error| Status::bad_request(error.to_string()))?;
        let (_, client) = self.api()?;
        token_rotation::publish(client, new).await.map_err(Status::internal)?;
        Ok(self::text("ok"))
    }

    /// Gives all servers new CAs, after a look at whether nodes will trust them.
    async fn rotate_authorities(&self, caller: &Caller, request: http::Request<Body>) -> Result<Response, Status> {
        const FILES_BYTES_MAX: usize = 1 << 20;
        if *caller != Caller::Server {
            return Err(Status::new(403, "Forbidden", "only the servers' token changes the CAs"));
        }
        let force = request.uri().query() == Some("force=true");
        let body = Limited::new(request.into_body(), FILES_BYTES_MAX).collect().await;
        let body = body.map_err(|error| Status::bad_request(format!("the body cannot be read: {error}")))?.to_bytes();
        let new: ca_rotation::Files =
            serde_json::from_slice(&body).map_err(|_| Status::bad_request("the body is no map of files"))?;
        let current = ca_rotation::current(&self.0.config.server_dir).map_err(Status::internal)?;
        ca_rotation::check(&current, &new, force).map_err(|error| Status::bad_request(error.to_string()))?;
        let (_, client) = self.api()?;
        let token = self.0.config.secrets.load().server.clone();
        ca_rotation::publish(client, &new, &token).await.map_err(Status::internal)?;
        Ok(self::text("ok"))
    }

    /// What a server needs to become one of this cluster.
    async fn bootstrap(&self, caller: &Caller, headers: &HeaderMap) -> Result<Response, Status> {
        if *caller != Caller::Server {
            let message = "the token lets agents join, but not servers; use the servers' token";
            return Err(Status::new(403, "Forbidden", message));
        }
        let store = self.0.store.get().ok_or_else(not_ready)?;
        self.check_name(store, headers).await?;
        let secrets = self.0.config.secrets.load_full();
        let bootstrap = Bootstrap {
            settings: self.0.config.settings.clone(),
            cluster: store.cluster_id().to_string(),
            members: store.members().into_iter().map(|member| member.address).filter(|a| !a.is_empty()).collect(),
            agent_token: (secrets.agent != secrets.server).then(|| secrets.agent.clone()),
            files: bootstrap::shared_files(&self.0.config.server_dir).map_err(Status::internal)?,
        };
        // Key derivation takes a while on a small machine.
        let sealed = tokio::task::spawn_blocking(move || bootstrap.seal(&secrets.server)).await;
        let sealed = sealed.map_err(Status::internal)?.map_err(Status::internal)?;
        Ok(with_type(Body::from(sealed), "application/json"))
    }

    /// Two servers of one name would be one node, and be taken for each other in the group. A server from before that was
    /// asked does not say its name.
    async fn check_name(&self, store: &Store, headers: &HeaderMap) -> Result<(), Status> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (name, password) = (text(protocol::NODE_NAME_HEADER), text(protocol::NODE_PASSWORD_HEADER));
        if name.is_empty() {
            return Ok(());
        }
        if !password.is_empty() {
            let (_, client) = self.api()?;
            return node_password::check(client, name, password).await.map_err(certificates::password_status);
        }
        // Without a node there is no password: the name is taken for as long as its holder answers.
        let holder = store.members().into_iter().find(|member| member.name == name && member.reachable == Some(true));
        match holder {
            Some(member) => {
                let message = format!(
                    "another server has the name {name:?} and answers at {}; choose another --node-name",
                    member.address
                );
                Err(Status::new(403, protocol::reason::NAME_TAKEN, message))
            }
            None => Ok(()),
        }
    }

    /// `host:port` of every server that lives, from the endpoints of `default/kubernetes`.
    async fn api_servers(&self) -> Result<Vec<String>, Status> {
        use k8s_openapi::api::discovery::v1::EndpointSlice;
        let (_, client) = self.api()?;
        let slices: kube::Api<EndpointSlice> = kube::Api::namespaced(client.clone(), "default");
        let slice = slices.get_opt("kubernetes").await.map_err(Status::internal)?;
        Ok(slice.as_ref().map(crate::balancer::api_servers).unwrap_or_default())
    }
}

/// The version that the machine says it has. Without one (curl, k3s' habits) it is not checked.
fn check_version(headers: &HeaderMap, is_server: bool) -> Result<(), Status> {
    let Some(version) = headers.get(protocol::VERSION_HEADER) else { return Ok(()) };
    let version = version.to_str().unwrap_or_default();
    let check = if is_server { protocol::check_server_version } else { protocol::check_agent_version };
    check(version, next_version::version())
        .map_err(|skew| Status::new(400, protocol::reason::VERSION_SKEW, skew.to_string()))
}

/// The addresses in a comma-separated header.
fn addresses(headers: &HeaderMap, name: &str) -> Result<Vec<IpAddr>, Status> {
    const ADDRESSES_MAX: usize = 16;
    let value = headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let parts: Vec<&str> = value.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    if parts.len() > ADDRESSES_MAX {
        return Err(Status::bad_request(format!("{name} holds more than {ADDRESSES_MAX} addresses")));
    }
    let parsed = parts.iter().map(|part| part.parse().map_err(|_| format!("{name}: {part:?} is no address")));
    parsed.collect::<Result<_, _>>().map_err(Status::bad_request)
}

fn not_ready() -> Status {
    Status::unavailable("the API server is not ready yet").with_retry_after(RETRY_AFTER_SECONDS)
}

fn not_found(path: &str) -> Status {
    Status::new(404, "NotFound", format!("nothing is served at {path}"))
}

fn text(text: &str) -> Response {
    with_type(Body::from(text.to_owned()), "text/plain; charset=utf-8")
}

fn json(value: &impl serde::Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => with_type(Body::from(bytes), "application/json"),
        Err(error) => Status::internal(error).into_response(),
    }
}

fn with_type(body: Body, kind: &'static str) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// What the TLS handshake told about the caller.
fn peer(request: &http::Request<Body>) -> Peer {
    request.extensions().get::<Peer>().cloned().unwrap_or_default()
}
