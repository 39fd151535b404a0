//! Service account tokens: JSON Web Tokens signed and verified with the cluster's service account keys.
//!
//! Only the cryptography, the registered claims and the time bounds are checked here. Whether the service account and the
//! object a token is bound to still exist is for the authenticator, which has the store.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, KeyPair, RsaKeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

/// Longer tokens are refused before anything is decoded.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// How far another machine's clock may be off.
const LEEWAY_SECONDS: i64 = 10;

/// The claims of a service account token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Claims {
    #[serde(default, deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub aud: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exp: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iat: Option<i64>,
    #[serde(default)]
    pub iss: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jti: Option<String>,
    #[serde(rename = "kubernetes.io", default)]
    pub kubernetes: KubernetesClaims,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<i64>,
    #[serde(default)]
    pub sub: String,
}

/// The private claims under `kubernetes.io`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KubernetesClaims {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    #[serde(default)]
    pub serviceaccount: Reference,
    /// When clients of an extended token should have refreshed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

/// A named object of a known kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    #[serde(default)]
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("service account key is not PEM")]
    Pem(#[source] rustls::pki_types::pem::Error),
    #[error("service account key is not a usable ECDSA P-256 or RSA key")]
    Unsupported,
}

#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("token is not a signed JSON Web Token")]
    Malformed,
    /// Another issuer's token: not ours to judge.
    #[error("token is of another issuer")]
    OtherIssuer,
    #[error("no key verifies the signature of the token")]
    BadSignature,
    #[error("service account token has expired")]
    Expired,
    #[error("service account token is not valid yet")]
    NotYetValid,
    #[error("service account token cannot be signed")]
    Sign,
}

enum Signer {
    Ecdsa(Box<EcdsaKeyPair>),
    Rsa(Box<RsaKeyPair>),
}

/// A public key, as the bytes ring verifies with.
#[derive(Clone, PartialEq)]
enum Verifier {
    /// The uncompressed point.
    Ecdsa(Vec<u8>),
    /// DER of `RSAPublicKey`.
    Rsa(Vec<u8>),
}

/// Signs with the newest key and verifies with every known one.
pub struct Tokens {
    issuer: String,
    signer: Signer,
    kid: String,
    verifiers: Vec<(String, Verifier)>,
    random: SystemRandom,
}

impl Tokens {
    /// `private_pem` signs (PKCS#8 ECDSA P-256, or RSA in PKCS#8 or PKCS#1).
    ///
    /// # Errors
    /// When the key is not PEM or of another type.
    pub fn new(issuer: impl Into<String>, private_pem: &[u8]) -> Result<Self, KeyError> {
        let random = SystemRandom::new();
        let signer = signer(private_pem, &random)?;
        let verifier = match &signer {
            Signer::Ecdsa(key) => Verifier::Ecdsa(key.public_key().as_ref().to_vec()),
            Signer::Rsa(key) => Verifier::Rsa(key.public_key().as_ref().to_vec()),
        };
        let kid = verifier.key_id();
        Ok(Self { issuer: issuer.into(), signer, kid: kid.clone(), verifiers: vec![(kid, verifier)], random })
    }

