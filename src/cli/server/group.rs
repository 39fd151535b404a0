//! A server's place in the group: founding it, coming back to it, or joining it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use mussel_client::ClientIdentity;
use mussel_cluster::balancer;
use mussel_cluster::bootstrap::Bootstrap;
use mussel_cluster::join::{Reasons, ServerJoin};
use mussel_cluster::peers::PeerTransport;
use mussel_cluster::pki::Pki;
use mussel_cluster::settings::ClusterSettings;
use mussel_cluster::token::Token;
use mussel_store::{Peer, Store, Timing};
use tokio::time;

use crate::cli::parts::chain;

const JOIN_RETRY: Duration = Duration::from_secs(2);

/// How this server comes to its store.
pub enum Entry {
    /// It has data, or is the first.
    Open,
    /// It joins the servers that sent this.
    Join(Box<Bootstrap>),
}

/// With `--server` and no data yet, asks that server to be let in, for as long as it cannot be reached.
///
/// # Errors
/// When it is reached and refuses, or the token is missing.
pub async fn enter(
    url: Option<&str>,
    token: Option<&str>,
    settings: &ClusterSettings,
    server_dir: &Path,
    node_name: &str,
    password_file: Option<&Path>,
) -> anyhow::Result<Entry> {
    if Store::has_data(&server_dir.join("db"))? {
        return Ok(Entry::Open);
    }
    let Some(url) = url else { return Ok(Entry::Open) };
    let server = balancer::server_address(url).context("--server")?;
    let Some(token) = token else {
        bail!("--server needs the cluster's --token; it is in <data-dir>/server/token there")
    };
    let token = Token::parse(token).context("--token")?;
    let join = ServerJoin {
        server,
        token,
        settings: settings.clone(),
        node_name: node_name.to_owned(),
        password_file: password_file.map(Path::to_owned),
        dir: server_dir.to_owned(),
    };
    let mut reasons = Reasons::default();
    loop {
        match join.attempt().await {
            Ok(bootstrap) => return Ok(Entry::Join(Box::new(bootstrap))),
            Err(error) if error.is_final() => return Err(error).with_context(|| format!("join {}", join.server)),
            Err(error) => reasons.tell(&chain(&error)),
        }
        time::sleep(JOIN_RETRY).await;
    }
}

/// Opens the store. A member that joins is not a voter yet: see [`Store::joined`].
///
/// # Errors
/// When the store refuses, each with its reason.
pub async fn open(
    entry: &Entry,
    server_dir: &Path,
    node_name: &str,
    address: SocketAddr,
    timing: Timing,
    pki: &Pki,
    identity: Arc<ClientIdentity>,
) -> anyhow::Result<Store> {
    let mut config = mussel_store::Config::new(server_dir.join("db"));
    config.timing = timing;
    let transport = PeerTransport::new(pki.peer_ca.cert_pem(), identity)?;
    config.peer =
        Some(Peer { name: node_name.to_owned(), address: address.to_string(), transport: Arc::new(transport) });
    match entry {
        Entry::Open => Ok(Store::open(config).await?),
        Entry::Join(bootstrap) => {
            let cluster = bootstrap.cluster.parse().context("the cluster's id")?;
            let store = Store::join(config, cluster, bootstrap.members.clone()).await?;
            tracing::info!(cluster = bootstrap.cluster, members = bootstrap.members.join(","), "joining the group");
            Ok(store)
        }
    }
}
