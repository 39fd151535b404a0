//! Leaf certificates: when one has to be made, and making it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, SanType,
};
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Authority, CLOCK_SLACK, CertKey, LEAF_LIFETIME, Leaf, PkiError, RENEW_BEFORE, Usage, pair};
use crate::files;

pub fn ensure(
    dir: &Path,
    authority: &Authority,
    leaf: &Leaf,
    now: OffsetDateTime,
) -> Result<(CertKey, bool), PkiError> {
    let (cert_path, key_path) = pair(dir, leaf.file);
    let kept_key = files::read(&key_path)?.filter(|pem| KeyPair::from_pem(pem).is_ok());
    if let (Some(cert_pem), Some(key_pem)) = (files::read(&cert_path)?, &kept_key) {
        match still_good(&cert_pem, key_pem, authority, leaf, now) {
            Ok(()) => return Ok((CertKey { cert_pem, key_pem: key_pem.clone() }, false)),
            Err(why) => tracing::info!(certificate = leaf.file, why, "making a new certificate"),
        }
    }
    let make = |source| PkiError::Make { name: leaf.file.to_owned(), source };
    let key = match kept_key {
        Some(pem) => KeyPair::from_pem(&pem).map_err(make)?,
        None => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?,
    };
    let made = CertKey { cert_pem: sign(authority, leaf, &key, now)?, key_pem: key.serialize_pem() };
    files::write(&key_path, made.key_pem.as_bytes(), 0o600)?;
    files::write(&cert_path, made.cert_pem.as_bytes(), 0o644)?;
    Ok((made, true))
}

/// A certificate that says what `leaf` says, for the holder of the key, and the chain of its CA behind it, as people expect
/// of a file that a server presents.
pub fn sign(
    authority: &Authority,
    leaf: &Leaf,
    key: &impl PublicKeyData,
    now: OffsetDateTime,
) -> Result<String, PkiError> {
    let make = |source| PkiError::Make { name: leaf.file.to_owned(), source };
    let cert = params(leaf, now).map_err(make)?.signed_by(key, &authority.issuer).map_err(make)?;
    Ok(format!("{}{}", cert.pem(), authority.cert_pem))
}

fn params(leaf: &Leaf, now: OffsetDateTime) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    for organization in &leaf.organizations {
        params.distinguished_name.push(DnType::OrganizationName, organization.as_str());
    }
    params.distinguished_name.push(DnType::CommonName, leaf.common_name.as_str());
    for name in &leaf.dns_names {
        params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
    }
    params.subject_alt_names.extend(leaf.ip_addresses.iter().map(|ip| SanType::IpAddress(*ip)));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = match leaf.usage {
        Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
        Usage::Peer => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
    };
    params.use_authority_key_identifier_extension = true;
    params.not_before = now - CLOCK_SLACK;
    params.not_after = now + LEAF_LIFETIME;
    Ok(params)
}

/// `Err` says why the certificate cannot be used any longer.
fn still_good(
    cert_pem: &str,
    key_pem: &str,
    authority: &Authority,
    leaf: &Leaf,
    now: OffsetDateTime,
) -> Result<(), &'static str> {
    let cert_der = first_der(cert_pem).ok_or("the file holds no certificate")?;
    let ca_der = first_der(&authority.cert_pem).ok_or("the CA file holds no certificate")?;
    let (_, cert) = X509Certificate::from_der(&cert_der).map_err(|_| "the certificate does not parse")?;
    let (_, ca) = X509Certificate::from_der(&ca_der).map_err(|_| "the CA certificate does not parse")?;
    if cert.verify_signature(Some(ca.public_key())).is_err() || !cert_pem.ends_with(&authority.cert_pem) {
        return Err("the CA changed");
    }
    let key = KeyPair::from_pem(key_pem).map_err(|_| "the key does not parse")?;
    if cert.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
        return Err("the key changed");
    }
    if cert.validity().not_after.timestamp() < (now + RENEW_BEFORE).unix_timestamp() {
        return Err("it expires soon");
    }
    let subject = cert.subject();
    let names: Vec<_> = subject.iter_common_name().filter_map(|name| name.as_str().ok()).collect();
    let groups: Vec<_> = subject.iter_organization().filter_map(|name| name.as_str().ok()).collect();
    if names != [leaf.common_name.as_str()] || groups != leaf.organizations {
        return Err("the subject changed");
    }
    let (dns_names, ip_addresses) = alternative_names(&cert);
    let same = dns_names == leaf.dns_names.iter().cloned().collect()
        && ip_addresses == leaf.ip_addresses.iter().copied().collect();
    if same { Ok(()) } else { Err("the names changed") }
}

