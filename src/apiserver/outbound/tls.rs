//! TLS towards other servers: whom to believe, and who we are.

use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use x509_parser::prelude::{ASN1Time, FromDer as _, X509Certificate};

/// Whose certificates are believed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Trust {
    /// What these CAs have signed, PEM; empty: the system's roots.
    Bundle(Vec<u8>),
    /// Whoever answers.
    Anybody,
}

#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("not PEM: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("not usable: {0}")]
    Tls(#[from] rustls::Error),
    #[error("the CA cannot be used: {0}")]
    Ca(#[from] rustls::client::VerifierBuilderError),
}

/// The certificate that we show, and its key.
#[derive(Debug)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// `None` when nothing is given.
    ///
    /// # Errors
    /// When what is given is no certificate with its key.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Option<Self>, CredentialsError> {
        if chain.is_empty() {
            return Ok(None);
        }
        let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>()?;
        let identity = Self { chain, key: PrivateKeyDer::from_pem_slice(key)? };
        // Found out now rather than at the first use.
        config(mussel_client::any_server(), Some(&identity))?;
        Ok(Some(identity))
    }
}

/// TLS that believes `trust` and shows `identity`.
///
/// # Errors
/// When the bundle holds no certificate.
pub fn client_config(trust: &Trust, identity: Option<&Identity>) -> Result<ClientConfig, String> {
    let verifier: Arc<dyn ServerCertVerifier> = match trust {
        Trust::Anybody => mussel_client::any_server(),
        Trust::Bundle(pem) => {
            let (roots, itself) = if pem.is_empty() { (system_roots(), Vec::new()) } else { bundle(pem)? };
            let chains = chains(roots).map_err(|error| error.to_string())?;
            Arc::new(Verifier { chains, also: Also::Itself(itself) })
        }
    };
    config(verifier, identity).map_err(|error| error.to_string())
}

/// TLS towards the kubelet of this node, whose certificate is to be signed by what `ca` has been made of.
///
/// # Errors
/// When the identity cannot be used.
pub fn to_kubelet(
    ca: &Arc<WebPkiServerVerifier>,
    node: &str,
    identity: Option<&Identity>,
) -> Result<ClientConfig, rustls::Error> {
    let verifier = Verifier { chains: Arc::clone(ca), also: Also::Named(node.to_owned()) };
    config(Arc::new(verifier), identity)
}

/// Follows chains up to the CAs of a PEM text.
///
/// # Errors
/// When it holds none.
pub fn authority(pem: &[u8]) -> Result<Arc<WebPkiServerVerifier>, CredentialsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate?)?;
    }
    Ok(chains(Arc::new(roots))?)
}

fn chains(roots: Arc<RootCertStore>) -> Result<Arc<WebPkiServerVerifier>, rustls::client::VerifierBuilderError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    WebPkiServerVerifier::builder_with_provider(roots, provider).build()
}

fn config(verifier: Arc<dyn ServerCertVerifier>, identity: Option<&Identity>) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key()),
        None => Ok(builder.with_no_client_auth()),
    }
}

fn bundle(pem: &[u8]) -> Result<(Arc<RootCertStore>, Vec<CertificateDer<'static>>), String> {
    let mut roots = RootCertStore::empty();
    let mut trusted = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| format!("unable to load root certificates: {error}"))?;
        roots.add(certificate.clone()).map_err(|error| format!("unable to load root certificates: {error}"))?;
        trusted.push(certificate);
    }
    if roots.is_empty() {
        return Err("unable to load root certificates: unable to parse bytes as PEM block".to_owned());
    }
    Ok((Arc::new(roots), trusted))
}

/// Read once: a machine's roots change with its packages, which is no reason to read them for every call.
fn system_roots() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let read = || {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        for error in found.errors {
            tracing::debug!(%error, "a system root certificate cannot be read");
        }
        roots.add_parsable_certificates(found.certs);
        Arc::new(roots)
    };
    Arc::clone(ROOTS.get_or_init(read))
}

/// Follows chains, and lets one more thing pass.
#[derive(Debug)]
struct Verifier {
    chains: Arc<WebPkiServerVerifier>,
    also: Also,
}

#[derive(Debug)]
enum Also {
    /// The bundle's certificates themselves: charts make a certificate that signs itself, and name it as its own CA.
    Itself(Vec<CertificateDer<'static>>),
    /// A certificate for this name instead of the address dialled: a node's may be older than its address.
    Named(String),
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let outcome = self.chains.verify_server_cert(end_entity, intermediates, server_name, ocsp, now);
        let trusted = match &self.also {
            Also::Itself(trusted) => trusted,
            Also::Named(name) => {
                let wrong_name = matches!(
                    outcome,
                    Err(rustls::Error::InvalidCertificate(
                        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
                    ))
                );
                return match ServerName::try_from(name.as_str()) {
                    Ok(name) if wrong_name => {
                        self.chains.verify_server_cert(end_entity, intermediates, &name, ocsp, now)
                    }
                    _ => outcome,
                };
            }
        };
        if outcome.is_ok() || !trusted.iter().any(|trusted| trusted == end_entity) {
            return outcome;
        }
        rustls::client::verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        let bad = || rustls::Error::InvalidCertificate(CertificateError::BadEncoding);
        let (_, certificate) = X509Certificate::from_der(end_entity).map_err(|_| bad())?;
        let seconds = i64::try_from(now.as_secs()).map_err(|_| bad())?;
        let now = ASN1Time::from_timestamp(seconds).map_err(|_| bad())?;
        if !certificate.validity().is_valid_at(now) {
            return Err(rustls::Error::InvalidCertificate(CertificateError::Expired));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    use super::*;

    fn outcome(signs: bool, bundle_is_other: bool, name: &str) -> Result<(), String> {
        let make = || {
            let mut params = CertificateParams::new(vec!["hook.default.svc".to_owned()]).unwrap();
            params.is_ca = if signs { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::NoCa };
            params.self_signed(&KeyPair::generate().unwrap()).unwrap()
        };
        let (own, other) = (make(), make());
        let pem = if bundle_is_other { other.pem() } else { own.pem() };
        let (roots, trusted) = bundle(pem.as_bytes()).unwrap();
        let verifier = Verifier { chains: chains(roots).unwrap(), also: Also::Itself(trusted) };
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let verified = verifier.verify_server_cert(own.der(), &[], &name, &[], UnixTime::now());
        verified.map(|_| ()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_certificate_may_be_its_own_authority() {
        assert_eq!(outcome(true, false, "hook.default.svc"), Ok(()));
        assert_eq!(outcome(false, false, "hook.default.svc"), Ok(()));
        assert!(outcome(false, false, "other.default.svc").unwrap_err().contains("not valid for name"));
        assert!(outcome(false, true, "hook.default.svc").is_err());
    }
}
