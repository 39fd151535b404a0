//! Arguments for Kubernetes' own components, as k3s hands them on: `--kubelet-arg max-pods=250` and its like.
//!
//! Here is no separate component behind them. Arguments that have a meaning here take effect; of the others one line in the log
//! says that they do not. A wrong value of one that has a meaning ends the start, and so does an argument without which the
//! cluster would be less guarded than its owner believes. (docs/decisions/07-component-arguments.md)

mod apiserver;
mod controllers;
mod group;
mod kubelet;
mod kubelet_files;
mod values;

use std::fmt;

use super::args::{NodeArgs, ServerArgs};

pub use kubelet::KubeletArguments;

use apiserver::ApiServerArguments;
use controllers::ControllerArguments;

/// One argument of a component.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Argument {
    /// Where it was given: `--kubelet-arg`, or a file.
    origin: String,
    name: String,
    value: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentError {
    #[error("{origin} {name}={value}: {reason}")]
    Value { origin: String, name: String, value: String, reason: String },
    /// Going on would leave something open that was to be closed.
    #[error("{origin} {name} is not supported: {instead}")]
    Unguarded { origin: String, name: String, instead: &'static str },
    #[error("{origin}: {reason}")]
    File { origin: String, reason: String },
}

impl Argument {
    /// `name=value`, or `name` for a switch; dashes before it may stand, as on the component's own command line.
    fn parse(origin: &str, text: &str) -> Self {
        let (name, value) =
            text.trim().trim_start_matches('-').split_once('=').unwrap_or((text.trim_start_matches('-'), "true"));
        // `name+=` and `name-=` add to the default of a list. No list here has a default that could be replaced.
        let name = name.trim_end_matches(['+', '-']);
        Self { origin: origin.to_owned(), name: name.to_owned(), value: value.to_owned() }
    }

    fn list(origin: &str, texts: &[String]) -> Vec<Self> {
        texts.iter().map(|text| Self::parse(origin, text)).collect()
    }

    /// Reads the value, or says what is wrong with it.
    fn read<T>(&self, read: impl FnOnce(&str) -> Result<T, String>) -> Result<T, ArgumentError> {
        read(&self.value).map_err(|reason| ArgumentError::Value {
            origin: self.origin.clone(),
            name: self.name.clone(),
            value: self.value.clone(),
            reason,
        })
    }

    fn unguarded(&self, instead: &'static str) -> ArgumentError {
        ArgumentError::Unguarded { origin: self.origin.clone(), name: self.name.clone(), instead }
    }
}

impl fmt::Display for Argument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}={}", self.origin, self.name, self.value)
    }
}

/// What is said of arguments that change nothing.
#[derive(Debug, Default)]
pub struct Unused(Vec<String>);

impl Unused {
    /// `so_anyway` are arguments with the value that describes what is so here whatever is given; `reasons` tell more than that
    /// an argument is without effect.
    fn note(&mut self, argument: &Argument, so_anyway: &[(&str, &str)], reasons: &[(&str, &str)]) {
        let name = argument.name.as_str();
        if so_anyway.iter().any(|(known, value)| *known == name && *value == argument.value) {
            return;
        }
        // A prefix with a star stands for all that begin with it.
        let fits = |pattern: &str| pattern.strip_suffix('*').map_or(pattern == name, |prefix| name.starts_with(prefix));
        self.0.push(match reasons.iter().find(|(pattern, _)| fits(pattern)) {
            Some((_, reason)) => format!("{argument} has no effect: {reason}"),
            None => format!("{argument} has no effect here"),
        });
    }

    /// Also for flags of ours that are accepted for k3s' sake.
    pub fn say(&mut self, text: String) {
        self.0.push(text);
    }

    /// One line each.
    pub fn log(self) {
        for line in self.0 {
            tracing::warn!("{line}");
        }
    }
}

/// What a server's arguments for components say.
#[derive(Clone, Debug)]
pub struct ServerArguments {
    pub api: ApiServerArguments,
    pub controllers: ControllerArguments,
    pub timing: mussel_store::Timing,
}

impl ServerArguments {
    /// # Errors
    /// When a value cannot be, or an argument may not go without effect.
    pub fn read(args: &ServerArgs, unused: &mut Unused) -> Result<Self, ArgumentError> {
        args.accepted.note(unused);
        others(&args.kube_scheduler_arg, &args.kube_cloud_controller_manager_arg, unused);
        Ok(Self {
            api: ApiServerArguments::read(&args.kube_apiserver_arg, unused)?,
            controllers: ControllerArguments::read(&args.kube_controller_manager_arg, unused)?,
            timing: group::timing(&args.etcd_arg, unused)?,
        })
    }
}

/// What a node's arguments for its kubelet say.
///
/// # Errors
/// When a value cannot be.
pub fn node(args: &NodeArgs, unused: &mut Unused) -> Result<KubeletArguments, ArgumentError> {
    args.accepted.note(unused);
    proxy(&args.kube_proxy_arg, unused);
    KubeletArguments::read(&args.kubelet_arg, &args.local.data_dir.join(KUBELET_DROPINS), unused)
}

/// Where k3s keeps a kubelet's configuration files, below the data folder.
const KUBELET_DROPINS: &str = "agent/etc/kubelet.conf.d";

/// The proxy has no setting with a meaning here yet.
fn proxy(texts: &[String], unused: &mut Unused) {
    const REASONS: [(&str, &str); 4] = [
        ("proxy-mode", "Services are done by iptables"),
        ("metrics-bind-address", "the proxy's figures are not served on a port of their own"),
        ("healthz-bind-address", "the proxy has no port of its own"),
        ("conntrack-*", "the kernel's limits are left alone"),
    ];
    for argument in Argument::list("--kube-proxy-arg", texts) {
        unused.note(&argument, &[("proxy-mode", "iptables")], &REASONS);
    }
}

/// Nor have these.
fn others(scheduler: &[String], cloud: &[String], unused: &mut Unused) {
    const SCHEDULER: [(&str, &str); 1] =
        [("config", "scheduler profiles are not supported yet; the default profile is what runs")];
    for argument in Argument::list("--kube-scheduler-arg", scheduler) {
        unused.note(&argument, &[("profiling", "false"), ("bind-address", "127.0.0.1")], &SCHEDULER);
    }
    for argument in Argument::list("--kube-cloud-controller-manager-arg", cloud) {
        unused.note(&argument, &[], &[]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_as_k3s_reads_them() {
        let parsed = |text: &str| {
            let argument = Argument::parse("--x-arg", text);
            (argument.name, argument.value)
        };
        assert_eq!(parsed("max-pods=250"), ("max-pods".into(), "250".into()));
        assert_eq!(
            parsed("--eviction-hard=memory.available<5%"),
            ("eviction-hard".into(), "memory.available<5%".into())
        );
        assert_eq!(parsed("anonymous-auth"), ("anonymous-auth".into(), "true".into()));
        assert_eq!(parsed("disable-admission-plugins+=X"), ("disable-admission-plugins".into(), "X".into()));
        assert_eq!(parsed("node-labels=a=b"), ("node-labels".into(), "a=b".into()));
    }

    #[test]
    fn what_is_so_anyway_is_no_news() {
        let mut unused = Unused::default();
        others(&["profiling=false".into(), "v=4".into()], &[], &mut unused);
        proxy(&["proxy-mode=iptables".into(), "proxy-mode=ipvs".into()], &mut unused);
        assert_eq!(
            unused.0,
            [
                "--kube-scheduler-arg v=4 has no effect here",
                "--kube-proxy-arg proxy-mode=ipvs has no effect: Services are done by iptables",
            ]
        );
    }
}
