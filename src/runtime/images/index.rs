//! Which images there are: one file, replaced whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::reference::Reference;
use crate::image::ImageConfig;

const FORMAT: u32 = 1;

/// One image. Its id is the key under which it is kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// `registry/repository:tag`
    pub tags: BTreeSet<String>,
    /// `registry/repository@sha256:…`
    pub digests: BTreeSet<String>,
    /// Digests of the uncompressed layers, the lowest first.
    pub layers: Vec<String>,
    /// Of all layers, unpacked.
    pub bytes: u64,
    pub config: Config,
    /// Imported from the node's own archives: not to be removed when the disk is full.
    #[serde(default)]
    pub pinned: bool,
}

/// The `config` part of an OCI image configuration, as far as it has an effect.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Config {
    pub user: Option<String>,
    pub env: Option<Vec<String>>,
    pub entrypoint: Option<Vec<String>>,
    pub cmd: Option<Vec<String>>,
    pub working_dir: Option<String>,
    pub stop_signal: Option<String>,
    pub volumes: Option<BTreeMap<String, serde_json::Value>>,
    pub labels: Option<BTreeMap<String, String>>,
}

impl Config {
    pub fn effective(&self) -> ImageConfig {
        ImageConfig {
            user: self.user.clone().unwrap_or_default(),
            env: self.env.clone().unwrap_or_default(),
            entrypoint: self.entrypoint.clone().unwrap_or_default(),
            cmd: self.cmd.clone().unwrap_or_default(),
            working_dir: self.working_dir.clone().unwrap_or_default(),
            stop_signal: self.stop_signal.clone().unwrap_or_default(),
            volumes: self.volumes.iter().flat_map(|volumes| volumes.keys().cloned()).collect(),
            labels: self.labels.clone().unwrap_or_default(),
        }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Stored {
    format: u32,
    images: BTreeMap<String, Record>,
}

#[derive(Debug)]
pub struct Index {
    path: PathBuf,
    pub images: BTreeMap<String, Record>,
}

impl Index {
    /// # Errors
    /// When the file cannot be read. One that is not ours, or of a later format, is an error too: nothing is thrown away.
    pub fn load(path: PathBuf) -> io::Result<Self> {
        let stored = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice::<Stored>(&bytes).map_err(|error| {
                let text = format!("{} is damaged ({error}); remove it, and images are pulled again", path.display());
                io::Error::new(io::ErrorKind::InvalidData, text)
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Stored { format: FORMAT, ..Stored::default() },
            Err(error) => return Err(error),
        };
        if stored.format > FORMAT {
            let text = format!("{} has format {}, this version knows {FORMAT}", path.display(), stored.format);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(Self { path, images: stored.images })
    }

    /// Durable when it returns.
    pub fn save(&self) -> io::Result<()> {
        let stored = Stored { format: FORMAT, images: self.images.clone() };
        let aside = self.path.with_extension("new");
        let mut file = File::create(&aside)?;
        file.write_all(&serde_json::to_vec(&stored)?)?;
        file.sync_all()?;
        fs::rename(&aside, &self.path)?;
        File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()
    }

    /// Adds the image, or its new names. A tag names one image only, so others lose it.
    pub fn add(&mut self, id: &str, record: Record) {
        for (other, known) in &mut self.images {
            if other != id {
                known.tags.retain(|tag| !record.tags.contains(tag));
            }
        }
        match self.images.get_mut(id) {
            Some(known) => {
                known.tags.extend(record.tags);
                known.digests.extend(record.digests);
                known.pinned |= record.pinned;
            }
            None => drop(self.images.insert(id.to_owned(), record)),
        }
    }

    /// Finds an image by id (whole, or its first digits), tag or digest.
    pub fn find(&self, text: &str) -> Option<(&String, &Record)> {
        if let Some(found) = self.images.get_key_value(text) {
            return Some(found);
        }
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        if digits.len() >= 8 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let mut fitting = self
                .images
                .iter()
                .filter(|(id, _)| id.strip_prefix("sha256:").is_some_and(|id| id.starts_with(digits)));
            if let (Some(found), None) = (fitting.next(), fitting.next()) {
                return Some(found);
            }
        }
        let reference = Reference::parse(text).ok()?;
        // With a digest, the tag beside it does not matter.
        match &reference.digest {
            Some(digest) => {
                let wanted = reference.with_digest(digest);
                self.images.iter().find(|(_, record)| record.digests.contains(&wanted))
            }
            None => {
                let wanted = reference.tagged()?;
                self.images.iter().find(|(_, record)| record.tags.contains(&wanted))
            }
        }
    }

    /// The layers that some image needs.
    pub fn layers(&self) -> BTreeSet<&str> {
        self.images.values().flat_map(|record| record.layers.iter().map(String::as_str)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_moves_to_the_newest_image() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index.json");
        let mut index = Index::load(path.clone()).unwrap();
        let record = |layer: &str| Record {
            tags: ["docker.io/library/app:latest".to_owned()].into(),
            digests: [format!("docker.io/library/app@sha256:{}", layer.repeat(64))].into(),
            layers: vec![layer.to_owned()],
            ..Record::default()
        };
        let id = |digit: &str| format!("sha256:{}", digit.repeat(64));
        index.add(&id("1"), record("a"));
        index.add(&id("2"), record("b"));
        index.save().unwrap();
        let index = Index::load(path).unwrap();
        assert_eq!(index.find("app").unwrap().0, &id("2"));
        assert_eq!(index.find(&format!("app:1.0@sha256:{}", "a".repeat(64))).unwrap().0, &id("1"));
        assert_eq!(index.find("11111111").unwrap().0, &id("1"));
        assert_eq!(index.find(&id("2")).unwrap().0, &id("2"));
        assert!(index.find("app:2").is_none() && index.find("2222").is_none());
        assert_eq!(index.layers(), ["a", "b"].into());
    }

    #[test]
    fn a_damaged_index_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index.json");
        fs::write(&path, "{\"format\":").unwrap();
        assert!(Index::load(path.clone()).unwrap_err().to_string().contains("index.json"));
        fs::write(&path, "{\"format\":9,\"images\":{}}").unwrap();
        assert!(Index::load(path).is_err());
    }
}
