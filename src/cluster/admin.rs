//! What people ask of a running server with the servers' token.

use std::net::SocketAddr;
use std::path::Path;

use http::{HeaderMap, Method};
use mussel_client::ClusterTls;

use crate::balancer::{UrlError, server_address};
use crate::ca_rotation::{self, RotationError};
use crate::join::JoinError;
use crate::join::request::{self, Trust};
use crate::join::steps::{Asked, authorization};
use crate::protocol::{self, SERVER_USER};
use crate::token::{self, Credential, Token, TokenError};

#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("--server")]
    Url(#[from] UrlError),
    #[error("token")]
    Token(#[from] TokenError),
    #[error(transparent)]
    Rotation(#[from] RotationError),
    #[error(transparent)]
    Join(#[from] JoinError),
}

/// Changes the servers' token, and returns the full form of the new one.
///
/// # Errors
/// When the server cannot be reached or refuses.
pub async fn rotate_token(url: &str, current: &str, new: Option<&str>) -> Result<String, AdminError> {
    let server = server_address(url)?;
    let current = Token::parse(current)?;
    let new = match new {
        Some(new) => Token::parse(new)?.password()?.to_owned(),
        None => token::random(),
    };
    let ca_pem = put(&server, &current, protocol::TOKEN, new.clone().into_bytes()).await?;
    Ok(token::full(&ca_pem, SERVER_USER, &new))
}

/// Gives the cluster the CAs and keys in `dir`, and returns the names of the files.
///
/// # Errors
/// When the server cannot be reached or refuses.
pub async fn rotate_authorities(url: &str, current: &str, dir: &Path, force: bool) -> Result<Vec<String>, AdminError> {
    let server = server_address(url)?;
    let new = ca_rotation::read(dir)?;
    let path = if force { format!("{}?force=true", protocol::AUTHORITIES) } else { protocol::AUTHORITIES.to_owned() };
    let body = serde_json::to_vec(&new).unwrap_or_default();
    put(&server, &Token::parse(current)?, &path, body).await?;
    Ok(new.into_keys().collect())
}

/// Sends something with the servers' token, and returns the CA of the cluster.
async fn put(server: &str, current: &Token, path: &str, body: Vec<u8>) -> Result<String, AdminError> {
    let address = resolve(server).await?;
    let asked = Asked { server, address, balancer: None };
    // Nothing is kept from before: the token's hash is what counts.
    let ca_pem = asked.authority(Some(current), Path::new("/nonexistent")).await?;
    let tls = ClusterTls::new(ca_pem.as_bytes(), None).map_err(JoinError::from)?;
    let credential =
        Credential::Password { user: Some(SERVER_USER.to_owned()), password: current.password()?.to_owned() };
    let headers: HeaderMap =
        authorization(&credential).into_iter().map(|value| (http::header::AUTHORIZATION, value)).collect();
    let answer = request::send(address, Trust::Cluster(&tls), Method::PUT, path, headers, body).await;
    answer.map_err(|error| asked.refusal(path, error))?;
    Ok(ca_pem)
}

/// The first address of `host:port`.
pub async fn resolve(server: &str) -> Result<SocketAddr, JoinError> {
    let unreachable = |reason: String| JoinError::Unreachable { reason: format!("{server}: {reason}") };
    let (host, port) = server.rsplit_once(':').ok_or_else(|| unreachable("no port".to_owned()))?;
    let port = port.parse().map_err(|_| unreachable("no port".to_owned()))?;
    let ips = mussel_client::resolve(host.trim_matches(['[', ']'])).await;
    let ips = ips.map_err(|error| unreachable(error.to_string()))?;
    let ip = ips.first().ok_or_else(|| unreachable("the name has no address".to_owned()))?;
    Ok(SocketAddr::new(*ip, port))
}
