//! Imports images from archives: `docker save`'s format and OCI layouts, plain or compressed.
//!
//! An archive is read twice, streaming: first its documents, which may stand at the end, then the layers that are missing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use tar::{Archive, EntryType};

use super::index::Record;
use super::platform::{DOCUMENT_BYTES_MAX, Descriptor, Document, ImageConfiguration, choose};
use super::reference::{Reference, is_digest};
use super::unpack::{decompress, hex};
use super::{Images, LayerError};

/// Of all documents of one archive.
const DOCUMENTS_BYTES_MAX: u64 = 64 << 20;
const NESTED_INDEXES_MAX: usize = 4;
/// containerd's own annotation comes first; it always holds the whole name.
const NAME_ANNOTATIONS: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("read the archive")]
    Read(#[from] io::Error),
    #[error("not an image archive: it holds neither index.json nor manifest.json")]
    NotAnImage,
    #[error("the archive names {0}, but does not hold it")]
    Missing(String),
    #[error("{name} in the archive is not what it should be: {reason}")]
    Document { name: String, reason: String },
    #[error("no image in the archive is for this machine (linux/{0})")]
    Platform(&'static str),
    #[error(transparent)]
    Layer(#[from] LayerError),
    #[error("the import was interrupted")]
    Interrupted,
}

/// An image as the archive describes it.
struct Found {
    id: String,
    record: Record,
    /// Where each layer is in the archive.
    layer_paths: Vec<PathBuf>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Images {
    /// Imports all images of the archive and returns their names (the id of one that has none).
    pub async fn import(&self, path: &Path, pinned: bool) -> Result<Vec<String>, ImportError> {
        let images = self.clone();
        let path = path.to_owned();
        // Keeps sweeps away from layers that no image names yet.
        let claim = self.claim(&path.to_string_lossy());
        let _turn = claim.lock.lock().await;
        let imported = tokio::task::spawn_blocking(move || images.import_blocking(&path, pinned)).await;
        imported.map_err(|_| ImportError::Interrupted)?
    }

    fn import_blocking(&self, path: &Path, pinned: bool) -> Result<Vec<String>, ImportError> {
        let documents = Documents::read(path)?;
        let found = documents.images()?;
        let mut wanted: BTreeMap<PathBuf, BTreeSet<String>> = BTreeMap::new();
        for image in &found {
            for (layer, at) in image.record.layers.iter().zip(&image.layer_paths) {
                if !self.has_layer(layer) {
                    wanted.entry(documents.follow(at)).or_default().insert(layer.clone());
                }
            }
        }
        if !wanted.is_empty() {
            let mut archive = Archive::new(decompress(File::open(path)?)?);
            for entry in archive.entries()? {
                let mut entry = entry?;
                // One file cannot be two layers: the digest of the other would not fit.
                let layer = wanted.remove(&clean(&entry.path()?));
                if let Some(layer) = layer.and_then(|layers| layers.into_iter().next()) {
                    self.add_layer(&layer, &mut entry)?;
                }
            }
        }
        if let Some(missing) = wanted.keys().next() {
            return Err(ImportError::Missing(missing.display().to_string()));
        }
        let mut names = Vec::new();
        for Found { id, mut record, .. } in found {
            names.extend(record.tags.iter().cloned());
            if record.tags.is_empty() {
                names.push(record.digests.first().cloned().unwrap_or_else(|| id.clone()));
            }
            record.pinned = pinned;
            self.add_image(&id, record)?;
        }
        Ok(names)
    }
}

/// The small files of an archive.
struct Documents {
    files: BTreeMap<PathBuf, Vec<u8>>,
    /// `docker save` of old writes a layer that several images share once, and links to it.
    links: BTreeMap<PathBuf, PathBuf>,
}

impl Documents {
    fn read(path: &Path) -> Result<Self, ImportError> {
        let mut documents = Self { files: BTreeMap::new(), links: BTreeMap::new() };
        let mut bytes = 0;
        let mut archive = Archive::new(decompress(File::open(path)?)?);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = clean(&entry.path()?);
            match entry.header().entry_type() {
                EntryType::Symlink | EntryType::Link => {
                    if let Some(target) = entry.link_name()? {
                        let base = path.parent().unwrap_or(Path::new("")).to_owned();
                        let target = match entry.header().entry_type() {
                            EntryType::Symlink => clean(&base.join(target)),
                            _ => clean(&target),
                        };
                        documents.links.insert(path, target);
                    }
                }
                EntryType::Regular if entry.size() <= DOCUMENT_BYTES_MAX && may_be_document(&path) => {
                    let mut content = Vec::new();
                    // Layers, which are blobs too, do not begin like JSON.
                    entry.by_ref().take(1).read_to_end(&mut content)?;
                    if content != b"{" && content != b"[" {
                        continue;
                    }
                    bytes += entry.size();
                    if bytes > DOCUMENTS_BYTES_MAX {
                        let reason = "the archive's documents are larger than 64 MiB".to_owned();
                        return Err(ImportError::Document { name: path.display().to_string(), reason });
                    }
                    entry.read_to_end(&mut content)?;
                    documents.files.insert(path, content);
                }
                _ => {}
            }
        }
        Ok(documents)
    }

    fn images(&self) -> Result<Vec<Found>, ImportError> {
        if self.files.contains_key(Path::new("index.json")) {
            let index: Document = self.document("index.json")?;
            let mut found = Vec::new();
            for descriptor in index.manifests.unwrap_or_default() {
                found.extend(self.oci(&descriptor, &names(&descriptor), NESTED_INDEXES_MAX)?);
            }
            return match found.is_empty() {
                true => Err(ImportError::Platform(super::platform::architecture())),
                false => Ok(found),
            };
        }
        if self.files.contains_key(Path::new("manifest.json")) {
            let images: Vec<DockerImage> = self.document("manifest.json")?;
            return images.into_iter().map(|image| self.docker(image)).collect();
        }
        Err(ImportError::NotAnImage)
    }

    fn docker(&self, image: DockerImage) -> Result<Found, ImportError> {
        let (id, configuration) = self.configuration(&image.config)?;
        let tags = image.repo_tags.unwrap_or_default();
        let tags = tags.iter().filter_map(|tag| Reference::parse(tag).ok()?.tagged()).collect();
        let record = Record { tags, ..record(configuration) };
        if record.layers.len() != image.layers.len() {
            let reason = "the manifest and the configuration name different numbers of layers".to_owned();
            return Err(ImportError::Document { name: image.config, reason });
        }
        Ok(Found { id, record, layer_paths: image.layers.iter().map(PathBuf::from).collect() })
    }

    /// `None` for what is not for this machine.
    fn oci(&self, descriptor: &Descriptor, names: &[Reference], depth: usize) -> Result<Option<Found>, ImportError> {
        let path = blob(&descriptor.digest)?;
        // Archives made for one platform leave the others' manifests out, and attestations may be missing too.
        if !self.files.contains_key(Path::new(&path)) {
            return Ok(None);
        }
        let document: Document = self.verified(&path, &descriptor.digest)?;
        if let Some(manifests) = document.manifests {
            let Some(chosen) = choose(&manifests).filter(|_| depth > 0) else { return Ok(None) };
            let mut found = self.oci(chosen, names, depth - 1)?;
            if let Some(found) = &mut found {
                // The index is what people know as the image's digest.
                found.record.digests = names.iter().map(|name| name.with_digest(&descriptor.digest)).collect();
            }
            return Ok(found);
        }
        let (Some(config), Some(layers)) = (document.config, document.layers) else { return Ok(None) };
        let config_path = blob(&config.digest)?;
        let (id, configuration) = self.configuration(&config_path)?;
        if configuration.architecture != super::platform::architecture() && !configuration.architecture.is_empty() {
            return Ok(None);
        }
        let record = Record {
            tags: names.iter().filter_map(Reference::tagged).collect(),
            digests: names.iter().map(|name| name.with_digest(&descriptor.digest)).collect(),
            ..record(configuration)
        };
        if record.layers.len() != layers.len() {
            let reason = "the manifest and the configuration name different numbers of layers".to_owned();
            return Err(ImportError::Document { name: path, reason });
        }
        let layer_paths =
            layers.iter().map(|layer| Ok(blob(&layer.digest)?.into())).collect::<Result<_, ImportError>>()?;
        Ok(Some(Found { id, record, layer_paths }))
    }

    /// An image's configuration, and its digest: the image's id.
    fn configuration(&self, path: &str) -> Result<(String, ImageConfiguration), ImportError> {
        let configuration: ImageConfiguration = self.document(path)?;
        if let Some(wrong) = configuration.rootfs.diff_ids.iter().find(|layer| !is_digest(layer)) {
            let reason = format!("{wrong:?} is not a digest");
            return Err(ImportError::Document { name: path.to_owned(), reason });
        }
        Ok((digest(self.bytes(path)?), configuration))
    }

    fn verified<T: DeserializeOwned>(&self, path: &str, expected: &str) -> Result<T, ImportError> {
        let found = digest(self.bytes(path)?);
        if found != expected {
            return Err(ImportError::Document { name: path.to_owned(), reason: format!("its digest is {found}") });
        }
        self.document(path)
    }

    fn document<T: DeserializeOwned>(&self, path: &str) -> Result<T, ImportError> {
        serde_json::from_slice(self.bytes(path)?)
            .map_err(|error| ImportError::Document { name: path.to_owned(), reason: error.to_string() })
    }

    fn bytes(&self, path: &str) -> Result<&[u8], ImportError> {
        let bytes = self.files.get(&self.follow(Path::new(path)));
        bytes.map(Vec::as_slice).ok_or_else(|| ImportError::Missing(path.to_owned()))
    }

    fn follow(&self, path: &Path) -> PathBuf {
        let mut path = clean(path);
        // Bounded, because links may form a circle.
        for _ in 0..8 {
            match self.links.get(&path) {
                Some(target) => path.clone_from(target),
                None => break,
            }
        }
        path
    }
}

fn record(configuration: ImageConfiguration) -> Record {
    Record {
        layers: configuration.rootfs.diff_ids,
        config: configuration.config.unwrap_or_default(),
        ..Record::default()
    }
}

/// The whole names that a descriptor carries; a bare tag (`1.0`) is none.
fn names(descriptor: &Descriptor) -> Vec<Reference> {
    let values = NAME_ANNOTATIONS.iter().filter_map(|annotation| descriptor.annotations.get(*annotation));
    let whole = values.filter(|value| value.contains(['/', ':'])).filter_map(|value| Reference::parse(value).ok());
    whole.take(1).collect()
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

fn blob(digest: &str) -> Result<String, ImportError> {
    if !is_digest(digest) {
        return Err(ImportError::Document { name: digest.to_owned(), reason: "not a sha256 digest".to_owned() });
    }
    Ok(digest.replacen("sha256:", "blobs/sha256/", 1))
}

/// Paths in archives come with and without `./`, and links climb.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            std::path::Component::Normal(name) => clean.push(name),
            std::path::Component::ParentDir => drop(clean.pop()),
            _ => {}
        }
    }
    clean
}

fn may_be_document(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "json") || path.starts_with("blobs/sha256")
}
