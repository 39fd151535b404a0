//! The server's socket for its own command line: HTTP and JSON on `<run-dir>/server.sock`, for root only.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, bail};
use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use mussel_apiserver::encryption::{Encryption, EncryptionStatus, RotationError};
use mussel_store::Store;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::parts::chain;
use super::snapshots::{Snapshot, SnapshotError, Snapshots};

const SOCKET: &str = "server.sock";
/// More than a list of as many snapshots as anybody keeps.
const ANSWER_BYTES_MAX: usize = 16 << 20;

pub const STATUS: &str = "/v1-mussel/store/status";
pub const REMOVE_MEMBER: &str = "/v1-mussel/store/remove";
pub const SNAPSHOTS: &str = "/v1-mussel/snapshots";
pub const DELETE: &str = "/v1-mussel/snapshots/delete";
pub const PRUNE: &str = "/v1-mussel/snapshots/prune";
pub const ENCRYPT_STATUS: &str = "/v1-mussel/encrypt/status";
pub const ENCRYPT_CONFIG: &str = "/v1-mussel/encrypt/config";

#[derive(Debug, Serialize, Deserialize)]
pub struct RemoveRequest {
    /// Its name, or its id where several have the name.
    pub member: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct SaveRequest {
    pub name: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct DeleteRequest {
    pub names: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct PruneRequest {
    pub name: String,
    pub keep: usize,
}

/// A step in the life of the encryption of Secrets.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EncryptionRequest {
    Enable,
    Disable,
    Prepare { force: bool },
    Rotate { force: bool },
    RotateKeys,
    Reencrypt { force: bool, skip: bool },
}

/// Members are named by 16 hexadecimal digits.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreStatus {
    pub cluster: String,
    /// The one that answers.
    pub member: String,
    pub leader: Option<String>,
    pub term: u64,
    pub revision: u64,
    pub keys: u64,
    /// Equal on all members at equal revisions.
    pub digest: String,
    pub applied_index: u64,
    pub committed_index: u64,
    pub checkpoint_index: u64,
    pub purged_index: u64,
    pub last_log_index: u64,
    pub db_bytes: u64,
    /// Why nothing can be written, if that is so.
    pub write_error: Option<String>,
    pub members: Vec<Member>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    pub id: String,
    pub name: String,
    pub address: String,
    pub role: String,
    pub leader: bool,
    pub lag_entries: Option<u64>,
    pub reachable: Option<bool>,
}

impl StoreStatus {
    fn of(status: mussel_store::Status) -> Self {
        let id = |member: u64| format!("{member:016x}");
        let members = status.members.into_iter().map(|member| Member {
            id: id(member.id),
            name: member.name,
            address: member.address,
            role: member.role.to_string(),
            leader: member.leader,
            lag_entries: member.lag_entries,
            reachable: member.reachable,
        });
        Self {
            cluster: status.cluster.to_string(),
            member: id(status.member),
            leader: status.leader.map(id),
            term: status.term,
            revision: status.revision.0,
            keys: status.keys,
            digest: id(status.digest),
            applied_index: status.applied_index,
            committed_index: status.committed_index,
            checkpoint_index: status.checkpoint_index,
            purged_index: status.purged_index,
            last_log_index: status.last_log_index,
            db_bytes: status.db_bytes,
            write_error: status.failed,
            members: members.collect(),
        }
    }
}

#[derive(Clone)]
pub struct Admin {
    pub store: Store,
    pub snapshots: Snapshots,
    /// Set when the API server runs.
    pub encryption: Arc<OnceLock<Encryption>>,
}

/// Whether a server runs that uses this folder.
pub fn is_answered(run_dir: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(run_dir.join(SOCKET)).is_ok()
}

/// Takes the socket over from a server that has ended.
pub fn listen(run_dir: &Path) -> anyhow::Result<UnixListener> {
    mussel_cluster::files::create_dir(run_dir, 0o755)?;
    let path = run_dir.join(SOCKET);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("restrict {}", path.display()))?;
    Ok(listener)
}

impl Admin {
    pub async fn serve(self, listener: UnixListener, stop: CancellationToken) -> io::Result<()> {
        let router = Router::new()
            .route(STATUS, get(status))
            .route(REMOVE_MEMBER, post(remove_member))
            .route(SNAPSHOTS, get(list).post(save))
            .route(DELETE, post(delete))
            .route(PRUNE, post(prune))
            .route(ENCRYPT_STATUS, get(encrypt_status))
            .route(ENCRYPT_CONFIG, post(encrypt_config))
            .with_state(self);
        axum::serve(RootOnly(listener), router).with_graceful_shutdown(stop.cancelled_owned()).await
    }
}

/// Turns everybody else away, whatever the file's mode.
struct RootOnly(UnixListener);

