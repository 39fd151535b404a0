//! Starting one container: image, configuration, creation, start, postStart hook.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use mussel_client::EventType;
use mussel_cri::v1;

use super::{Applied, Worker};
use crate::backoff::go_duration;
use crate::container::{self, Making};
use crate::cri::CriError;
use crate::images::Image;
use crate::observed::Observed;
use crate::shared::Desired;
use crate::status::Waiting;
use crate::volumes::Mounted;
use crate::{env, hooks, labels, logs, pod, resources};

/// How long after the kubelet's start a pod waits to hear of Services.
const SERVICES_WAIT: Duration = Duration::from_secs(5);

pub struct Start<'a> {
    pub pod: &'a Arc<Pod>,
    pub container: &'a Container,
    pub ephemeral: bool,
    pub sandbox: &'a str,
    pub sandbox_config: &'a v1::PodSandboxConfig,
    pub observed: &'a Observed,
    pub volumes: &'a HashMap<String, Mounted>,
    pub hosts: Option<&'a Path>,
}

/// Why it does not run, and when to try again: `None` leaves that to the pod's own back-off.
pub struct Failure {
    pub waiting: Waiting,
    pub retry_after: Option<Duration>,
}

fn failure(reason: &str, message: impl Into<String>) -> Failure {
    Failure { waiting: Waiting { reason: reason.into(), message: message.into() }, retry_after: None }
}

impl Worker {
    fn container_event(&self, start: &Start, type_: EventType, reason: &str, message: String) {
        let about = pod::container_reference(start.pod, &start.container.name);
        self.shared.recorder.event(about, type_, reason, message);
    }

    pub(super) async fn start(&mut self, start: Start<'_>) -> Result<(), Failure> {
        let Start { pod, container, .. } = start;
        let name = &container.name;
        self.crash_back_off(&start)?;
        let image = self.image(&start, container).await?;
        self.image_volumes(&start).await?;

        let seen = start.observed.container(name);
        let reported = self
            .status
            .container_statuses
            .iter()
            .chain(self.status.init_container_statuses.iter())
            .flatten()
            .find(|s| s.name == *name && s.container_id.is_some())
            .map(|s| s.restart_count + 1);
        let restarts = seen.map(|s| s.restart_count() + 1).or(reported).unwrap_or(0);
        let env = match self.environment(&start).await {
            Ok(env) => env,
            Err(message) => {
                self.container_event(&start, EventType::Warning, "Failed", format!("Error: {message}"));
                return Err(failure("CreateContainerConfigError", message));
            }
        };
        let target = self.target(&start);
        let pod_dir = self.shared.config.pod_dir(&self.uid);
        let making = Making {
            pod,
            container,
            pod_dir: &pod_dir,
            root_dir: &self.shared.config.root_dir,
            volumes: start.volumes,
            env: &env,
            image_ref: &image.reference,
            image_user: &image.user,
            restarts,
            target: target.as_deref(),
            hosts_file: start.hosts,
            memory_capacity: self.shared.machine.memory,
            cgroup_v2: self.shared.cgroups.is_v2(),
        };
        let config = match container::config(&making) {
            Ok(config) => config,
            Err(message) => {
                self.container_event(&start, EventType::Warning, "Failed", format!("Error: {message}"));
                return Err(failure("CreateContainerConfigError", message));
            }
        };
        let resources = config.linux.as_ref().and_then(|l| l.resources.clone()).unwrap_or_default();
        let logs = Path::new(&start.sandbox_config.log_directory).join(name);
        if let Err(error) = tokio::fs::create_dir_all(&logs).await {
            return Err(failure("CreateContainerError", format!("create {}: {error}", logs.display())));
        }
        let log = Path::new(&start.sandbox_config.log_directory).join(&config.log_path);
        let created = self.shared.cri.create_container(start.sandbox, config, start.sandbox_config.clone()).await;
        let id = match created {
            Ok(id) => id,
            Err(error) => {
                let message = error.message().to_owned();
                self.container_event(&start, EventType::Warning, "Failed", format!("Error: {message}"));
                return Err(failure("CreateContainerError", message));
            }
        };
        self.container_event(&start, EventType::Normal, "Created", "Container created".into());
        if let Err(error) = self.shared.cri.start_container(&id).await {
            return Err(self.not_started(&start, &error));
        }
        let whose = (pod::namespace(pod), pod::name(pod), name.as_str(), id.as_str());
        if let Err(error) = logs::links::link(&self.shared.config.container_logs_dir, whose, &log) {
            tracing::warn!(%error, container = name, "log shippers do not find a container's log");
        }
        let spec = start.container.resources.clone().unwrap_or_default();
        self.applied.insert(id.clone(), Applied { cri: resources, spec });
        self.container_event(&start, EventType::Normal, "Started", "Container started".into());
        self.post_start(&start, &id).await
    }

