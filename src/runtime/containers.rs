//! Containers: making, starting, stopping and removing them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mussel_cri::v1::{self, ContainerConfig, MountPropagation, NamespaceMode};

use crate::error::{Error, Result, Step, chain};
use crate::events::{self, Kind};
use crate::image::ResolvedImage;
use crate::records::{ContainerRecord, Encoded, State};
use crate::runtime::{Container, Runtime, Sandbox, new_id, now};
use crate::sandboxes::{hostname, matches, namespace_options};
use crate::shim::filter;
use crate::shim::protocol::{Op, Start};
use crate::spec::{self, BindMount, PidNamespace, Plan};
use crate::{device_filter, devices, host, rootfs, signals, snapshot, user};

/// After SIGKILL a process ends unless the kernel is stuck; then the caller shall hear of it.
const KILL_TIMEOUT: Duration = Duration::from_secs(60);

/// Exit code of a container that could not be started, as other runtimes have it.
const START_ERROR_CODE: i32 = 128;

impl Runtime {
    pub(crate) async fn create_container(&self, request: v1::CreateContainerRequest) -> Result<String> {
        let config = request.config.ok_or_else(|| Error::Invalid("container config is missing".into()))?;
        let metadata =
            config.metadata.clone().ok_or_else(|| Error::Invalid("container config has no metadata".into()))?;
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        if !sandbox.record().ready {
            return Err(Error::State(format!("sandbox {} is not running", sandbox.id)));
        }
        let name = config.image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
        let image = self.0.config.images.resolve(&name).await?;
        let volumes = self.image_volumes(&config).await?;
        let id = new_id();
        {
            let mut index = self.write_index();
            let taken = index.containers.values().any(|container| {
                container.sandbox.id == sandbox.id && container.record().config.0.metadata.as_ref() == Some(&metadata)
            });
            let name = format!("{}_{}_{}", metadata.name, sandbox.id, metadata.attempt);
            if taken || !index.reserved.insert(format!("container/{name}")) {
                return Err(Error::Reserved(name));
            }
        }
        let (runtime, owned_id) = (self.clone(), id.clone());
        // Mounts and file system work, which may take a while on a slow card.
        let made = tokio::task::spawn_blocking(move || runtime.prepare(&owned_id, &sandbox, config, &image, &volumes));
        let made = made.await.unwrap_or_else(|_| Err(Error::State("preparing the container panicked".into())));
        let reserved = format!("container/{}_{}_{}", metadata.name, request.pod_sandbox_id, metadata.attempt);
        self.write_index().reserved.remove(&reserved);
        match made {
            Ok(container) => {
                self.write_index().containers.insert(id.clone(), container.clone());
                self.publish(&container.sandbox, &id, Kind::Created);
                Ok(id)
            }
            Err(error) => {
                self.discard_container_files(&id);
                Err(error)
            }
        }
    }

    /// Images that are to be mounted as volumes, by their place in the list of mounts.
    async fn image_volumes(&self, config: &ContainerConfig) -> Result<Vec<(usize, ResolvedImage)>> {
        let mut volumes = Vec::new();
        for (index, mount) in config.mounts.iter().enumerate() {
            if let Some(image) = &mount.image
                && !image.image.is_empty()
            {
                volumes.push((index, self.0.config.images.resolve(&image.image).await?));
            }
        }
        Ok(volumes)
    }

