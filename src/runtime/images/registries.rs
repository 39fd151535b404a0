//! `registries.yaml`, in k3s' format: mirrors, rewrites, credentials and TLS for registries.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

#[derive(Debug, thiserror::Error)]
pub enum RegistriesError {
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not a registries file: {reason}", path.display())]
    Syntax { path: PathBuf, reason: String },
    #[error("{}: endpoint {endpoint:?} is not a URL such as https://registry.example", path.display())]
    Endpoint { path: PathBuf, endpoint: String },
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registries {
    mirrors: BTreeMap<String, Mirror>,
    configs: BTreeMap<String, Config>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Mirror {
    endpoint: Vec<String>,
    /// Regular expressions in k3s; see [`Endpoint::repository`].
    rewrite: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Config {
    pub auth: Option<Auth>,
    pub tls: Option<Tls>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct Auth {
    pub username: String,
    pub password: String,
    /// `user:password` in base64, as in Docker's config file.
    pub auth: String,
    pub identity_token: String,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth").field("username", &self.username).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Tls {
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub insecure_skip_verify: bool,
}

/// One place to ask for an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `host:port`
    pub host: String,
    pub plain_http: bool,
    /// A mirror is told whose image is wanted (`?ns=`), as containerd does.
    pub is_mirror: bool,
    rewrite: Vec<(String, String)>,
}

impl Registries {
    /// A file that does not exist says nothing.
    pub fn load(path: &Path) -> Result<Self, RegistriesError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(RegistriesError::Read { path: path.to_owned(), source }),
        };
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let registries: Self = serde_saphyr::from_str(&text)
            .map_err(|error| RegistriesError::Syntax { path: path.to_owned(), reason: error.to_string() })?;
        for endpoint in registries.mirrors.values().flat_map(|mirror| &mirror.endpoint) {
            if parse(endpoint).is_none() {
                return Err(RegistriesError::Endpoint { path: path.to_owned(), endpoint: endpoint.clone() });
            }
        }
        Ok(registries)
    }

    /// Where to ask for an image of `registry`, in order; the registry itself comes last.
    pub fn endpoints(&self, registry: &str) -> Vec<Endpoint> {
        let mirror = self.mirrors.get(registry).or_else(|| self.mirrors.get("*"));
        let mut endpoints: Vec<Endpoint> = Vec::new();
        if let Some(mirror) = mirror {
            for text in &mirror.endpoint {
                if let Some((host, plain_http)) = parse(text) {
                    let rewrite = mirror.rewrite.clone().into_iter().collect();
                    let is_mirror = host != registry;
                    endpoints.push(Endpoint { host, plain_http, is_mirror, rewrite });
                }
            }
        }
        if !endpoints.iter().any(|endpoint| endpoint.host == registry) {
            let host = if registry == "docker.io" { "index.docker.io" } else { registry };
            // As containerd: what is on this machine needs no TLS.
            let plain_http = is_loopback(registry);
            endpoints.push(Endpoint { host: host.to_owned(), plain_http, is_mirror: false, rewrite: Vec::new() });
        }
        endpoints
    }

    pub fn config(&self, host: &str) -> Option<&Config> {
        let name = if host == "index.docker.io" { "docker.io" } else { host };
        self.configs.get(name).or_else(|| self.configs.get(host)).or_else(|| self.configs.get("*"))
    }
}

impl Endpoint {
    /// The repository as this endpoint knows it. Rules are k3s' `^prefix/(.*)` → `other/$1`, the form in use; a rule of
    /// another form fits nothing.
    pub fn repository(&self, repository: &str) -> String {
        for (pattern, replacement) in &self.rewrite {
            let pattern = pattern.trim_start_matches('^').trim_end_matches('$');
            let Some(prefix) = pattern.strip_suffix("(.*)") else {
                if pattern == repository {
                    return replacement.clone();
                }
                continue;
            };
            if let Some(rest) = repository.strip_prefix(prefix) {
                return replacement.replace("${1}", rest).replace("$1", rest);
            }
        }
        repository.to_owned()
    }
}

fn parse(endpoint: &str) -> Option<(String, bool)> {
    let (rest, plain_http) = match endpoint.split_once("://") {
        Some(("https", rest)) => (rest, false),
        Some(("http", rest)) => (rest, true),
        Some(_) => return None,
        None => (endpoint, false),
    };
    let host = rest.trim_end_matches('/').trim_end_matches("/v2");
    (!host.is_empty() && !host.contains('/')).then(|| (host.to_owned(), plain_http))
}

fn is_loopback(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    host == "localhost" || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Registries, RegistriesError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registries.yaml");
        fs::write(&path, text).unwrap();
        Registries::load(&path)
    }

    #[test]
    fn mirrors_come_before_the_registry() {
        let text = "mirrors:\n  docker.io:\n    endpoint: [\"http://mirror.example:5000\"]\n    rewrite:\n      \
            \"^library/(.*)\": \"mirror/$1\"\nconfigs:\n  mirror.example:5000:\n    auth: {username: me, password: x}\n";
        let registries = load(text).unwrap();
        let endpoints = registries.endpoints("docker.io");
        assert_eq!(
            endpoints.iter().map(|e| e.host.as_str()).collect::<Vec<_>>(),
            ["mirror.example:5000", "index.docker.io"]
        );
        assert!(endpoints[0].plain_http && !endpoints[1].plain_http);
        assert_eq!(endpoints[0].repository("library/busybox"), "mirror/busybox");
        assert_eq!(endpoints[0].repository("me/app"), "me/app");
        let config = registries.config("mirror.example:5000").unwrap();
        assert_eq!(config.auth.as_ref().unwrap().username, "me");
        assert!(!format!("{config:?}").contains("password"));
    }

    #[test]
    fn registries_on_this_machine_need_no_tls() {
        let registries = Registries::default();
        assert!(registries.endpoints("localhost:5000")[0].plain_http);
        assert!(registries.endpoints("127.0.0.1:5000")[0].plain_http);
        assert!(!registries.endpoints("registry.example")[0].plain_http);
    }

    #[test]
    fn mistakes_are_named() {
        assert!(matches!(load("mirror: {}"), Err(RegistriesError::Syntax { .. })));
        assert!(matches!(load("mirrors: {x: {endpoint: [\"ftp://y\"]}}"), Err(RegistriesError::Endpoint { .. })));
        assert!(Registries::load(Path::new("/nonexistent")).is_ok());
    }
}
