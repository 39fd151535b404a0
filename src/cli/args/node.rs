//! What every node takes, and what an agent takes besides.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;

use super::accepted::NodeAccepted;
use super::values::{Taint, label, taint};
use super::{DEFAULT_CONFIG, LocalArgs};

#[derive(Debug, Clone, Args)]
pub struct AgentArgs {
    #[command(flatten)]
    pub node: NodeArgs,

    /// Any server of the cluster, such as https://first:6443, or a balancer or DNS name before them
    #[arg(short, long, env = "MUSSEL_URL", value_name = "URL", help_heading = "Cluster")]
    pub server: String,
    /// Port on 127.0.0.1 where this machine reaches the API, whichever servers live
    #[arg(long, env = "MUSSEL_LB_SERVER_PORT", default_value_t = 6444, value_name = "PORT", help_heading = "Cluster")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub lb_server_port: u16,
}

/// What every node takes, on a server or alone.
#[derive(Debug, Clone, Args)]
pub struct NodeArgs {
    /// Config file
    #[arg(short, long, env = "MUSSEL_CONFIG", default_value = DEFAULT_CONFIG, value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub local: LocalArgs,

    /// Address that the API (on a server) and the kubelet listen on
    #[arg(long, env = "MUSSEL_BIND_ADDRESS", default_value = "0.0.0.0", value_name = "IP", help_heading = "Listener")]
    pub bind_address: IpAddr,
    /// Secret to join with (on a first server: to be joined with; default: random, kept in <data-dir>/server/token)
    #[arg(short, long, env = "MUSSEL_TOKEN", hide_env_values = true, value_name = "TOKEN", help_heading = "Cluster")]
    pub token: Option<String>,
    /// File that holds the token
    #[arg(long, env = "MUSSEL_TOKEN_FILE", value_name = "FILE", conflicts_with = "token", help_heading = "Cluster")]
    pub token_file: Option<PathBuf>,

    /// Name of the node (default: the host's name)
    #[arg(long, env = "MUSSEL_NODE_NAME", value_name = "NAME", help_heading = "Node")]
    pub node_name: Option<String>,
    /// Address of the node (default: that of the default route's interface)
    #[arg(short = 'i', long, env = "MUSSEL_NODE_IP", value_name = "IP", help_heading = "Node")]
    pub node_ip: Option<IpAddr>,
    /// Address by which machines outside this one's network reach the node
    #[arg(long, env = "MUSSEL_NODE_EXTERNAL_IP", value_name = "IP", help_heading = "Node")]
    pub node_external_ip: Option<IpAddr>,
    /// Interface that carries pods' packets to other nodes (default: that of the node's address)
    #[arg(long, env = "MUSSEL_FLANNEL_IFACE", value_name = "INTERFACE", help_heading = "Node")]
    pub flannel_iface: Option<String>,
    /// Labels the node registers with
    #[arg(long, env = "MUSSEL_NODE_LABEL", value_delimiter = ',', value_parser = label, value_name = "KEY=VALUE")]
    #[arg(help_heading = "Node")]
    pub node_label: Vec<(String, String)>,
    /// Taints the node registers with
    #[arg(long, env = "MUSSEL_NODE_TAINT", value_delimiter = ',', value_parser = taint, value_name = "KEY=VALUE:EFFECT")]
    #[arg(help_heading = "Node")]
    pub node_taint: Vec<Taint>,
    /// Socket of another container runtime, such as containerd's
    #[arg(long, env = "MUSSEL_CONTAINER_RUNTIME_ENDPOINT", value_name = "SOCKET", help_heading = "Node")]
    pub container_runtime_endpoint: Option<String>,
    /// Registry mirrors and credentials
    #[arg(long, env = "MUSSEL_PRIVATE_REGISTRY", default_value = "/etc/mussel/registries.yaml", value_name = "FILE")]
    #[arg(help_heading = "Node")]
    pub private_registry: PathBuf,
    /// resolv.conf that pods and the cluster DNS build on (default: the host's)
    #[arg(long, env = "MUSSEL_RESOLV_CONF", value_name = "FILE", help_heading = "Node")]
    pub resolv_conf: Option<PathBuf>,
    /// Hand KEY=VALUE to the kubelet, such as max-pods=250; may be repeated
    #[arg(long, env = "MUSSEL_KUBELET_ARG", value_name = "KEY=VALUE", help_heading = "Node")]
    pub kubelet_arg: Vec<String>,
    /// Hand KEY=VALUE to the Service proxy; may be repeated
    #[arg(long, env = "MUSSEL_KUBE_PROXY_ARG", value_name = "KEY=VALUE", help_heading = "Node")]
    pub kube_proxy_arg: Vec<String>,
    /// Append an id that is this machine's to the node's name
    #[arg(long, env = "MUSSEL_WITH_NODE_ID", num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    #[arg(help_heading = "Node")]
    pub with_node_id: bool,
    /// Password that this node's name is tied to
    #[arg(long, env = "MUSSEL_NODE_PASSWORD_FILE", default_value = "/etc/mussel/node/password", value_name = "FILE")]
    #[arg(help_heading = "Node")]
    pub node_password_file: PathBuf,

    #[command(flatten)]
    pub accepted: NodeAccepted,
}
