//! `/stats/summary`, and the figures that metrics are made of.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use mussel_cri::v1;
use serde_json::{Value, json};

use super::{Server, json as answer};
use crate::machine::{FsUsage, memory_available};
use crate::pod;
use crate::shared::{Published, Shared};

/// One container's figures.
pub struct ContainerFigures {
    pub name: String,
    pub id: String,
    pub image: String,
    pub started: Option<Timestamp>,
    pub stats: v1::ContainerStats,
}

pub struct PodFigures {
    pub pod: Arc<Pod>,
    pub published: Published,
    pub usage: crate::cgroups::Usage,
    pub containers: Vec<ContainerFigures>,
    pub network: Option<v1::NetworkUsage>,
}

pub fn number(value: Option<&v1::UInt64Value>) -> u64 {
    value.map_or(0, |v| v.value)
}

/// Every running pod with what it uses now.
pub async fn collect(shared: &Shared) -> Vec<PodFigures> {
    let mut by_id: HashMap<String, v1::ContainerStats> = HashMap::new();
    match shared.cri.container_stats().await {
        Ok(all) => {
            by_id.extend(all.into_iter().filter_map(|s| Some((s.attributes.as_ref()?.id.clone(), s))));
        }
        Err(error) => tracing::debug!(%error, "the runtime has no statistics"),
    }
    let mut networks: HashMap<String, v1::NetworkUsage> = HashMap::new();
    for stats in shared.cri.sandbox_stats().await.unwrap_or_default() {
        if let (Some(attributes), Some(network)) = (stats.attributes, stats.linux.and_then(|l| l.network)) {
            networks.insert(attributes.id, network);
        }
    }
    let mut figures = Vec::new();
    for (pod, published) in shared.registry.list() {
        let Some(sandbox) = published.sandbox.clone() else { continue };
        let statuses: Vec<_> = published
            .status
            .container_statuses
            .iter()
            .chain(&published.status.init_container_statuses)
            .flatten()
            .collect();
        let containers = published
            .containers
            .iter()
            .filter_map(|(name, id)| {
                let stats = by_id.remove(id)?;
                let status = statuses.iter().find(|s| s.name == *name);
                let running = status.and_then(|s| s.state.as_ref()?.running.as_ref());
                Some(ContainerFigures {
                    name: name.clone(),
                    id: id.clone(),
                    image: status.map(|s| s.image.clone()).unwrap_or_default(),
                    started: running.and_then(|r| r.started_at.as_ref()).map(|t| t.0),
                    stats,
                })
            })
            .collect();
        let usage = shared.cgroups.pod_usage(&pod);
        figures.push(PodFigures { usage, containers, network: networks.remove(&sandbox), pod, published });
    }
    figures
}

/// CPU time that the machine has spent, in nanoseconds.
pub fn node_cpu_nanos() -> u64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let Some(line) = stat.lines().next().and_then(|l| l.strip_prefix("cpu ")) else { return 0 };
    let fields: Vec<u64> = line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guest time is in user time.
    let busy: u64 = fields.iter().take(8).enumerate().filter(|(i, _)| *i != 3 && *i != 4).map(|(_, n)| n).sum();
    // The kernel's USER_HZ is 100 on every architecture that we run on.
    busy.saturating_mul(10_000_000)
}

pub fn node_memory(shared: &Shared) -> (u64, u64) {
    let total = u64::try_from(shared.machine.memory).unwrap_or(0);
    let available = u64::try_from(memory_available()).unwrap_or(0);
    (total.saturating_sub(available), available)
}

fn file_system(usage: &FsUsage, now: Timestamp) -> Value {
    json!({
        "time": seconds(now),
        "availableBytes": usage.available,
        "capacityBytes": usage.capacity,
        "usedBytes": usage.used(),
        "inodesFree": usage.inodes_free,
        "inodes": usage.inodes,
        "inodesUsed": usage.inodes.saturating_sub(usage.inodes_free),
    })
}

fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn network(usage: &v1::NetworkUsage, now: Timestamp) -> Value {
    let one = |i: &v1::NetworkInterfaceUsage| {
        json!({
            "name": i.name,
            "rxBytes": number(i.rx_bytes.as_ref()),
            "rxErrors": number(i.rx_errors.as_ref()),
            "txBytes": number(i.tx_bytes.as_ref()),
            "txErrors": number(i.tx_errors.as_ref()),
        })
    };
    let mut value = usage.default_interface.as_ref().map_or_else(|| json!({}), one);
    value["time"] = seconds(now).into();
    value["interfaces"] = usage.default_interface.iter().chain(&usage.interfaces).map(one).collect();
    value
}

pub async fn summary(State(server): State<Server>) -> Response {
    let shared = server.shared;
    let now = Timestamp::now();
    let disk = FsUsage::of(&shared.config.root_dir).unwrap_or_default();
    let (used, available) = node_memory(&shared);
    let mut pods = Vec::new();
    for figures in collect(&shared).await {
        let containers: Vec<Value> = figures
            .containers
            .iter()
            .map(|c| {
                let cpu = c.stats.cpu.unwrap_or_default();
                let memory = c.stats.memory.unwrap_or_default();
                let layer = c.stats.writable_layer.clone().unwrap_or_default();
                json!({
                    "name": c.name,
                    "startTime": c.started.map(seconds),
                    "cpu": {
                        "time": seconds(now),
                        "usageNanoCores": number(cpu.usage_nano_cores.as_ref()),
                        "usageCoreNanoSeconds": number(cpu.usage_core_nano_seconds.as_ref()),
                    },
                    "memory": {
                        "time": seconds(now),
                        "usageBytes": number(memory.usage_bytes.as_ref()),
                        "workingSetBytes": number(memory.working_set_bytes.as_ref()),
                        "rssBytes": number(memory.rss_bytes.as_ref()),
                        "pageFaults": number(memory.page_faults.as_ref()),
                        "majorPageFaults": number(memory.major_page_faults.as_ref()),
                    },
                    "rootfs": {
                        "time": seconds(now),
                        "availableBytes": disk.available,
                        "capacityBytes": disk.capacity,
                        "usedBytes": number(layer.used_bytes.as_ref()),
                        "inodesUsed": number(layer.inodes_used.as_ref()),
                    },
                })
            })
            .collect();
        let dir = shared.config.pod_dir(pod::uid(&figures.pod));
        let own = tokio::task::spawn_blocking(move || crate::housekeeping::tree_bytes(&dir)).await.unwrap_or(0);
        let mut entry = json!({
            "podRef": {
                "name": pod::name(&figures.pod),
                "namespace": pod::namespace(&figures.pod),
                "uid": pod::uid(&figures.pod),
            },
            "startTime": figures.published.status.start_time.as_ref().map(|t| seconds(t.0)),
            "containers": containers,
            "cpu": {"time": seconds(now), "usageCoreNanoSeconds": figures.usage.cpu_nanos,
                "usageNanoCores": figures.containers.iter()
                    .map(|c| number(c.stats.cpu.as_ref().and_then(|c| c.usage_nano_cores.as_ref()))).sum::<u64>()},
            "memory": {
                "time": seconds(now),
                "usageBytes": figures.usage.memory,
                "workingSetBytes": figures.usage.working_set,
                "rssBytes": figures.usage.rss,
            },
            "ephemeral-storage": {"time": seconds(now), "availableBytes": disk.available,
                "capacityBytes": disk.capacity, "usedBytes": own},
        });
        if let Some(usage) = &figures.network {
            entry["network"] = network(usage, now);
        }
        pods.push(entry);
    }
    let images = shared.cri.image_fs().await.ok().and_then(|f| f.image_filesystems.into_iter().next());
    let mut image_fs = file_system(&disk, now);
    if let Some(images) = images {
        image_fs["usedBytes"] = number(images.used_bytes.as_ref()).into();
    }
    answer(&json!({
        "node": {
            "nodeName": shared.config.node_name,
            "startTime": seconds(shared.started_at),
            "cpu": {"time": seconds(now), "usageCoreNanoSeconds": node_cpu_nanos()},
            "memory": {
                "time": seconds(now),
                "availableBytes": available,
                "usageBytes": used,
                "workingSetBytes": used,
            },
            "fs": file_system(&disk, now),
            "runtime": {"imageFs": image_fs},
        },
        "pods": pods,
    }))
}
