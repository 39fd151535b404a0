//! What a joining server gets from the others: CAs with their keys, the key of service accounts, the cluster's settings.
//!
//! It travels over TLS to whoever knows the servers' token, and is encrypted with that token besides.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::pbkdf2;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::files::{self, FileError};
use crate::pki;
use crate::settings::ClusterSettings;

const FORMAT: u32 = 1;
const ROUNDS: u32 = 100_000;
const ROUNDS_MAX: u32 = 10_000_000;
/// Shared when they exist, below `<data-dir>/server`.
const OPTIONAL_FILES: [&str; 1] = [ENCRYPTION_CONFIG];
/// The keys that Secrets are encrypted with.
pub const ENCRYPTION_CONFIG: &str = "cred/encryption-config.json";

#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{0} is missing; it is needed by servers that join")]
    Missing(String),
    #[error("it has format {0}, this version reads format {FORMAT}")]
    Format(u32),
    #[error("it is damaged, or encrypted with another token")]
    Sealed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bootstrap {
    pub settings: ClusterSettings,
    /// The store's id of the cluster.
    pub cluster: String,
    /// `host:port` of the members, to be asked for membership.
    pub members: Vec<String>,
    /// The agents' token, when they have one of their own.
    pub agent_token: Option<String>,
    /// By their paths below `<data-dir>/server`.
    pub files: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    format: u32,
    rounds: u32,
    salt: String,
    nonce: String,
    data: String,
}

/// The files that all servers share, from `server_dir`.
///
/// # Errors
/// When one is missing or cannot be read.
pub fn shared_files(server_dir: &Path) -> Result<BTreeMap<String, String>, BootstrapError> {
    let mut found = BTreeMap::new();
    for file in pki::SHARED_FILES {
        let name = format!("tls/{file}");
        let content = files::read(&server_dir.join(&name))?.ok_or_else(|| BootstrapError::Missing(name.clone()))?;
        found.insert(name, content);
    }
    for name in OPTIONAL_FILES {
        if let Some(content) = files::read(&server_dir.join(name))? {
            found.insert(name.to_owned(), content);
        }
    }
    Ok(found)
}

/// Something encrypted with the servers' token.
pub struct Sealed;

impl Sealed {
    /// # Errors
    /// `Sealed` when it cannot be encrypted, which only a broken random source makes.
    pub fn seal(value: &impl Serialize, token: &str) -> Result<Vec<u8>, BootstrapError> {
        let (salt, nonce): ([u8; 16], [u8; NONCE_LEN]) = (rand::random(), rand::random());
        let mut data = serde_json::to_vec(value).map_err(|_| BootstrapError::Sealed)?;
        let key = key(token, &salt, ROUNDS)?;
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut data)
            .map_err(|_| BootstrapError::Sealed)?;
        let envelope = Envelope {
            format: FORMAT,
            rounds: ROUNDS,
            salt: STANDARD.encode(salt),
            nonce: STANDARD.encode(nonce),
            data: STANDARD.encode(data),
        };
        serde_json::to_vec(&envelope).map_err(|_| BootstrapError::Sealed)
    }

    /// # Errors
    /// When it is of another format, damaged or sealed with another token.
    pub fn open<T: DeserializeOwned>(sealed: &[u8], token: &str) -> Result<T, BootstrapError> {
        let envelope: Envelope = serde_json::from_slice(sealed).map_err(|_| BootstrapError::Sealed)?;
        if envelope.format != FORMAT {
            return Err(BootstrapError::Format(envelope.format));
        }
        let decode = |text: &str| STANDARD.decode(text).map_err(|_| BootstrapError::Sealed);
        let nonce = Nonce::try_assume_unique_for_key(&decode(&envelope.nonce)?).map_err(|_| BootstrapError::Sealed)?;
        let mut data = decode(&envelope.data)?;
        let key = key(token, &decode(&envelope.salt)?, envelope.rounds)?;
        let data = key.open_in_place(nonce, Aad::empty(), &mut data).map_err(|_| BootstrapError::Sealed)?;
        serde_json::from_slice(data).map_err(|_| BootstrapError::Sealed)
    }
}

