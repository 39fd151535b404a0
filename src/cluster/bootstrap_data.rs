//! What makes a new machine the cluster's server, kept in the store, so that a snapshot has it too: CAs with their keys, the
//! key of service accounts, the agents' token; sealed with the servers' token. The keys that Secrets are encrypted with are
//! kept there by the API server, under the same seal.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use mussel_apiserver::ApiServer;
use mussel_apiserver::encryption::RotationError;
use mussel_store::{CommitError, ReadError};
use tokio::sync::{Notify, watch};
use tokio::time;
use tokio_util::sync::CancellationToken;

pub use mussel_apiserver::bootstrap_data::KEY;

use crate::bootstrap::{self, Bootstrap, BootstrapError, ENCRYPTION_CONFIG};
use crate::files;
use crate::pki;
use crate::settings::ClusterSettings;
use crate::token::{self, Secrets, Token, TokenError};

const RETRY: Duration = Duration::from_secs(5);

/// Keeps it up to date; the work is the store's leader's.
pub struct BootstrapData {
    pub api: ApiServer,
    pub leader: watch::Receiver<bool>,
    pub settings: ClusterSettings,
    /// The store's id of the cluster.
    pub cluster: String,
    pub secrets: Arc<ArcSwap<Secrets>>,
    /// `<data-dir>/server`
    pub server_dir: PathBuf,
    /// Told when token or CAs have changed.
    pub changed: Arc<Notify>,
}

