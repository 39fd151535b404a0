//! What `/metrics` tells: upstream's names for requests, and the store's own.

mod process;

use std::collections::HashSet;
use std::fmt;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::handler::RequestInfo;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: String,
    component: String,
    dry_run: String,
    code: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DurationLabels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: String,
    component: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabels {
    request_kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BuildLabels {
    major: &'static str,
    minor: &'static str,
    git_version: &'static str,
}

/// The registry and the metrics that requests touch.
pub struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<RequestLabels, Counter>,
    durations: Family<DurationLabels, Histogram>,
    in_flight: Family<KindLabels, Gauge<i64, AtomicI64>>,
    long_running: Gauge<i64, AtomicI64>,
}

fn histogram() -> Histogram {
    Histogram::new([0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 10.0, 30.0, 60.0])
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let requests = Family::<RequestLabels, Counter>::default();
        let durations = Family::<DurationLabels, Histogram>::new_with_constructor(histogram);
        let in_flight = Family::<KindLabels, Gauge<i64, AtomicI64>>::default();
        let long_running = Gauge::<i64, AtomicI64>::default();
        registry.register("apiserver_request", "Counter of apiserver requests", requests.clone());
        registry.register(
            "apiserver_request_duration_seconds",
            "Response latency distribution in seconds for each verb, resource, subresource and scope",
            durations.clone(),
        );
        registry.register(
            "apiserver_current_inflight_requests",
            "Requests worked on now, by kind of request",
            in_flight.clone(),
        );
        registry.register("apiserver_longrunning_requests", "Watches and streams that are open", long_running.clone());
        let build = Family::<BuildLabels, Gauge<i64, AtomicI64>>::default();
        let labels = BuildLabels { major: "1", minor: "36", git_version: mussel_api::version::GIT_VERSION };
        build.get_or_create(&labels).set(1);
        registry.register("kubernetes_build_info", "The version that is running", build);
        Self { registry: Mutex::new(registry), requests, durations, in_flight, long_running }
    }
}

/// The label of a verb; anything a client made up is `OTHER`, so that labels stay few.
fn verb_label(info: &RequestInfo) -> &'static str {
    match info.verb.as_str() {
        "get" => "GET",
        "list" => "LIST",
        "watch" => "WATCH",
        "create" | "post" => "POST",
        "update" | "put" => "PUT",
        "patch" => "PATCH",
        "delete" => "DELETE",
        "deletecollection" => "DELETECOLLECTION",
        "proxy" => "CONNECT",
        _ => "OTHER",
    }
}

fn scope_label(info: &RequestInfo) -> &'static str {
    match (info.is_resource, info.name.is_empty(), info.namespace.is_empty()) {
        (false, ..) => "",
        (true, false, _) => "resource",
        (true, true, false) => "namespace",
        (true, true, true) => "cluster",
    }
}

impl Metrics {
    /// A request has been answered. `known`: its resource is served; else its names are left out.
    pub fn observe(&self, info: &RequestInfo, known: bool, dry_run: bool, code: u16, took: Duration) {
        let text = |value: &String| if known { value.clone() } else { String::new() };
        let labels = DurationLabels {
            verb: verb_label(info).to_owned(),
            group: text(&info.group),
            version: text(&info.version),
            resource: text(&info.resource),
            subresource: text(&info.subresource),
            scope: scope_label(info).to_owned(),
            component: "apiserver".to_owned(),
        };
        let counted = RequestLabels {
            verb: labels.verb.clone(),
            group: labels.group.clone(),
            version: labels.version.clone(),
            resource: labels.resource.clone(),
            subresource: labels.subresource.clone(),
            scope: labels.scope.clone(),
            component: labels.component.clone(),
            dry_run: if dry_run { "All".to_owned() } else { String::new() },
            code,
        };
        self.requests.get_or_create(&counted).inc();
        if !info.is_long_running() {
            self.durations.get_or_create(&labels).observe(took.as_secs_f64());
        }
    }

    /// Counts a request as being worked on for as long as the guard lives.
    pub fn in_flight(&self, info: &RequestInfo) -> InFlight {
        let gauge = if info.is_long_running() {
            self.long_running.clone()
        } else {
            let request_kind = if info.is_read_only() { "readOnly" } else { "mutating" };
            self.in_flight.get_or_create_owned(&KindLabels { request_kind })
        };
        gauge.inc();
        InFlight(gauge)
    }

    /// Lets another part add its metrics.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// All metrics in Prometheus' text format, version 0.0.4, which is what every client reads.
    ///
    /// # Errors
    /// When a metric cannot be printed.
    pub fn print(&self) -> Result<String, fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.registry.lock().unwrap_or_else(PoisonError::into_inner))?;
        let mut out = from_open_metrics(&out);
        process::print(&mut out);
        Ok(out)
    }
}

/// The older format names a counter with its `_total` in TYPE and HELP too, and knows neither units nor an end.
fn from_open_metrics(text: &str) -> String {
    let kinds = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let counters: HashSet<&str> = kinds.filter(|(_, kind)| *kind == "counter").map(|(name, _)| name).collect();
    let mut out = String::with_capacity(text.len());
    for line in text.lines().filter(|line| *line != "# EOF" && !line.starts_with("# UNIT ")) {
        let comment = ["# HELP ", "# TYPE "].into_iter().find_map(|word| Some((word, line.strip_prefix(word)?)));
        match comment.and_then(|(word, rest)| Some((word, rest.split_once(' ')?))) {
            Some((word, (name, rest))) if counters.contains(name) => {
                out.extend([word, name, "_total ", rest]);
            }
            _ => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

pub struct InFlight(Gauge<i64, AtomicI64>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::request::Query;

    #[test]
    fn requests_are_counted_under_upstreams_names() {
        let metrics = Metrics::default();
        let info = RequestInfo::new(&Method::GET, "/api/v1/namespaces/a/pods", &Query::default());
        let guard = metrics.in_flight(&info);
        metrics.observe(&info, true, false, 200, Duration::from_millis(3));
        let text = metrics.print().unwrap();
        assert!(text.contains("apiserver_current_inflight_requests{request_kind=\"readOnly\"} 1"), "{text}");
        assert!(
            text.contains("apiserver_request_total{verb=\"LIST\",group=\"\",version=\"v1\",resource=\"pods\""),
            "{text}"
        );
        assert!(text.contains("# TYPE apiserver_request_total counter\n"), "{text}");
        assert!(text.contains("# TYPE apiserver_request_duration_seconds histogram\n"), "{text}");
        assert!(!text.contains("# EOF"), "{text}");
        drop(guard);
        assert!(metrics.print().unwrap().contains("{request_kind=\"readOnly\"} 0"));
    }
}
