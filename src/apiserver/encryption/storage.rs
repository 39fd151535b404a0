//! The store as the rest of this crate sees it: plain values in, plain values out.
//!
//! Values are decrypted when somebody looks at them and not before: most of what a list passes over is not Secrets, and a
//! look-up that asks only whether there is an object needs no key.

use std::io;
use std::sync::{Arc, PoisonError};

use arc_swap::ArcSwap;
use bytes::Bytes;
use mussel_store::{Commit, CommitError, Event, Freshness, Precondition, ReadError, Revision, Store, Txn, WatchError};
use tokio::sync::{Mutex, watch};

use super::Vault;
use super::config::EncryptionConfiguration;
use super::keyring::{Keyring, TransformError};
use super::record::{self, Record};

/// How often a write is tried again because the keys were changed meanwhile.
const ATTEMPTS_MAX: usize = 8;

/// A store with a wall of encryption. Cheap to clone.
#[derive(Clone)]
pub struct Storage(Arc<Inner>);

struct Inner {
    store: Store,
    vault: Option<Arc<dyn Vault>>,
    ring: ArcSwap<Keyring>,
    /// Opening a record takes long, and once is enough.
    loading: Mutex<()>,
    /// What this server has just put into force, and so need not open.
    written: std::sync::Mutex<Option<EncryptionConfiguration>>,
}

impl Storage {
    pub fn new(store: Store, vault: Option<Arc<dyn Vault>>) -> Self {
        let ring = ArcSwap::from_pointee(Keyring::none());
        Self(Arc::new(Inner { store, vault, ring, loading: Mutex::default(), written: std::sync::Mutex::default() }))
    }

    /// Without the wall.
    pub(super) fn raw(&self) -> &Store {
        &self.0.store
    }

    pub(super) fn vault(&self) -> Option<&Arc<dyn Vault>> {
        self.0.vault.as_ref()
    }

    pub(super) fn ring(&self) -> Arc<Keyring> {
        self.0.ring.load_full()
    }

    /// As [`Store::snapshot`].
    ///
    /// # Errors
    /// As there.
    pub async fn snapshot(&self, freshness: Freshness) -> Result<Snapshot, ReadError> {
        let raw = self.0.store.snapshot(freshness).await?;
        let ring = self.ring_for(&raw).await;
        Ok(Snapshot { raw, ring, historic: false })
    }

    /// As [`Store::snapshot_at`]. Keys that were dropped since are missing.
    ///
    /// # Errors
    /// As there.
    pub fn snapshot_at(&self, revision: Revision) -> Result<Snapshot, ReadError> {
        Ok(Snapshot { raw: self.0.store.snapshot_at(revision)?, ring: self.ring(), historic: true })
    }

    /// As [`Store::watch`].
    ///
    /// # Errors
    /// As there.
    pub fn watch(&self, prefix: Bytes, after: Revision) -> Result<Watch, WatchError> {
        let inner = self.0.store.watch(prefix, after)?;
        Ok(Watch { inner, storage: self.clone(), undecoded: None })
    }

    pub fn revision(&self) -> Revision {
        self.0.store.revision()
    }

    pub fn leader(&self) -> watch::Receiver<bool> {
        self.0.store.leader()
    }

    /// As [`Store::wait_for`].
    ///
    /// # Errors
    /// As there.
    pub async fn wait_for(&self, revision: Revision) -> Result<(), ReadError> {
        self.0.store.wait_for(revision).await
    }

    /// As [`Store::commit`]. Indexes of refused preconditions are those of `txn`.
    ///
    /// # Errors
    /// As there; `Unwritable` also when the keys in force cannot be had.
    pub async fn commit(&self, txn: Txn) -> Result<Revision, CommitError> {
        for _ in 0..ATTEMPTS_MAX {
            let ring = self.ring();
            if !txn.puts.iter().any(|(key, _)| ring.guards(key)) {
                return self.0.store.commit(txn).await;
            }
            let unwritable = |why: String| CommitError::Unwritable(Arc::new(io::Error::other(why)));
            if let Some(why) = &ring.locked {
                return Err(unwritable(format!("the encryption keys in force cannot be had: {why}")));
            }
            let mut sealed =
                Txn { preconditions: txn.preconditions.clone(), puts: Vec::new(), deletes: txn.deletes.clone() };
            for (key, value) in &txn.puts {
                let stored = ring.encode(key, value).map_err(|error| unwritable(error.to_string()))?;
                sealed.puts.push((key.clone(), stored));
            }
            let guard = Bytes::from_static(record::KEY);
            sealed.preconditions.push(match ring.revision {
                Some(revision) => Precondition::At(guard, revision),
                None => Precondition::Absent(guard),
            });
            match self.0.store.commit(sealed).await {
                Err(CommitError::Refused { index, .. }) if index == txn.preconditions.len() => {
                    // Another server has changed the keys. Taking them up is all that this read is for.
                    match self.snapshot(Freshness::Linearizable).await {
                        Ok(_) => {}
                        Err(ReadError::Stopped) => return Err(CommitError::Stopped),
                        Err(_) => return Err(CommitError::NoLeader),
                    }
                }
                done => return done,
            }
        }
        Err(CommitError::NoLeader)
    }

