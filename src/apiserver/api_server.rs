//! The API server as a whole: made of its parts, started, asked.

use std::sync::Arc;

use mussel_api::resource;
use mussel_store::{ReadError, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::aggregator::{self, Aggregator};
use crate::authn::Authenticator;
use crate::authz::Authorizer;
use crate::bootstrap_roles;
use crate::catalog::Catalog;
use crate::config::Config;
use crate::connect::Kubelets;
use crate::context::Context;
use crate::custom;
use crate::encryption::{Encryption, Storage};
use crate::filters::Limits;
use crate::handler::{Body, Response};
use crate::health::Health;
use crate::metrics::Metrics;
use crate::openapi::OpenApi;
use crate::registry::Registry;
use crate::resource_metrics::Meter;
use crate::tokens::{KeyError, Tokens};
use crate::webhook;

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the service account key cannot be used")]
    ServiceAccountKey(#[source] KeyError),
    #[error("the credentials for kubelets cannot be used: {0}")]
    KubeletCredentials(String),
    #[error("the front proxy's certificate cannot be used: {0}")]
    ProxyCredentials(String),
    #[error("the store cannot be read")]
    Store(#[from] ReadError),
}

/// A running API server. Cheap to clone.
#[derive(Clone)]
pub struct ApiServer(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub context: Arc<Context>,
    pub registry: Registry,
    pub kubelets: Kubelets,
    pub meter: Meter,
    pub limits: Limits,
    pub openapi: OpenApi,
    pub encryption: Encryption,
    ready: watch::Receiver<bool>,
}

/// What runs once after start, by the names that `/readyz` shows.
const ROLES_HOOK: &str = "rbac/bootstrap-roles";
const OBJECTS_HOOK: &str = "start-system-namespaces-controller";

/// How long to wait before the bootstrap is tried again, while the store has no leader.
const BOOTSTRAP_RETRY: std::time::Duration = std::time::Duration::from_millis(250);

impl ApiServer {
    /// Loads what answering needs and begins to answer. The objects that every cluster has are written in the background,
    /// since that needs a leader of the store; [`ApiServer::ready`] tells when they are.
    ///
    /// # Errors
    /// When a key cannot be used or the store not be read; nothing keeps running then.
    pub async fn start(config: Config, store: Store, stop: CancellationToken) -> Result<Self, StartError> {
        let mut tokens =
            Tokens::new(config.issuer(), &config.service_account_key_pem).map_err(StartError::ServiceAccountKey)?;
        for pem in &config.service_account_verify_pems {
            tokens.also_trust(pem).map_err(StartError::ServiceAccountKey)?;
        }
        let tokens = Arc::new(tokens);
        let kubelets = Kubelets::new(&config).map_err(|error| StartError::KubeletCredentials(error.to_string()))?;
        let aggregator = Aggregator::new(&config).map_err(|error| StartError::ProxyCredentials(error.to_string()))?;
        let tasks = TaskTracker::new();
        let stop = stop.child_token();
        let storage = Storage::new(store.clone(), config.vault.clone());
        let encryption = Encryption::new(storage.clone());
        let authorizer = Authorizer::new(storage.clone());
        if let Err(error) = authorizer.start(&tasks, &stop).await {
            stop.cancel();
            return Err(error.into());
        }
        let limits = Limits::new(&config);
        let metrics = Metrics::default();
        metrics.register(|registry| store.metrics().register(registry));
        let context = Arc::new(Context {
            authenticator: Authenticator::new(&config, storage.clone(), Arc::clone(&tokens)),
            authorizer,
            catalog: if config.resource_metrics { Catalog::with(resource::metrics()) } else { Catalog::default() },
            aggregator,
            conversions: webhook::Client::default(),
            health: Health::new(store, stop.clone(), &[OBJECTS_HOOK, ROLES_HOOK]),
            metrics,
            config,
            store: storage,
            tokens,
            stop,
            tasks,
        });
        let following = async {
            custom::start_following(&context).await?;
            aggregator::start_following(&context).await
        };
        if let Err(error) = following.await {
            context.stop.cancel();
            return Err(error.into());
        }
        let (is_ready, ready) = watch::channel(false);
        let registry = Registry::new(Arc::clone(&context));
        context.tasks.spawn(encryption.clone().run(context.stop.clone()));
        let openapi = OpenApi::default();
        let inner = Arc::new(Inner {
            context,
            registry,
            kubelets,
            meter: Meter::default(),
            limits,
            openapi,
            encryption,
            ready,
        });
        let server = Self(inner);
        server.0.context.tasks.spawn(custom::run_keeper(server.clone()));
        server.0.context.tasks.spawn(aggregator::run(server.clone()));
        let bootstrap = server.clone();
        server.0.context.tasks.spawn(async move {
            let stop = bootstrap.0.context.stop.clone();
            tokio::select! {
                () = stop.cancelled() => {}
                () = bootstrap.bootstrap() => { is_ready.send_replace(true); }
            }
        });
        Ok(server)
    }

    async fn bootstrap(&self) {
        let context = &self.0.context;
        loop {
            let outcome = async {
                // Before anything is written that it may be about.
                let wanted = context.config.secrets_encryption;
                self.0.encryption.ensure(wanted).await.map_err(|error| error.to_string())?;
                bootstrap_roles::reconcile(&context.store).await.map_err(|error| error.to_string())?;
                context.health.done(ROLES_HOOK);
                self.0.registry.start().await.map_err(|status| status.message)?;
                context.health.done(OBJECTS_HOOK);
                context.authorizer.complete();
                Ok::<(), String>(())
            };
            match outcome.await {
                Ok(()) => return,
                Err(error) => tracing::warn!(%error, "default objects are not written yet"),
            }
            tokio::time::sleep(BOOTSTRAP_RETRY).await;
        }
    }

    /// Waits until default roles, namespaces and the like exist. Also returns when the server stops before.
    pub async fn ready(&self) {
        // An error means that the bootstrap task was stopped.
        let _ = self.0.ready.clone().wait_for(|ready| *ready).await;
    }

    pub fn is_ready(&self) -> bool {
        *self.0.ready.borrow()
    }

    /// Encryption at rest: its state, and how to change it.
    pub fn encryption(&self) -> &Encryption {
        &self.0.encryption
    }

    pub fn context(&self) -> &Arc<Context> {
        &self.0.context
    }

    /// Answers one request, whichever way it came. Identity is taken from the extensions [`crate::authn::Peer`] and
    /// [`crate::authn::InProcess`], else from the headers.
    pub async fn handle(&self, request: http::Request<Body>) -> Response {
        crate::filters::handle(&self.0, request).await
    }

    /// Stops the background tasks and waits for them. The store is left open.
    pub async fn shutdown(&self) {
        self.0.context.stop.cancel();
        self.0.context.tasks.close();
        self.0.context.tasks.wait().await;
    }
}
