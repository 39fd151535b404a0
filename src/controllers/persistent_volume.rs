//! PersistentVolumes and the claims on them: binds the ones to the others, keeps both while they are in use.
//!
//! A claim whose class waits for a first consumer is bound to a volume that the scheduler has set aside for it. Making
//! volumes is a provisioner's business: it is told by an annotation on the claim.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus, PersistentVolumeStatus, Pod,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::PostParams;
use kube::{Api, Client};
use mussel_api::claim::{BIND_COMPLETED, annotation, capacity, class_name, is_for, phase, suits};
use mussel_api::selector::LabelSelector;
use mussel_client::{Change, EventType, Informer, Recorder, WorkQueue, reference};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::Context;
use crate::control::{self, Key, follow, key_of, queue_all};
use crate::error::{Error, Outcome, gone_is_fine};
use crate::pods;

const BOUND_BY_US: &str = "pv.kubernetes.io/bound-by-controller";
const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const PROVISIONER_BETA: &str = "volume.beta.kubernetes.io/storage-provisioner";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";

struct Controller {
    client: Client,
    recorder: Recorder,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    pods: Informer<Pod>,
}

/// What a claim should look like after a pass.
#[derive(Debug, PartialEq)]
enum Binding {
    /// This volume is, or is to be, the claim's.
    Volume(Arc<PersistentVolume>),
    /// No volume for now, and why.
    Waits { reason: &'static str, message: String, provisioner: Option<String> },
    /// The volume it was bound to is gone.
    Lost,
}

/// Claims have a namespace in their key, volumes do not.
pub async fn run(context: Context, stop: CancellationToken) {
    let claims = context.informers.of::<PersistentVolumeClaim>();
    let volumes = context.informers.of::<PersistentVolume>();
    let classes = context.informers.of::<StorageClass>();
    let pods = context.informers.of::<Pod>();
    let queue = WorkQueue::new();
    let controller = Controller {
        client: context.client(),
        recorder: context.recorder("persistentvolume-controller"),
        volumes: volumes.clone(),
        classes: classes.clone(),
        pods: pods.clone(),
    };
    let unbound = || {
        claims.list().into_iter().filter(|claim| phase(claim) != "Bound").for_each(|claim| queue.add(key_of(&*claim)));
    };
    let on_claim = |change: &Change<PersistentVolumeClaim>| {
        let (Change::Applied { new: claim, .. } | Change::Deleted(claim)) = change else { return };
        queue.add(key_of(&**claim));
        let named = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).filter(|name| !name.is_empty());
        named.into_iter().for_each(|name| queue.add((String::new(), name)));
    };
    let on_volume = |change: &Change<PersistentVolume>| {
        let (Change::Applied { new: volume, .. } | Change::Deleted(volume)) = change else { return };
        queue.add(key_of(&**volume));
        match volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) {
            Some(owner) => {
                queue.add((owner.namespace.clone().unwrap_or_default(), owner.name.clone().unwrap_or_default()));
            }
            None => unbound(),
        }
    };
    let on_pod = |change: &Change<Pod>| {
        let pod = match change {
            Change::Deleted(pod) => pod,
            Change::Applied { new, .. } if pods::is_terminal(new) => new,
            _ => return,
        };
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        claims_of(pod).into_iter().for_each(|name| queue.add((namespace.clone(), name)));
    };
    let resync = || {
        queue_all(&claims, &queue);
        queue_all(&volumes, &queue);
    };
    tokio::join!(
        follow(claims.clone(), stop.clone(), on_claim, resync),
        follow(volumes.clone(), stop.clone(), on_volume, resync),
        follow(classes.clone(), stop.clone(), |_| unbound(), unbound),
        follow(pods.clone(), stop.clone(), on_pod, resync),
        async {
            tokio::select! {
                () = stop.cancelled() => return,
                () = async { tokio::join!(claims.synced(), volumes.synced(), classes.synced(), pods.synced()); } => (),
            }
            // One at a time: two claims must not be promised one volume.
            control::work("persistentvolume", queue.clone(), 1, stop.clone(), |key| controller.reconcile(key)).await;
        },
    );
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Outcome {
        if key.0.is_empty() {
            // Read from the server: what we wrote a moment ago may not have reached the informer.
            let api: Api<PersistentVolume> = Api::all(self.client.clone());
            match api.get_opt(&key.1).await? {
                Some(volume) => self.volume(volume).await?,
                None => return Ok(None),
            }
        } else {
            let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &key.0);
            match api.get_opt(&key.1).await? {
                Some(claim) => self.claim(claim).await?,
                None => return Ok(None),
            }
        }
        Ok(None)
    }

    async fn claim(&self, claim: PersistentVolumeClaim) -> Result<(), Error> {
        if claim.metadata.deletion_timestamp.is_some() {
            return self.release_claim(claim).await;
        }
        match self.binding(&claim).await? {
            Binding::Volume(volume) => self.bind(claim, &volume).await,
            Binding::Lost => {
                if phase(&claim) != "Lost" {
                    let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!".to_owned();
                    self.recorder.event(reference(&claim), EventType::Warning, "ClaimLost", message);
                }
                self.set_claim_status(claim, "Lost", None).await
            }
            Binding::Waits { reason, message, provisioner } => {
                let mut claim = claim;
                if let Some(provisioner) = provisioner {
                    claim = self.ask_provisioner(claim, &provisioner).await?;
                }
                if !reason.is_empty() {
                    self.recorder.event(reference(&claim), EventType::Normal, reason, message);
                }
                self.set_claim_status(claim, "Pending", None).await
            }
        }
    }

    async fn binding(&self, claim: &PersistentVolumeClaim) -> Result<Binding, Error> {
        let named = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
        if !named.is_empty() {
            let api: Api<PersistentVolume> = Api::all(self.client.clone());
            let complete = annotation(&claim.metadata, BIND_COMPLETED).is_some();
            return Ok(match api.get_opt(named).await? {
                Some(volume) if may_have(&volume, claim) => Binding::Volume(Arc::new(volume)),
                Some(_) if !complete => Binding::Waits {
                    reason: "FailedBinding",
                    message: format!("volume {named:?} already bound to a different claim."),
                    provisioner: None,
                },
                None if !complete => Binding::Waits { reason: "", message: String::new(), provisioner: None },
                _ => Binding::Lost,
            });
        }
        let class = class_name(claim).and_then(|name| self.classes.get("", name));
        Ok(choose(claim, &self.volumes.list(), class.as_deref()))
    }

    /// Volume first, then the claim: each step can be repeated, and a claim never points at a volume that is not its own.
    async fn bind(&self, claim: PersistentVolumeClaim, volume: &PersistentVolume) -> Result<(), Error> {
        let (namespace, name) = key_of(&claim);
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let mut volume = volume.clone();
        let volume_name = volume.metadata.name.clone().unwrap_or_default();
        let spec = volume.spec.get_or_insert_default();
        let mine = spec.claim_ref.as_ref().is_some_and(|owner| owner.uid == claim.metadata.uid);
        if !mine {
            if spec.claim_ref.is_none() {
                annotate(&mut volume.metadata, BOUND_BY_US, "yes");
            }
            spec.claim_ref = Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("PersistentVolumeClaim".to_owned()),
                namespace: Some(namespace.clone()),
                name: Some(name.clone()),
                uid: claim.metadata.uid.clone(),
                resource_version: claim.metadata.resource_version.clone(),
                field_path: None,
            });
            volume = volumes.replace(&volume_name, &PostParams::default(), &volume).await?;
        }
        volume = self.set_volume_phase(volume, "Bound").await?;
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
        let mut bound = claim.clone();
        let spec = bound.spec.get_or_insert_default();
        if spec.volume_name.as_deref() != Some(&volume_name) {
            spec.volume_name = Some(volume_name);
            annotate(&mut bound.metadata, BOUND_BY_US, "yes");
        }
        annotate(&mut bound.metadata, BIND_COMPLETED, "yes");
        let claim = if bound == claim { claim } else { claims.replace(&name, &PostParams::default(), &bound).await? };
        self.set_claim_status(claim, "Bound", Some(&volume)).await
    }

    async fn set_claim_status(
        &self,
        claim: PersistentVolumeClaim,
        phase: &str,
        volume: Option<&PersistentVolume>,
    ) -> Result<(), Error> {
        let old = claim.status.clone().unwrap_or_default();
        let mut status = PersistentVolumeClaimStatus { phase: Some(phase.to_owned()), ..old.clone() };
        let spec = volume.and_then(|volume| volume.spec.as_ref());
        status.access_modes = spec.and_then(|spec| spec.access_modes.clone());
        // Capacity changes only by resizing, which somebody else reports.
        status.capacity = match (&old.capacity, spec) {
            (Some(known), Some(_)) if !known.is_empty() => Some(known.clone()),
            _ => spec.and_then(|spec| spec.capacity.clone()),
        };
        if status == old {
            return Ok(());
        }
        let (namespace, name) = key_of(&claim);
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
        let updated = PersistentVolumeClaim { status: Some(status), ..claim };
        gone_is_fine(api.replace_status(&name, &PostParams::default(), &updated).await)
    }

    async fn ask_provisioner(
        &self,
        mut claim: PersistentVolumeClaim,
        provisioner: &str,
    ) -> Result<PersistentVolumeClaim, Error> {
        if annotation(&claim.metadata, PROVISIONER) == Some(provisioner) {
            return Ok(claim);
        }
        annotate(&mut claim.metadata, PROVISIONER, provisioner);
        annotate(&mut claim.metadata, PROVISIONER_BETA, provisioner);
        let (namespace, name) = key_of(&claim);
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
        Ok(api.replace(&name, &PostParams::default(), &claim).await?)
    }

    async fn release_claim(&self, claim: PersistentVolumeClaim) -> Result<(), Error> {
        let (namespace, name) = key_of(&claim);
        let in_use = self.pods.list_in(&namespace).iter().any(|pod| {
            let placed = pod.spec.as_ref().is_some_and(|s| s.node_name.as_deref().is_some_and(|n| !n.is_empty()));
            placed && !pods::is_terminal(pod) && claims_of(pod).contains(&name)
        });
        if in_use {
            return Ok(());
        }
        let Some(metadata) = without_finalizer(&claim.metadata, CLAIM_PROTECTION) else { return Ok(()) };
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
        let updated = PersistentVolumeClaim { metadata, ..claim };
        gone_is_fine(api.replace(&name, &PostParams::default(), &updated).await)
    }

    async fn volume(&self, volume: PersistentVolume) -> Result<(), Error> {
        let owner = volume.spec.as_ref().and_then(|spec| spec.claim_ref.clone());
        let set_aside = owner.as_ref().is_none_or(|owner| owner.uid.as_deref().unwrap_or_default().is_empty());
        let mut released = false;
        let volume = if set_aside {
            self.set_volume_phase(volume, "Available").await?
        } else {
            let owner = owner.unwrap_or_default();
            let namespace = owner.namespace.as_deref().unwrap_or_default();
            let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
            let claim = api.get_opt(owner.name.as_deref().unwrap_or_default()).await?;
            match claim.filter(|claim| claim.metadata.uid == owner.uid) {
                // The claim's own pass does the rest.
                Some(_) => volume,
                None => {
                    released = true;
                    self.set_volume_phase(volume, "Released").await?
                }
            }
        };
        let bound = volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        if volume.metadata.deletion_timestamp.is_some() && (released || !bound) {
            let Some(metadata) = without_finalizer(&volume.metadata, VOLUME_PROTECTION) else { return Ok(()) };
            let (_, name) = key_of(&volume);
            let api: Api<PersistentVolume> = Api::all(self.client.clone());
            let updated = PersistentVolume { metadata, ..volume };
            gone_is_fine(api.replace(&name, &PostParams::default(), &updated).await)?;
        }
        Ok(())
    }

    async fn set_volume_phase(&self, volume: PersistentVolume, phase: &str) -> Result<PersistentVolume, Error> {
        let old = volume.status.clone().unwrap_or_default();
        if old.phase.as_deref() == Some(phase) {
            return Ok(volume);
        }
        let status = PersistentVolumeStatus {
            phase: Some(phase.to_owned()),
            last_phase_transition_time: Some(Time(Timestamp::now())),
            message: None,
            reason: None,
        };
        let (_, name) = key_of(&volume);
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let updated = PersistentVolume { status: Some(status), ..volume };
        Ok(api.replace_status(&name, &PostParams::default(), &updated).await?)
    }
}

