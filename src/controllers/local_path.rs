//! Volumes on the nodes' own disks: the provisioner `rancher.io/local-path`, as with k3s, without helper pods.
//!
//! A claim's volume is a directory on the node that the scheduler has chosen. The node's kubelet makes and removes it when it is
//! asked to, by the API server's way to nodes; a node that cannot be reached is asked again when it is back.

mod volume;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use mussel_api::claim::{annotation, class_name};
use mussel_client::{Change, EventType, Informer, Recorder, WorkQueue, reference};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::Context;
use crate::control::{self, Key, follow, key_of, queue_all};
use crate::error::{Error, Outcome, gone_is_fine, is_already_exists, text};

const PROVISIONER: &str = "rancher.io/local-path";
/// On claims: who is asked for a volume, and where the pod goes.
const ASKED: &str = "volume.kubernetes.io/storage-provisioner";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On volumes: who made them.
const MADE_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On volumes, by local-path-provisioner's name: where the directory is.
const NODE: &str = "local.path.provisioner/selected-node";
/// Keeps a volume until its directory is gone (upstream's name).
const FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";
const CONFIG: (&str, &str, &str) = ("kube-system", "local-path-config", "config.json");
/// One claim does not wait for another's disk.
const WORKERS: usize = 4;

struct Provisioner {
    client: Client,
    recorder: Recorder,
    nodes: Informer<Node>,
    classes: Informer<StorageClass>,
}

/// Claims have a namespace in their key, volumes do not.
pub async fn run(context: Context, stop: CancellationToken) {
    if !context.config.local_storage {
        // Another provisioner of this name may be installed.
        return stop.cancelled().await;
    }
    let claims = context.informers.of::<PersistentVolumeClaim>();
    let volumes = context.informers.of::<PersistentVolume>();
    let nodes = context.informers.of::<Node>();
    let classes = context.informers.of::<StorageClass>();
    let provisioner = Provisioner {
        client: context.client(),
        recorder: context.recorder(&format!("{PROVISIONER}_local-path-provisioner")),
        nodes: nodes.clone(),
        classes: classes.clone(),
    };
    let queue = WorkQueue::new();
    let on_claim = |change: &Change<PersistentVolumeClaim>| {
        let Change::Applied { new: claim, .. } = change else { return };
        if volume::wants_one(claim) {
            queue.add(key_of(&**claim));
        }
    };
    let on_volume = |change: &Change<PersistentVolume>| {
        let Change::Applied { new: volume, .. } = change else { return };
        if volume::is_over(volume) {
            queue.add(key_of(&**volume));
        }
    };
    // A node that is back can do what it was asked for while it was away.
    let on_node = |change: &Change<Node>| {
        let Change::Applied { old, new } = change else { return };
        if volume::is_ready(new) && old.as_ref().is_none_or(|old| !volume::is_ready(old)) {
            volumes
                .list()
                .iter()
                .filter(|volume| volume::is_over(volume))
                .for_each(|volume| queue.add(key_of(&**volume)));
            claims.list().iter().filter(|claim| volume::wants_one(claim)).for_each(|claim| queue.add(key_of(&**claim)));
        }
    };
    let resync = || {
        queue_all(&claims, &queue);
        queue_all(&volumes, &queue);
    };
    tokio::join!(
        follow(claims.clone(), stop.clone(), on_claim, resync),
        follow(volumes.clone(), stop.clone(), on_volume, resync),
        follow(nodes.clone(), stop.clone(), on_node, resync),
        async {
            tokio::select! {
                () = stop.cancelled() => return,
                () = async { tokio::join!(nodes.synced(), classes.synced()); } => {}
            }
            control::work("local-path", queue.clone(), WORKERS, stop.clone(), |key| provisioner.reconcile(key)).await;
        },
    );
}

