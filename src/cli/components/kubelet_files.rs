//! KubeletConfiguration files, by their fields' names on the command line: where k3s keeps drop-ins, and what `config=` and
//! `config-dir=` name.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Argument, ArgumentError};

const FILE_BYTES_MAX: u64 = 1 << 20;
/// Fields of a KubeletConfiguration whose names differ from the flag's by more than dashes.
const NAMES: [(&str, &str); 6] = [
    ("clusterDNS", "cluster-dns"),
    ("imageGCHighThresholdPercent", "image-gc-high-threshold"),
    ("imageGCLowThresholdPercent", "image-gc-low-threshold"),
    ("imageMinimumGCAge", "minimum-image-ttl-duration"),
    ("podPidsLimit", "pod-max-pids"),
    ("failSwapOn", "fail-swap-on"),
];

/// What the files say, in the order in which they count. A folder or drop-in that is not there says nothing.
///
/// # Errors
/// When a file cannot be read or is no configuration.
pub fn arguments(
    dropins: &Path,
    config: Option<&Path>,
    config_dir: Option<&Path>,
) -> Result<Vec<Argument>, ArgumentError> {
    // The places that k3s copies the named ones to.
    let mut files: Vec<(String, PathBuf)> = in_folder(dropins)?.collect();
    files.extend(config.map(|path| ("10-cli-config.conf".to_owned(), path.to_owned())));
    if let Some(dir) = config_dir {
        files.extend(in_folder(dir)?.map(|(name, path)| (format!("20-cli-config-dir/{name}"), path)));
    }
    files.sort();
    let mut all = Vec::new();
    for (_, path) in files {
        all.extend(read(&path)?);
    }
    Ok(all)
}

fn in_folder(dir: &Path) -> Result<impl Iterator<Item = (String, PathBuf)>, ArgumentError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries.filter_map(Result::ok).collect(),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Vec::new(),
        Err(error) => return Err(failed(dir, error)),
    };
    let named = entries.into_iter().map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()));
    Ok(named.filter(|(name, _)| name.ends_with(".conf")))
}

fn failed(path: &Path, reason: impl ToString) -> ArgumentError {
    ArgumentError::File { origin: path.display().to_string(), reason: reason.to_string() }
}

fn read(path: &Path) -> Result<Vec<Argument>, ArgumentError> {
    let length = std::fs::metadata(path).map_err(|error| failed(path, error))?.len();
    if length > FILE_BYTES_MAX {
        return Err(failed(path, "is larger than 1 MiB"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| failed(path, error))?;
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Vec::new());
    }
    let content: Value = serde_saphyr::from_str(&text).map_err(|error| failed(path, error))?;
    let Value::Object(fields) = content else { return Err(failed(path, "is no KubeletConfiguration")) };
    let origin = path.display().to_string();
    let fields = fields.into_iter().filter(|(field, _)| !matches!(field.as_str(), "kind" | "apiVersion" | "metadata"));
    Ok(fields
        .filter(|(_, value)| !value.is_null())
        .map(|(field, value)| Argument {
            origin: origin.clone(),
            value: flag_value(&field, &value),
            name: flag_name(&field),
        })
        .collect())
}

/// `maxPods` is `--max-pods`.
fn flag_name(field: &str) -> String {
    if let Some((_, flag)) = NAMES.iter().find(|(known, _)| *known == field) {
        return (*flag).to_owned();
    }
    let mut name = String::new();
    for letter in field.chars() {
        if letter.is_ascii_uppercase() {
            name.push('-');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

/// As the flag takes it: lists and maps between commas.
fn flag_value(field: &str, value: &Value) -> String {
    let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match value {
        Value::Array(items) if field == "registerWithTaints" => {
            let text = |taint: &Value, name: &str| taint[name].as_str().unwrap_or_default().to_owned();
            let taints = items.iter().map(|t| format!("{}={}:{}", text(t, "key"), text(t, "value"), text(t, "effect")));
            taints.collect::<Vec<_>>().join(",")
        }
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(","),
        Value::Object(map) => {
            let sign = if field.starts_with("eviction") { '<' } else { '=' };
            map.iter().map(|(key, value)| format!("{key}{sign}{}", plain(value))).collect::<Vec<_>>().join(",")
        }
        value => plain(value),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_become_arguments() {
        for (field, value, name, text) in [
            ("maxPods", json!(5), "max-pods", "5"),
            ("clusterDNS", json!(["10.43.0.10"]), "cluster-dns", "10.43.0.10"),
            ("evictionHard", json!({"memory.available": "5%"}), "eviction-hard", "memory.available<5%"),
            ("systemReserved", json!({"cpu": "1"}), "system-reserved", "cpu=1"),
            ("serializeImagePulls", json!(true), "serialize-image-pulls", "true"),
            (
                "registerWithTaints",
                json!([{"key": "a", "effect": "NoExecute"}]),
                "register-with-taints",
                "a=:NoExecute",
            ),
        ] {
            assert_eq!((flag_name(field).as_str(), flag_value(field, &value).as_str()), (name, text));
        }
    }
}
