//! Kubeconfig files: who to talk to, whom to trust, who one is.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::files::{self, FileError};
use crate::pki::CertKey;

/// A kubeconfig with everything embedded, under the one name k3s uses for cluster, user and context.
pub fn render(name: &str, server: &str, ca_pem: &str, identity: &CertKey) -> String {
    let (authority, certificate, key) =
        (STANDARD.encode(ca_pem), STANDARD.encode(&identity.cert_pem), STANDARD.encode(&identity.key_pem));
    // One line a value: people and scripts look for them with grep.
    format!(
        "apiVersion: v1\n\
        kind: Config\n\
        clusters:\n\
        - name: {name}\n  cluster:\n    certificate-authority-data: {authority}\n    server: {server}\n\
        contexts:\n\
        - name: {name}\n  context:\n    cluster: {name}\n    user: {name}\n\
        current-context: {name}\n\
        users:\n\
        - name: {name}\n  user:\n    client-certificate-data: {certificate}\n    client-key-data: {key}\n"
    )
}

/// What a kubeconfig of [`render`] says.
#[derive(Clone)]
pub struct Access {
    pub server: String,
    pub ca_pem: String,
    pub identity: CertKey,
}

#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("it is no kubeconfig with embedded certificates")]
    Form,
    #[error("it cannot be used")]
    Connect(#[from] mussel_client::ConnectError),
}

impl Access {
    /// # Errors
    /// When address or certificates cannot be used.
    pub fn client(&self) -> Result<kube::Client, AccessError> {
        let tls = mussel_client::Tls {
            ca_pem: self.ca_pem.clone().into_bytes(),
            cert_pem: Some(self.identity.cert_pem.clone().into_bytes()),
            key_pem: Some(self.identity.key_pem.clone().into_bytes()),
            token: None,
        };
        Ok(mussel_client::over_tls(self.server.parse().map_err(|_| AccessError::Form)?, tls)?)
    }
}

/// The cluster and user of a kubeconfig's current context; `None` when there is no such file.
///
/// # Errors
/// When it has another form than ours.
pub fn read(path: &Path) -> Result<Option<Access>, AccessError> {
    let Some(text) = files::read(path)? else { return Ok(None) };
    let config: serde_json::Value = serde_saphyr::from_str(&text).map_err(|_| AccessError::Form)?;
    let named = |list: &str, name: &serde_json::Value| -> Option<serde_json::Value> {
        config[list].as_array()?.iter().find(|entry| entry["name"] == *name).cloned()
    };
    let parsed = || {
        let context = named("contexts", &config["current-context"])?;
        let cluster = named("clusters", &context["context"]["cluster"])?;
        let user = named("users", &context["context"]["user"])?;
        let decode = |value: &serde_json::Value| String::from_utf8(STANDARD.decode(value.as_str()?).ok()?).ok();
        Some(Access {
            server: cluster["cluster"]["server"].as_str()?.to_owned(),
            ca_pem: decode(&cluster["cluster"]["certificate-authority-data"])?,
            identity: CertKey {
                cert_pem: decode(&user["user"]["client-certificate-data"])?,
                key_pem: decode(&user["user"]["client-key-data"])?,
            },
        })
    };
    parsed().ok_or(AccessError::Form).map(Some)
}

/// A kubeconfig that points at files, for tools on a node. The server behind the address is known by one name, whichever it is.
pub fn render_files(server: &str, ca: &Path, certificate: &Path, key: &Path) -> String {
    let (ca, certificate, key) = (ca.display(), certificate.display(), key.display());
    let name = mussel_client::connect::SERVERS_NAME;
    format!(
        "apiVersion: v1\nkind: Config\n\
        clusters:\n- name: local\n  cluster:\n    certificate-authority: {ca}\n    server: {server}\n    \
        tls-server-name: {name}\n\
        contexts:\n- name: Default\n  context:\n    cluster: local\n    user: user\n\
        current-context: Default\n\
        users:\n- name: user\n  user:\n    client-certificate: {certificate}\n    client-key: {key}\n"
    )
}

/// Writes it where it differs, so that an unchanged file keeps its time.
pub fn write(path: &Path, text: &str, mode: u32) -> Result<(), FileError> {
    use std::os::unix::fs::PermissionsExt;
    let same_mode = std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o7777 == mode);
    if same_mode && files::read(path)?.as_deref() == Some(text) {
        return Ok(());
    }
    files::write(path, text.as_bytes(), mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_yaml_that_reads_back() {
        let identity = CertKey { cert_pem: "CERT".to_owned(), key_pem: "KEY".to_owned() };
        let text = render("default", "https://127.0.0.1:6443", "CA", &identity);
        let back: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(back["current-context"], "default");
        assert_eq!(back["clusters"][0]["cluster"]["server"], "https://127.0.0.1:6443");
        assert_eq!(back["users"][0]["user"]["client-key-data"], STANDARD.encode("KEY"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        assert!(super::read(&path).unwrap().is_none());
        write(&path, &text, 0o600).unwrap();
        let access = super::read(&path).unwrap().unwrap();
        assert_eq!((access.ca_pem.as_str(), access.identity), ("CA", identity));
    }
}
