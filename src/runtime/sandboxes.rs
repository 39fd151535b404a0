//! Pod sandboxes: making, stopping and removing them.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mussel_cri::v1::{self, NamespaceMode, PodSandboxConfig, Protocol};
use nix::mount::{MsFlags, mount};

use crate::error::{Error, Result, Step, chain};
use crate::events::Kind;
use crate::network::{PodNetworkRequest, PortMapping};
use crate::records::{SandboxRecord, State};
use crate::runtime::{Runtime, Sandbox, lock, new_id, now, remove_with_mounts};
use crate::shim::protocol::{Op, SOCKET, ShimConfig};
use crate::shim_client;
use crate::snapshot;
use crate::spec::PodNamespaces;
use crate::sysctls;

/// Size of a pod's /dev/shm, as everywhere.
const SHM_OPTIONS: &str = "mode=1777,size=65536k";

/// A shim that was asked to end, or killed, is gone within milliseconds.
const SHIM_END_TIMEOUT: Duration = Duration::from_secs(5);

/// The namespace options of a sandbox; CRI allows every level to be absent.
pub(crate) fn namespace_options(config: &PodSandboxConfig) -> v1::NamespaceOption {
    config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|context| context.namespace_options.clone())
        .unwrap_or_default()
}

/// A name that is reserved while its holder lives or is being made.
struct Reservation<'a> {
    runtime: &'a Runtime,
    name: String,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.runtime.write_index().reserved.remove(&self.name);
    }
}

impl Runtime {
    pub(crate) async fn run_pod_sandbox(&self, request: v1::RunPodSandboxRequest) -> Result<String> {
        let config = request.config.ok_or_else(|| Error::Invalid("sandbox config is missing".into()))?;
        let metadata =
            config.metadata.clone().ok_or_else(|| Error::Invalid("sandbox config has no metadata".into()))?;
        if !request.runtime_handler.is_empty() {
            return Err(Error::Invalid(format!("no runtime for {:?} is configured", request.runtime_handler)));
        }
        let _reservation = self.reserve_sandbox(&metadata)?;
        let id = new_id();
        let host_network = namespace_options(&config).network() == NamespaceMode::Node;
        let record = SandboxRecord {
            id: id.clone(),
            boot_id: self.0.boot_id.clone(),
            created_at: now(),
            netns: (!host_network).then(|| self.0.config.run_dir.join("netns").join(&id)),
            config: config.into(),
            runtime_handler: request.runtime_handler,
            ready: false,
            ips: Vec::new(),
            network_added: false,
            shim_pid: 0,
            pause_pid: None,
        };
        let sandbox = Sandbox::new(record);
        match self.bring_up(&sandbox).await {
            Ok(()) => {
                self.write_index().sandboxes.insert(id.clone(), sandbox.clone());
                self.publish(&sandbox, &id, Kind::Created);
                self.publish(&sandbox, &id, Kind::Started);
                Ok(id)
            }
            Err(error) => {
                self.tear_down(&sandbox).await;
                self.discard_sandbox_files(&id).await;
                Err(error)
            }
        }
    }

