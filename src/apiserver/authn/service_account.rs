//! Service account tokens as credentials: signature, audience, and that all they are bound to still exists.
//!
//! Signatures are checked once per token. What a token is bound to is looked up at each request, but decoded again only
//! when the store says that it changed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use mussel_store::Revision;
use serde_json::Value;

use super::{AuthnError, TokenOwner};
use crate::encryption::Snapshot;
use crate::handler::UserInfo;
use crate::tokens::{Claims, TokenError, Tokens};

/// Tokens remembered; more than that and the memory starts anew.
const REMEMBERED_MAX: usize = 1024;
/// A deleted object keeps its tokens alive for this long, so that pods can end in order.
const DELETED_LEEWAY: SignedDuration = SignedDuration::from_secs(60);

pub struct ServiceAccounts {
    tokens: Arc<Tokens>,
    audiences: Vec<String>,
    remembered: Mutex<HashMap<[u8; 32], Arc<Verified>>>,
}

/// A token whose signature is good.
struct Verified {
    user: UserInfo,
    audiences: Vec<String>,
    not_before: i64,
    expires: i64,
    /// Store key and uid of everything that must exist.
    bound: Vec<(String, String)>,
    /// At which revisions `bound` was last found good.
    seen: Mutex<Vec<Revision>>,
}

impl ServiceAccounts {
    pub fn new(tokens: Arc<Tokens>, audiences: Vec<String>) -> Self {
        Self { tokens, audiences, remembered: Mutex::default() }
    }

    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    pub fn authenticate(
        &self,
        token: &str,
        audiences: &[String],
        snapshot: &Snapshot,
        now: Timestamp,
    ) -> Result<Option<TokenOwner>, AuthnError> {
        let Some(verified) = self.verify(token, now)? else { return Ok(None) };
        let seconds = now.as_second();
        if seconds >= verified.expires || seconds < verified.not_before {
            return Err(AuthnError::Refused("service account token has expired".to_owned()));
        }
        let wanted = if audiences.is_empty() { &self.audiences } else { audiences };
        let good: Vec<String> = wanted.iter().filter(|a| verified.audiences.contains(a)).cloned().collect();
        if good.is_empty() {
            return Err(AuthnError::Refused(format!(
                "token audiences {:?} is invalid for the target audiences {wanted:?}",
                verified.audiences
            )));
        }
        verified.still_bound(snapshot, now)?;
        Ok(Some(TokenOwner { user: verified.user.clone(), audiences: good }))
    }

    fn verify(&self, token: &str, now: Timestamp) -> Result<Option<Arc<Verified>>, AuthnError> {
        let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
        let Ok(key) = <[u8; 32]>::try_from(digest.as_ref()) else { return Ok(None) };
        if let Some(found) = self.remembered.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(Some(Arc::clone(found)));
        }
        let claims = match self.tokens.verify(token, now) {
            Ok(claims) => claims,
            Err(TokenError::OtherIssuer | TokenError::Malformed) => return Ok(None),
            Err(error) => return Err(AuthnError::Refused(error.to_string())),
        };
        let Some(verified) = Verified::read(&claims) else { return Err(AuthnError::Token) };
        let verified = Arc::new(verified);
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(key, Arc::clone(&verified));
        Ok(Some(verified))
    }
}

impl Verified {
    fn read(claims: &Claims) -> Option<Self> {
        let own = &claims.kubernetes;
        let namespace = &own.namespace;
        let account = &own.serviceaccount;
        let name = format!("system:serviceaccount:{namespace}:{}", account.name);
        if namespace.is_empty() || account.name.is_empty() || claims.sub != name {
            return None;
        }
        let mut user = UserInfo { name, uid: account.uid.clone(), ..UserInfo::default() };
        user.groups = service_account_groups(namespace);
        let mut bound = vec![(format!("/registry/serviceaccounts/{namespace}/{}", account.name), account.uid.clone())];
        let mut extra = |key: &str, value: String| {
            user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
        };
        if let Some(id) = &claims.jti {
            extra("credential-id", format!("JTI={id}"));
        }
        if let Some(secret) = &own.secret {
            bound.push((format!("/registry/secrets/{namespace}/{}", secret.name), secret.uid.clone()));
        }
        if let Some(pod) = &own.pod {
            extra("pod-name", pod.name.clone());
            extra("pod-uid", pod.uid.clone());
            bound.push((format!("/registry/pods/{namespace}/{}", pod.name), pod.uid.clone()));
        }
        if let Some(node) = &own.node {
            extra("node-name", node.name.clone());
            extra("node-uid", node.uid.clone());
            // A pod's token tells its node, but is bound to the pod.
            if own.pod.is_none() {
                bound.push((format!("/registry/nodes/{}", node.name), node.uid.clone()));
            }
        }
        Some(Self {
            user,
            audiences: claims.aud.clone(),
            not_before: claims.nbf.unwrap_or(i64::MIN),
            expires: claims.exp?,
            bound,
            seen: Mutex::default(),
        })
    }

    fn still_bound(&self, snapshot: &Snapshot, now: Timestamp) -> Result<(), AuthnError> {
        let mut revisions = Vec::with_capacity(self.bound.len());
        let mut stored = Vec::with_capacity(self.bound.len());
        for (key, _) in &self.bound {
            let Some(versioned) = snapshot.get(key.as_bytes()) else {
                return Err(AuthnError::Refused(format!("{key:?} that the token is bound to does not exist")));
            };
            revisions.push(versioned.revision);
            stored.push(versioned);
        }
        if *self.seen.lock().unwrap_or_else(PoisonError::into_inner) == revisions {
            return Ok(());
        }
        let mut remember = true;
        for ((key, uid), versioned) in self.bound.iter().zip(stored) {
            let value = versioned.value().map_err(|error| AuthnError::Refused(error.to_string()))?;
            let object: Value = serde_json::from_slice(&value).unwrap_or_default();
            if object["metadata"]["uid"] != **uid {
                return Err(AuthnError::Refused(format!("{key:?} that the token is bound to was replaced")));
            }
            if let Some(deleted) = object["metadata"]["deletionTimestamp"].as_str() {
                remember = false;
                let deleted: Option<Timestamp> = deleted.parse().ok();
                if deleted.is_none_or(|at| now.duration_since(at) > DELETED_LEEWAY) {
                    return Err(AuthnError::Refused(format!("{key:?} that the token is bound to is being deleted")));
                }
            }
        }
        if remember {
            *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = revisions;
        }
        Ok(())
    }
}

/// The groups of every service account of a namespace.
pub fn service_account_groups(namespace: &str) -> Vec<String> {
    vec![
        "system:serviceaccounts".to_owned(),
        format!("system:serviceaccounts:{namespace}"),
        "system:authenticated".to_owned(),
    ]
}
