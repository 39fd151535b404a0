//! The steps that agents and servers have in common, and why a step fails.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use mussel_client::ConnectError;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::identity::IdentityError;
use super::request::{self, RequestError, Trust};
use crate::balancer::Balancer;
use crate::files::FileError;
use crate::protocol::{self, AGENT_USER, VersionSkew};
use crate::token::{Credential, Token, TokenError};

/// Certificates are valid from an hour before they are made; a clock that is further off cannot work with them.
const SKEW_MAX: Duration = Duration::from_secs(3600);
/// Leases and events suffer from less than that; it is worth a word.
const SKEW_NOTED: Duration = Duration::from_secs(60);

/// Why a machine is not part of the cluster yet. Nothing was written but, where the cluster let it in, its password.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("no server can be reached: {reason}")]
    Unreachable { reason: String },
    #[error("{server} is not a server of mussel, or too old: it has no usable CA at /cacerts")]
    NoAuthority { server: String },
    #[error(
        "the CA of {server} is not the one that the token names; the token is another cluster's, or {server} is not the cluster's"
    )]
    OtherAuthority {
        server: String,
        #[source]
        source: TokenError,
    },
    #[error(
        "the CA of {server} is not the one this node joined with; with a token of the full form (K10…) it is verified anew, \
        else remove {kept} to trust it"
    )]
    AuthorityChanged { server: String, kept: String },
    #[error("the clock of this machine is {} the server's by {}; set it (chronyc, timedatectl)", if *ahead { "ahead of" } else { "behind" }, show(*by))]
    ClockSkew { by: Duration, ahead: bool },
    #[error("no token is given, and this machine has no valid certificate from before; give --token")]
    NoToken,
    #[error("the cluster does not take the token: {reason}")]
    Token { reason: String },
    #[error("{reason}")]
    NameTaken { reason: String },
    #[error("{reason}")]
    Version { reason: String },
    #[error("the server is not ready: {reason}")]
    NotReady { reason: String },
    #[error("the server refuses: {reason}")]
    Refused { reason: String },
    #[error("ask {path}")]
    Request {
        path: String,
        #[source]
        source: RequestError,
    },
    #[error("the server's answer at {path} makes no sense")]
    Answer { path: String },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the identity cannot be used")]
    Connect(#[from] ConnectError),
}

impl From<FileError> for JoinError {
    fn from(error: FileError) -> Self {
        Self::Identity(error.into())
    }
}

impl From<VersionSkew> for JoinError {
    fn from(skew: VersionSkew) -> Self {
        Self::Version { reason: skew.to_string() }
    }
}

impl JoinError {
    /// Whether it stays so until a person does something.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::NotReady { .. } | Self::Request { .. } => false,
            Self::NoAuthority { .. }
            | Self::OtherAuthority { .. }
            | Self::AuthorityChanged { .. }
            | Self::ClockSkew { .. }
            | Self::NoToken
            | Self::Token { .. }
            | Self::NameTaken { .. }
            | Self::Version { .. }
            | Self::Refused { .. }
            | Self::Answer { .. }
            | Self::Identity(_)
            | Self::Connect(_) => true,
        }
    }
}

/// The same reason is logged again after so many attempts.
const REMIND_EVERY: u32 = 30;

/// Logs why joining fails: each new reason at once, the same one now and then.
#[derive(Default)]
pub struct Reasons {
    last: String,
    repeats: u32,
}

impl Reasons {
    pub fn tell(&mut self, reason: &str) {
        if self.last == reason {
            self.repeats += 1;
            if !self.repeats.is_multiple_of(REMIND_EVERY) {
                return;
            }
        } else {
            reason.clone_into(&mut self.last);
            self.repeats = 0;
        }
        tracing::error!("not joined yet: {reason}");
    }
}

/// A server to ask, by the address that is dialled and the one that people gave.
pub struct Asked<'a> {
    pub server: &'a str,
    pub address: SocketAddr,
    /// What stands between, and knows why no server is reached.
    pub balancer: Option<&'a Balancer>,
}

