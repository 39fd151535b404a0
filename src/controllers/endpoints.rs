//! The old Endpoints API: one object per Service with a selector, and slices for Endpoints that users write.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort as SlicePort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use mussel_client::{Change, Informer, WorkQueue};
use tokio_util::sync::CancellationToken;

use crate::Context;
use crate::control::{self, Key, follow, follow_keys, queue_all};
use crate::endpoint::{self, HEADLESS};
use crate::error::{Outcome, gone_is_fine, is_not_found};
use crate::owner::{Owner, is_controlled_by};
use crate::pods;

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const US: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const ADDRESSES_MAX: usize = 1000;
const SLICE_SERVICE: &str = "kubernetes.io/service-name";
const SLICE_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MIRROR: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";

struct Controller {
    client: Client,
    /// Writes the slices that mirror Endpoints of people.
    mirror: Client,
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
    slices: Informer<EndpointSlice>,
}

pub async fn run(context: Context, stop: CancellationToken) {
    let services = context.informers.of::<Service>();
    let pods = context.informers.of::<Pod>();
    let endpoints = context.informers.of::<Endpoints>();
    let slices = context.informers.of::<EndpointSlice>();
    let queue = WorkQueue::new();
    let controller = Controller {
        client: context.client(),
        mirror: context.client_as("endpointslicemirroring-controller"),
        services: services.clone(),
        pods: pods.clone(),
        endpoints: endpoints.clone(),
        slices: slices.clone(),
    };
    let resync = || queue_all(&services, &queue);
    let on_slice = |change: &Change<EndpointSlice>| {
        let (Change::Applied { new: slice, .. } | Change::Deleted(slice)) = change else { return };
        if is_mirror(slice) {
            endpoint::service_of(&**slice, Some(SLICE_SERVICE)).into_iter().for_each(|key| queue.add(key));
        }
    };
    tokio::join!(
        follow_keys(services.clone(), queue.clone(), stop.clone()),
        follow_keys(endpoints.clone(), queue.clone(), stop.clone()),
        follow(pods.clone(), stop.clone(), |change| endpoint::pod_changed(change, &services, &queue), resync),
        follow(slices.clone(), stop.clone(), on_slice, resync),
        async {
            tokio::select! {
                () = stop.cancelled() => return,
                () = async { tokio::join!(services.synced(), pods.synced(), endpoints.synced(), slices.synced()); } => (),
            }
            control::work("endpoints", queue.clone(), 5, stop.clone(), |key| controller.reconcile(key)).await;
        },
    );
}

