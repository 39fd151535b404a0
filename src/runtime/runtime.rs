//! The state of the runtime and its life: what sandboxes and containers there are, and finding them again at start.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};

use jiff::Timestamp;
use tokio::sync::{broadcast, watch};
use tokio_util::task::TaskTracker;

use crate::cgroup::Hierarchies;
use crate::error::{Error, Result, Step, chain};
use crate::events::{self, EVENTS_MAX, Event};
use crate::image::ImageSource;
use crate::network::PodNetwork;
use crate::records::{ContainerRecord, Records, SandboxRecord, State};
use crate::service::StreamingServer;
use crate::shim::protocol::{ContainerState, Exit};
use crate::shim_client::{Shim, ShimEvent};
use crate::snapshot;
use crate::spec::Host;

/// Exit code of a container of which nobody saw the end.
pub(crate) const LOST_EXIT_CODE: i32 = 255;

/// What a runtime is made of.
pub struct Config {
    /// Records and writable layers: `<data-dir>/agent/runtime`.
    pub root_dir: PathBuf,
    /// Sockets, namespaces and mounts, which a reboot may take away.
    pub run_dir: PathBuf,
    /// What becomes a shim when called as `shim --dir …`; /proc/self/exe in the mussel binary, so that an upgrade on
    /// disk does not mix versions.
    pub shim_exe: PathBuf,
    /// Cgroup below which shims are put, and sandboxes whose caller names no parent. `/` on a node of its own.
    pub cgroup_root: String,
    pub network: Arc<dyn PodNetwork>,
    pub images: Arc<dyn ImageSource>,
}

pub(crate) struct Sandbox {
    pub id: String,
    record: Mutex<SandboxRecord>,
    pub shim: Mutex<Option<Shim>>,
    /// Held by whoever stops or removes it.
    pub operation: tokio::sync::Mutex<()>,
}

pub(crate) struct Container {
    pub id: String,
    pub sandbox: Arc<Sandbox>,
    record: Mutex<ContainerRecord>,
    /// For those who wait for its end.
    pub state: watch::Sender<State>,
    /// Held by whoever starts or removes it.
    pub operation: tokio::sync::Mutex<()>,
    /// CPU time and clock of the last look, for the rate.
    pub last_cpu: Mutex<Option<(i64, u64)>>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sandbox {
    pub fn new(record: SandboxRecord) -> Arc<Sandbox> {
        Arc::new(Sandbox {
            id: record.id.clone(),
            record: Mutex::new(record),
            shim: Mutex::new(None),
            operation: tokio::sync::Mutex::new(()),
        })
    }

    pub fn record(&self) -> SandboxRecord {
        lock(&self.record).clone()
    }

    pub fn shim(&self) -> Result<Shim> {
        lock(&self.shim).clone().ok_or_else(|| Error::State(format!("sandbox {} is not running", self.id)))
    }
}

impl Container {
    pub fn new(sandbox: Arc<Sandbox>, record: ContainerRecord) -> Arc<Container> {
        Arc::new(Container {
            id: record.id.clone(),
            sandbox,
            state: watch::Sender::new(record.state),
            record: Mutex::new(record),
            operation: tokio::sync::Mutex::new(()),
            last_cpu: Mutex::new(None),
        })
    }

