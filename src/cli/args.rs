//! Flags, with k3s' names and meanings. Each is also an environment variable (`MUSSEL_` and the flag's name) and a key of
//! the config file; the command line wins over the file, and the file over the environment.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use mussel_cluster::bootstrap_tokens;
use mussel_network::backend::Backend;

pub const DEFAULT_CONFIG: &str = "/etc/mussel/config.yaml";
pub const DEFAULT_DATA_DIR: &str = "/var/lib/mussel";
pub const DEFAULT_RUN_DIR: &str = "/run/mussel";

#[derive(Debug, Parser)]
#[command(name = "mussel", version = VERSION, about = "Kubernetes for the edge in one static binary")]
#[command(disable_help_subcommand = true, args_override_self = true, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

pub const VERSION: &str = mussel_api::version::GIT_VERSION;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a server: the control plane and, unless told otherwise, a node
    Server(Box<ServerArgs>),
    /// Run a node that joins a cluster
    Agent(Box<AgentArgs>),
    /// Tokens that let machines join
    Token(TokenArgs),
    /// Look at certificates, and make new ones
    Certificate(CertificateArgs),
    /// Work with the container runtime's images
    Ctr(CtrArgs),
    /// Save, list and delete backups of the cluster's state, through the server that runs on this machine
    #[command(visible_alias = "etcd-snapshot")]
    Snapshot(SnapshotArgs),
    /// Encryption of Secrets at rest: its state, its keys; through the server that runs on this machine
    SecretsEncrypt(SecretsEncryptArgs),
    /// Look at the store of the server that runs on this machine
    Store(StoreArgs),
    /// Stop all pods of this machine and undo its network set-up; data stays
    Killall(LocalArgs),
    /// Check that this machine has what a node needs
    CheckConfig(LocalArgs),
    /// Run one pod's supervisor (internal)
    #[command(hide = true)]
    Shim {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

/// What every command that looks at this machine's state takes.
#[derive(Debug, Clone, Args)]
pub struct LocalArgs {
    /// Folder that holds all state
    #[arg(short = 'd', long, global = true, env = "MUSSEL_DATA_DIR", default_value = DEFAULT_DATA_DIR, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Folder for sockets and runtime state
    #[arg(long, global = true, env = "MUSSEL_RUN_DIR", default_value = DEFAULT_RUN_DIR, value_name = "DIR")]
    pub run_dir: PathBuf,
    /// Control group under which pods run
    #[arg(long, global = true, env = "MUSSEL_CGROUP_ROOT", default_value = "/", value_name = "PATH")]
    pub cgroup_root: String,
    /// Turn on debug logs
    #[arg(long, global = true, env = "MUSSEL_DEBUG", num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    pub debug: bool,
}

#[derive(Debug, Args)]
pub struct TokenArgs {
    #[command(subcommand)]
    pub command: TokenCommand,
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a bootstrap token, with which agents join until it expires
    Create {
        /// <6>.<16> lower-case letters and digits (default: random)
        token: Option<String>,
        #[arg(long, default_value = "", value_name = "TEXT")]
        description: String,
        /// Groups of whoever shows it
        #[arg(long, value_delimiter = ',', default_value = bootstrap_tokens::NODE_GROUP, value_name = "GROUP")]
        groups: Vec<String>,
        #[arg(long, value_delimiter = ',', default_values = bootstrap_tokens::USAGES, value_name = "USAGE")]
        usages: Vec<String>,
        /// How long it is good for, such as 90m or 24h; 0 for ever
        #[arg(long, default_value = "24h", value_parser = duration, value_name = "TIME")]
        ttl: Duration,
        #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
        kubeconfig: Option<PathBuf>,
    },
    /// List bootstrap tokens
    #[command(visible_alias = "ls")]
    List {
        #[arg(short, long, default_value = "text", value_parser = ["text", "json", "yaml"], value_name = "FORMAT")]
        output: String,
        #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
        kubeconfig: Option<PathBuf>,
    },
    /// Delete bootstrap tokens, by id or whole
    Delete {
        #[arg(required = true)]
        tokens: Vec<String>,
        #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
        kubeconfig: Option<PathBuf>,
    },
    /// Print a random bootstrap token, and do nothing else
    Generate,
    /// Change the servers' token
    Rotate {
        /// The current token (default: that in <data-dir>/server/token)
        #[arg(short, long, env = "MUSSEL_TOKEN", hide_env_values = true, value_name = "TOKEN")]
        token: Option<String>,
        /// The new one (default: random)
        #[arg(long, env = "MUSSEL_NEW_TOKEN", hide_env_values = true, value_name = "TOKEN")]
        new_token: Option<String>,
        #[arg(short, long, env = "MUSSEL_URL", default_value = "https://127.0.0.1:6443", value_name = "URL")]
        server: String,
        #[arg(short, long, env = "MUSSEL_DATA_DIR", default_value = DEFAULT_DATA_DIR, value_name = "DIR")]
        data_dir: PathBuf,
    },
}

#[derive(Debug, Args)]
pub struct CertificateArgs {
    #[command(subcommand)]
    pub command: CertificateCommand,
}

#[derive(Debug, Subcommand)]
pub enum CertificateCommand {
    /// Say how long the certificates of this machine are good for
    Check {
        #[arg(short, long, env = "MUSSEL_DATA_DIR", default_value = DEFAULT_DATA_DIR, value_name = "DIR")]
        data_dir: PathBuf,
        #[arg(short, long, default_value = "text", value_parser = ["text", "table", "json", "yaml"], value_name = "FORMAT")]
        output: String,
        /// Only those of these services
        #[arg(short, long, value_delimiter = ',', value_name = "SERVICE")]
        service: Vec<Service>,
    },
    /// Have the certificates made anew at the next start; CAs stay. Stop the service first
    Rotate {
        #[command(flatten)]
        local: LocalArgs,
        /// Only those of these services
        #[arg(short, long, value_delimiter = ',', value_name = "SERVICE")]
        service: Vec<Service>,
    },
    /// Give new CAs and keys to a running cluster
    RotateCa {
        /// Folder with the new files, laid out as <data-dir>/server/tls
        #[arg(long, value_name = "DIR")]
        path: PathBuf,
        #[arg(short, long, env = "MUSSEL_URL", default_value = "https://127.0.0.1:6443", value_name = "URL")]
        server: String,
        /// The servers' token (default: that in <data-dir>/server/token)
        #[arg(short, long, env = "MUSSEL_TOKEN", hide_env_values = true, value_name = "TOKEN")]
        token: Option<String>,
        #[arg(short, long, env = "MUSSEL_DATA_DIR", default_value = DEFAULT_DATA_DIR, value_name = "DIR")]
        data_dir: PathBuf,
        /// Also when the new CAs have another root: every agent then needs the new token
        #[arg(long)]
        force: bool,
    },
}

/// Whose certificates, by k3s' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Service {
    Admin,
    ApiServer,
    AuthProxy,
    Etcd,
    KubeProxy,
    Kubelet,
}