fn is_mirror(slice: &EndpointSlice) -> bool {
    slice.metadata.labels.as_ref().and_then(|labels| labels.get(SLICE_MANAGED_BY)).is_some_and(|by| by == MIRROR)
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Outcome {
        let api: Api<Endpoints> = Api::namespaced(self.client.clone(), &key.0);
        let existing = self.endpoints.get(&key.0, &key.1);
        let Some(service) = self.services.get(&key.0, &key.1) else {
            // Ours, or orphaned by its Service: no Service, no Endpoints. Others' objects are left alone.
            let ours = existing.as_ref().is_some_and(|e| label(&e.metadata, MANAGED_BY) == Some(US));
            if ours {
                gone_is_fine(api.delete(&key.1, &DeleteParams::default()).await)?;
            }
            return Ok(None);
        };
        let Some(selector) = endpoint::selector(&service) else {
            return self.mirror(&key, &service, existing).await;
        };
        if service.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let selected: Vec<_> =
            self.pods.list_in(&key.0).into_iter().filter(|pod| endpoint::selects(selector, pod)).collect();
        let (subsets, over) = subsets(&service, &selected);
        let mut labels = service.metadata.labels.clone().unwrap_or_default();
        labels.remove(HEADLESS);
        labels.insert(MANAGED_BY.to_owned(), US.to_owned());
        if endpoint::is_headless(&service) {
            labels.insert(HEADLESS.to_owned(), String::new());
        }
        let mut wanted = existing.as_deref().cloned().unwrap_or_else(|| Endpoints {
            metadata: ObjectMeta { name: Some(key.1.clone()), namespace: Some(key.0.clone()), ..ObjectMeta::default() },
            ..Endpoints::default()
        });
        wanted.metadata.labels = Some(labels);
        wanted.subsets = Some(subsets).filter(|s| !s.is_empty());
        if over {
            let annotations = wanted.metadata.annotations.get_or_insert_default();
            annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
        } else if let Some(annotations) = &mut wanted.metadata.annotations {
            annotations.remove(OVER_CAPACITY);
        }
        let result = match existing {
            Some(old) => {
                let empty = |e: &Endpoints| e.subsets.as_ref().is_none_or(Vec::is_empty);
                let same = old.metadata == wanted.metadata
                    && (old.subsets == wanted.subsets || (empty(&old) && empty(&wanted)));
                if same {
                    return Ok(None);
                }
                api.replace(&key.1, &PostParams::default(), &wanted).await
            }
            None => api.create(&PostParams::default(), &wanted).await,
        };
        match result {
            Ok(_) => Ok(None),
            Err(error) if pods::is_terminating(&error) || is_not_found(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Endpoints that a user wrote for a Service without selector become slices.
    async fn mirror(&self, key: &Key, service: &Service, endpoints: Option<Arc<Endpoints>>) -> Outcome {
        let external = service.spec.as_ref().is_some_and(|spec| spec.type_.as_deref() == Some("ExternalName"));
        let source = endpoints.filter(|e| {
            let skip = label(&e.metadata, SKIP_MIRROR) == Some("true");
            let lock = e.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(LEADER));
            !external
                && !skip
                && !lock
                && label(&e.metadata, MANAGED_BY) != Some(US)
                && e.metadata.deletion_timestamp.is_none()
        });
        let api: Api<EndpointSlice> = Api::namespaced(self.mirror.clone(), &key.0);
        let mut left: Vec<_> = self
            .slices
            .list_in(&key.0)
            .into_iter()
            .filter(|s| is_mirror(s) && endpoint::service_of(&**s, Some(SLICE_SERVICE)).as_ref() == Some(key))
            .collect();
        for wanted in source.as_deref().map(mirrored).unwrap_or_default() {
            let uid = source.as_ref().and_then(|e| e.metadata.uid.as_deref()).unwrap_or_default();
            let same = |s: &Arc<EndpointSlice>| {
                s.ports == wanted.ports
                    && s.endpoints == wanted.endpoints
                    && s.address_type == wanted.address_type
                    && is_controlled_by(&s.metadata, uid)
            };
            match left.iter().position(same) {
                Some(at) => drop(left.swap_remove(at)),
                None => {
                    api.create(&PostParams::default(), &wanted).await?;
                }
            }
        }
        for slice in left {
            gone_is_fine(
                api.delete(slice.metadata.name.as_deref().unwrap_or_default(), &DeleteParams::default()).await,
            )?;
        }
        Ok(None)
    }
}

fn label<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(key).map(String::as_str)
}

/// Addresses with the same ports share a subset, as they always did. True when addresses had to be left out.
fn subsets(service: &Service, selected: &[Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let spec = service.spec.clone().unwrap_or_default();
    let v6 = spec.ip_families.as_ref().and_then(|f| f.first()).is_some_and(|f| f == "IPv6");
    let publish = endpoint::publishes_not_ready(service);
    let mut by_ports: BTreeMap<String, EndpointSubset> = BTreeMap::new();
    let mut count = 0;
    let mut candidates: Vec<_> = selected.iter().filter(|p| endpoint::is_candidate(p)).collect();
    // When there are too many, those that are ready stay.
    candidates.sort_by_key(|pod| !pods::is_ready(pod));
    let total = candidates.len();
    for pod in candidates.into_iter().take(ADDRESSES_MAX) {
        if pod.metadata.deletion_timestamp.is_some() && !publish {
            continue;
        }
        let Some(ip) = endpoint::address(pod, v6) else { continue };
        let ports: Vec<EndpointPort> = spec
            .ports
            .iter()
            .flatten()
            .filter_map(|port| {
                Some(EndpointPort {
                    name: port.name.clone().filter(|name| !name.is_empty()),
                    port: endpoint::target_port(pod, port)?,
                    protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                    app_protocol: port.app_protocol.clone(),
                })
            })
            .collect();
        if ports.is_empty() && spec.ports.as_ref().is_some_and(|p| !p.is_empty()) {
            continue;
        }
        let address = EndpointAddress {
            ip,
            hostname: endpoint::hostname(pod, service),
            node_name: endpoint::node_name(pod),
            target_ref: Some(endpoint::target(pod)),
        };
        let id = ports.iter().map(|p| format!("{:?}/{}/{:?};", p.name, p.port, p.protocol)).collect();
        let subset = by_ports.entry(id).or_insert_with(|| EndpointSubset {
            ports: Some(ports).filter(|p| !p.is_empty()),
            ..EndpointSubset::default()
        });
        let list = if publish || pods::is_ready(pod) { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        list.get_or_insert_default().push(address);
        count += 1;
    }
    let mut subsets: Vec<_> = by_ports.into_values().collect();
    for subset in &mut subsets {
        for list in [&mut subset.addresses, &mut subset.not_ready_addresses].into_iter().flatten() {
            list.sort_by(|a, b| a.ip.cmp(&b.ip));
        }
    }
    (subsets, count > 0 && total > ADDRESSES_MAX)
}

fn mirrored(source: &Endpoints) -> Vec<EndpointSlice> {
    let owner = Owner::of(source);
    let mut labels = source.metadata.labels.clone().unwrap_or_default();
    labels.insert(SLICE_SERVICE.to_owned(), owner.name.clone());
    labels.insert(SLICE_MANAGED_BY.to_owned(), MIRROR.to_owned());
    let mut slices = Vec::new();
    for subset in source.subsets.iter().flatten() {
        for v6 in [false, true] {
            let ready = subset.addresses.iter().flatten().map(|a| (a, true));
            let unready = subset.not_ready_addresses.iter().flatten().map(|a| (a, false));
            let fits = |a: &EndpointAddress| a.ip.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_ipv6() == v6);
            let endpoints: Vec<Endpoint> = ready
                .chain(unready)
                .filter(|(a, _)| fits(a))
                .map(|(address, ready)| Endpoint {
                    addresses: vec![address.ip.clone()],
                    conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
                    hostname: address.hostname.clone(),
                    node_name: address.node_name.clone(),
                    target_ref: address.target_ref.clone(),
                    ..Endpoint::default()
                })
                .take(ADDRESSES_MAX)
                .collect();
            if endpoints.is_empty() {
                continue;
            }
            let ports = subset.ports.iter().flatten().map(|port| SlicePort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(port.port),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: port.app_protocol.clone(),
            });
            slices.push(EndpointSlice {
                metadata: ObjectMeta {
                    generate_name: Some(format!("{}-", owner.name)),
                    namespace: Some(owner.namespace.clone()),
                    labels: Some(labels.clone()),
                    owner_references: Some(vec![owner.reference()]),
                    ..ObjectMeta::default()
                },
                address_type: if v6 { "IPv6" } else { "IPv4" }.to_owned(),
                endpoints: Some(endpoints),
                ports: Some(ports.collect()),
            });
        }
    }
    slices
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn subsets_separate_ready_from_not_ready() {
        let service: Service = serde_json::from_value(json!({"metadata": {"name": "web"},
            "spec": {"selector": {"a": "b"}, "ports": [{"port": 80, "targetPort": 8080}]}}))
        .unwrap();
        let pod = |ip: &str, ready: &str| -> Arc<Pod> {
            let status = json!({"podIP": ip, "phase": "Running", "conditions": [{"type": "Ready", "status": ready}]});
            Arc::new(serde_json::from_value(json!({"metadata": {"name": ip}, "status": status})).unwrap())
        };
        let (subsets, over) =
            subsets(&service, &[pod("10.0.0.2", "True"), pod("10.0.0.1", "True"), pod("10.0.0.3", "False")]);
        let seen = serde_json::to_value(&subsets).unwrap();
        assert!(!over);
        assert_eq!(seen[0]["ports"], json!([{"port": 8080, "protocol": "TCP"}]));
        assert_eq!(seen[0]["addresses"][0]["ip"], "10.0.0.1");
        assert_eq!(seen[0]["notReadyAddresses"][0]["ip"], "10.0.0.3");
    }

    #[test]
    fn endpoints_of_users_are_mirrored() {
        let source: Endpoints =
            serde_json::from_value(json!({"metadata": {"name": "db", "namespace": "a", "uid": "e"},
            "subsets": [{"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 5432}]}]}))
            .unwrap();
        let slices = mirrored(&source);
        assert_eq!(slices.len(), 1);
        assert_eq!(slices[0].ports.as_ref().unwrap()[0].port, Some(5432));
    }
}
