//! `mussel kubectl` and `mussel crictl`: the machine's own, with this machine's settings. Also by these names, as links.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::args::{DEFAULT_DATA_DIR, DEFAULT_KUBECONFIG};

const KUBECONFIG: &str = "KUBECONFIG";
const CRI_CONFIG_FILE: &str = "CRI_CONFIG_FILE";

/// The tools, and what to say where one is missing.
const TOOLS: [(&str, &str); 2] = [
    ("kubectl", "kubectl is not installed; get it from https://kubernetes.io/docs/tasks/tools"),
    ("crictl", "crictl is not installed; get it from https://github.com/kubernetes-sigs/cri-tools, or use mussel ctr"),
];

/// The tool that was called, by `mussel NAME` or as a link NAME, and its arguments.
pub fn called(args: &[String]) -> Option<(&'static str, &[String])> {
    let is = |text: &str| TOOLS.iter().map(|(tool, _)| *tool).find(|tool| *tool == text);
    let own = Path::new(args.first()?).file_name()?.to_str()?;
    match (is(own), args.get(1).and_then(|first| is(first))) {
        (Some(tool), _) => Some((tool, &args[1..])),
        (None, Some(tool)) => Some((tool, &args[2..])),
        (None, None) => None,
    }
}

/// Becomes the tool. Returns only when that is not possible.
///
/// # Errors
/// When it is not installed.
pub fn become_tool(tool: &str, args: &[String]) -> anyhow::Error {
    let program = match find(tool) {
        Ok(program) => program,
        Err(error) => return error,
    };
    let mut command = Command::new(&program);
    command.args(args);
    match tool {
        "kubectl" if std::env::var_os(KUBECONFIG).is_none() => {
            if let Some(config) = kubeconfig() {
                command.env(KUBECONFIG, config);
            }
        }
        "crictl" if std::env::var_os(CRI_CONFIG_FILE).is_none() => {
            let data_dir = std::env::var_os("MUSSEL_DATA_DIR").map_or(PathBuf::from(DEFAULT_DATA_DIR), PathBuf::from);
            command.env(CRI_CONFIG_FILE, data_dir.join("agent/etc/crictl.yaml"));
        }
        _ => {}
    }
    anyhow::Error::new(command.exec()).context(format!("run {}", program.display()))
}

/// The admin's, where it may be read; else the person's own copy.
fn kubeconfig() -> Option<PathBuf> {
    let admins = PathBuf::from(DEFAULT_KUBECONFIG);
    match std::fs::File::open(&admins) {
        Ok(_) => return Some(admins),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => eprintln!(
            "mussel: {DEFAULT_KUBECONFIG} may not be read; use sudo, or start the server with --write-kubeconfig-mode 644"
        ),
        Err(_) => {}
    }
    let own = Path::new(&std::env::var_os("HOME")?).join(".kube/mussel.yaml");
    own.exists().then_some(own)
}

/// In the PATH, and not a link to this program; the installer puts one beside it under another name.
fn find(tool: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().and_then(std::fs::canonicalize).context("find this program")?;
    let beside = own.parent().map(|dir| dir.join(format!("mussel-{tool}")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|dir| dir.join(tool));
    let is_other = |file: &PathBuf| std::fs::canonicalize(file).is_ok_and(|real| real != own && real.is_file());
    match beside.into_iter().chain(in_path).find(is_other) {
        Some(program) => Ok(program),
        None => match TOOLS.iter().find(|(known, _)| *known == tool) {
            Some((_, missing)) => bail!("{missing}"),
            None => bail!("{tool} is not installed"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_are_called_by_name_or_link() {
        let called = |args: &[&str]| {
            let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
            called(&args).map(|(tool, rest)| (tool, rest.to_vec()))
        };
        assert_eq!(
            called(&["/usr/bin/mussel", "kubectl", "get", "nodes"]),
            Some(("kubectl", vec!["get".into(), "nodes".into()]))
        );
        assert_eq!(called(&["/usr/local/bin/crictl", "ps"]), Some(("crictl", vec!["ps".into()])));
        assert_eq!(called(&["mussel", "server", "kubectl"]), None);
    }
}
