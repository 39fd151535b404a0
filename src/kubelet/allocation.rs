//! What a pod has been given of the node, which is not what its spec asks for while a resize has to wait (KEP-1287).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, ResourceRequirements};

use crate::{pod, resources, status};

/// The resources of a pod and of its containers, by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Given {
    pod: Option<ResourceRequirements>,
    containers: BTreeMap<String, Option<ResourceRequirements>>,
}

/// The pods that have been let in, by uid.
#[derive(Default)]
pub struct Allocations {
    given: HashMap<String, Given>,
    /// Pods that wait for room: looked at again when some is freed.
    deferred: HashSet<String>,
}

/// Why the pod does not have what its spec asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// `Deferred`: not now; `Infeasible`: never on this node.
    pub reason: &'static str,
    pub message: String,
}

impl Given {
    /// All that the spec asks for.
    pub fn wanted(pod: &Pod) -> Self {
        let all = pod::containers(pod).iter().chain(pod::init_containers(pod));
        Self {
            pod: pod::spec(pod).and_then(|s| s.resources.clone()),
            containers: all.map(|c| (c.name.clone(), c.resources.clone())).collect(),
        }
    }

    /// What a pod that ran before this process did had been given: while a resize waits, its status says so.
    pub fn before_restart(pod: &Pod) -> Self {
        let mut given = Self::wanted(pod);
        let status = pod.status.as_ref();
        let waits = status.and_then(|s| s.conditions.as_ref()).into_iter().flatten();
        if !waits.into_iter().any(|c| c.type_ == status::RESIZE_PENDING && c.status == "True") {
            return given;
        }
        let lists = status.map(|s| [s.container_statuses.as_ref(), s.init_container_statuses.as_ref()]);
        for container in lists.into_iter().flatten().flatten().flatten() {
            if let Some(own) = given.containers.get_mut(&container.name) {
                *own = reported(container).or(own.take());
            }
        }
        given
    }

    /// The pod with these resources in place of those its spec asks for.
    pub fn apply(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        if *self == Self::wanted(pod) {
            return pod.clone();
        }
        let mut changed = Pod::clone(pod);
        if let Some(spec) = &mut changed.spec {
            spec.resources.clone_from(&self.pod);
            let put = |c: &mut Container| {
                if let Some(own) = self.containers.get(&c.name) {
                    c.resources.clone_from(own);
                }
            };
            spec.containers.iter_mut().for_each(put);
            spec.init_containers.iter_mut().flatten().for_each(put);
        }
        Arc::new(changed)
    }
}

fn reported(container: &ContainerStatus) -> Option<ResourceRequirements> {
    let mut own = container.resources.clone()?;
    if container.allocated_resources.is_some() {
        own.requests.clone_from(&container.allocated_resources);
    }
    Some(own)
}

impl Allocations {
    pub fn contains(&self, uid: &str) -> bool {
        self.given.contains_key(uid)
    }

    /// The pod as it was let in; as it asks to be where it was not.
    pub fn apply(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        self.given.get(pod::uid(pod)).map_or_else(|| pod.clone(), |given| given.apply(pod))
    }

    pub fn insert(&mut self, uid: &str, given: Given) {
        self.given.insert(uid.to_owned(), given);
        self.deferred.remove(uid);
    }

    pub fn retain(&mut self, alive: impl Fn(&str) -> bool) {
        self.given.retain(|uid, _| alive(uid));
        self.deferred.retain(|uid| alive(uid));
    }

    pub fn defer(&mut self, uid: &str) {
        self.deferred.insert(uid.to_owned());
    }

    pub fn forget_wait(&mut self, uid: &str) {
        self.deferred.remove(uid);
    }

    pub fn deferred(&self) -> impl Iterator<Item = &str> {
        self.deferred.iter().map(String::as_str)
    }
}

/// The resources that may be resized of which `wanted` asks for more than `given`.
pub fn grows(wanted: &Pod, given: &Pod) -> Vec<&'static str> {
    let more = |name: &&str| resources::pod_request(wanted, name) > resources::pod_request(given, name);
    ["cpu", "memory"].into_iter().filter(|name| more(name)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn resized(cpu: &str, status: serde_json::Value) -> Arc<Pod> {
        let pod = json!({"metadata": {"uid": "u"}, "status": status, "spec": {"containers": [
            {"name": "a", "resources": {"requests": {"cpu": cpu}}}, {"name": "b"}]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn cpu(pod: &Pod) -> i64 {
        resources::pod_request(pod, "cpu").to_milli()
    }

    #[test]
    fn a_pod_keeps_what_it_was_given() {
        let (small, big) = (resized("100m", json!({})), resized("2", json!({})));
        let mut all = Allocations::default();
        assert_eq!(cpu(&all.apply(&big)), 2000);
        all.insert("u", Given::wanted(&small));
        assert_eq!(cpu(&all.apply(&big)), 100);
        assert!(Arc::ptr_eq(&all.apply(&small), &small));
        assert_eq!((grows(&big, &small), grows(&small, &big)), (vec!["cpu"], vec![]));
    }

    #[test]
    fn a_wait_outlives_a_restart() {
        let containers = json!([{"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "allocatedResources": {"cpu": "100m"}, "resources": {"requests": {"cpu": "90m"}}}]);
        let waiting = json!({"containerStatuses": containers,
            "conditions": [{"type": status::RESIZE_PENDING, "status": "True", "reason": "Deferred"}]});
        let pod = resized("2", waiting);
        assert_eq!(cpu(&Given::before_restart(&pod).apply(&pod)), 100);
        let pod = resized("2", json!({"containerStatuses": containers}));
        assert_eq!(cpu(&Given::before_restart(&pod).apply(&pod)), 2000);
    }
}
