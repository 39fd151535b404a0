//! How many Pods a metric asks for. Pure: figures and Pods in, a number out; the rules are those of upstream's documentation
//! ("Algorithm details").

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use mussel_api::quantity::Quantity;

use crate::pods;

/// A Pod's CPU use says nothing while it starts up.
const CPU_INITIALIZATION: Duration = Duration::from_secs(300);
/// A Pod that was never ready after this long is taken for one that is starting still.
const INITIAL_READINESS: Duration = Duration::from_secs(30);

/// What a Pod uses, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    pub milli: i64,
    pub at: Timestamp,
    pub window: Duration,
}

pub type Metrics = BTreeMap<String, Measured>;

/// How far from the target nothing is done yet: for fewer, and for more.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    pub down: f64,
    pub up: f64,
}

impl Tolerance {
    fn covers(self, ratio: f64) -> bool {
        ratio >= 1.0 - self.down && ratio <= 1.0 + self.up
    }
}

/// A recommendation, and what the status shows beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proposal {
    pub replicas: i64,
    /// On average per Pod, in thousandths; of a metric of something else, its value.
    pub milli: i64,
    /// Of what was requested.
    pub percent: Option<i64>,
}

/// What is asked for of each Pod.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// Thousandths.
    Average(i64),
    /// Percent of the request for this resource, of one container or all.
    Utilization(i64),
}

/// The Pods of a target, and what is known of the resource.
pub struct Question<'a> {
    pub pods: &'a [Arc<Pod>],
    pub current: i64,
    /// Empty for a metric that is no resource.
    pub resource: &'a str,
    pub container: Option<&'a str>,
    pub tolerance: Tolerance,
    pub now: Timestamp,
}

/// How many Pods a metric of each of them asks for.
///
/// # Errors
/// In upstream's words, when the figures do not say.
pub fn of_pods(question: &Question<'_>, mut metrics: Metrics, target: Target) -> Result<Proposal, String> {
    if question.pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".to_owned());
    }
    let groups = group(question, &metrics);
    metrics.retain(|name, _| !groups.unready.contains(name.as_str()) && !groups.gone.contains(name.as_str()));
    let requests = match target {
        Target::Utilization(_) => requests(question)?,
        Target::Average(_) => BTreeMap::new(),
    };
    if metrics.is_empty() {
        return Err("did not receive metrics for any ready pods".to_owned());
    }
    let first = ratio(&metrics, &requests, target)?;
    let proposal = |replicas| Proposal { replicas, milli: first.average, percent: first.percent };
    let count_unready = !groups.unready.is_empty() && first.ratio > 1.0;
    if !count_unready && groups.missing.is_empty() {
        if question.tolerance.covers(first.ratio) {
            return Ok(proposal(question.current));
        }
        return Ok(proposal(up(first.ratio * as_f64(groups.ready))));
    }
    // Who is not known is taken for what makes the change smaller.
    for name in &groups.missing {
        let milli = match target {
            _ if first.ratio >= 1.0 => 0,
            Target::Utilization(percent) => requests.get(*name).copied().unwrap_or_default() * percent.max(100) / 100,
            Target::Average(milli) => milli,
        };
        metrics.insert((*name).to_owned(), Measured { milli, at: question.now, window: Duration::ZERO });
    }
    if count_unready {
        for name in &groups.unready {
            metrics.insert((*name).to_owned(), Measured { milli: 0, at: question.now, window: Duration::ZERO });
        }
    }
    let second = ratio(&metrics, &requests, target)?.ratio;
    let turned = (first.ratio < 1.0 && second > 1.0) || (first.ratio > 1.0 && second < 1.0);
    if question.tolerance.covers(second) || turned {
        return Ok(proposal(question.current));
    }
    let replicas = up(second * as_f64(i64::try_from(metrics.len()).unwrap_or(i64::MAX)));
    let against = (second < 1.0 && replicas > question.current) || (second > 1.0 && replicas < question.current);
    Ok(proposal(if against { question.current } else { replicas }))
}

/// How many Pods a value of something else asks for, which is to be near `target`, all in thousandths.
pub fn of_value(question: &Question<'_>, value: i64, target: i64) -> Result<Proposal, String> {
    let ratio = as_f64(value) / as_f64(target.max(1));
    let replicas = if question.current == 0 {
        up(ratio)
    } else if question.tolerance.covers(ratio) {
        question.current
    } else {
        if question.pods.is_empty() {
            return Err("no pods returned by selector while calculating replica count".to_owned());
        }
        let ready = question.pods.iter().filter(|pod| pods::phase(pod) == "Running" && pods::is_ready(pod)).count();
        up(ratio * as_f64(i64::try_from(ready).unwrap_or(i64::MAX)))
    };
    Ok(Proposal { replicas, milli: value, percent: None })
}

