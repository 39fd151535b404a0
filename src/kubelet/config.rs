//! What a kubelet must be told before it can run.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Taint;
use mussel_client::Informers;
use rustls::server::ResolvesServerCert;

use crate::cri::Cri;
use crate::tuning::Tuning;

/// Every setting has the meaning that upstream's kubelet configuration gives it.
pub struct Config {
    pub node_name: String,
    /// The addresses of this node, the primary one first. At least one.
    pub node_ips: Vec<IpAddr>,
    /// The addresses by which machines outside this node's network reach it.
    pub external_ips: Vec<IpAddr>,
    /// Set on the Node at registration, and kept.
    pub labels: BTreeMap<String, String>,
    /// As `labels`.
    pub annotations: BTreeMap<String, String>,
    /// Set on the Node at its first registration only.
    pub taints: Vec<Taint>,
    pub provider_id: Option<String>,
    /// Volumes, checkpoints and the hosts files of pods.
    pub root_dir: PathBuf,
    pub pod_logs_dir: PathBuf,
    /// Links to the logs of containers.
    pub container_logs_dir: PathBuf,
    /// Static pods: one manifest a file.
    pub pod_manifests_dir: PathBuf,
    /// Sockets and other state that ends with a reboot.
    pub run_dir: PathBuf,
    /// The cgroup under which `kubepods` lies; `/` is the root.
    pub cgroup_root: String,
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// The resolver configuration that pods with `dnsPolicy: Default` get.
    pub resolv_conf: PathBuf,
    pub tuning: Tuning,
    pub client: kube::Client,
    pub informers: Informers,
    pub cri: Cri,
    /// `None` serves nothing.
    pub server: Option<ServerConfig>,
}

/// The HTTPS server of the kubelet.
pub struct ServerConfig {
    pub listen: SocketAddr,
    /// Reloadable: asked at each handshake.
    pub certificate: Arc<dyn ResolvesServerCert>,
    /// PEM bundle of the CAs whose client certificates are believed.
    pub client_ca_pem: Vec<u8>,
}

impl Config {
    pub fn node_ip(&self) -> Option<IpAddr> {
        self.node_ips.first().copied()
    }

    /// Where a pod keeps its volumes and files.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root_dir.join("pods").join(uid)
    }
}
