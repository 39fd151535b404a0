//! What a pod asks of CPU and memory, and what the kernel is told about it.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use mussel_api::quantity::Quantity;
use mussel_cri::v1::{HugepageLimit, LinuxContainerResources};

use crate::pod;

const SHARES_MIN: i64 = 2;
const SHARES_MAX: i64 = 262_144;
const PERIOD: i64 = 100_000;
const QUOTA_MIN: i64 = 1000;
/// From this priority on a pod is critical to the node, and is killed last.
const SYSTEM_CRITICAL: i32 = 2_000_000_000;

type Amounts = BTreeMap<String, ApiQuantity>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

fn read(amounts: Option<&Amounts>, resource: &str) -> Option<Quantity> {
    amounts?.get(resource).and_then(|q| Quantity::try_from(q).ok())
}

pub fn request(container: &Container, resource: &str) -> Option<Quantity> {
    read(container.resources.as_ref().and_then(|r| r.requests.as_ref()), resource)
}

pub fn limit(container: &Container, resource: &str) -> Option<Quantity> {
    read(container.resources.as_ref().and_then(|r| r.limits.as_ref()), resource)
}

/// The class that decides who is throttled and killed first.
pub fn qos(pod: &Pod) -> Qos {
    let positive = |q: Option<Quantity>| q.filter(|q| *q > Quantity::ZERO);
    if let Some(resources) = pod::spec(pod).and_then(|s| s.resources.as_ref())
        && (resources.requests.is_some() || resources.limits.is_some())
    {
        let both = |r: &str| {
            let (request, limit) = (read(resources.requests.as_ref(), r), read(resources.limits.as_ref(), r));
            (positive(request), positive(limit))
        };
        let (cpu, memory) = (both("cpu"), both("memory"));
        if [cpu.0, cpu.1, memory.0, memory.1].iter().any(Option::is_some) {
            let equal = |(r, l): (Option<Quantity>, Option<Quantity>)| l.is_some() && r.is_none_or(|r| Some(r) == l);
            return if equal(cpu) && equal(memory) { Qos::Guaranteed } else { Qos::Burstable };
        }
    }
    let mut any = false;
    let mut guaranteed = true;
    for container in pod::containers(pod).iter().chain(pod::init_containers(pod)) {
        for resource in ["cpu", "memory"] {
            let (r, l) = (positive(request(container, resource)), positive(limit(container, resource)));
            any |= r.is_some() || l.is_some();
            guaranteed &= l.is_some() && r.is_none_or(|r| Some(r) == l);
        }
    }
    match (any, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

fn total(pod: &Pod, resource: &str, of: fn(&Container, &str) -> Option<Quantity>) -> Quantity {
    let mut sum: Quantity = pod::containers(pod).iter().map(|c| of(c, resource).unwrap_or(Quantity::ZERO)).sum();
    // A sidecar adds to all that runs after it; an ordinary init container runs before the rest, so the peak counts.
    let mut sidecars = Quantity::ZERO;
    let mut peak = Quantity::ZERO;
    for init in pod::init_containers(pod) {
        let amount = of(init, resource).unwrap_or(Quantity::ZERO);
        if pod::is_sidecar(init) {
            sidecars += amount;
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(amount + sidecars);
        }
    }
    sum += sidecars;
    sum = sum.max(peak);
    if let Some(overhead) = read(pod::spec(pod).and_then(|s| s.overhead.as_ref()), resource)
        && sum > Quantity::ZERO
    {
        sum += overhead;
    }
    sum
}

/// What the scheduler counts for this pod.
pub fn pod_request(pod: &Pod, resource: &str) -> Quantity {
    let own = pod::spec(pod).and_then(|s| s.resources.as_ref());
    read(own.and_then(|r| r.requests.as_ref()), resource)
        .or_else(|| read(own.and_then(|r| r.limits.as_ref()), resource))
        .unwrap_or_else(|| total(pod, resource, |c, r| request(c, r).or_else(|| limit(c, r))))
}

/// The sum of limits, or `None` when some container has none and the pod is therefore unlimited.
pub fn pod_limit(pod: &Pod, resource: &str) -> Option<Quantity> {
    let own = pod::spec(pod).and_then(|s| s.resources.as_ref());
    if let Some(limit) = read(own.and_then(|r| r.limits.as_ref()), resource) {
        return Some(limit);
    }
    let all = pod::containers(pod).iter().chain(pod::init_containers(pod));
    let limited = all.clone().all(|c| limit(c, resource).is_some_and(|q| q > Quantity::ZERO));
    limited.then(|| total(pod, resource, limit))
}

pub fn cpu_shares(milli: i64) -> i64 {
    if milli <= 0 { SHARES_MIN } else { (milli.saturating_mul(1024) / 1000).clamp(SHARES_MIN, SHARES_MAX) }
}

/// Quota in microseconds of each 100 ms period; 0 is no quota.
pub fn cpu_quota(milli: i64) -> i64 {
    if milli <= 0 { 0 } else { (milli.saturating_mul(PERIOD) / 1000).max(QUOTA_MIN) }
}

pub fn is_critical(pod: &Pod) -> bool {
    pod::is_static(pod)
        || pod::is_mirror(pod)
        || pod::spec(pod).and_then(|s| s.priority).is_some_and(|p| p >= SYSTEM_CRITICAL)
}

/// How ready the kernel is to kill a process of this container: the less it asked for, the readier.
pub fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity: i64) -> i64 {
    if is_critical(pod) && pod::spec(pod).and_then(|s| s.priority).is_some_and(|p| p >= SYSTEM_CRITICAL) {
        return -997;
    }
    match qos(pod) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let score = |c: &Container| {
                let asked = request(c, "memory").or_else(|| limit(c, "memory")).map_or(0, |q| q.value());
                let parts = i128::from(asked).saturating_mul(1000) / i128::from(memory_capacity.max(1));
                let score = 1000 - i64::try_from(parts).unwrap_or(1000);
                match score {
                    ..3 => 3,
                    1000.. => 999,
                    score => score,
                }
            };
            let own = score(container);
            // A sidecar must not die before the container that it serves.
            let sidecar = pod::init_containers(pod).iter().any(|c| c.name == container.name && pod::is_sidecar(c));
            if sidecar { pod::containers(pod).iter().map(score).fold(own, i64::min) } else { own }
        }
    }
}

