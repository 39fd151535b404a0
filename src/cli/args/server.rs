//! What a server takes.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use mussel_network::backend::Backend;

use super::accepted::ServerAccepted;
use super::values::{PortRange, cidr_v4, octal, port_range};
use super::{DEFAULT_KUBECONFIG, NodeArgs};

/// Backups of the cluster's state, and what to do when it is lost.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Snapshots")]
pub struct BackupArgs {
    /// Forget all other servers and become a cluster of one, with this server's state; then exit
    #[arg(long, env = "MUSSEL_CLUSTER_RESET", num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    pub cluster_reset: bool,
    /// With --cluster-reset: take the state from this snapshot
    #[arg(long, env = "MUSSEL_CLUSTER_RESET_RESTORE_PATH", value_name = "FILE")]
    pub cluster_reset_restore_path: Option<PathBuf>,
    /// Take no snapshots by itself
    #[arg(long, env = "MUSSEL_ETCD_DISABLE_SNAPSHOTS", num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    pub etcd_disable_snapshots: bool,
    /// What names of scheduled snapshots begin with
    #[arg(long, env = "MUSSEL_ETCD_SNAPSHOT_NAME", default_value = "etcd-snapshot", value_name = "NAME")]
    pub etcd_snapshot_name: String,
    /// When they are taken, in the machine's time zone
    #[arg(long, env = "MUSSEL_ETCD_SNAPSHOT_SCHEDULE_CRON", default_value = "0 */12 * * *", value_name = "CRON")]
    pub etcd_snapshot_schedule_cron: String,
    /// How many scheduled snapshots are kept
    #[arg(long, env = "MUSSEL_ETCD_SNAPSHOT_RETENTION", default_value_t = 5, value_name = "COUNT")]
    pub etcd_snapshot_retention: usize,
    /// Where snapshots are; another folder than the default has to exist (default: <data-dir>/server/db-snapshots)
    #[arg(long, env = "MUSSEL_ETCD_SNAPSHOT_DIR", value_name = "DIR")]
    pub etcd_snapshot_dir: Option<PathBuf>,
    /// Taken for k3s' sake: snapshots are always compressed
    #[arg(long, env = "MUSSEL_ETCD_SNAPSHOT_COMPRESS", num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    pub etcd_snapshot_compress: bool,
}

#[derive(Debug, Clone, Args)]
pub struct ServerArgs {
    #[command(flatten)]
    pub node: NodeArgs,
    #[command(flatten)]
    pub backup: BackupArgs,

