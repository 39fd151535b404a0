//! The end of a pod: containers stopped, the API told, everything cleaned away.

use std::collections::HashMap;
use std::sync::PoisonError;
use std::time::Duration;

use super::{Stage, Worker};
use crate::observed::Observed;
use crate::{admission, mirror, pod, sandbox};

impl Worker {
    /// Stops what runs. Afterwards the pod has ended, or this is tried again.
    pub(super) async fn end(&mut self) {
        self.shared.probes.no_more_restarts(&self.uid);
        loop {
            let desired = self.desired.borrow_and_update().clone();
            let pod = desired.pod.clone();
            let Some(observed) = self.observe(&pod).await else { return };
            // Pods that had ended before this kubelet started keep what was said of them.
            let said = pod::is_terminal(&pod) && self.status.phase == pod.status.as_ref().and_then(|s| s.phase.clone());
            if observed.running().next().is_none() {
                if !self.stop_sandboxes(&pod, &observed).await {
                    self.retry();
                    return;
                }
                self.stage = Stage::Ended;
                if said {
                    let status = self.status.clone();
                    self.publish.send_modify(|p| {
                        p.status = status;
                        p.finished = true;
                        p.containers = ids(&observed);
                    });
                } else {
                    self.report(&pod, &observed);
                }
                self.failures = 0;
                return;
            }
            self.report(&pod, &observed);
            let grace = desired.grace();
            let mut watch = self.desired.clone();
            let killed = tokio::select! {
                () = self.kill_all(&pod, &observed, grace) => true,
                // Somebody shortened the grace period: stop waiting and start over with the new one.
                _ = watch.wait_for(|d| d.grace() < grace) => false,
                () = self.shared.stop.cancelled() => return,
            };
            if killed {
                let Some(after) = self.observe(&pod).await else { return };
                if after.running().any(|s| observed.running().any(|b| b.id() == s.id())) {
                    // The runtime could not do it. Not at once again.
                    self.retry();
                    return;
                }
            }
        }
    }

    /// Says whether nothing of the pod is left and its worker can go.
    pub(super) async fn ended(&mut self) -> bool {
        let desired = self.desired.borrow_and_update().clone();
        let pod = desired.pod.clone();
        if !self.cleaned {
            if let Err(error) = self.shared.volumes.tear_down(&self.uid).await {
                tracing::warn!(%error, pod = %pod::full(&pod), "cannot remove the pod's volumes");
                self.retry();
                return false;
            }
            self.shared.cgroups.remove_pod(&self.uid);
            self.shared.weigh_classes();
            admission::freed(&self.shared).await;
            self.shared.images.forget(&self.uid);
            let mut restarts = self.shared.restarts.lock().unwrap_or_else(PoisonError::into_inner);
            restarts.forget_prefix(&format!("{}_", self.uid));
            self.cleaned = true;
            self.failures = 0;
        }
        if !desired.removed {
            if pod.metadata.deletion_timestamp.is_some() {
                // The API forgets the pod only now, when nothing of it runs any more.
                self.reporter.send(pod, self.status.clone(), true);
            }
            return false;
        }
        if pod::is_static(&pod) {
            mirror::remove(&self.shared, &pod).await;
        }
        let Some(observed) = self.observe(&pod).await else { return false };
        if observed.running().next().is_some() {
            self.stage = Stage::Ending;
            self.look_again(Duration::ZERO);
            return false;
        }
        self.remove_dead(&observed, 0).await;
        for s in &observed.sandboxes {
            if let Err(error) = self.shared.cri.remove_sandbox(&s.id).await
                && !error.is_not_found()
            {
                tracing::warn!(%error, pod = %pod::full(&pod), "cannot remove the sandbox");
                self.retry();
                return false;
            }
        }
        let logs = sandbox::log_dir(&self.shared.config.pod_logs_dir, &pod);
        if let Err(error) = tokio::fs::remove_dir_all(&logs).await
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, dir = %logs.display(), "cannot remove logs");
        }
        true
    }

    /// Removes dead containers but the newest run and `keep` dead ones before it, per name; and dead sandboxes that
    /// hold none.
    pub(super) async fn remove_dead(&self, observed: &Observed, keep: usize) {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        let mut holding: Vec<&str> = Vec::new();
        for seen in &observed.containers {
            let count = counts.entry(seen.name.as_str()).or_default();
            *count += 1;
            if seen.is_running() || (keep > 0 && *count <= keep + 1) {
                holding.push(&seen.sandbox);
                continue;
            }
            if let Err(error) = self.shared.cri.remove_container(seen.id()).await
                && !error.is_not_found()
            {
                tracing::warn!(%error, container = seen.name, "cannot remove a dead container");
                holding.push(&seen.sandbox);
                continue;
            }
            remove_log(&seen.status.log_path);
        }
        if keep == 0 {
            return;
        }
        for old in observed.sandboxes.iter().skip(1).filter(|s| !holding.contains(&s.id.as_str())) {
            if let Err(error) = self.shared.cri.remove_sandbox(&old.id).await {
                tracing::debug!(%error, "cannot remove an old sandbox");
            }
        }
    }
}

/// A container's log and the rotated ones beside it.
fn remove_log(path: &str) {
    if path.is_empty() {
        return;
    }
    let path = std::path::Path::new(path);
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return };
    let name = name.to_string_lossy().into_owned();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let other = entry.file_name().to_string_lossy().into_owned();
        if other == name || other.strip_prefix(&name).is_some_and(|rest| rest.starts_with('.')) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn ids(observed: &Observed) -> HashMap<String, String> {
    let mut ids = HashMap::new();
    for seen in &observed.containers {
        ids.entry(seen.name.clone()).or_insert_with(|| seen.id().to_owned());
    }
    ids
}
