//! The config file, as k3s reads it: its keys become flags in front of the command line's own.
//!
//! Drop-ins in `<file>.d/` follow in order of their names. A key in a later file replaces the earlier value; `key+` adds to
//! it. A file that does not exist is no error.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use serde_json::Value;

use super::args::{Cli, DEFAULT_CONFIG};

#[derive(Debug, thiserror::Error)]
pub enum ConfigFileError {
    #[error("read config file {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("config file {} is not YAML: {reason}", path.display())]
    Syntax { path: PathBuf, reason: String },
    #[error("config file {}: the value of {key} must be text, a number, true, false or a list of them", path.display())]
    Value { path: PathBuf, key: String },
}

/// The arguments with those of the config file put behind the subcommand, and the unknown keys that were skipped.
pub fn expand(args: Vec<String>) -> Result<(Vec<String>, Vec<String>), ConfigFileError> {
    let mut command = Cli::command();
    // Only then do subcommands know the arguments that are theirs by their parents.
    command.build();
    let (position, command) = subcommand(&args, &command);
    if position == 1 {
        return Ok((args, Vec::new()));
    }
    let (head, tail) = args.split_at(position);
    let is_node = matches!(args[1].as_str(), "server" | "agent");
    let path = std::env::var("MUSSEL_CONFIG_FILE").ok().or_else(|| named(tail).filter(|_| is_node));
    let path = path.or_else(|| std::env::var("MUSSEL_CONFIG").ok());
    let path = path.unwrap_or_else(|| DEFAULT_CONFIG.to_owned());
    if is_node {
        let (flags, skipped) = flags(Path::new(&path), command, None)?;
        return Ok(([head, &flags, tail].concat(), skipped));
    }
    let flags = match flags(Path::new(&path), command, Some(&OF_TOOLS)) {
        Ok((flags, _)) => flags,
        // Not everybody may read it, and most tools do without.
        Err(ConfigFileError::Read { source, .. }) if source.kind() == ErrorKind::PermissionDenied => Vec::new(),
        Err(error) => return Err(error),
    };
    Ok(([head, &flags, tail].concat(), Vec::new()))
}

/// What tools take from the config file: where things are on this machine.
const OF_TOOLS: [&str; 4] = ["data-dir", "run-dir", "cgroup-root", "debug"];

/// Where the arguments of the innermost subcommand begin, and that subcommand.
fn subcommand<'c>(args: &[String], whole: &'c Command) -> (usize, &'c Command) {
    let (mut position, mut command) = (1, whole);
    while let Some(inner) = args.get(position).and_then(|arg| command.find_subcommand(arg)) {
        (position, command) = (position + 1, inner);
    }
    (position, command)
}

/// The value of `--config` on the command line.
fn named(args: &[String]) -> Option<String> {
    args.iter().enumerate().rev().find_map(|(at, arg)| match arg.as_str() {
        "--config" | "-c" => args.get(at + 1).cloned(),
        _ => arg.strip_prefix("--config=").map(str::to_owned),
    })
}

/// `only` leaves all other keys aside.
fn flags(path: &Path, command: &Command, only: Option<&[&str]>) -> Result<(Vec<String>, Vec<String>), ConfigFileError> {
    let mut merged = BTreeMap::new();
    for file in files(path)? {
        merge(&mut merged, &file)?;
    }
    let known = |key: &str| {
        command.get_arguments().any(|arg| {
            arg.get_long() == Some(key)
                || arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&key))
                || (key.chars().count() == 1 && arg.get_short() == key.chars().next())
        })
    };
    let wanted = |key: &str| only.is_none_or(|only| only.contains(&key));
    let (mut flags, mut skipped) = (Vec::new(), Vec::new());
    for (key, values) in merged {
        if !wanted(&key) || !known(&key) {
            skipped.push(key);
            continue;
        }
        let dashes = if key.chars().count() == 1 { "-" } else { "--" };
        flags.extend(values.into_iter().map(|value| format!("{dashes}{key}={value}")));
    }
    Ok((flags, skipped))
}

