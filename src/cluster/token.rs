//! The cluster's secret and the forms in which people carry it.
//!
//! The full form is `K10<CA hash>::server:<secret>`: the hash lets a machine that joins verify the cluster's CA before it
//! sends anything.

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::files::{self, FileError};

#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("token must not be empty")]
    Empty,
    #[error("token has the form K10<CA hash>::<user>:<password>, but its parts do not fit")]
    Malformed,
    #[error("token belongs to another cluster: its CA hash is {given}, ours is {ours}")]
    OtherCluster { given: String, ours: String },
    #[error("token differs from the one this cluster was made with; it is in {path}")]
    Changed { path: String },
}

/// The SHA-256 of the CA bundle as served, in hex.
pub fn ca_hash(ca_pem: &str) -> String {
    Sha256::digest(ca_pem.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The secret in a token of the full or the short form.
///
/// # Errors
/// When a full form is malformed or carries the hash of another CA than `ca_pem`.
pub fn secret<'a>(token: &'a str, ca_pem: &str) -> Result<&'a str, TokenError> {
    let token = token.trim();
    if token.is_empty() {
        return Err(TokenError::Empty);
    }
    let Some(rest) = token.strip_prefix("K10") else { return Ok(token) };
    let (hash, credentials) = rest.split_once("::").ok_or(TokenError::Malformed)?;
    let (_user, password) = credentials.split_once(':').ok_or(TokenError::Malformed)?;
    if hash.len() != 64 || password.is_empty() {
        return Err(TokenError::Malformed);
    }
    let ours = ca_hash(ca_pem);
    if hash == ours { Ok(password) } else { Err(TokenError::OtherCluster { given: hash.to_owned(), ours }) }
}

/// Makes sure that `<server_dir>/token` holds the cluster's token and returns its full form.
///
/// The secret is `given`, or what the file holds, or 16 random bytes; once chosen it stays.
pub fn ensure(server_dir: &Path, ca_pem: &str, given: Option<&str>) -> Result<String, TokenError> {
    let path = server_dir.join("token");
    let kept = files::read(&path)?;
    let secret = match (kept.as_deref(), given) {
        (Some(kept), given) => {
            let kept = self::secret(kept, ca_pem)?;
            if given.map(|given| self::secret(given, ca_pem)).transpose()?.is_some_and(|given| given != kept) {
                return Err(TokenError::Changed { path: path.display().to_string() });
            }
            kept.to_owned()
        }
        (None, Some(given)) => self::secret(given, ca_pem)?.to_owned(),
        (None, None) => rand::random::<[u8; 16]>().iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    let full = format!("K10{}::server:{secret}", ca_hash(ca_pem));
    if kept.as_deref().map(str::trim) != Some(full.as_str()) {
        files::write(&path, format!("{full}\n").as_bytes(), 0o600)?;
    }
    let link = server_dir.join("node-token");
    if std::fs::symlink_metadata(&link).is_err() {
        // Scripts in the field read node-token; without the link only they are affected.
        if let Err(error) = std::os::unix::fs::symlink("token", &link) {
            tracing::warn!(%error, path = %link.display(), "link to the token is missing");
        }
    }
    Ok(full)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let first = ensure(dir.path(), "ca", None).unwrap();
        assert!(first.starts_with("K10") && first.contains("::server:"), "{first}");
        assert_eq!(ensure(dir.path(), "ca", None).unwrap(), first);
        assert_eq!(ensure(dir.path(), "ca", Some(&first)).unwrap(), first);
        assert!(matches!(ensure(dir.path(), "ca", Some("other")), Err(TokenError::Changed { .. })));
        assert!(matches!(ensure(dir.path(), "another ca", None), Err(TokenError::OtherCluster { .. })));
    }

    #[test]
    fn forms_of_a_token() {
        let full = format!("K10{}::server:s3cret", ca_hash("ca"));
        assert_eq!(secret(&full, "ca").unwrap(), "s3cret");
        assert_eq!(secret("s3cret", "ca").unwrap(), "s3cret");
        assert!(matches!(secret("K10abc::server:x", "ca"), Err(TokenError::Malformed)));
        assert!(matches!(secret(" ", "ca"), Err(TokenError::Empty)));
    }
}
