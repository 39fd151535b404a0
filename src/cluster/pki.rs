//! The certificate authorities of a cluster and what they sign.
//!
//! Files and their names are k3s' (`server-ca.crt`, `client-admin.crt`, `service.key`, …), so recipes keep working. A
//! leaf certificate is made anew when it expires soon, when its names change or when its CA changed; its key stays.

pub mod inspect;
mod leaf;
mod request;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use time::{Duration, OffsetDateTime};

use crate::files::{self, FileError};
pub use request::RequestError;

const CA_LIFETIME: Duration = Duration::days(3650);
const LEAF_LIFETIME: Duration = Duration::days(365);
/// A leaf with less than this left is made anew; k3s' value.
const RENEW_BEFORE: Duration = Duration::days(120);
/// Machines without a clock battery come up in the past; certificates are valid from a little before now.
const CLOCK_SLACK: Duration = Duration::hours(1);

/// The name in every server's peer certificate.
pub const PEER_NAME: &str = "mussel-peer";

/// The files in `<data-dir>/server/tls` that all servers of a cluster share.
pub const SHARED_FILES: [&str; 9] = [
    "server-ca.crt",
    "server-ca.key",
    "client-ca.crt",
    "client-ca.key",
    "request-header-ca.crt",
    "request-header-ca.key",
    "etcd/peer-ca.crt",
    "etcd/peer-ca.key",
    "service.key",
];

/// A certificate (with its chain) and its private key, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertKey {
    pub cert_pem: String,
    pub key_pem: String,
}

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} holds no usable key or certificate; put the original back or remove it and its pair", path.display())]
    Unreadable { path: PathBuf, source: rcgen::Error },
    #[error("{} exists without {}; put it back or remove both", present.display(), missing.display())]
    HalfPair { present: PathBuf, missing: PathBuf },
    #[error("the certificate signing request cannot be read or does not hold")]
    Request(#[source] rcgen::Error),
    #[error("make certificate {name}")]
    Make { name: String, source: rcgen::Error },
}

/// What a leaf certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    Client,
    Server,
    /// Both ends of a connection between servers.
    Peer,
}

/// What a leaf certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The file stem: `client-admin`.
    pub file: &'static str,
    pub usage: Usage,
    /// The user name of a client.
    pub common_name: String,
    /// The groups of a client.
    pub organizations: Vec<String>,
    pub dns_names: Vec<String>,
    pub ip_addresses: Vec<IpAddr>,
}

impl Leaf {
    pub fn client(file: &'static str, user: &str, groups: &[&str]) -> Self {
        Self {
            file,
            usage: Usage::Client,
            common_name: user.to_owned(),
            organizations: groups.iter().map(|group| (*group).to_owned()).collect(),
            dns_names: Vec::new(),
            ip_addresses: Vec::new(),
        }
    }

    /// What a server shows other servers, and they it: all have the one name.
    pub fn peer(node: &str) -> Self {
        Self {
            usage: Usage::Peer,
            ..Self::server("etcd/peer-server-client", node, vec![PEER_NAME.to_owned()], Vec::new())
        }
    }

    pub fn server(file: &'static str, name: &str, dns_names: Vec<String>, ip_addresses: Vec<IpAddr>) -> Self {
        Self {
            file,
            usage: Usage::Server,
            common_name: name.to_owned(),
            organizations: Vec::new(),
            dns_names,
            ip_addresses,
        }
    }
}

/// One certificate authority: its key signs.
pub struct Authority {
    cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// See [`request::sign`].
    ///
    /// # Errors
    /// When the request does not hold, a usage is unknown, or the authority has expired.
    pub fn sign_request(
        &self,
        request: &[u8],
        usages: &[String],
        lifetime: std::time::Duration,
    ) -> Result<String, RequestError> {
        request::sign(self, request, usages, lifetime, OffsetDateTime::now_utc())
    }

