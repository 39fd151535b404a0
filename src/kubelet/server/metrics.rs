//! Metrics in Prometheus' text format, under upstream's names.

use std::fmt::Write as _;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::header;

use super::Server;
use super::stats::{self, number};
use crate::pod;

/// Builds the text: a header per family, then its samples.
#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, type_: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {type_}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        for (i, (label, value)) in labels.iter().enumerate() {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{value}\"", if i == 0 { '{' } else { ',' });
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    fn response(self) -> Response {
        ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], self.0).into_response()
    }
}

#[allow(clippy::cast_precision_loss)]
fn nanos(value: u64) -> f64 {
    value as f64 / 1e9
}

#[allow(clippy::cast_precision_loss)]
fn float(value: u64) -> f64 {
    value as f64
}

pub async fn own(State(server): State<Server>) -> Response {
    let shared = server.shared;
    let pods = shared.registry.list();
    let running = pods.iter().filter(|(_, p)| p.sandbox.is_some()).count();
    let mut states = [("created", 0_u64), ("running", 0), ("exited", 0)];
    for (_, published) in &pods {
        for status in published.status.container_statuses.iter().flatten() {
            let state = status.state.as_ref();
            let which = match state {
                Some(s) if s.running.is_some() => 1,
                Some(s) if s.terminated.is_some() => 2,
                _ => 0,
            };
            states[which].1 += 1;
        }
    }
    let mut text = Text::default();
    text.family("kubelet_node_name", "gauge", "The node's name. The count is always 1.");
    text.sample("kubelet_node_name", &[("node", &shared.config.node_name)], 1.0);
    text.family("kubelet_running_pods", "gauge", "Number of pods that have a running pod sandbox");
    text.sample("kubelet_running_pods", &[], float(u64::try_from(running).unwrap_or(0)));
    text.family("kubelet_desired_pods", "gauge", "The number of pods the kubelet is being instructed to run.");
    text.sample("kubelet_desired_pods", &[], float(u64::try_from(pods.len()).unwrap_or(0)));
    text.family("kubelet_running_containers", "gauge", "Number of containers by state");
    for (state, count) in states {
        text.sample("kubelet_running_containers", &[("container_state", state)], float(count));
    }
    text.family("kubernetes_build_info", "gauge", "A metric with a constant '1' value labeled by version.");
    let labels = [
        ("git_version", mussel_api::version::GIT_VERSION),
        ("major", mussel_api::version::MAJOR),
        ("minor", mussel_api::version::MINOR),
    ];
    text.sample("kubernetes_build_info", &labels, 1.0);
    text.family("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.");
    #[allow(clippy::cast_precision_loss)]
    let started = shared.started_at.as_millisecond() as f64 / 1000.0;
    text.sample("process_start_time_seconds", &[], started);
    text.response()
}

/// What metrics-server scrapes.
pub async fn resource(State(server): State<Server>) -> Response {
    let shared = server.shared;
    let figures = stats::collect(&shared).await;
    let mut text = Text::default();
    let cpu = |c: &stats::ContainerFigures| {
        nanos(number(c.stats.cpu.as_ref().and_then(|c| c.usage_core_nano_seconds.as_ref())))
    };
    let memory =
        |c: &stats::ContainerFigures| float(number(c.stats.memory.as_ref().and_then(|m| m.working_set_bytes.as_ref())));
    #[allow(clippy::cast_precision_loss)]
    let started = |c: &stats::ContainerFigures| c.started.map_or(0.0, |t| t.as_millisecond() as f64 / 1000.0);
    let mut each = |name: &str, type_: &str, help: &str, value: &dyn Fn(&stats::ContainerFigures) -> f64| {
        text.family(name, type_, help);
        for pod in &figures {
            for container in &pod.containers {
                let labels = [
                    ("container", container.name.as_str()),
                    ("namespace", pod::namespace(&pod.pod)),
                    ("pod", pod::name(&pod.pod)),
                ];
                text.sample(name, &labels, value(container));
            }
        }
    };
    each(
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the container in core-seconds",
        &cpu,
    );
    each("container_memory_working_set_bytes", "gauge", "Current working set of the container in bytes", &memory);
    each("container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds", &started);
    text.family("node_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the node in core-seconds");
    text.sample("node_cpu_usage_seconds_total", &[], nanos(stats::node_cpu_nanos()));
    text.family("node_memory_working_set_bytes", "gauge", "Current working set of the node in bytes");
    text.sample("node_memory_working_set_bytes", &[], float(stats::node_memory(&shared).0));
    for (name, type_, help, cpu) in [
        ("pod_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the pod in core-seconds", true),
        ("pod_memory_working_set_bytes", "gauge", "Current working set of the pod in bytes", false),
    ] {
        text.family(name, type_, help);
        for pod in &figures {
            let value = if cpu { nanos(pod.usage.cpu_nanos) } else { float(pod.usage.working_set) };
            text.sample(name, &[("namespace", pod::namespace(&pod.pod)), ("pod", pod::name(&pod.pod))], value);
        }
    }
    text.family(
        "resource_scrape_error",
        "gauge",
        "1 if there was an error while getting container metrics, 0 otherwise",
    );
    text.sample("resource_scrape_error", &[], 0.0);
    text.response()
}

