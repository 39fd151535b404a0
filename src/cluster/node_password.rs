//! Ties a node's name to the machine that took it first.
//!
//! The machine makes a password and shows it whenever it asks for certificates; the cluster keeps its hash in a Secret
//! `kube-system/<node>.node-password.mussel`. Deleting the Node frees the name.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Node, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use mussel_client::{Change, Informer, LeaderGate};
use ring::pbkdf2;
use tokio_util::sync::CancellationToken;

use crate::files::FileError;
use crate::join::ensure_password;

pub const NAMESPACE: &str = "kube-system";
pub const SECRET_TYPE: &str = "mussel.io/node-password";
const SUFFIX: &str = ".node-password.mussel";
const HASH: &str = "hash";
/// Passwords are 16 random bytes, so that rounds protect little; these cost a small machine about ten milliseconds.
const ROUNDS: u32 = 10_000;
const PASSWORD_BYTES_MAX: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    #[error(
        "another machine has the name {node:?}: the node password does not fit. Choose another --node-name, or, when this \
        machine takes the other one's place, delete the old one first: kubectl delete node {node}"
    )]
    Taken { node: String },
    #[error("the node password must have 8 to {PASSWORD_BYTES_MAX} characters")]
    Unusable,
    #[error("the node password of {node:?} cannot be checked")]
    Api {
        node: String,
        #[source]
        source: kube::Error,
    },
}

/// The name of the Secret of a node.
pub fn secret_name(node: &str) -> String {
    format!("{node}{SUFFIX}")
}

/// The node that a Secret of this name is of.
pub fn node_of(secret: &str) -> Option<&str> {
    secret.strip_suffix(SUFFIX)
}

/// Checks the password of a node. Nothing is written: a new name is free.
///
/// # Errors
/// `Taken` when the name belongs to a machine with another password.
pub async fn check(client: &Client, node: &str, password: &str) -> Result<(), PasswordError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let found = api.get_opt(&secret_name(node)).await;
    let found = found.map_err(|source| PasswordError::Api { node: node.to_owned(), source })?;
    if found.is_none_or(|secret| fits(&secret, password)) {
        Ok(())
    } else {
        Err(PasswordError::Taken { node: node.to_owned() })
    }
}

fn fits(secret: &Secret, password: &str) -> bool {
    secret.data.as_ref().and_then(|data| data.get(HASH)).is_some_and(|hash| verify(&hash.0, password))
}

/// Checks the password of a node, or keeps it when the name is new.
///
/// # Errors
/// `Taken` when the name belongs to a machine with another password.
pub async fn ensure(client: &Client, node: &str, password: &str) -> Result<(), PasswordError> {
    if !(8..=PASSWORD_BYTES_MAX).contains(&password.len()) {
        return Err(PasswordError::Unusable);
    }
    let api: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let fail = |source| PasswordError::Api { node: node.to_owned(), source };
    let name = secret_name(node);
    for _ in 0..2 {
        if let Some(secret) = api.get_opt(&name).await.map_err(fail)? {
            return if fits(&secret, password) { Ok(()) } else { Err(PasswordError::Taken { node: node.to_owned() }) };
        }
        let secret = Secret {
            metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
            type_: Some(SECRET_TYPE.to_owned()),
            immutable: Some(true),
            data: Some(BTreeMap::from([(HASH.to_owned(), ByteString(hash(password).into_bytes()))])),
            ..Secret::default()
        };
        match api.create(&PostParams::default(), &secret).await {
            Ok(_) => return Ok(()),
            // Somebody was faster: look whether it was the same machine.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(source) => return Err(fail(source)),
        }
    }
    Err(PasswordError::Taken { node: node.to_owned() })
}

/// A server's own node, whose name agents must not take either.
pub struct OwnName {
    pub client: Client,
    pub node: String,
    pub password_file: PathBuf,
    /// This machine takes the place of the one that had the name: the cluster was restored on it.
    pub succeeds: bool,
}

