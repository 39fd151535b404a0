//! How servers reach each other: TLS on the one port, both ends with a certificate of the peer CA.

use std::io;
use std::sync::Arc;

use futures::future::BoxFuture;
use mussel_apiserver::server::PEER_PROTOCOL;
use mussel_client::ClientIdentity;
use mussel_store::{PeerStream, Transport};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::TlsConnector;

use crate::balancer;
use crate::pki::PEER_NAME;

#[derive(Debug, thiserror::Error)]
pub enum PeerTlsError {
    #[error("the peer CA cannot be read")]
    Authority(#[source] rustls::pki_types::pem::Error),
    #[error("TLS between servers cannot be set up")]
    Tls(#[from] rustls::Error),
    #[error("{PEER_NAME} is no name")]
    Name(#[from] rustls::pki_types::InvalidDnsNameError),
}

/// Connects to other servers.
pub struct PeerTransport {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl PeerTransport {
    /// # Errors
    /// When the CA cannot be used.
    pub fn new(ca_pem: &str, identity: Arc<ClientIdentity>) -> Result<Self, PeerTlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
            roots.add(certificate.map_err(PeerTlsError::Authority)?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_cert_resolver(identity);
        config.alpn_protocols = vec![PEER_PROTOCOL.to_vec()];
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name: ServerName::try_from(PEER_NAME)? })
    }
}

impl Transport for PeerTransport {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn PeerStream>>> {
        Box::pin(async move {
            let stream = balancer::connect(address).await?;
            let stream = self.connector.connect(self.name.clone(), stream).await?;
            // A server that does not know the protocol would take our frames for HTTP.
            if stream.get_ref().1.alpn_protocol() != Some(PEER_PROTOCOL) {
                return Err(io::Error::other("the server does not speak to other servers"));
            }
            Ok(Box::new(stream) as Box<dyn PeerStream>)
        })
    }
}