/// The families of cAdvisor that dashboards use most.
pub async fn cadvisor(State(server): State<Server>) -> Response {
    let shared = server.shared;
    let figures = stats::collect(&shared).await;
    let mut text = Text::default();
    text.family("machine_cpu_cores", "gauge", "Number of logical CPU cores.");
    text.sample("machine_cpu_cores", &[], float(u64::try_from(shared.machine.cpus).unwrap_or(0)));
    text.family("machine_memory_bytes", "gauge", "Amount of memory installed on the machine.");
    text.sample("machine_memory_bytes", &[], float(u64::try_from(shared.machine.memory).unwrap_or(0)));
    type Value = fn(&mussel_cri::v1::ContainerStats) -> f64;
    let families: [(&str, &str, &str, Value); 4] = [
        ("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in seconds.", |s| {
            nanos(number(s.cpu.as_ref().and_then(|c| c.usage_core_nano_seconds.as_ref())))
        }),
        ("container_memory_working_set_bytes", "gauge", "Current working set in bytes.", |s| {
            float(number(s.memory.as_ref().and_then(|m| m.working_set_bytes.as_ref())))
        }),
        ("container_memory_usage_bytes", "gauge", "Current memory usage in bytes.", |s| {
            float(number(s.memory.as_ref().and_then(|m| m.usage_bytes.as_ref())))
        }),
        ("container_memory_rss", "gauge", "Size of RSS in bytes.", |s| {
            float(number(s.memory.as_ref().and_then(|m| m.rss_bytes.as_ref())))
        }),
    ];
    for (name, type_, help, value) in families {
        text.family(name, type_, help);
        for pod in &figures {
            for container in &pod.containers {
                let labels = [
                    ("container", container.name.as_str()),
                    ("id", container.id.as_str()),
                    ("image", container.image.as_str()),
                    ("name", container.id.as_str()),
                    ("namespace", pod::namespace(&pod.pod)),
                    ("pod", pod::name(&pod.pod)),
                ];
                text.sample(name, &labels, value(&container.stats));
            }
        }
    }
    for (name, help, receive) in [
        ("container_network_receive_bytes_total", "Cumulative count of bytes received", true),
        ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", false),
    ] {
        text.family(name, "counter", help);
        for pod in &figures {
            for interface in pod.network.iter().flat_map(|n| n.default_interface.iter().chain(&n.interfaces)) {
                let labels = [
                    ("interface", interface.name.as_str()),
                    ("namespace", pod::namespace(&pod.pod)),
                    ("pod", pod::name(&pod.pod)),
                ];
                let value = if receive { &interface.rx_bytes } else { &interface.tx_bytes };
                text.sample(name, &labels, float(number(value.as_ref())));
            }
        }
    }
    text.response()
}

pub async fn probes(State(server): State<Server>) -> Response {
    let mut text = Text::default();
    text.family(
        "prober_probe_total",
        "counter",
        "Cumulative number of a liveness, readiness or startup probe for a container by result.",
    );
    let mut counts: Vec<_> = server.shared.probes.counts().into_iter().collect();
    counts.sort();
    for ((namespace, pod, container, type_, result), count) in counts {
        let labels = [
            ("container", container.as_str()),
            ("namespace", &namespace),
            ("pod", &pod),
            ("probe_type", type_),
            ("result", result),
        ];
        text.sample("prober_probe_total", &labels, float(count));
    }
    text.response()
}