    fn not_started(&self, start: &Start, error: &CriError) -> Failure {
        let message = error.message().to_owned();
        self.container_event(start, EventType::Warning, "Failed", format!("Error: {message}"));
        // The dead container's end starts the crash back-off at once.
        let mut failure = failure("RunContainerError", message);
        failure.retry_after = Some(Duration::from_millis(500));
        failure
    }

    /// A container that ended lately may have to wait.
    fn crash_back_off(&mut self, start: &Start) -> Result<(), Failure> {
        let Start { pod, container, .. } = start;
        let exited =
            |s: &&crate::observed::Seen| s.name == container.name && s.state() == v1::ContainerState::ContainerExited;
        let Some(dead) = start.observed.containers.iter().find(exited) else { return Ok(()) };
        let key = format!("{}_{}_{}", self.uid, container.name, labels::container_hash(container));
        let now = Timestamp::now();
        let ended = dead.finished_at().unwrap_or(now);
        let mut restarts = self.shared.restarts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((left, wait)) = restarts.waiting(&key, ended, now) {
            drop(restarts);
            let full = pod::full(pod);
            let already = self.waiting.get(&container.name).is_some_and(|w| w.reason == "CrashLoopBackOff");
            if !already {
                let message = format!("Back-off restarting failed container {} in pod {full}", container.name);
                self.container_event(start, EventType::Warning, "BackOff", message);
            }
            let message =
                format!("back-off {} restarting failed container={} pod={full}", go_duration(wait), container.name);
            let waiting = Waiting { reason: "CrashLoopBackOff".into(), message };
            return Err(Failure { waiting, retry_after: Some(left) });
        }
        restarts.next(&key, now);
        Ok(())
    }

    async fn image(&self, start: &Start<'_>, container: &Container) -> Result<Image, Failure> {
        let mut desired = self.desired.clone();
        let ensured = tokio::select! {
            ensured = self.shared.images.ensure(start.pod, container, start.sandbox_config) => ensured,
            _ = desired.wait_for(Desired::must_end) => return Err(failure("ContainerCreating", "")),
            () = self.shared.stop.cancelled() => return Err(failure("ContainerCreating", "")),
        };
        ensured.map_err(|no| {
            // Only a change of the pod, or an import, can help where no time is given; look again now and then.
            let retry_after = no.retry_after.or(Some(Duration::from_secs(30)));
            Failure { waiting: no.waiting, retry_after }
        })
    }

    /// Volumes that are images must be present as well.
    async fn image_volumes(&self, start: &Start<'_>) -> Result<(), Failure> {
        let volumes = pod::spec(start.pod).and_then(|s| s.volumes.as_ref());
        for volume in volumes.into_iter().flatten() {
            let Some(source) = &volume.image else { continue };
            if !start.container.volume_mounts.iter().flatten().any(|m| m.name == volume.name) {
                continue;
            }
            let stand_in = Container {
                name: start.container.name.clone(),
                image: source.reference.clone(),
                image_pull_policy: source.pull_policy.clone(),
                ..Default::default()
            };
            self.image(start, &stand_in).await?;
        }
        Ok(())
    }

