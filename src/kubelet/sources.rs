//! Where pods come from: the API, manifests on this node, and what was kept on disk for a start without a server.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use inotify::{Inotify, WatchMask};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus, Toleration};
use mussel_client::Change;
use sha2::{Digest as _, Sha256};

use crate::objects::write_private;
use crate::shared::Shared;
use crate::{mirror, pod, worker};

/// How long a start waits for the API before it goes on with what is on disk.
const WAIT: Duration = Duration::from_secs(5);
/// A manifest is a few kilobytes.
const MANIFEST_BYTES_MAX: u64 = 1024 * 1024;

/// Follows the pods that the API assigns to this node.
pub async fn follow_api(shared: Arc<Shared>) {
    let mut kept = Checkpoints::open(shared.config.root_dir.join("checkpoints/pods"));
    let synced = tokio::select! {
        result = tokio::time::timeout(WAIT, shared.api_pods.synced()) => result.is_ok(),
        () = shared.stop.cancelled() => return,
    };
    if !synced {
        let pods = kept.load();
        tracing::warn!(pods = pods.len(), "no server can be reached; starting the pods that were here before");
        for pod in pods {
            worker::upsert(&shared, Arc::new(pod));
        }
        tokio::select! {
            () = shared.api_pods.synced() => {}
            () = shared.stop.cancelled() => return,
        }
    }
    let mut changes = shared.api_pods.changes();
    resync(&shared, &mut kept);
    loop {
        let change = tokio::select! {
            change = changes.next() => change,
            () = shared.stop.cancelled() => return,
        };
        match change {
            None => return,
            Some(Change::Applied { new, .. }) => apply(&shared, &mut kept, new),
            Some(Change::Deleted(old)) => {
                if pod::is_mirror(&old) {
                    wake_static(&shared, &old);
                } else {
                    kept.remove(pod::uid(&old));
                    worker::remove(&shared, pod::uid(&old));
                }
            }
            Some(Change::Resync) => resync(&shared, &mut kept),
        }
    }
}

fn apply(shared: &Arc<Shared>, kept: &mut Checkpoints, pod: Arc<Pod>) {
    if pod::is_mirror(&pod) {
        wake_static(shared, &pod);
        return;
    }
    kept.keep(&pod);
    worker::upsert(shared, pod);
}

fn wake_static(shared: &Shared, mirror: &Pod) {
    if let Some((pod, _)) = shared.registry.find(pod::namespace(mirror), pod::name(mirror)) {
        shared.registry.wake(pod::uid(&pod));
    }
}

/// Makes the node's pods what the API says now, whatever was missed.
fn resync(shared: &Arc<Shared>, kept: &mut Checkpoints) {
    let listed = shared.api_pods.list();
    let uids: HashSet<&str> = listed.iter().map(|p| pod::uid(p)).collect();
    for (pod, _) in shared.registry.list() {
        if !pod::is_static(&pod) && !uids.contains(pod::uid(&pod)) {
            kept.remove(pod::uid(&pod));
            worker::remove(shared, pod::uid(&pod));
        }
    }
    kept.retain(&uids);
    for pod in listed {
        apply(shared, kept, pod);
    }
}

/// Pods on disk, so that they come back after a reboot without a server.
struct Checkpoints {
    dir: PathBuf,
    /// A hash of what each file holds.
    written: HashMap<String, [u8; 32]>,
}