impl axum::serve::Listener for RootOnly {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        loop {
            let (stream, address) = axum::serve::Listener::accept(&mut self.0).await;
            match stream.peer_cred() {
                Ok(peer) if peer.uid() == 0 => return (stream, address),
                _ => tracing::warn!("a connection to the admin socket that is not root's was closed"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

struct Refusal(SnapshotError);

impl From<SnapshotError> for Refusal {
    fn from(error: SnapshotError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let code = match self.0 {
            SnapshotError::Name(_) => StatusCode::BAD_REQUEST,
            SnapshotError::NotFound { .. } => StatusCode::NOT_FOUND,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (code, chain(&self.0)).into_response()
    }
}

async fn status(State(admin): State<Admin>) -> Json<StoreStatus> {
    Json(StoreStatus::of(admin.store.status().await))
}

/// Takes a server out of the group, whether or not it lives. A server with a node is removed with its Node.
async fn remove_member(
    State(admin): State<Admin>,
    Json(request): Json<RemoveRequest>,
) -> Result<Json<Member>, (StatusCode, String)> {
    let members = StoreStatus::of(admin.store.status().await).members;
    let mut found = members.into_iter().filter(|member| [&member.id, &member.name].contains(&&request.member));
    let Some(member) = found.next() else {
        return Err((StatusCode::NOT_FOUND, format!("no member is called {:?}", request.member)));
    };
    if found.next().is_some() {
        return Err((StatusCode::CONFLICT, format!("several members are called {:?}; give the id", request.member)));
    }
    let id = u64::from_str_radix(&member.id, 16).map_err(|_| (StatusCode::BAD_REQUEST, "not an id".to_owned()))?;
    match admin.store.remove_member(id).await {
        Ok(()) => {
            tracing::info!(server = member.name, member = member.id, "the server is removed from the group, as asked");
            Ok(Json(member))
        }
        Err(error) => Err((StatusCode::SERVICE_UNAVAILABLE, chain(&error))),
    }
}

async fn list(State(admin): State<Admin>) -> Result<Json<Vec<Snapshot>>, Refusal> {
    Ok(Json(admin.snapshots.list()?))
}

async fn save(State(admin): State<Admin>, Json(request): Json<SaveRequest>) -> Result<Json<Snapshot>, Refusal> {
    Ok(Json(admin.snapshots.save(&admin.store, &request.name).await?))
}

async fn delete(
    State(admin): State<Admin>,
    Json(request): Json<DeleteRequest>,
) -> Result<Json<Vec<Snapshot>>, Refusal> {
    Ok(Json(admin.snapshots.delete(&request.names)?))
}

async fn prune(State(admin): State<Admin>, Json(request): Json<PruneRequest>) -> Result<Json<Vec<Snapshot>>, Refusal> {
    Ok(Json(admin.snapshots.prune(&request.name, request.keep)?))
}

struct EncryptionRefusal(Option<RotationError>);

impl From<RotationError> for EncryptionRefusal {
    fn from(error: RotationError) -> Self {
        Self(Some(error))
    }
}

impl IntoResponse for EncryptionRefusal {
    fn into_response(self) -> Response {
        let Some(error) = self.0 else {
            return (StatusCode::SERVICE_UNAVAILABLE, "the server is starting; try again").into_response();
        };
        let code = match error {
            RotationError::Read(_) | RotationError::Write(_) | RotationError::Seal(_) | RotationError::Locked(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            _ => StatusCode::BAD_REQUEST,
        };
        (code, chain(&error)).into_response()
    }
}

impl Admin {
    fn encryption(&self) -> Result<&Encryption, EncryptionRefusal> {
        self.encryption.get().ok_or(EncryptionRefusal(None))
    }
}

async fn encrypt_status(State(admin): State<Admin>) -> Result<Json<EncryptionStatus>, EncryptionRefusal> {
    Ok(Json(admin.encryption()?.status().await?))
}

async fn encrypt_config(
    State(admin): State<Admin>,
    Json(request): Json<EncryptionRequest>,
) -> Result<Json<EncryptionStatus>, EncryptionRefusal> {
    let encryption = admin.encryption()?;
    match request {
        EncryptionRequest::Enable => encryption.enable(true).await?,
        EncryptionRequest::Disable => encryption.enable(false).await?,
        EncryptionRequest::Prepare { force } => encryption.prepare(force).await?,
        EncryptionRequest::Rotate { force } => encryption.rotate(force).await?,
        EncryptionRequest::RotateKeys => encryption.rotate_keys().await?,
        EncryptionRequest::Reencrypt { force, skip } => encryption.reencrypt(force, skip).await?,
    }
    Ok(Json(encryption.status().await?))
}

/// Asks the server that runs on this machine; with a body it is a POST. For the command line.
pub fn ask<A: DeserializeOwned>(run_dir: &Path, path: &str, body: Option<&impl Serialize>) -> anyhow::Result<A> {
    let socket = run_dir.join(SOCKET);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the async runtime")?;
    runtime.block_on(async {
        let stream = match UnixStream::connect(&socket).await {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                bail!("no server answers on {}; is one running, and with this --run-dir?", socket.display())
            }
            Err(error) => return Err(error).with_context(|| format!("connect to {}", socket.display())),
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the answer, and with the runtime.
        tokio::spawn(connection);
        let request = hyper::Request::builder().uri(path).header("host", "mussel");
        let request = match body {
            Some(body) => request
                .method("POST")
                .header("content-type", "application/json")
                .body(Full::new(Bytes::from(serde_json::to_vec(body)?)))?,
            None => request.body(Full::new(Bytes::new()))?,
        };
        let response = sender.send_request(request).await.context("ask the server")?;
        let code = response.status();
        let bytes = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let bytes = bytes.map_err(anyhow::Error::from_boxed).context("read the server's answer")?.to_bytes();
        if !code.is_success() {
            bail!("{}", String::from_utf8_lossy(&bytes));
        }
        serde_json::from_slice(&bytes).context("read the server's answer")
    })
}

/// For requests without a body.
pub const NO_BODY: Option<&()> = None;
