//! `EncryptionConfiguration`: which resources are encrypted, and with which keys, in Kubernetes' own form.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::cipher::KEY_BYTES;

const API_VERSION: &str = "apiserver.config.k8s.io/v1";
const KIND: &str = "EncryptionConfiguration";
/// Longer files are no configurations.
const TEXT_BYTES_MAX: usize = 1 << 20;
/// What is encrypted when nobody said otherwise.
pub const SECRETS: &str = "secrets";
/// The first key's name; later ones have the time in it.
pub const FIRST_KEY: &str = "aesgcmkey";

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("it is no {KIND} of {API_VERSION}: {0}")]
    Malformed(String),
    #[error("its provider {0} is not supported; aesgcm (with keys of {KEY_BYTES} bytes) and identity are")]
    Provider(String),
    #[error("a provider must name exactly one of aesgcm and identity")]
    Ambiguous,
    #[error("resource {0:?} is not supported: name resources one by one, as <plural> or <plural>.<group>")]
    Resource(String),
    #[error("resource {0:?} is named twice")]
    Twice(String),
    #[error("no resources, providers or keys are named")]
    Empty,
    #[error("the secret of key {0:?} is not {KEY_BYTES} bytes in base64")]
    Secret(String),
    #[error("key name {0:?} is empty, too long or holds a colon")]
    KeyName(String),
    #[error("two keys are named {0:?}")]
    SameName(String),
}

/// Which resources are encrypted, and how.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EncryptionConfiguration {
    kind: String,
    api_version: String,
    resources: Vec<ResourceConfiguration>,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceConfiguration {
    pub resources: Vec<String>,
    /// The first is written with; all are read with.
    pub providers: Vec<Provider>,
}

#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Provider {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aesgcm: Option<Keys>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    #[serde(flatten, skip_serializing)]
    others: std::collections::BTreeMap<String, serde::de::IgnoredAny>,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    pub keys: Vec<NamedKey>,
}

#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Identity {}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedKey {
    pub name: String,
    secret: String,
}

/// Secrets do not belong into logs.
impl std::fmt::Debug for EncryptionConfiguration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.key_names().collect();
        write!(f, "EncryptionConfiguration(keys {names:?}, enabled {})", self.is_enabled())
    }
}

impl NamedKey {
    fn random(name: &str) -> Self {
        Self { name: name.to_owned(), secret: STANDARD.encode(rand::random::<[u8; KEY_BYTES]>()) }
    }

    /// # Errors
    /// When it has another length.
    pub fn secret(&self) -> Result<[u8; KEY_BYTES], ConfigError> {
        let fail = || ConfigError::Secret(self.name.clone());
        STANDARD.decode(&self.secret).map_err(|_| fail())?.try_into().map_err(|_| fail())
    }
}

impl EncryptionConfiguration {
    /// For Secrets, with one new key.
    pub fn generate() -> Self {
        Self::for_secrets(vec![NamedKey::random(FIRST_KEY)], true)
    }

    fn for_secrets(keys: Vec<NamedKey>, enabled: bool) -> Self {
        let rule = ResourceConfiguration { resources: vec![SECRETS.to_owned()], providers: providers(keys, enabled) };
        Self { kind: KIND.to_owned(), api_version: API_VERSION.to_owned(), resources: vec![rule] }
    }