    fn reserve_sandbox(&self, metadata: &v1::PodSandboxMetadata) -> Result<Reservation<'_>> {
        let name = format!("{}_{}_{}_{}", metadata.name, metadata.namespace, metadata.uid, metadata.attempt);
        let mut index = self.write_index();
        let taken =
            index.sandboxes.values().any(|sandbox| sandbox.record().config.0.metadata.as_ref() == Some(metadata));
        let key = format!("sandbox/{name}");
        if taken || !index.reserved.insert(key.clone()) {
            return Err(Error::Reserved(name));
        }
        Ok(Reservation { runtime: self, name: key })
    }

    async fn bring_up(&self, sandbox: &Arc<Sandbox>) -> Result<()> {
        let record = sandbox.record();
        let config = &record.config.0;
        let options = namespace_options(config);
        let files = self.0.sandbox_records.dir(&sandbox.id);
        fs::create_dir_all(&files).step(format!("create {}", files.display()))?;
        // From here on a crash is found and cleaned up at the next start.
        self.update_sandbox(sandbox, |_| ());
        write_files(&files, config, record.netns.is_none())?;
        if options.ipc() != NamespaceMode::Node {
            mount_shm(&self.sandbox_run_dir(&sandbox.id).join("shm"))?;
        }
        let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let sysctls: Vec<_> = config.linux.iter().flat_map(|linux| linux.sysctls.clone()).collect();
        let own_ipc = options.ipc() != NamespaceMode::Node;
        if let Some((name, _)) =
            sysctls.iter().find(|(name, _)| !sysctls::is_own(name, record.netns.is_some(), own_ipc))
        {
            return Err(Error::Invalid(format!("sysctl {name:?} is not the sandbox's own")));
        }
        let shim = ShimConfig {
            sandbox_id: sandbox.id.clone(),
            netns: record.netns.clone(),
            ipc: options.ipc() != NamespaceMode::Node,
            hostname: record.netns.is_some().then(|| hostname(config, &sandbox.id)),
            shared_pid: security.is_some() && options.pid() == NamespaceMode::Pod,
            sysctls,
            cgroup_procs: self.0.host.hierarchies.prepare_shims(&self.cgroup_below_root("mussel-shims")),
        };
        shim_client::spawn(&self.0.config.shim_exe, &self.shim_dir(&sandbox.id), &shim).await?;
        self.connect(sandbox).await?;
        if record.netns.is_some() {
            // Before the call: if we do not live to see its end, the network still hears of the pod's.
            self.update_sandbox(sandbox, |record| record.network_added = true);
            let ips = self.0.config.network.add(&self.network_request(sandbox)).await?;
            self.update_sandbox(sandbox, |record| record.ips = ips.iter().map(IpAddr::to_string).collect());
        }
        self.update_sandbox(sandbox, |record| record.ready = true);
        Ok(())
    }

    fn network_request(&self, sandbox: &Sandbox) -> PodNetworkRequest {
        let record = sandbox.record();
        let config = record.config.0;
        let metadata = config.metadata.unwrap_or_default();
        let port_mappings = config.port_mappings.iter().filter(|mapping| mapping.host_port > 0).filter_map(|mapping| {
            Some(PortMapping {
                protocol: match mapping.protocol() {
                    Protocol::Tcp => "tcp",
                    Protocol::Udp => "udp",
                    Protocol::Sctp => "sctp",
                },
                container_port: u16::try_from(mapping.container_port).ok()?,
                host_port: u16::try_from(mapping.host_port).ok()?,
                host_ip: mapping.host_ip.parse().ok().filter(|ip: &IpAddr| !ip.is_unspecified()),
            })
        });
        PodNetworkRequest {
            sandbox_id: record.id,
            netns: record.netns.unwrap_or_default(),
            pod_namespace: metadata.namespace,
            pod_name: metadata.name,
            pod_uid: metadata.uid,
            pod_labels: config.labels.into_iter().collect(),
            hostname: config.hostname,
            port_mappings: port_mappings.collect(),
            pod_cidr: self.0.pod_cidr.read().map(|cidr| cidr.clone()).unwrap_or_default(),
        }
    }

    pub(crate) fn cgroup_below_root(&self, name: &str) -> String {
        format!("{}/{name}", self.0.config.cgroup_root.trim_end_matches('/'))
    }

    /// The namespaces that the sandbox's containers join.
    pub(crate) fn pod_namespaces(&self, sandbox: &Sandbox) -> PodNamespaces {
        let record = sandbox.record();
        let own = |kind: &str| Some(format!("/proc/{}/ns/{kind}", record.shim_pid).into());
        let ipc = namespace_options(&record.config.0).ipc() != NamespaceMode::Node;
        PodNamespaces {
            uts: record.netns.as_ref().and_then(|_| own("uts")),
            ipc: if ipc { own("ipc") } else { None },
            net: record.netns,
        }
    }

    pub(crate) async fn stop_pod_sandbox(&self, id: &str) -> Result<()> {
        // One that is not there has been stopped and removed.
        let Ok(sandbox) = self.sandbox(id) else { return Ok(()) };
        let _operation = sandbox.operation.lock().await;
        self.stop_sandbox(&sandbox).await
    }

    async fn stop_sandbox(&self, sandbox: &Arc<Sandbox>) -> Result<()> {
        for container in self.containers_of(&sandbox.id) {
            self.kill_container(&container).await?;
        }
        let was_ready = sandbox.record().ready;
        // Not ready from here on, so that the end of the shim is no surprise.
        self.update_sandbox(sandbox, |record| record.ready = false);
        self.end_network(sandbox).await?;
        self.tear_down(sandbox).await;
        if was_ready {
            self.publish(sandbox, &sandbox.id, Kind::Stopped);
        }
        Ok(())
    }

    async fn end_network(&self, sandbox: &Sandbox) -> Result<()> {
        if sandbox.record().network_added {
            self.0.config.network.del(&self.network_request(sandbox)).await?;
            self.update_sandbox(sandbox, |record| record.network_added = false);
        }
        Ok(())
    }

    /// Ends the shim and takes its namespaces away, whatever state they are in.
    async fn tear_down(&self, sandbox: &Sandbox) {
        let record = sandbox.record();
        if let Err(error) = self.end_network(sandbox).await {
            tracing::warn!(sandbox = %sandbox.id, error = %chain(&error), "take down the pod network");
        }
        let shim = lock(&sandbox.shim).take();
        if record.boot_id == self.0.boot_id {
            end_shim(&self.shim_dir(&sandbox.id), shim).await;
        }
        if let Some(netns) = &record.netns {
            if let Err(error) = snapshot::unmount(netns) {
                tracing::warn!(sandbox = %sandbox.id, %error, "unmount the network namespace");
            }
            let _ = fs::remove_file(netns);
        }
        remove_with_mounts(&self.sandbox_run_dir(&sandbox.id));
    }

    pub(crate) async fn remove_pod_sandbox(&self, id: &str) -> Result<()> {
        let Ok(sandbox) = self.sandbox(id) else { return Ok(()) };
        let _operation = sandbox.operation.lock().await;
        self.stop_sandbox(&sandbox).await?;
        for container in self.containers_of(&sandbox.id) {
            self.remove_container(&container.id).await?;
        }
        self.discard_sandbox_files(&sandbox.id).await;
        self.write_index().sandboxes.remove(&sandbox.id);
        self.publish(&sandbox, &sandbox.id, Kind::Deleted);
        Ok(())
    }

    pub(crate) fn list_pod_sandboxes(&self, filter: Option<v1::PodSandboxFilter>) -> Vec<v1::PodSandbox> {
        let filter = filter.unwrap_or_default();
        let sandboxes: Vec<_> = self.read_index().sandboxes.values().cloned().collect();
        let sandboxes = sandboxes.iter().map(|sandbox| sandbox.record()).filter(|record| {
            let state = filter.state.as_ref().map(v1::PodSandboxStateValue::state);
            record.id.starts_with(&filter.id)
                && state.is_none_or(|state| (state == v1::PodSandboxState::SandboxReady) == record.ready)
                && matches(&filter.label_selector, &record.config.0.labels)
        });
        sandboxes
            .map(|record| v1::PodSandbox {
                state: crate::events::sandbox_state(record.ready).into(),
                id: record.id,
                metadata: record.config.0.metadata,
                created_at: record.created_at,
                labels: record.config.0.labels,
                annotations: record.config.0.annotations,
                runtime_handler: record.runtime_handler,
            })
            .collect()
    }

    /// Whether a container of the sandbox still runs.
    pub(crate) fn has_running(&self, sandbox: &Sandbox) -> bool {
        self.containers_of(&sandbox.id).iter().any(|container| container.record().state == State::Running)
    }
}

