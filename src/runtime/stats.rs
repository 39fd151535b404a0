//! What containers and pods use.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mussel_cri::v1;

use crate::error::{Error, Result};
use crate::records::State;
use crate::runtime::{Container, Runtime, Sandbox, lock, now};
use crate::sandboxes::matches;

fn value(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

impl Runtime {
    pub(crate) async fn container_stats(&self, container: Arc<Container>) -> v1::ContainerStats {
        let record = container.record();
        let usage = self.0.host.hierarchies.usage(&record.cgroup);
        let timestamp = now();
        let rate = {
            let mut last = lock(&container.last_cpu);
            let rate = last.filter(|(at, _)| timestamp > *at).map(|(at, cpu)| {
                let elapsed = u128::from((timestamp - at).unsigned_abs());
                let used = u128::from(usage.cpu_nanoseconds.saturating_sub(cpu));
                (used * 1_000_000_000 / elapsed) as u64
            });
            *last = Some((timestamp, usage.cpu_nanoseconds));
            rate
        };
        let upper = self.0.container_records.dir(&container.id).join("snapshot");
        let measured = upper.clone();
        // Walks the files that the container has written.
        let disk = tokio::task::spawn_blocking(move || disk_usage(&measured.join("upper"))).await.unwrap_or_default();
        v1::ContainerStats {
            attributes: Some(v1::ContainerAttributes {
                id: record.id,
                metadata: record.config.0.metadata,
                labels: record.config.0.labels,
                annotations: record.config.0.annotations,
            }),
            cpu: Some(v1::CpuUsage {
                timestamp,
                usage_core_nano_seconds: value(usage.cpu_nanoseconds),
                usage_nano_cores: rate.and_then(value),
                psi: None,
            }),
            memory: Some(memory(timestamp, &usage)),
            writable_layer: Some(v1::FilesystemUsage {
                timestamp,
                fs_id: Some(v1::FilesystemIdentifier {
                    mountpoint: self.0.config.root_dir.to_string_lossy().into_owned(),
                }),
                used_bytes: value(disk.0),
                inodes_used: value(disk.1),
            }),
            swap: Some(v1::SwapUsage {
                timestamp,
                swap_available_bytes: None,
                swap_usage_bytes: value(usage.swap_bytes),
            }),
            io: None,
        }
    }

    pub(crate) async fn list_container_stats(
        &self,
        filter: Option<v1::ContainerStatsFilter>,
    ) -> Vec<v1::ContainerStats> {
        let filter = filter.unwrap_or_default();
        let containers: Vec<_> = self.read_index().containers.values().cloned().collect();
        let mut stats = Vec::new();
        for container in containers {
            let record = container.record();
            if record.state == State::Running
                && record.id.starts_with(&filter.id)
                && record.sandbox.starts_with(&filter.pod_sandbox_id)
                && matches(&filter.label_selector, &record.config.0.labels)
            {
                stats.push(self.container_stats(container).await);
            }
        }
        stats
    }

    pub(crate) async fn sandbox_stats(&self, sandbox: &Sandbox) -> Result<v1::PodSandboxStats> {
        let record = sandbox.record();
        if !record.ready {
            return Err(Error::State(format!("sandbox {} is not running", sandbox.id)));
        }
        let mut containers = Vec::new();
        for container in self.containers_of(&sandbox.id) {
            if container.record().state == State::Running {
                containers.push(self.container_stats(container).await);
            }
        }
        let parent = record.config.0.linux.as_ref().map(|linux| linux.cgroup_parent.as_str()).unwrap_or_default();
        let timestamp = now();
        // A sandbox without a cgroup of its own is the sum of its containers, of which there is then no more to say.
        let usage = self.0.host.hierarchies.usage(parent);
        let named = !parent.is_empty();
        Ok(v1::PodSandboxStats {
            attributes: Some(v1::PodSandboxAttributes {
                id: record.id,
                metadata: record.config.0.metadata,
                labels: record.config.0.labels,
                annotations: record.config.0.annotations,
            }),
            linux: Some(v1::LinuxPodSandboxStats {
                cpu: named.then(|| v1::CpuUsage {
                    timestamp,
                    usage_core_nano_seconds: value(usage.cpu_nanoseconds),
                    usage_nano_cores: value(
                        containers
                            .iter()
                            .filter_map(|stats| stats.cpu.as_ref()?.usage_nano_cores.as_ref())
                            .map(|rate| rate.value)
                            .sum(),
                    ),
                    psi: None,
                }),
                memory: named.then(|| memory(timestamp, &usage)),
                network: network(record.shim_pid, record.netns.is_some(), timestamp),
                process: named.then(|| v1::ProcessUsage { timestamp, process_count: value(usage.processes) }),
                containers,
                io: None,
            }),
        })
    }

    pub(crate) async fn list_sandbox_stats(
        &self,
        filter: Option<v1::PodSandboxStatsFilter>,
    ) -> Vec<v1::PodSandboxStats> {
        let filter = filter.unwrap_or_default();
        let sandboxes: Vec<_> = self.read_index().sandboxes.values().cloned().collect();
        let mut stats = Vec::new();
        for sandbox in sandboxes {
            let record = sandbox.record();
            if record.ready
                && record.id.starts_with(&filter.id)
                && matches(&filter.label_selector, &record.config.0.labels)
            {
                stats.extend(self.sandbox_stats(&sandbox).await.ok());
            }
        }
        stats
    }
}

fn memory(timestamp: i64, usage: &crate::cgroup::Usage) -> v1::MemoryUsage {
    v1::MemoryUsage {
        timestamp,
        working_set_bytes: value(usage.working_set_bytes),
        available_bytes: usage
            .memory_limit_bytes
            .and_then(|limit| value(limit.saturating_sub(usage.working_set_bytes))),
        usage_bytes: value(usage.memory_bytes),
        rss_bytes: value(usage.rss_bytes),
        page_faults: value(usage.page_faults),
        major_page_faults: value(usage.major_page_faults),
        psi: None,
    }
}

/// The interfaces of the pod, read through its shim, which lives in its network namespace.
fn network(shim_pid: i32, own: bool, timestamp: i64) -> Option<v1::NetworkUsage> {
    if !own || shim_pid <= 1 {
        return None;
    }
    let text = fs::read_to_string(format!("/proc/{shim_pid}/net/dev")).ok()?;
    let mut interfaces = interfaces(&text);
    let default = interfaces.iter().position(|interface| interface.name == "eth0");
    let default_interface = default.map(|index| interfaces.remove(index));
    Some(v1::NetworkUsage { timestamp, default_interface, interfaces })
}

fn interfaces(text: &str) -> Vec<v1::NetworkInterfaceUsage> {
    text.lines()
        .skip(2)
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.trim() != "lo")
        .map(|(name, counters)| {
            let counters: Vec<u64> = counters.split_whitespace().filter_map(|text| text.parse().ok()).collect();
            let get = |index: usize| value(counters.get(index).copied().unwrap_or(0));
            v1::NetworkInterfaceUsage {
                name: name.trim().to_owned(),
                rx_bytes: get(0),
                rx_errors: get(2),
                tx_bytes: get(8),
                tx_errors: get(10),
            }
        })
        .collect()
}

/// Bytes on disk and inodes below a directory, without following links.
pub(crate) fn disk_usage(dir: &Path) -> (u64, u64) {
    let (mut bytes, mut inodes) = (0, 0);
    let mut pending: Vec<PathBuf> = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.filter_map(std::result::Result::ok) {
            let Ok(metadata) = entry.metadata() else { continue };
            bytes += metadata.blocks() * 512;
            inodes += 1;
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    (bytes, inodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_of_proc() {
        let text = "head\nhead\n  lo: 1 0 0 0 0 0 0 0 1 0 0\n  eth0: 10 1 2 0 0 0 0 0 20 1 3 0 0 0 0 0\n";
        let found = interfaces(text);
        assert_eq!(found.len(), 1);
        let counters = [&found[0].rx_bytes, &found[0].rx_errors, &found[0].tx_bytes, &found[0].tx_errors];
        assert_eq!(counters.map(|counter| counter.unwrap().value), [10, 2, 20, 3]);
    }
}