/// The container's part of the CRI request.
pub fn container_resources(
    pod: &Pod,
    container: &Container,
    memory_capacity: i64,
    cgroup_v2: bool,
) -> LinuxContainerResources {
    let cpu_limit = limit(container, "cpu");
    let cpu_request = request(container, "cpu").or(cpu_limit);
    let mut resources = LinuxContainerResources {
        cpu_period: PERIOD,
        cpu_quota: cpu_limit.map_or(0, |q| cpu_quota(q.to_milli())),
        cpu_shares: cpu_shares(cpu_request.map_or(0, |q| q.to_milli())),
        memory_limit_in_bytes: limit(container, "memory").map_or(0, |q| q.value()),
        oom_score_adj: oom_score_adj(pod, container, memory_capacity),
        ..Default::default()
    };
    if cgroup_v2 {
        // One process killed for memory takes its whole container with it, so nothing half-dead is left.
        resources.unified = HashMap::from([("memory.oom.group".to_owned(), "1".to_owned())]);
    }
    if let Some(limits) = container.resources.as_ref().and_then(|r| r.limits.as_ref()) {
        for (name, amount) in limits {
            if let Some(size) = name.strip_prefix("hugepages-")
                && let (Ok(size), Ok(amount)) = (Quantity::parse(size), Quantity::try_from(amount))
            {
                resources.hugepage_limits.push(HugepageLimit {
                    page_size: page_size(size.value()),
                    limit: u64::try_from(amount.value()).unwrap_or(0),
                });
            }
        }
    }
    resources
}

/// The kernel's name of a huge page size: `2MB`, `1GB`.
fn page_size(bytes: i64) -> String {
    match bytes {
        b if b >= 1 << 30 && b % (1 << 30) == 0 => format!("{}GB", b >> 30),
        b if b >= 1 << 20 => format!("{}MB", b >> 20),
        b => format!("{}KB", b >> 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(containers: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": containers}})).unwrap()
    }

    #[test]
    fn the_class_follows_requests_and_limits() {
        let both = json!({"cpu": "100m", "memory": "64Mi"});
        for (resources, expected) in [
            (json!({}), Qos::BestEffort),
            (json!({"requests": {"cpu": "0"}}), Qos::BestEffort),
            (json!({"requests": {"cpu": "100m"}}), Qos::Burstable),
            (json!({"limits": both}), Qos::Guaranteed),
            (json!({"limits": both, "requests": both}), Qos::Guaranteed),
            (json!({"limits": both, "requests": {"cpu": "50m", "memory": "64Mi"}}), Qos::Burstable),
            (json!({"limits": {"cpu": "1"}}), Qos::Burstable),
        ] {
            let pod = pod(json!([{"name": "a", "resources": resources}]));
            assert_eq!(qos(&pod), expected, "{resources}");
        }
    }

    #[test]
    fn kernel_values_are_upstreams() {
        for (milli, shares, quota) in [(0, 2, 0), (1, 2, 1000), (100, 102, 10_000), (1000, 1024, 100_000)] {
            assert_eq!((cpu_shares(milli), cpu_quota(milli)), (shares, quota));
        }
        let capacity = 1 << 30;
        let burstable = pod(json!([{"name": "a", "resources": {"requests": {"memory": "512Mi"}}}]));
        assert_eq!(oom_score_adj(&burstable, &pod::containers(&burstable)[0], capacity), 500);
        let tiny = pod(json!([{"name": "a", "resources": {"requests": {"cpu": "1m"}}}]));
        assert_eq!(oom_score_adj(&tiny, &pod::containers(&tiny)[0], capacity), 999);
        let none = pod(json!([{"name": "a"}]));
        assert_eq!(oom_score_adj(&none, &pod::containers(&none)[0], capacity), 1000);
    }

    #[test]
    fn sidecars_add_and_init_containers_peak() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
                {"name": "i", "resources": {"requests": {"cpu": "500m"}}},
            ],
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "200m"}}}],
        }}))
        .unwrap();
        assert_eq!(pod_request(&pod, "cpu").to_milli(), 600);
        assert_eq!(pod_limit(&pod, "cpu"), None);
    }
}
