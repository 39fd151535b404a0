//! What the runtime says about one pod: its sandboxes and containers, newest first.

use std::collections::HashMap;

use futures::future::try_join_all;
use jiff::Timestamp;
use mussel_cri::v1;

use crate::cri::{Cri, CriError, Result};
use crate::labels;

#[derive(Debug, Clone, Default)]
pub struct Observed {
    pub sandboxes: Vec<v1::PodSandboxStatus>,
    pub containers: Vec<Seen>,
}

/// One container, with what the kubelet wrote on it when it made it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub sandbox: String,
    pub name: String,
    pub status: v1::ContainerStatus,
}

impl Seen {
    pub fn state(&self) -> v1::ContainerState {
        self.status.state()
    }

    pub fn is_running(&self) -> bool {
        self.state() == v1::ContainerState::ContainerRunning
    }

    pub fn id(&self) -> &str {
        &self.status.id
    }

    pub fn fixed_resources(&self) -> Option<&str> {
        self.status.annotations.get(labels::FIXED_RESOURCES).map(String::as_str)
    }

    pub fn hash(&self) -> Option<&str> {
        self.status.annotations.get(labels::CONTAINER_HASH).map(String::as_str)
    }

    pub fn restart_count(&self) -> i32 {
        self.status.annotations.get(labels::RESTART_COUNT).and_then(|t| t.parse().ok()).unwrap_or_else(|| {
            self.status.metadata.as_ref().and_then(|m| i32::try_from(m.attempt).ok()).unwrap_or_default()
        })
    }

    pub fn finished_at(&self) -> Option<Timestamp> {
        time(self.status.finished_at)
    }

    pub fn started_at(&self) -> Option<Timestamp> {
        time(self.status.started_at)
    }
}

/// A CRI time; 0 is none.
pub fn time(nanos: i64) -> Option<Timestamp> {
    if nanos <= 0 { None } else { Timestamp::from_nanosecond(i128::from(nanos)).ok() }
}

impl Observed {
    /// The sandbox that counts, ready or not.
    pub fn sandbox(&self) -> Option<&v1::PodSandboxStatus> {
        self.sandboxes.first()
    }

    pub fn ready_sandbox(&self) -> Option<&v1::PodSandboxStatus> {
        self.sandbox().filter(|s| s.state() == v1::PodSandboxState::SandboxReady)
    }

    /// The newest container of that name.
    pub fn container(&self, name: &str) -> Option<&Seen> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// As [`Self::container`], but only one of the present sandbox.
    pub fn current(&self, name: &str) -> Option<&Seen> {
        let sandbox = &self.sandbox()?.id;
        self.containers.iter().find(|c| c.name == name && c.sandbox == *sandbox)
    }

    /// The newest dead container of that name that is not the newest of all.
    pub fn previous(&self, name: &str) -> Option<&Seen> {
        self.containers.iter().filter(|c| c.name == name).skip(1).find(|c| !c.is_running())
    }

    pub fn running(&self) -> impl Iterator<Item = &Seen> {
        self.containers.iter().filter(|c| c.is_running())
    }

    pub fn pod_ips(&self) -> Vec<String> {
        let Some(network) = self.ready_sandbox().and_then(|s| s.network.as_ref()) else { return Vec::new() };
        let all = std::iter::once(&network.ip).chain(network.additional_ips.iter().map(|ip| &ip.ip));
        all.filter(|ip| !ip.is_empty()).cloned().collect()
    }

    /// Asks the runtime. Objects that vanish meanwhile are left out.
    pub async fn of_pod(cri: &Cri, uid: &str) -> Result<Self> {
        let by_uid = HashMap::from([(labels::POD_UID.to_owned(), uid.to_owned())]);
        let (sandboxes, containers) = tokio::try_join!(cri.sandboxes(by_uid.clone()), cri.containers(by_uid))?;
        let mut sandboxes = try_join_all(sandboxes.iter().map(|s| present(cri.sandbox_status(&s.id)))).await?;
        let containers = containers.into_iter().map(|c| async move {
            let status = present(cri.container_status(&c.id)).await?;
            Ok::<_, CriError>(status.map(|status| Seen {
                sandbox: c.pod_sandbox_id,
                name: c.labels.get(labels::CONTAINER_NAME).cloned().unwrap_or_default(),
                status,
            }))
        });
        let mut containers: Vec<Option<Seen>> = try_join_all(containers).await?;
        sandboxes.sort_by_key(|s| std::cmp::Reverse(s.as_ref().map_or(0, |s| s.created_at)));
        containers.sort_by_key(|c| std::cmp::Reverse(c.as_ref().map_or(0, |c| c.status.created_at)));
        Ok(Self {
            sandboxes: sandboxes.into_iter().flatten().collect(),
            containers: containers.into_iter().flatten().collect(),
        })
    }
}

async fn present<T>(call: impl Future<Output = Result<T>>) -> Result<Option<T>> {
    match call.await {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(e),
    }
}