    /// Mounts the root file system and writes all that a start needs.
    fn prepare(
        &self,
        id: &str,
        sandbox: &Arc<Sandbox>,
        config: ContainerConfig,
        image: &ResolvedImage,
        volumes: &[(usize, ResolvedImage)],
    ) -> Result<Arc<Container>> {
        let sandbox_record = sandbox.record();
        let sandbox_config = &sandbox_record.config.0;
        let bundle = self.bundle(id);
        let root = bundle.join("rootfs");
        let snapshot_dir = self.0.container_records.dir(id).join("snapshot");
        snapshot::mount_writable(&image.layers, &snapshot_dir, &root).step("mount the root file system")?;

        let security = spec::security(&config);
        let user = user::resolve(
            &root,
            &user::Wanted {
                run_as_user: security.run_as_user.as_ref().map(|user| user.value),
                run_as_username: &security.run_as_username,
                run_as_group: security.run_as_group.as_ref().map(|group| group.value),
                image_user: &image.config.user,
                supplemental_groups: &security.supplemental_groups,
                strict: security.supplemental_groups_policy() == v1::SupplementalGroupsPolicy::Strict,
            },
        )?;
        for dir in image.config.volumes.iter().chain([&spec::working_dir(&config, &image.config)]) {
            rootfs::make_dir(&root, dir).step(format!("create directory {dir}"))?;
        }
        if spec::arguments(&config, &image.config).is_empty() {
            return Err(Error::Invalid("no command specified".into()));
        }

        let options = security.namespace_options.clone().unwrap_or_else(|| namespace_options(sandbox_config));
        let target = self.container(&options.target_id).ok().and_then(|container| container.record().pid);
        let pid = spec::pid_namespace(options.pid(), sandbox_record.pause_pid, target).map_err(Error::Invalid)?;
        let kill_leftovers = pid != PidNamespace::Own;

        let parent = sandbox_config.linux.as_ref().map(|linux| linux.cgroup_parent.as_str()).unwrap_or_default();
        let parent = if parent.is_empty() { self.cgroup_below_root("mussel") } else { parent.to_owned() };
        let cgroup = format!("{}/{id}", parent.trim_end_matches('/'));
        let devices = if security.privileged {
            devices::of_node()
        } else {
            devices::named(&config.devices).step("find devices")?
        };
        let mounts = self.mounts(id, sandbox, &config, volumes)?;
        let seccomp = spec::seccomp(&config, &self.0.host)?;
        if let Some(program) = &seccomp {
            fs::write(bundle.join(filter::FILE), program.to_bytes()).step("write seccomp filter")?;
        }
        let host = &self.0.host;
        if host.hierarchies.is_v2() && host.device_filter && !security.privileged {
            let program = device_filter::compile(&devices::rules(&devices, false));
            fs::write(bundle.join(device_filter::FILE), program).step("write device filter")?;
        }
        let plan = Plan {
            host,
            config: &config,
            image: &image.config,
            user: &user,
            rootfs: &root,
            hostname: &self.pod_hostname(sandbox),
            namespaces: &self.pod_namespaces(sandbox),
            pid: &pid,
            cgroup: &cgroup,
            mounts: &mounts,
            devices: &devices,
            seccomp: seccomp.is_some(),
        };
        let text = serde_json::to_vec(&spec::spec(&plan)).map_err(std::io::Error::from).step("encode spec")?;
        fs::write(bundle.join("config.json"), text).step("write spec")?;

        let stop_signal = signals::from_cri(config.stop_signal)
            .or_else(|| signals::parse(&image.config.stop_signal))
            .unwrap_or(signals::SIGTERM);
        let log_dir = Path::new(&sandbox_config.log_directory);
        let log_path = (!config.log_path.is_empty() && log_dir.is_absolute()).then(|| log_dir.join(&config.log_path));
        let record = ContainerRecord {
            id: id.to_owned(),
            sandbox: sandbox.id.clone(),
            boot_id: self.0.boot_id.clone(),
            state: State::Created,
            created_at: now(),
            started_at: 0,
            finished_at: 0,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            config: Encoded(config),
            image_id: image.id.clone(),
            image_ref: image.reference.clone(),
            uid: user.uid,
            gid: user.gid,
            groups: user.groups.clone(),
            stop_signal,
            cgroup,
            log_path,
            kill_leftovers,
            pid: None,
        };
        self.0.container_records.save(id, &record).step("save container record")?;
        Ok(Container::new(sandbox.clone(), record))
    }