    async fn environment(&self, start: &Start<'_>) -> Result<Vec<(String, String)>, String> {
        let ips = if pod::host_network(start.pod) { self.shared.host_ips() } else { start.observed.pod_ips() };
        let facts = self.shared.facts(ips);
        // A server that cannot be reached must not keep a pod down.
        let up: Duration = Timestamp::now().duration_since(self.shared.started_at).try_into().unwrap_or_default();
        let _ = tokio::time::timeout(SERVICES_WAIT.saturating_sub(up), self.shared.services.synced()).await;
        let services = self.shared.services.list();
        let read = |volume: &str, path: &str, key: &str| {
            let Some(mounted) = start.volumes.get(volume) else { return Err(format!("volume \"{volume}\" not found")) };
            if Path::new(path).components().any(|c| !matches!(c, std::path::Component::Normal(_))) {
                return Err(format!("invalid path \"{path}\""));
            }
            match std::fs::read_to_string(mounted.path.join(path)) {
                Ok(text) => Ok(env::file_variable(&text, key)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(format!("failed to parse environment variable file \"{path}\": {e}")),
            }
        };
        let objects = &self.shared.volumes.objects;
        let made = env::environment(start.pod, start.container, &facts, objects, &services, &read).await;
        let (env, skipped) = made.map_err(|e| e.to_string())?;
        for (source, keys) in skipped {
            let message = format!(
                "Keys [{}] from the EnvFrom {source} were skipped since they are considered invalid environment variable names.",
                keys.join(", ")
            );
            self.container_event(start, EventType::Warning, "InvalidEnvironmentVariableNames", message);
        }
        Ok(env)
    }

    /// The container whose processes an ephemeral one shall see.
    fn target(&self, start: &Start) -> Option<String> {
        if !start.ephemeral {
            return None;
        }
        let list = pod::spec(start.pod)?.ephemeral_containers.as_ref()?;
        let own = list.iter().find(|e| e.name == start.container.name)?;
        let name = own.target_container_name.as_deref().filter(|n| !n.is_empty())?;
        start.observed.container(name).map(|s| s.id().to_owned())
    }

    async fn post_start(&self, start: &Start<'_>, id: &str) -> Result<(), Failure> {
        let Some(hook) = start.container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else { return Ok(()) };
        let ips = if pod::host_network(start.pod) { self.shared.host_ips() } else { start.observed.pod_ips() };
        let mut desired = self.desired.clone();
        let ip = ips.first().map(String::as_str);
        let result = tokio::select! {
            result = hooks::run(&self.shared.cri, hook, start.container, id, ip, Duration::ZERO) => result,
            _ = desired.wait_for(Desired::must_end) => return Ok(()),
        };
        let Err(message) = result else { return Ok(()) };
        let text = format!("PostStartHook failed: {message}");
        self.container_event(start, EventType::Warning, "FailedPostStartHook", text.clone());
        let killing = "FailedPostStartHook".to_owned();
        self.container_event(start, EventType::Normal, "Killing", killing);
        let grace = Duration::from_secs(u64::try_from(pod::grace_seconds(start.pod)).unwrap_or(30));
        if let Err(error) = self.shared.cri.stop_container(id, grace).await {
            tracing::warn!(%error, id, "cannot stop a container whose postStart hook failed");
        }
        Err(failure("PostStartHookError", text))
    }

    /// Changed requests and limits reach containers that run, without a restart; `stopped` do not run any more. Says
    /// whether any container got something else than it had.
    pub(super) async fn apply_resources(&mut self, pod: &Arc<Pod>, observed: &Observed, stopped: &[String]) -> bool {
        let running: Vec<(String, String)> = observed.running().map(|s| (s.name.clone(), s.id().to_owned())).collect();
        let mut resized = false;
        for (name, id) in running.into_iter().filter(|(_, id)| !stopped.contains(id)) {
            let regular = pod::containers(pod).iter();
            let sidecars = pod::init_containers(pod).iter().filter(|c| pod::is_sidecar(c));
            let Some(container) = regular.chain(sidecars).find(|c| c.name == name) else { continue };
            let v2 = self.shared.cgroups.is_v2();
            let wanted = resources::container_resources(pod, container, self.shared.machine.memory, v2);
            let spec = container.resources.clone().unwrap_or_default();
            match self.applied.get_mut(&id) {
                None => {
                    self.applied.insert(id, Applied { cri: wanted, spec });
                }
                Some(known) if known.cri == wanted => {
                    resized |= known.spec != spec;
                    known.spec = spec;
                }
                Some(_) => match self.shared.cri.update_resources(&id, wanted.clone()).await {
                    Ok(()) => {
                        self.applied.insert(id, Applied { cri: wanted, spec });
                        resized = true;
                    }
                    Err(error) => {
                        tracing::warn!(%error, container = name, "cannot resize a container");
                        self.retry();
                    }
                },
            }
        }
        if resized && let Err(error) = self.shared.cgroups.ensure_pod(pod) {
            // Again: the pod's own limits cannot go below those that its containers had.
            tracing::warn!(%error, pod = %pod::full(pod), "cannot resize the pod's cgroup");
        }
        resized
    }
}