impl Checkpoints {
    fn open(dir: PathBuf) -> Self {
        let mut written = HashMap::new();
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            if let Ok(bytes) = std::fs::read(entry.path()) {
                written.insert(entry.file_name().to_string_lossy().into_owned(), Sha256::digest(&bytes).into());
            }
        }
        Self { dir, written }
    }

    fn load(&self) -> Vec<Pod> {
        let read = |uid: &String| serde_json::from_str(&std::fs::read_to_string(self.dir.join(uid)).ok()?).ok();
        self.written.keys().filter_map(read).collect()
    }

    /// Without what changes all the time: a status is kept only once it is final.
    fn keep(&mut self, pod: &Pod) {
        let mut copy = pod.clone();
        copy.metadata.resource_version = None;
        copy.metadata.managed_fields = None;
        copy.status = pod::is_terminal(pod)
            .then(|| PodStatus { phase: pod.status.as_ref().and_then(|s| s.phase.clone()), ..Default::default() });
        let Ok(bytes) = serde_json::to_vec(&copy) else { return };
        let hash: [u8; 32] = Sha256::digest(&bytes).into();
        let uid = pod::uid(pod).to_owned();
        // The uid becomes a file name; it comes from the API.
        if uid.is_empty() || uid.contains(['/', '.']) || self.written.get(&uid) == Some(&hash) {
            return;
        }
        match write_private(&self.dir.join(&uid), &bytes) {
            Ok(()) => {
                self.written.insert(uid, hash);
            }
            Err(error) => tracing::warn!(%error, pod = %pod::full(pod), "cannot keep the pod on disk"),
        }
    }

    fn remove(&mut self, uid: &str) {
        if self.written.remove(uid).is_some() {
            let _ = std::fs::remove_file(self.dir.join(uid));
        }
    }

    fn retain(&mut self, uids: &HashSet<&str>) {
        let gone: Vec<String> = self.written.keys().filter(|u| !uids.contains(u.as_str())).cloned().collect();
        for uid in gone {
            self.remove(&uid);
        }
    }
}

/// Follows the manifests in the static pod directory.
pub async fn follow_manifests(shared: Arc<Shared>) {
    let dir = shared.config.pod_manifests_dir.clone();
    if let Err(error) = std::fs::create_dir_all(&dir) {
        tracing::warn!(%error, dir = %dir.display(), "no static pods");
        return;
    }
    let mut running: HashMap<PathBuf, String> = HashMap::new();
    let changes = Inotify::init().and_then(|inotify| {
        let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVE | WatchMask::DELETE;
        inotify.watches().add(&dir, mask)?;
        inotify.into_event_stream([0_u8; 4096])
    });
    let mut changes = match changes {
        Ok(changes) => Some(changes),
        Err(error) => {
            tracing::warn!(%error, dir = %dir.display(), "changes of static pods will be seen at the next start only");
            None
        }
    };
    loop {
        read_manifests(&shared, &dir, &mut running);
        let Some(changes) = &mut changes else { return };
        tokio::select! {
            event = changes.next() => if event.is_none() { return },
            () = shared.stop.cancelled() => return,
        }
    }
}

fn read_manifests(shared: &Arc<Shared>, dir: &Path, running: &mut HashMap<PathBuf, String>) {
    let mut found = HashMap::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        let manifest = matches!(path.extension().and_then(|e| e.to_str()), Some("yaml" | "yml" | "json"));
        if name.starts_with('.') || !manifest {
            continue;
        }
        match read_manifest(&path, &shared.config.node_name) {
            Ok(pod) => {
                found.insert(path, pod);
            }
            Err(error) => {
                tracing::warn!(file = %path.display(), "static pod manifest is not usable: {error}");
                // A file that is half written must not end a pod that runs.
                if let Some(uid) = running.get(&path)
                    && let Some(handle) = shared.registry.lock().get(uid)
                {
                    let pod = handle.desired.borrow().pod.as_ref().clone();
                    found.insert(path, pod);
                }
            }
        }
    }
    let wanted: HashSet<&str> = found.values().map(pod::uid).collect();
    for uid in running.values().filter(|u| !wanted.contains(u.as_str())) {
        worker::remove(shared, uid);
    }
    *running = found.iter().map(|(path, pod)| (path.clone(), pod::uid(pod).to_owned())).collect();
    for pod in found.into_values() {
        worker::upsert(shared, Arc::new(pod));
    }
}

