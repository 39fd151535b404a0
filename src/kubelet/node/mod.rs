//! The Node object: registration, status, and the lease that says we are alive.

mod status;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use mussel_client::{Change, Changes, EventType};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::eviction::Pressure;
use crate::shared::{RuntimeState, Shared};

/// Others take us for dead when it is not renewed for 40 s.
const LEASE_SECONDS: i32 = 40;
const LEASE_PERIOD: Duration = Duration::from_secs(10);
const LEASE_NAMESPACE: &str = "kube-node-lease";
const RUNTIME_CHECK: Duration = Duration::from_secs(30);
const RUNTIME_CHECK_STARTING: Duration = Duration::from_millis(200);

/// Watches the runtime's own conditions. Quick until it is ready, then now and then: a runtime cannot push them.
pub async fn watch_runtime(shared: Arc<Shared>) {
    loop {
        let state = match shared.cri.status().await {
            Ok(answer) => {
                let conditions = answer.status.map(|s| s.conditions).unwrap_or_default();
                let find = |name: &str| conditions.iter().find(|c| c.r#type == name);
                let bad = conditions.iter().find(|c| !c.status);
                RuntimeState {
                    runtime: find("RuntimeReady").is_none_or(|c| c.status),
                    network: find("NetworkReady").is_none_or(|c| c.status),
                    message: bad
                        .map(|c| {
                            format!(
                                "container runtime network not ready: {}={} reason:{} message:{}",
                                c.r#type, c.status, c.reason, c.message
                            )
                        })
                        .unwrap_or_default(),
                }
            }
            Err(error) => RuntimeState { message: format!("container runtime is down: {error}"), ..Default::default() },
        };
        if state.runtime
            && shared.runtime_name.get().is_none()
            && let Ok(version) = shared.cri.version().await
        {
            let _ = shared.runtime_version.set(version.runtime_version);
            let _ = shared.runtime_name.set(version.runtime_name);
        }
        let ready = state.runtime && state.network;
        let changed = shared.runtime.send_if_modified(|known| {
            let changed = *known != state;
            if changed {
                *known = state;
            }
            changed
        });
        if changed {
            shared.registry.wake_all();
        }
        let wait = if ready { RUNTIME_CHECK } else { RUNTIME_CHECK_STARTING };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shared.stop.cancelled() => return,
        }
    }
}

/// Registers the Node and keeps its status.
pub async fn run(shared: Arc<Shared>, mut pressure: watch::Receiver<Pressure>) {
    let mut wait = Duration::from_millis(100);
    loop {
        match register(&shared).await {
            Ok(()) => break,
            Err(error) => tracing::warn!(%error, "cannot register the node"),
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shared.stop.cancelled() => return,
        }
        wait = (wait * 2).min(Duration::from_secs(7));
    }
    let about = k8s_openapi::api::core::v1::ObjectReference {
        kind: Some("Node".into()),
        name: Some(shared.config.node_name.clone()),
        uid: Some(shared.config.node_name.clone()),
        ..Default::default()
    };
    shared.recorder.event(about.clone(), EventType::Normal, "Starting", "Starting kubelet.".into());
    let mut changes = shared.node.changes();
    let mut runtime = shared.runtime.subscribe();
    let mut was_ready = None;
    let mut next;
    let mut wait = Duration::from_millis(200);
    loop {
        let state = runtime.borrow_and_update().clone();
        let pressed = *pressure.borrow_and_update();
        match update(&shared, &state, pressed).await {
            Ok(()) => {
                next = Instant::now() + shared.config.tuning.status_period;
                wait = Duration::from_millis(200);
                let ready = state.runtime && state.network;
                if was_ready != Some(ready) {
                    let reason = if ready { "NodeReady" } else { "NodeNotReady" };
                    let text = format!("Node {} status is now: {reason}", shared.config.node_name);
                    shared.recorder.event(about.clone(), EventType::Normal, reason, text);
                    was_ready = Some(ready);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot update the node's status");
                if matches!(&error, kube::Error::Api(s) if s.code == 404)
                    && let Err(error) = register(&shared).await
                {
                    tracing::warn!(%error, "cannot register the node again");
                }
                next = Instant::now() + wait;
                wait = (wait * 2).min(Duration::from_secs(10));
            }
        }
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            changed = runtime.changed() => if changed.is_err() { return },
            changed = pressure.changed() => if changed.is_err() { return },
            () = called_silent(&mut changes, &shared.config.node_name) => {}
            () = sleep_until(next) => {}
        }
    }
}

/// Waits until somebody says of this node that it is not heard of.
///
/// # Cancel safety
/// A change that was not looked at stays.
async fn called_silent(changes: &mut Changes<Node>, name: &str) {
    loop {
        match changes.next().await {
            Some(Change::Applied { new, .. }) if new.metadata.name.as_deref() == Some(name) => {
                let conditions = new.status.iter().flat_map(|status| status.conditions.iter().flatten());
                if conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "Unknown") {
                    return;
                }
            }
            Some(_) => {}
            None => return std::future::pending().await,
        }
    }
}

