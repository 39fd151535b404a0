//! The cluster's secrets and the forms in which people carry them.
//!
//! The full form is `K10<CA hash>::<user>:<password>`, or `K10<CA hash>::<id>.<secret>` for a bootstrap token: the hash
//! lets a machine that joins verify the cluster's CA before it sends anything. The short form is what stands behind `::`,
//! or the password alone; it trusts whoever answers.

use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};

use crate::files::{self, FileError};
use crate::protocol::{AGENT_USER, SERVER_USER};

#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("token must not be empty")]
    Empty,
    #[error("token has the form K10<CA hash>::<user>:<password>, but its parts do not fit")]
    Malformed,
    #[error("token must be printable ASCII without spaces, at most {PASSWORD_BYTES_MAX} characters")]
    Unprintable,
    #[error("a bootstrap token can join agents, but not be the token of a server")]
    Bootstrap,
    #[error("token belongs to another cluster: its CA hash is {given}, ours is {ours}")]
    OtherCluster { given: String, ours: String },
    #[error("token differs from the one this cluster was made with; it is in {path}")]
    Changed { path: String },
}

const PASSWORD_BYTES_MAX: usize = 1024;

/// What a machine shows to be let in.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// `server` or `node`, and the cluster's secret. The user is `None` in the short form.
    Password { user: Option<String>, password: String },
    /// `<id>.<secret>`, made by `mussel token create`.
    Bootstrap(String),
}

/// Secrets do not belong into logs.
impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Password { user, .. } => write!(f, "Password({user:?}, …)"),
            Self::Bootstrap(token) => write!(f, "Bootstrap({}.…)", token.split('.').next().unwrap_or_default()),
        }
    }
}

/// A token, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Hex SHA-256 of the cluster's CA; `None` in the short form.
    pub ca_hash: Option<String>,
    pub credential: Credential,
}

impl Token {
    /// # Errors
    /// When the text has none of the forms.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        if text.len() > PASSWORD_BYTES_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::Unprintable);
        }
        let Some(rest) = text.strip_prefix("K10") else {
            let credential = match is_bootstrap(text) {
                true => Credential::Bootstrap(text.to_owned()),
                false => Credential::Password { user: None, password: text.to_owned() },
            };
            return Ok(Self { ca_hash: None, credential });
        };
        let (hash, credentials) = rest.split_once("::").ok_or(TokenError::Malformed)?;
        if hash.len() != 64 || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(TokenError::Malformed);
        }
        let credential = match credentials.split_once(':') {
            Some((user, password)) if !user.is_empty() && !password.is_empty() => {
                Credential::Password { user: Some(user.to_owned()), password: password.to_owned() }
            }
            None if is_bootstrap(credentials) => Credential::Bootstrap(credentials.to_owned()),
            _ => return Err(TokenError::Malformed),
        };
        Ok(Self { ca_hash: Some(hash.to_ascii_lowercase()), credential })
    }

    /// # Errors
    /// `OtherCluster` when the token carries the hash of another CA than this bundle's.
    pub fn check_ca(&self, ca_pem: &str) -> Result<(), TokenError> {
        let ours = ca_hash(ca_pem);
        match &self.ca_hash {
            // A token from before the CA got successors: it names the root, by the text that the root was alone.
            Some(given) if *given != ours && root_text(ca_pem).is_none_or(|root| ca_hash(root) != *given) => {
                Err(TokenError::OtherCluster { given: given.clone(), ours })
            }
            _ => Ok(()),
        }
    }

    /// The cluster's secret.
    ///
    /// # Errors
    /// `Bootstrap` for a bootstrap token, which has none.
    pub fn password(&self) -> Result<&str, TokenError> {
        match &self.credential {
            Credential::Password { password, .. } => Ok(password),
            Credential::Bootstrap(_) => Err(TokenError::Bootstrap),
        }
    }
}

/// `<6>.<16>`, lower-case letters and digits.
pub fn is_bootstrap(text: &str) -> bool {
    let fits = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    text.split_once('.').is_some_and(|(id, secret)| fits(id, 6) && fits(secret, 16))
}

/// The hash by which tokens know a CA: of the served PEM text when that is one certificate, else of the root's DER (the
/// last one), so that intermediate CAs can be replaced.
pub fn ca_hash(ca_pem: &str) -> String {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(ca_pem.as_bytes()).filter_map(Result::ok).collect();
    match certificates.as_slice() {
        [_, .., root] => hex(&Sha256::digest(root)),
        _ => hex(&Sha256::digest(ca_pem.as_bytes())),
    }
}

