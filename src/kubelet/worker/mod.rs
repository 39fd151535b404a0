//! One task per pod. It alone starts and stops what belongs to the pod.
//!
//! A pod is first kept in sync with its spec; then it ends, for whatever reason, and its containers are stopped; then it
//! has ended, and what is left is to tell the API and to clean up. There is no way back.

mod finish;
mod kill;
mod messages;
mod start;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus, ResourceRequirements};
use mussel_client::EventType;
use mussel_cri::v1;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::allocation::Pending;
use crate::observed::Observed;
use crate::plan::{self, Which};
use crate::report::Reporter;
use crate::shared::{Desired, Evict, Handle, Published, Shared};
use crate::status::{self, Verdict, Waiting};
use crate::volumes::Ready;
use crate::{admission, dns, mirror, pod, probes, sandbox};

const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Sync,
    Ending,
    Ended,
}

/// What a container was given.
struct Applied {
    cri: v1::LinuxContainerResources,
    spec: ResourceRequirements,
}

pub struct Worker {
    shared: Arc<Shared>,
    uid: String,
    desired: watch::Receiver<Desired>,
    wake: Arc<Notify>,
    publish: watch::Sender<Published>,
    reporter: Reporter,
    stage: Stage,
    status: PodStatus,
    waiting: HashMap<String, Waiting>,
    verdict: Option<Verdict>,
    /// A resize that waits.
    pending: Option<Pending>,
    /// As they were set up last.
    volumes: Option<Ready>,
    admitted: bool,
    cleaned: bool,
    /// Tries in a row that failed.
    failures: u32,
    /// When to look again though nothing happened.
    next: Option<Instant>,
    /// Containers whose preStop hook has run.
    pre_stopped: Arc<Mutex<HashSet<String>>>,
    /// Resources as last applied, by container id.
    applied: HashMap<String, Applied>,
    /// Last words of dead containers, by id, read once.
    messages: Mutex<HashMap<String, Option<String>>>,
}

/// Starts the pod's worker and registers it. A pod that is known already gets its new state.
pub fn upsert(shared: &Arc<Shared>, pod: Arc<Pod>) {
    let uid = pod::uid(&pod).to_owned();
    if uid.is_empty() {
        return;
    }
    let mut all = shared.registry.lock();
    if let Some(handle) = all.get(&uid) {
        handle.desired.send_if_modified(|d| {
            let news = d.removed || !says_the_same(&d.pod, &pod) || lost_ready(&d.pod, &pod);
            d.pod = pod;
            d.removed = false;
            news
        });
        return;
    }
    let status = pod.status.clone().unwrap_or_default();
    let ended = pod::is_terminal(&pod);
    let (desired, receiver) = watch::channel(Desired { pod: pod.clone(), removed: false, evict: None });
    let published = Published { status: status.clone(), finished: ended, ..Default::default() };
    let (publish, published) = watch::channel(published);
    let wake = Arc::new(Notify::new());
    let worker = Worker {
        shared: shared.clone(),
        uid: uid.clone(),
        desired: receiver,
        wake: wake.clone(),
        publish,
        reporter: Reporter::start(shared, pod),
        stage: if ended { Stage::Ending } else { Stage::Sync },
        status,
        waiting: HashMap::new(),
        verdict: None,
        pending: None,
        volumes: None,
        admitted: false,
        cleaned: false,
        failures: 0,
        next: None,
        pre_stopped: Arc::default(),
        applied: HashMap::new(),
        messages: Mutex::default(),
    };
    all.insert(uid, Handle { desired, wake, published });
    drop(all);
    shared.spawn(worker.run());
}

/// Somebody has marked the pod as not ready: us, or the node controller when we were silent. Then we have to say it anew.
fn lost_ready(old: &Pod, new: &Pod) -> bool {
    pod::api_ready(old) && !pod::api_ready(new)
}