    /// Also accepts tokens signed by this public key (`PUBLIC KEY`) or the public half of this private one.
    ///
    /// # Errors
    /// When the key is not PEM or of another type.
    pub fn also_trust(&mut self, pem: &[u8]) -> Result<(), KeyError> {
        let verifier = match SubjectPublicKeyInfoDer::from_pem_slice(pem) {
            Ok(spki) => verifier_from_spki(&spki)?,
            Err(_) => match signer(pem, &self.random)? {
                Signer::Ecdsa(key) => Verifier::Ecdsa(key.public_key().as_ref().to_vec()),
                Signer::Rsa(key) => Verifier::Rsa(key.public_key().as_ref().to_vec()),
            },
        };
        if !self.verifiers.iter().any(|(_, known)| *known == verifier) {
            self.verifiers.push((verifier.key_id(), verifier));
        }
        Ok(())
    }

    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Signs `claims` under our issuer, whatever `iss` they carry.
    ///
    /// # Errors
    /// When the key refuses, which ring does for lack of randomness only.
    pub fn sign(&self, mut claims: Claims) -> Result<String, TokenError> {
        claims.iss.clone_from(&self.issuer);
        let alg = match self.signer {
            Signer::Ecdsa(_) => "ES256",
            Signer::Rsa(_) => "RS256",
        };
        let header = json!({"alg": alg, "kid": self.kid});
        let body = serde_json::to_vec(&claims).map_err(|_| TokenError::Sign)?;
        let mut token = URL_SAFE_NO_PAD.encode(header.to_string());
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(body));
        let signature = match &self.signer {
            Signer::Ecdsa(key) => {
                key.sign(&self.random, token.as_bytes()).map_err(|_| TokenError::Sign)?.as_ref().to_vec()
            }
            Signer::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&signature::RSA_PKCS1_SHA256, &self.random, token.as_bytes(), &mut signature)
                    .map_err(|_| TokenError::Sign)?;
                signature
            }
        };
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(signature));
        Ok(token)
    }

    /// The claims of a token of ours that is valid at `now`.
    ///
    /// # Errors
    /// `OtherIssuer` and `Malformed` mean that another authenticator may know the token; the rest that it is bad.
    pub fn verify(&self, token: &str, now: jiff::Timestamp) -> Result<Claims, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, body) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed);
        let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| TokenError::Malformed)?;
        let claims: Claims = serde_json::from_slice(&decode(body)?).map_err(|_| TokenError::Malformed)?;
        let signature = decode(signature)?;
        if claims.iss != self.issuer {
            return Err(TokenError::OtherIssuer);
        }
        let known = |kid: &String| header.kid.is_empty() || *kid == header.kid;
        let good = self
            .verifiers
            .iter()
            .filter(|(kid, _)| known(kid))
            .any(|(_, key)| key.verifies(&header.alg, signed.as_bytes(), &signature));
        if !good {
            return Err(TokenError::BadSignature);
        }
        let now = now.as_second();
        if claims.exp.is_some_and(|exp| now > exp.saturating_add(LEEWAY_SECONDS)) {
            return Err(TokenError::Expired);
        }
        if claims.nbf.or(claims.iat).is_some_and(|nbf| now < nbf.saturating_sub(LEEWAY_SECONDS)) {
            return Err(TokenError::NotYetValid);
        }
        Ok(claims)
    }

    /// The JSON Web Key Set of all trusted keys, as served at `/openid/v1/jwks`.
    pub fn jwks(&self) -> serde_json::Value {
        let keys: Vec<_> = self.verifiers.iter().filter_map(|(kid, key)| key.jwk(kid)).collect();
        json!({ "keys": keys })
    }

    /// The signature algorithms of all trusted keys, for the OpenID configuration.
    pub fn algorithms(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.verifiers.iter().map(|(_, key)| key.algorithm()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
}

impl Verifier {
    fn algorithm(&self) -> &'static str {
        match self {
            Self::Ecdsa(_) => "ES256",
            Self::Rsa(_) => "RS256",
        }
    }

    /// The algorithm is the key's, never the token's: a token that names another one is bad.
    fn verifies(&self, alg: &str, signed: &[u8], signature: &[u8]) -> bool {
        if alg != self.algorithm() {
            return false;
        }
        let verified =
            match self {
                Self::Ecdsa(point) => signature::UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point)
                    .verify(signed, signature),
                Self::Rsa(der) => signature::UnparsedPublicKey::new(&signature::RSA_PKCS1_2048_8192_SHA256, der)
                    .verify(signed, signature),
            };
        verified.is_ok()
    }

    /// As upstream: the hash of the key in its `SubjectPublicKeyInfo` form.
    fn key_id(&self) -> String {
        URL_SAFE_NO_PAD.encode(Sha256::digest(self.spki()))
    }

    fn spki(&self) -> Vec<u8> {
        const EC_P256: &[u8] = &[
            0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d,
            0x03, 0x01, 0x07,
        ];
        const RSA: &[u8] = &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
        let (algorithm, key) = match self {
            Self::Ecdsa(point) => (EC_P256, point),
            Self::Rsa(der) => (RSA, der),
        };
        let mut bits = vec![0];
        bits.extend_from_slice(key);
        let mut body = algorithm.to_vec();
        body.extend(der(0x03, &bits));
        der(0x30, &body)
    }

    fn jwk(&self, kid: &str) -> Option<serde_json::Value> {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        Some(match self {
            Self::Ecdsa(point) => {
                let (x, y) = point.get(1..65)?.split_at(32);
                json!({"use": "sig", "kty": "EC", "kid": kid, "crv": "P-256", "alg": "ES256", "x": encode(x), "y": encode(y)})
            }
            Self::Rsa(der) => {
                let key = x509_parser::public_key::PublicKey::RSA(rsa_numbers(der)?);
                let x509_parser::public_key::PublicKey::RSA(key) = key else { return None };
                let n = key.modulus.strip_prefix(&[0]).unwrap_or(key.modulus);
                json!({"use": "sig", "kty": "RSA", "kid": kid, "alg": "RS256", "n": encode(n), "e": encode(key.exponent)})
            }
        })
    }
}

fn signer(pem: &[u8], random: &SystemRandom) -> Result<Signer, KeyError> {
    match PrivateKeyDer::from_pem_slice(pem).map_err(KeyError::Pem)? {
        PrivateKeyDer::Pkcs8(der) => {
            let der = der.secret_pkcs8_der();
            EcdsaKeyPair::from_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, der, random)
                .map(|key| Signer::Ecdsa(Box::new(key)))
                .or_else(|_| RsaKeyPair::from_pkcs8(der).map(|key| Signer::Rsa(Box::new(key))))
                .map_err(|_| KeyError::Unsupported)
        }
        PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der())
            .map(|key| Signer::Rsa(Box::new(key)))
            .map_err(|_| KeyError::Unsupported),
        _ => Err(KeyError::Unsupported),
    }
}

