//! Joins two rooms that do not know each other: the runtime asks for a pod network, the network crate has one.

use std::net::IpAddr;
use std::sync::Arc;

use mussel_network::cni::{self, Cni};
use mussel_network::pods::{AddRequest, HostPort, Owner, PodNetwork, Protocol};
use mussel_runtime::network::{self as wanted, PodNetworkError, PodNetworkRequest, PortMapping};

use super::parts::chain;

pub struct Adapter(pub Arc<PodNetwork>);

#[async_trait::async_trait]
impl wanted::PodNetwork for Adapter {
    async fn add(&self, request: &PodNetworkRequest) -> Result<Vec<IpAddr>, PodNetworkError> {
        let request = AddRequest {
            sandbox_id: request.sandbox_id.clone(),
            netns: request.netns.clone(),
            host_ports: request.port_mappings.iter().filter_map(host_port).collect(),
            owner: Owner {
                namespace: request.pod_namespace.clone(),
                name: request.pod_name.clone(),
                uid: request.pod_uid.clone(),
                labels: request.pod_labels.clone(),
            },
        };
        let attachment = self.0.add(&request).await.map_err(|error| PodNetworkError(chain(&error)))?;
        Ok(vec![attachment.ip])
    }

    async fn del(&self, request: &PodNetworkRequest) -> Result<(), PodNetworkError> {
        self.0.del(&request.sandbox_id).await.map_err(|error| PodNetworkError(chain(&error)))
    }

    async fn status(&self) -> Result<(), String> {
        self.0.status().map_err(|error| chain(&error))
    }
}

/// The same, by plugins that somebody else brings.
pub struct CniAdapter(pub Cni);

impl CniAdapter {
    fn request(request: &PodNetworkRequest) -> cni::Request {
        cni::Request {
            sandbox_id: request.sandbox_id.clone(),
            netns: request.netns.clone(),
            pod_namespace: request.pod_namespace.clone(),
            pod_name: request.pod_name.clone(),
            pod_uid: request.pod_uid.clone(),
            host_ports: request.port_mappings.iter().filter_map(host_port).collect(),
        }
    }
}

#[async_trait::async_trait]
impl wanted::PodNetwork for CniAdapter {
    async fn add(&self, request: &PodNetworkRequest) -> Result<Vec<IpAddr>, PodNetworkError> {
        self.0.add(&Self::request(request)).await.map_err(|error| PodNetworkError(chain(&error)))
    }

    async fn del(&self, request: &PodNetworkRequest) -> Result<(), PodNetworkError> {
        self.0.del(&Self::request(request)).await.map_err(|error| PodNetworkError(chain(&error)))
    }

    async fn status(&self) -> Result<(), String> {
        self.0.status().map_err(|error| chain(&error))
    }
}

/// `None` for a container port that wants no port of the node.
fn host_port(mapping: &PortMapping) -> Option<HostPort> {
    if mapping.host_port == 0 {
        return None;
    }
    let protocol = match mapping.protocol.to_ascii_lowercase().as_str() {
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => Protocol::Tcp,
    };
    let host_ip = mapping.host_ip.filter(|ip| !ip.is_unspecified());
    Some(HostPort { protocol, host_port: mapping.host_port, container_port: mapping.container_port, host_ip })
}
