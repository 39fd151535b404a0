//! Service account tokens for pods: requested per pod and audience, cached, renewed at 80 % of their life.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client};
use serde::{Deserialize, Serialize};

use crate::objects::write_private;
use crate::pod;

/// However long it lives, a token is renewed daily.
const AGE_MAX: SignedDuration = SignedDuration::from_hours(24);

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Token {
    pub text: String,
    pub renew_at: Timestamp,
}

type Key = (String, String, String, i64);

#[derive(Debug, thiserror::Error)]
#[error("failed to fetch token: {0}")]
pub struct TokenError(String);

/// Tokens by pod uid, account, audience and wanted life.
pub struct Tokens {
    client: Client,
    dir: PathBuf,
    cache: Mutex<HashMap<Key, Token>>,
}

impl Tokens {
    /// `dir` keeps copies (0600), for a reboot without a server.
    pub fn new(client: Client, dir: PathBuf) -> Self {
        Self { client, dir, cache: Mutex::default() }
    }

    pub async fn get(&self, pod: &Pod, audience: &str, seconds: i64, now: Timestamp) -> Result<Token, TokenError> {
        let account = pod::spec(pod).and_then(|s| s.service_account_name.as_deref()).unwrap_or("default");
        let key = (pod::uid(pod).to_owned(), account.to_owned(), audience.to_owned(), seconds);
        let known = self.cache.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let known = known.or_else(|| self.read(&key));
        if let Some(token) = &known
            && token.renew_at > now
        {
            self.cache.lock().unwrap_or_else(PoisonError::into_inner).insert(key, token.clone());
            return Ok(token.clone());
        }
        match self.request(pod, account, audience, seconds, now).await {
            Ok(token) => {
                if let Ok(bytes) = serde_json::to_vec(&token)
                    && let Err(error) = write_private(&self.path(&key), &bytes)
                {
                    tracing::warn!(%error, "cannot keep a token for a start without server");
                }
                self.cache.lock().unwrap_or_else(PoisonError::into_inner).insert(key, token.clone());
                Ok(token)
            }
            // A fifth of its life is still left when we first ask for a new one; better old than none.
            Err(error) => match known {
                Some(old) => {
                    tracing::warn!(%error, pod = %pod::full(pod), "keeping an old token");
                    Ok(Token { renew_at: now + SignedDuration::from_secs(10), ..old })
                }
                None => Err(TokenError(error.to_string())),
            },
        }
    }

    async fn request(
        &self,
        pod: &Pod,
        account: &str,
        audience: &str,
        seconds: i64,
        now: Timestamp,
    ) -> Result<Token, kube::Error> {
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), pod::namespace(pod));
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(vec![audience.to_owned()]).filter(|a| !a[0].is_empty()),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: pod.metadata.name.clone(),
                    uid: pod.metadata.uid.clone(),
                }),
                expiration_seconds: Some(seconds),
            }),
            ..Default::default()
        };
        let answer = api.create_token_request(account, &PostParams::default(), &request).await?;
        let status = answer.status.unwrap_or_default();
        let life = status
            .expiration_timestamp
            .map_or(SignedDuration::from_secs(seconds), |t| t.0.duration_since(now))
            .max(SignedDuration::ZERO);
        Ok(Token { text: status.token.unwrap_or_default(), renew_at: now + (life * 4 / 5).min(AGE_MAX) })
    }

    pub fn release(&self, uid: &str) {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, _| key.0 != uid);
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(uid)) {
            let _ = std::fs::remove_file(entry.path());
        }
    }

    fn path(&self, key: &Key) -> PathBuf {
        let audience: String = key.2.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        self.dir.join(format!("{}_{}_{}_{}", key.0, key.1, audience, key.3))
    }

    fn read(&self, key: &Key) -> Option<Token> {
        serde_json::from_slice(&std::fs::read(self.path(key)).ok()?).ok()
    }
}