/// The same for a value that is to be `target` for each of `seen` Pods.
pub fn of_value_per_pod(seen: i64, value: i64, target: i64, tolerance: Tolerance) -> Proposal {
    let target = target.max(1);
    let ratio = as_f64(value) / (as_f64(target) * as_f64(seen));
    let within = seen > 0 && tolerance.covers(ratio);
    let replicas = if within { seen } else { up(as_f64(value) / as_f64(target)) };
    Proposal { replicas, milli: up(as_f64(value) / as_f64(seen.max(1))), percent: None }
}

struct Groups<'a> {
    ready: i64,
    /// Not yet, or not now, to be judged by what they use.
    unready: BTreeSet<&'a str>,
    missing: BTreeSet<&'a str>,
    /// Going or gone: they ask for nothing.
    gone: BTreeSet<&'a str>,
}

fn group<'a>(question: &Question<'a>, metrics: &Metrics) -> Groups<'a> {
    let mut groups = Groups { ready: 0, unready: BTreeSet::new(), missing: BTreeSet::new(), gone: BTreeSet::new() };
    for pod in question.pods {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        if pod.metadata.deletion_timestamp.is_some() || pods::is_terminal(pod) {
            groups.gone.insert(name);
            continue;
        }
        if pods::phase(pod) == "Pending" {
            groups.unready.insert(name);
            continue;
        }
        match metrics.get(name) {
            None => {
                groups.missing.insert(name);
            }
            Some(measured) if question.resource == "cpu" && is_starting(pod, measured, question.now) => {
                groups.unready.insert(name);
            }
            Some(_) => groups.ready += 1,
        }
    }
    groups
}

fn is_starting(pod: &Pod, measured: &Measured, now: Timestamp) -> bool {
    let ready = pods::condition(pod, "Ready");
    let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    let (Some(ready), Some(started)) = (ready, started) else { return true };
    let changed = ready.last_transition_time.as_ref().map_or(started.0, |time| time.0);
    let after = |time: Timestamp, duration: Duration| time.checked_add(duration).unwrap_or(Timestamp::MAX);
    if after(started.0, CPU_INITIALIZATION) > now {
        // Not ready, or not measured for a whole window since.
        return ready.status == "False" || measured.at < after(changed, measured.window);
    }
    // Not ready, and never was.
    ready.status == "False" && after(started.0, INITIAL_READINESS) > changed
}

/// What each Pod requests, in thousandths.
fn requests(question: &Question<'_>) -> Result<BTreeMap<String, i64>, String> {
    let mut requests = BTreeMap::new();
    for pod in question.pods {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let Some(spec) = &pod.spec else { continue };
        let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
        let mut containers: Vec<&Container> = spec.containers.iter().chain(sidecars).collect();
        if let Some(wanted) = question.container {
            containers.retain(|container| container.name == wanted);
            if containers.is_empty() {
                return Err(format!("container {wanted} not found in Pod {name}"));
            }
        }
        let mut sum = 0;
        for container in containers {
            let requested = container.resources.as_ref().and_then(|r| r.requests.as_ref()?.get(question.resource));
            let requested = requested.and_then(|quantity| quantity.0.parse::<Quantity>().ok());
            let requested = requested.ok_or_else(|| {
                format!("missing request for {} in container {} of Pod {name}", question.resource, container.name)
            })?;
            sum += requested.to_milli();
        }
        requests.insert(name, sum);
    }
    Ok(requests)
}

struct Ratio {
    ratio: f64,
    average: i64,
    percent: Option<i64>,
}

fn ratio(metrics: &Metrics, requests: &BTreeMap<String, i64>, target: Target) -> Result<Ratio, String> {
    match target {
        Target::Average(wanted) => {
            let count = i64::try_from(metrics.len()).unwrap_or(i64::MAX).max(1);
            let average = metrics.values().map(|measured| measured.milli).sum::<i64>() / count;
            Ok(Ratio { ratio: as_f64(average) / as_f64(wanted.max(1)), average, percent: None })
        }
        Target::Utilization(wanted) => {
            let known = metrics.iter().filter_map(|(name, measured)| Some((measured.milli, *requests.get(name)?)));
            let (mut used, mut requested, mut count) = (0, 0, 0);
            for (milli, request) in known {
                used += milli;
                requested += request;
                count += 1;
            }
            if requested == 0 {
                return Err("no metrics returned matched known pods".to_owned());
            }
            let percent = used * 100 / requested;
            let ratio = as_f64(percent) / as_f64(wanted.max(1));
            Ok(Ratio { ratio, average: used / count.max(1), percent: Some(percent) })
        }
    }
}

