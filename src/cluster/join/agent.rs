//! How an agent joins, step by step.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use http::{HeaderMap, HeaderValue, Method, header};
use mussel_client::{ClientIdentity, ClusterTls};

use super::identity::{self, Identity};
use super::request::{self, Answer, Trust};
use super::steps::{Asked, JoinError, authorization};
use crate::balancer::Balancer;
use crate::next_version;
use crate::pki::CertKey;
use crate::protocol::{self, Certificate};
use crate::settings::ClusterSettings;
use crate::token::Token;

/// What an agent joins with.
pub struct AgentJoin {
    /// `host:port` of `--server`, for messages.
    pub server: String,
    /// Where the balancer listens; every request goes there.
    pub local: SocketAddr,
    pub balancer: Balancer,
    pub token: Option<Token>,
    pub node_name: String,
    pub node_ips: Vec<IpAddr>,
    pub password_file: PathBuf,
    /// `<data-dir>/agent`
    pub dir: PathBuf,
}

/// The outcome of joining.
pub struct Joined {
    pub identity: Identity,
}

impl AgentJoin {
    /// Goes through all steps once. What it gets is on disk when it returns. A repeat renews the certificates.
    ///
    /// # Errors
    /// Each says what is wrong, and most what to do; all but the wrong token and the like pass by themselves.
    pub async fn attempt(&self) -> Result<Joined, JoinError> {
        let server_ca_pem = self.asked().authority(self.token.as_ref(), &self.dir.join("server-ca.crt")).await?;
        let kept = Identity::load(&self.dir)?;
        let (tls, authorization, settings) = self.enter(&server_ca_pem, kept.as_ref()).await?;
        let caller = Entered { join: self, tls: &tls, authorization: authorization.as_ref() };
        let client_ca_pem = caller.get("/v1-mussel/client-ca.crt").await?.text();
        // Not before the cluster has let us in.
        let password = identity::ensure_password(&self.password_file)?;
        let identity = Identity {
            server_ca_pem,
            client_ca_pem,
            serving_kubelet: caller.certificate(Certificate::ServingKubelet, &password).await?,
            client_kubelet: caller.certificate(Certificate::ClientKubelet, &password).await?,
            client_proxy: caller.certificate(Certificate::ClientProxy, &password).await?,
            settings,
        };
        identity.save(&self.dir)?;
        let servers = caller.get(protocol::API_SERVERS).await?;
        if let Ok(servers) = serde_json::from_slice(&servers.body) {
            self.balancer.set_servers(servers);
        }
        Ok(Joined { identity })
    }

    /// Shows the certificate from before, or the token, and gets the cluster's settings.
    async fn enter(
        &self,
        server_ca_pem: &str,
        kept: Option<&Identity>,
    ) -> Result<(ClusterTls, Option<HeaderValue>, ClusterSettings), JoinError> {
        if let Some(kept) = kept {
            let pair = &kept.client_kubelet;
            let identity = ClientIdentity::new(pair.cert_pem.as_bytes(), pair.key_pem.as_bytes())?;
            let tls = ClusterTls::new(server_ca_pem.as_bytes(), Some(identity))?;
            match (Entered { join: self, tls: &tls, authorization: None }).settings().await {
                Ok(settings) => return Ok((tls, None, settings)),
                // Expired, or of an older CA: the token may still do.
                Err(JoinError::Token { reason }) if self.token.is_some() => {
                    tracing::info!(reason, "the certificate from before is not taken; using the token");
                }
                Err(error) => return Err(error),
            }
        }
        let token = self.token.as_ref().ok_or(JoinError::NoToken)?;
        let authorization = authorization(&token.credential);
        let tls = ClusterTls::new(server_ca_pem.as_bytes(), None)?;
        let entered = Entered { join: self, tls: &tls, authorization: authorization.as_ref() };
        let settings = entered.settings().await?;
        Ok((tls, authorization, settings))
    }

    fn asked(&self) -> Asked<'_> {
        Asked { server: &self.server, address: self.local, balancer: Some(&self.balancer) }
    }
}

/// Let in: requests from here on carry the credential.
struct Entered<'a> {
    join: &'a AgentJoin,
    tls: &'a ClusterTls,
    authorization: Option<&'a HeaderValue>,
}

impl Entered<'_> {
    async fn get(&self, path: &str) -> Result<Answer, JoinError> {
        self.send(Method::GET, path, HeaderMap::new(), Vec::new()).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        mut headers: HeaderMap,
        body: Vec<u8>,
    ) -> Result<Answer, JoinError> {
        if let Some(value) = self.authorization {
            headers.insert(header::AUTHORIZATION, value.clone());
        }
        let answer = request::send(self.join.local, Trust::Cluster(self.tls), method, path, headers, body).await;
        answer.map_err(|error| self.join.asked().refusal(path, error))
    }

    async fn settings(&self) -> Result<ClusterSettings, JoinError> {
        let answer = self.get(protocol::CONFIG).await?;
        if let Some(version) = answer.version() {
            protocol::check_agent_version(next_version::version(), version)?;
        }
        serde_json::from_slice(&answer.body).map_err(|_| JoinError::Answer { path: protocol::CONFIG.to_owned() })
    }

    async fn certificate(&self, certificate: Certificate, password: &str) -> Result<CertKey, JoinError> {
        let (key_pem, csr) = identity::request(&self.join.dir, certificate)?;
        let path = certificate.path();
        let ips: Vec<String> = self.join.node_ips.iter().map(ToString::to_string).collect();
        let mut headers = HeaderMap::new();
        for (name, value) in [
            (protocol::NODE_NAME_HEADER, self.join.node_name.as_str()),
            (protocol::NODE_PASSWORD_HEADER, password),
            (protocol::NODE_IP_HEADER, ips.join(",").as_str()),
        ] {
            let mut value = HeaderValue::from_str(value)
                .map_err(|_| JoinError::Refused { reason: format!("{name} is not usable") })?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        let cert_pem = self.send(Method::POST, &path, headers, csr).await?.text();
        // Found out now rather than at the first handshake.
        ClientIdentity::new(cert_pem.as_bytes(), key_pem.as_bytes()).map_err(|_| JoinError::Answer { path })?;
        Ok(CertKey { cert_pem, key_pem })
    }
}
