//! How a server joins: it fetches the cluster's CAs and keys, and compares what all servers must have in common.

use std::path::{Path, PathBuf};

use http::{HeaderMap, HeaderValue, Method};
use mussel_client::ClusterTls;

use super::identity::Made;
use super::request::{self, Trust};
use super::steps::{Asked, JoinError, authorization};
use crate::admin;
use crate::bootstrap::{self, Bootstrap, BootstrapError};
use crate::files;
use crate::next_version;
use crate::protocol::{self, SERVER_USER};
use crate::settings::ClusterSettings;
use crate::token::{Credential, Token};

/// What a server joins with.
pub struct ServerJoin {
    /// `host:port` of `--server`.
    pub server: String,
    pub token: Token,
    pub settings: ClusterSettings,
    pub node_name: String,
    /// The password that ties the name to this machine, if it is to run a node.
    pub password_file: Option<PathBuf>,
    /// `<data-dir>/server`
    pub dir: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum ServerJoinError {
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error("this server's settings are not the cluster's: {0}; give all servers the same")]
    Settings(String),
    #[error("what the server sent cannot be used")]
    Bootstrap(#[from] BootstrapError),
    #[error("{file} here is not the cluster's; remove {} to join", dir.display())]
    OtherFiles { file: String, dir: PathBuf },
}

impl ServerJoinError {
    /// Whether trying again cannot help.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Join(error) => error.is_final(),
            Self::Settings(_) | Self::Bootstrap(_) | Self::OtherFiles { .. } => true,
        }
    }
}

impl ServerJoin {
    /// Goes through all steps once. CAs and keys are on disk when it returns.
    ///
    /// # Errors
    /// Nothing was written, unless it was the writing that failed.
    pub async fn attempt(&self) -> Result<Bootstrap, ServerJoinError> {
        let asked = Asked { server: &self.server, address: admin::resolve(&self.server).await?, balancer: None };
        let ca_pem = asked.authority(Some(&self.token), &self.dir.join("tls/server-ca.crt")).await?;
        let credential = match &self.token.credential {
            Credential::Password { user: None, password } => {
                Credential::Password { user: Some(SERVER_USER.to_owned()), password: password.clone() }
            }
            other => other.clone(),
        };
        let password = self.token.password().map_err(|error| JoinError::Token { reason: error.to_string() })?;
        let tls = ClusterTls::new(ca_pem.as_bytes(), None).map_err(JoinError::from)?;
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization(&credential) {
            headers.insert(http::header::AUTHORIZATION, value);
        }
        let own = self.password_file.as_deref().map(Made::read_or_make::<16>).transpose().map_err(JoinError::from)?;
        let own_password = own.as_ref().map_or("", |own| own.text.as_str());
        for (name, value) in
            [(protocol::NODE_NAME_HEADER, self.node_name.as_str()), (protocol::NODE_PASSWORD_HEADER, own_password)]
        {
            let value = HeaderValue::from_str(value);
            let mut value = value.map_err(|_| JoinError::Refused { reason: format!("{name} is not usable") })?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        let path = protocol::SERVER_BOOTSTRAP;
        let answer = request::send(asked.address, Trust::Cluster(&tls), Method::GET, path, headers, Vec::new()).await;
        let answer = answer.map_err(|error| asked.refusal(path, error))?;
        if let Some(version) = answer.version() {
            protocol::check_server_version(next_version::version(), version).map_err(JoinError::from)?;
        }
        let bootstrap = Bootstrap::open(&answer.body, password)?;
        let differences = self.settings.differences(&bootstrap.settings);
        if !differences.is_empty() {
            let texts: Vec<String> = differences.iter().map(ToString::to_string).collect();
            return Err(ServerJoinError::Settings(texts.join("; ")));
        }
        self.check_files(&bootstrap)?;
        bootstrap.write(&self.dir).map_err(JoinError::from)?;
        own.map(Made::keep).transpose().map_err(JoinError::from)?;
        Ok(bootstrap)
    }

    /// CAs of another cluster are not overwritten: certificates that they signed may be in use.
    fn check_files(&self, bootstrap: &Bootstrap) -> Result<(), ServerJoinError> {
        for (name, content) in &bootstrap.files {
            // Nothing here was made with it; the cluster's counts, which may have changed since this server left.
            if name == bootstrap::ENCRYPTION_CONFIG {
                continue;
            }
            let kept = files::read(&self.dir.join(name)).map_err(JoinError::from)?;
            if kept.is_some_and(|kept| kept != *content) {
                let file = self.dir.join(name).display().to_string();
                return Err(ServerJoinError::OtherFiles { file, dir: Path::new(&self.dir).join("tls") });
            }
        }
        Ok(())
    }
}
