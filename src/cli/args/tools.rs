//! What the tools take: commands that look at or change a cluster and end.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use mussel_cluster::bootstrap_tokens;

use super::values::duration;
use super::{DEFAULT_DATA_DIR, LocalArgs};

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
    /// Make a snapshot the cluster's state again, as `mussel server --cluster-reset` does. Stop all servers first
    Restore {
        /// A snapshot's file, or the name of one in <data-dir>/server/db-snapshots
        #[arg(value_name = "FILE")]
        snapshot: PathBuf,
        /// The servers' token of the time of the snapshot (default: that in <data-dir>/server/token)
        #[arg(short, long, env = "MUSSEL_TOKEN", hide_env_values = true, value_name = "TOKEN")]
        token: Option<String>,
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
