//! Certificates for signing requests of the API: the subject and names are the requester's, and stay byte for byte as they
//! asked (a subject may have many organizations, which are a user's groups); the rest is ours. RFC 5280 section 4.

use rcgen::{
    KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, PKCS_RSA_SHA384,
    PKCS_RSA_SHA512, SigningKey,
};
use ring::rand::SecureRandom;
use time::{Duration, OffsetDateTime};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::ParsedExtension;
use x509_parser::oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME;
use x509_parser::prelude::{FromDer, X509Certificate};
use yasna::models::{GeneralizedTime, ObjectIdentifier, UTCTime};
use yasna::{DERWriter, DERWriterSeq, Tag};

use super::leaf::first_der;
use super::{Authority, CLOCK_SLACK};

const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
const EXTENDED_KEY_USAGE: &[u64] = &[2, 5, 29, 37];
const SUBJECT_ALTERNATIVE_NAME: &[u64] = &[2, 5, 29, 17];
const BASIC_CONSTRAINTS: &[u64] = &[2, 5, 29, 19];
const AUTHORITY_KEY: &[u64] = &[2, 5, 29, 35];

#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("the request does not parse")]
    Unreadable,
    #[error("the request's signature does not hold")]
    NotTheirs,
    #[error("the usage {0:?} is not known")]
    Usage(String),
    #[error("the authority has expired")]
    Expired,
    #[error("the authority cannot sign")]
    Authority,
}

/// The certificate (PEM) that `request` (DER, PKCS #10) asks for. It is good for `lifetime`, but for no longer than the
/// authority itself.
///
/// `usages` are those of `certificates.k8s.io/v1`: `client auth`.
///
/// # Errors
/// When the request does not hold, a usage is unknown, or the authority's files are not usable.
pub fn sign(
    authority: &Authority,
    request: &[u8],
    usages: &[String],
    lifetime: std::time::Duration,
    now: OffsetDateTime,
) -> Result<String, RequestError> {
    let (_, request) = X509CertificationRequest::from_der(request).map_err(|_| RequestError::Unreadable)?;
    request.verify_signature().map_err(|_| RequestError::NotTheirs)?;
    let ca = first_der(&authority.cert_pem).ok_or(RequestError::Authority)?;
    let (_, ca) = X509Certificate::from_der(&ca).map_err(|_| RequestError::Authority)?;
    let ca_ends = ca.validity().not_after.to_datetime();
    let lifetime = Duration::try_from(lifetime).unwrap_or(Duration::MAX);
    let ends = now.checked_add(lifetime).unwrap_or(ca_ends).min(ca_ends);
    if ends <= now {
        return Err(RequestError::Expired);
    }
    let mut serial = [0; 16];
    ring::rand::SystemRandom::new().fill(&mut serial).map_err(|_| RequestError::Authority)?;
    // Positive, and not shorter for a first byte of zero.
    serial[0] = serial[0] & 0x7f | 0x40;

    let key = authority.issuer.key();
    let algorithm = signature_algorithm(key)?;
    let usages = Usages::of(usages)?;
    let info = &request.certification_request_info;
    let body = yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_tagged(Tag::context(0), |writer| writer.write_u8(2));
            writer.next().write_bigint_bytes(&serial, true);
            algorithm.write(writer.next());
            writer.next().write_der(ca.subject().as_raw());
            writer.next().write_sequence(|writer| {
                write_time(writer.next(), now - CLOCK_SLACK);
                write_time(writer.next(), ends);
            });
            writer.next().write_der(info.subject.as_raw());
            writer.next().write_der(info.subject_pki.raw);
            writer.next().write_tagged(Tag::context(3), |writer| {
                writer.write_sequence(|writer| {
                    usages.write(writer);
                    // Not an authority, which is the default and therefore not said further.
                    write_extension(writer, BASIC_CONSTRAINTS, true, |writer| writer.write_sequence(|_| ()));
                    if let Some(id) = key_id(&ca) {
                        write_extension(writer, AUTHORITY_KEY, false, |writer| {
                            writer.write_sequence(|writer| {
                                writer.next().write_tagged_implicit(Tag::context(0), |writer| writer.write_bytes(id));
                            });
                        });
                    }
                    if let Some(names) = alternative_names(&request) {
                        // Where nothing else says whom it is for, it must be understood.
                        let only = info.subject.iter().next().is_none();
                        write_extension(writer, SUBJECT_ALTERNATIVE_NAME, only, |writer| writer.write_der(&names));
                    }
                });
            });
        });
    });
    let signature = key.sign(&body).map_err(|_| RequestError::Authority)?;
    let certificate = yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_der(&body);
            algorithm.write(writer.next());
            writer.next().write_bitvec_bytes(&signature, signature.len() * 8);
        });
    });
    Ok(pem(&certificate))
}

struct SignatureAlgorithm {
    id: &'static [u64],
    has_null: bool,
}