impl Asked<'_> {
    /// The CA that is to be trusted: fetched from anybody, then held against the token, or against what was trusted
    /// before (`kept`).
    ///
    /// # Errors
    /// When it is another one, and when the clocks are too far apart for its certificates.
    pub async fn authority(&self, token: Option<&Token>, kept: &Path) -> Result<String, JoinError> {
        let path = protocol::CA_CERTS;
        let answer = request::send(self.address, Trust::Anybody, Method::GET, path, HeaderMap::new(), Vec::new()).await;
        let server = self.server.to_owned();
        let answer = match answer {
            Ok(answer) => answer,
            Err(RequestError::Refused { .. }) => return Err(JoinError::NoAuthority { server }),
            Err(error) => return Err(self.refusal(path, error)),
        };
        check_clock(&answer.headers, SystemTime::now())?;
        let served = answer.text();
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(served.as_bytes()).filter_map(Result::ok).collect();
        let Some(root) = certificates.last() else { return Err(JoinError::NoAuthority { server }) };
        // Only what the hash covers is trusted: of a chain, the root. Servers show the rest in their handshakes.
        let trusted = if certificates.len() == 1 { served.clone() } else { pem(root) };
        if let Some(token) = token.filter(|token| token.ca_hash.is_some()) {
            token.check_ca(&served).map_err(|source| JoinError::OtherAuthority { server, source })?;
            return Ok(trusted);
        }
        match crate::files::read(kept)? {
            Some(before) if before != trusted => {
                Err(JoinError::AuthorityChanged { server, kept: kept.display().to_string() })
            }
            Some(_) => Ok(trusted),
            None if token.is_some() => {
                tracing::warn!(
                    server,
                    "the token does not name the cluster's CA; whoever answered is trusted. Use the full token (K10…)"
                );
                Ok(trusted)
            }
            None => Err(JoinError::NoToken),
        }
    }

    /// What a failed request means for joining.
    pub fn refusal(&self, path: &str, error: RequestError) -> JoinError {
        match error {
            RequestError::Connect(source) => {
                let reason = self.balancer.and_then(Balancer::last_error);
                JoinError::Unreachable { reason: reason.unwrap_or_else(|| format!("{}: {source}", self.server)) }
            }
            RequestError::Refused { status, reason, message } => match (status, reason.as_str()) {
                (_, protocol::reason::NAME_TAKEN) => JoinError::NameTaken { reason: message },
                (_, protocol::reason::VERSION_SKEW) => JoinError::Version { reason: message },
                (StatusCode::UNAUTHORIZED, _) => JoinError::Token { reason: message },
                (StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS, _) => {
                    JoinError::NotReady { reason: message }
                }
                _ => JoinError::Refused { reason: message },
            },
            source => JoinError::Request { path: path.to_owned(), source },
        }
    }
}

/// The header that carries a credential. A password without a user is the agents'.
pub fn authorization(credential: &Credential) -> Option<HeaderValue> {
    let text = match credential {
        Credential::Password { user, password } => {
            let user = user.as_deref().unwrap_or(AGENT_USER);
            format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
        }
        Credential::Bootstrap(token) => format!("Bearer {token}"),
    };
    let mut value = HeaderValue::from_str(&text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn check_clock(headers: &HeaderMap, now: SystemTime) -> Result<(), JoinError> {
    let date = headers.get(header::DATE).and_then(|value| value.to_str().ok());
    let Some(theirs) = date.and_then(http_date) else { return Ok(()) };
    let (by, ahead) = match now.duration_since(theirs) {
        Ok(by) => (by, true),
        Err(error) => (error.duration(), false),
    };
    if by > SKEW_MAX {
        return Err(JoinError::ClockSkew { by, ahead });
    }
    if by > SKEW_NOTED {
        tracing::warn!(by = show(by), ahead, "this machine's clock differs from the server's");
    }
    Ok(())
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
fn http_date(text: &str) -> Option<SystemTime> {
    let parsed = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(SystemTime::from(parsed))
}

fn show(by: Duration) -> String {
    let seconds = by.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    let text = STANDARD.encode(certificate);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap_or_default()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_far_off_is_refused() {
        let mut headers = HeaderMap::new();
        headers.insert(header::DATE, HeaderValue::from_static("Sun, 06 Nov 1994 08:49:37 GMT"));
        let theirs = http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(theirs.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(), 784_111_777);
        assert!(check_clock(&headers, theirs + Duration::from_secs(600)).is_ok());
        let error = check_clock(&headers, theirs - Duration::from_secs(86_400)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the clock of this machine is behind the server's by 24 h; set it (chronyc, timedatectl)"
        );
    }

    #[test]
    fn short_tokens_are_the_agents() {
        let of = |token: &str| {
            let value = authorization(&Token::parse(token).unwrap().credential).unwrap();
            value.to_str().unwrap().to_owned()
        };
        assert_eq!(of("s3cret"), format!("Basic {}", STANDARD.encode("node:s3cret")));
        assert_eq!(of("abcdef.0123456789abcdef"), "Bearer abcdef.0123456789abcdef");
    }
}