fn as_f64(number: i64) -> f64 {
    number as f64
}

/// Rounded up; casts of floats saturate.
fn up(number: f64) -> i64 {
    (number.ceil() as i64).clamp(0, i64::from(i32::MAX))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().unwrap()
    }

    /// `name state`, where the state is `ready`, `unready`, `pending` or `going`.
    fn pods(of: &str) -> Vec<Arc<Pod>> {
        let pod = |text: &str| {
            let (name, state) = text.split_once(' ').unwrap();
            let phase = if state == "pending" { "Pending" } else { "Running" };
            let ready = if state == "unready" { "False" } else { "True" };
            let mut pod = json!({"metadata": {"name": name}, "spec": {"containers": [
                    {"name": "c", "resources": {"requests": {"cpu": "100m"}}}]},
                "status": {"phase": phase, "startTime": "2026-01-01T00:00:00Z", "conditions": [
                    {"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:05Z"}]}});
            if state == "going" {
                pod["metadata"]["deletionTimestamp"] = "2026-01-01T01:00:00Z".into();
            }
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        of.split(", ").map(pod).collect()
    }

    fn metrics(of: &[(&str, i64)]) -> Metrics {
        let measured = |milli| Measured { milli, at: now(), window: Duration::from_secs(15) };
        of.iter().map(|(name, milli)| ((*name).to_owned(), measured(*milli))).collect()
    }

    fn ask(of: &str, current: i64, used: &[(&str, i64)], target: Target) -> Result<(i64, Option<i64>), String> {
        let pods = pods(of);
        let tolerance = Tolerance { down: 0.1, up: 0.1 };
        let question = Question { pods: &pods, current, resource: "cpu", container: None, tolerance, now: now() };
        of_pods(&question, metrics(used), target).map(|proposal| (proposal.replicas, proposal.percent))
    }

    #[test]
    fn replicas_follow_what_is_used() {
        let half = Target::Utilization(50);
        let two = "a ready, b ready";
        assert_eq!(ask(two, 2, &[("a", 100), ("b", 100)], half), Ok((4, Some(100))));
        assert_eq!(ask(two, 2, &[("a", 10), ("b", 10)], half), Ok((1, Some(10))));
        // Within a tenth of the target nothing is done.
        assert_eq!(ask(two, 2, &[("a", 52), ("b", 56)], half), Ok((2, Some(54))));
        assert_eq!(ask(two, 2, &[("a", 300), ("b", 100)], Target::Average(100)), Ok((4, None)));
    }

    #[test]
    fn what_is_not_known_makes_changes_smaller() {
        let half = Target::Utilization(50);
        // Up: the missing one and the pending one count as idle.
        assert_eq!(ask("a ready, b ready, c ready", 3, &[("a", 150), ("b", 150)], half), Ok((6, Some(150))));
        assert_eq!(ask("a ready, b pending", 2, &[("a", 150)], half), Ok((3, Some(150))));
        assert_eq!(ask("a ready, b unready", 2, &[("a", 150), ("b", 900)], half), Ok((3, Some(150))));
        // Down: the missing one counts as using all it requests.
        assert_eq!(ask("a ready, b ready, c ready", 3, &[("a", 10), ("b", 10)], half), Ok((3, Some(10))));
        // Nobody to judge by.
        assert_eq!(
            ask("a unready", 1, &[("a", 10)], half),
            Err("did not receive metrics for any ready pods".to_owned())
        );
        assert_eq!(ask("a ready, b going", 1, &[("a", 100), ("b", 500)], half), Ok((2, Some(100))));
    }

    #[test]
    fn values_of_other_things_scale_too() {
        let pods = pods("a ready, b ready");
        let tolerance = Tolerance { down: 0.1, up: 0.1 };
        let question = Question { pods: &pods, current: 2, resource: "", container: None, tolerance, now: now() };
        assert_eq!(of_value(&question, 30_000, 10_000).unwrap().replicas, 6);
        assert_eq!(of_value(&question, 10_500, 10_000).unwrap().replicas, 2);
        assert_eq!(
            of_value_per_pod(2, 45_000, 10_000, tolerance),
            Proposal { replicas: 5, milli: 22_500, percent: None }
        );
        assert_eq!(of_value_per_pod(2, 20_500, 10_000, tolerance).replicas, 2);
    }
}