#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("seal the encryption keys")]
    Keys(#[from] RotationError),
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    #[error("read the bootstrap data")]
    Read(#[from] ReadError),
    #[error("write the bootstrap data")]
    Write(#[from] CommitError),
    #[error("the work was stopped")]
    Stopped,
}

impl BootstrapData {
    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let failed = match self.keep().await {
                Ok(()) => false,
                Err(error) => {
                    tracing::warn!(error = chain(&error), "the bootstrap data in the store is not up to date yet");
                    true
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.changed.notified() => {}
                led = self.leader.changed() => if led.is_err() { return stop.cancelled().await },
                () = time::sleep(RETRY), if failed => {}
            }
        }
    }

    async fn keep(&mut self) -> Result<(), KeepError> {
        self.api.encryption().reseal().await?;
        if !*self.leader.borrow_and_update() {
            return Ok(());
        }
        let secrets = self.secrets.load_full();
        let mut files = bootstrap::shared_files(&self.server_dir)?;
        files.remove(ENCRYPTION_CONFIG);
        let wanted = Bootstrap {
            settings: self.settings.clone(),
            cluster: self.cluster.clone(),
            // Where the servers are is of no use to a cluster that begins anew.
            members: Vec::new(),
            agent_token: (secrets.agent != secrets.server).then(|| secrets.agent.clone()),
            files,
        };
        let stored = self.api.bootstrap_data().await?;
        let (before, sealed) = match stored {
            Some((sealed, revision)) => (Some(revision), Some(sealed)),
            None => (None, None),
        };
        // Key derivation takes a while on a small machine.
        let sealing = tokio::task::spawn_blocking(move || {
            let is_same = |sealed: &[u8]| Bootstrap::open(sealed, &secrets.server).is_ok_and(|kept| kept == wanted);
            if sealed.is_some_and(|sealed| is_same(&sealed)) {
                return Ok(None);
            }
            wanted.seal(&secrets.server).map(Some)
        });
        let Some(sealed) = sealing.await.map_err(|_| KeepError::Stopped)?? else { return Ok(()) };
        self.api.put_bootstrap_data(before, sealed.into()).await?;
        tracing::info!("CAs and keys are kept in the store, sealed with the servers' token");
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(
        "the snapshot's CAs and keys cannot be opened: {reason}. Give the servers' token of the time when it was taken, with \
         --token"
    )]
    Token { reason: String },
    #[error(transparent)]
    Given(#[from] TokenError),
    #[error(transparent)]
    File(#[from] files::FileError),
}

/// What a restore writes beside the store.
pub struct Restoration {
    bootstrap: Bootstrap,
    secrets: Secrets,
    /// This machine has no CAs: it takes the place of another one.
    pub is_new: bool,
}

/// Opens what a snapshot holds under [`KEY`], with the token that is given, else with the one kept in `server_dir`. `None`
/// when nothing of it is needed: it holds none, or this machine has CAs and only its own token, which does not open it.
/// Nothing is written.
///
/// # Errors
/// `Token` when it does not open, but has to.
pub fn open(
    sealed: Option<&[u8]>,
    given: Option<&str>,
    server_dir: &Path,
) -> Result<Option<Restoration>, RestoreError> {
    let is_new = files::read(&server_dir.join("tls").join(pki::SHARED_FILES[1]))?.is_none();
    let Some(sealed) = sealed else {
        if is_new {
            tracing::warn!(
                "the snapshot holds no CAs, and there are none here: new ones are made, and every agent joins anew"
            );
        }
        return Ok(None);
    };
    let kept = files::read(&server_dir.join("token"))?;
    let Some(text) = given.or(kept.as_deref()) else {
        return Err(RestoreError::Token { reason: "there is no token".to_owned() });
    };
    let token = Token::parse(text)?;
    let password = token.password()?;
    match Bootstrap::open(sealed, password) {
        Ok(bootstrap) => {
            if let Some(ca_pem) = bootstrap.files.get("tls/server-ca.crt") {
                token.check_ca(ca_pem)?;
            }
            let server = password.to_owned();
            let agent = bootstrap.agent_token.clone().unwrap_or_else(|| server.clone());
            Ok(Some(Restoration { bootstrap, secrets: Secrets { server, agent }, is_new }))
        }
        Err(error) if given.is_none() && !is_new => {
            tracing::warn!(%error, "the snapshot's CAs and keys are not looked at: this server's token is not that of its time");
            Ok(None)
        }
        Err(error) => Err(RestoreError::Token { reason: error.to_string() }),
    }
}

impl Restoration {
    /// Writes CAs, keys and tokens. CAs that are here stay: they are at least as new.
    ///
    /// # Errors
    /// When a file cannot be written; a repeat is right then.
    pub fn write(&self, server_dir: &Path) -> Result<(), RestoreError> {
        let tls = server_dir.join("tls").join(pki::SHARED_FILES[0]);
        if self.is_new {
            self.bootstrap.write(server_dir)?;
        } else if self.differs(server_dir)? {
            tracing::warn!("this server's CAs are not those of the snapshot, and stay");
        }
        let ca_pem = files::read(&tls)?.unwrap_or_default();
        Ok(token::write(server_dir, &ca_pem, &self.secrets)?)
    }

    fn differs(&self, server_dir: &Path) -> Result<bool, files::FileError> {
        let files: &BTreeMap<String, String> = &self.bootstrap.files;
        for (name, content) in files {
            if files::read(&server_dir.join(name))?.as_ref() != Some(content) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(dir: &Path, token: &str) -> Vec<u8> {
        pki::Pki::ensure(&dir.join("tls")).unwrap();
        let files = bootstrap::shared_files(dir).unwrap();
        let settings = crate::settings::sample();
        let data = Bootstrap { settings, cluster: "00".to_owned(), members: vec![], agent_token: None, files };
        data.seal(token).unwrap()
    }

    #[test]
    fn a_new_machine_becomes_the_server_that_was() {
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let sealed = sealed(old.path(), "s3cret");
        for wrong in [None, Some("other")] {
            assert!(matches!(open(Some(&sealed), wrong, new.path()), Err(RestoreError::Token { .. })));
        }
        let full =
            token::full(pki::Pki::ensure(&new.path().join("x")).unwrap().server_ca.cert_pem(), "server", "s3cret");
        let other = open(Some(&sealed), Some(&full), new.path());
        assert!(matches!(other, Err(RestoreError::Given(TokenError::OtherCluster { .. }))), "a token of another CA");
        let restoration = open(Some(&sealed), Some("s3cret"), new.path()).unwrap().unwrap();
        assert!(restoration.is_new && !new.path().join("tls").exists());
        restoration.write(new.path()).unwrap();
        assert_eq!(bootstrap::shared_files(new.path()).unwrap(), bootstrap::shared_files(old.path()).unwrap());
        let pki = pki::Pki::ensure(&new.path().join("tls")).unwrap();
        assert_eq!(token::ensure(new.path(), pki.server_ca.cert_pem(), None, None).unwrap().server, "s3cret");
        // A repeat finds the same; another token is refused although there are CAs.
        let again = open(Some(&sealed), None, new.path()).unwrap().unwrap();
        assert!(!again.is_new && !again.differs(new.path()).unwrap());
        assert!(matches!(open(Some(&sealed), Some("other"), new.path()), Err(RestoreError::Token { .. })));
    }

    #[test]
    fn a_machine_with_cas_needs_none_of_it() {
        let (old, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let sealed = sealed(old.path(), "s3cret");
        let pki = pki::Pki::ensure(&own.path().join("tls")).unwrap();
        token::ensure(own.path(), pki.server_ca.cert_pem(), Some("mine"), None).unwrap();
        assert!(open(Some(&sealed), None, own.path()).unwrap().is_none());
        assert!(open(None, None, own.path()).unwrap().is_none());
    }
}
