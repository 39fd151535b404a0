//! The configuration, ready for use: what a stored value is read and written with.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use mussel_store::Revision;

use super::cipher::Key;
use super::config::{ConfigError, EncryptionConfiguration, SECRETS};
use super::record::Stage;

/// What every encrypted value begins with, whoever wrote it.
const ENCRYPTED: &[u8] = b"k8s:enc:";
/// Then come the key's name, a colon and the ciphertext. `v2` tells it from upstream's `aesgcm:v1`, which has no derived keys.
const PREFIX: &[u8] = b"k8s:enc:aesgcm:v2:";

/// Why a stored value cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransformError {
    #[error(
        "unable to transform key {key:?}: no matching key was found for the provided AES transformer: it was encrypted with key {name:?}"
    )]
    NoKey { key: String, name: String },
    #[error("unable to transform key {key:?}: cipher: message authentication failed (key {name:?})")]
    Damaged { key: String, name: String },
    #[error("unable to transform key {key:?}: no matching prefix found")]
    NoProvider { key: String },
    #[error("unable to transform key {key:?}: it was read at a revision from before its encryption key was dropped")]
    Forgotten { key: String },
}

/// The configuration in force since a revision of the store.
pub struct Keyring {
    /// Of the record that this is; `None` while there is none.
    pub revision: Option<Revision>,
    pub stage: Option<Stage>,
    pub keeps_keys: bool,
    pub configuration: Option<EncryptionConfiguration>,
    /// The record's; another than the configuration's when this server cannot open it.
    pub hash: Option<String>,
    /// Why nothing can be written with it.
    pub locked: Option<String>,
    rules: BTreeMap<String, Rule>,
    keys: BTreeMap<String, Arc<Key>>,
    /// Dropped while this process ran. The history, and watchers that are a little behind, still need them.
    retired: BTreeMap<String, Arc<Key>>,
}

struct Rule {
    /// The name of the key that is written with; `None` writes plain.
    writes_with: Option<String>,
    reads_plain: bool,
}

impl Keyring {
    /// No encryption.
    pub fn none() -> Self {
        Self {
            revision: None,
            stage: None,
            keeps_keys: false,
            configuration: None,
            hash: None,
            locked: None,
            rules: BTreeMap::new(),
            keys: BTreeMap::new(),
            retired: BTreeMap::new(),
        }
    }

    /// # Errors
    /// When a key is unusable.
    pub fn new(configuration: EncryptionConfiguration) -> Result<Self, ConfigError> {
        let mut ring = Self::none();
        for rule in configuration.rules() {
            for provider in &rule.providers {
                for key in provider.aesgcm.iter().flat_map(|keys| &keys.keys) {
                    ring.keys.insert(key.name.clone(), Arc::new(Key::new(&key.secret()?)));
                }
            }
            let first = rule.providers.first().and_then(|provider| provider.aesgcm.as_ref());
            let writes_with = first.and_then(|keys| keys.keys.first()).map(|key| key.name.clone());
            let reads_plain = rule.providers.iter().any(|provider| provider.identity.is_some());
            for resource in &rule.resources {
                let rule = Rule { writes_with: writes_with.clone(), reads_plain };
                ring.rules.insert(resource.clone(), rule);
            }
        }
        ring.configuration = Some(configuration);
        Ok(ring)
    }

    /// Reads also what could be read with `before`.
    pub fn succeed(&mut self, before: &Self) {
        let known = before.retired.iter().chain(&before.keys);
        let dropped = known.filter(|(name, _)| !self.keys.contains_key(*name));
        self.retired = dropped.map(|(name, key)| (name.clone(), Arc::clone(key))).collect();
    }

    /// The resources of which objects may be encrypted.
    pub fn resources(&self) -> impl Iterator<Item = &str> {
        self.rules.keys().map(String::as_str)
    }

    /// Whether a write to this key must know the configuration in force. Secrets count also while there is none: one may
    /// have been made on another server a moment ago, and that one is always about Secrets.
    pub fn guards(&self, storage_key: &[u8]) -> bool {
        resource(storage_key).is_some_and(|resource| resource == SECRETS || self.rules.contains_key(resource))
    }

    /// Whether a stored value may be anything but the value, or should be.
    pub fn concerns(&self, storage_key: &[u8], stored: &[u8]) -> bool {
        stored.starts_with(ENCRYPTED) || (!self.rules.is_empty() && self.rule(storage_key).is_some())
    }

    fn rule(&self, storage_key: &[u8]) -> Option<&Rule> {
        self.rules.get(resource(storage_key)?)
    }

    /// What to store for a value. The value itself where nothing is encrypted.
    pub fn encode(&self, storage_key: &[u8], plain: &Bytes) -> Result<Bytes, TransformError> {
        let Some(name) = self.rule(storage_key).and_then(|rule| rule.writes_with.as_ref()) else {
            return Ok(plain.clone());
        };
        let no_key = || TransformError::NoKey { key: text(storage_key), name: name.clone() };
        let key = self.keys.get(name).ok_or_else(no_key)?;
        let mut out = Vec::with_capacity(PREFIX.len() + name.len() + 64 + plain.len());
        out.extend_from_slice(PREFIX);
        out.extend_from_slice(name.as_bytes());
        out.push(b':');
        key.seal(storage_key, plain, &mut out).map_err(|_| no_key())?;
        Ok(out.into())
    }