async fn register(shared: &Shared) -> Result<(), kube::Error> {
    let config = &shared.config;
    let api: Api<Node> = Api::all(config.client.clone());
    let mut labels = config.labels.clone();
    for (key, value) in [
        ("kubernetes.io/hostname", config.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", shared.machine.architecture),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", shared.machine.architecture),
    ] {
        labels.entry(key.into()).or_insert_with(|| value.into());
    }
    let mut annotations = config.annotations.clone();
    annotations.insert("volumes.kubernetes.io/controller-managed-attach-detach".to_owned(), "true".to_owned());
    let state = shared.runtime.borrow().clone();
    let wanted = status::compute(shared, &state, Pressure::default(), None, Vec::new()).await;
    let node = Node {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            labels: Some(labels.clone()),
            annotations: Some(annotations.clone()),
            ..Default::default()
        },
        spec: Some(NodeSpec {
            provider_id: config.provider_id.clone(),
            taints: Some(config.taints.clone()).filter(|t| !t.is_empty()),
            ..Default::default()
        }),
        status: Some(wanted),
    };
    match api.create(&PostParams::default(), &node).await {
        Ok(_) => {
            tracing::info!(node = config.node_name, "registered the node");
            return Ok(());
        }
        Err(kube::Error::Api(answer)) if answer.code == 409 => {}
        Err(error) => return Err(error),
    }
    // It was here before: what we say of it is brought up to date, all else is left alone.
    let found = api.get(&config.node_name).await?;
    let mut change = json!({});
    for (field, ours, found) in
        [("labels", &labels, &found.metadata.labels), ("annotations", &annotations, &found.metadata.annotations)]
    {
        if ours.iter().any(|(k, v)| found.as_ref().and_then(|found| found.get(k)) != Some(v)) {
            change["metadata"][field] = json!(ours);
        }
    }
    let provider = found.spec.as_ref().and_then(|s| s.provider_id.as_ref());
    if provider.is_none() && config.provider_id.is_some() {
        change["spec"] = json!({"providerID": config.provider_id});
    }
    if change != json!({}) {
        api.patch(&config.node_name, &PatchParams::default(), &Patch::Merge(change)).await?;
    }
    Ok(())
}

async fn update(shared: &Shared, state: &RuntimeState, pressure: Pressure) -> Result<(), kube::Error> {
    let api: Api<Node> = Api::all(shared.config.client.clone());
    let found = api.get(&shared.config.node_name).await?;
    let images = status::images(shared).await;
    let old = found.status.unwrap_or_default();
    let new = status::compute(shared, state, pressure, Some(&old), images).await;
    let Some(change) = difference(&old, &new) else { return Ok(()) };
    let body = json!({"status": change});
    api.patch_status(&shared.config.node_name, &PatchParams::default(), &Patch::Strategic(body)).await.map(drop)
}

/// Tells the runtime the node's pod CIDR when it gets one. Ours has it from elsewhere; others make networks of it.
pub async fn follow_pod_cidr(shared: Arc<Shared>) {
    let mut changes = shared.node.changes();
    let mut told = None;
    loop {
        tokio::select! {
            change = changes.next() => if change.is_none() { return },
            () = shared.stop.cancelled() => return,
        }
        let node = shared.node.get("", &shared.config.node_name);
        let pod_cidr = node.and_then(|n| n.spec.as_ref().and_then(|s| s.pod_cidr.clone()));
        if pod_cidr.is_some() && pod_cidr != told {
            if let Err(error) = shared.cri.set_pod_cidr(pod_cidr.as_deref().unwrap_or_default()).await {
                tracing::warn!(%error, "the runtime does not take the pod CIDR");
                continue;
            }
            told = pod_cidr;
        }
    }
}

/// The fields that differ. Conditions carry a heartbeat, so they always do.
fn difference(old: &NodeStatus, new: &NodeStatus) -> Option<Value> {
    let (Ok(old), Ok(Value::Object(new))) = (serde_json::to_value(old), serde_json::to_value(new)) else { return None };
    let mut change: serde_json::Map<String, Value> =
        new.into_iter().filter(|(key, value)| old.get(key) != Some(value)).collect();
    if let Some(Value::Array(list)) = change.get_mut("addresses") {
        list.insert(0, json!({"$patch": "replace"}));
    }
    (!change.is_empty()).then_some(Value::Object(change))
}

/// Renews the lease. It is a tiny object, so that saying "alive" costs little.
pub async fn renew_lease(shared: Arc<Shared>) {
    let api: Api<Lease> = Api::namespaced(shared.config.client.clone(), LEASE_NAMESPACE);
    let name = shared.config.node_name.clone();
    let mut known: Option<Lease> = None;
    loop {
        let began = Instant::now();
        let result = renew(&shared, &api, &name, known.take()).await;
        let wait = match result {
            Ok(lease) => {
                known = Some(lease);
                LEASE_PERIOD
            }
            Err(error) => {
                tracing::debug!(%error, "cannot renew the node's lease");
                Duration::from_secs(1)
            }
        };
        tokio::select! {
            () = sleep_until(began + wait) => {}
            () = shared.stop.cancelled() => return,
        }
    }
}

async fn renew(shared: &Shared, api: &Api<Lease>, name: &str, known: Option<Lease>) -> Result<Lease, kube::Error> {
    let now = MicroTime(Timestamp::now());
    let found = match known {
        Some(lease) => Some(lease),
        None => api.get_opt(name).await?,
    };
    // The lease goes with its node. At first it may be there before this node has heard of its own object.
    let node = shared.node.get("", name);
    let owners = node.and_then(|n| n.metadata.uid.clone()).map(|uid| {
        vec![OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: name.to_owned(),
            uid,
            ..Default::default()
        }]
    });
    if let Some(mut lease) = found {
        if lease.metadata.owner_references.as_ref().is_none_or(Vec::is_empty) {
            lease.metadata.owner_references = owners;
        }
        let spec = lease.spec.get_or_insert_default();
        spec.renew_time = Some(now);
        spec.holder_identity = Some(name.to_owned());
        spec.lease_duration_seconds = Some(LEASE_SECONDS);
        return api.replace(name, &PostParams::default(), &lease).await;
    }
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(LEASE_NAMESPACE.into()),
            owner_references: owners,
            ..Default::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.to_owned()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: Some(now),
            ..Default::default()
        }),
    };
    api.create(&PostParams::default(), &lease).await
}
