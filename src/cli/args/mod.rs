//! Flags, with k3s' names and meanings. Each is also an environment variable (`MUSSEL_` and the flag's name) and a key of
//! the config file; the command line wins over the file, and the file over the environment.

mod accepted;
mod node;
mod server;
mod tools;
pub mod values;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub use node::{AgentArgs, NodeArgs};
pub use server::{BackupArgs, ServerArgs};
pub use tools::{
    CertificateArgs, CertificateCommand, CtrArgs, CtrCommand, ImagesCommand, Output, SecretsEncryptArgs,
    SecretsEncryptCommand, Service, SnapshotArgs, SnapshotCommand, StoreArgs, StoreCommand, TokenArgs, TokenCommand,
};

pub const DEFAULT_CONFIG: &str = "/etc/mussel/config.yaml";
pub const DEFAULT_DATA_DIR: &str = "/var/lib/mussel";
pub const DEFAULT_KUBECONFIG: &str = "/etc/mussel/mussel.yaml";
pub const DEFAULT_RUN_DIR: &str = "/run/mussel";

#[derive(Debug, Parser)]
#[command(name = "mussel", version = version_line(), about = "Kubernetes for the edge in one static binary")]
#[command(disable_help_subcommand = true, args_override_self = true, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

pub const VERSION: &str = mussel_api::version::GIT_VERSION;

/// As k3s has it: scripts take the third word of the first line.
fn version_line() -> String {
    format!("version {VERSION}")
}

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
    /// The machine's kubectl, with this cluster's kubeconfig
    #[command(disable_help_flag = true)]
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// The machine's crictl, on the embedded runtime
    #[command(disable_help_flag = true)]
    Crictl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
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
