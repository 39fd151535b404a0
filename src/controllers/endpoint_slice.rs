//! EndpointSlices: the addresses behind each Service, at most a hundred per slice.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use mussel_client::{Change, EventType, Informer, Recorder, WorkQueue, reference};
use tokio_util::sync::CancellationToken;

use crate::Context;
use crate::control::{self, Key, follow, follow_keys, queue_all};
use crate::endpoint::{self, HEADLESS, Labels};
use crate::error::{Error, Outcome, gone_is_fine, text};
use crate::owner::Owner;
use crate::pods;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const US: &str = "endpointslice-controller.k8s.io";
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const PER_SLICE_MAX: usize = 100;

struct Controller {
    client: Client,
    recorder: Recorder,
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
}

pub async fn run(context: Context, stop: CancellationToken) {
    let services = context.informers.of::<Service>();
    let pods = context.informers.of::<Pod>();
    let nodes = context.informers.of::<Node>();
    let slices = context.informers.of::<EndpointSlice>();
    let queue = WorkQueue::new();
    let controller = Controller {
        client: context.client(),
        recorder: context.recorder("endpoint-slice-controller"),
        services: services.clone(),
        pods: pods.clone(),
        nodes: nodes.clone(),
        slices: slices.clone(),
    };
    let resync = || queue_all(&services, &queue);
    let on_slice = |change: &Change<EndpointSlice>| {
        let (Change::Applied { new: slice, .. } | Change::Deleted(slice)) = change else { return };
        if is_ours(slice) {
            endpoint::service_of(&**slice, Some(SERVICE_NAME)).into_iter().for_each(|key| queue.add(key));
        }
    };
    tokio::join!(
        follow_keys(services.clone(), queue.clone(), stop.clone()),
        follow(pods.clone(), stop.clone(), |change| endpoint::pod_changed(change, &services, &queue), resync),
        follow(slices.clone(), stop.clone(), on_slice, resync),
        async {
            tokio::select! {
                () = stop.cancelled() => return,
                () = async { tokio::join!(services.synced(), pods.synced(), nodes.synced(), slices.synced()); } => (),
            }
            control::work("endpointslice", queue.clone(), 5, stop.clone(), |key| controller.reconcile(key)).await;
        },
    );
}

fn is_ours(slice: &EndpointSlice) -> bool {
    slice.metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|by| by == US)
}

/// Endpoints that serve on the same ports; these share slices.
#[derive(Debug, PartialEq)]
struct Group {
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Outcome {
        // Deleted Services take their slices along through the garbage collector.
        let Some(service) = self.services.get(&key.0, &key.1) else { return Ok(None) };
        let Some(selector) = endpoint::selector(&service) else { return Ok(None) };
        if service.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let selected: Vec<_> =
            self.pods.list_in(&key.0).into_iter().filter(|pod| endpoint::selects(selector, pod)).collect();
        let mine: Vec<_> = self
            .slices
            .list_in(&key.0)
            .into_iter()
            .filter(|s| is_ours(s) && endpoint::service_of(&**s, Some(SERVICE_NAME)).as_ref() == Some(&key))
            .collect();
        let families = service.spec.as_ref().and_then(|s| s.ip_families.clone()).filter(|f| !f.is_empty());
        let families = families.unwrap_or_else(|| vec!["IPv4".to_owned()]);
        let mut stale: Vec<_> = mine.iter().filter(|s| !families.contains(&s.address_type)).cloned().collect();
        let mut result = Ok(());
        for family in &families {
            let groups = group(&service, &selected, family == "IPv6", |pod| endpoint::zone(&self.nodes, pod));
            let existing: Vec<_> = mine.iter().filter(|s| s.address_type == *family).cloned().collect();
            let (writes, surplus) = arrange(groups, &existing, &service, family);
            stale.extend(surplus);
            for slice in writes {
                if let Err(error) = self.write(&key.0, &slice).await {
                    result = Err(error);
                }
            }
        }
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &key.0);
        for slice in stale {
            let name = slice.metadata.name.clone().unwrap_or_default();
            gone_is_fine(api.delete(&name, &DeleteParams::default()).await)?;
        }
        if let Err(Error::Api(error)) = &result {
            if pods::is_terminating(error) {
                return Ok(None);
            }
            let conflict = matches!(&result, Err(error) if error.is_conflict());
            if !conflict {
                let message =
                    format!("Error updating Endpoint Slices for Service {}/{}: {}", key.0, key.1, text(error));
                self.recorder.event(reference(&*service), EventType::Warning, "FailedToUpdateEndpointSlices", message);
            }
        }
        result.map(|()| None)
    }

    async fn write(&self, namespace: &str, slice: &EndpointSlice) -> Result<(), Error> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), namespace);
        match &slice.metadata.name {
            Some(name) => api.replace(name, &PostParams::default(), slice).await?,
            None => api.create(&PostParams::default(), slice).await?,
        };
        Ok(())
    }
}