/// Whether the volume is the claim's, or free to become it.
fn may_have(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let owner = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    is_for(volume, claim) || (owner.is_none() && volume.metadata.deletion_timestamp.is_none())
}

/// The volume set aside for the claim, else the smallest that does.
fn choose(claim: &PersistentVolumeClaim, volumes: &[Arc<PersistentVolume>], class: Option<&StorageClass>) -> Binding {
    let selector = claim.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let labels = selector.map_or_else(LabelSelector::everything, |selector| {
        LabelSelector::from_value(Some(&json!(selector))).unwrap_or_else(|_| LabelSelector::nothing())
    });
    let delays = class.and_then(|class| class.volume_binding_mode.as_deref()) == Some("WaitForFirstConsumer");
    let selected = annotation(&claim.metadata, SELECTED_NODE).is_some();
    let fits = |volume: &&Arc<PersistentVolume>| suits(volume, claim, &labels) && (!delays || is_for(volume, claim));
    let best = volumes
        .iter()
        .filter(fits)
        .min_by_key(|volume| (!is_for(volume, claim), capacity(volume), volume.metadata.name.clone()));
    if let Some(volume) = best {
        return Binding::Volume(volume.clone());
    }
    if delays && !selected {
        return Binding::Waits {
            reason: "WaitForFirstConsumer",
            message: "waiting for first consumer to be created before binding".to_owned(),
            provisioner: None,
        };
    }
    match class {
        Some(class) if class.provisioner != NO_PROVISIONER => Binding::Waits {
            reason: "ExternalProvisioning",
            message: format!(
                "Waiting for a volume to be created either by the external provisioner '{}' or manually by the system \
                 administrator. If volume creation is delayed, please verify that the provisioner is running and \
                 correctly registered.",
                class.provisioner
            ),
            provisioner: Some(class.provisioner.clone()),
        },
        _ if class_name(claim).is_some() && class.is_none() => Binding::Waits {
            reason: "ProvisioningFailed",
            message: format!("storageclass.storage.k8s.io {:?} not found", class_name(claim).unwrap_or_default()),
            provisioner: None,
        },
        _ => Binding::Waits {
            reason: "FailedBinding",
            message: "no persistent volumes available for this claim and no storage class is set".to_owned(),
            provisioner: None,
        },
    }
}

