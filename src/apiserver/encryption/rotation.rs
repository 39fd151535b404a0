//! Turning encryption on and off, and changing its keys: what `mussel secrets-encrypt` asks for.
//!
//! Every step is one write of the record, refused when somebody else was faster; so an interrupted step has happened or has
//! not. Writing objects anew is the work of the store's leader, from the record alone: it begins anew under a new leader, and
//! drops old keys only after it has found nothing left that needs them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use mussel_store::{CommitError, Freshness, Precondition, ReadError, Revision, Txn};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::config::EncryptionConfiguration;
use super::record::{self, Record, Stage};
use super::storage::{Snapshot, Storage};
use crate::registry::key::prefix;

/// Objects written anew at the same time; they share the store's log writes.
const REENCRYPT_CONCURRENCY: usize = 16;
/// After a pass that could not write.
const RETRY: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    #[error("encryption of Secrets was never turned on; mussel secrets-encrypt enable does it")]
    NeverEnabled,
    #[error("encryption of Secrets is disabled")]
    Disabled,
    #[error("incorrect stage: {stage}, this step follows {expected} (--force goes on anyway)")]
    Stage { stage: &'static str, expected: &'static str },
    #[error("objects are being written anew just now; wait for stage reencrypt_finished")]
    Reencrypting,
    #[error("this server cannot open the cluster's encryption keys: {0}")]
    Locked(String),
    #[error("seal the encryption keys: {0}")]
    Seal(String),
    #[error("somebody else changed the encryption at the same time; look at its status")]
    Concurrent,
    #[error("read the encryption's state")]
    Read(#[from] ReadError),
    #[error("write the encryption's state")]
    Write(#[source] CommitError),
}

/// What `status` tells, with k3s' names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncryptionStatus {
    pub stage: String,
    #[serde(rename = "activekey")]
    pub active_key: String,
    /// `None` when it was never turned on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable: Option<bool>,
    /// Whether this server has the keys that the cluster has agreed on.
    #[serde(rename = "hashmatch")]
    pub hash_match: bool,
    #[serde(rename = "hasherror", default, skip_serializing_if = "String::is_empty")]
    pub hash_error: String,
    #[serde(rename = "inactivekeys", default, skip_serializing_if = "Vec::is_empty")]
    pub inactive_keys: Vec<String>,
}

/// The commands. Cheap to clone.
#[derive(Clone)]
pub struct Encryption(Storage);

/// What is in force.
struct Current {
    revision: Revision,
    stage: Stage,
    configuration: EncryptionConfiguration,
}

impl Encryption {
    pub fn new(storage: Storage) -> Self {
        Self(storage)
    }

    /// # Errors
    /// When the store cannot be read.
    pub async fn status(&self) -> Result<EncryptionStatus, RotationError> {
        let ring = Arc::clone(self.0.snapshot(Freshness::Linearizable).await?.ring());
        if ring.revision.is_none() {
            return Ok(EncryptionStatus::default());
        }
        let mut status = EncryptionStatus {
            stage: ring.stage.map(Stage::name).unwrap_or_default().to_owned(),
            enable: ring.configuration.as_ref().map(EncryptionConfiguration::is_enabled),
            hash_match: ring.locked.is_none(),
            hash_error: ring.locked.clone().unwrap_or_default(),
            ..EncryptionStatus::default()
        };
        let mut names: Vec<String> =
            ring.configuration.iter().flat_map(EncryptionConfiguration::key_names).map(str::to_owned).collect();
        if status.enable == Some(true) && !names.is_empty() {
            status.active_key = names.remove(0);
        }
        status.inactive_keys = names;
        Ok(status)
    }

