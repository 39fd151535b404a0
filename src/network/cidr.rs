//! Networks in CIDR notation, of either family.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A network; the host bits of `address` are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a network such as 10.42.0.0/24")]
pub struct CidrError(String);

impl Cidr {
    pub fn address(&self) -> IpAddr {
        self.address
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The address `offset` after the network's own; `None` outside the network.
    pub fn nth(&self, offset: u128) -> Option<IpAddr> {
        if self.host_bits() < 128 && offset >> self.host_bits() != 0 {
            return None;
        }
        Some(match self.address {
            IpAddr::V4(base) => IpAddr::V4(Ipv4Addr::from(u32::from(base) | u32::try_from(offset).ok()?)),
            IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from(u128::from(base) | offset)),
        })
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        masked(address, self.prefix) == Some(self.address)
    }

    /// Whether the two have an address in common.
    pub fn overlaps(&self, other: Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }

    /// The address that the node itself has in this network: the first.
    pub fn gateway(&self) -> Option<IpAddr> {
        self.nth(1)
    }

    /// The addresses that pods may get: all but the network's, the gateway's and the last (IPv4 broadcast).
    pub fn pod_addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let this = *self;
        let count = 1_u128.checked_shl(this.host_bits()).unwrap_or(u128::MAX);
        (2..count.saturating_sub(1)).map_while(move |offset| this.nth(offset))
    }

    fn host_bits(&self) -> u32 {
        let bits = if self.address.is_ipv4() { 32 } else { 128 };
        bits - u32::from(self.prefix)
    }
}

fn masked(address: IpAddr, prefix: u8) -> Option<IpAddr> {
    Some(match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32_u32.checked_sub(u32::from(prefix))?).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from(u32::from(v4) & mask))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128_u32.checked_sub(u32::from(prefix))?).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(v6) & mask))
        }
    })
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let parse = || {
            let (address, prefix) = text.split_once('/')?;
            let prefix = prefix.parse().ok()?;
            Some(Self { address: masked(address.parse().ok()?, prefix)?, prefix })
        };
        parse().ok_or_else(|| CidrError(text.to_owned()))
    }
}

impl TryFrom<String> for Cidr {
    type Error = CidrError;

    fn try_from(text: String) -> Result<Self, CidrError> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_of_both_families() {
        let v4: Cidr = "10.42.3.9/24".parse().unwrap();
        assert_eq!(v4.to_string(), "10.42.3.0/24");
        assert_eq!(v4.gateway(), Some("10.42.3.1".parse().unwrap()));
        assert!(v4.contains("10.42.3.255".parse().unwrap()) && !v4.contains("10.42.4.0".parse().unwrap()));
        assert_eq!(v4.nth(256), None);
        let other = |text: &str| v4.overlaps(text.parse().unwrap());
        assert!(other("10.42.3.128/25") && other("10.0.0.0/8") && !other("10.42.2.0/24") && !other("::/0"));
        let pods: Vec<_> = v4.pod_addresses().collect();
        assert_eq!((pods.len(), pods[0]), (253, "10.42.3.2".parse().unwrap()));
        let v6: Cidr = "fd00:42::/64".parse().unwrap();
        assert_eq!(v6.nth(7), Some("fd00:42::7".parse().unwrap()));
        assert!(!v6.contains("10.42.3.1".parse().unwrap()));
        for wrong in ["10.42.0.0", "10.42.0.0/33", "x/8", "10.42.0.0/-1"] {
            assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
        }
    }
}
