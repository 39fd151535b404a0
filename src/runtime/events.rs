//! What happens to containers, for those who listen (CRI GetContainerEvents), and how states look on the wire.

use std::sync::Arc;

use mussel_cri::v1;
use tokio::sync::broadcast;

use crate::records::State;
use crate::runtime::{Container, Runtime, Sandbox, now};

/// Events that a slow listener may be behind; then its stream ends, and it has to list.
pub(crate) const EVENTS_MAX: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Created,
    Started,
    Stopped,
    Deleted,
}

pub(crate) type Event = v1::ContainerEventResponse;

impl Runtime {
    /// Tells listeners. `id` is the sandbox's own for its own events.
    pub(crate) fn publish(&self, sandbox: &Arc<Sandbox>, id: &str, kind: Kind) {
        if self.0.events.receiver_count() == 0 {
            return;
        }
        let kind = match kind {
            Kind::Created => v1::ContainerEventType::ContainerCreatedEvent,
            Kind::Started => v1::ContainerEventType::ContainerStartedEvent,
            Kind::Stopped => v1::ContainerEventType::ContainerStoppedEvent,
            Kind::Deleted => v1::ContainerEventType::ContainerDeletedEvent,
        };
        let containers = self.containers_of(&sandbox.id);
        // Nobody listening is fine.
        let _ = self.0.events.send(v1::ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind.into(),
            created_at: now(),
            pod_sandbox_status: Some(sandbox_status(sandbox)),
            containers_statuses: containers.iter().map(|container| container_status(container)).collect(),
        });
    }

    pub(crate) fn listen(&self) -> broadcast::Receiver<Event> {
        self.0.events.subscribe()
    }
}

pub(crate) fn sandbox_state(ready: bool) -> v1::PodSandboxState {
    if ready { v1::PodSandboxState::SandboxReady } else { v1::PodSandboxState::SandboxNotready }
}

pub(crate) fn sandbox_status(sandbox: &Sandbox) -> v1::PodSandboxStatus {
    let record = sandbox.record();
    let config = record.config.0;
    let linux = config.linux.unwrap_or_default();
    let options = linux.security_context.and_then(|context| context.namespace_options).unwrap_or_default();
    let mut ips = record.ips.into_iter();
    v1::PodSandboxStatus {
        id: record.id,
        metadata: config.metadata,
        state: sandbox_state(record.ready).into(),
        created_at: record.created_at,
        network: Some(v1::PodSandboxNetworkStatus {
            ip: ips.next().unwrap_or_default(),
            additional_ips: ips.map(|ip| v1::PodIp { ip }).collect(),
        }),
        linux: Some(v1::LinuxPodSandboxStatus { namespaces: Some(v1::Namespace { options: Some(options) }) }),
        labels: config.labels,
        annotations: config.annotations,
        runtime_handler: record.runtime_handler,
    }
}

pub(crate) fn container_state(state: State) -> v1::ContainerState {
    match state {
        State::Created => v1::ContainerState::ContainerCreated,
        State::Running => v1::ContainerState::ContainerRunning,
        State::Exited => v1::ContainerState::ContainerExited,
    }
}

pub(crate) fn container_status(container: &Container) -> v1::ContainerStatus {
    let record = container.record();
    let config = record.config.0;
    let resources = config.linux.and_then(|linux| linux.resources);
    v1::ContainerStatus {
        id: record.id,
        metadata: config.metadata,
        state: container_state(record.state).into(),
        created_at: record.created_at,
        started_at: record.started_at,
        finished_at: record.finished_at,
        exit_code: record.exit_code,
        image: config.image,
        image_ref: record.image_ref,
        reason: record.reason,
        message: record.message,
        labels: config.labels,
        annotations: config.annotations,
        mounts: config.mounts,
        log_path: record.log_path.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
        resources: resources.map(|linux| v1::ContainerResources { linux: Some(linux) }),
        image_id: record.image_id,
        user: Some(v1::ContainerUser {
            linux: Some(v1::LinuxContainerUser {
                uid: record.uid.into(),
                gid: record.gid.into(),
                supplemental_groups: record.groups.into_iter().map(i64::from).collect(),
            }),
        }),
        stop_signal: crate::signals::to_cri(record.stop_signal).into(),
    }
}
