//! Who asks to join: by password, bootstrap token or certificate.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, header};
use mussel_apiserver::Status;
use mussel_apiserver::authn::{Peer, PeerCertificate};

use super::Supervisor;
use crate::bootstrap_tokens::NODE_GROUP;
use crate::token::{Access, is_bootstrap};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Knows the servers' token.
    Server,
    /// Knows the agents' token, or has a bootstrap token.
    Agent,
    /// The kubelet of this node, by its certificate.
    Node(String),
}

impl Supervisor {
    /// # Errors
    /// 401 with a reason that helps, and helps nobody guess.
    pub(super) async fn caller(&self, headers: HeaderMap, peer: Peer) -> Result<Caller, Status> {
        if let Some((user, password)) = basic(&headers) {
            return match self.0.config.secrets.load().access(&user, &password) {
                Some(Access::Server) => Ok(Caller::Server),
                Some(Access::Agent) => Ok(Caller::Agent),
                None => {
                    Err(unauthorized("the token is not this cluster's; it is in <data-dir>/server/token of a server"))
                }
            };
        }
        if let Some(token) = bearer(&headers) {
            return self.bootstrapper(token).await;
        }
        match peer.certificate {
            PeerCertificate::User(user) => match user.node_name() {
                Some(node) => Ok(Caller::Node(node.to_owned())),
                None if user.in_group("system:masters") => Ok(Caller::Server),
                None => Err(unauthorized("the client certificate is not a node's")),
            },
            PeerCertificate::Unknown => {
                Err(unauthorized("the client certificate is expired, not valid yet, or signed by another cluster's CA"))
            }
            PeerCertificate::None | PeerCertificate::FrontProxy(_) => {
                Err(unauthorized("a token or a node's certificate is needed"))
            }
        }
    }

    async fn bootstrapper(&self, token: &str) -> Result<Caller, Status> {
        let refused =
            || unauthorized("the bootstrap token is unknown or has expired; make one with: mussel token create");
        if !is_bootstrap(token) {
            return Err(refused());
        }
        let (api, _) = self.api()?;
        match api.context().authenticator.authenticate_token(token, &[]).await {
            Ok(Some(owner)) if owner.user.in_group(NODE_GROUP) => Ok(Caller::Agent),
            Ok(Some(_)) => Err(unauthorized("the bootstrap token's groups do not let it join nodes")),
            Ok(None) => Err(refused()),
            Err(error) => {
                tracing::debug!(%error, "bootstrap token refused");
                Err(refused())
            }
        }
    }
}

fn unauthorized(message: &str) -> Status {
    Status::new(401, "Unauthorized", message)
}

fn credentials<'a>(headers: &'a HeaderMap, scheme: &str) -> Option<&'a str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (given, credentials) = value.trim().split_once(' ')?;
    given.eq_ignore_ascii_case(scheme).then(|| credentials.trim())
}

fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let decoded = STANDARD.decode(credentials(headers, "basic")?).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    text.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    credentials(headers, "bearer")
}
