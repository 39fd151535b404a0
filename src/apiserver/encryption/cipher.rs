//! One value, encrypted: AES-256-GCM with a key of its own.
//!
//! Random nonces of 96 bits bound how often one key may be used (upstream's `aesgcm` asks for a new key every 200,000
//! writes). So each write has a key of its own, derived from the configured one and 32 random bytes that lie beside the
//! ciphertext: the "extended nonce" of upstream's KMS v2 (KEP-3299, kubernetes/kubernetes#118828). HKDF's extract step is
//! left out as there, the configured key being uniformly random. With 256 random bits per write, no number of writes that a
//! cluster can make brings two to the same key.
//!
//! The object's storage key is authenticated with it, so that a value that was put in another object's place does not open.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, MAX_TAG_LEN, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf;

/// Bytes of a key in the configuration.
pub const KEY_BYTES: usize = 32;
const INFO_BYTES: usize = 32;

/// A configured key.
pub struct Key(hkdf::Prk);

/// It does not open: another key, another object's, or altered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

impl Key {
    pub fn new(secret: &[u8; KEY_BYTES]) -> Self {
        Self(hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, secret))
    }

    /// Appends random bytes, ciphertext and tag to `out`.
    pub fn seal(&self, storage_key: &[u8], plain: &[u8], out: &mut Vec<u8>) -> Result<(), Broken> {
        let info: [u8; INFO_BYTES] = rand::random();
        let (key, nonce) = self.derive(&info)?;
        out.reserve(INFO_BYTES + plain.len() + MAX_TAG_LEN);
        out.extend_from_slice(&info);
        let start = out.len();
        out.extend_from_slice(plain);
        let (_, text) = out.split_at_mut(start);
        let tag = key.seal_in_place_separate_tag(nonce, Aad::from(storage_key), text).map_err(|_| Broken)?;
        out.extend_from_slice(tag.as_ref());
        Ok(())
    }

    pub fn open(&self, storage_key: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Broken> {
        let (info, sealed) = sealed.split_at_checked(INFO_BYTES).ok_or(Broken)?;
        let (key, nonce) = self.derive(info)?;
        let mut text = sealed.to_vec();
        let length = key.open_in_place(nonce, Aad::from(storage_key), &mut text).map_err(|_| Broken)?.len();
        text.truncate(length);
        Ok(text)
    }

    /// Key and nonce of one write. The nonce needs no randomness of its own, since its key is used once.
    fn derive(&self, info: &[u8]) -> Result<(LessSafeKey, Nonce), Broken> {
        let mut bytes = [0; KEY_BYTES + NONCE_LEN];
        self.0.expand(&[info], Length).and_then(|okm| okm.fill(&mut bytes)).map_err(|_| Broken)?;
        let (key, nonce) = bytes.split_at(KEY_BYTES);
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| Broken)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Broken)?;
        Ok((LessSafeKey::new(key), nonce))
    }
}

struct Length;

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        KEY_BYTES + NONCE_LEN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(key: &Key, name: &[u8], plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        key.seal(name, plain, &mut out).unwrap();
        out
    }

    #[test]
    fn it_opens_with_its_key_in_its_place_and_whole() {
        let (key, other) = (Key::new(&[1; KEY_BYTES]), Key::new(&[2; KEY_BYTES]));
        let text = sealed(&key, b"a", b"s3cret");
        assert_eq!(key.open(b"a", &text).unwrap(), b"s3cret");
        assert_eq!(key.open(b"b", &text), Err(Broken));
        assert_eq!(other.open(b"a", &text), Err(Broken));
        for at in 0..text.len() {
            let mut altered = text.clone();
            altered[at] ^= 1;
            assert_eq!(key.open(b"a", &altered), Err(Broken), "byte {at}");
            assert_eq!(key.open(b"a", &text[..at]), Err(Broken), "cut at {at}");
        }
    }

    #[test]
    fn equal_values_do_not_look_equal() {
        let key = Key::new(&[1; KEY_BYTES]);
        let (one, two) = (sealed(&key, b"a", b"same"), sealed(&key, b"a", b"same"));
        assert_ne!(one[..INFO_BYTES], two[..INFO_BYTES]);
        assert_ne!(one[INFO_BYTES..], two[INFO_BYTES..]);
    }
}