/// Whether two versions of a pod differ only in what this kubelet itself reported.
fn says_the_same(old: &Pod, new: &Pod) -> bool {
    let bare = |pod: &Pod| {
        let mut meta = pod.metadata.clone();
        meta.resource_version = None;
        meta.managed_fields = None;
        meta
    };
    let conditions_of_others = |pod: &Pod| {
        let all = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
        all.into_iter().filter(|c| !status::OWN_CONDITIONS.contains(&c.type_.as_str())).collect::<Vec<_>>()
    };
    old.spec == new.spec && bare(old) == bare(new) && conditions_of_others(old) == conditions_of_others(new)
}

/// The source no longer has the pod.
pub fn remove(shared: &Shared, uid: &str) {
    if let Some(handle) = shared.registry.lock().get(uid) {
        handle.desired.send_modify(|d| d.removed = true);
    }
}

pub fn evict(shared: &Shared, uid: &str, evict: Evict) {
    if let Some(handle) = shared.registry.lock().get(uid) {
        handle.desired.send_modify(|d| {
            d.evict.get_or_insert(evict);
        });
    }
}

impl Worker {
    async fn run(mut self) {
        let stop = self.shared.stop.clone();
        loop {
            self.next = None;
            // In a pass nothing is cut in half; what may take long ends early when the kubelet stops.
            let done = self.pass().await;
            if done {
                self.shared.registry.lock().remove(&self.uid);
                return;
            }
            let next = self.next.unwrap_or_else(|| Instant::now() + Duration::from_secs(86_400));
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                changed = self.desired.changed() => if changed.is_err() { return },
                () = self.wake.notified() => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    /// One look at the pod and all that can be done now. Says whether the pod is gone for good.
    async fn pass(&mut self) -> bool {
        let desired = self.desired.borrow_and_update().clone();
        if self.stage == Stage::Sync && desired.must_end() {
            if let Some(evict) = &desired.evict {
                self.verdict.get_or_insert_with(|| evict.verdict.clone());
            }
            self.stage = Stage::Ending;
        }
        if self.stage == Stage::Sync {
            self.sync(&desired.pod).await;
        }
        if self.stage == Stage::Ending {
            self.end().await;
        }
        if self.stage == Stage::Ended {
            return self.ended().await;
        }
        false
    }

    fn look_again(&mut self, after: Duration) {
        let at = Instant::now() + after;
        self.next = Some(self.next.map_or(at, |n| n.min(at)));
    }

    /// Something failed that time may heal.
    fn retry(&mut self) {
        let wait = RETRY_FIRST.saturating_mul(1 << self.failures.min(10)).min(RETRY_MAX);
        self.failures = self.failures.saturating_add(1);
        self.look_again(wait);
    }

    fn event(&self, pod: &Pod, type_: EventType, reason: &str, message: String) {
        self.shared.recorder.event(pod::reference(pod), type_, reason, message);
    }

    async fn observe(&mut self, pod: &Arc<Pod>) -> Option<Observed> {
        match Observed::of_pod(&self.shared.cri, &self.uid).await {
            Ok(observed) => {
                self.applied.retain(|id, _| observed.running().any(|s| s.id() == id));
                self.track(pod, &observed);
                Some(observed)
            }
            Err(error) => {
                tracing::warn!(%error, pod = %pod::full(pod), "cannot see the pod in the runtime");
                self.retry();
                None
            }
        }
    }

    /// Probes follow the runs of containers.
    fn track(&self, pod: &Arc<Pod>, observed: &Observed) {
        let running: Vec<&str> = observed.running().map(|s| s.id()).collect();
        self.shared.probes.keep(&self.uid, &running);
        if self.stage != Stage::Sync {
            return;
        }
        let ips = if pod::host_network(pod) { self.shared.host_ips() } else { observed.pod_ips() };
        let sidecars = pod::init_containers(pod).iter().filter(|c| pod::is_sidecar(c));
        for container in pod::containers(pod).iter().chain(sidecars) {
            let Some(seen) = observed.current(&container.name).filter(|s| s.is_running()) else { continue };
            let before = self
                .status
                .container_statuses
                .iter()
                .chain(self.status.init_container_statuses.iter())
                .flatten()
                .find(|s| s.container_id.as_deref().is_some_and(|id| id.ends_with(seen.id())))
                .map(|s| (s.started.unwrap_or(false), s.ready));
            self.shared.probes.ensure(&probes::Target {
                pod,
                container,
                id: seen.id(),
                started_at: seen.started_at(),
                pod_ip: ips.first().map(String::as_str),
                before,
            });
        }
    }

    /// Computes the status and hands it on.
    fn report(&mut self, pod: &Arc<Pod>, observed: &Observed) {
        let ending = self.stage != Stage::Sync;
        let host_ips = self.shared.host_ips();
        let status = status::compute(&status::Inputs {
            pod,
            observed,
            waiting: &self.waiting,
            health: &self.shared.probes,
            verdict: self.verdict.as_ref(),
            pending: self.pending.as_ref(),
            before: &self.status,
            host_ips: &host_ips,
            runtime_name: self.shared.runtime_name(),
            message: &|container, seen| self.last_words(container, seen),
            actual: &|seen| self.applied.get(seen.id()).map(|applied| applied.spec.clone()),
            ending,
            now: Timestamp::now(),
        });
        self.status = status;
        let mut containers = HashMap::new();
        for seen in &observed.containers {
            containers.entry(seen.name.clone()).or_insert_with(|| seen.id().to_owned());
        }
        self.publish(pod, containers, observed.ready_sandbox().map(|s| s.id.clone()));
    }

    fn publish(&mut self, pod: &Arc<Pod>, containers: HashMap<String, String>, sandbox: Option<String>) {
        self.publish.send_replace(Published {
            status: self.status.clone(),
            finished: self.stage == Stage::Ended,
            containers,
            sandbox,
        });
        self.reporter.send(pod.clone(), self.status.clone(), false);
    }

    async fn sync(&mut self, pod: &Arc<Pod>) {
        let Some(observed) = self.observe(pod).await else { return };
        if !self.admitted {
            // What runs already was admitted before a restart.
            if !observed.sandboxes.is_empty() {
                admission::readmit(&self.shared, pod).await;
            } else if let Err(verdict) = admission::admit(&self.shared, pod).await {
                self.event(pod, EventType::Warning, &verdict.reason.clone(), verdict.message.clone());
                self.verdict = Some(verdict);
                self.stage = Stage::Ending;
                return;
            }
            self.admitted = true;
            self.shared.weigh_classes();
        }
        let pod = &self.allocate(pod).await;
        let before = self.status.start_time.is_none();
        self.report(pod, &observed);
        if self.status.phase.as_deref().is_some_and(pod::is_terminal_phase) {
            self.stage = Stage::Ending;
            return;
        }
        if self.past_deadline(pod) {
            self.stage = Stage::Ending;
            return;
        }
        if before {
            tracing::debug!(pod = %pod::full(pod), "new pod");
        }
        if pod::is_static(pod) {
            mirror::ensure(&self.shared, pod).await;
        }
        let mut runtime = self.shared.runtime.subscribe();
        let state = runtime.borrow_and_update().clone();
        if !state.runtime || (!state.network && !pod::host_network(pod)) {
            if !state.message.is_empty() {
                let message = format!("network is not ready: {}", state.message);
                self.event(pod, EventType::Warning, "NetworkNotReady", message);
            }
            // Woken again when the runtime becomes ready.
            return;
        }
        if let Err(error) = self.shared.cgroups.ensure_pod(pod) {
            tracing::warn!(error = %error, pod = %pod::full(pod), "cannot prepare the pod's cgroup");
        }
        if let Some(observed) = self.bring_up(pod, observed).await {
            self.report(pod, &observed);
            if self.status.phase.as_deref().is_some_and(pod::is_terminal_phase) {
                self.stage = Stage::Ending;
            }
        }
    }

    /// The pod as it is to be brought up: with what the node can give it.
    async fn allocate(&mut self, pod: &Arc<Pod>) -> Arc<Pod> {
        let (allocated, pending) = admission::allocate(&self.shared, pod).await;
        if let Some(pending) = pending.as_ref().filter(|p| self.pending.as_ref() != Some(p)) {
            self.event(pod, EventType::Warning, &format!("Resize{}", pending.reason), pending.message.clone());
        }
        self.pending = pending;
        allocated
    }

    fn past_deadline(&mut self, pod: &Pod) -> bool {
        let limit = pod::spec(pod).and_then(|s| s.active_deadline_seconds);
        let (Some(limit), Some(started)) = (limit, self.status.start_time.as_ref()) else { return false };
        let passed = Timestamp::now().duration_since(started.0).as_secs();
        if passed < limit {
            self.look_again(Duration::from_secs(u64::try_from(limit - passed).unwrap_or(0)));
            return false;
        }
        let message = "Pod was active on the node longer than the specified deadline".to_owned();
        self.event(pod, EventType::Normal, "DeadlineExceeded", message.clone());
        self.verdict = Some(Verdict { reason: "DeadlineExceeded".into(), message, disruption: false });
        true
    }

    /// Volumes, sandbox, containers. Returns how the pod stands after that.
    async fn bring_up(&mut self, pod: &Arc<Pod>, observed: Observed) -> Option<Observed> {
        let facts = self.shared.facts(observed.pod_ips());
        let volumes = {
            let setting = self.shared.volumes.set_up(pod, &facts, Timestamp::now());
            let mut desired = self.desired.clone();
            tokio::select! {
                result = setting => result,
                _ = desired.wait_for(Desired::must_end) => return None,
                () = self.shared.stop.cancelled() => return None,
            }
        };
        let set_up = volumes.is_ok();
        let volumes = match volumes {
            Ok(volumes) => {
                self.volumes = Some(volumes.clone());
                volumes
            }
            Err(error) => {
                self.event(pod, EventType::Warning, "FailedMount", error.to_string());
                self.retry();
                // A pod that had its volumes goes on with them, for example after its ConfigMap was deleted.
                let known = self.volumes.clone()?;
                Ready { renew_at: None, ..known }
            }
        };
        if let Some(at) = volumes.renew_at {
            let left = Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default();
            self.look_again(left.max(Duration::from_secs(1)));
        }
        let plan = plan::plan(pod, &observed, &self.shared.probes);
        let idle = plan == plan::Plan::default();
        if !idle {
            tracing::debug!(pod = %pod::full(pod), ?plan, "plan");
        }
        let stopped: Vec<String> = plan.kill.keys().cloned().collect();
        if !self.execute(pod, &observed, &volumes, plan).await {
            self.retry();
        } else if set_up {
            self.failures = 0;
        }
        let resized = self.apply_resources(pod, &observed, &stopped).await;
        if idle && !resized {
            return None;
        }
        let observed = self.observe(pod).await?;
        self.remove_dead(&observed, 1).await;
        Some(observed)
    }

    /// Says whether all went well, waiting for back-offs included.
    async fn execute(&mut self, pod: &Arc<Pod>, observed: &Observed, volumes: &Ready, plan: plan::Plan) -> bool {
        let mut seen = observed.clone();
        if plan.kill_pod {
            self.kill_all(pod, observed, pod::grace_seconds(pod)).await;
            self.stop_sandboxes(pod, observed).await;
        } else {
            for (id, kill) in &plan.kill {
                if let Some(seen) = observed.containers.iter().find(|c| c.id() == id) {
                    let grace = kill::probe_grace(pod, kill).unwrap_or_else(|| pod::grace_seconds(pod));
                    self.kill_one(pod, seen, observed, grace, Some(&kill.message)).await;
                }
            }
        }
        if plan.start.is_empty() && plan.create_sandbox.is_none() {
            return true;
        }
        let attempt = plan.create_sandbox.or_else(|| observed.sandbox()?.metadata.as_ref().map(|m| m.attempt));
        let parent = self.shared.cgroups.pod_parent(pod);
        let config = match sandbox::config(
            &self.shared.config,
            pod,
            attempt.unwrap_or(0),
            &parent,
            self.shared.machine.memory,
        ) {
            Ok(config) => config,
            Err(message) => {
                self.event(pod, EventType::Warning, "FailedCreatePodSandBox", message);
                return false;
            }
        };
        if plan.create_sandbox.is_some() {
            if self.desired.borrow().must_end() {
                return true;
            }
            match self.create_sandbox(pod, &config).await {
                Some(status) => seen.sandboxes.insert(0, status),
                None => return false,
            }
        }
        let Some(id) = seen.ready_sandbox().map(|s| s.id.clone()) else { return false };
        let hosts = self.write_hosts(pod, &seen);
        let mut fine = true;
        let ephemeral = pod::ephemeral_containers(pod);
        for which in plan.start {
            if self.desired.borrow().must_end() || self.shared.stop.is_cancelled() {
                break;
            }
            let container = match which {
                Which::Init(i) => pod::init_containers(pod).get(i),
                Which::Regular(i) => pod::containers(pod).get(i),
                Which::Ephemeral(i) => ephemeral.get(i),
            };
            let Some(container) = container.cloned() else { continue };
            let making = start::Start {
                pod,
                container: &container,
                ephemeral: matches!(which, Which::Ephemeral(_)),
                sandbox: &id,
                sandbox_config: &config,
                observed: &seen,
                volumes: &volumes.volumes,
                hosts: hosts.as_deref(),
            };
            match self.start(making).await {
                Ok(()) => {
                    self.waiting.remove(&container.name);
                }
                Err(failure) => {
                    self.waiting.insert(container.name.clone(), failure.waiting);
                    match failure.retry_after {
                        Some(after) => self.look_again(after),
                        None => fine = false,
                    }
                }
            }
        }
        fine
    }

    async fn create_sandbox(&mut self, pod: &Arc<Pod>, config: &v1::PodSandboxConfig) -> Option<v1::PodSandboxStatus> {
        let logs = std::path::Path::new(&config.log_directory);
        let made = tokio::fs::create_dir_all(logs).await.map_err(|e| format!("create {}: {e}", logs.display()));
        let handler = match self.runtime_handler(pod).await {
            Ok(handler) => handler,
            Err(message) => {
                self.event(pod, EventType::Warning, "FailedCreatePodSandBox", message);
                return None;
            }
        };
        let created = match made {
            Ok(()) => self.shared.cri.run_sandbox(config.clone(), &handler).await.map_err(|e| e.to_string()),
            Err(e) => Err(e),
        };
        match created {
            Ok(id) => match self.shared.cri.sandbox_status(&id).await {
                Ok(status) => Some(status),
                Err(error) => {
                    let message = format!("Unable to get pod sandbox status: {error}");
                    self.event(pod, EventType::Warning, "FailedPodSandBoxStatus", message);
                    None
                }
            },
            Err(error) => {
                let message = format!("Failed to create pod sandbox: {error}");
                tracing::warn!(pod = %pod::full(pod), "{message}");
                self.event(pod, EventType::Warning, "FailedCreatePodSandBox", message);
                None
            }
        }
    }

    async fn runtime_handler(&self, pod: &Pod) -> Result<String, String> {
        let Some(class) = pod::spec(pod).and_then(|s| s.runtime_class_name.clone()).filter(|c| !c.is_empty()) else {
            return Ok(String::new());
        };
        let api: kube::Api<k8s_openapi::api::node::v1::RuntimeClass> =
            kube::Api::all(self.shared.config.client.clone());
        match api.get(&class).await {
            Ok(found) => Ok(found.handler),
            Err(error) => Err(format!(
                "Failed to create pod sandbox: failed to get sandbox runtime: RuntimeClass \"{class}\": {error}"
            )),
        }
    }

    /// The hosts file that the pod's containers share.
    fn write_hosts(&self, pod: &Pod, observed: &Observed) -> Option<std::path::PathBuf> {
        let path = self.shared.config.pod_dir(&self.uid).join("etc-hosts");
        let (host, full) = dns::hostname(pod, &self.shared.config.cluster_domain).ok()?;
        let node = pod::host_network(pod).then(|| std::fs::read_to_string("/etc/hosts").unwrap_or_default());
        let text = dns::hosts_file(pod, &observed.pod_ips(), &host, full.as_deref(), node.as_deref());
        if std::fs::read_to_string(&path).ok().as_deref() != Some(text.as_str()) {
            let written =
                path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&path, text));
            if let Err(error) = written {
                tracing::warn!(%error, path = %path.display(), "cannot write the pod's hosts file");
                return None;
            }
        }
        Some(path)
    }
}
