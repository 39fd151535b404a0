//! Reading manifests: which files count, and the objects in one.

use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

/// Larger files are not manifests.
const BYTES_MAX: u64 = 16 << 20;
const DEPTH_MAX: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("read manifest")]
    Read(#[from] std::io::Error),
    #[error("manifest is larger than {BYTES_MAX} bytes")]
    TooLarge,
    #[error("manifest is not YAML: {0}")]
    Syntax(String),
    #[error("document {0} of the manifest is not a Kubernetes object")]
    NotAnObject(usize),
}

pub struct Manifest {
    /// The file's name up to the first dot.
    pub name: String,
    pub checksum: String,
    /// In the order in which they are applied.
    pub objects: Vec<Value>,
}

impl Manifest {
    pub fn read(path: &Path) -> Result<Self, ManifestError> {
        if std::fs::metadata(path)?.len() > BYTES_MAX {
            return Err(ManifestError::TooLarge);
        }
        let text = std::fs::read_to_string(path)?;
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let name = file.split('.').next().unwrap_or_default().to_lowercase();
        let checksum = Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { name, checksum, objects: parse(&text)? })
    }
}

/// All objects of a multi-document YAML or JSON text, `List`s taken apart.
fn parse(text: &str) -> Result<Vec<Value>, ManifestError> {
    // As kubectl reads it: `n` and `off` are names, not booleans.
    let options = serde_saphyr::options! { strict_booleans: true };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| ManifestError::Syntax(error.to_string()))?;
    let mut objects = Vec::new();
    for (number, document) in documents.into_iter().enumerate() {
        match document {
            Value::Null => {}
            Value::Object(ref map)
                if map.get("kind").and_then(Value::as_str).is_some_and(|kind| kind.ends_with("List")) =>
            {
                let items = map.get("items").and_then(Value::as_array).ok_or(ManifestError::NotAnObject(number + 1))?;
                objects.extend(items.iter().cloned());
            }
            object => objects.push(object),
        }
    }
    let named = |object: &Value| {
        ["/apiVersion", "/kind", "/metadata/name"].iter().all(|at| object.pointer(at).is_some_and(Value::is_string))
    };
    if let Some(wrong) = objects.iter().position(|object| !named(object)) {
        return Err(ManifestError::NotAnObject(wrong + 1));
    }
    // What others need comes first, whatever the order in the file.
    objects.sort_by_key(|object| match object["kind"].as_str() {
        Some("Namespace") => 0,
        Some("CustomResourceDefinition") => 1,
        Some("ServiceAccount" | "ConfigMap" | "Secret" | "ClusterRole" | "Role") => 2,
        _ => 3,
    });
    Ok(objects)
}

/// Manifests anywhere under `dir`, in order of their paths; hidden files are left out.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = folders(dir)
        .iter()
        .flat_map(|folder| entries(folder))
        .filter(|path| {
            let ending = path.extension().map(|ending| ending.to_ascii_lowercase());
            path.is_file() && ending.is_some_and(|ending| ending == "yaml" || ending == "yml" || ending == "json")
        })
        .collect();
    found.sort();
    found
}

/// `dir` and the folders below it.
pub fn folders(dir: &Path) -> Vec<PathBuf> {
    let mut all = vec![dir.to_owned()];
    let mut level = vec![dir.to_owned()];
    for _ in 0..DEPTH_MAX {
        level = level.iter().flat_map(|folder| entries(folder)).filter(|path| path.is_dir()).collect();
        all.extend(level.iter().cloned());
    }
    all
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let visible = |path: &PathBuf| !path.file_name().unwrap_or_default().to_string_lossy().starts_with('.');
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path())).filter(visible).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_become_objects_in_order_of_need() {
        let text = "---\n---\nkind: Pod\napiVersion: v1\nmetadata: {name: p}\n---\nkind: List\napiVersion: v1\nitems:\n\
            - {kind: Namespace, apiVersion: v1, metadata: {name: n}}\n";
        let kinds: Vec<_> = parse(text).unwrap().iter().map(|object| object["kind"].clone()).collect();
        assert_eq!(kinds, ["Namespace", "Pod"]);
        assert!(matches!(parse("kind: Pod"), Err(ManifestError::NotAnObject(1))));
        assert!(matches!(parse("a: ["), Err(ManifestError::Syntax(_))));
    }

    #[test]
    fn hidden_and_foreign_files_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        for name in ["b.yaml", "a.json", ".hidden.yaml", "notes.txt", "sub/c.yml"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let names: Vec<_> =
            files(dir.path()).iter().map(|path| path.strip_prefix(dir.path()).unwrap().display().to_string()).collect();
        assert_eq!(names, ["a.json", "b.yaml", "sub/c.yml"]);
    }
}
