//! New CAs and keys, from the server that is asked to all of them: by way of the Secret `kube-system/mussel-authorities`,
//! whose content is encrypted with the servers' token. They are used from each server's next start on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use mussel_client::Informer;
use rcgen::{KeyPair, PublicKeyData as _};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::Notify;
use tokio::time;
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::bootstrap::{self, BootstrapError, Sealed};
use crate::files::{self, FileError};
use crate::pki;
use crate::token::Secrets;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "mussel-authorities";
const SECRET_TYPE: &str = "mussel.io/authorities";
const KEY: &str = "files";
const RETRY: Duration = Duration::from_secs(5);

/// By names as in [`pki::SHARED_FILES`].
pub type Files = BTreeMap<String, String>;

#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    #[error("there is nothing to change: put new files into the folder, named as in <data-dir>/server/tls")]
    Nothing,
    #[error("{0} is no file that servers share")]
    Unknown(String),
    #[error("{0} is there without its other half")]
    Half(String),
    #[error("{0} holds no CA certificate")]
    NoAuthority(String),
    #[error("{0} holds no usable key (PKCS #8 PEM; openssl pkcs8 -topk8 -nocrypt makes it of other forms)")]
    NoKey(String),
    #[error("the key of {0} does not fit its certificate")]
    Unfit(String),
    #[error(
        "{0} has another root than the CA in use and is not signed by it: nodes would not trust the servers. Sign the new CA \
        with the old one, or force it and give every agent the new token"
    )]
    OtherRoot(String),
    #[error("service.key must hold the new key first and the one in use behind it, or pods' tokens stop being good")]
    OldKeyMissing,
    #[error(transparent)]
    File(#[from] FileError),
}

/// The shared files in a folder that people prepared.
///
/// # Errors
/// When one cannot be read, or none is there.
pub fn read(dir: &Path) -> Result<Files, RotationError> {
    let mut found = Files::new();
    for name in pki::SHARED_FILES {
        if let Some(content) = files::read(&dir.join(name))? {
            found.insert(name.to_owned(), content);
        }
    }
    if found.is_empty() { Err(RotationError::Nothing) } else { Ok(found) }
}

/// Whether servers and nodes can go from `current` to `new`.
///
/// # Errors
/// When a file is unusable; without `force` also when those who trust the current CAs would not trust the new ones.
pub fn check(current: &Files, new: &Files, force: bool) -> Result<(), RotationError> {
    if new.is_empty() {
        return Err(RotationError::Nothing);
    }
    if let Some(name) = new.keys().find(|name| !pki::SHARED_FILES.contains(&name.as_str())) {
        return Err(RotationError::Unknown(name.clone()));
    }
    for (name, content) in new {
        if let Some(stem) = name.strip_suffix(".crt") {
            let key = new.get(&format!("{stem}.key")).ok_or_else(|| RotationError::Half(name.clone()))?;
            check_authority(name, content, key)?;
            let before = current.get(name).map(String::as_str).unwrap_or_default();
            if !force && !continues(before, content) {
                return Err(RotationError::OtherRoot(name.clone()));
            }
        } else if name == "service.key" {
            let keys = pki::private_keys(content);
            if keys.is_empty() || keys.iter().any(|key| KeyPair::from_pem(key).is_err()) {
                return Err(RotationError::NoKey(name.clone()));
            }
            let before = current.get(name).map(String::as_str).unwrap_or_default();
            let kept = pki::private_keys(before).first().is_none_or(|old| keys.contains(old));
            if !force && !kept {
                return Err(RotationError::OldKeyMissing);
            }
        } else if let Some(stem) = name.strip_suffix(".key")
            && !new.contains_key(&format!("{stem}.crt"))
        {
            return Err(RotationError::Half(name.clone()));
        }
    }
    Ok(())
}

fn check_authority(name: &str, certificate: &str, key: &str) -> Result<(), RotationError> {
    let chain = ders(certificate);
    let first = chain.first().ok_or_else(|| RotationError::NoAuthority(name.to_owned()))?;
    let (_, parsed) = X509Certificate::from_der(first).map_err(|_| RotationError::NoAuthority(name.to_owned()))?;
    if !parsed.is_ca() {
        return Err(RotationError::NoAuthority(name.to_owned()));
    }
    let key = KeyPair::from_pem(key).map_err(|_| RotationError::NoKey(name.replace(".crt", ".key")))?;
    if parsed.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
        return Err(RotationError::Unfit(name.to_owned()));
    }
    Ok(())
}

