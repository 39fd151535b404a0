//! Bootstrap tokens: let agents join until they expire. Kept as Secrets `kube-system/bootstrap-token-<id>`, as upstream has
//! them.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use kube::{Api, Client};
use mussel_client::{Informer, LeaderGate};
use rand::Rng as _;
use tokio::time;
use tokio_util::sync::CancellationToken;

pub const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
/// The group of tokens that join nodes.
pub const NODE_GROUP: &str = "system:bootstrappers:mussel:default-node-token";
pub const GROUP_PREFIX: &str = "system:bootstrappers:";
pub const USAGES: [&str; 2] = ["signing", "authentication"];
const NAMESPACE: &str = "kube-system";
const NAME_PREFIX: &str = "bootstrap-token-";

#[derive(Debug, thiserror::Error)]
pub enum BootstrapTokenError {
    #[error("a bootstrap token has the form <6>.<16>, of lower-case letters and digits")]
    Form,
    #[error("{0:?} is no usage; there are signing and authentication")]
    Usage(String),
    #[error("{0:?} is no group for bootstrap tokens; those begin with {GROUP_PREFIX}")]
    Group(String),
    #[error("there is a token with the id {0} already")]
    Exists(String),
    #[error("there is no token with the id {0}")]
    Unknown(String),
    #[error("ask the API")]
    Api(#[from] kube::Error),
}

/// What a token is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// `<id>.<secret>`
    pub token: String,
    pub description: String,
    pub groups: Vec<String>,
    pub usages: Vec<String>,
    /// `None` for one that does not expire.
    pub ttl: Option<Duration>,
}

/// A token as it is listed; the secret half stays where it is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    pub id: String,
    pub description: String,
    /// RFC 3339; `None` when it does not expire.
    pub expires: Option<String>,
    pub usages: Vec<String>,
    pub groups: Vec<String>,
}

/// A new random token.
pub fn generate() -> String {
    const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut random = rand::rng();
    let mut text = |length: usize| -> String {
        (0..length).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())])).collect()
    };
    format!("{}.{}", text(6), text(16))
}

/// Makes the token known to the cluster.
///
/// # Errors
/// When the spec is wrong, its id is taken, or the API refuses.
pub async fn create(client: &Client, spec: &Spec) -> Result<(), BootstrapTokenError> {
    let secret = secret(spec, Timestamp::now())?;
    let api: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    match api.create(&PostParams::default(), &secret).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => {
            Err(BootstrapTokenError::Exists(id(&spec.token).to_owned()))
        }
        Err(error) => Err(error.into()),
    }
}

/// # Errors
/// When the API refuses.
pub async fn list(client: &Client) -> Result<Vec<Listed>, BootstrapTokenError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let secrets = api.list(&ListParams::default().fields(&selector())).await?;
    Ok(secrets.items.iter().filter_map(listed).collect())
}

/// `token` may be the id, the short or the full form.
///
/// # Errors
/// When there is none, or the API refuses.
pub async fn delete(client: &Client, token: &str) -> Result<(), BootstrapTokenError> {
    let id = id(token.rsplit("::").next().unwrap_or(token));
    let api: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    match api.delete(&format!("{NAME_PREFIX}{id}"), &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Err(BootstrapTokenError::Unknown(id.to_owned())),
        Err(error) => Err(error.into()),
    }
}

/// The field selector of the Secrets that hold tokens.
pub fn selector() -> String {
    format!("type={SECRET_TYPE}")
}

fn id(token: &str) -> &str {
    token.split('.').next().unwrap_or(token)
}

