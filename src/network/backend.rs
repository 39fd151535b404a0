//! How pods of different nodes reach each other: what `--flannel-backend` chooses, with flannel's names.

use std::net::IpAddr;
use std::str::FromStr;

/// VXLAN and the outer headers take this much of the uplink's MTU.
const VXLAN_OVER_V4: u32 = 50;
const VXLAN_OVER_V6: u32 = 70;
/// Less is not to be had: RFC 791 and, for IPv6, RFC 8200.
const MTU_MIN: u32 = 576;
/// Loopback's 65536 is of no use to a bridge.
const MTU_MAX: u32 = 9216;
const ETHERNET_MTU: u32 = 1500;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Backend {
    /// Packets to other nodes' pods travel in UDP, over any network that connects the nodes.
    #[default]
    Vxlan,
    /// Plain routes by way of the other node, which has to be on the same link.
    HostGw,
    /// Somebody else connects the nodes.
    None,
}

#[derive(Debug, thiserror::Error)]
#[error("{0:?} is none of vxlan, host-gw, none")]
pub struct BackendError(String);

impl Backend {
    /// As it stands in the annotation `backend-type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
            Self::None => "none",
        }
    }

    /// The MTU of pods whose node has an uplink with this MTU and address.
    pub fn pod_mtu(self, uplink_mtu: u32, uplink_ip: IpAddr) -> u32 {
        let mtu = if (MTU_MIN..=MTU_MAX).contains(&uplink_mtu) { uplink_mtu } else { ETHERNET_MTU };
        match self {
            Self::Vxlan => mtu - if uplink_ip.is_ipv4() { VXLAN_OVER_V4 } else { VXLAN_OVER_V6 },
            Self::HostGw | Self::None => mtu,
        }
    }
}

impl FromStr for Backend {
    type Err = BackendError;

    fn from_str(text: &str) -> Result<Self, BackendError> {
        [Self::Vxlan, Self::HostGw, Self::None]
            .into_iter()
            .find(|backend| backend.as_str() == text)
            .ok_or_else(|| BackendError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mtus_leave_room_for_the_tunnel() {
        let (v4, v6) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
        assert_eq!(Backend::Vxlan.pod_mtu(1500, v4), 1450);
        assert_eq!(Backend::Vxlan.pod_mtu(1500, v6), 1430);
        assert_eq!(Backend::Vxlan.pod_mtu(65_536, v4), 1450);
        assert_eq!(Backend::HostGw.pod_mtu(9000, v4), 9000);
        assert_eq!("host-gw".parse::<Backend>().unwrap(), Backend::HostGw);
        assert!("wireguard".parse::<Backend>().is_err());
    }
}
