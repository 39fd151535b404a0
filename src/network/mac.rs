//! Hardware addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a hardware address such as 0a:58:0a:2a:00:01")]
pub struct MacError(String);

impl Mac {
    /// A unicast address, locally administered, that is always the same for the same text.
    pub fn derived(text: &str) -> Self {
        let digest = Sha256::digest(text.as_bytes());
        let mut bytes = [0; 6];
        bytes.iter_mut().zip(digest.iter()).for_each(|(byte, hash)| *byte = *hash);
        bytes[0] = bytes[0] & 0xfc | 0x02;
        Self(bytes)
    }

    /// Of one interface, and not of none (all zeros) or of many.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let parse = || {
            let mut bytes = [0; 6];
            let mut parts = text.split(':');
            for byte in &mut bytes {
                let part = parts.next().filter(|part| part.len() == 2)?;
                *byte = u8::from_str_radix(part, 16).ok()?;
            }
            parts.next().is_none().then_some(Self(bytes))
        };
        parse().ok_or_else(|| MacError(text.chars().take(64).collect()))
    }
}

impl TryFrom<String> for Mac {
    type Error = MacError;

    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_made() {
        let mac: Mac = "0A:58:0a:2a:00:01".parse().unwrap();
        assert_eq!(mac.to_string(), "0a:58:0a:2a:00:01");
        for wrong in ["", "0a:58:0a:2a:00", "0a:58:0a:2a:00:01:02", "0a:58:0a:2a:00:g1", "a:58:0a:2a:00:01:"] {
            assert!(wrong.parse::<Mac>().is_err(), "{wrong}");
        }
        let made = Mac::derived("edge-1");
        assert_eq!(made, Mac::derived("edge-1"));
        assert_ne!(made, Mac::derived("edge-2"));
        assert!(made.is_unicast() && made.0[0] & 2 == 2);
        assert!(!Mac([0; 6]).is_unicast() && !Mac([0xff; 6]).is_unicast());
    }
}