    /// At a server's start: turns encryption on when that is wanted and was never said.
    ///
    /// # Errors
    /// When the store cannot be read or written; a repeat is right then.
    pub async fn ensure(&self, wanted: bool) -> Result<(), RotationError> {
        let snapshot = self.0.snapshot(Freshness::Linearizable).await?;
        let ring = snapshot.ring();
        if ring.revision.is_some() {
            if wanted && ring.configuration.as_ref().is_some_and(|configuration| !configuration.is_enabled()) {
                tracing::warn!("encryption of Secrets was disabled by a command, and stays so in spite of the flag");
            }
            return Ok(());
        }
        if !wanted {
            return Ok(());
        }
        // A file that somebody put there counts.
        let configuration = self.0.kept().unwrap_or_else(EncryptionConfiguration::generate);
        match self.first(&snapshot, configuration).await {
            Ok(()) | Err(RotationError::Concurrent) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn first(&self, snapshot: &Snapshot, configuration: EncryptionConfiguration) -> Result<(), RotationError> {
        let resources = configuration.rules().iter().flat_map(|rule| &rule.resources);
        let has_objects = resources.into_iter().any(|resource| {
            let prefix = prefix(resource, "");
            snapshot.range(&prefix, &prefix).next().is_some()
        });
        let stage = if has_objects { Stage::ReencryptRequest } else { Stage::Start };
        tracing::info!(stage = stage.name(), "encryption of Secrets is turned on");
        self.write(None, &configuration, stage, true).await
    }

    /// Writes encrypted from now on, or plain; and what is there anew.
    ///
    /// # Errors
    /// See [`RotationError`].
    pub async fn enable(&self, enabled: bool) -> Result<(), RotationError> {
        let snapshot = self.0.snapshot(Freshness::Linearizable).await?;
        if snapshot.ring().revision.is_none() {
            if !enabled {
                return Err(RotationError::NeverEnabled);
            }
            let configuration = self.0.kept().unwrap_or_else(EncryptionConfiguration::generate).enabled(true);
            return self.first(&snapshot, configuration).await;
        }
        let current = current(&snapshot)?;
        if current.configuration.is_enabled() == enabled {
            return Ok(());
        }
        let new = current.configuration.enabled(enabled);
        self.write(Some(current.revision), &new, Stage::ReencryptRequest, true).await
    }

    /// Adds a new key, which all servers read with.
    ///
    /// # Errors
    /// See [`RotationError`].
    pub async fn prepare(&self, force: bool) -> Result<(), RotationError> {
        let current = self.enabled_at(force, &[Stage::Start, Stage::ReencryptFinished]).await?;
        self.write(Some(current.revision), &current.configuration.with_new_key(), Stage::Prepare, false).await
    }

    /// The key that was added is written with.
    ///
    /// # Errors
    /// See [`RotationError`].
    pub async fn rotate(&self, force: bool) -> Result<(), RotationError> {
        let current = self.enabled_at(force, &[Stage::Prepare]).await?;
        self.write(Some(current.revision), &current.configuration.rotated(), Stage::Rotate, false).await
    }

    /// Adds a key, writes with it, writes all objects anew and drops the old keys.
    ///
    /// # Errors
    /// See [`RotationError`].
    pub async fn rotate_keys(&self) -> Result<(), RotationError> {
        let current = self.enabled_at(false, &[Stage::Start, Stage::ReencryptFinished]).await?;
        let new = current.configuration.with_new_key().rotated();
        self.write(Some(current.revision), &new, Stage::ReencryptRequest, false).await
    }

    /// Writes all objects anew, and drops the old keys unless `skip`.
    ///
    /// # Errors
    /// See [`RotationError`].
    pub async fn reencrypt(&self, force: bool, skip: bool) -> Result<(), RotationError> {
        let current = current(&self.0.snapshot(Freshness::Linearizable).await?)?;
        current.check(force, &[Stage::Rotate])?;
        self.write(Some(current.revision), &current.configuration, Stage::ReencryptRequest, skip).await
    }

    async fn enabled_at(&self, force: bool, stages: &[Stage]) -> Result<Current, RotationError> {
        let current = current(&self.0.snapshot(Freshness::Linearizable).await?)?;
        if !current.configuration.is_enabled() {
            return Err(RotationError::Disabled);
        }
        current.check(force, stages)?;
        Ok(current)
    }

    /// To be called when what the keys are sealed with has changed: opens what did not open before, and, on the store's
    /// leader, seals anew what does not open any more.
    ///
    /// # Errors
    /// See [`RotationError`].
    pub async fn reseal(&self) -> Result<(), RotationError> {
        let snapshot = self.0.snapshot(Freshness::Linearizable).await?;
        let ring = Arc::clone(snapshot.ring());
        let Some(revision) = ring.revision else { return Ok(()) };
        if ring.locked.is_some() {
            // It may open now.
            self.0.reload().await?;
            return Ok(());
        }
        if !*self.0.leader().borrow() {
            return Ok(());
        }
        let raw = self.0.raw().snapshot(Freshness::Local).await?;
        let stored = raw.get(record::KEY).and_then(|stored| Record::decode(&stored.value));
        let (Some(stored), Some(vault)) = (stored, self.0.vault().cloned()) else { return Ok(()) };
        let opens = tokio::task::spawn_blocking(move || vault.open(&stored.sealed()).is_ok()).await;
        if opens.unwrap_or(false) {
            return Ok(());
        }
        let (Some(configuration), Some(stage)) = (&ring.configuration, ring.stage) else { return Ok(()) };
        tracing::info!("the encryption keys are sealed anew");
        match self.write(Some(revision), configuration, stage, ring.keeps_keys).await {
            // Whoever was faster has sealed them with something newer, or we are asked again.
            Ok(()) | Err(RotationError::Concurrent) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Puts a configuration into force, if that of `before` still is.
    async fn write(
        &self,
        before: Option<Revision>,
        configuration: &EncryptionConfiguration,
        stage: Stage,
        keeps_keys: bool,
    ) -> Result<(), RotationError> {
        let sealed = self.seal(configuration).await?;
        self.write_sealed(before, configuration, stage, keeps_keys, &sealed).await
    }

    async fn seal(&self, configuration: &EncryptionConfiguration) -> Result<Vec<u8>, RotationError> {
        let vault = self.0.vault().cloned();
        let vault = vault.ok_or_else(|| RotationError::Seal("there is nothing to seal them with".to_owned()))?;
        let text = configuration.to_text();
        let sealed = tokio::task::spawn_blocking(move || vault.seal(text.as_bytes())).await;
        sealed.map_err(|error| RotationError::Seal(error.to_string()))?.map_err(RotationError::Seal)
    }

    async fn write_sealed(
        &self,
        before: Option<Revision>,
        configuration: &EncryptionConfiguration,
        stage: Stage,
        keeps_keys: bool,
        sealed: &[u8],
    ) -> Result<(), RotationError> {
        let key = Bytes::from_static(record::KEY);
        let precondition = match before {
            Some(revision) => Precondition::At(key.clone(), revision),
            None => Precondition::Absent(key.clone()),
        };
        let record = Record::new(stage, keeps_keys, configuration.hash(), sealed);
        let txn = Txn { preconditions: vec![precondition], puts: vec![(key, record.encode())], deletes: Vec::new() };
        self.0.writes(configuration);
        match self.0.raw().commit(txn).await {
            // Taken up by the read, also into this server's file.
            Ok(_) => self.0.snapshot(Freshness::Linearizable).await.map(drop).map_err(RotationError::from),
            Err(CommitError::Refused { .. }) => Err(RotationError::Concurrent),
            Err(error) => Err(RotationError::Write(error)),
        }
    }

    /// Takes up what other servers put into force, and writes objects anew while this one leads, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.follow() => {}
        }
    }

    async fn follow(&self) {
        let mut leader = self.0.leader();
        loop {
            let Ok(snapshot) = self.0.snapshot(Freshness::Local).await else { return };
            // From before the look at what is to do, so that nothing is missed.
            let changes = self.0.raw().watch(Bytes::from_static(record::KEY), snapshot.revision());
            let leads = *leader.borrow_and_update();
            let mut failed = false;
            if leads
                && snapshot.ring().stage.is_some_and(Stage::is_reencrypting)
                && let Err(error) = self.reencrypt_all().await
            {
                tracing::warn!(%error, "objects are not all written anew yet");
                failed = true;
            }
            let Ok(mut changes) = changes else { continue };
            tokio::select! {
                change = changes.next() => if matches!(change, Err(mussel_store::WatchError::Stopped)) { return },
                changed = leader.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY), if failed => {}
            }
        }
    }

    /// Passes over all objects until one finds nothing to do; then the stage is done.
    async fn reencrypt_all(&self) -> Result<(), RotationError> {
        let before = current(&self.0.snapshot(Freshness::Linearizable).await?)?;
        if before.stage == Stage::ReencryptRequest {
            let keeps = self.0.ring().keeps_keys;
            let raw = self.0.raw().snapshot(Freshness::Local).await?;
            // The same keys under the same seal: sealing is slow on purpose.
            let stored = raw.get(record::KEY).filter(|stored| stored.revision == before.revision);
            let Some(record) = stored.and_then(|stored| Record::decode(&stored.value)) else { return Ok(()) };
            let (revision, stage) = (Some(before.revision), Stage::ReencryptActive);
            self.write_sealed(revision, &before.configuration, stage, keeps, &record.sealed()).await?;
        }
        let mut total = 0;
        let unreadable = loop {
            let snapshot = self.0.snapshot(Freshness::Linearizable).await?;
            if !snapshot.ring().stage.is_some_and(Stage::is_reencrypting) {
                return Ok(());
            }
            let pass = self.pass(&snapshot).await?;
            if pass.found == 0 {
                break pass.unreadable;
            }
            total += pass.found;
        };
        let current = current(&self.0.snapshot(Freshness::Linearizable).await?)?;
        let keeps_keys = self.0.ring().keeps_keys;
        let (configuration, stage) = match keeps_keys {
            true => (current.configuration.clone(), Stage::Start),
            false => (current.configuration.with_first_key_only(), Stage::ReencryptFinished),
        };
        self.write(Some(current.revision), &configuration, stage, keeps_keys).await?;
        tracing::info!(objects = total, unreadable, stage = stage.name(), "all objects are written anew");
        Ok(())
    }

    async fn pass(&self, snapshot: &Snapshot) -> Result<Pass, RotationError> {
        let ring = snapshot.ring();
        let (mut stale, mut unreadable) = (Vec::new(), 0);
        for resource in ring.resources() {
            let prefix = prefix(resource, "");
            for (key, versioned) in snapshot.range(&prefix, &prefix) {
                if !ring.is_stale(key, versioned.stored()) {
                    continue;
                }
                match versioned.value() {
                    Ok(plain) => stale.push((key.clone(), plain, versioned.revision)),
                    // None of the keys that there are opens it: dropping one takes nothing away.
                    Err(error) => {
                        tracing::error!(%error, "an object cannot be written anew");
                        unreadable += 1;
                    }
                }
            }
        }
        let found = stale.len();
        let writes = stale.into_iter().map(|(key, plain, revision)| async move {
            let txn = Txn {
                preconditions: vec![Precondition::At(key.clone(), revision)],
                puts: vec![(key, plain)],
                deletes: Vec::new(),
            };
            match self.0.commit(txn).await {
                // Changed meanwhile: then written with what is in force. The next pass looks.
                Ok(_) | Err(CommitError::Refused { .. }) => Ok(()),
                Err(error) => Err(RotationError::Write(error)),
            }
        });
        let outcomes: Vec<_> = futures::stream::iter(writes).buffer_unordered(REENCRYPT_CONCURRENCY).collect().await;
        outcomes.into_iter().collect::<Result<(), _>>()?;
        Ok(Pass { found, unreadable })
    }
}

struct Pass {
    found: usize,
    unreadable: usize,
}

fn current(snapshot: &Snapshot) -> Result<Current, RotationError> {
    let ring = snapshot.ring();
    let revision = ring.revision.ok_or(RotationError::NeverEnabled)?;
    if let Some(why) = &ring.locked {
        return Err(RotationError::Locked(why.clone()));
    }
    match (&ring.configuration, ring.stage) {
        (Some(configuration), Some(stage)) => Ok(Current { revision, stage, configuration: configuration.clone() }),
        _ => Err(RotationError::NeverEnabled),
    }
}

impl Current {
    fn check(&self, force: bool, stages: &[Stage]) -> Result<(), RotationError> {
        if self.stage.is_reencrypting() {
            return Err(RotationError::Reencrypting);
        }
        if force || stages.contains(&self.stage) {
            return Ok(());
        }
        let expected = stages.first().map_or("", |stage| stage.name());
        Err(RotationError::Stage { stage: self.stage.name(), expected })
    }
}