impl Provisioner {
    async fn reconcile(&self, key: Key) -> Outcome {
        // Read from the server: a volume must not be made twice.
        if key.0.is_empty() {
            let api: Api<PersistentVolume> = Api::all(self.client.clone());
            match api.get_opt(&key.1).await? {
                Some(volume) if volume::is_over(&volume) => self.take_back(volume).await?,
                _ => {}
            }
        } else {
            let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &key.0);
            match api.get_opt(&key.1).await? {
                Some(claim) if volume::wants_one(&claim) => self.provide(claim).await?,
                _ => {}
            }
        }
        Ok(None)
    }

    async fn provide(&self, claim: PersistentVolumeClaim) -> Result<(), Error> {
        let Some(class) = class_name(&claim).and_then(|name| self.classes.get("", name)) else { return Ok(()) };
        let selected = annotation(&claim.metadata, SELECTED_NODE);
        if selected.is_none() && class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer") {
            return Ok(());
        }
        let failed = |reason: &str| {
            let class = class.metadata.name.as_deref().unwrap_or_default();
            let message = format!("failed to provision volume with StorageClass \"{class}\": {reason}");
            self.recorder.event(reference(&claim), EventType::Warning, "ProvisioningFailed", message);
        };
        let Some(selected) = selected else {
            failed("configuration error, no node was specified");
            return Ok(());
        };
        let Some(node) = self.nodes.get("", selected) else {
            failed(&format!("node {selected:?} is gone"));
            return self.choose_anew(&claim).await;
        };
        let (namespace, name) = key_of(&claim);
        let volume = match volume::new(&claim, &class, &node, &self.config().await?) {
            Ok(volume) => volume,
            Err(refused) => {
                failed(&refused.to_string());
                // Nothing but a change of the configuration helps, which nobody tells of.
                return Err(Error::Unfinished(refused.to_string()));
            }
        };
        let message = format!("External provisioner is provisioning volume for claim \"{namespace}/{name}\"");
        self.recorder.event(reference(&claim), EventType::Normal, "Provisioning", message);
        if let Err(error) = self.ask(selected, "make", volume::path(&volume)).await {
            failed(&text(&error));
            return Err(error.into());
        }
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        match api.create(&PostParams::default(), &volume).await {
            Ok(_) => {}
            // By a pass that was cut off.
            Err(error) if is_already_exists(&error) => {}
            Err(error) => return Err(error.into()),
        }
        let message =
            format!("Successfully provisioned volume {}", volume.metadata.name.as_deref().unwrap_or_default());
        self.recorder.event(reference(&claim), EventType::Normal, "ProvisioningSucceeded", message);
        Ok(())
    }

    /// Lets the scheduler choose another node.
    async fn choose_anew(&self, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        let (namespace, name) = key_of(claim);
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
        let version = &claim.metadata.resource_version;
        let patch = json!({"metadata": {"resourceVersion": version, "annotations": {SELECTED_NODE: null}}});
        gone_is_fine(api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await)
    }

    /// Removes the directory of a volume whose claim is gone, and then the volume.
    async fn take_back(&self, volume: PersistentVolume) -> Result<(), Error> {
        if volume::is_to_be_removed(&volume) {
            let node = annotation(&volume.metadata, NODE).unwrap_or_default();
            let path = volume::path(&volume);
            if self.nodes.get("", node).is_none() {
                let message = format!("node {node:?} is no part of the cluster any more; {path} stays on it");
                self.recorder.event(reference(&volume), EventType::Warning, "VolumeFailedDelete", message);
            } else if let Err(error) = self.ask(node, "remove", path).await {
                self.recorder.event(reference(&volume), EventType::Warning, "VolumeFailedDelete", text(&error));
                return Err(error.into());
            }
        }
        let (_, name) = key_of(&volume);
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        if volume.metadata.deletion_timestamp.is_none() {
            gone_is_fine(api.delete(&name, &DeleteParams::default()).await)?;
        }
        let finalizers = volume.metadata.finalizers.iter().flatten().filter(|finalizer| *finalizer != FINALIZER);
        let left: Vec<&String> = finalizers.collect();
        // Of this volume, whatever else changes of it meanwhile.
        let patch = json!({"metadata": {"uid": volume.metadata.uid, "finalizers": left}});
        gone_is_fine(api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await)
    }

    /// Has the node's kubelet make or remove a directory.
    async fn ask(&self, node: &str, what: &str, path: &str) -> Result<(), kube::Error> {
        let body = json!({"path": path}).to_string().into_bytes();
        let request = http::Request::post(format!("/api/v1/nodes/{node}/proxy/localVolumes/{what}"))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(kube::Error::HttpError)?;
        self.client.request_text(request).await.map(drop)
    }

    async fn config(&self) -> Result<volume::Paths, Error> {
        let (namespace, name, key) = CONFIG;
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let config = api.get_opt(name).await?.and_then(|config| config.data).unwrap_or_default();
        volume::Paths::parse(config.get(key).map(String::as_str).unwrap_or_default())
            .map_err(|error| Error::Unfinished(format!("ConfigMap {namespace}/{name}, {key}: {error}")))
    }
}

/// Its node's name for itself, by which volumes are bound to it.
fn hostname(node: &Arc<Node>) -> String {
    let label = node.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/hostname"));
    label.or(node.metadata.name.as_ref()).cloned().unwrap_or_default()
}