/// The file itself, then its drop-ins; those that exist.
fn files(path: &Path) -> Result<Vec<PathBuf>, ConfigFileError> {
    let mut files: Vec<PathBuf> = path.exists().then(|| path.to_owned()).into_iter().collect();
    let mut dir = path.as_os_str().to_owned();
    dir.push(".d");
    let dir = PathBuf::from(dir);
    if dir.is_dir() {
        let read = |source| ConfigFileError::Read { path: dir.clone(), source };
        let mut dropins = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(read)? {
            let entry = entry.map_err(read)?.path();
            let ending = entry.extension().map(|ending| ending.to_ascii_lowercase());
            if entry.is_file() && ending.is_some_and(|ending| ending == "yaml" || ending == "yml") {
                dropins.push(entry);
            }
        }
        dropins.sort();
        files.extend(dropins);
    }
    Ok(files)
}

fn merge(merged: &mut BTreeMap<String, Vec<String>>, path: &Path) -> Result<(), ConfigFileError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| ConfigFileError::Read { path: path.to_owned(), source })?;
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(());
    }
    // As k3s reads it: `y` and `off` are text, not booleans.
    let options = serde_saphyr::options! { strict_booleans: true };
    let content: BTreeMap<String, Value> = serde_saphyr::from_str_with_options(&text, options)
        .map_err(|error| ConfigFileError::Syntax { path: path.to_owned(), reason: error.to_string() })?;
    for (key, value) in content {
        let wrong = || ConfigFileError::Value { path: path.to_owned(), key: key.clone() };
        let values = match value {
            Value::Array(items) => {
                items.into_iter().map(|item| text_of(item).ok_or_else(wrong)).collect::<Result<_, _>>()?
            }
            Value::Null => Vec::new(),
            other => vec![text_of(other).ok_or_else(wrong)?],
        };
        match key.strip_suffix('+') {
            Some(key) => merged.entry(key.to_owned()).or_default().extend(values),
            None => drop(merged.insert(key, values)),
        }
    }
    Ok(())
}

fn text_of(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_server(path: &Path) -> Result<(Vec<String>, Vec<String>), ConfigFileError> {
        flags(path, Cli::command().find_subcommand("server").unwrap(), None)
    }

    #[test]
    fn tools_are_told_where_things_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        std::fs::write(&path, "data-dir: /x\nnode-name: a\ntoken: secret\n").unwrap();
        let mut command = Cli::command();
        command.build();
        for (args, taken) in [
            (&["mussel", "ctr", "images", "ls", "-q"][..], "--data-dir=/x"),
            (&["mussel", "etcd-snapshot", "save"], "--data-dir=/x"),
            (&["mussel", "token", "rotate"], "--data-dir=/x"),
            (&["mussel", "token", "generate"], ""),
        ] {
            let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
            let (position, inner) = subcommand(&args, &command);
            assert!(!args[1..position].iter().any(|arg| arg.starts_with('-')), "{args:?}");
            assert_eq!(flags(&path, inner, Some(&OF_TOOLS)).unwrap().0.join(" "), taken, "{args:?}");
        }
    }

    #[test]
    fn keys_become_flags_and_dropins_follow() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, "node-name: a\ntls-san: [x, y]\ndebug: true\nnot-a-flag: 1\n").unwrap();
        std::fs::create_dir(dir.path().join("config.yaml.d")).unwrap();
        std::fs::write(dir.path().join("config.yaml.d/1.yaml"), "node-name: b\ntls-san+: z\nhttps-listen-port: 7443\n")
            .unwrap();
        let (flags, skipped) = of_server(&path).unwrap();
        assert_eq!(
            flags,
            ["--debug=true", "--https-listen-port=7443", "--node-name=b", "--tls-san=x", "--tls-san=y", "--tls-san=z"]
        );
        assert_eq!(skipped, ["not-a-flag"]);
    }

    #[test]
    fn the_command_line_comes_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        std::fs::write(&path, "node-name: a\n").unwrap();
        let args =
            ["mussel", "server", "--config", path.to_str().unwrap(), "--node-name=b"].map(str::to_owned).to_vec();
        let (args, _) = expand(args).unwrap();
        assert_eq!(args[2], "--node-name=a");
        assert_eq!(args.last().unwrap(), "--node-name=b");
    }

    #[test]
    fn a_missing_file_is_fine_and_a_broken_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(of_server(&dir.path().join("none")).unwrap().0, Vec::<String>::new());
        std::fs::write(dir.path().join("c"), "a: {b: c}").unwrap();
        assert!(matches!(of_server(&dir.path().join("c")), Err(ConfigFileError::Value { .. })));
        std::fs::write(dir.path().join("c"), "a: [").unwrap();
        assert!(matches!(of_server(&dir.path().join("c")), Err(ConfigFileError::Syntax { .. })));
    }
}