fn verifier_from_spki(spki: &[u8]) -> Result<Verifier, KeyError> {
    use x509_parser::prelude::FromDer;
    let (_, info) = x509_parser::x509::SubjectPublicKeyInfo::from_der(spki).map_err(|_| KeyError::Unsupported)?;
    let key = info.subject_public_key.data.to_vec();
    match info.parsed() {
        Ok(x509_parser::public_key::PublicKey::EC(_)) if key.len() == 65 => Ok(Verifier::Ecdsa(key)),
        Ok(x509_parser::public_key::PublicKey::RSA(_)) => Ok(Verifier::Rsa(key)),
        _ => Err(KeyError::Unsupported),
    }
}

/// Reads `RSAPublicKey ::= SEQUENCE { modulus INTEGER, publicExponent INTEGER }`.
fn rsa_numbers(der: &[u8]) -> Option<x509_parser::public_key::RSAPublicKey<'_>> {
    let (tag, body, _) = read_der(der)?;
    let (first, modulus, rest) = read_der(body)?;
    let (second, exponent, _) = read_der(rest)?;
    (tag == 0x30 && first == 0x02 && second == 0x02)
        .then_some(x509_parser::public_key::RSAPublicKey { modulus, exponent })
}

fn read_der(input: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = input.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let count = usize::from(first & 0x7f);
        if count > 3 || rest.len() < count {
            return None;
        }
        let (digits, rest) = rest.split_at(count);
        (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
    };
    (rest.len() >= length).then(|| (tag, &rest[..length], &rest[length..]))
}

fn der(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let length = body.len();
    if length < 0x80 {
        out.push(length.to_le_bytes()[0]);
    } else {
        let bytes = length.to_be_bytes();
        let digits = &bytes[bytes.iter().position(|digit| *digit != 0).unwrap_or(bytes.len() - 1)..];
        out.push(0x80 | digits.len().to_le_bytes()[0]);
        out.extend_from_slice(digits);
    }
    out.extend_from_slice(body);
    out
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Audience {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Audience::deserialize(deserializer)? {
        Audience::One(one) => vec![one],
        Audience::Many(many) => many,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fresh ECDSA key in PEM.
    fn key() -> Vec<u8> {
        let pkcs8 =
            EcdsaKeyPair::generate_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
        let body = base64::engine::general_purpose::STANDARD.encode(pkcs8.as_ref());
        format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n").into_bytes()
    }

    fn claims(exp: i64) -> Claims {
        Claims { aud: vec!["api".into()], exp: Some(exp), sub: "system:serviceaccount:a:b".into(), ..Claims::default() }
    }

    fn at(second: i64) -> jiff::Timestamp {
        jiff::Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_signed_token_verifies_until_it_expires() {
        let keys = Tokens::new("iss", &key()).unwrap();
        let token = keys.sign(claims(1000)).unwrap();
        assert_eq!(keys.verify(&token, at(900)).unwrap().sub, "system:serviceaccount:a:b");
        assert!(matches!(keys.verify(&token, at(1011)), Err(TokenError::Expired)));
    }

    #[test]
    fn a_changed_or_foreign_token_is_refused() {
        let keys = Tokens::new("iss", &key()).unwrap();
        let other = Tokens::new("iss", &key()).unwrap();
        let elsewhere = Tokens::new("other", &key()).unwrap();
        let token = keys.sign(claims(1000)).unwrap();
        assert!(matches!(other.verify(&token, at(0)), Err(TokenError::BadSignature)));
        assert!(matches!(elsewhere.verify(&token, at(0)), Err(TokenError::OtherIssuer)));
        assert!(matches!(keys.verify("a.b.c", at(0)), Err(TokenError::Malformed)));
        let mut parts: Vec<&str> = token.split('.').collect();
        let forged = URL_SAFE_NO_PAD.encode(r#"{"iss":"iss","sub":"root"}"#);
        parts[1] = &forged;
        assert!(matches!(keys.verify(&parts.join("."), at(0)), Err(TokenError::BadSignature)));
    }

    #[test]
    fn an_older_key_stays_trusted_by_its_key_id() {
        let old_pem = key();
        let old = Tokens::new("iss", &old_pem).unwrap();
        let mut keys = Tokens::new("iss", &key()).unwrap();
        keys.also_trust(&old_pem).unwrap();
        assert!(keys.verify(&old.sign(claims(1000)).unwrap(), at(0)).is_ok());
        assert_eq!(keys.jwks()["keys"].as_array().unwrap().len(), 2);
        assert_eq!(keys.algorithms(), ["ES256"]);
    }
}