/// The Service's endpoints of one family by the ports they serve on, in a stable order.
fn group(service: &Service, selected: &[Arc<Pod>], v6: bool, zone: impl Fn(&Pod) -> Option<String>) -> Vec<Group> {
    let publish = endpoint::publishes_not_ready(service);
    let spec = service.spec.clone().unwrap_or_default();
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for pod in selected.iter().filter(|pod| endpoint::is_candidate(pod)) {
        let Some(address) = endpoint::address(pod, v6) else { continue };
        let ports: Vec<EndpointPort> = spec
            .ports
            .iter()
            .flatten()
            .filter_map(|port| {
                Some(EndpointPort {
                    name: Some(port.name.clone().unwrap_or_default()),
                    port: Some(endpoint::target_port(pod, port)?),
                    protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                    app_protocol: port.app_protocol.clone(),
                })
            })
            .collect();
        if ports.is_empty() && spec.ports.iter().flatten().next().is_some() {
            // None of the named ports exists in this Pod.
            continue;
        }
        let terminating = pod.metadata.deletion_timestamp.is_some();
        let serving = pods::is_ready(pod);
        let endpoint = Endpoint {
            addresses: vec![address],
            conditions: Some(EndpointConditions {
                ready: Some(publish || (serving && !terminating)),
                serving: Some(serving),
                terminating: Some(terminating),
            }),
            hostname: endpoint::hostname(pod, service),
            node_name: endpoint::node_name(pod),
            target_ref: Some(endpoint::target(pod)),
            zone: zone(pod),
            ..Endpoint::default()
        };
        let id = ports.iter().map(|p| format!("{:?}/{:?}/{:?};", p.name, p.port, p.protocol)).collect();
        groups.entry(id).or_insert_with(|| Group { ports, endpoints: Vec::new() }).endpoints.push(endpoint);
    }
    if groups.is_empty() {
        // An empty slice says that the Service has been looked at.
        return vec![Group { ports: Vec::new(), endpoints: Vec::new() }];
    }
    let mut groups: Vec<Group> = groups.into_values().collect();
    groups.iter_mut().for_each(|g| g.endpoints.sort_by(|a, b| a.addresses.cmp(&b.addresses)));
    groups
}

