//! Who asks, and whether they may: client certificates and bearer tokens, TokenReview and SubjectAccessReview.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use http::{Method, StatusCode, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

const TOKEN_FOR: Duration = Duration::from_secs(120);
const YES_FOR: Duration = Duration::from_secs(300);
const NO_FOR: Duration = Duration::from_secs(30);
const CACHE_MAX: usize = 4096;
/// The group whose members may everything, always.
const MASTERS: &str = "system:masters";

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    pub user: String,
    pub groups: Vec<String>,
}

/// The identity that the connection's certificate proves.
#[derive(Debug, Clone)]
pub struct Peer(pub Option<Identity>);

/// The subject's common name is the user, its organisations are the groups.
pub fn identity_of(certificate: &CertificateDer<'_>) -> Option<Identity> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = parsed.subject();
    let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    Some(Identity { user, groups })
}

type Question = (Identity, String, String);

/// What of a request matters for the answer.
pub struct Asking {
    peer: Option<Identity>,
    token: Option<String>,
    method: Method,
    path: String,
}

impl Asking {
    pub fn of(request: &Request) -> Self {
        let bearer = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        Self {
            peer: request.extensions().get::<Peer>().and_then(|p| p.0.clone()),
            token: bearer.and_then(|v| v.strip_prefix("Bearer ")).filter(|t| !t.is_empty()).map(str::to_owned),
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
        }
    }
}

pub struct Auth {
    client: Client,
    node: String,
    tokens: Mutex<HashMap<[u8; 32], (Option<Identity>, Instant)>>,
    answers: Mutex<HashMap<Question, (bool, Instant)>>,
}

pub enum Refusal {
    Unauthorized,
    Forbidden(String),
    Unavailable(String),
}

impl Refusal {
    pub fn into_response(self) -> Response {
        match self {
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "Unauthorized").into_response(),
            Self::Forbidden(text) => (StatusCode::FORBIDDEN, text).into_response(),
            Self::Unavailable(text) => (StatusCode::INTERNAL_SERVER_ERROR, text).into_response(),
        }
    }
}

impl Auth {
    pub fn new(client: Client, node: String) -> Self {
        Self { client, node, tokens: Mutex::default(), answers: Mutex::default() }
    }

    pub async fn check(&self, asking: Asking) -> Result<(), Refusal> {
        let identity = match (asking.peer, asking.token) {
            (Some(identity), _) => identity,
            (None, Some(token)) => self.review_token(&token).await?,
            (None, None) => return Err(Refusal::Unauthorized),
        };
        if identity.groups.iter().any(|g| g == MASTERS) {
            return Ok(());
        }
        let verb = verb(&asking.method);
        let candidates = subresources(&asking.path);
        for subresource in candidates {
            if self.may(&identity, verb, subresource).await? {
                return Ok(());
            }
        }
        Err(Refusal::Forbidden(format!(
            "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{}])",
            identity.user,
            candidates.join(" ")
        )))
    }

    async fn review_token(&self, token: &str) -> Result<Identity, Refusal> {
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let now = Instant::now();
        {
            let mut known = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
            if known.len() > CACHE_MAX {
                known.clear();
            }
            if let Some((identity, until)) = known.get(&key)
                && *until > now
            {
                return identity.clone().ok_or(Refusal::Unauthorized);
            }
        }
        let review =
            TokenReview { spec: TokenReviewSpec { token: token.to_owned(), audiences: None }, ..Default::default() };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let answer = api
            .create(&PostParams::default(), &review)
            .await
            .map_err(|e| Refusal::Unavailable(format!("cannot review the token: {e}")))?;
        let status = answer.status.unwrap_or_default();
        let user = status.user.unwrap_or_default();
        let identity = status
            .authenticated
            .unwrap_or(false)
            .then(|| Identity { user: user.username.unwrap_or_default(), groups: user.groups.unwrap_or_default() });
        let until = now + if identity.is_some() { TOKEN_FOR } else { NO_FOR };
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).insert(key, (identity.clone(), until));
        identity.ok_or(Refusal::Unauthorized)
    }

    async fn may(&self, identity: &Identity, verb: &str, subresource: &str) -> Result<bool, Refusal> {
        let question = (identity.clone(), verb.to_owned(), subresource.to_owned());
        let now = Instant::now();
        {
            let mut known = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            if known.len() > CACHE_MAX {
                known.clear();
            }
            if let Some((allowed, until)) = known.get(&question)
                && *until > now
            {
                return Ok(*allowed);
            }
        }
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(identity.user.clone()),
                groups: Some(identity.groups.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.to_owned()),
                    version: Some("v1".into()),
                    resource: Some("nodes".into()),
                    subresource: Some(subresource.to_owned()),
                    name: Some(self.node.clone()),
                    ..Default::default()
                }),
                ..Default::default()
            },
            ..Default::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = api
            .create(&PostParams::default(), &review)
            .await
            .map_err(|e| Refusal::Unavailable(format!("cannot review the access: {e}")))?;
        let allowed = answer.status.is_some_and(|s| s.allowed);
        let until = now + if allowed { YES_FOR } else { NO_FOR };
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).insert(question, (allowed, until));
        Ok(allowed)
    }
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

/// The rights that open a path, the narrowest first.
fn subresources(path: &str) -> &'static [&'static str] {
    let below = |prefix: &str| path == prefix || path.strip_prefix(prefix).is_some_and(|r| r.starts_with('/'));
    match () {
        () if below("/stats") => &["stats"],
        () if below("/metrics") => &["metrics"],
        () if below("/logs") => &["log"],
        () if below("/healthz") => &["healthz", "proxy"],
        () if below("/configz") => &["configz", "proxy"],
        () if below("/pods") || below("/runningpods") => &["pods", "proxy"],
        () => &["proxy"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_need_the_rights_that_upstream_asks_for() {
        for (path, rights) in [
            ("/stats/summary", "stats"),
            ("/metrics/resource", "metrics"),
            ("/metricsx", "proxy"),
            ("/logs/x", "log"),
            ("/pods", "pods proxy"),
            ("/exec/a/b/c", "proxy"),
        ] {
            assert_eq!(subresources(path).join(" "), rights, "{path}");
        }
    }
}