fn read_manifest(path: &Path, node: &str) -> Result<Pod, String> {
    let size = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    if size > MANIFEST_BYTES_MAX {
        return Err(format!("larger than {MANIFEST_BYTES_MAX} bytes"));
    }
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    static_pod(&bytes, path, node)
}

/// The uid is a hash of node, file and content: a changed manifest is another pod.
fn static_pod(bytes: &[u8], path: &Path, node: &str) -> Result<Pod, String> {
    let text = std::str::from_utf8(bytes).map_err(|e| e.to_string())?;
    let mut value: serde_json::Value = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
    if value["kind"] != "Pod" {
        return Err("kind is not Pod".into());
    }
    mussel_api::defaults::pod(&mut value);
    let mut pod: Pod = serde_json::from_value(value).map_err(|e| e.to_string())?;
    let name = pod.metadata.name.clone().filter(|n| !n.is_empty()).ok_or("metadata.name: Required value")?;
    if pod.spec.as_ref().is_none_or(|s| s.containers.is_empty()) {
        return Err("spec.containers: Required value".into());
    }
    let mut hash = Sha256::new();
    hash.update(bytes);
    hash.update(node);
    hash.update(path.as_os_str().as_encoded_bytes());
    let digest: [u8; 32] = hash.finalize().into();
    let uid: String = digest[..16].iter().map(|b| format!("{b:02x}")).collect();
    pod.metadata.name = Some(format!("{name}-{}", node.to_lowercase()));
    pod.metadata.namespace.get_or_insert_with(|| "default".into());
    pod.metadata.uid = Some(uid.clone());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(pod::HASH.into(), uid);
    annotations.insert(pod::SOURCE.into(), "file".into());
    annotations.insert(pod::SEEN.into(), Timestamp::now().to_string());
    pod.status = None;
    if let Some(spec) = &mut pod.spec {
        spec.node_name = Some(node.to_owned());
        // Static pods stay whatever happens to the node.
        let all =
            Toleration { operator: Some("Exists".into()), effect: Some("NoExecute".into()), ..Default::default() };
        let tolerations = spec.tolerations.get_or_insert_default();
        if !tolerations.contains(&all) {
            tolerations.push(all);
        }
    }
    Ok(pod)
}

/// Mirror pods whose static pod is gone.
pub async fn remove_stale_mirrors(shared: &Shared) {
    for pod in shared.api_pods.list() {
        if pod::is_mirror(&pod) {
            let found = shared.registry.find(pod::namespace(&pod), pod::name(&pod));
            if found.is_none() {
                mirror::delete(shared, &pod).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_become_static_pods() {
        let text = b"apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers: [{name: c, image: x}]\n";
        let pod = static_pod(text, Path::new("/m/web.yaml"), "Node1").unwrap();
        assert_eq!((pod::name(&pod), pod::namespace(&pod)), ("web-node1", "default"));
        assert!(pod::is_static(&pod) && !pod::is_mirror(&pod));
        assert_eq!(pod::uid(&pod).len(), 32);
        assert!(static_pod(b"kind: Service", Path::new("/m"), "n").is_err());
        assert!(static_pod(b"a: [", Path::new("/m"), "n").is_err());
    }

    #[test]
    fn checkpoints_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let pod: Pod =
            serde_json::from_value(serde_json::json!({"metadata": {"name": "p", "uid": "u", "resourceVersion": "7"},
            "status": {"phase": "Running"}}))
            .unwrap();
        let mut kept = Checkpoints::open(dir.path().into());
        kept.keep(&pod);
        let loaded = Checkpoints::open(dir.path().into()).load();
        assert_eq!(loaded.len(), 1);
        assert_eq!(loaded[0].status, None);
        kept.retain(&HashSet::new());
        assert!(Checkpoints::open(dir.path().into()).load().is_empty());
    }
}