    fn pod_hostname(&self, sandbox: &Sandbox) -> String {
        let record = sandbox.record();
        if record.netns.is_none() {
            let own = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned());
            return own.unwrap_or_default();
        }
        hostname(&record.config.0, &sandbox.id)
    }

    /// The pod's mounts, then those that every container has unless the pod gives them.
    fn mounts(
        &self,
        id: &str,
        sandbox: &Sandbox,
        config: &ContainerConfig,
        volumes: &[(usize, ResolvedImage)],
    ) -> Result<Vec<BindMount>> {
        let mut mounts = Vec::new();
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").step("read mounts")?;
        for (index, mount) in config.mounts.iter().enumerate() {
            let source = match volumes.iter().find(|(at, _)| *at == index) {
                Some((_, image)) => self.mount_image(id, index, mount, image)?,
                None => host_path(&mount.host_path)?,
            };
            let propagation = mount.propagation();
            if propagation == MountPropagation::PropagationBidirectional && !host::is_shared(&mountinfo, &source) {
                return Err(Error::Invalid(format!("path {} is not on a shared mount", source.display())));
            }
            if mount.recursive_read_only && !(mount.readonly && propagation == MountPropagation::PropagationPrivate) {
                let text = "recursive_read_only needs readonly and private propagation";
                return Err(Error::Invalid(format!("mount {}: {text}", mount.container_path)));
            }
            mounts.push(BindMount {
                source,
                destination: mount.container_path.clone(),
                read_only: mount.readonly || mount.image.as_ref().is_some_and(|image| !image.image.is_empty()),
                recursive_read_only: mount.recursive_read_only,
                propagation,
            });
        }
        let files = self.0.sandbox_records.dir(&sandbox.id);
        let host_ipc = namespace_options(&sandbox.record().config.0).ipc() == NamespaceMode::Node;
        let shm = if host_ipc { "/dev/shm".into() } else { self.sandbox_run_dir(&sandbox.id).join("shm") };
        let read_only = spec::security(config).readonly_rootfs;
        for (source, destination, read_only) in [
            (files.join("hostname"), "/etc/hostname", read_only),
            (files.join("hosts"), "/etc/hosts", read_only),
            (files.join("resolv.conf"), "/etc/resolv.conf", read_only),
            (shm, "/dev/shm", false),
        ] {
            if !mounts.iter().any(|mount| Path::new(&mount.destination) == Path::new(destination)) {
                mounts.push(BindMount {
                    source,
                    destination: destination.to_owned(),
                    read_only,
                    recursive_read_only: false,
                    propagation: MountPropagation::PropagationPrivate,
                });
            }
        }
        Ok(mounts)
    }

    fn mount_image(&self, id: &str, index: usize, mount: &v1::Mount, image: &ResolvedImage) -> Result<PathBuf> {
        let target = self.bundle(id).join("images").join(index.to_string());
        let work = self.0.container_records.dir(id).join("images").join(index.to_string());
        snapshot::mount_read_only(&image.layers, &work, &target).step("mount image volume")?;
        let path = fs::canonicalize(target.join(mount.image_sub_path.trim_start_matches('/')));
        let path = path.step(format!("find {:?} in the image", mount.image_sub_path))?;
        let target = fs::canonicalize(&target).step("find the image volume")?;
        if !path.starts_with(&target) {
            return Err(Error::Invalid(format!("{:?} leaves the image", mount.image_sub_path)));
        }
        Ok(path)
    }

    pub(crate) async fn start_container(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        let _operation = container.operation.lock().await;
        let record = container.record();
        if record.state != State::Created {
            return Err(Error::State(format!("container {} is not in created state", container.id)));
        }
        let shim = container.sandbox.shim()?;
        let hierarchies = &self.0.host.hierarchies;
        // Version 1 has hierarchies that libcontainer does not know, and they are shown to the container too. On
        // version 2 it must make the directory itself, as it turns controllers on while it goes.
        for dir in hierarchies.dirs(&record.cgroup).iter().filter(|_| !hierarchies.is_v2()) {
            if let Err(error) = fs::create_dir_all(dir) {
                tracing::warn!(dir = %dir.display(), %error, "create cgroup");
            }
        }
        if let Some(dir) = record.log_path.as_deref().and_then(Path::parent) {
            fs::create_dir_all(dir).step(format!("create log directory {}", dir.display()))?;
        }
        let config = record.config.0;
        let start = Start {
            container: container.id.clone(),
            bundle: self.bundle(&container.id),
            log_path: record.log_path,
            stdin: config.stdin,
            stdin_once: config.stdin_once,
            tty: config.tty,
            uid: record.uid,
            gid: record.gid,
            cgroups: hierarchies.dirs(&record.cgroup),
            kill_leftovers: record.kill_leftovers,
        };
        match shim.request("start container", Op::Start(start), Vec::new()).await {
            Ok(answer) => {
                self.update_container(&container, |record| {
                    // It may have ended already.
                    if record.state == State::Created {
                        record.state = State::Running;
                        record.pid = answer.pid;
                        record.started_at = answer.started_at.unwrap_or_else(now);
                    }
                });
                self.publish(&container.sandbox, &container.id, Kind::Started);
                Ok(())
            }
            Err(error) => {
                let error = friendly(error);
                self.update_container(&container, |record| {
                    record.state = State::Exited;
                    record.finished_at = now();
                    record.exit_code = START_ERROR_CODE;
                    record.reason = "StartError".into();
                    record.message = chain(&error);
                });
                if let Err(error) = hierarchies.remove(&record.cgroup).await {
                    tracing::warn!(container = %container.id, %error, "remove the cgroup of a failed container");
                }
                self.publish(&container.sandbox, &container.id, Kind::Stopped);
                Err(error)
            }
        }
    }

    pub(crate) async fn stop_container(&self, id: &str, timeout: Duration) -> Result<()> {
        let Ok(container) = self.container(id) else { return Ok(()) };
        let record = container.record();
        if record.state != State::Running {
            return Ok(());
        }
        if !timeout.is_zero() {
            self.signal(&container, record.stop_signal).await?;
            if wait_for_exit(&container, timeout).await {
                return self.remove_cgroup(&container).await;
            }
        }
        self.kill_container(&container).await
    }

    async fn signal(&self, container: &Container, signal: i32) -> Result<()> {
        let op = Op::Signal { container: container.id.clone(), exec: None, signal };
        match container.sandbox.shim()?.request("signal container", op, Vec::new()).await {
            // It has just ended.
            Err(_) if container.record().state != State::Running => Ok(()),
            result => result.map(drop),
        }
    }

    /// Ends a container now. One that has ended, or has never run, is fine.
    pub(crate) async fn kill_container(&self, container: &Arc<Container>) -> Result<()> {
        let record = container.record();
        if record.state != State::Running {
            return Ok(());
        }
        if self.signal(container, libc::SIGKILL).await.is_err() {
            // Without a shim the cgroup still says who belongs to the container.
            self.0.host.hierarchies.kill_all(&record.cgroup);
            if container.sandbox.shim().is_err() {
                self.container_lost(container);
            }
        }
        if !wait_for_exit(container, KILL_TIMEOUT).await {
            return Err(Error::Deadline(format!("container {} did not end after SIGKILL", container.id)));
        }
        self.remove_cgroup(container).await
    }

    /// So that whoever stopped the container can remove the cgroups above it.
    async fn remove_cgroup(&self, container: &Container) -> Result<()> {
        self.0.host.hierarchies.remove(&container.record().cgroup).await.step("remove cgroup")
    }

    pub(crate) async fn remove_container(&self, id: &str) -> Result<()> {
        let Ok(container) = self.container(id) else { return Ok(()) };
        let _operation = container.operation.lock().await;
        self.kill_container(&container).await?;
        if let Ok(shim) = container.sandbox.shim() {
            let op = Op::Forget { container: container.id.clone() };
            if let Err(error) = shim.request("forget container", op, Vec::new()).await {
                tracing::debug!(container = %container.id, error = %chain(&error), "forget container");
            }
        }
        if let Err(error) = self.remove_cgroup(&container).await {
            tracing::warn!(container = %container.id, error = %chain(&error), "remove container");
        }
        let (runtime, id) = (self.clone(), container.id.clone());
        // Removing a large writable layer takes a while.
        let _ = tokio::task::spawn_blocking(move || runtime.discard_container_files(&id)).await;
        self.write_index().containers.remove(&container.id);
        self.publish(&container.sandbox, &container.id, Kind::Deleted);
        Ok(())
    }

    pub(crate) async fn update_container_resources(&self, request: v1::UpdateContainerResourcesRequest) -> Result<()> {
        let container = self.container(&request.container_id)?;
        let Some(new) = request.linux else { return Ok(()) };
        let record = container.record();
        if record.state == State::Exited {
            return Err(Error::State(format!("container {} has exited", container.id)));
        }
        if record.state == State::Running {
            self.0.host.hierarchies.update(&record.cgroup, &new).step("update container")?;
        }
        self.update_container(&container, |record| {
            let linux = record.config.0.linux.get_or_insert_default();
            merge(linux.resources.get_or_insert_default(), new);
        });
        Ok(())
    }

    pub(crate) async fn reopen_container_log(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        if container.record().state != State::Running {
            return Err(Error::State(format!("container {} is not running", container.id)));
        }
        let op = Op::ReopenLog { container: container.id.clone() };
        container.sandbox.shim()?.request("reopen log", op, Vec::new()).await.map(drop)
    }

    pub(crate) fn list_containers(&self, filter: Option<v1::ContainerFilter>) -> Vec<v1::Container> {
        let filter = filter.unwrap_or_default();
        let containers: Vec<_> = self.read_index().containers.values().cloned().collect();
        let containers = containers.iter().map(|container| container.record()).filter(|record| {
            let state = filter.state.as_ref().map(v1::ContainerStateValue::state);
            record.id.starts_with(&filter.id)
                && record.sandbox.starts_with(&filter.pod_sandbox_id)
                && state.is_none_or(|state| state == events::container_state(record.state))
                && matches(&filter.label_selector, &record.config.0.labels)
        });
        containers
            .map(|record| v1::Container {
                state: events::container_state(record.state).into(),
                id: record.id,
                pod_sandbox_id: record.sandbox,
                metadata: record.config.0.metadata,
                image: record.config.0.image,
                image_ref: record.image_ref,
                created_at: record.created_at,
                labels: record.config.0.labels,
                annotations: record.config.0.annotations,
                image_id: record.image_id,
            })
            .collect()
    }
}