fn alternative_names(cert: &X509Certificate<'_>) -> (BTreeSet<String>, BTreeSet<IpAddr>) {
    let (mut dns_names, mut ip_addresses) = (BTreeSet::new(), BTreeSet::new());
    if let Ok(Some(extension)) = cert.subject_alternative_name() {
        for name in &extension.value.general_names {
            match name {
                GeneralName::DNSName(name) => drop(dns_names.insert((*name).to_owned())),
                GeneralName::IPAddress(bytes) => {
                    let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                    let v6 = <[u8; 16]>::try_from(*bytes).map(IpAddr::from);
                    ip_addresses.extend(v4.or(v6));
                }
                _ => {}
            }
        }
    }
    (dns_names, ip_addresses)
}

pub(super) fn first_der(pem: &str) -> Option<Vec<u8>> {
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
    Some(block.contents)
}

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::super::Pki;
    use super::*;

    fn server(names: &[&str]) -> Leaf {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Leaf::server("serving-kube-apiserver", "kube-apiserver", names, vec!["10.43.0.1".parse().unwrap()])
    }

    #[test]
    fn a_leaf_is_kept_until_something_changes() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::ensure(dir.path()).unwrap();
        let (first, new) = pki.leaf(&server(&["localhost"])).unwrap();
        assert!(new);
        assert_eq!(pki.leaf(&server(&["localhost"])).unwrap(), (first.clone(), false));
        let again = Pki::ensure(dir.path()).unwrap();
        assert_eq!(again.leaf(&server(&["localhost"])).unwrap(), (first.clone(), false));

        let (named, new) = pki.leaf(&server(&["localhost", "edge.example"])).unwrap();
        assert!(new);
        assert_eq!(named.key_pem, first.key_pem, "the key stays");

        let late = OffsetDateTime::now_utc() + Duration::days(300);
        let (_, new) = ensure(dir.path(), &pki.server_ca, &server(&["localhost", "edge.example"]), late).unwrap();
        assert!(new, "65 days are left, which is too few");
    }

    #[test]
    fn a_new_ca_makes_new_leaves() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::ensure(dir.path()).unwrap();
        pki.leaf(&Leaf::client("client-admin", "system:admin", &["system:masters"])).unwrap();
        for file in ["client-ca.crt", "client-ca.key"] {
            std::fs::remove_file(dir.path().join(file)).unwrap();
        }
        let pki = Pki::ensure(dir.path()).unwrap();
        let (_, new) = pki.leaf(&Leaf::client("client-admin", "system:admin", &["system:masters"])).unwrap();
        assert!(new);
    }

    #[test]
    fn a_ca_without_its_key_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        Pki::ensure(dir.path()).unwrap();
        std::fs::remove_file(dir.path().join("server-ca.key")).unwrap();
        assert!(matches!(Pki::ensure(dir.path()), Err(PkiError::HalfPair { .. })));
    }

    #[test]
    fn clients_carry_user_and_groups() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::ensure(dir.path()).unwrap();
        let (identity, _) = pki.leaf(&Leaf::client("client-admin", "system:admin", &["system:masters"])).unwrap();
        let der = first_der(&identity.cert_pem).unwrap();
        let (_, cert) = X509Certificate::from_der(&der).unwrap();
        assert_eq!(cert.subject().to_string(), "O=system:masters, CN=system:admin");
    }
}
