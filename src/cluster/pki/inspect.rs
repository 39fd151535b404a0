//! What the certificates in a folder say, for people and for renewal.

use std::path::{Path, PathBuf};

use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::RENEW_BEFORE;
use super::leaf::first_der;

/// One certificate file.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Certificate {
    pub file: PathBuf,
    pub subject: String,
    /// `CertSign`, `ServerAuth`, `ClientAuth`
    pub usages: Vec<String>,
    /// RFC 3339.
    pub expires: String,
    pub residual_seconds: i64,
    pub status: Status,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum Status {
    #[serde(rename = "OK")]
    Ok,
    /// Made anew at the next start, or by the running server within half a day.
    #[serde(rename = "WARNING")]
    ExpiresSoon,
    #[serde(rename = "EXPIRED")]
    Expired,
    #[serde(rename = "NOT YET VALID")]
    NotYetValid,
}

/// The certificates in `dir` and its folders, by path. Of a file with a chain, the first one. What does not parse is left
/// out.
pub fn certificates(dir: &Path) -> Vec<Certificate> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) && folder == dir {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "crt") {
                found.extend(std::fs::read_to_string(&path).ok().and_then(|pem| inspect(path, &pem)));
            }
        }
    }
    found.sort_by(|a, b| a.file.cmp(&b.file));
    found
}

fn inspect(file: PathBuf, pem: &str) -> Option<Certificate> {
    let der = first_der(pem)?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    let now = OffsetDateTime::now_utc();
    let (begin, end) = (certificate.validity().not_before, certificate.validity().not_after);
    let residual = end.timestamp() - now.unix_timestamp();
    let status = match () {
        () if residual <= 0 => Status::Expired,
        () if begin.timestamp() > now.unix_timestamp() => Status::NotYetValid,
        () if residual < RENEW_BEFORE.whole_seconds() => Status::ExpiresSoon,
        () => Status::Ok,
    };
    let mut usages = Vec::new();
    if certificate.is_ca() {
        usages.push("CertSign".to_owned());
    }
    if let Ok(Some(extended)) = certificate.extended_key_usage() {
        usages.extend(extended.value.server_auth.then(|| "ServerAuth".to_owned()));
        usages.extend(extended.value.client_auth.then(|| "ClientAuth".to_owned()));
    }
    let expires = jiff::Timestamp::from_second(end.timestamp()).ok()?.to_string();
    Some(Certificate {
        file,
        subject: certificate.subject().to_string(),
        usages,
        expires,
        residual_seconds: residual,
        status,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::Pki;

    #[test]
    fn authorities_and_leaves_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::ensure(dir.path()).unwrap();
        pki.leaf(&crate::pki::Leaf::client("client-admin", "system:admin", &["system:masters"])).unwrap();
        let found = certificates(dir.path());
        let names: Vec<_> =
            found.iter().map(|c| c.file.strip_prefix(dir.path()).unwrap().display().to_string()).collect();
        assert_eq!(
            names,
            ["client-admin.crt", "client-ca.crt", "etcd/peer-ca.crt", "request-header-ca.crt", "server-ca.crt"]
        );
        assert_eq!(found[0].subject, "O=system:masters, CN=system:admin");
        assert_eq!((found[0].usages.clone(), found[0].status), (vec!["ClientAuth".to_owned()], Status::Ok));
        assert_eq!(found[1].usages, ["CertSign"]);
        assert!((364 * 86_400..=365 * 86_400).contains(&found[0].residual_seconds));
    }
}