    /// Write the admin's kubeconfig to this file
    #[arg(
        short = 'o',
        long,
        env = "MUSSEL_WRITE_KUBECONFIG",
        default_value = DEFAULT_KUBECONFIG,
        value_name = "FILE"
    )]
    #[arg(help_heading = "Client")]
    pub write_kubeconfig: PathBuf,
    /// Its mode, in octal
    #[arg(long, env = "MUSSEL_WRITE_KUBECONFIG_MODE", default_value = "0600", value_parser = octal, value_name = "MODE")]
    #[arg(help_heading = "Client")]
    pub write_kubeconfig_mode: u32,
    /// Group that it belongs to
    #[arg(long, env = "MUSSEL_WRITE_KUBECONFIG_GROUP", value_name = "GROUP", help_heading = "Client")]
    pub write_kubeconfig_group: Option<String>,
    /// Name of cluster, user and context in it
    #[arg(long, env = "MUSSEL_WRITE_KUBECONFIG_NAME", default_value = "default", value_name = "NAME")]
    #[arg(help_heading = "Client")]
    pub write_kubeconfig_name: String,

    /// Port the API listens on
    #[arg(
        long,
        env = "MUSSEL_HTTPS_LISTEN_PORT",
        default_value_t = 6443,
        value_name = "PORT",
        help_heading = "Listener"
    )]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub https_listen_port: u16,
    /// Address that the API server is known by in the cluster (default: the node's)
    #[arg(long, env = "MUSSEL_ADVERTISE_ADDRESS", value_name = "IP", help_heading = "Listener")]
    pub advertise_address: Option<IpAddr>,
    /// Port that it is known by (default: --https-listen-port)
    #[arg(long, env = "MUSSEL_ADVERTISE_PORT", value_name = "PORT", help_heading = "Listener")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub advertise_port: Option<u16>,
    /// Additional names and addresses in the server's certificate
    #[arg(long, env = "MUSSEL_TLS_SAN", value_delimiter = ',', value_name = "NAME", help_heading = "Listener")]
    pub tls_san: Vec<String>,

    /// Addresses of pods
    #[arg(long, env = "MUSSEL_CLUSTER_CIDR", default_value = "10.42.0.0/16", value_parser = cidr_v4, value_name = "CIDR")]
    #[arg(help_heading = "Networking")]
    pub cluster_cidr: String,
    /// Addresses of Services
    #[arg(long, env = "MUSSEL_SERVICE_CIDR", default_value = "10.43.0.0/16", value_parser = cidr_v4, value_name = "CIDR")]
    #[arg(help_heading = "Networking")]
    pub service_cidr: String,
    /// Ports for Services of type NodePort
    #[arg(long, env = "MUSSEL_SERVICE_NODE_PORT_RANGE", default_value = "30000-32767", value_parser = port_range)]
    #[arg(value_name = "FROM-TO", help_heading = "Networking")]
    pub service_node_port_range: PortRange,
    /// Address of the cluster DNS (default: the 10th of the service CIDR)
    #[arg(long, env = "MUSSEL_CLUSTER_DNS", value_name = "IP", help_heading = "Networking")]
    pub cluster_dns: Option<IpAddr>,
    /// Domain of the cluster
    #[arg(long, env = "MUSSEL_CLUSTER_DOMAIN", default_value = "cluster.local", value_name = "DOMAIN")]
    #[arg(help_heading = "Networking")]
    pub cluster_domain: String,

    /// How pods of different nodes reach each other: vxlan, host-gw, none
    #[arg(long, env = "MUSSEL_FLANNEL_BACKEND", default_value = "vxlan", value_name = "BACKEND")]
    #[arg(help_heading = "Networking")]
    pub flannel_backend: Backend,
    /// Pods' packets travel between the nodes' external addresses
    #[arg(
        long,
        env = "MUSSEL_FLANNEL_EXTERNAL_IP",
        num_args = 0..=1,
        default_value_t = false,
        default_missing_value = "true"
    )]
    #[arg(help_heading = "Networking")]
    pub flannel_external_ip: bool,

    /// Join the cluster of this server, such as https://first:6443
    #[arg(short, long, env = "MUSSEL_URL", value_name = "URL", help_heading = "Cluster")]
    pub server: Option<String>,
    /// Accepted for k3s' sake: every cluster is ready for more servers
    #[arg(long, env = "MUSSEL_CLUSTER_INIT", num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    #[arg(help_heading = "Cluster")]
    pub cluster_init: bool,
    /// Secret that lets agents join, but not servers (default: the token)
    #[arg(long, env = "MUSSEL_AGENT_TOKEN", hide_env_values = true, value_name = "TOKEN", help_heading = "Cluster")]
    pub agent_token: Option<String>,
    /// File that holds the agents' token
    #[arg(long, env = "MUSSEL_AGENT_TOKEN_FILE", value_name = "FILE", conflicts_with = "agent_token")]
    #[arg(help_heading = "Cluster")]
    pub agent_token_file: Option<PathBuf>,
    /// Encrypt Secrets in the store
    #[arg(
        long,
        env = "MUSSEL_SECRETS_ENCRYPTION",
        num_args = 0..=1,
        default_value_t = false,
        default_missing_value = "true"
    )]
    #[arg(help_heading = "Cluster")]
    pub secrets_encryption: bool,
    /// How they are encrypted
    #[arg(long, env = "MUSSEL_SECRETS_ENCRYPTION_PROVIDER", default_value = "aesgcm", value_parser = ["aesgcm"])]
    #[arg(value_name = "PROVIDER", help_heading = "Cluster")]
    pub secrets_encryption_provider: String,
    /// Leave out bundled parts (coredns, servicelb, local-storage, and the file name of any manifest)
    #[arg(long, env = "MUSSEL_DISABLE", value_delimiter = ',', value_name = "PART", help_heading = "Components")]
    pub disable: Vec<String>,
    /// Folder of volumes of the class local-path, on every node (default: <data-dir>/storage)
    #[arg(long, env = "MUSSEL_DEFAULT_LOCAL_STORAGE_PATH", value_name = "DIR", help_heading = "Components")]
    pub default_local_storage_path: Option<PathBuf>,
    /// Do not run a node on this machine
    #[arg(long, env = "MUSSEL_DISABLE_AGENT", num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    #[arg(help_heading = "Components")]
    pub disable_agent: bool,
    /// Leave the API to other servers
    #[arg(long, env = "MUSSEL_DISABLE_APISERVER", num_args = 0..=1, default_value_t = false)]
    #[arg(default_missing_value = "true", help_heading = "Components")]
    pub disable_apiserver: bool,
    /// Leave the controllers to other servers
    #[arg(long, env = "MUSSEL_DISABLE_CONTROLLER_MANAGER", num_args = 0..=1, default_value_t = false)]
    #[arg(default_missing_value = "true", help_heading = "Components")]
    pub disable_controller_manager: bool,
    /// Refused: every server keeps the store
    #[arg(long, env = "MUSSEL_DISABLE_ETCD", num_args = 0..=1, default_value_t = false)]
    #[arg(default_missing_value = "true", help_heading = "Components")]
    pub disable_etcd: bool,
    /// Leave Services to somebody else's proxy
    #[arg(long, env = "MUSSEL_DISABLE_KUBE_PROXY", num_args = 0..=1, default_value_t = false)]
    #[arg(default_missing_value = "true", help_heading = "Components")]
    pub disable_kube_proxy: bool,
    /// Do not enforce network policies
    #[arg(long, env = "MUSSEL_DISABLE_NETWORK_POLICY", num_args = 0..=1, default_value_t = false)]
    #[arg(default_missing_value = "true", help_heading = "Components")]
    pub disable_network_policy: bool,
    /// Leave scheduling to other servers
    #[arg(long, env = "MUSSEL_DISABLE_SCHEDULER", num_args = 0..=1, default_value_t = false)]
    #[arg(default_missing_value = "true", help_heading = "Components")]
    pub disable_scheduler: bool,

    /// Hand KEY=VALUE to the API server; may be repeated
    #[arg(long, env = "MUSSEL_KUBE_APISERVER_ARG", value_name = "KEY=VALUE", help_heading = "Components")]
    pub kube_apiserver_arg: Vec<String>,
    /// Hand KEY=VALUE to the controllers; may be repeated
    #[arg(long, alias = "kube-controller-arg", env = "MUSSEL_KUBE_CONTROLLER_MANAGER_ARG", value_name = "KEY=VALUE")]
    #[arg(help_heading = "Components")]
    pub kube_controller_manager_arg: Vec<String>,
    /// Hand KEY=VALUE to the scheduler; may be repeated
    #[arg(long, env = "MUSSEL_KUBE_SCHEDULER_ARG", value_name = "KEY=VALUE", help_heading = "Components")]
    pub kube_scheduler_arg: Vec<String>,
    /// Hand KEY=VALUE to the cloud controller; may be repeated
    #[arg(long, alias = "kube-cloud-controller-arg", env = "MUSSEL_KUBE_CLOUD_CONTROLLER_MANAGER_ARG")]
    #[arg(value_name = "KEY=VALUE", help_heading = "Components")]
    pub kube_cloud_controller_manager_arg: Vec<String>,
    /// Hand KEY=VALUE to the store, such as heartbeat-interval=500; may be repeated
    #[arg(long, env = "MUSSEL_ETCD_ARG", value_name = "KEY=VALUE", help_heading = "Components")]
    pub etcd_arg: Vec<String>,

    #[command(flatten)]
    pub accepted: ServerAccepted,
}
