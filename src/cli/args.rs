//! Flags, with k3s' names and meanings. Each is also an environment variable (`MUSSEL_` and the flag's name) and a key of
//! the config file; the command line wins over the file, and the file over the environment.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

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
    /// Work with the container runtime's images
    Ctr(CtrArgs),
    /// Save, list and delete backups of the cluster's state, through the server that runs on this machine
    #[command(visible_alias = "etcd-snapshot")]
    Snapshot(SnapshotArgs),
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
    /// Config file
    #[arg(short, long, env = "MUSSEL_CONFIG", default_value = DEFAULT_CONFIG, value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub local: LocalArgs,

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

    /// Address the API listens on
    #[arg(long, env = "MUSSEL_BIND_ADDRESS", default_value = "0.0.0.0", value_name = "IP", help_heading = "Listener")]
    pub bind_address: IpAddr,
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

    /// Secret that lets machines join (default: random, kept in <data-dir>/server/token)
    #[arg(short, long, env = "MUSSEL_TOKEN", hide_env_values = true, value_name = "TOKEN", help_heading = "Cluster")]
    pub token: Option<String>,
    /// File that holds the token
    #[arg(long, env = "MUSSEL_TOKEN_FILE", value_name = "FILE", conflicts_with = "token", help_heading = "Cluster")]
    pub token_file: Option<PathBuf>,
    /// Leave out bundled parts (coredns, and the file name of any manifest)
    #[arg(long, env = "MUSSEL_DISABLE", value_delimiter = ',', value_name = "PART", help_heading = "Components")]
    pub disable: Vec<String>,
    /// Do not run a node on this machine
    #[arg(long, env = "MUSSEL_DISABLE_AGENT", num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    #[arg(help_heading = "Components")]
    pub disable_agent: bool,

    #[command(flatten)]
    pub backup: BackupArgs,

    /// Name of the node (default: the host's name)
    #[arg(long, env = "MUSSEL_NODE_NAME", value_name = "NAME", help_heading = "Node")]
    pub node_name: Option<String>,
    /// Address of the node (default: that of the default route's interface)
    #[arg(short = 'i', long, env = "MUSSEL_NODE_IP", value_name = "IP", help_heading = "Node")]
    pub node_ip: Option<IpAddr>,
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
        assert_eq!(args.node_name.as_deref(), Some("b"));
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
            ["--https-listen-port=0"],
            ["--write-kubeconfig-mode=9"],
            ["--no-such-flag"],
        ] {
            assert!(server(&args).is_err(), "{args:?}");
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
