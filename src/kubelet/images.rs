//! Images for containers: present or pulled, with the credentials that the pod brings.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use mussel_client::{EventType, Recorder};
use mussel_cri::v1;
use serde::Deserialize;
use tokio::sync::Semaphore;

use crate::backoff::Backoff;
use crate::cri::Cri;
use crate::objects::{Kind, Objects};
use crate::pod;
use crate::security::ImageUser;
use crate::status::Waiting;

pub struct Images {
    cri: Cri,
    recorder: Recorder,
    objects: Objects,
    backoff: Mutex<Backoff>,
    failures: Mutex<HashMap<String, (Timestamp, String)>>,
    pulls: Semaphore,
    /// One pull of an image at a time: who comes second finds it there.
    pulling: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// An image that a container can be made of.
#[derive(Debug, Clone)]
pub struct Image {
    pub reference: String,
    pub user: ImageUser,
}

/// The container waits; retry not before the time given, if any.
#[derive(Debug)]
pub struct NoImage {
    pub waiting: Waiting,
    pub retry_after: Option<Duration>,
}

impl Images {
    pub fn new(cri: Cri, recorder: Recorder, objects: Objects, pulls_max: usize) -> Self {
        Self {
            cri,
            recorder,
            objects,
            backoff: Mutex::default(),
            failures: Mutex::default(),
            pulls: Semaphore::new(pulls_max),
            pulling: Mutex::default(),
        }
    }

    fn event(&self, pod: &Pod, container: &Container, type_: EventType, reason: &str, message: String) {
        self.recorder.event(pod::container_reference(pod, &container.name), type_, reason, message);
    }

    /// # Errors
    /// What the container's status says while it waits.
    pub async fn ensure(
        &self,
        pod: &Pod,
        container: &Container,
        sandbox: &v1::PodSandboxConfig,
    ) -> Result<Image, NoImage> {
        let asked = container.image.clone().unwrap_or_default();
        let no = |reason: &str, message: String, retry_after| {
            Err(NoImage { waiting: Waiting { reason: reason.into(), message }, retry_after })
        };
        let image = match normalize(&asked) {
            Ok(image) => image,
            Err(why) => {
                let message = format!("Failed to apply default image tag \"{asked}\": {why}");
                self.event(pod, container, EventType::Warning, "InspectFailed", message.clone());
                return no("InvalidImageName", message, None);
            }
        };
        let present = match self.cri.image(&image).await {
            Ok(present) => present,
            Err(e) => {
                let message = format!("Failed to inspect image \"{asked}\": {e}");
                self.event(pod, container, EventType::Warning, "InspectFailed", message.clone());
                return no("ImageInspectError", message, Some(Duration::from_secs(10)));
            }
        };
        let latest = image.ends_with(":latest") && !image.contains('@');
        let policy = container.image_pull_policy.as_deref().unwrap_or(if latest { "Always" } else { "IfNotPresent" });
        match (policy, present) {
            ("Never", None) => {
                let message = format!("Container image \"{asked}\" is not present with pull policy of Never");
                self.event(pod, container, EventType::Warning, "ErrImageNeverPull", message.clone());
                return no("ErrImageNeverPull", message, None);
            }
            ("Never" | "IfNotPresent", Some(found)) => {
                let message =
                    format!("Container image \"{asked}\" already present on machine and can be accessed by the pod");
                self.event(pod, container, EventType::Normal, "Pulled", message);
                return Ok(described(&found));
            }
            _ => {}
        }
        let key = format!("{}_{image}", pod::uid(pod));
        if let Some((failed, last)) = self.failures.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
            && let Some((left, _)) =
                self.backoff.lock().unwrap_or_else(PoisonError::into_inner).waiting(&key, failed, Timestamp::now())
        {
            self.event(pod, container, EventType::Normal, "BackOff", format!("Back-off pulling image \"{asked}\""));
            return no("ImagePullBackOff", format!("Back-off pulling image \"{asked}\": {last}"), Some(left));
        }
        match self.pull(pod, container, &asked, &image, policy, sandbox).await {
            Ok(found) => {
                self.backoff.lock().unwrap_or_else(PoisonError::into_inner).forget(&key);
                self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
                Ok(found)
            }
            Err(message) => {
                self.event(
                    pod,
                    container,
                    EventType::Warning,
                    "Failed",
                    format!("Failed to pull image \"{asked}\": {message}"),
                );
                self.event(pod, container, EventType::Warning, "Failed", "Error: ErrImagePull".into());
                let now = Timestamp::now();
                let mut backoff = self.backoff.lock().unwrap_or_else(PoisonError::into_inner);
                backoff.next(&key, now);
                let left = backoff.waiting(&key, now, now).map(|(left, _)| left);
                let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
                failures.insert(key, (now, format!("ErrImagePull: {message}")));
                // Soon once more, to say that it is now backing off.
                no("ErrImagePull", message, left.map(|l| l.min(Duration::from_secs(2))))
            }
        }
    }

