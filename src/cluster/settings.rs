//! What all machines of a cluster must agree on.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The settings that the first server chose for the cluster. Servers hand them to whoever joins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterSettings {
    /// Addresses of pods.
    pub cluster_cidr: String,
    /// Addresses of Services.
    pub service_cidr: String,
    pub cluster_dns: IpAddr,
    pub cluster_domain: String,
    /// From, to.
    pub service_node_port_range: (u16, u16),
    /// Each node answers the cluster DNS address itself.
    pub serve_dns: bool,
    /// How pods of different nodes reach each other.
    pub flannel_backend: String,
    /// Pods' packets travel between the nodes' external addresses.
    pub flannel_external_ip: bool,
    /// Services are somebody else's.
    #[serde(default)]
    pub disable_kube_proxy: bool,
    /// Network policies are somebody else's, or nobody's.
    #[serde(default)]
    pub disable_network_policy: bool,
    /// Services of type LoadBalancer are somebody else's. Whichever server leads decides, so all must agree.
    #[serde(default)]
    pub disable_service_lb: bool,
}

/// A setting in which a server differs from the cluster that it wants to join.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{flag} is {ours} here and {theirs} in the cluster")]
pub struct Difference {
    /// The flag that sets it.
    pub flag: &'static str,
    pub ours: String,
    pub theirs: String,
}

impl ClusterSettings {
    /// Where `self`, of a server that joins, is not what `cluster` has.
    pub fn differences(&self, cluster: &Self) -> Vec<Difference> {
        let range = |(first, last): (u16, u16)| format!("{first}-{last}");
        let dns = |serve: bool| if serve { "served" } else { "disabled" }.to_owned();
        let service_lb = |disabled: bool| if disabled { "disabled" } else { "enabled" }.to_owned();
        let rows = [
            ("--cluster-cidr", self.cluster_cidr.clone(), cluster.cluster_cidr.clone()),
            ("--service-cidr", self.service_cidr.clone(), cluster.service_cidr.clone()),
            ("--cluster-dns", self.cluster_dns.to_string(), cluster.cluster_dns.to_string()),
            ("--cluster-domain", self.cluster_domain.clone(), cluster.cluster_domain.clone()),
            ("--service-node-port-range", range(self.service_node_port_range), range(cluster.service_node_port_range)),
            ("--flannel-backend", self.flannel_backend.clone(), cluster.flannel_backend.clone()),
            ("--flannel-external-ip", self.flannel_external_ip.to_string(), cluster.flannel_external_ip.to_string()),
            ("--disable-kube-proxy", self.disable_kube_proxy.to_string(), cluster.disable_kube_proxy.to_string()),
            (
                "--disable-network-policy",
                self.disable_network_policy.to_string(),
                cluster.disable_network_policy.to_string(),
            ),
            ("--disable=servicelb", service_lb(self.disable_service_lb), service_lb(cluster.disable_service_lb)),
            ("--disable=coredns", dns(self.serve_dns), dns(cluster.serve_dns)),
        ];
        let differ = rows.into_iter().filter(|(_, ours, theirs)| ours != theirs);
        differ.map(|(flag, ours, theirs)| Difference { flag, ours, theirs }).collect()
    }
}

#[cfg(test)]
pub(crate) fn sample() -> ClusterSettings {
    ClusterSettings {
        cluster_cidr: "10.42.0.0/16".to_owned(),
        service_cidr: "10.43.0.0/16".to_owned(),
        cluster_dns: "10.43.0.10".parse().unwrap(),
        cluster_domain: "cluster.local".to_owned(),
        service_node_port_range: (30000, 32767),
        serve_dns: true,
        flannel_backend: "vxlan".to_owned(),
        flannel_external_ip: false,
        disable_kube_proxy: false,
        disable_network_policy: false,
        disable_service_lb: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_the_flag() {
        let cluster = sample();
        let ours = ClusterSettings { cluster_domain: "example.org".to_owned(), serve_dns: false, ..sample() };
        let texts: Vec<String> = ours.differences(&cluster).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "--cluster-domain is example.org here and cluster.local in the cluster",
                "--disable=coredns is disabled here and served in the cluster",
            ]
        );
        assert!(cluster.differences(&cluster).is_empty());
    }
}
