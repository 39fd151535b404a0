//! What nodes tell each other on their Node objects: flannel's annotations, with flannel's meanings.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Node;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::backend::Backend;
use crate::cidr::Cidr;
use crate::mac::Mac;

const BACKEND_TYPE: &str = "flannel.alpha.coreos.com/backend-type";
const BACKEND_DATA: &str = "flannel.alpha.coreos.com/backend-data";
const PUBLIC_IP: &str = "flannel.alpha.coreos.com/public-ip";
/// Wins over `public-ip`: the address that others see of a node behind a translation of addresses. People set it too.
const PUBLIC_IP_OVERWRITE: &str = "flannel.alpha.coreos.com/public-ip-overwrite";
const SUBNET_MANAGER: &str = "flannel.alpha.coreos.com/kube-subnet-manager";

/// A node has one range for each address family.
const POD_CIDRS_MAX: usize = 2;

/// Where the pods of one node are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub node: String,
    pub pod_cidrs: Vec<Cidr>,
    pub public_ip: IpAddr,
    /// As the node spells it: a newer node may have one that we do not know.
    pub backend: String,
    pub vtep_mac: Option<Mac>,
}

#[derive(Deserialize)]
struct BackendData {
    #[serde(rename = "VtepMAC")]
    vtep_mac: Mac,
}

impl Lease {
    /// `None` while the node has no range yet, or says nothing of how to reach it.
    pub fn of(node: &Node) -> Option<Self> {
        let annotations = node.metadata.annotations.as_ref()?;
        let public_ip = [PUBLIC_IP_OVERWRITE, PUBLIC_IP].iter().find_map(|key| annotations.get(*key)?.parse().ok())?;
        let data = annotations.get(BACKEND_DATA).map(String::as_str).unwrap_or_default();
        Some(Self {
            node: node.metadata.name.clone()?,
            pod_cidrs: Some(pod_cidrs(node)).filter(|cidrs| !cidrs.is_empty())?,
            public_ip,
            backend: annotations.get(BACKEND_TYPE)?.clone(),
            vtep_mac: serde_json::from_str(data).ok().map(|data: BackendData| data.vtep_mac),
        })
    }
}

pub fn pod_cidrs(node: &Node) -> Vec<Cidr> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let all = spec.pod_cidrs.iter().flatten().chain(spec.pod_cidr.iter().filter(|_| spec.pod_cidrs.is_none()));
    all.filter_map(|cidr| cidr.parse().ok()).take(POD_CIDRS_MAX).collect()
}

/// The annotations by which this node is found.
pub fn announcement(
    backend: Backend,
    vni: u32,
    vtep_mac: Mac,
    public_ip: IpAddr,
    external_ip: Option<IpAddr>,
) -> BTreeMap<String, String> {
    let data = match backend {
        Backend::Vxlan => json!({"VNI": vni, "VtepMAC": vtep_mac}).to_string(),
        Backend::HostGw => "null".to_owned(),
        Backend::None => return BTreeMap::new(),
    };
    let mut annotations = BTreeMap::from([
        (BACKEND_TYPE.to_owned(), backend.as_str().to_owned()),
        (BACKEND_DATA.to_owned(), data),
        (PUBLIC_IP.to_owned(), public_ip.to_string()),
        (SUBNET_MANAGER.to_owned(), "true".to_owned()),
    ]);
    if let Some(ip) = external_ip {
        annotations.insert(PUBLIC_IP_OVERWRITE.to_owned(), ip.to_string());
    }
    annotations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(spec: serde_json::Value, annotations: BTreeMap<String, String>) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "b", "annotations": annotations}, "spec": spec})).unwrap()
    }

    #[test]
    fn what_is_announced_is_understood() {
        let mac = Mac::derived("b");
        let said = announcement(Backend::Vxlan, 1, mac, "192.0.2.2".parse().unwrap(), None);
        assert_eq!(said[BACKEND_DATA], format!("{{\"VNI\":1,\"VtepMAC\":\"{mac}\"}}"));
        let lease = Lease::of(&node(json!({"podCIDR": "10.42.1.0/24", "podCIDRs": ["10.42.1.0/24"]}), said)).unwrap();
        assert_eq!(
            lease,
            Lease {
                node: "b".into(),
                pod_cidrs: vec!["10.42.1.0/24".parse().unwrap()],
                public_ip: "192.0.2.2".parse().unwrap(),
                backend: "vxlan".into(),
                vtep_mac: Some(mac),
            }
        );
    }

    #[test]
    fn an_overwritten_address_wins_and_half_a_lease_is_none() {
        let external: IpAddr = "198.51.100.7".parse().unwrap();
        let said = announcement(Backend::HostGw, 1, Mac::derived("b"), "192.0.2.2".parse().unwrap(), Some(external));
        let lease = Lease::of(&node(json!({"podCIDR": "10.42.1.0/24"}), said.clone())).unwrap();
        assert_eq!((lease.public_ip, lease.vtep_mac), (external, None));
        assert_eq!(Lease::of(&node(json!({}), said)), None, "no range yet");
        assert_eq!(Lease::of(&node(json!({"podCIDR": "10.42.1.0/24"}), BTreeMap::new())), None, "says nothing");
    }
}
