//! Where a webhook is: its client configuration, and the addresses behind it.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rand::seq::SliceRandom as _;
use serde_json::Value;

use crate::outbound::endpoints::{self, Behind, ServiceError};
use crate::outbound::tls::Trust;
use crate::registry::view::View;

/// Endpoints that one call tries in turn.
const ENDPOINTS_MAX: usize = 3;

/// Why there is nothing to call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error("webhook configuration must have either service or URL")]
    Nothing,
    #[error("Unparsable caBundle: {0}")]
    CaBundle(String),
    #[error("Unparsable URL: {0}")]
    Url(String),
    #[error(transparent)]
    Service(#[from] ServiceError),
    #[error("lookup {host}: {why}")]
    Lookup { host: String, why: String },
}

/// A `clientConfig`, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Host and port as the `Host` of requests has them.
    pub authority: String,
    /// Begins with a slash.
    pub path: String,
    /// The configuration's CA bundle, or the system's roots without one.
    pub trust: Trust,
    /// What the certificate has to be for.
    pub host: String,
    place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Host { port: u16 },
    Service { namespace: String, name: String, port: u16 },
}

impl Target {
    /// From a `WebhookClientConfig` as it stands in an object.
    ///
    /// # Errors
    /// When it names nothing that could be called.
    pub fn of(config: &Value) -> Result<Self, TargetError> {
        let ca_bundle = match config["caBundle"].as_str().filter(|text| !text.is_empty()) {
            Some(text) => STANDARD.decode(text).map_err(|error| TargetError::CaBundle(error.to_string()))?,
            None => Vec::new(),
        };
        let trust = Trust::Bundle(ca_bundle);
        let service = &config["service"];
        if service.is_object() {
            let text = |field: &str| service[field].as_str().unwrap_or_default().to_owned();
            let port = service["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(443);
            let (namespace, name, path) = (text("namespace"), text("name"), text("path"));
            let host = format!("{name}.{namespace}.svc");
            let path = if path.starts_with('/') { path } else { format!("/{path}") };
            return Ok(Self {
                authority: format!("{host}:{port}"),
                path,
                trust,
                host,
                place: Place::Service { namespace, name, port },
            });
        }
        let url = config["url"].as_str().ok_or(TargetError::Nothing)?;
        let uri: http::Uri = url.parse().map_err(|_| TargetError::Url(url.to_owned()))?;
        let authority = uri.authority().filter(|_| uri.scheme_str() == Some("https"));
        let authority = authority.ok_or_else(|| TargetError::Url(url.to_owned()))?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(443);
        Ok(Self {
            authority: authority.as_str().to_owned(),
            path: uri.path().to_owned(),
            trust,
            host,
            place: Place::Host { port },
        })
    }

    /// The addresses to try, in a new order each time.
    ///
    /// # Errors
    /// When there is none.
    pub async fn addresses(&self, view: &View) -> Result<Vec<SocketAddr>, TargetError> {
        let (host, port) = match &self.place {
            Place::Host { port } => (self.host.clone(), *port),
            Place::Service { namespace, name, port } => match endpoints::resolve(view, namespace, name, *port)? {
                Behind::Endpoints(mut found) => {
                    found.shuffle(&mut rand::rng());
                    found.truncate(ENDPOINTS_MAX);
                    return Ok(found);
                }
                Behind::Name(external) => (external, *port),
            },
        };
        let found = mussel_client::resolve(&host).await;
        let found = found.map_err(|error| TargetError::Lookup { host: host.clone(), why: error.to_string() })?;
        let found: Vec<SocketAddr> =
            found.into_iter().take(ENDPOINTS_MAX).map(|ip| SocketAddr::new(ip, port)).collect();
        if found.is_empty() {
            return Err(TargetError::Lookup { host, why: "no such host".to_owned() });
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_service_is_called_by_its_name_in_the_cluster() {
        let target =
            Target::of(&json!({"service": {"namespace": "n", "name": "s", "path": "/a", "port": 8443}})).unwrap();
        assert_eq!((&*target.authority, &*target.host, &*target.path), ("s.n.svc:8443", "s.n.svc", "/a"));
        let target = Target::of(&json!({"service": {"namespace": "n", "name": "s"}})).unwrap();
        assert_eq!((&*target.authority, &*target.path), ("s.n.svc:443", "/"));
    }

    #[test]
    fn urls_are_https() {
        let target = Target::of(&json!({"url": "https://[::1]:9443/x", "caBundle": "QQ=="})).unwrap();
        assert_eq!((&*target.host, &*target.path), ("::1", "/x"));
        assert_eq!(target.trust, Trust::Bundle(b"A".to_vec()));
        assert!(Target::of(&json!({"url": "http://a/x"})).is_err() && Target::of(&json!({})).is_err());
    }
}
