//! The config file, as k3s reads it: its keys become flags in front of the command line's own.
//!
//! Drop-ins in `<file>.d/` follow in order of their names. A key in a later file replaces the earlier value; `key+` adds to
//! it. A file that does not exist is no error.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
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
    let Some(position) = args.iter().skip(1).position(|arg| arg == "server" || arg == "agent") else {
        return Ok((args, Vec::new()));
    };
    let (head, tail) = args.split_at(position + 2);
    let path = std::env::var("MUSSEL_CONFIG_FILE").ok().or_else(|| named(tail));
    let path = path.or_else(|| std::env::var("MUSSEL_CONFIG").ok());
    let (flags, skipped) = flags(Path::new(path.as_deref().unwrap_or(DEFAULT_CONFIG)), &head[head.len() - 1])?;
    Ok(([head, &flags, tail].concat(), skipped))
}

/// The value of `--config` on the command line.
fn named(args: &[String]) -> Option<String> {
    args.iter().enumerate().rev().find_map(|(at, arg)| match arg.as_str() {
        "--config" | "-c" => args.get(at + 1).cloned(),
        _ => arg.strip_prefix("--config=").map(str::to_owned),
    })
}

fn flags(path: &Path, subcommand: &str) -> Result<(Vec<String>, Vec<String>), ConfigFileError> {
    let mut merged = BTreeMap::new();
    for file in files(path)? {
        merge(&mut merged, &file)?;
    }
    let command = Cli::command();
    let known = |key: &str| {
        command.find_subcommand(subcommand).is_some_and(|command| {
            command.get_arguments().any(|arg| {
                arg.get_long() == Some(key) || (key.chars().count() == 1 && arg.get_short() == key.chars().next())
            })
        })
    };
    let (mut flags, mut skipped) = (Vec::new(), Vec::new());
    for (key, values) in merged {
        if !known(&key) {
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

    #[test]
    fn keys_become_flags_and_dropins_follow() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, "node-name: a\ntls-san: [x, y]\ndebug: true\nnot-a-flag: 1\n").unwrap();
        std::fs::create_dir(dir.path().join("config.yaml.d")).unwrap();
        std::fs::write(dir.path().join("config.yaml.d/1.yaml"), "node-name: b\ntls-san+: z\nhttps-listen-port: 7443\n")
            .unwrap();
        let (flags, skipped) = flags(&path, "server").unwrap();
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
        assert_eq!(flags(&dir.path().join("none"), "server").unwrap().0, Vec::<String>::new());
        std::fs::write(dir.path().join("c"), "a: {b: c}").unwrap();
        assert!(matches!(flags(&dir.path().join("c"), "server"), Err(ConfigFileError::Value { .. })));
        std::fs::write(dir.path().join("c"), "a: [").unwrap();
        assert!(matches!(flags(&dir.path().join("c"), "server"), Err(ConfigFileError::Syntax { .. })));
    }
}