    pub fn record(&self) -> ContainerRecord {
        lock(&self.record).clone()
    }
}

#[derive(Default)]
pub(crate) struct Index {
    pub sandboxes: HashMap<String, Arc<Sandbox>>,
    pub containers: HashMap<String, Arc<Container>>,
    /// Names of those that are being made: `kind/name_namespace_uid_attempt`.
    pub reserved: std::collections::HashSet<String>,
}

pub(crate) struct Inner {
    pub config: Config,
    pub host: Host,
    pub boot_id: String,
    pub sandbox_records: Records,
    pub container_records: Records,
    pub index: RwLock<Index>,
    pub events: broadcast::Sender<Event>,
    pub pod_cidr: RwLock<String>,
    pub streaming: OnceLock<Arc<dyn StreamingServer>>,
    pub tasks: TaskTracker,
}

/// The CRI server. Clones share it.
#[derive(Clone)]
pub struct Runtime(pub(crate) Arc<Inner>);

/// Nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// 256 random bits in hexadecimal, as ids of sandboxes and containers always look.
pub(crate) fn new_id() -> String {
    format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}

impl Runtime {
    /// Opens the runtime and finds again what an earlier one has left running.
    pub async fn open(config: Config) -> Result<Runtime> {
        let records = |name: &str, file| {
            let dir = config.root_dir.join(name);
            Records::open(dir.clone(), file).step(format!("open {}", dir.display()))
        };
        let sandbox_records = records("sandboxes", "sandbox.json")?;
        let container_records = records("containers", "container.json")?;
        for name in ["shim", "netns", "sandboxes", "containers"] {
            let dir = config.run_dir.join(name);
            fs::create_dir_all(&dir).step(format!("create {}", dir.display()))?;
        }
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").step("read the boot id")?.trim().to_owned();
        let hierarchies = Hierarchies::detect().step("find cgroups")?;
        let device_filter = !hierarchies.is_v2() || crate::device_filter::is_supported();
        if !device_filter {
            tracing::warn!(
                "the kernel cannot filter devices (CONFIG_CGROUP_BPF); containers get no CAP_MKNOD by default"
            );
        }
        let host = Host {
            hierarchies,
            device_filter,
            oom_score_adj_min: crate::host::oom_score_adj_min(),
            seccomp: crate::host::has_seccomp(),
            apparmor: crate::host::has_apparmor(),
        };
        let runtime = Runtime(Arc::new(Inner {
            config,
            host,
            boot_id,
            sandbox_records,
            container_records,
            index: RwLock::default(),
            events: broadcast::Sender::new(EVENTS_MAX),
            pod_cidr: RwLock::default(),
            streaming: OnceLock::new(),
            tasks: TaskTracker::new(),
        }));
        runtime.restore().await?;
        Ok(runtime)
    }

    /// Says where exec, attach and port-forward are served. Without, those calls are refused. Once.
    pub fn set_streaming(&self, server: Arc<dyn StreamingServer>) {
        let _ = self.0.streaming.set(server);
    }

    /// The sandboxes that there are, whether ready or not.
    pub fn sandbox_ids(&self) -> Vec<String> {
        self.read_index().sandboxes.keys().cloned().collect()
    }

