//! What a node says of how it was started, in annotations, as k3s' nodes do: the arguments, the environment and a hash over
//! both, so that one sees from afar which machine was started differently.

use std::collections::BTreeMap;
use std::net::IpAddr;

use clap::CommandFactory;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::args::Cli;
use super::config_file;

const PREFIX: &str = "mussel.io/";
const ENVIRONMENT: &str = "MUSSEL_";
const HIDDEN: &str = "********";
/// An annotation is no place for more.
const ARGUMENTS_BYTES_MAX: usize = 32 << 10;

/// The annotations of this process' node.
pub fn annotations(node_name: &str, node_ip: IpAddr, external_ip: Option<IpAddr>) -> BTreeMap<String, String> {
    let mut said = BTreeMap::from([("hostname", node_name.to_owned()), ("internal-ip", node_ip.to_string())]);
    said.extend(external_ip.map(|ip| ("external-ip", ip.to_string())));
    // They were read once already to come here.
    if let Ok((arguments, _)) = config_file::expand(std::env::args().collect()) {
        let arguments = json!(hide_arguments(&arguments[1..])).to_string();
        let environment = hide_environment(
            std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))),
        );
        let environment = json!(environment).to_string();
        if arguments.len() + environment.len() <= ARGUMENTS_BYTES_MAX {
            let hash = Sha256::digest(format!("{arguments}{environment}"));
            said.insert("node-config-hash", hash.iter().map(|byte| format!("{byte:02x}")).collect());
            said.insert("node-args", arguments);
            said.insert("node-env", environment);
        }
    }
    said.into_iter().map(|(key, value)| (format!("{PREFIX}{key}"), value)).collect()
}

/// The flags of `server` and `agent` whose values help says nothing of, and the variables that stand for them.
struct Secrets {
    flags: Vec<String>,
    variables: Vec<String>,
}

impl Secrets {
    fn known() -> Self {
        let (mut flags, mut variables) = (Vec::new(), Vec::new());
        for command in Cli::command().get_subcommands() {
            for argument in command.get_arguments().filter(|argument| argument.is_hide_env_values_set()) {
                flags.extend(argument.get_long().map(|long| format!("--{long}")));
                flags.extend(argument.get_short().map(|short| format!("-{short}")));
                variables.extend(argument.get_env().map(|name| name.to_string_lossy().into_owned()));
            }
        }
        Self { flags, variables }
    }
}

/// Flags and their values each by itself, without the secrets.
fn hide_arguments(arguments: &[String]) -> Vec<String> {
    let secrets = Secrets::known();
    let mut shown: Vec<String> = Vec::new();
    for argument in arguments {
        let follows_secret = shown.last().is_some_and(|last| secrets.flags.contains(last));
        match argument.split_once('=') {
            _ if follows_secret => shown.push(HIDDEN.to_owned()),
            Some((flag, value)) if flag.starts_with('-') => {
                let hidden = secrets.flags.iter().any(|secret| secret == flag);
                shown.extend([flag.to_owned(), if hidden { HIDDEN } else { value }.to_owned()]);
            }
            // A short flag with its value behind it: -tSECRET.
            _ if secrets.flags.iter().any(|flag| flag.len() == 2 && argument.starts_with(flag.as_str()))
                && argument.len() > 2
                && !argument.starts_with("--") =>
            {
                shown.extend([argument[..2].to_owned(), HIDDEN.to_owned()]);
            }
            _ => shown.push(argument.clone()),
        }
    }
    shown
}

fn hide_environment(variables: impl Iterator<Item = (String, String)>) -> BTreeMap<String, String> {
    let secrets = Secrets::known();
    let ours = variables.filter(|(name, _)| name.starts_with(ENVIRONMENT));
    ours.map(|(name, value)| {
        let hidden = secrets.variables.contains(&name);
        (name, if hidden { HIDDEN.to_owned() } else { value })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_told() {
        let arguments =
            ["agent", "--server=https://a:6443", "--token", "S1", "-t", "S2", "--token=S3", "-tS4", "-d", "x"];
        let shown = hide_arguments(&arguments.map(str::to_owned));
        let wanted = "agent --server https://a:6443 --token H -t H --token H -t H -d x".replace('H', HIDDEN);
        assert_eq!(shown.join(" "), wanted);
        let variables = [("MUSSEL_TOKEN", "S5"), ("MUSSEL_URL", "https://a"), ("HOME", "/root")];
        let shown = hide_environment(variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter());
        assert_eq!(json!(shown), json!({"MUSSEL_TOKEN": HIDDEN, "MUSSEL_URL": "https://a"}));
        let told = hide_arguments(&["server", "--agent-token", "S6", "--etcd-s3-secret-key=S7"].map(str::to_owned));
        assert!(!told.join(" ").contains("S6"), "{told:?}");
    }
}
