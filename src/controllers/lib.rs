//! The controllers: one module per controller, each a client of the API server like any other.
//!
//! Each follows its kinds through shared informers, queues keys and reconciles them level-triggered: a pass looks at
//! the newest state, whatever woke it, and may be repeated at any time. They run on the store's leader only.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use mussel_client::{Informers, LeaderGate, Recorder};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::census::Census;

mod census;
mod certificates;
mod cluster_role;
mod control;
mod cron_job;
mod daemon_set;
mod deployment;
mod discovery;
mod disruption;
mod endpoint;
mod endpoint_slice;
mod endpoints;
mod error;
mod expectations;
mod garbage;
mod hash;
mod horizontal_pod_autoscaler;
mod job;
mod local_path;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod owner;
mod persistent_volume;
mod pod_gc;
mod pods;
mod replica_set;
mod resource_quota;
mod revision;
mod service_account;
pub mod service_lb;
mod stateful_set;

pub use certificates::{Authority, SIGNING_DURATION, Signer};
pub use node_lifecycle::GRACE_PERIOD as NODE_MONITOR_GRACE_PERIOD;
pub use pod_gc::TERMINATED_MAX as TERMINATED_PODS_MAX;

/// Makes the client of a controller, by the name of its service account: `deployment-controller`.
pub type Clients = Arc<dyn Fn(&str) -> kube::Client + Send + Sync>;

/// What all controllers share. Each acts under its own name, and may do what the role of that name allows.
#[derive(Clone)]
pub struct Context {
    informers: Informers,
    config: Config,
    clients: Clients,
    /// Of the controller that has this copy.
    identity: &'static str,
}

/// What the operator chose.
#[derive(Clone, Debug)]
pub struct Config {
    /// Pod addresses of the whole cluster: `10.42.0.0/16`.
    pub cluster_cidr: String,
    /// Prefix length of one node's part of it.
    pub node_cidr_mask: u8,
    /// A node that was not heard of for so long is taken for dead.
    pub node_monitor_grace_period: Duration,
    /// So many finished Pods are kept.
    pub terminated_pods_max: usize,
    pub cluster_domain: String,
    pub service_lb: service_lb::Config,
    /// Volumes of the class local-path are made.
    pub local_storage: bool,
    /// What pods verify the API server with; published to every namespace.
    pub root_ca_pem: String,
    /// Signs certificates, for no longer than this.
    pub signer: Arc<dyn Signer>,
    pub signing_duration: Duration,
}

impl Context {
    /// `informers` read for all of them.
    pub fn new(informers: Informers, config: Config, clients: Clients) -> Self {
        Self { informers, config, clients, identity: "" }
    }

    fn of(&self, identity: &'static str) -> Self {
        Self { identity, ..self.clone() }
    }

    fn client(&self) -> kube::Client {
        self.client_as(self.identity)
    }

    /// For a controller that does the work of two of upstream's.
    fn client_as(&self, identity: &str) -> kube::Client {
        (self.clients)(identity)
    }

    fn recorder(&self, component: &str) -> Recorder {
        Recorder::new(self.client(), component, "")
    }
}

/// Runs all controllers whenever this server leads, until `stop`.
pub async fn run(context: Context, gate: LeaderGate, stop: CancellationToken) {
    gate.run_while_leading(stop, |term| lead(context.clone(), term)).await;
}

const QUOTA: &str = "resourcequota-controller";
const GARBAGE: &str = "generic-garbage-collector";

/// One term as leader. A controller that panics takes nobody else along, but is missed until the next term, so it is
/// reported.
async fn lead(context: Context, term: CancellationToken) {
    tracing::info!("controllers start");
    let mut controllers = JoinSet::new();
    let mut start = |identity: &'static str, controller: fn(Context, CancellationToken) -> BoxFuture<'static, ()>| {
        let running = controller(context.of(identity), term.clone());
        controllers.spawn(async move {
            running.await;
            identity
        });
    };
    start("certificate-controller", |c, t| certificates::run(c, t).boxed());
    start("clusterrole-aggregation-controller", |c, t| cluster_role::run(c, t).boxed());
    start("cronjob-controller", |c, t| cron_job::run(c, t).boxed());
    start("daemon-set-controller", |c, t| daemon_set::run(c, t).boxed());
    start("deployment-controller", |c, t| deployment::run(c, t).boxed());
    start("disruption-controller", |c, t| disruption::run(c, t).boxed());
    start("endpoint-controller", |c, t| endpoints::run(c, t).boxed());
    start("endpointslice-controller", |c, t| endpoint_slice::run(c, t).boxed());
    start("horizontal-pod-autoscaler", |c, t| horizontal_pod_autoscaler::run(c, t).boxed());
    start("job-controller", |c, t| job::run(c, t).boxed());
    start("local-path-provisioner", |c, t| local_path::run(c, t).boxed());
    start("namespace-controller", |c, t| namespace::run(c, t).boxed());
    start("node-controller", |c, t| node_ipam::run(c, t).boxed());
    start("node-controller", |c, t| node_lifecycle::run(c, t).boxed());
    start("persistent-volume-binder", |c, t| persistent_volume::run(c, t).boxed());
    start("pod-garbage-collector", |c, t| pod_gc::run(c, t).boxed());
    start("replicaset-controller", |c, t| replica_set::run_replica_sets(c, t).boxed());
    start("replication-controller", |c, t| replica_set::run_replication_controllers(c, t).boxed());
    start("service-account-controller", |c, t| service_account::run(c, t).boxed());
    start("service-controller", |c, t| service_lb::run(c, t).boxed());
    start("statefulset-controller", |c, t| stateful_set::run(c, t).boxed());
    let census = Census::default();
    for (name, running) in [
        (QUOTA, resource_quota::run(context.of(QUOTA), census.clone(), term.clone()).boxed()),
        (GARBAGE, garbage::run(context.of(GARBAGE), census, term.clone()).boxed()),
    ] {
        controllers.spawn(async move {
            running.await;
            name
        });
    }
    while let Some(ended) = controllers.join_next().await {
        match ended {
            Ok(name) if !term.is_cancelled() => tracing::error!(controller = name, "controller ended unasked"),
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "controller failed"),
        }
    }
    tracing::info!("controllers stopped");
}