    /// Waits for cleanups that are under way. Pods go on running.
    pub async fn drain(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    async fn restore(&self) -> Result<()> {
        let (sandboxes, broken) = self.0.sandbox_records.load::<SandboxRecord>().step("read sandbox records")?;
        for id in broken {
            tracing::warn!(sandbox = %id, "record is not readable; removing what is left of the sandbox");
            self.discard_sandbox_files(&id).await;
        }
        for record in sandboxes {
            let id = record.id.clone();
            let sandbox = Sandbox::new(record);
            self.write_index().sandboxes.insert(id, sandbox);
        }
        let (containers, broken) = self.0.container_records.load::<ContainerRecord>().step("read container records")?;
        for id in broken {
            tracing::warn!(container = %id, "record is not readable; removing what is left of the container");
            self.discard_container_files(&id);
        }
        for record in containers {
            let sandbox = self.read_index().sandboxes.get(&record.sandbox).cloned();
            match sandbox {
                Some(sandbox) => {
                    let container = Container::new(sandbox, record);
                    self.write_index().containers.insert(container.id.clone(), container);
                }
                None => self.discard_container_files(&record.id),
            }
        }
        let sandboxes: Vec<_> = self.read_index().sandboxes.values().cloned().collect();
        for sandbox in sandboxes {
            self.find_again(&sandbox).await;
        }
        self.discard_unknown_shims().await;
        Ok(())
    }

    /// Finds out what became of a sandbox while nobody looked.
    async fn find_again(&self, sandbox: &Arc<Sandbox>) {
        let record = sandbox.record();
        let same_boot = record.boot_id == self.0.boot_id;
        let containers = self.containers_of(&sandbox.id);
        let mut states: Vec<ContainerState> = Vec::new();
        if record.ready && same_boot {
            match self.connect(sandbox).await {
                Ok(hello) => states = hello,
                Err(error) => {
                    tracing::warn!(sandbox = %sandbox.id, error = %chain(&error), "sandbox is not running any more");
                    self.sandbox_died(sandbox).await;
                }
            }
        } else if record.ready {
            self.update_sandbox(sandbox, |record| record.ready = false);
        }
        for container in containers {
            let record = container.record();
            if record.state == State::Exited {
                continue;
            }
            match states.iter().find(|state| state.container == container.id) {
                Some(ContainerState { exit: Some(exit), .. }) => self.container_exited(exit.clone()),
                Some(state) => self.update_container(&container, |record| {
                    record.state = State::Running;
                    record.pid = Some(state.pid);
                    record.started_at = state.started_at;
                }),
                None if record.state == State::Created && same_boot && sandbox.record().ready => {}
                None => self.container_lost(&container),
            }
        }
    }

    /// Connects to a sandbox's shim; its events come to us from now on.
    pub(crate) async fn connect(&self, sandbox: &Arc<Sandbox>) -> Result<Vec<ContainerState>> {
        let (weak, events_of) = (Arc::downgrade(&self.0), Arc::downgrade(sandbox));
        let (shim, hello) =
            Shim::connect(&self.shim_dir(&sandbox.id), move |event| on_shim_event(&weak, &events_of, event)).await?;
        *lock(&sandbox.shim) = Some(shim);
        self.update_sandbox(sandbox, |record| {
            record.shim_pid = hello.pid;
            record.pause_pid = hello.pause_pid;
        });
        Ok(hello.containers)
    }

    /// A shim whose sandbox has no record is one that a crash left between the two.
    async fn discard_unknown_shims(&self) {
        let Ok(entries) = fs::read_dir(self.0.config.run_dir.join("shim")) else { return };
        for entry in entries.filter_map(std::result::Result::ok) {
            let id = entry.file_name().to_string_lossy().into_owned();
            if !self.read_index().sandboxes.contains_key(&id) {
                tracing::info!(sandbox = %id, "removing an abandoned shim");
                self.discard_sandbox_files(&id).await;
            }
        }
    }

    pub(crate) fn read_index(&self) -> std::sync::RwLockReadGuard<'_, Index> {
        self.0.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write_index(&self) -> std::sync::RwLockWriteGuard<'_, Index> {
        self.0.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// By id, or by the start of one when that is unique, as people type it.
    pub(crate) fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>> {
        by_prefix(&self.read_index().sandboxes, id).ok_or_else(|| Error::no_sandbox(id))
    }

    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>> {
        by_prefix(&self.read_index().containers, id).ok_or_else(|| Error::no_container(id))
    }

    pub(crate) fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        self.read_index().containers.values().filter(|container| container.sandbox.id == sandbox).cloned().collect()
    }

    pub(crate) fn shim_dir(&self, sandbox: &str) -> PathBuf {
        self.0.config.run_dir.join("shim").join(sandbox)
    }

    pub(crate) fn bundle(&self, container: &str) -> PathBuf {
        self.0.config.run_dir.join("containers").join(container)
    }

    pub(crate) fn sandbox_run_dir(&self, sandbox: &str) -> PathBuf {
        self.0.config.run_dir.join("sandboxes").join(sandbox)
    }

    /// Changes a record in memory and on disk. A disk that refuses is logged: what is in memory is the truth until
    /// the next start.
    pub(crate) fn update_sandbox(&self, sandbox: &Sandbox, change: impl FnOnce(&mut SandboxRecord)) {
        let mut record = lock(&sandbox.record);
        change(&mut record);
        if let Err(error) = self.0.sandbox_records.save(&sandbox.id, &*record) {
            tracing::error!(sandbox = %sandbox.id, %error, "save sandbox record");
        }
    }

    pub(crate) fn update_container(&self, container: &Container, change: impl FnOnce(&mut ContainerRecord)) {
        let mut record = lock(&container.record);
        change(&mut record);
        let state = record.state;
        if let Err(error) = self.0.container_records.save(&container.id, &*record) {
            tracing::error!(container = %container.id, %error, "save container record");
        }
        drop(record);
        container.state.send_replace(state);
    }

    /// A shim has told of the end of a container. A repeat changes nothing.
    pub(crate) fn container_exited(&self, exit: Exit) {
        let Ok(container) = self.container(&exit.container) else { return };
        let mut changed = false;
        self.update_container(&container, |record| {
            if record.state != State::Exited {
                changed = true;
                record.state = State::Exited;
                record.started_at = exit.started_at;
                record.finished_at = exit.finished_at;
                record.exit_code = exit.code;
                record.pid = None;
                record.reason = match (exit.oom_killed, exit.code) {
                    (true, _) => "OOMKilled",
                    (false, 0) => "Completed",
                    (false, _) => "Error",
                }
                .to_owned();
            }
        });
        if changed {
            self.after_exit(&container);
        }
    }

