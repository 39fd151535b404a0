//! What the EndpointSlice and the Endpoints controller share: which Pods a Service selects, and on which port each
//! of them serves it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use mussel_client::informer::Kind;
use mussel_client::{Change, Informer, WorkQueue};

use crate::control::{Key, key_of};
use crate::pods;

pub type Labels = BTreeMap<String, String>;

/// Mirrors of a headless Service carry it, so that proxies may ignore them.
pub const HEADLESS: &str = "service.kubernetes.io/headless";

pub fn selector(service: &Service) -> Option<&Labels> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    // An empty selector is the same as none: the endpoints are somebody else's business.
    spec.selector.as_ref().filter(|selector| !selector.is_empty())
}

pub fn selects(selector: &Labels, pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

pub fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None"))
}

pub fn publishes_not_ready(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.publish_not_ready_addresses == Some(true))
}

/// A Pod that can be an endpoint at all: it has an address and has not finished.
pub fn is_candidate(pod: &Pod) -> bool {
    !pods::is_terminal(pod)
        && pod.status.as_ref().is_some_and(|status| !status.pod_ip.as_deref().unwrap_or("").is_empty())
}

pub fn address(pod: &Pod, v6: bool) -> Option<String> {
    let status = pod.status.as_ref()?;
    let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).chain(status.pod_ip.as_deref());
    let fits = |text: &&str| text.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6() == v6);
    all.filter(|text| !text.is_empty()).find(fits).map(str::to_owned)
}

/// The number behind a target port; a name is looked up in the Pod.
pub fn target_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let spec = pod.spec.as_ref()?;
            let sidecars =
                spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
            spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten()).find_map(|p| {
                let same = p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol;
                same.then_some(p.container_port)
            })
        }
    }
}

/// Pods of a StatefulSet have DNS names of their own under their governing Service.
pub fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let same = spec.subdomain.is_some() && spec.subdomain == service.metadata.name;
    spec.hostname
        .clone()
        .filter(|name| same && !name.is_empty() && pod.metadata.namespace == service.metadata.namespace)
}

pub fn target(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

pub fn node_name(pod: &Pod) -> Option<String> {
    pod.spec.as_ref()?.node_name.clone().filter(|name| !name.is_empty())
}

pub fn zone(nodes: &Informer<Node>, pod: &Pod) -> Option<String> {
    let node = nodes.get("", &node_name(pod)?)?;
    node.metadata.labels.as_ref()?.get("topology.kubernetes.io/zone").cloned()
}

/// Queues the Services that select a Pod now or did before; changes that no endpoint shows are dropped.
pub fn pod_changed(change: &Change<Pod>, services: &Informer<Service>, queue: &WorkQueue<Key>) {
    let (old, new) = match change {
        Change::Applied { old, new } => (old.as_ref(), Some(new)),
        Change::Deleted(pod) => (Some(pod), None),
        Change::Resync => return,
    };
    if let (Some(old), Some(new)) = (old, new)
        && facts(old) == facts(new)
    {
        return;
    }
    let Some(pod) = new.or(old) else { return };
    for service in services.list_in(pod.metadata.namespace.as_deref().unwrap_or_default()) {
        let Some(selector) = selector(&service) else { continue };
        if [old, new].into_iter().flatten().any(|pod| selects(selector, pod)) {
            queue.add(key_of(&*service));
        }
    }
}

/// All of a Pod that endpoints depend on.
fn facts(pod: &Arc<Pod>) -> impl PartialEq + use<> {
    let status = pod.status.clone().unwrap_or_default();
    let spec = pod.spec.as_ref();
    (
        pod.metadata.labels.clone(),
        pod.metadata.uid.clone(),
        pod.metadata.deletion_timestamp.is_some(),
        pods::is_ready(pod),
        pods::is_terminal(pod),
        (status.pod_ip, status.pod_ips),
        (
            spec.and_then(|s| s.node_name.clone()),
            spec.and_then(|s| s.hostname.clone()),
            spec.and_then(|s| s.subdomain.clone()),
        ),
    )
}

/// Queues the Service that an object made for it belongs to.
pub fn service_of<K: Kind>(object: &K, label: Option<&str>) -> Option<Key> {
    let meta = object.meta();
    let name = match label {
        Some(label) => meta.labels.as_ref()?.get(label)?.clone(),
        None => meta.name.clone()?,
    };
    Some((meta.namespace.clone().unwrap_or_default(), name))
}