impl Bootstrap {
    /// # Errors
    /// As [`Sealed::seal`].
    pub fn seal(&self, token: &str) -> Result<Vec<u8>, BootstrapError> {
        Sealed::seal(self, token)
    }

    /// # Errors
    /// As [`Sealed::open`]; also when it names files that servers do not share.
    pub fn open(sealed: &[u8], token: &str) -> Result<Self, BootstrapError> {
        let opened: Self = Sealed::open(sealed, token)?;
        // The names become paths.
        let known = |name: &str| {
            let tls = name.strip_prefix("tls/").is_some_and(|file| pki::SHARED_FILES.contains(&file));
            tls || OPTIONAL_FILES.contains(&name)
        };
        if opened.files.keys().all(|name| known(name)) { Ok(opened) } else { Err(BootstrapError::Sealed) }
    }

    /// Writes the files below `server_dir`, keys before certificates.
    ///
    /// # Errors
    /// When a file cannot be written; a repeat is right then.
    pub fn write(&self, server_dir: &Path) -> Result<(), FileError> {
        files::create_dir(&server_dir.join("tls"), 0o700)?;
        let is_key = |name: &str| name.ends_with(".key");
        let mut ordered: Vec<_> = self.files.iter().collect();
        ordered.sort_by_key(|(name, _)| !is_key(name));
        for (name, content) in ordered {
            let mode = if name.ends_with(".crt") { 0o644 } else { 0o600 };
            let path = server_dir.join(name);
            if files::read(&path)?.as_deref() != Some(content.as_str()) {
                files::write(&path, content.as_bytes(), mode)?;
            }
        }
        Ok(())
    }
}

fn key(token: &str, salt: &[u8], rounds: u32) -> Result<LessSafeKey, BootstrapError> {
    let rounds = NonZeroU32::new(rounds.min(ROUNDS_MAX)).ok_or(BootstrapError::Sealed)?;
    let mut key = [0; 32];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, salt, token.as_bytes(), &mut key);
    UnboundKey::new(&AES_256_GCM, &key).map(LessSafeKey::new).map_err(|_| BootstrapError::Sealed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(dir: &Path) -> Bootstrap {
        pki::Pki::ensure(&dir.join("tls")).unwrap();
        Bootstrap {
            settings: crate::settings::sample(),
            cluster: "00".to_owned(),
            members: vec!["10.0.0.1:6443".to_owned()],
            agent_token: None,
            files: shared_files(dir).unwrap(),
        }
    }

    #[test]
    fn only_the_token_opens_it() {
        let dir = tempfile::tempdir().unwrap();
        let bootstrap = sample(dir.path());
        let sealed = bootstrap.seal("s3cret").unwrap();
        assert!(!String::from_utf8_lossy(&sealed).contains("PRIVATE KEY"));
        assert_eq!(Bootstrap::open(&sealed, "s3cret").unwrap(), bootstrap);
        assert!(matches!(Bootstrap::open(&sealed, "other"), Err(BootstrapError::Sealed)));
        assert!(matches!(Bootstrap::open(b"{}", "s3cret"), Err(BootstrapError::Sealed)));
    }

    #[test]
    fn a_server_made_of_it_has_the_same_authorities() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let bootstrap = sample(first.path());
        bootstrap.write(second.path()).unwrap();
        let pki = pki::Pki::ensure(&second.path().join("tls")).unwrap();
        assert_eq!(pki.server_ca.cert_pem(), bootstrap.files["tls/server-ca.crt"]);
        assert_eq!(pki.peer_ca.cert_pem(), bootstrap.files["tls/etcd/peer-ca.crt"]);
        assert_eq!(shared_files(second.path()).unwrap(), bootstrap.files);
    }

    #[test]
    fn names_that_are_no_shared_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut bootstrap = sample(dir.path());
        bootstrap.files.insert("../../etc/passwd".to_owned(), String::new());
        let sealed = bootstrap.seal("s3cret").unwrap();
        assert!(matches!(Bootstrap::open(&sealed, "s3cret"), Err(BootstrapError::Sealed)));
    }
}