impl From<PodSandboxConfig> for crate::records::Encoded<PodSandboxConfig> {
    fn from(config: PodSandboxConfig) -> Self {
        crate::records::Encoded(config)
    }
}

/// Whether labels have all that a selector wants.
pub(crate) fn matches(
    selector: &std::collections::HashMap<String, String>,
    labels: &std::collections::HashMap<String, String>,
) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Ends the shim that works in `dir`: by request if it listens, else by force.
pub(crate) async fn end_shim(dir: &Path, shim: Option<shim_client::Shim>) {
    let shim = match shim {
        Some(shim) => Some(shim),
        None => shim_client::Shim::connect(dir, |_| ()).await.ok().map(|(shim, _)| shim),
    };
    if let Some(shim) = shim {
        let request = shim.request("end shim", Op::Shutdown, Vec::new());
        if matches!(tokio::time::timeout(SHIM_END_TIMEOUT, request).await, Ok(Ok(_))) {
            let _ = fs::remove_file(dir.join(SOCKET));
            return;
        }
    }
    let Some(pid) = fs::read_to_string(dir.join("pid")).ok().and_then(|text| text.trim().parse::<i32>().ok()) else {
        return;
    };
    // The number may have passed to another process; the command line tells.
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let wanted = dir.as_os_str().as_encoded_bytes();
    if pid > 1 && command.split(|byte| *byte == 0).any(|argument| argument == wanted) {
        tracing::warn!(pid, dir = %dir.display(), "killing a shim that does not answer");
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
    }
}

