//! The kubelet: it runs the pods that the API assigns to this node, and says how they are.
//!
//! It knows the container runtime only as CRI, and the cluster only as a Kubernetes client, so it works on any runtime
//! and against any API server. [`Kubelet::run`] starts all tasks and ends them.
//!
//! Where to look: `plan.rs` decides what a pod needs, `worker/` does it, `status.rs` computes what is said of it,
//! `report.rs` says it. `sources.rs` brings pods, `pleg.rs` the runtime's events. Around them: volumes, images, probes,
//! logs, the Node object, housekeeping and the HTTPS server.
//!
//! Invariants: one task per pod starts and stops what is the pod's; nothing that runs is touched by a restart of the
//! kubelet; the API forgets a pod only after its last container has ended here.

mod admission;
mod allocation;
mod backoff;
mod cgroups;
mod config;
mod container;
mod cri;
mod dns;
mod env;
mod eviction;
mod fields;
mod hooks;
mod housekeeping;
mod images;
mod labels;
mod logs;
mod machine;
mod mirror;
mod net;
mod node;
mod objects;
mod observed;
mod plan;
mod pleg;
mod pod;
mod probes;
mod report;
mod resources;
mod sandbox;
mod security;
mod server;
mod shared;
mod sources;
mod status;
mod sysctls;
mod tokens;
mod tuning;
mod volumes;
mod worker;

use std::sync::{Arc, OnceLock};

use mussel_client::Recorder;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{Config, ServerConfig};
pub use cri::{Cri, CriError, Grpc};
pub use sysctls::is_pattern as is_sysctl_pattern;
pub use tuning::{Reserved, Threshold, Thresholds, Tuning};

/// Why the kubelet could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    #[error("create {path}")]
    Directory { path: String, source: std::io::Error },
    #[error("no address for this node")]
    NoAddress,
    #[error("serve on {listen}: {cause}")]
    Serve { listen: std::net::SocketAddr, cause: String },
}

pub struct Kubelet {
    config: Config,
}

impl Kubelet {
    pub fn new(config: Config) -> Self {
        Self { config }
    }

    /// Runs until `stop`. Containers keep running after that.
    ///
    /// # Errors
    /// When this node cannot run pods at all: no address, no place for files, the port taken.
    pub async fn run(self, stop: CancellationToken) -> Result<(), KubeletError> {
        let config = self.config;
        if config.node_ips.is_empty() {
            return Err(KubeletError::NoAddress);
        }
        for dir in [&config.root_dir, &config.root_dir.join("pods"), &config.pod_logs_dir, &config.pod_manifests_dir] {
            std::fs::create_dir_all(dir)
                .map_err(|source| KubeletError::Directory { path: dir.display().to_string(), source })?;
        }
        let stop = stop.child_token();
        let machine = machine::Machine::read();
        let systemd = config.cri.systemd_cgroups().await;
        let cgroups = cgroups::Cgroups::new(&config.cgroup_root, systemd, machine.memory, config.tuning.pod_pids_max);
        let room = machine.room(&config.tuning);
        if let Err(error) = cgroups.ensure_roots(room.milli_cpu, room.memory_limit) {
            tracing::warn!(%error, "cannot prepare the cgroups of pods");
        }
        let client = config.client.clone();
        let recorder = Recorder::new(client.clone(), "kubelet", &config.node_name);
        let registry = shared::Registry::default();
        let waker = |registry: shared::Registry| move |uid: &str| registry.wake(uid);
        let checkpoints = config.root_dir.join("checkpoints");
        let objects =
            objects::Objects::new(client.clone(), checkpoints.join("objects"), waker(registry.clone()), stop.clone());
        let cri = config.cri.clone();
        let server = config.server.is_some();
        let shared = Arc::new(shared::Shared {
            cgroups,
            images: images::Images::new(cri.clone(), recorder.clone(), objects.clone(), config.tuning.pulls_max),
            volumes: volumes::Volumes {
                client: client.clone(),
                objects,
                tokens: tokens::Tokens::new(client, checkpoints.join("tokens")),
                pods_dir: config.root_dir.join("pods"),
            },
            probes: probes::Probes::new(cri.clone(), recorder.clone(), waker(registry.clone()), stop.clone()),
            services: config.informers.of(),
            api_pods: config.informers.of_fields(&format!("spec.nodeName={}", config.node_name)),
            node: config.informers.of_fields(&format!("metadata.name={}", config.node_name)),
            restarts: std::sync::Mutex::default(),
            registry,
            runtime: watch::Sender::default(),
            runtime_name: OnceLock::new(),
            runtime_version: OnceLock::new(),
            reports: shared::Shared::report_permits(),
            admitted: tokio::sync::Mutex::default(),
            tasks: TaskTracker::new(),
            stop: stop.clone(),
            started_at: jiff::Timestamp::now(),
            cri,
            machine,
            recorder,
            config,
        });
        let listener = if server { Some(server::Listening::open(shared.clone()).await?) } else { None };
        let (pressure, pressed) = watch::channel(eviction::Pressure::default());
        let collect = Arc::new(Notify::new());
        shared.spawn(node::watch_runtime(shared.clone()));
        shared.spawn(node::run(shared.clone(), pressed));
        shared.spawn(node::renew_lease(shared.clone()));
        shared.spawn(node::follow_pod_cidr(shared.clone()));
        shared.spawn(pleg::run(shared.clone()));
        shared.spawn(sources::follow_api(shared.clone()));
        shared.spawn(sources::follow_manifests(shared.clone()));
        shared.spawn(eviction::run(shared.clone(), pressure, collect.clone()));
        shared.spawn(housekeeping::collect_images(shared.clone(), collect));
        shared.spawn(housekeeping::remove_orphans(shared.clone()));
        shared.spawn(housekeeping::rotate_logs(shared.clone()));
        if let Some(listener) = listener {
            shared.spawn(listener.run());
        }
        stop.cancelled().await;
        shared.tasks.close();
        shared.tasks.wait().await;
        Ok(())
    }
}
