//! ServiceLB: Services of type LoadBalancer get the addresses of nodes, as with k3s.
//!
//! There is nothing to set up: each node's proxy answers on the addresses that the status names. What is decided here is which
//! nodes those are. A port of a node belongs to one Service, so all Services are decided on together.

mod plan;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use mussel_client::{Change, EventType, Informer, Recorder, WorkQueue, reference};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::Context;
use crate::control::{self, Key, follow, key_of};
use crate::error::{Error, Outcome, gone_is_fine};
use plan::Verdict;

/// Keeps a Service until its addresses are taken back (upstream's name).
const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
const LOCAL: &str = "Local";
const SLICE_SERVICE: &str = "kubernetes.io/service-name";

/// What the operator chose.
#[derive(Clone, Debug)]
pub struct Config {
    /// Else what was given out is taken back, and Services are somebody else's.
    pub enabled: bool,
    /// TCP ports of nodes that no Service may have: without them there is no cluster to take it back with.
    pub reserved: Vec<u16>,
}

struct Controller {
    client: Client,
    recorder: Recorder,
    config: Config,
    services: Informer<Service>,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    slices: Informer<EndpointSlice>,
    /// What was last said of Services that have no node.
    told: Mutex<BTreeMap<Key, String>>,
}

pub async fn run(context: Context, stop: CancellationToken) {
    let informers = &context.informers;
    let controller = Controller {
        client: context.client(),
        recorder: context.recorder("service-lb-controller"),
        config: context.config.service_lb.clone(),
        services: informers.of(),
        nodes: informers.of(),
        pods: informers.of(),
        slices: informers.of(),
        told: Mutex::default(),
    };
    let queue = WorkQueue::new();
    // One key: all Services are decided on together.
    let all = || queue.add(Key::default());
    let on_service = |change: &Change<Service>| {
        let concerns = match change {
            Change::Applied { old, new } => concerns(new) || old.as_ref().is_some_and(|old| concerns(old)),
            Change::Deleted(old) => concerns(old),
            Change::Resync => true,
        };
        if concerns {
            all();
        }
    };
    let on_node = |change: &Change<Node>| {
        let same = matches!(change, Change::Applied { old: Some(old), new } if plan::place(old) == plan::place(new));
        if !same {
            all();
        }
    };
    let on_pod = |change: &Change<Pod>| {
        let (Change::Applied { new: pod, .. } | Change::Deleted(pod)) = change else { return };
        if plan::host_ports(pod).next().is_some() {
            all();
        }
    };
    let on_slice = |change: &Change<EndpointSlice>| {
        let (Change::Applied { new: slice, .. } | Change::Deleted(slice)) = change else { return };
        let service = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SLICE_SERVICE));
        let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
        let service = service.and_then(|name| controller.services.get(namespace, name));
        if service.is_some_and(|service| plan::is_ours(&service) && plan::is_local(&service)) {
            all();
        }
    };
    let (services, nodes) = (controller.services.clone(), controller.nodes.clone());
    let (pods, slices) = (controller.pods.clone(), controller.slices.clone());
    tokio::join!(
        follow(services.clone(), stop.clone(), on_service, all),
        follow(nodes.clone(), stop.clone(), on_node, all),
        follow(pods.clone(), stop.clone(), on_pod, all),
        follow(slices.clone(), stop.clone(), on_slice, all),
        async {
            tokio::select! {
                () = stop.cancelled() => return,
                () = async { tokio::join!(services.synced(), nodes.synced(), pods.synced(), slices.synced()); } => {}
            }
            all();
            control::work("service-lb", queue.clone(), 1, stop.clone(), |_| controller.pass()).await;
        },
    );
}

/// Whether the Service is one of ours, or was.
fn concerns(service: &Service) -> bool {
    plan::is_ours(service) || has_finalizer(service)
}

fn has_finalizer(service: &Service) -> bool {
    service.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

impl Controller {
    async fn pass(&self) -> Outcome {
        let (services, nodes) = (self.services.list(), self.nodes.list());
        let mut verdicts = match self.config.enabled {
            true => plan::plan(&services, &nodes, &self.pods.list(), &self.slices.list(), &self.config.reserved),
            false => BTreeMap::new(),
        };
        let mut failed = None;
        for service in services.iter().filter(|service| concerns(service)) {
            let done = match verdicts.remove(&key_of(&**service)) {
                Some(verdict) => self.publish(service, verdict).await,
                None => self.take_back(service, &nodes).await,
            };
            // One that cannot be written must not hold up the others.
            if let Err(error) = done {
                failed = Some(error);
            }
        }
        self.told
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|(namespace, name), _| self.services.get(namespace, name).is_some());
        failed.map_or(Ok(None), Err)
    }

    async fn publish(&self, service: &Service, verdict: Verdict) -> Result<(), Error> {
        let before = plan::published(service);
        self.tell(service, &before, &verdict);
        if before == verdict.ips && has_finalizer(service) {
            return Ok(());
        }
        let mut finalizers = service.metadata.finalizers.clone().unwrap_or_default();
        if !has_finalizer(service) {
            finalizers.push(FINALIZER.to_owned());
        }
        let ingress: Vec<_> = verdict.ips.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
        self.patch(service, &finalizers, Some(json!({"ingress": ingress}))).await
    }

    /// After the type or class changed, on the way out, and when ServiceLB is turned off.
    async fn take_back(&self, service: &Service, nodes: &[Arc<Node>]) -> Result<(), Error> {
        if !has_finalizer(service) {
            return Ok(());
        }
        // While it is turned off somebody else may have given addresses, and needs the finalizer.
        let given = plan::published(service);
        let known = |ip: &String| nodes.iter().any(|node| plan::has_address(node, ip));
        if !self.config.enabled && plan::is_ours(service) && !given.iter().all(known) {
            return Ok(());
        }
        let finalizers = service.metadata.finalizers.iter().flatten();
        let left: Vec<String> = finalizers.filter(|finalizer| *finalizer != FINALIZER).cloned().collect();
        // A class means that the addresses are, or will be, somebody else's.
        let clear = given.iter().all(known);
        self.patch(service, &left, clear.then_some(serde_json::Value::Null)).await
    }

    async fn patch(
        &self,
        service: &Service,
        finalizers: &[String],
        load_balancer: Option<serde_json::Value>,
    ) -> Result<(), Error> {
        let (namespace, name) = key_of(service);
        let api: Api<Service> = Api::namespaced(self.client.clone(), &namespace);
        // Of the version that was looked at.
        let version = &service.metadata.resource_version;
        let mut patch = json!({"metadata": {"resourceVersion": version, "finalizers": finalizers}});
        if let Some(load_balancer) = load_balancer {
            patch["status"] = json!({"loadBalancer": load_balancer});
        }
        gone_is_fine(api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await)
    }

    fn tell(&self, service: &Service, before: &[String], verdict: &Verdict) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if !verdict.ips.is_empty() {
            told.remove(&key_of(service));
            if before != verdict.ips {
                let message = format!("Updated LoadBalancer with new IPs: {before:?} -> {:?}", verdict.ips);
                self.recorder.event(reference(service), EventType::Normal, "UpdatedLoadBalancer", message);
            }
            return;
        }
        let mut message = "There are no available nodes for LoadBalancer".to_owned();
        if let Some(why) = &verdict.why {
            message.push_str(": ");
            message.push_str(why);
        }
        if told.get(&key_of(service)) != Some(&message) {
            told.insert(key_of(service), message.clone());
            self.recorder.event(reference(service), EventType::Warning, "UnAvailableLoadBalancer", message);
        }
    }
}
