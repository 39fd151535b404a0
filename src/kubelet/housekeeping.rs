//! What nobody needs any more: images, dead containers, sandboxes and directories of pods that are gone, long logs.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mussel_cri::v1;
use tokio::sync::Notify;

use crate::labels;
use crate::logs;
use crate::machine::FsUsage;
use crate::shared::Shared;
use crate::volumes::remove_pod_dir;

/// Images are looked at this often: disks fill slowly.
const IMAGE_PERIOD: Duration = Duration::from_secs(300);
/// Log sizes cannot be watched cheaply.
const LOG_PERIOD: Duration = Duration::from_secs(10);
const ORPHAN_PERIOD: Duration = Duration::from_secs(120);

/// Removes images that no container uses when the disk is nearly full.
pub async fn collect_images(shared: Arc<Shared>, now: Arc<Notify>) {
    let tuning = &shared.config.tuning;
    let mut first_seen: HashMap<String, tokio::time::Instant> = HashMap::new();
    let mut last_used: HashMap<String, tokio::time::Instant> = HashMap::new();
    loop {
        let asked = tokio::select! {
            () = now.notified() => true,
            () = tokio::time::sleep(IMAGE_PERIOD) => false,
            () = shared.stop.cancelled() => return,
        };
        let listed = tokio::try_join!(shared.cri.images(), shared.cri.containers(HashMap::new()));
        let Ok((images, containers)) = listed else { continue };
        let time = tokio::time::Instant::now();
        let ids: HashSet<&str> = images.iter().map(|i| i.id.as_str()).collect();
        first_seen.retain(|id, _| ids.contains(id.as_str()));
        last_used.retain(|id, _| ids.contains(id.as_str()));
        for image in &images {
            first_seen.entry(image.id.clone()).or_insert(time);
            if in_use(image, &containers) {
                last_used.insert(image.id.clone(), time);
            }
        }
        let mountpoint = shared
            .cri
            .image_fs()
            .await
            .ok()
            .and_then(|f| f.image_filesystems.into_iter().find_map(|f| f.fs_id).map(|id| id.mountpoint));
        let path = mountpoint.unwrap_or_else(|| shared.config.root_dir.display().to_string());
        let Ok(disk) = FsUsage::of(Path::new(&path)) else { continue };
        if disk.capacity == 0 || (!asked && disk.used() * 100 / disk.capacity < tuning.image_gc_high_percent) {
            continue;
        }
        let goal = disk.capacity / 100 * tuning.image_gc_low_percent;
        let mut to_free = disk.used().saturating_sub(goal);
        let mut unused: Vec<&v1::Image> = images
            .iter()
            .filter(|i| !i.pinned && !in_use(i, &containers))
            .filter(|i| first_seen.get(&i.id).is_some_and(|t| time.duration_since(*t) >= tuning.image_age_min))
            .collect();
        // Longest unused first.
        unused.sort_by_key(|i| last_used.get(&i.id).copied());
        for image in unused {
            if to_free == 0 {
                break;
            }
            match shared.cri.remove_image(&image.id).await {
                Ok(()) => {
                    tracing::info!(image = image.id, bytes = image.size, "removed an unused image");
                    to_free = to_free.saturating_sub(image.size);
                }
                Err(error) => tracing::warn!(%error, image = image.id, "cannot remove an image"),
            }
        }
    }
}

fn in_use(image: &v1::Image, containers: &[v1::Container]) -> bool {
    containers.iter().any(|c| {
        let spec = c.image.as_ref().map(|i| i.image.as_str()).unwrap_or_default();
        c.image_id == image.id
            || c.image_ref == image.id
            || spec == image.id
            || image.repo_tags.iter().chain(&image.repo_digests).any(|n| *n == c.image_ref || n == spec)
    })
}

/// Dead containers are only kept for their logs; under disk pressure that is too much.
pub async fn remove_dead_containers(shared: &Shared) {
    let Ok(containers) = shared.cri.containers(HashMap::new()).await else { return };
    let mut newest: HashMap<(String, String), i64> = HashMap::new();
    let key = |c: &v1::Container| {
        let label = |name: &str| c.labels.get(name).cloned().unwrap_or_default();
        (label(labels::POD_UID), label(labels::CONTAINER_NAME))
    };
    for container in &containers {
        let latest = newest.entry(key(container)).or_default();
        *latest = (*latest).max(container.created_at);
    }
    for container in containers {
        let dead = container.state() == v1::ContainerState::ContainerExited;
        if dead
            && newest.get(&key(&container)) != Some(&container.created_at)
            && let Err(error) = shared.cri.remove_container(&container.id).await
        {
            tracing::debug!(%error, "cannot remove a dead container");
        }
    }
}