impl Service {
    /// Whether a certificate file of this stem is the service's.
    pub fn has(self, stem: &str) -> bool {
        let stems: &[&str] = match self {
            Self::Admin => &["client-admin"],
            Self::ApiServer => &["serving-kube-apiserver", "client-kube-apiserver"],
            Self::AuthProxy => &["client-auth-proxy"],
            Self::Etcd => &["peer-server-client"],
            Self::KubeProxy => &["client-kube-proxy"],
            Self::Kubelet => &["serving-kubelet", "client-kubelet"],
        };
        stems.contains(&stem)
    }
}

#[derive(Debug, Args)]
pub struct CtrArgs {
    #[command(flatten)]
    pub local: LocalArgs,
    #[command(subcommand)]
    pub command: CtrCommand,
}

#[derive(Debug, Subcommand)]
pub enum CtrCommand {
    /// Images of the embedded runtime
    #[command(subcommand, visible_alias = "image", visible_alias = "i")]
    Images(ImagesCommand),
}

#[derive(Debug, Subcommand)]
pub enum ImagesCommand {
    /// List images
    #[command(visible_alias = "list")]
    Ls {
        /// Print names only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Import a docker-archive or OCI layout (.tar, .tar.gz, .tar.zst)
    Import {
        #[arg(required = true)]
        archives: Vec<PathBuf>,
    },
    /// Remove images by name or digest
    #[command(visible_alias = "remove", visible_alias = "delete")]
    Rm {
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Pull an image
    Pull { image: String },
}

#[derive(Debug, Args)]
pub struct SnapshotArgs {
    #[command(flatten)]
    pub local: LocalArgs,
    #[command(subcommand)]
    pub command: Option<SnapshotCommand>,
}

#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Save one now (also what `mussel snapshot` alone does)
    Save {
        /// Its name begins with this; node name and time follow
        #[arg(long, default_value = "on-demand", value_name = "NAME")]
        name: String,
    },
    /// List them
    #[command(visible_aliases = ["list", "l"])]
    Ls {
        #[arg(short, long, default_value = "table", value_name = "FORMAT")]
        output: Output,
    },
    /// Delete some by name
    Delete {
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Delete all but the newest whose name begins with NAME
    Prune {
        #[arg(long, default_value = "on-demand", value_name = "NAME")]
        name: String,
        /// How many to keep
        #[arg(long, visible_alias = "etcd-snapshot-retention", default_value_t = 5, value_name = "COUNT")]
        snapshot_retention: usize,
    },
}

#[derive(Debug, Args)]
pub struct SecretsEncryptArgs {
    #[command(flatten)]
    pub local: LocalArgs,
    #[command(subcommand)]
    pub command: SecretsEncryptCommand,
}

#[derive(Debug, Subcommand)]
pub enum SecretsEncryptCommand {
    /// Say whether Secrets are encrypted, how far a change of keys has come, and which keys there are
    Status {
        #[arg(short, long, default_value = "text", value_parser = ["text", "json"], value_name = "FORMAT")]
        output: String,
    },
    /// Encrypt Secrets from now on, and those that are there
    Enable,
    /// Store Secrets plain from now on, and those that are there
    Disable,
    /// Add a key, encrypt with it, write all Secrets anew, and drop the old keys
    RotateKeys,
    /// Step 1 of changing keys by hand: add a key
    Prepare {
        /// Whatever step came before
        #[arg(short, long)]
        force: bool,
    },
    /// Step 2: encrypt with the key that was added
    Rotate {
        /// Whatever step came before
        #[arg(short, long)]
        force: bool,
    },
    /// Step 3: write all Secrets anew, and drop the old keys
    Reencrypt {
        /// Whatever step came before
        #[arg(short, long)]
        force: bool,
        /// Keep the old keys
        #[arg(long)]
        skip: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    Table,
    Json,
    Yaml,
}

#[derive(Debug, Args)]
pub struct StoreArgs {
    #[command(flatten)]
    pub local: LocalArgs,
    #[command(subcommand)]
    pub command: StoreCommand,
}

#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Whether it leads and writes, its revision and its size
    Status {
        #[arg(short, long, default_value = "table", value_name = "FORMAT")]
        output: Output,
    },
    /// Take a server that runs no node out of the group, dead or alive (one with a node: kubectl delete node)
    Remove {
        /// Its name, or its id as `status` shows it
        member: String,
    },
}

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
        default_value = "/etc/mussel/mussel.yaml",
        value_name = "FILE"
    )]
    #[arg(help_heading = "Client")]
    pub write_kubeconfig: PathBuf,
    /// Its mode, in octal
    #[arg(long, env = "MUSSEL_WRITE_KUBECONFIG_MODE", default_value = "0600", value_parser = octal, value_name = "MODE")]
    #[arg(help_heading = "Client")]
    pub write_kubeconfig_mode: u32,

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
    /// Leave out bundled parts (coredns, and the file name of any manifest)
    #[arg(long, env = "MUSSEL_DISABLE", value_delimiter = ',', value_name = "PART", help_heading = "Components")]
    pub disable: Vec<String>,
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
    /// Leave scheduling to other servers
    #[arg(long, env = "MUSSEL_DISABLE_SCHEDULER", num_args = 0..=1, default_value_t = false)]
    #[arg(default_missing_value = "true", help_heading = "Components")]
    pub disable_scheduler: bool,
}

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
    /// Password that this node's name is tied to
    #[arg(long, env = "MUSSEL_NODE_PASSWORD_FILE", default_value = "/etc/mussel/node/password", value_name = "FILE")]
    #[arg(help_heading = "Node")]
    pub node_password_file: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taint {
    pub key: String,
    pub value: String,
    pub effect: String,
}

