//! Where the keys that Secrets are encrypted with are kept: sealed with the servers' token in the store, and plain in
//! `<data-dir>/server/cred/encryption-config.json` on every server.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use mussel_apiserver::encryption::Vault;

use crate::bootstrap::{ENCRYPTION_CONFIG, Sealed};
use crate::files;
use crate::token::Secrets;

pub struct KeyVault {
    secrets: Arc<ArcSwap<Secrets>>,
    file: PathBuf,
}

impl KeyVault {
    pub fn new(secrets: Arc<ArcSwap<Secrets>>, server_dir: &Path) -> Self {
        Self { secrets, file: server_dir.join(ENCRYPTION_CONFIG) }
    }
}

/// Secrets do not belong into logs.
impl std::fmt::Debug for KeyVault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyVault({})", self.file.display())
    }
}

impl Vault for KeyVault {
    fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, String> {
        let text = std::str::from_utf8(plain).map_err(|error| error.to_string())?;
        Sealed::seal(&text, &self.secrets.load().server).map_err(|error| error.to_string())
    }

    fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, String> {
        let opened = Sealed::open::<String>(sealed, &self.secrets.load().server);
        opened.map(String::into_bytes).map_err(|error| error.to_string())
    }

    fn kept(&self) -> Result<Option<String>, String> {
        files::read(&self.file).map_err(|error| format!("{error}: {}", error.source))
    }

    fn keep(&self, configuration: &str) -> Result<(), String> {
        let written = files::write(&self.file, configuration.as_bytes(), 0o600);
        written.map_err(|error| format!("{error}: {}", error.source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_in_use_opens_it_and_the_file_is_for_root() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let secrets = |token: &str| Secrets { server: token.to_owned(), agent: token.to_owned() };
        let used = Arc::new(ArcSwap::from_pointee(secrets("one")));
        let vault = KeyVault::new(Arc::clone(&used), dir.path());
        let sealed = vault.seal(b"keys").unwrap();
        assert_eq!(vault.open(&sealed).unwrap(), b"keys");
        used.store(Arc::new(secrets("two")));
        assert!(vault.open(&sealed).unwrap_err().contains("another token"));
        assert_eq!(vault.kept().unwrap(), None);
        vault.keep("keys").unwrap();
        assert_eq!(vault.kept().unwrap().unwrap(), "keys");
        let mode = std::fs::metadata(dir.path().join(ENCRYPTION_CONFIG)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
