//! Where a node's kubelet is, and how to speak with it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;

use super::backend::{Backend, KubeletDialer, NodeCertificate};
use super::read;
use crate::config::Config;
use crate::encryption::Snapshot;
use crate::status::Status;

const KUBELET_PORT: u16 = 10250;

#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("not PEM: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("not usable: {0}")]
    Tls(#[from] rustls::Error),
    #[error("the kubelet CA cannot be used: {0}")]
    Ca(#[from] rustls::client::VerifierBuilderError),
}

/// This server's credentials for kubelets, and TLS for other backends.
pub struct Kubelets {
    provider: Arc<rustls::crypto::CryptoProvider>,
    /// `None` when no CA was given: no kubelet can be reached then.
    verifier: Option<Arc<WebPkiServerVerifier>>,
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    any_server: Arc<ClientConfig>,
    dialer: Option<Arc<dyn KubeletDialer>>,
}

impl Kubelets {
    /// # Errors
    /// When a credential was given and cannot be used.
    pub fn new(config: &Config) -> Result<Self, CredentialsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = if config.kubelet_ca_pem.is_empty() {
            None
        } else {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(&config.kubelet_ca_pem) {
                roots.add(certificate?)?;
            }
            Some(WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?)
        };
        let identity = if config.kubelet_client_cert_pem.is_empty() {
            None
        } else {
            let chain = CertificateDer::pem_slice_iter(&config.kubelet_client_cert_pem).collect::<Result<_, _>>()?;
            Some((chain, PrivateKeyDer::from_pem_slice(&config.kubelet_client_key_pem)?))
        };
        let kubelets = Self {
            provider,
            verifier,
            identity,
            // Certificates of pods and services behind `https:` are their own affair, as upstream has it.
            any_server: Arc::new(mussel_client::tls_to_anybody()?),
            dialer: config.kubelet_dialer.clone(),
        };
        // Found out now rather than at the first exec.
        if kubelets.verifier.is_some() {
            kubelets.tls("node")?;
        }
        Ok(kubelets)
    }

    fn tls(&self, node: &str) -> Result<Option<Arc<ClientConfig>>, rustls::Error> {
        let Some(verifier) = &self.verifier else { return Ok(None) };
        let verifier = NodeCertificate { inner: Arc::clone(verifier), node: node.to_owned() };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let config = match &self.identity {
            Some((chain, key)) => builder.with_client_auth_cert(chain.clone(), key.clone_key())?,
            None => builder.with_no_client_auth(),
        };
        Ok(Some(Arc::new(config)))
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
        Ok(Backend { address: SocketAddr::new(address, kubelet_port(&object)), tls: Some(tls), through })
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
