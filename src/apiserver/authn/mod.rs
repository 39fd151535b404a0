//! Who asks? In this order: the in-process identity, the front proxy's headers, a client certificate, a bearer token,
//! anonymous. A credential that is shown and does not hold is a refusal, never anonymity.

mod bootstrap_token;
pub mod certificates;
pub mod impersonation;
mod request_header;
mod service_account;

use std::sync::Arc;

use http::{HeaderMap, header};
use mussel_store::Freshness;

use crate::config::Config;
use crate::encryption::{Snapshot, Storage};
use crate::handler::UserInfo;
use crate::tokens::Tokens;

pub use service_account::service_account_groups;

/// An identity given by code in this process; nothing from the network can make one.
#[derive(Clone, Debug)]
pub struct InProcess(pub(crate) UserInfo);

/// What the TLS handshake told about the other end of a connection.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    pub address: Option<std::net::SocketAddr>,
    pub certificate: PeerCertificate,
}

/// What became of the client's certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PeerCertificate {
    #[default]
    None,
    /// Signed by the client CA.
    User(Arc<UserInfo>),
    /// Signed by the request-header CA; the name is its common name.
    FrontProxy(String),
    /// Shown, but of no CA we know, or expired.
    Unknown,
}

/// A token's owner and the requested audiences that it is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenOwner {
    pub user: UserInfo,
    pub audiences: Vec<String>,
}

/// Why a credential does not hold. Goes to the log and to TokenReview, not to the client of the request.
#[derive(Debug, thiserror::Error)]
pub enum AuthnError {
    #[error("client certificate is not signed by a known authority")]
    Certificate,
    #[error("invalid bearer token")]
    Token,
    #[error("{0}")]
    Refused(String),
    #[error("the store cannot be read")]
    Store(#[source] mussel_store::ReadError),
}

pub struct Authenticator {
    store: Storage,
    anonymous: bool,
    front_proxy_names: Vec<String>,
    service_accounts: service_account::ServiceAccounts,
}

impl Authenticator {
    pub fn new(config: &Config, store: Storage, tokens: Arc<Tokens>) -> Self {
        Self {
            store,
            anonymous: config.anonymous_auth,
            front_proxy_names: config.request_header_allowed_names.clone(),
            service_accounts: service_account::ServiceAccounts::new(tokens, config.audiences()),
        }
    }

    /// Who sent a request with these headers over that connection.
    ///
    /// # Errors
    /// To be answered with `401 Unauthorized`.
    pub async fn authenticate(&self, peer: Option<&Peer>, headers: &HeaderMap) -> Result<UserInfo, AuthnError> {
        let certificate = peer.map_or(&PeerCertificate::None, |peer| &peer.certificate);
        if let PeerCertificate::FrontProxy(name) = certificate
            && (self.front_proxy_names.is_empty() || self.front_proxy_names.contains(name))
            && let Some(user) = request_header::user(headers)
        {
            return Ok(user);
        }
        if let PeerCertificate::User(user) = certificate {
            return Ok(UserInfo::clone(user));
        }
        if let Some(token) = bearer(headers) {
            return match self.authenticate_token(&token, &[]).await? {
                Some(owner) => Ok(owner.user),
                None => Err(AuthnError::Token),
            };
        }
        if *certificate != PeerCertificate::None {
            return Err(AuthnError::Certificate);
        }
        if self.anonymous { Ok(UserInfo::anonymous()) } else { Err(AuthnError::Token) }
    }

    /// Whose token this is; `None` when nobody's. With `audiences` empty it must be good for this API.
    ///
    /// # Errors
    /// When it is a token of ours that does not hold.
    pub async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<TokenOwner>, AuthnError> {
        let snapshot: Snapshot = self.store.snapshot(Freshness::Local).await.map_err(AuthnError::Store)?;
        if let Some(user) = bootstrap_token::user(token, &snapshot, jiff::Timestamp::now()) {
            let audiences = if audiences.is_empty() {
                self.service_accounts.audiences().to_vec()
            } else {
                audiences.iter().filter(|a| self.service_accounts.audiences().contains(a)).cloned().collect()
            };
            return Ok(Some(TokenOwner { user, audiences }));
        }
        self.service_accounts.authenticate(token, audiences, &snapshot, jiff::Timestamp::now())
    }

    /// The audiences of this API; the first is the issuer.
    pub fn audiences(&self) -> &[String] {
        self.service_accounts.audiences()
    }
}

/// The bearer token, from the header, or from a WebSocket subprotocol as browsers send it.
fn bearer(headers: &HeaderMap) -> Option<String> {
    const PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";
    if let Some(value) = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()) {
        let (scheme, token) = value.trim().split_once(' ')?;
        let token = token.trim();
        return (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned());
    }
    let protocols = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let encoded = protocols.flat_map(|list| list.split(',')).find_map(|p| p.trim().strip_prefix(PROTOCOL))?;
    let decoded = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, encoded).ok()?;
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_tokens_are_found_in_headers_and_subprotocols() {
        let mut headers = HeaderMap::new();
        assert_eq!(bearer(&headers), None);
        headers.insert(
            "sec-websocket-protocol",
            "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.YWJj".parse().unwrap(),
        );
        assert_eq!(bearer(&headers).as_deref(), Some("abc"));
        headers.insert("authorization", "bearer  xyz".parse().unwrap());
        assert_eq!(bearer(&headers).as_deref(), Some("xyz"));
        headers.insert("authorization", "Basic xyz".parse().unwrap());
        assert_eq!(bearer(&headers), None);
    }
}