/// Names of the claims that a Pod mounts, those of its ephemeral volumes included.
fn claims_of(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    volumes
        .filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(claim), _) => Some(claim.claim_name.clone()),
            (None, Some(_)) => Some(format!("{name}-{}", volume.name)),
            (None, None) => None,
        })
        .collect()
}

fn annotate(metadata: &mut ObjectMeta, key: &str, value: &str) {
    let annotations: &mut BTreeMap<String, String> = metadata.annotations.get_or_insert_default();
    annotations.insert(key.to_owned(), value.to_owned());
}

/// `None` when it does not have the finalizer.
fn without_finalizer(metadata: &ObjectMeta, finalizer: &str) -> Option<ObjectMeta> {
    let finalizers = metadata.finalizers.as_ref()?;
    let left: Vec<String> = finalizers.iter().filter(|f| *f != finalizer).cloned().collect();
    (left.len() < finalizers.len()).then(|| ObjectMeta { finalizers: Some(left), ..metadata.clone() })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn claim(class: &str, extra: Value) -> PersistentVolumeClaim {
        let mut claim = json!({"metadata": {"name": "c", "namespace": "a", "uid": "1"}, "spec": {"accessModes":
            ["ReadWriteOnce"], "storageClassName": class, "resources": {"requests": {"storage": "2Gi"}}}});
        for (key, value) in extra.as_object().unwrap() {
            claim["spec"][key] = value.clone();
        }
        serde_json::from_value(claim).unwrap()
    }

    fn volume(name: &str, size: &str, class: &str, owner: Value) -> Arc<PersistentVolume> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {"name": name}}, "spec": {
                "capacity": {"storage": size}, "storageClassName": class, "claimRef": owner,
                "accessModes": ["ReadWriteOnce", "ReadOnlyMany"]}, "status": {"phase": "Available"}}))
            .unwrap(),
        )
    }

    fn class(provisioner: &str, mode: &str) -> StorageClass {
        serde_json::from_value(json!({"metadata": {"name": "fast"}, "provisioner": provisioner,
            "volumeBindingMode": mode}))
        .unwrap()
    }

    fn check(claim: &PersistentVolumeClaim, class: Option<StorageClass>, expected: &str) {
        let other = json!({"namespace": "a", "name": "other"});
        let mine = json!({"namespace": "a", "name": "c"});
        let volumes = [
            volume("small", "1Gi", "", Value::Null),
            volume("large", "10Gi", "", Value::Null),
            volume("right", "2Gi", "", Value::Null),
            volume("taken", "2Gi", "", other),
            volume("mine", "50Gi", "fast", mine),
            volume("free", "2Gi", "fast", Value::Null),
        ];
        let found = match choose(claim, &volumes, class.as_ref()) {
            Binding::Volume(volume) => volume.metadata.name.clone().unwrap(),
            Binding::Waits { reason, .. } => reason.to_owned(),
            Binding::Lost => "lost".to_owned(),
        };
        assert_eq!(found, expected, "{claim:?}");
    }

    #[test]
    fn claims_get_the_smallest_volume_that_does() {
        check(&claim("", json!({})), None, "right");
        check(&claim("", json!({"resources": {"requests": {"storage": "3Gi"}}})), None, "large");
        check(&claim("", json!({"selector": {"matchLabels": {"name": "large"}}})), None, "large");
        check(&claim("", json!({"accessModes": ["ReadWriteMany"]})), None, "FailedBinding");
        check(&claim("nope", json!({})), None, "ProvisioningFailed");
    }

    #[test]
    fn what_was_set_aside_comes_first_and_waiting_claims_take_nothing_else() {
        check(&claim("fast", json!({})), Some(class("x", "Immediate")), "mine");
        check(&claim("fast", json!({})), Some(class("x", "WaitForFirstConsumer")), "mine");
        let many = json!({"accessModes": ["ReadWriteMany"]});
        check(&claim("fast", many.clone()), Some(class("x", "WaitForFirstConsumer")), "WaitForFirstConsumer");
        check(&claim("fast", many.clone()), Some(class("x", "Immediate")), "ExternalProvisioning");
        check(&claim("fast", many), Some(class(NO_PROVISIONER, "Immediate")), "FailedBinding");
    }

    #[test]
    fn the_last_finalizer_goes_but_others_stay() {
        let meta = |list: &[&str]| ObjectMeta {
            finalizers: Some(list.iter().map(|f| (*f).to_owned()).collect()),
            ..ObjectMeta::default()
        };
        let left = without_finalizer(&meta(&["a", CLAIM_PROTECTION]), CLAIM_PROTECTION).unwrap();
        assert_eq!(left.finalizers.unwrap(), ["a"]);
        assert_eq!(without_finalizer(&meta(&["a"]), CLAIM_PROTECTION), None);
    }
}
