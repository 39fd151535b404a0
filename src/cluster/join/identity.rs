//! What a node keeps of its cluster, in `<data-dir>/agent`: CAs, keys, certificates and the cluster's settings. With these it
//! starts its pods when no server can be reached.

use std::path::Path;

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::files::{self, FileError};
use crate::pki::CertKey;
use crate::protocol::Certificate;
use crate::settings::ClusterSettings;

const SETTINGS: &str = "etc/cluster.json";

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("make a key for {file}")]
    Key { file: &'static str, source: rcgen::Error },
}

/// Everything a node needs to be one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Signed the servers' certificates.
    pub server_ca_pem: String,
    /// Signs client certificates, of those who may speak to the kubelet.
    pub client_ca_pem: String,
    pub serving_kubelet: CertKey,
    pub client_kubelet: CertKey,
    pub client_proxy: CertKey,
    pub settings: ClusterSettings,
}

impl Identity {
    /// `None` unless all of it is there.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn load(dir: &Path) -> Result<Option<Self>, FileError> {
        let pair = |certificate: Certificate| -> Result<Option<CertKey>, FileError> {
            let read = |ending: &str| files::read(&dir.join(format!("{}.{ending}", certificate.file())));
            let (Some(cert_pem), Some(key_pem)) = (read("crt")?, read("key")?) else { return Ok(None) };
            Ok(Some(CertKey { cert_pem, key_pem }))
        };
        let settings = files::read(&dir.join(SETTINGS))?.and_then(|text| serde_json::from_str(&text).ok());
        let parts = (
            files::read(&dir.join("server-ca.crt"))?,
            files::read(&dir.join("client-ca.crt"))?,
            pair(Certificate::ServingKubelet)?,
            pair(Certificate::ClientKubelet)?,
            pair(Certificate::ClientProxy)?,
            settings,
        );
        let (
            Some(server_ca_pem),
            Some(client_ca_pem),
            Some(serving_kubelet),
            Some(client_kubelet),
            Some(client_proxy),
            Some(settings),
        ) = parts
        else {
            return Ok(None);
        };
        Ok(Some(Self { server_ca_pem, client_ca_pem, serving_kubelet, client_kubelet, client_proxy, settings }))
    }

    /// # Errors
    /// When a file cannot be written; some may be then.
    pub fn save(&self, dir: &Path) -> Result<(), FileError> {
        for (certificate, pair) in [
            (Certificate::ServingKubelet, &self.serving_kubelet),
            (Certificate::ClientKubelet, &self.client_kubelet),
            (Certificate::ClientProxy, &self.client_proxy),
        ] {
            write(&dir.join(format!("{}.key", certificate.file())), &pair.key_pem, 0o600)?;
            write(&dir.join(format!("{}.crt", certificate.file())), &pair.cert_pem, 0o644)?;
        }
        write(&dir.join("client-ca.crt"), &self.client_ca_pem, 0o644)?;
        write(&dir.join("server-ca.crt"), &self.server_ca_pem, 0o644)?;
        let settings = serde_json::to_string_pretty(&self.settings).unwrap_or_default();
        write(&dir.join(SETTINGS), &settings, 0o644)
    }
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), FileError> {
    if files::read(path)?.as_deref() == Some(text) {
        return Ok(());
    }
    files::write(path, text.as_bytes(), mode)
}

impl Identity {
    /// The node that the certificates are of.
    pub fn node_name(&self) -> Option<String> {
        let der = CertificateDer::from_pem_slice(self.client_kubelet.cert_pem.as_bytes()).ok()?;
        let (_, certificate) = X509Certificate::from_der(&der).ok()?;
        let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
        name.strip_prefix("system:node:").map(str::to_owned)
    }

    /// Gives up the certificates, since they are of a name that is not this machine's any more. Keys and CAs stay.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn forget(dir: &Path) -> Result<(), FileError> {
        for certificate in [Certificate::ClientKubelet, Certificate::ClientProxy, Certificate::ServingKubelet] {
            files::remove(&dir.join(format!("{}.crt", certificate.file())))?;
        }
        Ok(())
    }
}

/// The key of a certificate, kept or new (and then not written yet), and a request to sign for it.
pub fn request(dir: &Path, certificate: Certificate) -> Result<(String, Vec<u8>), IdentityError> {
    let fail = |source| IdentityError::Key { file: certificate.file(), source };
    let kept = files::read(&dir.join(format!("{}.key", certificate.file())))?;
    let key = match kept.and_then(|pem| KeyPair::from_pem(&pem).ok()) {
        Some(key) => key,
        None => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(fail)?,
    };
    let request = CertificateParams::default().serialize_request(&key).map_err(fail)?;
    Ok((key.serialize_pem(), request.der().to_vec()))
}

/// The password that ties the node's name to this machine, made at first use.
///
/// # Errors
/// When the file cannot be read or written.
pub fn ensure_password(path: &Path) -> Result<String, FileError> {
    Made::read_or_make::<16>(path)?.keep()
}

/// The id that sets this machine apart from others of its name, made at first use.
///
/// # Errors
/// As [`ensure_password`].
pub fn ensure_id(path: &Path) -> Result<String, FileError> {
    Made::read_or_make::<4>(path)?.keep()
}

/// Random hex digits that a file holds, or is to hold.
pub struct Made<'a> {
    path: &'a Path,
    pub text: String,
    is_new: bool,
}

impl<'a> Made<'a> {
    /// Of so many bytes. Nothing is written.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read_or_make<const BYTES: usize>(path: &'a Path) -> Result<Self, FileError> {
        let kept = files::read(path)?.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let is_new = kept.is_none();
        let random = || rand::random::<[u8; BYTES]>().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { path, text: kept.unwrap_or_else(random), is_new })
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn keep(self) -> Result<String, FileError> {
        if self.is_new {
            files::write(self.path, format!("{}\n", self.text).as_bytes(), 0o600)?;
        }
        Ok(self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_whole_or_absent() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Identity::load(dir.path()).unwrap(), None);
        let pair = |name: &str| CertKey { cert_pem: format!("{name} cert"), key_pem: format!("{name} key") };
        let identity = Identity {
            server_ca_pem: "server ca".to_owned(),
            client_ca_pem: "client ca".to_owned(),
            serving_kubelet: pair("serving"),
            client_kubelet: pair("client"),
            client_proxy: pair("proxy"),
            settings: crate::settings::sample(),
        };
        identity.save(dir.path()).unwrap();
        assert_eq!(Identity::load(dir.path()).unwrap(), Some(identity));
        std::fs::remove_file(dir.path().join("client-kubelet.key")).unwrap();
        assert_eq!(Identity::load(dir.path()).unwrap(), None);
    }

    #[test]
    fn a_password_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node/password");
        let first = ensure_password(&path).unwrap();
        assert_eq!(first.len(), 32);
        assert_eq!(ensure_password(&path).unwrap(), first);
    }
}
