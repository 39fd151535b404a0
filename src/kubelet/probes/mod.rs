//! Probes: whether containers have started, live and are ready.
//!
//! Each container run has its own results and its own tasks, which end with it. A change wakes the pod's worker.

mod run;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use mussel_client::{EventType, Recorder};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::cri::Cri;
use crate::plan::Health;
use crate::pod;

pub use run::{Outcome, http_get};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// How often each probe came out how, for `/metrics/probes`.
pub type Counts = HashMap<(String, String, String, &'static str, &'static str), u64>;

struct Entry {
    uid: String,
    started: watch::Sender<bool>,
    startup_failed: bool,
    liveness_failed: bool,
    ready: bool,
    /// Ends all probes of the container.
    cancel: CancellationToken,
    /// Ends those that could have it restarted.
    cancel_restarts: CancellationToken,
}

#[derive(Clone)]
pub struct Probes(Arc<Shared>);

struct Shared {
    cri: Cri,
    recorder: Recorder,
    entries: Mutex<HashMap<String, Entry>>,
    counts: Mutex<Counts>,
    wake: Box<dyn Fn(&str) + Send + Sync>,
    stop: CancellationToken,
}

/// One running container to probe.
pub struct Target<'a> {
    pub pod: &'a Arc<Pod>,
    pub container: &'a Container,
    pub id: &'a str,
    pub started_at: Option<Timestamp>,
    pub pod_ip: Option<&'a str>,
    /// What was reported of this very container before, by us before a restart: (started, ready).
    pub before: Option<(bool, bool)>,
}

