//! The stats of containers and pods in the form of metrics, by the names that cAdvisor gave them.

use mussel_cri::v1::{
    ContainerMetrics, ContainerStats, Metric, MetricDescriptor, MetricType, PodSandboxMetrics, PodSandboxStats,
    UInt64Value,
};

const CPU: &str = "container_cpu_usage_seconds_total";
const USAGE: &str = "container_memory_usage_bytes";
const WORKING_SET: &str = "container_memory_working_set_bytes";
const RSS: &str = "container_memory_rss";
const FS: &str = "container_fs_usage_bytes";
const RECEIVED: &str = "container_network_receive_bytes_total";
const SENT: &str = "container_network_transmit_bytes_total";

/// Every metric that may come, with what labels it has.
pub(crate) fn descriptors() -> Vec<MetricDescriptor> {
    let describe = |name: &str, help: &str, labels: &[&str]| MetricDescriptor {
        name: name.into(),
        help: help.into(),
        label_keys: labels.iter().map(|label| (*label).to_owned()).collect(),
    };
    vec![
        describe(CPU, "Cumulative CPU time consumed in seconds.", &["cpu"]),
        describe(USAGE, "Current memory usage in bytes, including all memory regardless of when it was accessed.", &[]),
        describe(WORKING_SET, "Current working set in bytes.", &[]),
        describe(RSS, "Size of RSS in bytes.", &[]),
        describe(FS, "Number of bytes that are consumed by the container on this filesystem.", &["device"]),
        describe(RECEIVED, "Cumulative count of bytes received.", &["interface"]),
        describe(SENT, "Cumulative count of bytes transmitted.", &["interface"]),
    ]
}

fn metric(
    name: &str,
    timestamp: i64,
    kind: MetricType,
    labels: &[&str],
    value: Option<&UInt64Value>,
) -> Option<Metric> {
    Some(Metric {
        name: name.into(),
        timestamp,
        metric_type: kind.into(),
        label_values: labels.iter().map(|label| (*label).to_owned()).collect(),
        value: Some(*value?),
    })
}

fn of_container(stats: &ContainerStats) -> ContainerMetrics {
    let mut metrics = Vec::new();
    if let Some(cpu) = &stats.cpu {
        // Metrics of CRI are whole numbers, so seconds are.
        let seconds =
            cpu.usage_core_nano_seconds.as_ref().map(|used| UInt64Value { value: used.value / 1_000_000_000 });
        metrics.extend(metric(CPU, cpu.timestamp, MetricType::Counter, &["total"], seconds.as_ref()));
    }
    if let Some(memory) = &stats.memory {
        for (name, value) in
            [(USAGE, &memory.usage_bytes), (WORKING_SET, &memory.working_set_bytes), (RSS, &memory.rss_bytes)]
        {
            metrics.extend(metric(name, memory.timestamp, MetricType::Gauge, &[], value.as_ref()));
        }
    }
    if let Some(layer) = &stats.writable_layer {
        metrics.extend(metric(FS, layer.timestamp, MetricType::Gauge, &[""], layer.used_bytes.as_ref()));
    }
    ContainerMetrics { container_id: stats.attributes.as_ref().map(|one| one.id.clone()).unwrap_or_default(), metrics }
}

pub(crate) fn of_sandbox(stats: &PodSandboxStats) -> PodSandboxMetrics {
    let mut metrics = Vec::new();
    let linux = stats.linux.as_ref();
    if let Some(network) = linux.and_then(|linux| linux.network.as_ref()) {
        for interface in network.default_interface.iter().chain(&network.interfaces) {
            for (name, value) in [(RECEIVED, &interface.rx_bytes), (SENT, &interface.tx_bytes)] {
                let labels = [interface.name.as_str()];
                metrics.extend(metric(name, network.timestamp, MetricType::Counter, &labels, value.as_ref()));
            }
        }
    }
    PodSandboxMetrics {
        pod_sandbox_id: stats.attributes.as_ref().map(|one| one.id.clone()).unwrap_or_default(),
        metrics,
        container_metrics: linux.iter().flat_map(|linux| &linux.containers).map(of_container).collect(),
    }
}
