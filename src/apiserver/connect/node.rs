//! Where a node's kubelet is, and how to speak with it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::WebPkiServerVerifier;
use serde_json::Value;

use super::backend::{Backend, KubeletDialer};
use super::read;
use crate::config::Config;
use crate::encryption::Snapshot;
use crate::outbound::tls::{self, CredentialsError, Identity};
use crate::status::Status;

const KUBELET_PORT: u16 = 10250;

/// This server's credentials for kubelets, and TLS for other backends.
pub struct Kubelets {
    /// `None` when no CA was given: no kubelet can be reached then.
    verifier: Option<Arc<WebPkiServerVerifier>>,
    identity: Option<Identity>,
    any_server: Arc<ClientConfig>,
    dialer: Option<Arc<dyn KubeletDialer>>,
}

impl Kubelets {
    /// # Errors
    /// When a credential was given and cannot be used.
    pub fn new(config: &Config) -> Result<Self, CredentialsError> {
        let ca = &config.kubelet_ca_pem;
        Ok(Self {
            verifier: if ca.is_empty() { None } else { Some(tls::authority(ca)?) },
            identity: Identity::from_pem(&config.kubelet_client_cert_pem, &config.kubelet_client_key_pem)?,
            // Certificates of pods and services behind `https:` are their own affair, as upstream has it.
            any_server: Arc::new(mussel_client::tls_to_anybody()?),
            dialer: config.kubelet_dialer.clone(),
        })
    }

    fn tls(&self, node: &str) -> Result<Option<Arc<ClientConfig>>, rustls::Error> {
        let Some(verifier) = &self.verifier else { return Ok(None) };
        Ok(Some(Arc::new(tls::to_kubelet(verifier, node, self.identity.as_ref())?)))
    }

    /// TLS towards a server whose certificate nobody vouches for.
    pub fn unverified(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.any_server)
    }

    /// The kubelet of a node.
    ///
    /// # Errors
    /// 404 for an unknown node; 500 when it has no address or no credentials for it exist.
    pub fn backend(&self, snapshot: &Snapshot, node: &str) -> Result<Backend, Status> {
        let object = read(snapshot, "nodes", "", node)?;
        let address = address(&object).ok_or_else(|| {
            Status::internal(format_args!("no preferred addresses found; known addresses: [] of node {node:?}"))
        })?;
        let tls = self.tls(node).map_err(Status::internal)?;
        let tls = tls.ok_or_else(|| Status::internal("this server has no credentials for kubelets"))?;
        let through = self.dialer.clone().map(|dialer| (node.to_owned(), dialer));
        Ok(Backend { address: SocketAddr::new(address, kubelet_port(&object)), tls: Some(tls), name: None, through })
    }
}

/// The node's internal address, else its external one.
pub fn address(node: &Value) -> Option<IpAddr> {
    let addresses = node["status"]["addresses"].as_array()?;
    let of = |kind: &str| {
        addresses.iter().filter(|a| a["type"] == kind).find_map(|a| a["address"].as_str()?.parse::<IpAddr>().ok())
    };
    of("InternalIP").or_else(|| of("ExternalIP"))
}

pub fn kubelet_port(node: &Value) -> u16 {
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();
    port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0).unwrap_or(KUBELET_PORT)
}