    /// The value that was stored.
    pub fn decode(&self, storage_key: &[u8], stored: &Bytes) -> Result<Bytes, TransformError> {
        if !stored.starts_with(ENCRYPTED) {
            return match self.rule(storage_key) {
                Some(rule) if !rule.reads_plain => Err(TransformError::NoProvider { key: text(storage_key) }),
                _ => Ok(stored.clone()),
            };
        }
        let Some((name, sealed)) = split(stored) else {
            return Err(TransformError::NoProvider { key: text(storage_key) });
        };
        let key = self.keys.get(name).or_else(|| self.retired.get(name));
        let key = key.ok_or_else(|| TransformError::NoKey { key: text(storage_key), name: name.to_owned() })?;
        key.open(storage_key, sealed)
            .map(Bytes::from)
            .map_err(|_| TransformError::Damaged { key: text(storage_key), name: name.to_owned() })
    }

    /// Whether a value that is there would be stored otherwise now.
    pub fn is_stale(&self, storage_key: &[u8], stored: &[u8]) -> bool {
        let Some(rule) = self.rule(storage_key) else { return stored.starts_with(ENCRYPTED) };
        split(stored).map(|(name, _)| name) != rule.writes_with.as_deref()
            || (stored.starts_with(ENCRYPTED) && split(stored).is_none())
    }
}

/// The key's name in an encrypted value, and what stands behind it.
fn split(stored: &[u8]) -> Option<(&str, &[u8])> {
    let rest = stored.strip_prefix(PREFIX)?;
    let colon = rest.iter().position(|byte| *byte == b':')?;
    Some((std::str::from_utf8(&rest[..colon]).ok()?, &rest[colon + 1..]))
}

/// `secrets` of `/registry/secrets/default/x`.
fn resource(storage_key: &[u8]) -> Option<&str> {
    let rest = storage_key.strip_prefix(b"/registry/")?;
    let end = rest.iter().position(|byte| *byte == b'/')?;
    std::str::from_utf8(&rest[..end]).ok()
}

fn text(storage_key: &[u8]) -> String {
    String::from_utf8_lossy(storage_key).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"/registry/secrets/default/a";

    fn ring(configuration: &EncryptionConfiguration) -> Keyring {
        Keyring::new(configuration.clone()).unwrap()
    }

    #[test]
    fn only_what_is_configured_is_encrypted() {
        let ring = ring(&EncryptionConfiguration::generate());
        let plain = Bytes::from_static(b"{}");
        assert_eq!(ring.encode(b"/registry/configmaps/default/a", &plain).unwrap(), plain);
        let stored = ring.encode(SECRET, &plain).unwrap();
        assert!(stored.starts_with(b"k8s:enc:aesgcm:v2:aesgcmkey:"));
        assert_eq!(ring.decode(SECRET, &stored).unwrap(), plain);
        assert!(ring.guards(SECRET) && Keyring::none().guards(SECRET) && !ring.guards(b"/registry/pods/a/b"));
    }

    #[test]
    fn old_keys_and_plain_values_are_read_and_are_stale() {
        let first = EncryptionConfiguration::generate();
        let second = first.with_new_key().rotated();
        let plain = Bytes::from_static(b"{}");
        let old = ring(&first).encode(SECRET, &plain).unwrap();
        let ring = ring(&second);
        for stored in [&old, &plain] {
            assert_eq!(ring.decode(SECRET, stored).unwrap(), plain);
            assert!(ring.is_stale(SECRET, stored));
        }
        assert!(!ring.is_stale(SECRET, &ring.encode(SECRET, &plain).unwrap()));
        let disabled = self::ring(&second.enabled(false));
        assert!(disabled.is_stale(SECRET, &old) && !disabled.is_stale(SECRET, &plain));
        assert_eq!(disabled.encode(SECRET, &plain).unwrap(), plain);
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let plain = Bytes::from_static(b"{}");
        let (mine, other) = (EncryptionConfiguration::generate(), EncryptionConfiguration::generate());
        let stored = ring(&mine).encode(SECRET, &plain).unwrap();
        let message = |ring: &Keyring, key: &[u8], stored: &Bytes| ring.decode(key, stored).unwrap_err().to_string();
        let broken = message(&ring(&other), SECRET, &stored);
        assert!(broken.contains(
            "unable to transform key \"/registry/secrets/default/a\": cipher: message authentication failed"
        ));
        let moved = message(&ring(&mine), b"/registry/secrets/default/b", &stored);
        assert!(moved.contains("message authentication failed"), "{moved}");
        let unknown = message(&Keyring::none(), SECRET, &stored);
        assert!(unknown.contains("no matching key") && unknown.contains("\"aesgcmkey\""), "{unknown}");
        let strict = mine.to_text().replace(r#",{"identity":{}}"#, "");
        let strict = ring(&EncryptionConfiguration::parse(&strict).unwrap());
        assert!(message(&strict, SECRET, &plain).contains("no matching prefix"));
        assert!(
            message(&strict, SECRET, &Bytes::from_static(b"k8s:enc:secretbox:v1:k:x")).contains("no matching prefix")
        );
    }
}