fn labels(service: &Service) -> Labels {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    labels.insert(SERVICE_NAME.to_owned(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.to_owned(), US.to_owned());
    if endpoint::is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}

/// Fits the groups into existing slices, moving as few endpoints as possible. Answers what must be written (without a
/// name: created), and the slices that are left over.
fn arrange(
    groups: Vec<Group>,
    existing: &[Arc<EndpointSlice>],
    service: &Service,
    family: &str,
) -> (Vec<EndpointSlice>, Vec<Arc<EndpointSlice>>) {
    let labels = labels(service);
    let mut writes = Vec::new();
    let mut left: Vec<Arc<EndpointSlice>> = existing.to_vec();
    for group in groups {
        let mut missing: BTreeMap<String, Endpoint> = group.endpoints.into_iter().map(|e| (identity(&e), e)).collect();
        let (same, others): (Vec<_>, Vec<_>) =
            left.into_iter().partition(|s| s.ports.as_deref().unwrap_or_default() == group.ports);
        left = others;
        // What is in a slice stays there.
        let mut kept: Vec<(Arc<EndpointSlice>, Vec<Endpoint>)> = same
            .into_iter()
            .map(|slice| {
                let old = slice.endpoints.as_deref().unwrap_or_default();
                let endpoints = old.iter().filter_map(|e| missing.remove(&identity(e))).collect();
                (slice, endpoints)
            })
            .collect();
        let mut rest: Vec<Endpoint> = missing.into_values().collect();
        for (_, endpoints) in &mut kept {
            let room = PER_SLICE_MAX.saturating_sub(endpoints.len()).min(rest.len());
            endpoints.extend(rest.drain(..room));
        }
        let mut used = 0;
        let wanted_empty = rest.is_empty() && kept.iter().all(|(_, endpoints)| endpoints.is_empty());
        for (slice, endpoints) in kept {
            if endpoints.is_empty() && !(wanted_empty && used == 0) {
                left.push(slice);
                continue;
            }
            used += 1;
            let same = slice.endpoints.as_deref().unwrap_or_default() == endpoints
                && slice.metadata.labels.as_ref() == Some(&labels);
            if !same {
                writes.push(slice_with(Some(&slice), &labels, family, &group.ports, endpoints, service));
            }
        }
        while !rest.is_empty() {
            let part = rest.drain(..rest.len().min(PER_SLICE_MAX)).collect();
            used += 1;
            writes.push(fill(&mut left, &labels, family, &group.ports, part, service));
        }
        if used == 0 {
            writes.push(fill(&mut left, &labels, family, &group.ports, Vec::new(), service));
        }
    }
    (writes, left)
}

/// Reuses a slice whose ports do not occur any more before making another.
fn fill(
    left: &mut Vec<Arc<EndpointSlice>>,
    labels: &Labels,
    family: &str,
    ports: &[EndpointPort],
    endpoints: Vec<Endpoint>,
    service: &Service,
) -> EndpointSlice {
    let reused = left.pop();
    slice_with(reused.as_deref(), labels, family, ports, endpoints, service)
}

fn identity(endpoint: &Endpoint) -> String {
    let target = endpoint.target_ref.as_ref().and_then(|t| t.uid.as_deref()).unwrap_or_default();
    format!("{}/{target}", endpoint.addresses.first().map(String::as_str).unwrap_or_default())
}

fn slice_with(
    old: Option<&EndpointSlice>,
    labels: &Labels,
    family: &str,
    ports: &[EndpointPort],
    endpoints: Vec<Endpoint>,
    service: &Service,
) -> EndpointSlice {
    let owner = Owner::of(service);
    let mut slice = old.cloned().unwrap_or_else(|| EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", owner.name)),
            namespace: Some(owner.namespace.clone()),
            owner_references: Some(vec![owner.reference()]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        ..EndpointSlice::default()
    });
    slice.metadata.labels = Some(labels.clone());
    let annotations = slice.metadata.annotations.get_or_insert_default();
    annotations.insert(TRIGGER_TIME.to_owned(), Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    slice.ports = Some(ports.to_vec());
    slice.endpoints = Some(endpoints);
    slice
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(target: serde_json::Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "a", "uid": "s"},
            "spec": {"clusterIP": "None", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": target}]}}))
        .unwrap()
    }

    fn pod(number: usize, ready: &str, port: i32) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": format!("p{number}"), "namespace": "a", "uid": format!("u{number}")},
                "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
                "status": {"phase": "Running", "podIP": format!("10.42.{}.{}", number / 250, number % 250),
                    "conditions": [{"type": "Ready", "status": ready}]}}))
            .unwrap(),
        )
    }

    #[test]
    fn endpoints_are_grouped_by_what_they_serve() {
        let pods = [pod(1, "True", 8080), pod(2, "False", 8080), pod(3, "True", 9090)];
        let groups = group(&service(json!("http")), &pods, false, |_| None);
        let summary: Vec<_> = groups
            .iter()
            .map(|g| {
                let ready = g.endpoints.iter().filter(|e| e.conditions.as_ref().unwrap().ready == Some(true)).count();
                (g.ports[0].port.unwrap(), g.endpoints.len(), ready)
            })
            .collect();
        assert_eq!(summary, [(8080, 2, 1), (9090, 1, 1)]);
        assert_eq!(group(&service(json!("nope")), &pods, false, |_| None)[0].endpoints.len(), 0);
    }

    #[test]
    fn slices_hold_a_hundred_and_stay_put() {
        let service = service(json!(8080));
        let pods: Vec<_> = (0..250).map(|n| pod(n, "True", 8080)).collect();
        let (mut writes, left) = arrange(group(&service, &pods, false, |_| None), &[], &service, "IPv4");
        assert_eq!(writes.iter().map(|s| s.endpoints.as_ref().unwrap().len()).collect::<Vec<_>>(), [100, 100, 50]);
        assert!(left.is_empty());
        assert!(writes[0].metadata.labels.as_ref().unwrap().contains_key(HEADLESS));
        let existing: Vec<_> = writes
            .iter_mut()
            .enumerate()
            .map(|(i, slice)| {
                slice.metadata.name = Some(format!("web-{i}"));
                Arc::new(slice.clone())
            })
            .collect();
        let (again, left) = arrange(group(&service, &pods, false, |_| None), &existing, &service, "IPv4");
        assert!(again.is_empty() && left.is_empty());
        // One Pod less touches one slice; none left leaves one empty slice.
        let (fewer, _) = arrange(group(&service, &pods[1..], false, |_| None), &existing, &service, "IPv4");
        assert_eq!(fewer.len(), 1);
        let (empty, left) = arrange(group(&service, &[], false, |_| None), &existing, &service, "IPv4");
        assert_eq!((empty.len(), empty[0].endpoints.as_ref().unwrap().len(), left.len()), (1, 0, 2));
    }
}