/// Removes what belongs to pods that no source has: once at the start, when all sources have spoken, and then rarely.
pub async fn remove_orphans(shared: Arc<Shared>) {
    tokio::select! {
        () = shared.api_pods.synced() => {}
        () = shared.stop.cancelled() => return,
    }
    // The workers of pods that were read first are registered by the time the informer's followers are.
    let mut wait = Duration::from_secs(5);
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shared.stop.cancelled() => return,
        }
        wait = ORPHAN_PERIOD;
        let api: HashSet<String> = shared.api_pods.list().iter().map(|p| crate::pod::uid(p).to_owned()).collect();
        let known: HashSet<String> = shared.registry.lock().keys().cloned().collect();
        let is_known = |uid: &str| known.contains(uid) || api.contains(uid);
        orphaned_sandboxes(&shared, &is_known).await;
        for uid in shared.cgroups.pods() {
            if !is_known(&uid) {
                shared.cgroups.remove_pod(&uid);
            }
        }
        let dirs = shared.config.root_dir.join("pods");
        for entry in std::fs::read_dir(&dirs).into_iter().flatten().flatten() {
            let uid = entry.file_name().to_string_lossy().into_owned();
            if !is_known(&uid)
                && let Err(error) = remove_pod_dir(&entry.path())
            {
                tracing::warn!(%error, uid, "cannot remove the directory of a pod that is gone");
            }
        }
        for entry in std::fs::read_dir(&shared.config.pod_logs_dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(uid) = name.rsplit('_').next().filter(|_| name.matches('_').count() == 2)
                && !is_known(uid)
            {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        logs::links::remove_dangling(&shared.config.container_logs_dir);
        crate::sources::remove_stale_mirrors(&shared).await;
    }
}

async fn orphaned_sandboxes(shared: &Shared, is_known: &(dyn Fn(&str) -> bool + Sync)) {
    let listed = tokio::try_join!(shared.cri.sandboxes(HashMap::new()), shared.cri.containers(HashMap::new()));
    let Ok((sandboxes, containers)) = listed else { return };
    for sandbox in sandboxes {
        // What has no such label is not a pod of any kubelet.
        let Some(uid) = sandbox.labels.get(labels::POD_UID).filter(|u| !is_known(u)) else { continue };
        tracing::info!(uid, sandbox = sandbox.id, "stopping a pod that no source has");
        for container in containers.iter().filter(|c| c.pod_sandbox_id == sandbox.id) {
            if container.state() == v1::ContainerState::ContainerRunning {
                let grace = container.annotations.get(labels::POD_GRACE).and_then(|g| g.parse().ok()).unwrap_or(30);
                if let Err(error) = shared.cri.stop_container(&container.id, Duration::from_secs(grace)).await {
                    tracing::warn!(%error, "cannot stop an orphaned container");
                }
            }
            let _ = shared.cri.remove_container(&container.id).await;
        }
        let stopped = shared.cri.stop_sandbox(&sandbox.id).await;
        if let Err(error) = stopped.and(shared.cri.remove_sandbox(&sandbox.id).await) {
            tracing::warn!(%error, "cannot remove an orphaned sandbox");
        }
    }
}

/// Rotates the logs of running containers that have grown too long.
pub async fn rotate_logs(shared: Arc<Shared>) {
    let (bytes_max, files_max) = (shared.config.tuning.log_bytes_max, shared.config.tuning.log_files_max);
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOG_PERIOD) => {}
            () = shared.stop.cancelled() => return,
        }
        // Directory and file sizes first: the runtime is asked only about logs that are too long.
        for (pod, published) in shared.registry.list() {
            let dir = crate::sandbox::log_dir(&shared.config.pod_logs_dir, &pod);
            for (name, id) in &published.containers {
                if !logs::has_long(&dir.join(name), bytes_max) {
                    continue;
                }
                let Ok(status) = shared.cri.container_status(id).await else { continue };
                if status.state() != v1::ContainerState::ContainerRunning || status.log_path.is_empty() {
                    continue;
                }
                if let Err(error) =
                    logs::rotate(&shared.cri, id, Path::new(&status.log_path), bytes_max, files_max).await
                {
                    tracing::warn!(%error, log = status.log_path, "cannot rotate a log");
                }
            }
        }
    }
}

/// The bytes that files below a directory take on disk. Links are not followed.
pub fn tree_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let mut total = 0;
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(meta) = entry.metadata() else { continue };
        total += meta.blocks() * 512;
        if meta.is_dir() {
            total += tree_bytes(&entry.path());
        }
    }
    total
}