pub(crate) fn hostname(config: &PodSandboxConfig, id: &str) -> String {
    let name = if config.hostname.is_empty() { id.get(..12).unwrap_or(id) } else { &config.hostname };
    name.to_owned()
}

/// `hostname`, `hosts` and `resolv.conf`, which containers see unless their mounts say otherwise.
fn write_files(dir: &Path, config: &PodSandboxConfig, host_network: bool) -> Result<()> {
    let id = dir.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let name = if host_network && config.hostname.is_empty() {
        nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    } else {
        hostname(config, &id)
    };
    fs::write(dir.join("hostname"), format!("{name}\n")).step("write hostname")?;
    let hosts = fs::read_to_string("/etc/hosts").ok().filter(|_| host_network);
    let hosts = hosts.unwrap_or_else(|| {
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
         ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
            .to_owned()
    });
    fs::write(dir.join("hosts"), hosts).step("write hosts")?;
    let resolv = match &config.dns_config {
        Some(dns) if *dns != v1::DnsConfig::default() => resolv_conf(dns)?,
        _ => fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
    };
    fs::write(dir.join("resolv.conf"), resolv).step("write resolv.conf")
}

fn resolv_conf(dns: &v1::DnsConfig) -> Result<String> {
    let words = || dns.searches.iter().chain(&dns.servers).chain(&dns.options);
    if let Some(word) = words().find(|word| word.contains(char::is_whitespace)) {
        return Err(Error::Invalid(format!("{word:?} cannot be in resolv.conf")));
    }
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    Ok(text)
}

fn mount_shm(path: &Path) -> Result<()> {
    fs::create_dir_all(path).step(format!("create {}", path.display()))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("shm"), path, Some("tmpfs"), flags, Some(SHM_OPTIONS)).step("mount /dev/shm of the pod")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_in_order() {
        let dns = v1::DnsConfig {
            servers: vec!["10.43.0.10".into()],
            searches: vec!["a.svc".into(), "b".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(resolv_conf(&dns).unwrap(), "search a.svc b\nnameserver 10.43.0.10\noptions ndots:5\n");
        assert!(resolv_conf(&v1::DnsConfig { searches: vec!["a\nnameserver 1.2.3.4".into()], ..dns }).is_err());
    }
}