    /// A container has ended and nobody saw how.
    pub(crate) fn container_lost(&self, container: &Arc<Container>) {
        let exit_file = self.shim_dir(&container.sandbox.id).join(format!("{}.exit", container.id));
        let same_boot = container.record().boot_id == self.0.boot_id;
        if let (true, Ok(text)) = (same_boot, fs::read(exit_file))
            && let Ok(exit) = serde_json::from_slice(&text)
        {
            return self.container_exited(exit);
        }
        let mut changed = false;
        self.update_container(container, |record| {
            if record.state != State::Exited {
                changed = true;
                record.state = State::Exited;
                record.finished_at = now();
                record.exit_code = LOST_EXIT_CODE;
                record.reason = "Unknown".to_owned();
                record.message = "the container ended while its runtime was not looking".to_owned();
                record.pid = None;
            }
        });
        if changed {
            self.after_exit(container);
        }
    }

    fn after_exit(&self, container: &Arc<Container>) {
        self.publish(&container.sandbox, &container.id, events::Kind::Stopped);
        let (runtime, cgroup, id) = (self.clone(), container.record().cgroup, container.id.clone());
        self.0.tasks.spawn(async move {
            if let Err(error) = runtime.0.host.hierarchies.remove(&cgroup).await {
                tracing::warn!(container = %id, %error, "remove the cgroup of an exited container");
            }
        });
    }

    /// The shim of a ready sandbox has gone: nothing of the pod may go on unwatched.
    pub(crate) async fn sandbox_died(&self, sandbox: &Arc<Sandbox>) {
        *lock(&sandbox.shim) = None;
        for container in self.containers_of(&sandbox.id) {
            let record = container.record();
            if record.state != State::Exited {
                self.0.host.hierarchies.kill_all(&record.cgroup);
                self.container_lost(&container);
            }
        }
        self.update_sandbox(sandbox, |record| record.ready = false);
        self.publish(sandbox, &sandbox.id, events::Kind::Stopped);
    }

    /// Removes what a sandbox without a record may have left.
    pub(crate) async fn discard_sandbox_files(&self, id: &str) {
        crate::sandboxes::end_shim(&self.shim_dir(id), None).await;
        let netns = self.0.config.run_dir.join("netns").join(id);
        let _ = snapshot::unmount(&netns);
        let _ = fs::remove_file(netns);
        for dir in [self.shim_dir(id), self.sandbox_run_dir(id)] {
            remove_with_mounts(&dir);
        }
        let _ = self.0.sandbox_records.remove(id);
    }

    pub(crate) fn discard_container_files(&self, id: &str) {
        remove_with_mounts(&self.bundle(id));
        if let Err(error) = self.0.container_records.remove(id) {
            tracing::warn!(container = %id, %error, "remove the container's files");
        }
    }
}

/// Unmounts what is below a directory, then removes it; never the other way round.
pub(crate) fn remove_with_mounts(dir: &Path) {
    let result = snapshot::unmount_below(dir).and_then(|()| crate::records::remove_dir_all(dir));
    if let Err(error) = result {
        tracing::warn!(dir = %dir.display(), %error, "remove directory");
    }
}

fn by_prefix<T: Clone>(map: &HashMap<String, T>, id: &str) -> Option<T> {
    if let Some(found) = map.get(id) {
        return Some(found.clone());
    }
    if id.is_empty() {
        return None;
    }
    let mut matches = map.iter().filter(|(known, _)| known.starts_with(id));
    match (matches.next(), matches.next()) {
        (Some((_, found)), None) => Some(found.clone()),
        _ => None,
    }
}

fn on_shim_event(runtime: &Weak<Inner>, sandbox: &Weak<Sandbox>, event: ShimEvent) {
    let (Some(inner), Some(sandbox)) = (runtime.upgrade(), sandbox.upgrade()) else { return };
    let runtime = Runtime(inner);
    match event {
        ShimEvent::Exited(exit) => runtime.container_exited(exit),
        ShimEvent::Gone if sandbox.record().ready => {
            tracing::error!(sandbox = %sandbox.id, "the shim has died");
            let task = runtime.clone();
            runtime.0.tasks.spawn(async move { task.sandbox_died(&sandbox).await });
        }
        ShimEvent::Gone => {}
    }
}
