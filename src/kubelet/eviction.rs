//! Keeps the node alive when memory, disk or process ids run out: marks the pressure, frees what can be freed, and in
//! the end sends pods away, one at a time, the least deserving first.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use mussel_client::EventType;
use tokio::sync::{Notify, watch};

use crate::housekeeping;
use crate::machine::{FsUsage, memory_available};
use crate::shared::{Evict, Shared};
use crate::status::Verdict;
use crate::tuning::Threshold;
use crate::{pod, resources, worker};

/// Memory can run out within seconds and nothing tells us portably, so this is looked at on a timer.
const PERIOD: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    pub memory: bool,
    pub disk: bool,
    pub pid: bool,
}

pub async fn run(shared: Arc<Shared>, pressure: watch::Sender<Pressure>, collect_images: Arc<Notify>) {
    let mut since = [None::<tokio::time::Instant>; 3];
    loop {
        let measured = measure(&shared);
        let now = tokio::time::Instant::now();
        let mut shown = Pressure::default();
        let flags =
            [(measured.memory, &mut shown.memory), (measured.disk, &mut shown.disk), (measured.pid, &mut shown.pid)];
        for ((is, shown), since) in flags.into_iter().zip(&mut since) {
            if is {
                *since = Some(now);
            }
            *shown = since.is_some_and(|s| now.duration_since(s) < shared.config.tuning.pressure_transition);
        }
        pressure.send_if_modified(|known| {
            let changed = *known != shown;
            *known = shown;
            changed
        });
        if measured.disk {
            // Unused images and dead containers first.
            collect_images.notify_one();
            housekeeping::remove_dead_containers(&shared).await;
            if measure(&shared).disk {
                evict_one(&shared, "ephemeral-storage");
            }
        } else if measured.memory {
            evict_one(&shared, "memory");
        } else if measured.pid {
            evict_one(&shared, "pids");
        }
        over_their_own_limits(&shared).await;
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = shared.stop.cancelled() => return,
        }
    }
}

fn measure(shared: &Shared) -> Pressure {
    let least = shared.config.tuning.eviction;
    let available = u64::try_from(memory_available()).unwrap_or(0);
    let memory = u64::try_from(shared.machine.memory).unwrap_or(0);
    let low = |least: Option<Threshold>, total, free| least.is_some_and(|least| least.is_passed(total, free));
    let disk = FsUsage::of(&shared.config.root_dir)
        .is_ok_and(|u| low(least.disk, u.capacity, u.available) || low(least.inodes, u.inodes, u.inodes_free));
    let number = |path: &str| std::fs::read_to_string(path).ok().and_then(|t| t.trim().parse::<u64>().ok());
    let pids_max = number("/proc/sys/kernel/pid_max").unwrap_or(0);
    let pids = std::fs::read_to_string("/proc/loadavg")
        .ok()
        .and_then(|t| t.split(['/', ' ']).nth(4).and_then(|n| n.parse::<u64>().ok()))
        .unwrap_or(0);
    Pressure {
        memory: available > 0 && low(least.memory, memory, available),
        disk,
        pid: low(least.pids, pids_max, pids_max.saturating_sub(pids)),
    }
}

/// Sends away the pod that uses most beyond what it asked for, the least important first.
fn evict_one(shared: &Shared, resource: &str) {
    let pods = shared.registry.list();
    let candidates = pods.iter().filter(|(p, published)| {
        !published.finished && !resources::is_critical(p) && p.metadata.deletion_timestamp.is_none()
    });
    let rank = |p: &Pod| {
        let used = i64::try_from(shared.cgroups.pod_usage(p).working_set).unwrap_or(i64::MAX);
        let over = used.saturating_sub(resources::pod_request(p, "memory").value());
        let priority = pod::spec(p).and_then(|s| s.priority).unwrap_or(0);
        (over > 0, std::cmp::Reverse(priority), over)
    };
    let Some((victim, _)) = candidates.max_by_key(|(p, _)| rank(p)) else { return };
    let message = format!("The node was low on resource: {resource}. ");
    send_away(shared, victim, message, Some(0));
}

fn send_away(shared: &Shared, pod: &Pod, message: String, grace: Option<i64>) {
    tracing::warn!(pod = %pod::full(pod), "evicting: {message}");
    shared.recorder.event(pod::reference(pod), EventType::Warning, "Evicted", message.clone());
    let verdict = Verdict { reason: "Evicted".into(), message, disruption: true };
    worker::evict(shared, pod::uid(pod), Evict { verdict, grace });
}

/// emptyDir volumes that outgrew their own size limit.
async fn over_their_own_limits(shared: &Arc<Shared>) {
    let limited: Vec<_> = shared
        .registry
        .list()
        .into_iter()
        .filter(|(p, published)| !published.finished && has_limits(p))
        .map(|(p, _)| p)
        .collect();
    for pod in limited {
        let dir = shared.config.pod_dir(pod::uid(&pod)).join("volumes/kubernetes.io~empty-dir");
        for volume in pod::spec(&pod).and_then(|s| s.volumes.as_ref()).into_iter().flatten() {
            let Some(source) = &volume.empty_dir else { continue };
            // A memory volume has its limit from the kernel.
            if source.medium.as_deref() == Some("Memory") {
                continue;
            }
            let limit = source.size_limit.as_ref().and_then(|q| mussel_api::quantity::Quantity::try_from(q).ok());
            let Some(limit) = limit.filter(|l| !l.is_zero()) else { continue };
            let path = dir.join(&volume.name);
            let used = tokio::task::spawn_blocking(move || housekeeping::tree_bytes(&path)).await.unwrap_or(0);
            if i64::try_from(used).unwrap_or(i64::MAX) > limit.value() {
                let message = format!("Usage of EmptyDir volume \"{}\" exceeds the limit \"{limit}\". ", volume.name);
                send_away(shared, &pod, message, None);
                break;
            }
        }
    }
}

fn has_limits(pod: &Pod) -> bool {
    let volumes = pod::spec(pod).and_then(|s| s.volumes.as_ref());
    volumes.into_iter().flatten().any(|v| v.empty_dir.as_ref().is_some_and(|e| e.size_limit.is_some()))
}