/// `24h`, `1h30m`, `90s` or `0`, as Go writes them.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time such as 24h, 90m or 0");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (mut total, mut number) = (0_u64, String::new());
    for letter in text.chars() {
        let unit = match letter {
            '0'..='9' => {
                number.push(letter);
                continue;
            }
            'd' => 86_400,
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return Err(wrong()),
        };
        let count: u64 = std::mem::take(&mut number).parse().map_err(|_| wrong())?;
        total = count.checked_mul(unit).and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
    }
    if number.is_empty() && !text.is_empty() { Ok(Duration::from_secs(total)) } else { Err(wrong()) }
}

fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err("not a file mode in octal, such as 0644".to_owned()),
    }
}

fn cidr_v4(text: &str) -> Result<String, String> {
    let parsed = text.split_once('/').and_then(|(address, bits)| {
        let address: std::net::Ipv4Addr = address.parse().ok()?;
        let bits: u32 = bits.parse().ok().filter(|bits| (8..=30).contains(bits))?;
        let mask = u32::MAX << (32 - bits);
        Some(format!("{}/{bits}", std::net::Ipv4Addr::from(u32::from(address) & mask)))
    });
    parsed.ok_or_else(|| "not an IPv4 network with 8 to 30 bits, such as 10.42.0.0/16".to_owned())
}

