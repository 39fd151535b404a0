//! Group versions that others serve: extension API servers behind Services, each told of by an APIService.
//!
//! Every server follows the APIServices by a watch of its own ([`follow`]) and sends requests below `/apis/<group>/<version>/`
//! on, after it has made sure who asks and that they may ([`proxy`]). Whether an extension server can be reached is found out
//! by the leader alone ([`availability`]), and told to all in the APIService's status. The leader also keeps the APIServices
//! of what is served here ([`register`]). What extension servers say of themselves is asked when a client wants to know
//! ([`documents`]), and kept for a while.

mod authentication;
mod availability;
pub mod documents;
mod follow;
mod proxy;
mod register;
mod service;

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderValue;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::config::Config;
use crate::outbound::Pools;
use crate::outbound::tls::{CredentialsError, Identity};

pub(crate) use follow::start as start_following;
pub(crate) use proxy::proxy;
pub use register::priorities;
pub use service::{ApiService, RESOURCE};

use crate::status::Status;
use crate::{ApiServer, Context};

/// The APIServices at one moment, by name.
pub type Table = BTreeMap<String, Arc<ApiService>>;

/// The group of the APIServices themselves, which nobody else can serve: otherwise there were no way back.
const OWN_GROUP: &str = "apiregistration.k8s.io";

/// One per API server.
pub struct Aggregator {
    table: ArcSwap<Table>,
    /// Counts the replacements.
    changes: watch::Sender<u64>,
    pools: Pools,
    /// Marks what this cluster has sent on (RFC 9110, 7.6.3): an APIService may lead back to it.
    via: HeaderValue,
    documents: documents::Documents,
}

impl Aggregator {
    /// # Errors
    /// When the front proxy's certificate was given and cannot be used.
    pub fn new(config: &Config) -> Result<Self, CredentialsError> {
        let identity = Identity::from_pem(&config.proxy_client_cert_pem, &config.proxy_client_key_pem)?;
        let digest = Sha256::digest(&config.client_ca_pem);
        let cluster: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Ok(Self {
            via: HeaderValue::from_str(&format!("1.1 mussel-{cluster}"))
                .unwrap_or(HeaderValue::from_static("1.1 mussel")),
            table: ArcSwap::default(),
            changes: watch::Sender::new(0),
            pools: Pools::new(identity.map(Arc::new)),
            documents: documents::Documents::default(),
        })
    }

    pub fn table(&self) -> Arc<Table> {
        self.table.load_full()
    }

    fn set_table(&self, table: Table) {
        self.table.store(Arc::new(table));
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// Is told after each change of the table.
    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Who serves this path, if it is somebody else: of `/apis/<group>/<version>` and all below.
    pub fn route(&self, path: &str) -> Option<Arc<ApiService>> {
        let mut parts = path.trim_matches('/').splitn(4, '/');
        let ("apis", group, version) = (parts.next()?, parts.next()?, parts.next()?) else { return None };
        self.elsewhere(group, version)
    }

    /// Who serves this group version, if it is somebody else.
    pub fn elsewhere(&self, group: &str, version: &str) -> Option<Arc<ApiService>> {
        let table = self.table.load();
        table.get(&format!("{version}.{group}")).filter(|service| service.is_elsewhere()).cloned()
    }
}

/// Writes what every cluster has. Called once, before `/readyz` turns green.
///
/// # Errors
/// When the store does not take it.
pub(crate) async fn bootstrap(context: &Context) -> Result<(), Status> {
    register::settle(context).await?;
    authentication::settle(context).await?;
    Ok(())
}

/// The leader's part. Runs until the server stops; acts while this server leads.
pub(crate) async fn run(server: ApiServer) {
    let context: Arc<Context> = Arc::clone(server.context());
    let stop = context.stop.clone();
    let mut leader = context.store.leader();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            // An error means that the store has stopped.
            led = leader.wait_for(|leads| *leads) => if led.is_err() { return },
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = leader.wait_for(|leads| !*leads) => {}
            () = async { tokio::join!(register::lead(&context), availability::lead(&context), authentication::lead(&context)); } => return,
        }
    }
}