    /// Takes JSON and YAML.
    ///
    /// # Errors
    /// When it is something else, or asks for what is not there.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(ConfigError::Malformed("it is too long".to_owned()));
        }
        // Messages of the parsers can quote what they read; keys must not get into logs that way.
        let malformed = || ConfigError::Malformed("its fields are not as they should be".to_owned());
        let parsed: Self = match serde_json::from_str(text) {
            Ok(parsed) => parsed,
            Err(_) => serde_saphyr::from_str(text).map_err(|_| malformed())?,
        };
        parsed.check()?;
        Ok(parsed)
    }

    fn check(&self) -> Result<(), ConfigError> {
        if self.kind != KIND || self.api_version != API_VERSION {
            return Err(ConfigError::Malformed("kind or apiVersion is another one".to_owned()));
        }
        let mut secrets = std::collections::BTreeMap::new();
        let mut resources = std::collections::BTreeSet::new();
        if self.resources.is_empty() {
            return Err(ConfigError::Empty);
        }
        for rule in &self.resources {
            if rule.resources.is_empty() || rule.providers.is_empty() {
                return Err(ConfigError::Empty);
            }
            for resource in &rule.resources {
                let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
                if resource.is_empty() || !resource.bytes().all(known) {
                    return Err(ConfigError::Resource(resource.clone()));
                }
                if !resources.insert(resource) {
                    return Err(ConfigError::Twice(resource.clone()));
                }
            }
            for provider in &rule.providers {
                if let Some(name) = provider.others.keys().next() {
                    return Err(ConfigError::Provider(name.clone()));
                }
                match (&provider.aesgcm, &provider.identity) {
                    (Some(_), None) | (None, Some(_)) => {}
                    _ => return Err(ConfigError::Ambiguous),
                }
                if provider.aesgcm.as_ref().is_some_and(|keys| keys.keys.is_empty()) {
                    return Err(ConfigError::Empty);
                }
                for key in provider.aesgcm.iter().flat_map(|keys| &keys.keys) {
                    if key.name.is_empty() || key.name.len() > 253 || key.name.contains(':') {
                        return Err(ConfigError::KeyName(key.name.clone()));
                    }
                    // One name is one key, whatever the resource: a value names its key and nothing else.
                    let secret = key.secret()?;
                    if secrets.insert(&key.name, secret).is_some_and(|before| before != secret) {
                        return Err(ConfigError::SameName(key.name.clone()));
                    }
                }
            }
        }
        Ok(())
    }

    pub fn rules(&self) -> &[ResourceConfiguration] {
        &self.resources
    }

    /// JSON, as it lies on disk.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Tells configurations apart without telling the keys, which are as random as it.
    pub fn hash(&self) -> String {
        Sha256::digest(self.to_text().as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The rule that the commands are about: that of Secrets.
    fn secrets_rule(&self) -> Option<&ResourceConfiguration> {
        self.resources.iter().find(|rule| rule.resources.iter().any(|resource| resource == SECRETS))
    }

    /// Whether Secrets are written encrypted.
    pub fn is_enabled(&self) -> bool {
        self.secrets_rule().and_then(|rule| rule.providers.first()).is_some_and(|first| first.aesgcm.is_some())
    }

    /// The names of all keys, that which Secrets are written with first.
    pub fn key_names(&self) -> impl Iterator<Item = &str> {
        self.keys().into_iter().map(|key| key.name.as_str())
    }

    fn keys(&self) -> Vec<&NamedKey> {
        let mut keys: Vec<&NamedKey> = Vec::new();
        for rule in self.secrets_rule().into_iter().chain(&self.resources) {
            for key in rule.providers.iter().filter_map(|provider| provider.aesgcm.as_ref()).flat_map(|keys| &keys.keys)
            {
                if !keys.iter().any(|known| known.name == key.name) {
                    keys.push(key);
                }
            }
        }
        keys
    }

    /// All that is encrypted, and Secrets, with these keys. A resource that is never encrypted stays so.
    fn with(&self, keys: &[NamedKey], enabled: bool) -> Self {
        let mut new = self.clone();
        for rule in &mut new.resources {
            let of_secrets = rule.resources.iter().any(|resource| resource == SECRETS);
            if of_secrets || rule.providers.iter().any(|provider| provider.aesgcm.is_some()) {
                rule.providers = providers(keys.to_vec(), enabled);
            }
        }
        new
    }

    /// Writes encrypted from now on, or plain.
    pub fn enabled(&self, enabled: bool) -> Self {
        let mut keys: Vec<NamedKey> = self.keys().into_iter().cloned().collect();
        if keys.is_empty() {
            keys.push(NamedKey::random(FIRST_KEY));
        }
        match self.secrets_rule() {
            Some(_) => self.with(&keys, enabled),
            None => Self::for_secrets(keys, enabled),
        }
    }

    /// One more key, to read with, the last.
    pub fn with_new_key(&self) -> Self {
        let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let mut name = format!("{FIRST_KEY}-{time}");
        let mut count = 1;
        while self.key_names().any(|other| other == name) {
            count += 1;
            name = format!("{FIRST_KEY}-{time}-{count}");
        }
        let keys: Vec<NamedKey> = self.keys().into_iter().cloned().chain([NamedKey::random(&name)]).collect();
        self.with(&keys, self.is_enabled())
    }

    /// The last key becomes the first, which is written with.
    pub fn rotated(&self) -> Self {
        let mut keys: Vec<NamedKey> = self.keys().into_iter().cloned().collect();
        let last = keys.len().min(1);
        keys.rotate_right(last);
        self.with(&keys, self.is_enabled())
    }

    /// Without all keys but the first.
    pub fn with_first_key_only(&self) -> Self {
        let keys: Vec<NamedKey> = self.keys().into_iter().take(1).cloned().collect();
        self.with(&keys, self.is_enabled())
    }
}

/// Plain values are always read, for those that were there before.
fn providers(keys: Vec<NamedKey>, enabled: bool) -> Vec<Provider> {
    let aesgcm = Provider { aesgcm: Some(Keys { keys }), ..Provider::default() };
    let identity = Provider { identity: Some(Identity {}), ..Provider::default() };
    if enabled { vec![aesgcm, identity] } else { vec![identity, aesgcm] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(provider: &str) -> String {
        format!(
            r#"{{"kind": "EncryptionConfiguration", "apiVersion": "apiserver.config.k8s.io/v1",
                "resources": [{{"resources": ["secrets"], "providers": [{provider}]}}]}}"#
        )
    }

    #[test]
    fn what_is_written_is_read() {
        let made = EncryptionConfiguration::generate();
        assert_eq!(EncryptionConfiguration::parse(&made.to_text()).unwrap(), made);
        assert!(made.is_enabled() && made.key_names().eq([FIRST_KEY]));
        let yaml = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources:\n  - \
                    secrets\n  - configmaps\n  providers:\n  - identity: {}\n";
        assert!(!EncryptionConfiguration::parse(yaml).unwrap().is_enabled());
    }

    #[test]
    fn what_is_not_there_is_refused_by_name_and_no_secret_is_told() {
        let secret = "c2VjcmV0IGlzIHNlY3VyZQ==";
        let refusals = [
            (text(&format!(r#"{{"aescbc": {{"keys": [{{"name": "k", "secret": "{secret}"}}]}}}}"#)), "provider aescbc"),
            (text(&format!(r#"{{"aesgcm": {{"keys": [{{"name": "k", "secret": "{secret}"}}]}}}}"#)), "key \"k\""),
            (text("{}"), "exactly one"),
            (text(r#"{"aesgcm": {"keys": []}}"#), "no resources"),
            (text(r#"{"identity": {}}"#).replace("\"secrets\"", "\"*.*\""), "\"*.*\""),
            (text(r#"{"identity": {}}"#).replace("\"secrets\"", "\"secrets\", \"secrets\""), "twice"),
            (text(&format!(r#"{{"aesgcm": {{"keys": [{{"nome": "{secret}"}}]}}}}"#)), "fields"),
            ("x".to_owned(), "fields"),
        ];
        for (text, expected) in refusals {
            let error = EncryptionConfiguration::parse(&text).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains(secret), "{error}");
        }
    }

    #[test]
    fn keys_are_added_rotated_and_dropped() {
        let first = EncryptionConfiguration::generate();
        let prepared = first.with_new_key();
        assert_eq!(prepared.key_names().next(), Some(FIRST_KEY));
        let rotated = prepared.rotated();
        let names: Vec<&str> = rotated.key_names().collect();
        assert!(names[0].starts_with("aesgcmkey-2") && names[1] == FIRST_KEY);
        assert_eq!(rotated.with_first_key_only().key_names().count(), 1);
        assert_ne!(rotated.hash(), prepared.hash());
        let disabled = rotated.enabled(false);
        assert!(!disabled.is_enabled() && disabled.enabled(true) == rotated);
        let twice = rotated.with_new_key();
        assert_eq!(twice.key_names().collect::<std::collections::BTreeSet<_>>().len(), 3);
    }
}
