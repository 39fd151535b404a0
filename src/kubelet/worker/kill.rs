//! Stopping containers: preStop hook, then the stop signal, then the end.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use mussel_client::EventType;
use tokio::time::Instant;

use super::Worker;
use crate::observed::{Observed, Seen};
use crate::plan::{Kill, Why};
use crate::{hooks, pod};

/// A container gets this long to react to its signal even when the hook took all the time.
const GRACE_AFTER_HOOK: Duration = Duration::from_secs(2);

/// A failed probe may bring its own grace period.
pub fn probe_grace(pod: &Pod, kill: &Kill) -> Option<i64> {
    let container = pod::find_container(pod, &kill.container)?;
    let probe = match kill.why {
        Why::Liveness => container.liveness_probe,
        Why::Startup => container.startup_probe,
        Why::Changed | Why::Unknown => None,
    };
    probe?.termination_grace_period_seconds
}

impl Worker {
    /// Stops one container within `grace` seconds. Failures are logged: whoever looks again sees what is left.
    pub(super) async fn kill_one(
        &self,
        pod: &Arc<Pod>,
        seen: &Seen,
        observed: &Observed,
        grace: i64,
        message: Option<&str>,
    ) {
        let began = Instant::now();
        // Zero would mean no signal at all; that is for objects, not for processes.
        let grace = Duration::from_secs(u64::try_from(grace.max(1)).unwrap_or(1));
        let text = message.map_or_else(|| format!("Stopping container {}", seen.name), str::to_owned);
        let first = {
            let mut done = self.pre_stopped.lock().unwrap_or_else(PoisonError::into_inner);
            done.insert(seen.id().to_owned())
        };
        if first {
            let about = pod::container_reference(pod, &seen.name);
            self.shared.recorder.event(about, EventType::Normal, "Killing", text);
            self.pre_stop(pod, seen, observed, grace).await;
        }
        let left = grace.saturating_sub(began.elapsed()).max(GRACE_AFTER_HOOK.min(grace));
        if let Err(error) = self.shared.cri.stop_container(seen.id(), left).await
            && !error.is_not_found()
        {
            tracing::warn!(%error, container = seen.name, pod = %pod::full(pod), "cannot stop a container");
        }
    }

    async fn pre_stop(&self, pod: &Arc<Pod>, seen: &Seen, observed: &Observed, grace: Duration) {
        let Some(container) = pod::find_container(pod, &seen.name) else { return };
        let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()) else { return };
        let ips = if pod::host_network(pod) { self.shared.host_ips() } else { observed.pod_ips() };
        let ip = ips.first().map(String::as_str);
        let run = hooks::run(&self.shared.cri, hook, &container, seen.id(), ip, grace);
        let result = match tokio::time::timeout(grace, run).await {
            Ok(result) => result,
            Err(_) => {
                tracing::info!(container = seen.name, pod = %pod::full(pod), "preStop hook not done within the grace period");
                return;
            }
        };
        if let Err(message) = result {
            let about = pod::container_reference(pod, &seen.name);
            let text = format!("PreStopHook failed: {message}");
            self.shared.recorder.event(about, EventType::Warning, "FailedPreStopHook", text);
        }
    }

    /// Stops all running containers: first those that serve, at once; then sidecars, last started first.
    pub(super) async fn kill_all(&self, pod: &Arc<Pod>, observed: &Observed, grace: i64) {
        let began = Instant::now();
        let sidecars: Vec<&str> =
            pod::init_containers(pod).iter().filter(|c| pod::is_sidecar(c)).map(|c| c.name.as_str()).collect();
        let (last, first): (Vec<&Seen>, Vec<&Seen>) =
            observed.running().partition(|s| sidecars.contains(&s.name.as_str()));
        join_all(first.into_iter().map(|seen| self.kill_one(pod, seen, observed, grace, None))).await;
        for name in sidecars.iter().rev() {
            for seen in last.iter().filter(|s| s.name == *name) {
                let passed = i64::try_from(began.elapsed().as_secs()).unwrap_or(i64::MAX);
                self.kill_one(pod, seen, observed, grace.saturating_sub(passed).max(1), None).await;
            }
        }
    }

    /// Says whether all are stopped.
    pub(super) async fn stop_sandboxes(&self, pod: &Pod, observed: &Observed) -> bool {
        let mut fine = true;
        for sandbox in &observed.sandboxes {
            if let Err(error) = self.shared.cri.stop_sandbox(&sandbox.id).await
                && !error.is_not_found()
            {
                tracing::warn!(%error, pod = %pod::full(pod), "cannot stop the sandbox");
                let message = format!("error killing pod: failed to \"KillPodSandbox\" for \"{}\": {error}", self.uid);
                self.event(pod, EventType::Warning, "FailedKillPod", message);
                fine = false;
            }
        }
        fine
    }
}