/// The last certificate of a bundle, as it stands there.
fn root_text(ca_pem: &str) -> Option<&str> {
    ca_pem.rfind("-----BEGIN CERTIFICATE-----").map(|at| &ca_pem[at..])
}

/// A new secret.
pub fn random() -> String {
    hex(&rand::random::<[u8; 16]>())
}

/// The full form.
pub fn full(ca_pem: &str, user: &str, password: &str) -> String {
    format!("K10{}::{user}:{password}", ca_hash(ca_pem))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The two secrets of a cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct Secrets {
    /// Lets servers and agents join.
    pub server: String,
    /// Lets agents join; often the same.
    pub agent: String,
}

/// What a password opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Server,
    Agent,
}

impl Secrets {
    pub fn access(&self, user: &str, password: &str) -> Option<Access> {
        match user {
            SERVER_USER if same(password, &self.server) => Some(Access::Server),
            // An agent that was given the servers' token in its short form is let in too.
            AGENT_USER if same(password, &self.agent) || same(password, &self.server) => Some(Access::Agent),
            _ => None,
        }
    }
}

/// Compares hashes, so that the time taken tells nothing about the secret.
fn same(a: &str, b: &str) -> bool {
    Sha256::digest(a.as_bytes()) == Sha256::digest(b.as_bytes())
}

/// Makes sure that the files in `server_dir` hold the cluster's tokens, and returns what they hold.
///
/// A secret is the one given, or the one kept, or (the servers') 16 random bytes, or (the agents') the servers'. Once chosen
/// the servers' stays.
///
/// # Errors
/// When a given token differs from the kept one or belongs to another CA.
pub fn ensure(
    server_dir: &Path,
    ca_pem: &str,
    given: Option<&str>,
    agent_given: Option<&str>,
) -> Result<Secrets, TokenError> {
    let path = server_dir.join("token");
    // The hash in the file is brought up to date below, whatever became of the CA.
    let kept =
        files::read(&path)?.as_deref().map(|text| Token::parse(text)?.password().map(str::to_owned)).transpose()?;
    let given = given.map(|given| secret(given, ca_pem)).transpose()?;
    let server = match (kept, given) {
        (Some(kept), Some(given)) if kept != given => {
            return Err(TokenError::Changed { path: path.display().to_string() });
        }
        (Some(secret), _) | (None, Some(secret)) => secret,
        (None, None) => random(),
    };
    let agent = match agent_given {
        Some(given) => secret(given, ca_pem)?,
        None => server.clone(),
    };
    write(server_dir, ca_pem, &Secrets { server: server.clone(), agent: agent.clone() })?;
    Ok(Secrets { server, agent })
}

/// Writes `token`, `node-token` and `agent-token`.
///
/// # Errors
/// When a file cannot be written.
pub fn write(server_dir: &Path, ca_pem: &str, secrets: &Secrets) -> Result<(), TokenError> {
    write_changed(&server_dir.join("token"), &full(ca_pem, SERVER_USER, &secrets.server))?;
    link(&server_dir.join("node-token"));
    let agent = server_dir.join("agent-token");
    if secrets.agent == secrets.server {
        if std::fs::symlink_metadata(&agent).is_ok_and(|meta| !meta.is_symlink()) {
            // From a time when agents had a token of their own.
            let _ = std::fs::remove_file(&agent);
        }
        link(&agent);
    } else {
        // Never through the link: that would overwrite the servers' token.
        if std::fs::symlink_metadata(&agent).is_ok_and(|meta| meta.is_symlink()) {
            let _ = std::fs::remove_file(&agent);
        }
        write_changed(&agent, &full(ca_pem, AGENT_USER, &secrets.agent))?;
    }
    Ok(())
}

fn secret(text: &str, ca_pem: &str) -> Result<String, TokenError> {
    let token = Token::parse(text)?;
    token.check_ca(ca_pem)?;
    token.password().map(str::to_owned)
}

fn write_changed(path: &Path, token: &str) -> Result<(), FileError> {
    if files::read(path)?.as_deref().map(str::trim) == Some(token) {
        return Ok(());
    }
    files::write(path, format!("{token}\n").as_bytes(), 0o600)
}