impl OwnName {
    /// Ties the name to this machine.
    ///
    /// # Errors
    /// When another machine has it.
    pub async fn claim(&self) -> Result<(), ClaimError> {
        let password = ensure_password(&self.password_file)?;
        match ensure(&self.client, &self.node, &password).await {
            Err(PasswordError::Taken { .. }) if self.succeeds => {
                tracing::warn!(node = self.node, "the restored cluster knew another machine by this node's name");
                let api: Api<Secret> = Api::namespaced(self.client.clone(), NAMESPACE);
                let fail = |source| PasswordError::Api { node: self.node.clone(), source };
                api.delete(&secret_name(&self.node), &DeleteParams::default()).await.map_err(fail)?;
                ensure(&self.client, &self.node, &password).await?;
            }
            other => other?,
        }
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    #[error("the node password is not kept")]
    File(#[from] FileError),
    #[error(transparent)]
    Password(#[from] PasswordError),
}

/// A machine that joins has its Secret before its Node; Secrets younger than this are left alone.
const ORPHAN_AGE: i64 = 3600;

/// Frees the names of deleted nodes, while this server leads.
pub async fn clean(client: Client, nodes: Informer<Node>, gate: LeaderGate, stop: CancellationToken) {
    let work = |stop: CancellationToken| {
        let (client, nodes) = (client.clone(), nodes.clone());
        async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = free_names(client, nodes) => {}
            }
            stop.cancelled().await;
        }
    };
    gate.run_while_leading(stop.clone(), work).await;
    stop.cancelled().await;
}

async fn free_names(client: Client, nodes: Informer<Node>) {
    let api: Api<Secret> = Api::namespaced(client, NAMESPACE);
    let mut changes = nodes.changes();
    nodes.synced().await;
    remove_orphans(&api, &nodes).await;
    while let Some(change) = changes.next().await {
        match change {
            Change::Applied { .. } => {}
            Change::Deleted(node) => remove(&api, node.metadata.name.as_deref().unwrap_or_default()).await,
            Change::Resync => remove_orphans(&api, &nodes).await,
        }
    }
}

/// Secrets of nodes that went while nobody looked.
async fn remove_orphans(api: &Api<Secret>, nodes: &Informer<Node>) {
    let of_type = ListParams::default().fields(&format!("type={SECRET_TYPE}"));
    let secrets = match api.list(&of_type).await {
        Ok(secrets) => secrets,
        Err(error) => return tracing::warn!(%error, "node passwords cannot be listed"),
    };
    let now = jiff::Timestamp::now().as_second();
    for secret in secrets {
        let Some(node) = secret.metadata.name.as_deref().and_then(node_of) else { continue };
        let age = secret.metadata.creation_timestamp.as_ref().map_or(0, |made| now - made.0.as_second());
        if age > ORPHAN_AGE && nodes.get("", node).is_none() {
            remove(api, node).await;
        }
    }
}

async fn remove(api: &Api<Secret>, node: &str) {
    match api.delete(&secret_name(node), &DeleteParams::default()).await {
        Ok(_) => tracing::info!(node, "the node is gone; its name is free"),
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => tracing::warn!(node, %error, "the name of a deleted node is not freed"),
    }
}

/// `$pbkdf2-sha256$<rounds>$<salt>$<hash>`
fn hash(password: &str) -> String {
    let salt: [u8; 16] = rand::random();
    let rounds = NonZeroU32::new(ROUNDS).unwrap_or(NonZeroU32::MIN);
    let mut out = [0; 32];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, password.as_bytes(), &mut out);
    format!("$pbkdf2-sha256${ROUNDS}${}${}", STANDARD_NO_PAD.encode(salt), STANDARD_NO_PAD.encode(out))
}

fn verify(hash: &[u8], password: &str) -> bool {
    const ROUNDS_MAX: u32 = 1_000_000;
    let parsed = std::str::from_utf8(hash).ok().and_then(|text| {
        let mut parts = text.strip_prefix("$pbkdf2-sha256$")?.split('$');
        let rounds = parts.next()?.parse().ok().filter(|rounds| *rounds <= ROUNDS_MAX)?;
        let salt = STANDARD_NO_PAD.decode(parts.next()?).ok()?;
        let derived = STANDARD_NO_PAD.decode(parts.next()?).ok()?;
        Some((NonZeroU32::new(rounds)?, salt, derived))
    });
    let Some((rounds, salt, derived)) = parsed else { return false };
    pbkdf2::verify(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, password.as_bytes(), &derived).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_password_fits_its_hash() {
        let kept = hash("0123456789abcdef");
        assert!(verify(kept.as_bytes(), "0123456789abcdef"));
        assert!(!verify(kept.as_bytes(), "0123456789abcdee"));
        assert_ne!(hash("0123456789abcdef"), kept, "salted");
        for broken in ["", "$pbkdf2-sha256$0$$", "$pbkdf2-sha256$99999999$YQ$YQ", "plain"] {
            assert!(!verify(broken.as_bytes(), "plain"), "{broken}");
        }
    }

    #[test]
    fn secrets_name_their_node() {
        assert_eq!(node_of(&secret_name("edge-1")), Some("edge-1"));
        assert_eq!(node_of("something"), None);
    }
}
