//! What pods ask for and nodes have.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use mussel_api::quantity::Quantity;

/// What a pod that asks for nothing is counted as when nodes are compared (not when they are filtered).
const DEFAULT_MILLI_CPU: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 << 20;

/// Amounts by resource name: cpu in thousandths, everything else in units.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources(BTreeMap<String, i64>);

impl Resources {
    pub fn of(quantities: Option<&BTreeMap<String, ApiQuantity>>) -> Self {
        let amounts = quantities.into_iter().flatten().filter_map(|(name, quantity)| {
            // What does not parse was refused by the API server.
            let quantity = Quantity::try_from(quantity).ok()?;
            Some((name.clone(), if name == "cpu" { quantity.to_milli() } else { quantity.value() }))
        });
        Self(amounts.collect())
    }

    pub fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, i64)> {
        self.0.iter().map(|(name, amount)| (name.as_str(), *amount))
    }

    pub fn add(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            *self.0.entry(name.clone()).or_default() += amount;
        }
    }

    pub fn subtract(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            *self.0.entry(name.clone()).or_default() -= amount;
        }
    }

    fn raise_to(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let own = self.0.entry(name.clone()).or_default();
            *own = (*own).max(*amount);
        }
    }

    fn set(&mut self, other: &Self) {
        self.0.extend(other.0.iter().map(|(name, amount)| (name.clone(), *amount)));
    }
}

fn requests(resources: Option<&ResourceRequirements>) -> Resources {
    Resources::of(resources.and_then(|resources| resources.requests.as_ref()))
}

/// What the container asks for or, until a resize is over, still has: whichever is more. A resize that can never be
/// counts for nothing (KEP-1287).
fn held(container: &Container, pod: &Pod) -> Resources {
    let asked = requests(container.resources.as_ref());
    let Some(status) = &pod.status else { return asked };
    let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    let is_own = |s: &&ContainerStatus| s.name == container.name && s.allocated_resources.is_some();
    let Some(own) = all.into_iter().find(is_own) else { return asked };
    let never = |c: &k8s_openapi::api::core::v1::PodCondition| {
        c.type_ == "PodResizePending" && c.reason.as_deref() == Some("Infeasible")
    };
    let mut held = if status.conditions.iter().flatten().any(never) { Resources::default() } else { asked };
    held.raise_to(&Resources::of(own.allocated_resources.as_ref()));
    held.raise_to(&requests(own.resources.as_ref()));
    held
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// What the pod needs at the worst moment of its life: all containers and sidecars together, or one init container beside
/// the sidecars started before it; plus overhead. Pod-level requests stand for the sum (KEP-2837).
pub fn of_pod(pod: &Pod) -> Resources {
    let Some(spec) = &pod.spec else { return Resources::default() };
    let mut running = Resources::default();
    spec.containers.iter().for_each(|container| running.add(&held(container, pod)));
    let (mut sidecars, mut starting) = (Resources::default(), Resources::default());
    for container in spec.init_containers.iter().flatten() {
        let own = held(container, pod);
        if is_sidecar(container) {
            sidecars.add(&own);
            starting.raise_to(&sidecars);
        } else {
            let mut moment = sidecars.clone();
            moment.add(&own);
            starting.raise_to(&moment);
        }
    }
    running.add(&sidecars);
    running.raise_to(&starting);
    running.set(&requests(spec.resources.as_ref()));
    running.add(&Resources::of(spec.overhead.as_ref()));
    running
}

/// CPU and memory for comparing nodes, where a container that asks for nothing still counts.
pub fn for_scoring(pod: &Pod) -> (i64, i64) {
    let exact = of_pod(pod);
    let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let silent = |name: &str| {
        let is_silent = |c: &&Container| requests(c.resources.as_ref()).get(name) == 0;
        i64::try_from(containers.iter().filter(is_silent).count()).unwrap_or(0)
    };
    let cpu = exact.get("cpu") + silent("cpu") * DEFAULT_MILLI_CPU;
    (cpu, exact.get("memory") + silent("memory") * DEFAULT_MEMORY)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_worst_moment_counts() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "initContainers": [
                {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
                {"name": "init", "resources": {"requests": {"cpu": "2", "memory": "1Gi"}}},
            ],
            "containers": [
                {"name": "a", "resources": {"requests": {"cpu": "500m", "memory": "64Mi"}}},
                {"name": "b", "resources": {"requests": {"cpu": "0.5"}}},
            ],
            "overhead": {"cpu": "10m"},
        }}))
        .unwrap();
        let resources = of_pod(&pod);
        assert_eq!((resources.get("cpu"), resources.get("memory")), (2110, 1 << 30));
        assert_eq!(for_scoring(&pod), (2110, (1 << 30) + DEFAULT_MEMORY));
    }

    #[test]
    fn a_resize_counts_until_it_is_over() {
        let cpu = |asked: &str, reason: Option<&str>| {
            let pod: Pod = serde_json::from_value(json!({
                "spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": asked}}}]},
                "status": {
                    "containerStatuses": [{"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                        "allocatedResources": {"cpu": "500m"}, "resources": {"requests": {"cpu": "400m"}}}],
                    "conditions": [{"type": "PodResizePending", "status": "True", "reason": reason}],
                },
            }))
            .unwrap();
            of_pod(&pod).get("cpu")
        };
        assert_eq!(cpu("1", Some("Deferred")), 1000);
        assert_eq!(cpu("100m", None), 500);
        assert_eq!(cpu("9", Some("Infeasible")), 500);
    }
}
