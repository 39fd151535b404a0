//! What sandboxes need of a pod network, shaped as CNI's ADD and DEL.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

/// A port of the node that shall lead to the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMapping {
    pub protocol: &'static str,
    pub container_port: u16,
    pub host_port: u16,
    pub host_ip: Option<IpAddr>,
}

/// One sandbox that wants a network, or no longer does.
#[derive(Debug, Clone)]
pub struct PodNetworkRequest {
    pub sandbox_id: String,
    /// A bind mount of the network namespace. On a repeated `del` it may be gone.
    pub netns: PathBuf,
    pub pod_namespace: String,
    pub pod_name: String,
    pub pod_uid: String,
    pub pod_labels: BTreeMap<String, String>,
    pub hostname: String,
    pub port_mappings: Vec<PortMapping>,
    /// What the caller of CRI last said in UpdateRuntimeConfig; empty when never.
    pub pod_cidr: String,
}

/// Why a pod got no network, or may still have one.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct PodNetworkError(pub String);

/// A real one lives in the network crate; the binary connects them.
#[async_trait::async_trait]
pub trait PodNetwork: Send + Sync + 'static {
    /// Connects the namespace and returns the pod's addresses, the primary one first. Leaves nothing behind on error.
    async fn add(&self, request: &PodNetworkRequest) -> Result<Vec<IpAddr>, PodNetworkError>;
    /// Takes back what `add` gave. A repeat succeeds.
    async fn del(&self, request: &PodNetworkRequest) -> Result<(), PodNetworkError>;
    /// Whether pods can be connected; else why not.
    async fn status(&self) -> Result<(), String>;
}

/// Pods that can only talk to themselves.
pub struct LoopbackOnly;

#[async_trait::async_trait]
impl PodNetwork for LoopbackOnly {
    async fn add(&self, _: &PodNetworkRequest) -> Result<Vec<IpAddr>, PodNetworkError> {
        Ok(vec![IpAddr::from([127, 0, 0, 1])])
    }

    async fn del(&self, _: &PodNetworkRequest) -> Result<(), PodNetworkError> {
        Ok(())
    }

    async fn status(&self) -> Result<(), String> {
        Ok(())
    }
}