impl Probes {
    pub fn new(
        cri: Cri,
        recorder: Recorder,
        wake: impl Fn(&str) + Send + Sync + 'static,
        stop: CancellationToken,
    ) -> Self {
        Self(Arc::new(Shared {
            cri,
            recorder,
            entries: Mutex::default(),
            counts: Mutex::default(),
            wake: Box::new(wake),
            stop,
        }))
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, HashMap<String, Entry>> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn counts(&self) -> Counts {
        self.0.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts the container's probes. A repeat for the same run does nothing.
    pub fn ensure(&self, target: &Target) {
        let container = target.container;
        let mut entries = self.entries();
        if entries.contains_key(target.id) {
            return;
        }
        let (was_started, was_ready) = target.before.unwrap_or_default();
        let (started, _) = watch::channel(container.startup_probe.is_none() || was_started);
        let cancel = self.0.stop.child_token();
        let cancel_restarts = cancel.child_token();
        let probes = [
            (Kind::Startup, container.startup_probe.as_ref(), cancel_restarts.clone()),
            (Kind::Liveness, container.liveness_probe.as_ref(), cancel_restarts.clone()),
            (Kind::Readiness, container.readiness_probe.as_ref(), cancel.clone()),
        ];
        for (kind, probe, cancel) in probes {
            let Some(probe) = probe else { continue };
            if kind == Kind::Startup && *started.borrow() {
                continue;
            }
            let task = Task {
                probes: self.clone(),
                kind,
                probe: probe.clone(),
                pod: target.pod.clone(),
                container: container.clone(),
                id: target.id.to_owned(),
                pod_ip: target.pod_ip.map(str::to_owned),
                started: started.subscribe(),
                since: target.started_at,
            };
            tokio::spawn(async move {
                tokio::select! {
                    () = cancel.cancelled() => {}
                    () = task.run() => {}
                }
            });
        }
        let entry = Entry {
            uid: pod::uid(target.pod).to_owned(),
            started,
            startup_failed: false,
            liveness_failed: false,
            ready: container.readiness_probe.is_none() || was_ready,
            cancel,
            cancel_restarts,
        };
        entries.insert(target.id.to_owned(), entry);
    }

    /// Ends the probes of all runs of the pod but those in `running`.
    pub fn keep(&self, uid: &str, running: &[&str]) {
        self.entries().retain(|id, entry| {
            let keep = entry.uid != uid || running.contains(&id.as_str());
            if !keep {
                entry.cancel.cancel();
            }
            keep
        });
    }

    /// The pod is ending: nothing shall be restarted, but readiness still counts.
    pub fn no_more_restarts(&self, uid: &str) {
        for entry in self.entries().values_mut().filter(|e| e.uid == uid) {
            entry.cancel_restarts.cancel();
        }
    }
}

impl Health for Probes {
    fn liveness_failed(&self, id: &str) -> bool {
        self.entries().get(id).is_some_and(|e| e.liveness_failed)
    }

    fn startup_failed(&self, id: &str) -> bool {
        self.entries().get(id).is_some_and(|e| e.startup_failed)
    }

    fn started(&self, id: &str) -> bool {
        self.entries().get(id).is_none_or(|e| *e.started.borrow())
    }

    fn ready(&self, id: &str) -> bool {
        self.entries().get(id).is_none_or(|e| e.ready)
    }
}

struct Task {
    probes: Probes,
    kind: Kind,
    probe: Probe,
    pod: Arc<Pod>,
    container: Container,
    id: String,
    pod_ip: Option<String>,
    started: watch::Receiver<bool>,
    since: Option<Timestamp>,
}

impl Task {
    async fn run(mut self) {
        let seconds = |n: Option<i32>, default: u64| {
            Duration::from_secs(n.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0).unwrap_or(default))
        };
        let period = seconds(self.probe.period_seconds, 10);
        let delay =
            Duration::from_secs(self.probe.initial_delay_seconds.and_then(|n| u64::try_from(n).ok()).unwrap_or(0));
        let running: Duration = self
            .since
            .and_then(|since| Duration::try_from(Timestamp::now().duration_since(since)).ok())
            .unwrap_or_default();
        if self.kind != Kind::Startup && self.started.wait_for(|started| *started).await.is_err() {
            return;
        }
        let mut next = Instant::now() + delay.saturating_sub(running);
        let failures_max = self.probe.failure_threshold.unwrap_or(3).max(1);
        let successes_min = self.probe.success_threshold.unwrap_or(1).max(1);
        let (mut failures, mut successes) = (0, 0);
        loop {
            // The period of the spec is the timer here; a probe that hangs delays the next one and piles up nothing.
            sleep_until(next).await;
            next = (next + period).max(Instant::now());
            let outcome = run::run(
                &self.probes.0.cri,
                &self.probe,
                &self.container,
                &self.id,
                self.pod_ip.as_deref(),
                seconds(self.probe.timeout_seconds, 1),
            )
            .await;
            self.count(&outcome);
            match outcome {
                Outcome::Success(warning) => {
                    if let Some(warning) = warning {
                        self.event("ProbeWarning", format!("{} probe warning: {warning}", self.kind.word()));
                    }
                    failures = 0;
                    successes += 1;
                    if successes >= successes_min && self.passed() {
                        return;
                    }
                }
                Outcome::Failure(text) => {
                    self.event("Unhealthy", format!("{} probe failed: {text}", self.kind.word()));
                    successes = 0;
                    failures += 1;
                    if failures >= failures_max && self.failed() {
                        return;
                    }
                }
                // Nobody can tell: the probe itself did not work. The last word stands.
                Outcome::Unknown(text) => {
                    self.event(
                        "Unhealthy",
                        format!("{} probe errored and resulted in unknown state: {text}", self.kind.word()),
                    );
                }
            }
        }
    }

    /// Says whether the probe has done its work.
    fn passed(&self) -> bool {
        let mut changed = false;
        if let Some(entry) = self.probes.entries().get_mut(&self.id) {
            match self.kind {
                Kind::Startup => changed = !entry.started.send_replace(true),
                Kind::Readiness => changed = !std::mem::replace(&mut entry.ready, true),
                Kind::Liveness => {}
            }
        }
        if changed {
            (self.probes.0.wake)(pod::uid(&self.pod));
        }
        self.kind == Kind::Startup
    }

    fn failed(&self) -> bool {
        let mut changed = false;
        if let Some(entry) = self.probes.entries().get_mut(&self.id) {
            match self.kind {
                Kind::Startup => changed = !std::mem::replace(&mut entry.startup_failed, true),
                Kind::Liveness => changed = !std::mem::replace(&mut entry.liveness_failed, true),
                Kind::Readiness => changed = std::mem::replace(&mut entry.ready, false),
            }
        }
        if changed {
            (self.probes.0.wake)(pod::uid(&self.pod));
        }
        // The container will be killed for it; there is no more to find out.
        self.kind != Kind::Readiness
    }

    fn event(&self, reason: &str, message: String) {
        let about = pod::container_reference(&self.pod, &self.container.name);
        self.probes.0.recorder.event(about, EventType::Warning, reason, message);
    }

    fn count(&self, outcome: &Outcome) {
        let result = match outcome {
            Outcome::Success(_) => "successful",
            Outcome::Failure(_) => "failed",
            Outcome::Unknown(_) => "unknown",
        };
        let key = (
            pod::namespace(&self.pod).to_owned(),
            pod::name(&self.pod).to_owned(),
            self.container.name.clone(),
            self.kind.word(),
            result,
        );
        *self.probes.0.counts.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default() += 1;
    }
}