    async fn pull(
        &self,
        pod: &Pod,
        container: &Container,
        asked: &str,
        image: &str,
        policy: &str,
        sandbox: &v1::PodSandboxConfig,
    ) -> Result<Image, String> {
        let began = Instant::now();
        let lock = {
            let mut pulling = self.pulling.lock().unwrap_or_else(PoisonError::into_inner);
            pulling.retain(|_, lock| Arc::strong_count(lock) > 1);
            pulling.entry(image.to_owned()).or_default().clone()
        };
        let _one = lock.lock().await;
        if policy != "Always"
            && let Ok(Some(found)) = self.cri.image(image).await
        {
            return Ok(described(&found));
        }
        let _permit = self.pulls.acquire().await.map_err(|e| e.to_string())?;
        self.event(pod, container, EventType::Normal, "Pulling", format!("Pulling image \"{asked}\""));
        let pull_began = Instant::now();
        let mut credentials: Vec<Option<v1::AuthConfig>> =
            self.credentials(pod, image).await.into_iter().map(Some).collect();
        if credentials.is_empty() {
            credentials.push(None);
        }
        let mut last = String::new();
        for auth in credentials {
            match self.cri.pull(image, auth, Some(sandbox.clone())).await {
                Ok(reference) => {
                    let found = self.cri.image(&reference).await.ok().flatten();
                    let found = match found {
                        Some(found) => Some(found),
                        None => self.cri.image(image).await.ok().flatten(),
                    };
                    let size = found.as_ref().map_or(0, |i| i.size);
                    let text = format!(
                        "Successfully pulled image \"{asked}\" in {} ({} including waiting). Image size: {size} bytes.",
                        short(pull_began.elapsed()),
                        short(began.elapsed())
                    );
                    self.event(pod, container, EventType::Normal, "Pulled", text);
                    return Ok(match found {
                        Some(found) => described(&found),
                        None => Image { reference, user: ImageUser::default() },
                    });
                }
                Err(e) => last = e.to_string(),
            }
        }
        Err(last)
    }

    async fn credentials(&self, pod: &Pod, image: &str) -> Vec<v1::AuthConfig> {
        let mut all = Vec::new();
        let secrets = pod::spec(pod).and_then(|s| s.image_pull_secrets.as_ref());
        for secret in secrets.into_iter().flatten() {
            let found = self.objects.get(pod::uid(pod), Kind::Secret, pod::namespace(pod), &secret.name).await;
            match found {
                Ok(found) => all.extend(matching(&found.data, image)),
                Err(error) => tracing::debug!(%error, pod = %pod::full(pod), "cannot use an image pull secret"),
            }
        }
        all
    }

    /// The pod is gone.
    pub fn forget(&self, uid: &str) {
        let prefix = format!("{uid}_");
        self.backoff.lock().unwrap_or_else(PoisonError::into_inner).forget_prefix(&prefix);
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, _| !key.starts_with(&prefix));
    }
}

fn described(image: &v1::Image) -> Image {
    let user = ImageUser { uid: image.uid.as_ref().map(|u| u.value), name: image.username.clone() };
    Image { reference: image.id.clone(), user }
}

fn short(d: Duration) -> String {
    if d < Duration::from_secs(1) { format!("{}ms", d.as_millis()) } else { format!("{:.3}s", d.as_secs_f64()) }
}

/// The domain and the path of a reference, without tag and digest.
fn split(image: &str) -> (&str, &str) {
    let name = image.split('@').next().unwrap_or(image);
    let name = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    };
    match name.split_once('/') {
        Some((domain, path)) if domain.contains(['.', ':']) || domain == "localhost" => (domain, path),
        _ => ("docker.io", name),
    }
}