    /// The keys for what is in `raw`: those in force there, or newer ones.
    async fn ring_for(&self, raw: &mussel_store::Snapshot) -> Arc<Keyring> {
        let Some(stored) = raw.get(record::KEY) else { return self.ring() };
        let is_new = |ring: &Keyring| ring.revision.is_some_and(|revision| revision >= stored.revision);
        let ring = self.ring();
        if is_new(&ring) {
            return ring;
        }
        let _loading = self.0.loading.lock().await;
        let ring = self.ring();
        if is_new(&ring) {
            return ring;
        }
        self.load(stored).await
    }

    /// This configuration is about to be put into force here.
    pub(super) fn writes(&self, configuration: &EncryptionConfiguration) {
        *self.0.written.lock().unwrap_or_else(PoisonError::into_inner) = Some(configuration.clone());
    }

    /// Tries once more to open the record, with what the vault can do now.
    pub(super) async fn reload(&self) -> Result<(), ReadError> {
        let raw = self.0.store.snapshot(Freshness::Local).await?;
        if let Some(stored) = raw.get(record::KEY) {
            let _loading = self.0.loading.lock().await;
            self.load(stored).await;
        }
        Ok(())
    }

    async fn load(&self, stored: &mussel_store::Versioned) -> Arc<Keyring> {
        let record = Record::decode(&stored.value);
        let opened = match &record {
            Some(record) => self.open(record).await,
            None => Err("it was written by a newer version".to_owned()),
        };
        let (configuration, locked) = match opened {
            Ok(configuration) => (Some(configuration), None),
            Err(why) => {
                tracing::error!(
                    why,
                    "the cluster's encryption keys cannot be opened: encrypted objects are read with the keys in this \
                     server's own file, and not written"
                );
                (self.kept(), Some(why))
            }
        };
        let ring = configuration.map_or_else(|| Ok(Keyring::none()), Keyring::new);
        let (mut ring, locked) = match ring {
            Ok(ring) => (ring, locked),
            Err(error) => (Keyring::none(), Some(error.to_string())),
        };
        ring.succeed(&self.ring());
        ring.revision = Some(stored.revision);
        ring.locked = locked;
        if let Some(record) = record {
            ring.stage = Some(record.stage);
            ring.keeps_keys = record.keeps_keys;
            ring.hash = Some(record.hash);
        }
        let ring = Arc::new(ring);
        self.0.ring.store(Arc::clone(&ring));
        ring
    }

    /// The configuration in this server's own file.
    pub(super) fn kept(&self) -> Option<EncryptionConfiguration> {
        let text = match self.vault()?.kept() {
            Ok(text) => text?,
            Err(error) => {
                tracing::error!(error, "this server's encryption configuration cannot be read");
                return None;
            }
        };
        match EncryptionConfiguration::parse(&text) {
            Ok(configuration) => Some(configuration),
            Err(error) => {
                tracing::error!(%error, "this server's encryption configuration cannot be used");
                None
            }
        }
    }

    async fn open(&self, record: &Record) -> Result<EncryptionConfiguration, String> {
        let kept = self.kept();
        // Most starts, and faster than opening the record.
        if let Some(kept) = kept.filter(|kept| kept.hash() == record.hash) {
            return Ok(kept);
        }
        let vault = Arc::clone(self.vault().ok_or("this server has nothing to open them with")?);
        let written = self.0.written.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (configuration, text) = match written.filter(|written| written.hash() == record.hash) {
            Some(written) => {
                let text = written.to_text();
                (written, text)
            }
            None => {
                let sealed = record.sealed();
                let opened = tokio::task::spawn_blocking(move || vault.open(&sealed)).await;
                let opened = opened.map_err(|error| error.to_string())??;
                let text = String::from_utf8(opened).map_err(|_| "they are no text".to_owned())?;
                (EncryptionConfiguration::parse(&text).map_err(|error| error.to_string())?, text)
            }
        };
        if let Some(Err(error)) = self.vault().map(|vault| vault.keep(&text)) {
            // The record can be opened again.
            tracing::error!(error, "the encryption configuration is not kept in this server's file");
        }
        tracing::info!(stage = record.stage.name(), "encryption configuration taken over");
        Ok(configuration)
    }
}

/// As [`mussel_store::Snapshot`], with plain values.
#[derive(Clone)]
pub struct Snapshot {
    raw: mussel_store::Snapshot,
    ring: Arc<Keyring>,
    historic: bool,
}

impl Snapshot {
    pub fn revision(&self) -> Revision {
        self.raw.revision()
    }