impl SignatureAlgorithm {
    fn write(&self, writer: DERWriter<'_>) {
        writer.write_sequence(|writer| {
            writer.next().write_oid(&ObjectIdentifier::from_slice(self.id));
            if self.has_null {
                writer.next().write_null();
            }
        });
    }
}

/// RFC 5758, 8410 and 4055.
fn signature_algorithm(key: &KeyPair) -> Result<SignatureAlgorithm, RequestError> {
    let own = key.algorithm();
    let known: [(_, &'static [u64], bool); 6] = [
        (&PKCS_ECDSA_P256_SHA256, &[1, 2, 840, 10045, 4, 3, 2], false),
        (&PKCS_ECDSA_P384_SHA384, &[1, 2, 840, 10045, 4, 3, 3], false),
        (&PKCS_ED25519, &[1, 3, 101, 112], false),
        (&PKCS_RSA_SHA256, &[1, 2, 840, 113549, 1, 1, 11], true),
        (&PKCS_RSA_SHA384, &[1, 2, 840, 113549, 1, 1, 12], true),
        (&PKCS_RSA_SHA512, &[1, 2, 840, 113549, 1, 1, 13], true),
    ];
    let found = known.into_iter().find(|(algorithm, ..)| *algorithm == own);
    found.map(|(_, id, has_null)| SignatureAlgorithm { id, has_null }).ok_or(RequestError::Authority)
}

/// The two extensions that say what a key may be used for.
#[derive(Default)]
struct Usages {
    /// Bit n is the n-th of RFC 5280 section 4.2.1.3.
    key: u16,
    extended: Vec<&'static [u64]>,
}

impl Usages {
    fn of(names: &[String]) -> Result<Self, RequestError> {
        let mut usages = Self::default();
        for name in names {
            let bit = match name.as_str() {
                "signing" | "digital signature" => Some(0),
                "content commitment" => Some(1),
                "key encipherment" => Some(2),
                "data encipherment" => Some(3),
                "key agreement" => Some(4),
                "cert sign" => Some(5),
                "crl sign" => Some(6),
                "encipher only" => Some(7),
                "decipher only" => Some(8),
                _ => None,
            };
            let extended: Option<&'static [u64]> = match name.as_str() {
                "any" => Some(&[2, 5, 29, 37, 0]),
                "server auth" => Some(&[1, 3, 6, 1, 5, 5, 7, 3, 1]),
                "client auth" => Some(&[1, 3, 6, 1, 5, 5, 7, 3, 2]),
                "code signing" => Some(&[1, 3, 6, 1, 5, 5, 7, 3, 3]),
                "email protection" | "s/mime" => Some(&[1, 3, 6, 1, 5, 5, 7, 3, 4]),
                "ipsec end system" => Some(&[1, 3, 6, 1, 5, 5, 7, 3, 5]),
                "ipsec tunnel" => Some(&[1, 3, 6, 1, 5, 5, 7, 3, 6]),
                "ipsec user" => Some(&[1, 3, 6, 1, 5, 5, 7, 3, 7]),
                "timestamping" => Some(&[1, 3, 6, 1, 5, 5, 7, 3, 8]),
                "ocsp signing" => Some(&[1, 3, 6, 1, 5, 5, 7, 3, 9]),
                "microsoft sgc" => Some(&[1, 3, 6, 1, 4, 1, 311, 10, 3, 3]),
                "netscape sgc" => Some(&[2, 16, 840, 1, 113730, 4, 1]),
                _ => None,
            };
            match (bit, extended) {
                (Some(bit), _) => usages.key |= 1 << bit,
                (None, Some(id)) if usages.extended.contains(&id) => {}
                (None, Some(id)) => usages.extended.push(id),
                (None, None) => return Err(RequestError::Usage(name.clone())),
            }
        }
        Ok(usages)
    }

    fn write(&self, writer: &mut DERWriterSeq<'_>) {
        if self.key != 0 {
            let bits = 16 - self.key.leading_zeros() as usize;
            // In DER the first bit is the highest of the first byte.
            let bytes = self.key.reverse_bits().to_be_bytes();
            write_extension(writer, KEY_USAGE, true, |writer| {
                writer.write_bitvec_bytes(&bytes[..bits.div_ceil(8)], bits);
            });
        }
        if !self.extended.is_empty() {
            write_extension(writer, EXTENDED_KEY_USAGE, false, |writer| {
                writer.write_sequence(|writer| {
                    for id in &self.extended {
                        writer.next().write_oid(&ObjectIdentifier::from_slice(id));
                    }
                });
            });
        }
    }
}

fn write_extension(writer: &mut DERWriterSeq<'_>, id: &[u64], is_critical: bool, value: impl FnOnce(DERWriter<'_>)) {
    writer.next().write_sequence(|writer| {
        writer.next().write_oid(&ObjectIdentifier::from_slice(id));
        if is_critical {
            writer.next().write_bool(true);
        }
        writer.next().write_bytes(&yasna::construct_der(value));
    });
}

