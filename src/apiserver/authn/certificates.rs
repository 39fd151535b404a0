//! Client certificates: the handshake lets any in and this module says whose they are, so that a stranger gets an HTTP
//! 401 with a reason instead of a broken connection.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::PeerCertificate;
use crate::handler::UserInfo;

#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("the {0} CA holds no certificate")]
    Empty(&'static str),
    #[error("the {what} CA cannot be read: {why}")]
    Unreadable { what: &'static str, why: String },
}

/// The authorities that client certificates are checked against.
#[derive(Debug)]
pub struct ClientCas {
    users: Arc<dyn ClientCertVerifier>,
    front_proxy: Option<Arc<dyn ClientCertVerifier>>,
}

impl ClientCas {
    /// # Errors
    /// When a PEM text holds no certificate or one that is no certificate.
    pub fn new(users_pem: &[u8], front_proxy_pem: Option<&[u8]>) -> Result<Self, CaError> {
        let front_proxy = front_proxy_pem.map(|pem| verifier("request header", pem)).transpose()?;
        Ok(Self { users: verifier("client", users_pem)?, front_proxy })
    }

    /// Whose certificate chain this is.
    pub fn identify(&self, chain: &[CertificateDer<'_>]) -> PeerCertificate {
        let Some((leaf, intermediates)) = chain.split_first() else { return PeerCertificate::None };
        let now = UnixTime::now();
        let signed_by = |ca: &Arc<dyn ClientCertVerifier>| ca.verify_client_cert(leaf, intermediates, now).is_ok();
        if self.front_proxy.as_ref().is_some_and(signed_by)
            && let Some(user) = user(leaf)
        {
            return PeerCertificate::FrontProxy(user.name);
        }
        match user(leaf) {
            Some(user) if signed_by(&self.users) => PeerCertificate::User(Arc::new(user)),
            _ => PeerCertificate::Unknown,
        }
    }
}

/// Verifies chains up to these CAs.
///
/// # Errors
/// When the PEM text holds none, or one that cannot be read.
pub fn verifier(what: &'static str, pem: &[u8]) -> Result<Arc<dyn ClientCertVerifier>, CaError> {
    let fail = |why: String| CaError::Unreadable { what, why };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| fail(error.to_string()))?;
        roots.add(certificate).map_err(|error| fail(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(CaError::Empty(what));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    builder.build().map_err(|error| fail(error.to_string()))
}

/// Whether the chain is valid now and ends at the CA.
pub fn is_signed_by(ca: &Arc<dyn ClientCertVerifier>, chain: &[CertificateDer<'_>]) -> bool {
    chain.split_first().is_some_and(|(leaf, rest)| ca.verify_client_cert(leaf, rest, UnixTime::now()).is_ok())
}

/// Common name and organizations, as user and groups. `None` without a common name.
fn user(leaf: &CertificateDer<'_>) -> Option<UserInfo> {
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    if name.is_empty() {
        return None;
    }
    let groups: Vec<&str> = subject.iter_organization().filter_map(|o| o.as_str().ok()).collect();
    let mut user = UserInfo::new(&name, &groups);
    let digest = ring::digest::digest(&ring::digest::SHA256, leaf);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    user.extra.insert("authentication.kubernetes.io/credential-id".to_owned(), vec![format!("X509SHA256={hex}")]);
    Some(user)
}

/// The handshake's verifier: checks that the client holds the key of the certificate it shows, and leaves the rest to
/// [`ClientCas::identify`].
#[derive(Debug)]
pub struct AnyCertificate {
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl AnyCertificate {
    pub fn new() -> Self {
        Self { provider: Arc::new(rustls::crypto::ring::default_provider()) }
    }
}

impl Default for AnyCertificate {
    fn default() -> Self {
        Self::new()
    }
}

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