/// Scripts in the field read these names; without the link only they are affected.
fn link(path: &Path) {
    if std::fs::symlink_metadata(path).is_err()
        && let Err(error) = std::os::unix::fs::symlink("token", path)
    {
        tracing::warn!(%error, path = %path.display(), "link to the token is missing");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let first = ensure(dir.path(), "ca", None, None).unwrap();
        assert_eq!(first.server, first.agent);
        let file = std::fs::read_to_string(dir.path().join("token")).unwrap();
        assert_eq!(file.trim(), full("ca", "server", &first.server));
        for name in ["node-token", "agent-token"] {
            assert_eq!(std::fs::read_to_string(dir.path().join(name)).unwrap(), file);
        }
        assert!(ensure(dir.path(), "ca", None, None).unwrap() == first);
        assert!(ensure(dir.path(), "ca", Some(&file), None).unwrap() == first);
        assert!(matches!(ensure(dir.path(), "ca", Some("other"), None), Err(TokenError::Changed { .. })));
        assert!(matches!(ensure(dir.path(), "another ca", Some(&file), None), Err(TokenError::OtherCluster { .. })));
        ensure(dir.path(), "another ca", None, None).unwrap();
        let file = std::fs::read_to_string(dir.path().join("token")).unwrap();
        assert_eq!(file.trim(), full("another ca", "server", &first.server), "the file names the CA in use");
    }

    #[test]
    fn agents_can_have_a_token_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let shared = ensure(dir.path(), "ca", Some("s3cret"), None).unwrap();
        let own = ensure(dir.path(), "ca", None, Some("weaker")).unwrap();
        assert_eq!((own.server.as_str(), own.agent.as_str()), ("s3cret", "weaker"));
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("agent-token").trim(), full("ca", "node", "weaker"));
        assert_eq!(read("token").trim(), full("ca", "server", "s3cret"));
        assert_eq!(own.access("node", "weaker"), Some(Access::Agent));
        assert_eq!(own.access("node", "s3cret"), Some(Access::Agent));
        assert_eq!(own.access("server", "s3cret"), Some(Access::Server));
        assert_eq!(own.access("server", "weaker"), None);
        assert_eq!(shared.access("root", "s3cret"), None);
        ensure(dir.path(), "ca", None, None).unwrap();
        assert_eq!(read("agent-token"), read("token"));
    }

    #[test]
    fn a_token_outlives_successors_of_the_ca() {
        let pem = |name: &str| {
            let key = rcgen::KeyPair::generate().unwrap();
            rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap().pem()
        };
        let (old, new, other) = (pem("old"), pem("new"), pem("other"));
        let token = Token::parse(&full(&old, "server", "s3cret")).unwrap();
        assert!(token.check_ca(&old).is_ok());
        assert!(token.check_ca(&format!("{new}{old}")).is_ok());
        for wrong in [format!("{old}{new}"), other.clone(), format!("{new}{other}")] {
            assert!(token.check_ca(&wrong).is_err());
        }
    }

    #[test]
    fn forms_of_a_token() {
        let hash = ca_hash("ca");
        let parse = |text: &str| Token::parse(text);
        let password =
            |user: Option<&str>| Credential::Password { user: user.map(str::to_owned), password: "s3cret".to_owned() };
        let full = parse(&format!("K10{hash}::server:s3cret")).unwrap();
        assert_eq!(full, Token { ca_hash: Some(hash.clone()), credential: password(Some("server")) });
        assert!(full.check_ca("ca").is_ok() && full.check_ca("other").is_err());
        assert_eq!(parse("s3cret\n").unwrap(), Token { ca_hash: None, credential: password(None) });
        let bootstrap = Credential::Bootstrap("abcdef.0123456789abcdef".to_owned());
        assert_eq!(parse("abcdef.0123456789abcdef").unwrap().credential, bootstrap);
        let full = parse(&format!("K10{hash}::abcdef.0123456789abcdef")).unwrap();
        assert_eq!(full, Token { ca_hash: Some(hash), credential: bootstrap });
        assert!(!format!("{full:?}").contains("0123456789abcdef\""), "secrets are not printed");
        assert!(matches!(parse("K10abc::server:x"), Err(TokenError::Malformed)));
        assert!(matches!(parse(" "), Err(TokenError::Empty)));
        assert!(matches!(parse("a b"), Err(TokenError::Unprintable)));
    }
}
