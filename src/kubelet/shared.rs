//! What every part of the kubelet works with.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use k8s_openapi::api::core::v1::{Node, Pod, PodStatus, Service};
use mussel_client::{Informer, Recorder};
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::allocation::Allocations;
use crate::backoff::Backoff;
use crate::cgroups::Cgroups;
use crate::config::Config;
use crate::cri::Cri;
use crate::fields::NodeFacts;
use crate::images::Images;
use crate::machine::Machine;
use crate::pod;
use crate::probes::Probes;
use crate::resources::{self, Qos};
use crate::status::Verdict;
use crate::volumes::Volumes;

/// Status writes at the same time. A burst of pods must not become a burst of connections.
const REPORTS_MAX: usize = 16;

/// What a pod's worker is to bring about.
#[derive(Debug, Clone)]
pub struct Desired {
    pub pod: Arc<Pod>,
    /// The source no longer has the pod.
    pub removed: bool,
    /// The node wants it gone.
    pub evict: Option<Evict>,
}

#[derive(Debug, Clone)]
pub struct Evict {
    pub verdict: Verdict,
    /// Seconds; `None` is the pod's own.
    pub grace: Option<i64>,
}

impl Desired {
    /// Whether nothing may be started any more.
    pub fn must_end(&self) -> bool {
        self.removed || self.evict.is_some() || self.pod.metadata.deletion_timestamp.is_some()
    }

    pub fn grace(&self) -> i64 {
        let own = pod::grace_seconds(&self.pod);
        self.evict.as_ref().and_then(|e| e.grace).map_or(own, |g| g.min(own))
    }
}

/// What is known of a pod outside its worker.
#[derive(Debug, Clone, Default)]
pub struct Published {
    pub status: PodStatus,
    /// Nothing of it runs or will run.
    pub finished: bool,
    /// The newest container id by name, and the sandbox.
    pub containers: HashMap<String, String>,
    pub sandbox: Option<String>,
}

pub struct Handle {
    pub desired: watch::Sender<Desired>,
    pub wake: Arc<Notify>,
    pub published: watch::Receiver<Published>,
}

/// The pods of this node, by uid.
#[derive(Clone, Default)]
pub struct Registry(Arc<Mutex<HashMap<String, Handle>>>);

impl Registry {
    pub fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Handle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn wake(&self, uid: &str) {
        if let Some(handle) = self.lock().get(uid) {
            handle.wake.notify_one();
        }
    }

    pub fn wake_all(&self) {
        for handle in self.lock().values() {
            handle.wake.notify_one();
        }
    }

    /// Each pod with the status that was computed last, which the API may not have yet.
    pub fn list(&self) -> Vec<(Arc<Pod>, Published)> {
        let all = self.lock();
        all.values().map(|h| (h.desired.borrow().pod.clone(), h.published.borrow().clone())).collect()
    }

    pub fn find(&self, namespace: &str, name: &str) -> Option<(Arc<Pod>, Published)> {
        let same = |p: &Pod| pod::namespace(p) == namespace && pod::name(p) == name;
        let mut found: Vec<_> = self.list().into_iter().filter(|(p, _)| same(p)).collect();
        // A pod that was deleted by force and its successor may overlap.
        found.sort_by_key(|(p, _)| p.metadata.deletion_timestamp.is_some());
        found.into_iter().next()
    }
}

/// Whether pods can be started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuntimeState {
    pub runtime: bool,
    pub network: bool,
    pub message: String,
}

pub struct Shared {
    pub config: Config,
    pub machine: Machine,
    pub cri: Cri,
    pub cgroups: Cgroups,
    pub recorder: Recorder,
    pub images: Images,
    pub volumes: Volumes,
    pub probes: Probes,
    pub services: Informer<Service>,
    pub api_pods: Informer<Pod>,
    pub restarts: Mutex<Backoff>,
    pub registry: Registry,
    pub runtime: watch::Sender<RuntimeState>,
    pub runtime_name: OnceLock<String>,
    pub runtime_version: OnceLock<String>,
    pub reports: Semaphore,
    /// The pods that have been let in. Admission looks at one at a time, or two could get the same room.
    pub admitted: tokio::sync::Mutex<Allocations>,
    pub node: Informer<Node>,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
    pub started_at: jiff::Timestamp,
}

impl Shared {
    pub fn report_permits() -> Semaphore {
        Semaphore::new(REPORTS_MAX)
    }

    pub fn host_ips(&self) -> Vec<String> {
        self.config.node_ips.iter().map(std::net::IpAddr::to_string).collect()
    }

    pub fn facts(&self, pod_ips: Vec<String>) -> NodeFacts {
        let room = self.machine.room(&self.config.tuning);
        NodeFacts {
            name: self.config.node_name.clone(),
            host_ips: self.host_ips(),
            pod_ips,
            allocatable_milli_cpu: room.milli_cpu,
            allocatable_memory: room.memory,
            allocatable_ephemeral_storage: crate::machine::FsUsage::of(&self.config.root_dir)
                .ok()
                .and_then(|u| i64::try_from(self.config.tuning.storage_for_pods(u.capacity)).ok())
                .unwrap_or(0),
        }
    }

    pub fn runtime_name(&self) -> &str {
        self.runtime_name.get().map_or("mussel", String::as_str)
    }

    /// The class of burstable pods weighs what its members ask for. Called when one comes or goes.
    pub fn weigh_classes(&self) {
        let milli: i64 = self
            .registry
            .list()
            .iter()
            .filter(|(p, published)| !published.finished && resources::qos(p) == Qos::Burstable)
            .map(|(p, _)| resources::pod_request(p, "cpu").to_milli())
            .sum();
        self.cgroups.weigh_burstable(milli);
    }

    /// Spawns on the tracker: shutdown waits for it.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }
}