/// Whether it came to its end in time.
async fn wait_for_exit(container: &Container, timeout: Duration) -> bool {
    let mut state = container.state.subscribe();
    tokio::time::timeout(timeout, state.wait_for(|state| *state == State::Exited)).await.is_ok()
}

/// A missing directory is made, as other runtimes do; links are followed to their end.
fn host_path(path: &str) -> Result<PathBuf> {
    if !Path::new(path).is_absolute() {
        return Err(Error::Invalid(format!("host path {path:?} is not absolute")));
    }
    match fs::canonicalize(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            fs::create_dir_all(path).step(format!("create host path {path}"))?;
            fs::canonicalize(path).step(format!("find host path {path}"))
        }
        result => result.step(format!("find host path {path}")),
    }
}

fn merge(old: &mut v1::LinuxContainerResources, new: v1::LinuxContainerResources) {
    fn take<T: Default + PartialEq>(old: &mut T, new: T) {
        if new != T::default() {
            *old = new;
        }
    }
    take(&mut old.cpu_period, new.cpu_period);
    take(&mut old.cpu_quota, new.cpu_quota);
    take(&mut old.cpu_shares, new.cpu_shares);
    take(&mut old.memory_limit_in_bytes, new.memory_limit_in_bytes);
    take(&mut old.memory_swap_limit_in_bytes, new.memory_swap_limit_in_bytes);
    take(&mut old.oom_score_adj, new.oom_score_adj);
    take(&mut old.cpuset_cpus, new.cpuset_cpus);
    take(&mut old.cpuset_mems, new.cpuset_mems);
    take(&mut old.hugepage_limits, new.hugepage_limits);
    old.unified.extend(new.unified);
}