/// Whether whoever trusts the root of `before` can trust `new`.
fn continues(before: &str, new: &str) -> bool {
    let (before, new) = (ders(before), ders(new));
    let (Some(old_root), Some(new_first)) = (before.last(), new.first()) else { return before.is_empty() };
    if new.last() == Some(old_root) {
        return true;
    }
    let (Ok((_, old)), Ok((_, new))) = (X509Certificate::from_der(old_root), X509Certificate::from_der(new_first))
    else {
        return false;
    };
    new.issuer() == old.subject() && new.verify_signature(Some(old.public_key())).is_ok()
}

fn ders(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok).collect()
}

#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error(transparent)]
    Seal(#[from] BootstrapError),
    #[error("write the new CAs")]
    Api(#[from] kube::Error),
}

/// # Errors
/// When the API refuses.
pub async fn publish(client: &Client, new: &Files, token: &str) -> Result<(), PublishError> {
    let sealed = Sealed::seal(new, token)?;
    let api: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let mut secret = Secret { type_: Some(SECRET_TYPE.to_owned()), ..Secret::default() };
    secret.metadata.name = Some(NAME.to_owned());
    secret.data = Some(BTreeMap::from([(KEY.to_owned(), ByteString(sealed))]));
    api.patch(NAME, &PatchParams::apply("mussel").force(), &Patch::Apply(&secret)).await?;
    Ok(())
}

/// The field selector of the Secret.
pub fn selector() -> String {
    format!("metadata.name={NAME}")
}

/// Writes what the Secret says into this server's files, and tells `taken_over`, until `stop`.
pub async fn follow(
    secrets: Informer<Secret>,
    used: Arc<ArcSwap<Secrets>>,
    server_dir: PathBuf,
    taken_over: Arc<Notify>,
    stop: CancellationToken,
) {
    let mut changes = secrets.changes();
    loop {
        let sealed = secrets.get(NAMESPACE, NAME).and_then(|secret| Some(secret.data.as_ref()?.get(KEY)?.0.clone()));
        let mut failed = false;
        if let Some(sealed) = sealed {
            match Sealed::open::<Files>(&sealed, &used.load().server) {
                Ok(new) => match install(&new, &server_dir) {
                    Ok(true) => taken_over.notify_one(),
                    Ok(false) => {}
                    Err(error) => {
                        tracing::error!(%error, "new CAs are not written");
                        failed = true;
                    }
                },
                // From before the token was changed: every server has long written them.
                Err(error) => tracing::debug!(%error, "CAs in the cluster's Secret are not for this token"),
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            change = changes.next() => if change.is_none() { return stop.cancelled().await },
            () = time::sleep(RETRY), if failed => {}
        }
    }
}

/// Writes files that differ, after a copy of those in use to `<server-dir>/tls-<time>`. Whether any did.
fn install(new: &Files, server_dir: &Path) -> Result<bool, FileError> {
    let dir = server_dir.join("tls");
    let mut differing = Vec::new();
    for (name, content) in new.iter().filter(|(name, _)| pki::SHARED_FILES.contains(&name.as_str())) {
        let now = files::read(&dir.join(name))?;
        if now.as_deref() != Some(content.as_str()) {
            differing.push((name, content, now));
        }
    }
    if differing.is_empty() {
        return Ok(false);
    }
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let backup = server_dir.join(format!("tls-{time}"));
    for (name, _, now) in &differing {
        if let Some(now) = now {
            files::write(&backup.join(name), now.as_bytes(), 0o600)?;
        }
    }
    // Keys first: a certificate without its key keeps a server from starting, a key without its certificate does not.
    differing.sort_by_key(|(name, ..)| !name.ends_with(".key"));
    for (name, content, _) in &differing {
        let mode = if name.ends_with(".crt") { 0o644 } else { 0o600 };
        files::write(&dir.join(name), content.as_bytes(), mode)?;
    }
    tracing::warn!(backup = %backup.display(), "new CAs were written; restart this server to use them");
    Ok(true)
}

/// The current files, for [`check`].
///
/// # Errors
/// When one is missing or cannot be read.
pub fn current(server_dir: &Path) -> Result<Files, BootstrapError> {
    let shared = bootstrap::shared_files(server_dir)?;
    Ok(shared.into_iter().filter_map(|(name, text)| Some((name.strip_prefix("tls/")?.to_owned(), text))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::Pki;

    fn files_of_a_new_cluster() -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        Pki::ensure(&dir.path().join("tls")).unwrap();
        let files = current(dir.path()).unwrap();
        (dir, files)
    }

    fn only(files: &Files, names: &[&str]) -> Files {
        names.iter().map(|name| ((*name).to_owned(), files[*name].clone())).collect()
    }

    #[test]
    fn another_root_takes_force() {
        let ((_a, current), (_b, other)) = (files_of_a_new_cluster(), files_of_a_new_cluster());
        let new = only(&other, &["client-ca.crt", "client-ca.key"]);
        assert!(matches!(check(&current, &new, false), Err(RotationError::OtherRoot(_))));
        assert!(check(&current, &new, true).is_ok());
        assert!(check(&current, &only(&current, &["client-ca.crt", "client-ca.key"]), false).is_ok());
    }

    #[test]
    fn a_ca_signed_by_the_old_one_is_taken() {
        let (_dir, current) = files_of_a_new_cluster();
        let old = rcgen::Issuer::from_ca_cert_pem(
            &current["server-ca.crt"],
            KeyPair::from_pem(&current["server-ca.key"]).unwrap(),
        )
        .unwrap();
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "new");
        let certificate = params.signed_by(&key, &old).unwrap();
        let new = Files::from([
            ("server-ca.crt".to_owned(), format!("{}{}", certificate.pem(), current["server-ca.crt"])),
            ("server-ca.key".to_owned(), key.serialize_pem()),
        ]);
        assert!(check(&current, &new, false).is_ok());
        // Servers start with it, and show a chain up to the root that nodes trust.
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in current.iter().chain(&new) {
            files::write(&dir.path().join("tls").join(name), content.as_bytes(), 0o600).unwrap();
        }
        let pki = Pki::ensure(&dir.path().join("tls")).unwrap();
        let leaf = pki::Leaf::server("serving-kube-apiserver", "kube-apiserver", vec!["kubernetes".to_owned()], vec![]);
        let (pair, _) = pki.leaf(&leaf).unwrap();
        let chain = ders(&pair.cert_pem);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ders(&current["server-ca.crt"]).remove(0)).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        use rustls::client::danger::ServerCertVerifier as _;
        let name = rustls::pki_types::ServerName::try_from("kubernetes").unwrap();
        let now = rustls::pki_types::UnixTime::now();
        assert!(verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], now).is_ok());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let ((_a, current), (_b, other)) = (files_of_a_new_cluster(), files_of_a_new_cluster());
        let half = only(&other, &["client-ca.crt"]);
        assert!(matches!(check(&current, &half, true), Err(RotationError::Half(_))));
        let mut crossed = only(&other, &["client-ca.crt", "client-ca.key"]);
        crossed.insert("client-ca.key".to_owned(), other["server-ca.key"].clone());
        assert!(matches!(check(&current, &crossed, true), Err(RotationError::Unfit(_))));
        let key = only(&other, &["service.key"]);
        assert!(matches!(check(&current, &key, false), Err(RotationError::OldKeyMissing)));
        let both = Files::from([("service.key".to_owned(), other["service.key"].clone() + &current["service.key"])]);
        assert!(check(&current, &both, false).is_ok());
        let strange = Files::from([("../x".to_owned(), String::new())]);
        assert!(matches!(check(&current, &strange, true), Err(RotationError::Unknown(_))));
    }

    #[test]
    fn what_was_there_is_kept_aside() {
        let ((dir, current), (_b, other)) = (files_of_a_new_cluster(), files_of_a_new_cluster());
        let new = only(&other, &["client-ca.crt", "client-ca.key"]);
        install(&new, dir.path()).unwrap();
        assert_eq!(super::current(dir.path()).unwrap()["client-ca.crt"], other["client-ca.crt"]);
        let backup = std::fs::read_dir(dir.path()).unwrap().flatten().map(|entry| entry.path());
        let backup = backup.into_iter().find(|path| path.display().to_string().contains("tls-")).unwrap();
        assert_eq!(std::fs::read_to_string(backup.join("client-ca.key")).unwrap(), current["client-ca.key"]);
    }
}
