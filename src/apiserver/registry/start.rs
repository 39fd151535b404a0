//! The objects that every cluster has: namespaces, priority classes, the API's own Service and its endpoints.

use std::sync::Arc;

use bytes::Bytes;
use mussel_api::object::{self, ObjectExt};
use mussel_store::{CommitError, Freshness, Precondition, Txn};
use serde_json::{Value, json};

use super::strategy::ip_address;
use super::write::now;
use super::{Registry, key};
use crate::status::Status;
use crate::{Context, aggregator};

const NAMESPACES: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

pub async fn bootstrap(registry: &Registry) -> Result<(), Status> {
    let context = &registry.context;
    for name in NAMESPACES {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
        ensure(context, "namespaces", namespace).await?;
    }
    for (name, value, description) in [
        (
            "system-node-critical",
            2_000_001_000_i64,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        (
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ] {
        let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": name, "generation": 1}, "value": value, "description": description,
            "preemptionPolicy": "PreemptLowerPriority"});
        ensure(context, "priorityclasses.scheduling.k8s.io", class).await?;
    }
    let cidr = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes", "generation": 1, "finalizers": ["networking.k8s.io/service-cidr-finalizer"]},
        "spec": {"cidrs": [context.config.service_cidr.to_string()]},
        "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "", "lastTransitionTime": now(),
            "message": "Kubernetes Service CIDR is ready"}]}});
    ensure(context, "servicecidrs.networking.k8s.io", cidr).await?;
    aggregator::bootstrap(context).await?;
    kubernetes_service(context).await?;
    endpoints(context).await
}

/// `default/kubernetes`, at the first address of the service network.
async fn kubernetes_service(context: &Arc<Context>) -> Result<(), Status> {
    let address = context.config.service_cidr.nth(1).map(|address| address.to_string()).unwrap_or_default();
    let key = key::object("services", "default", "kubernetes");
    let snapshot = context.store.snapshot(Freshness::Linearizable).await?;
    if snapshot.get(&key).is_some() {
        return Ok(());
    }
    let mut service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {"clusterIP": address, "clusterIPs": [address], "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None", "type": "ClusterIP",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": context.config.secure_port}]},
        "status": {"loadBalancer": {}}});
    stamp(&mut service);
    let reservation = key::object("ipaddresses.networking.k8s.io", "", &address);
    let txn = Txn {
        preconditions: vec![Precondition::Absent(key.clone())],
        puts: vec![(key, object::encode(&service)), (reservation, object::encode(&ip_address(&address, &service)))],
        deletes: Vec::new(),
    };
    settle(context.store.commit(txn).await)
}

/// Where the Service leads, to begin with: this server. Which servers there are later is not known here.
async fn endpoints(context: &Arc<Context>) -> Result<(), Status> {
    let address = context.config.advertise_address.to_string();
    let port = context.config.secure_port;
    let family = if context.config.advertise_address.is_ipv4() { "IPv4" } else { "IPv6" };
    let endpoints = json!({"apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": address}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}]});
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "namespace": "default", "generation": 1,
            "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": family,
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}]});
    ensure(context, "endpoints", endpoints).await?;
    ensure(context, "endpointslices.discovery.k8s.io", slice).await
}

fn stamp(object: &mut Value) {
    let metadata = object.meta_mut();
    metadata.insert("uid".to_owned(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".to_owned(), now().into());
}

/// Creates the object unless it is there.
async fn ensure(context: &Arc<Context>, resource: &str, mut object: Value) -> Result<(), Status> {
    let key = key::object(resource, object.namespace(), object.name());
    if context.store.snapshot(Freshness::Linearizable).await?.get(&key).is_some() {
        return Ok(());
    }
    stamp(&mut object);
    create(context, key, &object).await
}

async fn create(context: &Arc<Context>, key: Bytes, object: &Value) -> Result<(), Status> {
    let txn = Txn {
        preconditions: vec![Precondition::Absent(key.clone())],
        puts: vec![(key, object::encode(object))],
        deletes: Vec::new(),
    };
    settle(context.store.commit(txn).await)
}

/// Another server that wrote the same object first has done our work.
fn settle(outcome: Result<mussel_store::Revision, CommitError>) -> Result<(), Status> {
    match outcome {
        Ok(_) | Err(CommitError::Refused { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