/// The one error that users make all the time, in the words that they can search for.
fn friendly(error: Error) -> Error {
    let Error::Shim { step, message } = error else { return error };
    let message = match message.split_once("executable '").and_then(|(_, rest)| rest.split_once('\'')) {
        Some((name, rest)) if rest.contains("not found in $PATH") => {
            let why =
                if name.contains('/') { "no such file or directory" } else { "executable file not found in $PATH" };
            let kind = if name.contains('/') { "stat" } else { "exec" };
            let detail = if kind == "stat" { format!("stat {name}: {why}") } else { why.to_owned() };
            format!("exec: {name:?}: {detail}: unknown")
        }
        _ => message,
    };
    Error::Shim { step, message: format!("OCI runtime create failed: unable to start container process: {message}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_worded_as_users_know_them() {
        let text =
            |message: &str| friendly(Error::Shim { step: "start container", message: message.into() }).to_string();
        assert!(
            text("x: executable 'nope' not found in $PATH")
                .ends_with("exec: \"nope\": executable file not found in $PATH: unknown")
        );
        assert!(
            text("executable '/x' not found in $PATH")
                .ends_with("exec: \"/x\": stat /x: no such file or directory: unknown")
        );
    }

    #[test]
    fn updates_keep_what_they_do_not_name() {
        let mut old = v1::LinuxContainerResources { cpu_shares: 2, memory_limit_in_bytes: 5, ..Default::default() };
        merge(&mut old, v1::LinuxContainerResources { memory_limit_in_bytes: 6, ..Default::default() });
        assert_eq!((old.cpu_shares, old.memory_limit_in_bytes), (2, 6));
    }
}