/// RFC 5280 section 4.1.2.5: the short form until 2049.
fn write_time(writer: DERWriter<'_>, time: OffsetDateTime) {
    let time = time.replace_nanosecond(0).unwrap_or(time);
    if (1950..2050).contains(&time.year()) {
        writer.write_utctime(&UTCTime::from_datetime(time));
    } else {
        writer.write_generalized_time(&GeneralizedTime::from_datetime(time));
    }
}

fn key_id<'a>(ca: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    ca.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
        _ => None,
    })
}

/// The names the request asks for, as they stand in it.
fn alternative_names(request: &X509CertificationRequest<'_>) -> Option<Vec<u8>> {
    let attribute = request.certification_request_info.iter_attributes().find_map(|attribute| {
        match attribute.parsed_attribute() {
            x509_parser::cri_attributes::ParsedCriAttribute::ExtensionRequest(requested) => Some(requested),
            _ => None,
        }
    })?;
    let names = attribute.extensions.iter().find(|extension| extension.oid == OID_X509_EXT_SUBJECT_ALT_NAME)?;
    Some(names.value.to_vec())
}

fn pem(der: &[u8]) -> String {
    use base64::Engine;

    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: String =
        text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned() + "\n").collect();
    format!("-----BEGIN CERTIFICATE-----\n{lines}-----END CERTIFICATE-----\n")
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, SanType};
    use x509_parser::extensions::GeneralName;

    use super::super::Pki;
    use super::*;

    const DAY: std::time::Duration = std::time::Duration::from_secs(86_400);

    fn names(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn request() -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "dev");
        params.distinguished_name.push(DnType::CommonName, "jane");
        params.subject_alt_names = vec![SanType::DnsName("edge.example".try_into().unwrap())];
        let key = KeyPair::generate().unwrap();
        params.serialize_request(&key).unwrap().der().to_vec()
    }

    #[test]
    fn a_certificate_says_what_was_asked_and_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::ensure(dir.path()).unwrap();
        let now = OffsetDateTime::now_utc();
        let usages = names(&["digital signature", "key encipherment", "decipher only", "client auth", "s/mime"]);
        let signed = sign(&pki.client_ca, &request(), &usages, DAY, now).unwrap();
        let der = first_der(&signed).unwrap();
        let (rest, cert) = X509Certificate::from_der(&der).unwrap();
        assert!(rest.is_empty());
        let ca = first_der(pki.client_ca.cert_pem()).unwrap();
        let (_, ca) = X509Certificate::from_der(&ca).unwrap();
        cert.verify_signature(Some(ca.public_key())).unwrap();
        assert_eq!(
            (cert.subject().to_string(), cert.issuer().as_raw()),
            ("O=dev, CN=jane".to_owned(), ca.subject().as_raw())
        );
        assert_eq!(cert.validity().not_after.timestamp(), now.unix_timestamp() + 86_400);
        let key_usage = cert.key_usage().unwrap().unwrap().value;
        assert!(key_usage.digital_signature() && key_usage.key_encipherment() && key_usage.decipher_only());
        assert!(!key_usage.key_cert_sign() && !cert.is_ca());
        let extended = cert.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.client_auth && extended.email_protection && !extended.server_auth);
        let alternative = cert.subject_alternative_name().unwrap().unwrap().value;
        assert_eq!(alternative.general_names, [GeneralName::DNSName("edge.example")]);
    }

    #[test]
    fn it_ends_with_its_authority() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::ensure(dir.path()).unwrap();
        let now = OffsetDateTime::now_utc();
        let ends = |lifetime, at| {
            let signed = sign(&pki.client_ca, &request(), &names(&["client auth"]), lifetime, at)?;
            let der = first_der(&signed).unwrap();
            Ok::<_, RequestError>(X509Certificate::from_der(&der).unwrap().1.validity().not_after.to_datetime())
        };
        assert!(ends(DAY * 365_000, now).unwrap() < now + Duration::days(3651));
        assert!(matches!(ends(DAY, now + Duration::days(4000)), Err(RequestError::Expired)));
    }

    #[test]
    fn what_does_not_hold_is_not_signed() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::ensure(dir.path()).unwrap();
        let now = OffsetDateTime::now_utc();
        let try_it = |request: &[u8], usage| sign(&pki.client_ca, request, &names(&[usage]), DAY, now);
        assert!(matches!(try_it(b"no", "client auth"), Err(RequestError::Unreadable)));
        let mut altered = request();
        let at = altered.windows(4).position(|window| window == b"jane").unwrap();
        altered[at] = b'k';
        assert!(matches!(try_it(&altered, "client auth"), Err(RequestError::NotTheirs)));
        assert!(matches!(try_it(&request(), "flying"), Err(RequestError::Usage(_))));
    }
}