fn secret(spec: &Spec, now: Timestamp) -> Result<Secret, BootstrapTokenError> {
    if !crate::token::is_bootstrap(&spec.token) {
        return Err(BootstrapTokenError::Form);
    }
    if let Some(usage) = spec.usages.iter().find(|usage| !USAGES.contains(&usage.as_str())) {
        return Err(BootstrapTokenError::Usage(usage.clone()));
    }
    if let Some(group) = spec.groups.iter().find(|group| !group.starts_with(GROUP_PREFIX)) {
        return Err(BootstrapTokenError::Group(group.clone()));
    }
    let (id, secret) = spec.token.split_once('.').ok_or(BootstrapTokenError::Form)?;
    let mut data = BTreeMap::from([("token-id", id.to_owned()), ("token-secret", secret.to_owned())]);
    if !spec.description.is_empty() {
        data.insert("description", spec.description.clone());
    }
    if !spec.groups.is_empty() {
        data.insert("auth-extra-groups", spec.groups.join(","));
    }
    if let Some(ttl) = spec.ttl {
        let end =
            SignedDuration::try_from(ttl).ok().and_then(|ttl| now.checked_add(ttl).ok()).unwrap_or(Timestamp::MAX);
        data.insert("expiration", end.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    }
    for usage in USAGES.into_iter().filter(|usage| spec.usages.iter().any(|wanted| wanted == usage)) {
        let key = if usage == "signing" { "usage-bootstrap-signing" } else { "usage-bootstrap-authentication" };
        data.insert(key, "true".to_owned());
    }
    Ok(Secret {
        metadata: ObjectMeta { name: Some(format!("{NAME_PREFIX}{id}")), ..ObjectMeta::default() },
        type_: Some(SECRET_TYPE.to_owned()),
        data: Some(data.into_iter().map(|(key, value)| (key.to_owned(), ByteString(value.into_bytes()))).collect()),
        ..Secret::default()
    })
}

fn field(secret: &Secret, name: &str) -> Option<String> {
    String::from_utf8(secret.data.as_ref()?.get(name)?.0.clone()).ok()
}

fn listed(secret: &Secret) -> Option<Listed> {
    let on = |key: &str| field(secret, key).as_deref() == Some("true");
    let usages = USAGES.into_iter().filter(|usage| on(&format!("usage-bootstrap-{usage}"))).map(str::to_owned);
    let groups = field(secret, "auth-extra-groups").unwrap_or_default();
    Some(Listed {
        id: field(secret, "token-id")?,
        description: field(secret, "description").unwrap_or_default(),
        expires: field(secret, "expiration"),
        usages: usages.collect(),
        groups: groups.split(',').filter(|group| !group.is_empty()).map(str::to_owned).collect(),
    })
}

/// When the token ends; `None` when it does not. One whose end cannot be read has ended.
fn end(secret: &Secret) -> Option<Timestamp> {
    field(secret, "expiration").map(|text| text.parse().unwrap_or(Timestamp::MIN))
}

/// Deletes tokens when they have expired, while this server leads.
pub async fn clean(client: Client, secrets: Informer<Secret>, gate: LeaderGate, stop: CancellationToken) {
    let work = |stop: CancellationToken| sweep(client.clone(), secrets.clone(), stop);
    gate.run_while_leading(stop.clone(), work).await;
    stop.cancelled().await;
}

async fn sweep(client: Client, secrets: Informer<Secret>, stop: CancellationToken) {
    const RETRY: Duration = Duration::from_secs(10);
    /// Clocks jump; nothing is waited for longer.
    const LOOK_AGAIN: Duration = Duration::from_secs(3600);
    let api: Api<Secret> = Api::namespaced(client, NAMESPACE);
    let mut changes = secrets.changes();
    loop {
        let now = Timestamp::now();
        let mut next: Option<Duration> = None;
        for secret in secrets.list_in(NAMESPACE) {
            if secret.type_.as_deref() != Some(SECRET_TYPE) {
                continue;
            }
            let Some(end) = end(&secret) else { continue };
            let wait = if end > now {
                Duration::try_from(end.duration_since(now)).unwrap_or(LOOK_AGAIN)
            } else {
                expire(&api, &secret, RETRY).await
            };
            next = Some(next.map_or(wait, |soonest| soonest.min(wait)));
        }
        tokio::select! {
            () = stop.cancelled() => return,
            change = changes.next() => if change.is_none() { return stop.cancelled().await },
            () = time::sleep(next.unwrap_or(LOOK_AGAIN).min(LOOK_AGAIN)), if next.is_some() => {}
        }
    }
}

/// Deletes it, and says how long to wait before it is looked at again.
async fn expire(api: &Api<Secret>, secret: &Secret, retry: Duration) -> Duration {
    let name = secret.metadata.name.as_deref().unwrap_or_default();
    // Whoever made it anew, or longer, in the meantime keeps it.
    let preconditions =
        Preconditions { uid: secret.metadata.uid.clone(), resource_version: secret.metadata.resource_version.clone() };
    match api.delete(name, &DeleteParams::default().preconditions(preconditions)).await {
        Ok(_) => tracing::info!(secret = name, "bootstrap token has expired"),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
        Err(error) => tracing::warn!(secret = name, %error, "expired bootstrap token is not deleted"),
    }
    retry
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        Spec {
            token: "abcdef.0123456789abcdef".to_owned(),
            description: "for the field".to_owned(),
            groups: vec![NODE_GROUP.to_owned()],
            usages: vec!["authentication".to_owned()],
            ttl: Some(Duration::from_secs(60)),
        }
    }

    #[test]
    fn a_secret_says_what_the_token_is() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let secret = secret(&spec(), now).unwrap();
        assert_eq!(secret.metadata.name.as_deref(), Some("bootstrap-token-abcdef"));
        let listed = listed(&secret).unwrap();
        assert_eq!(listed.expires.as_deref(), Some("2026-01-01T00:01:00Z"));
        assert_eq!((listed.usages, listed.groups), (vec!["authentication".to_owned()], vec![NODE_GROUP.to_owned()]));
        assert_eq!(end(&secret), Some("2026-01-01T00:01:00Z".parse().unwrap()));
    }

    #[test]
    fn wrong_specs_are_refused() {
        let now = Timestamp::now();
        let wrong = Spec { token: "ABC.1".to_owned(), ..spec() };
        assert!(matches!(secret(&wrong, now), Err(BootstrapTokenError::Form)));
        let wrong = Spec { groups: vec!["system:masters".to_owned()], ..spec() };
        assert!(matches!(secret(&wrong, now), Err(BootstrapTokenError::Group(_))));
        let wrong = Spec { usages: vec!["all".to_owned()], ..spec() };
        assert!(matches!(secret(&wrong, now), Err(BootstrapTokenError::Usage(_))));
    }

    #[test]
    fn random_tokens_have_the_form() {
        assert!(crate::token::is_bootstrap(&generate()));
        assert_ne!(generate(), generate());
    }
}