/// Adds `:latest` where neither tag nor digest is given.
///
/// # Errors
/// Upstream's text when it is no reference at all.
pub fn normalize(image: &str) -> Result<String, String> {
    let bad = || format!("couldn't parse image name \"{image}\": invalid reference format");
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    let (repository, tag) = match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (name, None),
    };
    if let Some(digest) = digest {
        let hex = digest.split_once(':').map(|(_, hex)| hex).ok_or_else(bad)?;
        if hex.len() < 32 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad());
        }
    }
    if let Some(tag) = tag {
        let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        if tag.is_empty() || tag.len() > 128 || !tag.bytes().all(ok) || tag.starts_with(['.', '-']) {
            return Err(bad());
        }
    }
    let (domain, path) = split(repository);
    let path = if repository.starts_with(domain) { path } else { repository };
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(format!(
            "couldn't parse image name \"{image}\": invalid reference format: repository name ({path}) must be lowercase"
        ));
    }
    let part_ok = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'))
            && part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    let domain_ok = domain.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']'));
    if repository.is_empty() || repository.len() > 255 || !domain_ok || !path.split('/').all(part_ok) {
        return Err(bad());
    }
    Ok(if tag.is_none() && digest.is_none() { format!("{image}:latest") } else { image.to_owned() })
}

#[derive(Deserialize, Default)]
struct DockerAuth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
    #[serde(default, alias = "identityToken")]
    identitytoken: String,
}

#[derive(Deserialize, Default)]
struct DockerConfig {
    #[serde(default)]
    auths: HashMap<String, DockerAuth>,
}

/// The credentials of a pull secret that are for the registry of `image`, the most specific first.
fn matching(data: &std::collections::BTreeMap<String, Vec<u8>>, image: &str) -> Vec<v1::AuthConfig> {
    let auths = if let Some(bytes) = data.get(".dockerconfigjson") {
        serde_json::from_slice::<DockerConfig>(bytes).unwrap_or_default().auths
    } else if let Some(bytes) = data.get(".dockercfg") {
        serde_json::from_slice(bytes).unwrap_or_default()
    } else {
        return Vec::new();
    };
    let (domain, path) = split(image);
    let target = format!("{domain}/{path}");
    let mut found: Vec<(usize, v1::AuthConfig)> = Vec::new();
    for (key, auth) in auths {
        let key = key.trim_start_matches("https://").trim_start_matches("http://");
        let key = key.trim_end_matches('/');
        let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
        let key = if matches!(key, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { key };
        let fits = match key.strip_prefix("*.") {
            Some(rest) => domain.strip_suffix(rest).is_some_and(|d| d.ends_with('.') && d.matches('.').count() == 1),
            None => target == *key || target.strip_prefix(key).is_some_and(|rest| rest.starts_with('/')),
        };
        if !fits {
            continue;
        }
        let mut config = v1::AuthConfig {
            username: auth.username,
            password: auth.password,
            identity_token: auth.identitytoken,
            server_address: domain.to_owned(),
            ..Default::default()
        };
        if config.username.is_empty()
            && let Ok(plain) = base64::engine::general_purpose::STANDARD.decode(auth.auth.trim())
            && let Some((user, password)) = String::from_utf8_lossy(&plain).split_once(':')
        {
            config.username = user.to_owned();
            config.password = password.trim_end_matches('\0').to_owned();
        }
        found.push((key.len(), config));
    }
    found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    found.into_iter().map(|(_, config)| config).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_get_a_tag_or_are_refused() {
        for (image, expected) in [
            ("busybox", Some("busybox:latest")),
            ("busybox:1", Some("busybox:1")),
            ("localhost:5000/a/b", Some("localhost:5000/a/b:latest")),
            ("Busybox", None),
            ("a//b", None),
            ("a:", None),
            ("", None),
            ("a b", None),
            ("x@sha256:0123456789abcdef0123456789abcdef", Some("x@sha256:0123456789abcdef0123456789abcdef")),
        ] {
            assert_eq!(normalize(image).ok().as_deref(), expected, "{image}");
        }
    }

    #[test]
    fn credentials_are_for_one_registry() {
        let json = br#"{"auths": {"reg.lan:5000": {"auth": "dTpw"}, "https://index.docker.io/v1/": {"username": "d"},
            "reg.lan:5000/team": {"username": "t"}, "*.wild.io": {"username": "w"}}}"#;
        let data = [(".dockerconfigjson".to_owned(), json.to_vec())].into();
        for (image, users) in [
            ("reg.lan:5000/x:1", "u"),
            ("reg.lan:5000/team/x", "t u"),
            ("busybox", "d"),
            ("a.wild.io/x", "w"),
            ("a.b.wild.io/x", ""),
            ("other.io/x", ""),
        ] {
            let found: Vec<String> = matching(&data, image).into_iter().map(|a| a.username).collect();
            assert_eq!(found.join(" "), users, "{image}");
        }
    }
}