    /// Reads `<dir>/<file>.crt` and `.key`, or makes them when neither exists.
    fn ensure(dir: &Path, file: &str, now: OffsetDateTime) -> Result<Self, PkiError> {
        let (cert_path, key_path) = pair(dir, file);
        let (cert_pem, key) = match (files::read(&cert_path)?, files::read(&key_path)?) {
            (Some(cert), Some(key)) => {
                let key = KeyPair::from_pem(&key)
                    .map_err(|source| PkiError::Unreadable { path: key_path.clone(), source })?;
                (cert, key)
            }
            // The certificate is written last: a key alone is what a crash in between leaves, and it signed nothing.
            (None, _) => {
                let make = |source| PkiError::Make { name: file.to_owned(), source };
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
                let stem = file.rsplit('/').next().unwrap_or(file);
                let name = format!("mussel-{stem}@{}", now.unix_timestamp());
                let cert = ca_params(&name, now).self_signed(&key).map_err(make)?;
                files::write(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
                files::write(&cert_path, cert.pem().as_bytes(), 0o644)?;
                (cert.pem(), key)
            }
            (Some(_), None) => return Err(PkiError::HalfPair { present: cert_path, missing: key_path }),
        };
        let issuer = Issuer::from_ca_cert_pem(&cert_pem, key)
            .map_err(|source| PkiError::Unreadable { path: cert_path, source })?;
        Ok(Self { cert_pem, issuer })
    }
}

/// All of a server's certificate authorities and its service account key.
pub struct Pki {
    dir: PathBuf,
    pub server_ca: Authority,
    pub client_ca: Authority,
    pub request_header_ca: Authority,
    /// Signs what servers show each other.
    pub peer_ca: Authority,
    /// Signs service account tokens; ECDSA P-256 (ES256), PKCS #8 PEM.
    pub service_account_key_pem: String,
    /// Keys that signed them before, whose tokens are still good.
    pub service_account_old_pems: Vec<String>,
}

impl Pki {
    /// Reads or makes everything in `dir` (`<data-dir>/server/tls`).
    pub fn ensure(dir: &Path) -> Result<Self, PkiError> {
        let now = OffsetDateTime::now_utc();
        files::create_dir(dir, 0o700)?;
        let (service_account_key_pem, service_account_old_pems) = service_account_keys(&dir.join("service.key"))?;
        Ok(Self {
            dir: dir.to_owned(),
            server_ca: Authority::ensure(dir, "server-ca", now)?,
            client_ca: Authority::ensure(dir, "client-ca", now)?,
            request_header_ca: Authority::ensure(dir, "request-header-ca", now)?,
            peer_ca: Authority::ensure(dir, "etcd/peer-ca", now)?,
            service_account_key_pem,
            service_account_old_pems,
        })
    }

    /// The leaf's certificate and key from its files, made or renewed when needed. The second value tells whether it is new.
    pub fn leaf(&self, leaf: &Leaf) -> Result<(CertKey, bool), PkiError> {
        let authority = match leaf.usage {
            Usage::Client => &self.client_ca,
            Usage::Server => &self.server_ca,
            Usage::Peer => &self.peer_ca,
        };
        leaf::ensure(&self.dir, authority, leaf, OffsetDateTime::now_utc())
    }

    /// Signs what another machine asks for: its key, our words. Returns the certificate and its chain.
    ///
    /// # Errors
    /// `Request` when `csr_der` is no request that holds (its signature proves that the machine has the key).
    pub fn sign(&self, leaf: &Leaf, csr_der: &[u8]) -> Result<String, PkiError> {
        let request = CertificateSigningRequestParams::from_der(&csr_der.into()).map_err(PkiError::Request)?;
        let authority = match leaf.usage {
            Usage::Client => &self.client_ca,
            Usage::Server => &self.server_ca,
            Usage::Peer => &self.peer_ca,
        };
        leaf::sign(authority, leaf, &request.public_key, OffsetDateTime::now_utc())
    }

    /// The client certificate with which the aggregator speaks to extension API servers.
    pub fn auth_proxy(&self) -> Result<(CertKey, bool), PkiError> {
        let leaf = Leaf::client("client-auth-proxy", "system:auth-proxy", &[]);
        leaf::ensure(&self.dir, &self.request_header_ca, &leaf, OffsetDateTime::now_utc())
    }
}

/// The key in use and older ones; made when there is none.
fn service_account_keys(path: &Path) -> Result<(String, Vec<String>), PkiError> {
    if let Some(text) = files::read(path)? {
        let mut keys = private_keys(&text);
        if keys.is_empty() {
            keys.push(text);
        }
        KeyPair::from_pem(&keys[0]).map_err(|source| PkiError::Unreadable { path: path.to_owned(), source })?;
        let old = keys.split_off(1);
        return Ok((keys.remove(0), old));
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        .map_err(|source| PkiError::Make { name: "service.key".to_owned(), source })?;
    let pem = key.serialize_pem();
    files::write(path, pem.as_bytes(), 0o600)?;
    Ok((pem, Vec::new()))
}

/// The private keys in a PEM text, each as a PEM text.
pub fn private_keys(text: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut current: Option<String> = None;
    for line in text.lines().map(str::trim) {
        if line.starts_with("-----BEGIN ") && line.ends_with("PRIVATE KEY-----") {
            current = Some(String::new());
        }
        if let Some(key) = &mut current {
            key.push_str(line);
            key.push('\n');
            if line.starts_with("-----END ") {
                keys.extend(current.take());
            }
        }
    }
    keys
}

fn ca_params(name: &str, now: OffsetDateTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::KeyCertSign];
    params.not_before = now - CLOCK_SLACK;
    params.not_after = now + CA_LIFETIME;
    params
}

fn pair(dir: &Path, file: &str) -> (PathBuf, PathBuf) {
    (dir.join(format!("{file}.crt")), dir.join(format!("{file}.key")))
}