fn port_range(text: &str) -> Result<PortRange, String> {
    let parsed = text.split_once('-').and_then(|(first, last)| {
        let range = PortRange { first: first.parse().ok()?, last: last.parse().ok()? };
        (range.first > 0 && range.first <= range.last).then_some(range)
    });
    parsed.ok_or_else(|| "not a range of ports, such as 30000-32767".to_owned())
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    let mut wrong = mussel_api::names::is_qualified_name(key);
    wrong.extend(mussel_api::names::is_label_value(value));
    if wrong.is_empty() { Ok((key.to_owned(), value.to_owned())) } else { Err(wrong.join("; ")) }
}

fn taint(text: &str) -> Result<Taint, String> {
    let (pair, effect) = text.rsplit_once(':').ok_or("not of the form key=value:effect")?;
    if !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
        return Err(format!("effect {effect:?} is none of NoSchedule, PreferNoSchedule, NoExecute"));
    }
    let (key, value) = label(pair)?;
    Ok(Taint { key, value, effect: effect.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(args: &[&str]) -> Result<ServerArgs, String> {
        let all = ["mussel", "server"].iter().chain(args);
        match Cli::try_parse_from(all).map_err(|error| error.to_string())?.command {
            Command::Server(args) => Ok(*args),
            other => panic!("not a server: {other:?}"),
        }
    }

    #[test]
    fn a_later_value_wins_and_lists_add_up() {
        let args = server(&["--node-name=a", "--tls-san=x,y", "--node-name=b", "--tls-san", "z"]).unwrap();
        assert_eq!(args.node.node_name.as_deref(), Some("b"));
        assert_eq!(args.tls_san, ["x", "y", "z"]);
    }

    #[test]
    fn switches_take_an_optional_value() {
        assert!(server(&["--disable-agent"]).unwrap().disable_agent);
        assert!(!server(&["--disable-agent=false"]).unwrap().disable_agent);
        assert!(server(&["--disable-agent=maybe"]).is_err());
    }

    #[test]
    fn wrong_values_are_refused() {
        for args in [
            ["--cluster-cidr=10.42.0.0"],
            ["--service-node-port-range=9-3"],
            ["--node-taint=a=b:Never"],
            ["--node-label=a b=c"],
            ["--node-ip=here"],
            ["--flannel-backend=wireguard"],
            ["--https-listen-port=0"],
            ["--write-kubeconfig-mode=9"],
            ["--no-such-flag"],
        ] {
            assert!(server(&args).is_err(), "{args:?}");
        }
    }

    #[test]
    fn durations_are_read_as_go_writes_them() {
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        for wrong in ["", "5", "h", "1x", "-1h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_folders_may_be_named_before_and_after_a_tools_subcommand() {
        for args in [["snapshot", "--data-dir=/x", "save"], ["etcd-snapshot", "save", "--data-dir=/x"]] {
            match Cli::try_parse_from(["mussel"].iter().chain(&args)).unwrap().command {
                Command::Snapshot(parsed) => assert_eq!(parsed.local.data_dir, PathBuf::from("/x"), "{args:?}"),
                other => panic!("not a snapshot: {other:?}"),
            }
        }
    }

    #[test]
    fn a_network_is_reduced_to_its_base() {
        assert_eq!(server(&["--cluster-cidr=10.50.3.1/16"]).unwrap().cluster_cidr, "10.50.0.0/16");
    }
}