    pub fn get(&self, key: &[u8]) -> Option<Versioned<'_>> {
        let stored = self.raw.get(key)?;
        let needs = self.ring.concerns(key, &stored.value);
        Some(self.versioned(needs.then(|| Bytes::copy_from_slice(key)), stored))
    }

    /// As [`mussel_store::Snapshot::range`].
    pub fn range<'a>(&'a self, prefix: &[u8], start: &[u8]) -> impl Iterator<Item = (&'a Bytes, Versioned<'a>)> + 'a {
        self.raw.range(prefix, start).map(|(key, stored)| {
            let needs = self.ring.concerns(key, &stored.value);
            (key, self.versioned(needs.then(|| key.clone()), stored))
        })
    }

    pub(super) fn ring(&self) -> &Arc<Keyring> {
        &self.ring
    }

    fn versioned<'a>(&'a self, key: Option<Bytes>, stored: &'a mussel_store::Versioned) -> Versioned<'a> {
        let transform = key.map(|key| Transform { key, ring: &self.ring, historic: self.historic });
        Versioned { revision: stored.revision, stored: &stored.value, transform }
    }
}

/// A value in a [`Snapshot`].
pub struct Versioned<'a> {
    pub revision: Revision,
    stored: &'a Bytes,
    /// `None` when the stored value is the value.
    transform: Option<Transform<'a>>,
}

struct Transform<'a> {
    key: Bytes,
    ring: &'a Keyring,
    historic: bool,
}

impl Versioned<'_> {
    /// The value. Each call decrypts it.
    ///
    /// # Errors
    /// When it is encrypted and does not open.
    pub fn value(&self) -> Result<Bytes, TransformError> {
        let Some(transform) = &self.transform else { return Ok(self.stored.clone()) };
        transform.ring.decode(&transform.key, self.stored).map_err(|error| match error {
            TransformError::NoKey { key, .. } if transform.historic => TransformError::Forgotten { key },
            error => error,
        })
    }

    /// Whether it would be stored otherwise now.
    pub fn is_stale(&self) -> bool {
        self.transform.as_ref().is_some_and(|transform| transform.ring.is_stale(&transform.key, self.stored))
    }

    /// As it lies in the store.
    pub(crate) fn stored(&self) -> &Bytes {
        self.stored
    }
}

/// Why a watch ended.
#[derive(Debug, thiserror::Error)]
pub enum StorageWatchError {
    #[error(transparent)]
    Store(#[from] WatchError),
    #[error(transparent)]
    Transform(#[from] TransformError),
}

/// As [`mussel_store::Watch`], with plain values.
pub struct Watch {
    inner: mussel_store::Watch,
    storage: Storage,
    /// Taken from `inner` by a call of `next` that may have been dropped.
    undecoded: Option<Commit>,
}

impl Watch {
    /// As [`mussel_store::Watch::next`].
    ///
    /// # Errors
    /// As there; also when a value does not open. Either is the end.
    ///
    /// # Cancel safety
    /// As there.
    pub async fn next(&mut self) -> Result<Commit, StorageWatchError> {
        let commit = match &self.undecoded {
            Some(commit) => commit.clone(),
            None => self.undecoded.insert(self.inner.next().await?).clone(),
        };
        let ring = self.storage.ring();
        let decoded = match decode(&commit, &ring) {
            Ok(decoded) => decoded,
            Err(first) => {
                // It can be of a key of which nobody has told yet: what the store has applied knows it.
                let raw = self.storage.0.store.snapshot(Freshness::Local).await;
                let raw = raw.map_err(|_| first.clone())?;
                let ring = self.storage.ring_for(&raw).await;
                decode(&commit, &ring).map_err(|error| match error {
                    TransformError::NoKey { key, .. } if ring.revision.is_some_and(|now| commit.revision < now) => {
                        TransformError::Forgotten { key }
                    }
                    error => error,
                })?
            }
        };
        self.undecoded = None;
        Ok(decoded)
    }

    /// As [`mussel_store::Watch::progress`].
    pub fn progress(&self) -> Revision {
        self.inner.progress()
    }
}

fn decode(commit: &Commit, ring: &Keyring) -> Result<Commit, TransformError> {
    let values = |event: &Event| {
        let previous = event.previous.as_ref().map(|previous| &previous.value);
        event.value.iter().chain(previous).any(|value| ring.concerns(&event.key, value))
    };
    if !commit.events.iter().any(values) {
        return Ok(commit.clone());
    }
    let events = commit.events.iter().map(|event| {
        let mut event = event.clone();
        if let Some(value) = &mut event.value {
            *value = ring.decode(&event.key, value)?;
        }
        if let Some(previous) = &mut event.previous {
            previous.value = ring.decode(&event.key, &previous.value)?;
        }
        Ok(event)
    });
    Ok(Commit { revision: commit.revision, events: events.collect::<Result<Vec<_>, TransformError>>()?.into() })
}
