//! What the API server is told at start.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::connect::KubeletDialer;
use crate::encryption::Vault;

/// Settings that hold for the life of the process. PEM fields hold file contents, not paths.
#[derive(Clone, Debug)]
pub struct Config {
    /// `cluster.local`
    pub cluster_domain: String,
    /// Addresses of Services; the first is that of `kubernetes.default`.
    pub service_cidr: Ipv4Cidr,
    pub node_port_range: RangeInclusive<u16>,
    /// Where other machines reach this server; becomes the endpoint of `kubernetes.default`.
    pub advertise_address: IpAddr,
    pub secure_port: u16,

    /// CAs that sign client certificates.
    pub client_ca_pem: Vec<u8>,
    /// CAs that sign the front proxy's certificate, and the common names accepted from them (empty: any).
    pub request_header_ca_pem: Option<Vec<u8>>,
    pub request_header_allowed_names: Vec<String>,
    /// The certificate, signed by those CAs, by which extension API servers know this one.
    pub proxy_client_cert_pem: Vec<u8>,
    pub proxy_client_key_pem: Vec<u8>,
    pub anonymous_auth: bool,

    /// PKCS#8 or SEC1/PKCS#1 private key that signs service account tokens.
    pub service_account_key_pem: Vec<u8>,
    /// More public keys that verify them (after a key change).
    pub service_account_verify_pems: Vec<Vec<u8>>,
    /// Further accepted issuers and audiences; the first ones are made of `cluster_domain`.
    pub api_audiences: Vec<String>,

    /// CA of the kubelets' serving certificates and the certificate this server shows to kubelets.
    pub kubelet_ca_pem: Vec<u8>,
    pub kubelet_client_cert_pem: Vec<u8>,
    pub kubelet_client_key_pem: Vec<u8>,
    /// A way to kubelets that cannot be reached by their address.
    pub kubelet_dialer: Option<Arc<dyn KubeletDialer>>,

    /// Serve `metrics.k8s.io`, measured by the kubelets.
    pub resource_metrics: bool,

    /// Keeps the keys that Secrets are encrypted with in the store; without one they are not.
    pub vault: Option<Arc<dyn Vault>>,
    /// Turn encryption on, if that was never decided.
    pub secrets_encryption: bool,

    /// Whether tokens that pods ask for outlive clients which never read them again.
    pub extend_tokens: bool,
    /// How long Pods that do not say so stay on a node that is not ready, and on one that is not reachable.
    pub not_ready_seconds: i64,
    pub unreachable_seconds: i64,
    pub event_ttl: Duration,

    /// Admission plugins to leave out, by name.
    pub disable_admission: Vec<String>,
    /// Requests of ordinary users worked on at the same time.
    pub mutating_in_flight_max: usize,
    pub read_only_in_flight_max: usize,
}

impl Config {
    /// `https://kubernetes.default.svc.<cluster-domain>`: issuer of service account tokens and their default audience.
    pub fn issuer(&self) -> String {
        format!("https://kubernetes.default.svc.{}", self.cluster_domain)
    }

    /// Audiences that a token must have one of to be a user of this API.
    pub fn audiences(&self) -> Vec<String> {
        std::iter::once(self.issuer()).chain(self.api_audiences.iter().cloned()).collect()
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cluster_domain: "cluster.local".to_owned(),
            service_cidr: Ipv4Cidr { address: Ipv4Addr::new(10, 43, 0, 0), prefix: 16 },
            node_port_range: 30000..=32767,
            advertise_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            secure_port: 6443,
            client_ca_pem: Vec::new(),
            request_header_ca_pem: None,
            request_header_allowed_names: Vec::new(),
            proxy_client_cert_pem: Vec::new(),
            proxy_client_key_pem: Vec::new(),
            anonymous_auth: true,
            service_account_key_pem: Vec::new(),
            service_account_verify_pems: Vec::new(),
            api_audiences: Vec::new(),
            kubelet_ca_pem: Vec::new(),
            kubelet_client_cert_pem: Vec::new(),
            kubelet_client_key_pem: Vec::new(),
            kubelet_dialer: None,
            resource_metrics: false,
            vault: None,
            secrets_encryption: false,
            extend_tokens: true,
            not_ready_seconds: 300,
            unreachable_seconds: 300,
            event_ttl: Duration::from_secs(3600),
            disable_admission: Vec::new(),
            mutating_in_flight_max: 200,
            read_only_in_flight_max: 400,
        }
    }
}

/// An IPv4 network; the host bits of `address` are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Cidr {
    pub address: Ipv4Addr,
    pub prefix: u8,
}

#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not an IPv4 network such as 10.43.0.0/16")]
pub struct CidrError(String);

impl Ipv4Cidr {
    /// The address `offset` after the network's own; `None` outside the network.
    pub fn nth(&self, offset: u32) -> Option<Ipv4Addr> {
        (u64::from(offset) < self.size()).then(|| Ipv4Addr::from(u32::from(self.address) + offset))
    }

    /// The inverse of [`Ipv4Cidr::nth`].
    pub fn offset(&self, address: Ipv4Addr) -> Option<u32> {
        let offset = u32::from(address).checked_sub(u32::from(self.address))?;
        (u64::from(offset) < self.size()).then_some(offset)
    }

    pub fn size(&self) -> u64 {
        1_u64 << (32 - u32::from(self.prefix))
    }
}

impl FromStr for Ipv4Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let fail = || CidrError(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(fail)?;
        let address: Ipv4Addr = address.parse().map_err(|_| fail())?;
        let prefix: u8 = prefix.parse().map_err(|_| fail())?;
        if prefix > 32 {
            return Err(fail());
        }
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        Ok(Self { address: Ipv4Addr::from(u32::from(address) & mask), prefix })
    }
}

impl std::fmt::Display for Ipv4Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_count_their_addresses() {
        let cidr: Ipv4Cidr = "10.43.3.7/16".parse().unwrap();
        assert_eq!(cidr.to_string(), "10.43.0.0/16");
        assert_eq!(cidr.nth(1).unwrap().to_string(), "10.43.0.1");
        assert_eq!(cidr.nth(65535).unwrap().to_string(), "10.43.255.255");
        assert_eq!(cidr.nth(65536), None);
        assert_eq!(cidr.offset("10.43.1.0".parse().unwrap()), Some(256));
        assert_eq!(cidr.offset("10.44.0.0".parse().unwrap()), None);
        assert!("10.43.0.0".parse::<Ipv4Cidr>().is_err() && "1.2.3.4/33".parse::<Ipv4Cidr>().is_err());
    }
}
