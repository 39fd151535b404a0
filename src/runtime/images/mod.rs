//! Images: named, unpacked layer by layer, shared between images, removed when nothing needs them.
//!
//! Only unpacked layers are kept (`layers/<diff id>/fs`), each once whatever number of images has it. A layer directory is
//! complete or absent: it is filled aside, synced and renamed. The index names what is whole.

mod archive;
pub mod folder;
mod index;
mod platform;
mod pull;
pub mod reference;
pub mod registries;
mod service;
pub mod unpack;

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use nix::unistd::syncfs;

use crate::image::{ImageSource, ResolveError, ResolvedImage};
use crate::images::index::{Index, Record};
use crate::images::registries::Registries;
use crate::images::unpack::{UnpackError, Unpacked, unpack};

pub use archive::ImportError;
pub use pull::PullError;
pub use service::ARCHIVE_SCHEME;

#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error("layer {digest}")]
    Unpack { digest: String, source: UnpackError },
    #[error("layer {expected} has the digest {found}")]
    OtherContent { expected: String, found: String },
    #[error("keep layer {digest}")]
    Keep { digest: String, source: io::Error },
}

/// The images of this node. Cheap to clone.
#[derive(Clone)]
pub struct Images(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    index: RwLock<Index>,
    registries: Registries,
    /// Layers and images that are being fetched: whoever wants the same one waits instead of fetching it again.
    under_way: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Images {
    /// Opens the images in `dir` and throws away what a crash left half done.
    pub fn open(dir: &Path, registries: Registries) -> io::Result<Self> {
        for sub in ["layers", "aside"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        let index = Index::load(dir.join("index.json"))?;
        let images = Self(Arc::new(Inner {
            dir: dir.to_owned(),
            index: RwLock::new(index),
            registries,
            under_way: Mutex::default(),
        }));
        for entry in fs::read_dir(images.0.dir.join("aside"))? {
            let path = entry?.path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            if let Err(error) = removed {
                tracing::warn!(path = %path.display(), %error, "left over from a crash, and cannot be removed");
            }
        }
        images.sweep()?;
        Ok(images)
    }

    fn layer_dir(&self, diff_id: &str) -> PathBuf {
        self.0.dir.join("layers").join(diff_id.trim_start_matches("sha256:")).join("fs")
    }

    fn has_layer(&self, diff_id: &str) -> bool {
        self.layer_dir(diff_id).is_dir()
    }

    /// A place for something unfinished; thrown away at the next start.
    fn aside(&self) -> PathBuf {
        self.0.dir.join("aside").join(uuid::Uuid::new_v4().to_string())
    }

    /// Unpacks a layer and keeps it if it is what it should be. Blocks.
    fn add_layer(&self, expected: &str, stream: impl Read) -> Result<(), LayerError> {
        let aside = self.aside();
        let keep = |source| LayerError::Keep { digest: expected.to_owned(), source };
        let root = aside.join("fs");
        fs::create_dir_all(&root).map_err(keep)?;
        let result = unpack(stream, &root)
            .map_err(|source| LayerError::Unpack { digest: expected.to_owned(), source })
            .and_then(|Unpacked { diff_id, bytes }| {
                if diff_id != expected {
                    return Err(LayerError::OtherContent { expected: expected.to_owned(), found: diff_id });
                }
                fs::write(aside.join("bytes"), bytes.to_string()).map_err(keep)?;
                self.keep_layer(&aside, expected).map_err(keep)
            });
        if result.is_err() {
            // What cannot be removed now is removed at the next start.
            let _ = fs::remove_dir_all(&aside);
        }
        result
    }

    fn keep_layer(&self, aside: &Path, diff_id: &str) -> io::Result<()> {
        // All of it has to be on disk before its name is, or a power cut leaves a layer with empty files.
        syncfs(File::open(aside)?)?;
        let layer = self.layer_dir(diff_id);
        let kept = layer.parent().unwrap_or(&layer);
        match fs::rename(aside, kept) {
            // Somebody else was as fast; layers of one digest are equal.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => fs::remove_dir_all(aside),
            renamed => renamed,
        }?;
        File::open(self.0.dir.join("layers"))?.sync_all()
    }

    fn layer_bytes(&self, diff_id: &str) -> u64 {
        let path = self.layer_dir(diff_id).with_file_name("bytes");
        fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    /// Names an image whose layers are here.
    fn add_image(&self, id: &str, mut record: Record) -> io::Result<()> {
        record.bytes = record.layers.iter().map(|layer| self.layer_bytes(layer)).sum();
        let mut index = self.0.index.write().unwrap_or_else(PoisonError::into_inner);
        index.add(id, record);
        index.save()
    }

    /// Removes an image under all its names, and the layers that no other has. Nothing is fine.
    fn remove(&self, image: &str) -> io::Result<()> {
        {
            let mut index = self.0.index.write().unwrap_or_else(PoisonError::into_inner);
            let Some(id) = index.find(image).map(|(id, _)| id.clone()) else { return Ok(()) };
            index.images.remove(&id);
            index.save()?;
        }
        self.sweep()
    }

    /// Removes layers that no image names and no container is mounted on.
    fn sweep(&self) -> io::Result<()> {
        // Held, so that no layer arrives for an image that is about to be named; new layers of pulls under way are kept.
        let under_way = self.0.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if !under_way.is_empty() {
            return Ok(());
        }
        let index = self.0.index.read().unwrap_or_else(PoisonError::into_inner);
        let wanted: BTreeSet<&str> =
            index.layers().into_iter().map(|layer| layer.trim_start_matches("sha256:")).collect();
        let mounted = fs::read_to_string("/proc/self/mountinfo")?;
        for entry in fs::read_dir(self.0.dir.join("layers"))? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            // A running container may have outlived its image; its layers go at a later sweep.
            if wanted.contains(name.as_ref()) || is_mounted(&mounted, &entry.path(), &name) {
                continue;
            }
            tracing::debug!(layer = %name, "removing a layer that nothing needs");
            let gone = self.aside();
            fs::rename(entry.path(), &gone)?;
            fs::remove_dir_all(&gone)?;
        }
        Ok(())
    }

    fn find(&self, image: &str) -> Option<(String, Record)> {
        let index = self.0.index.read().unwrap_or_else(PoisonError::into_inner);
        index.find(image).map(|(id, record)| (id.clone(), record.clone()))
    }

    fn all(&self) -> Vec<(String, Record)> {
        let index = self.0.index.read().unwrap_or_else(PoisonError::into_inner);
        index.images.iter().map(|(id, record)| (id.clone(), record.clone())).collect()
    }

    /// The lock under which one thing is fetched. Forgotten when the last one who holds it lets go.
    fn claim(&self, key: &str) -> Claim {
        let mut under_way = self.0.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let lock = Arc::clone(under_way.entry(key.to_owned()).or_default());
        Claim { images: self.clone(), key: key.to_owned(), lock }
    }
}

/// Whether some overlay has the layer below it. Mounts of many layers name them without their folder (see `snapshot.rs`).
fn is_mounted(mountinfo: &str, layer: &Path, name: &str) -> bool {
    let whole = format!("{}/fs", layer.display());
    [whole, format!("={name}/fs"), format!(":{name}/fs")].iter().any(|lower| mountinfo.contains(lower.as_str()))
}

struct Claim {
    images: Images,
    key: String,
    lock: Arc<tokio::sync::Mutex<()>>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut under_way = self.images.0.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        // The map has one, we have one.
        if Arc::strong_count(&self.lock) <= 2 {
            under_way.remove(&self.key);
        }
    }
}

#[async_trait::async_trait]
impl ImageSource for Images {
    async fn resolve(&self, image: &str) -> Result<ResolvedImage, ResolveError> {
        let (id, record) = self.find(image).ok_or_else(|| ResolveError::NotFound(image.to_owned()))?;
        if let Some(missing) = record.layers.iter().find(|layer| !self.has_layer(layer)) {
            let reason = format!("layer {missing} is missing; remove the image and pull it again");
            return Err(ResolveError::Invalid { image: image.to_owned(), reason });
        }
        Ok(ResolvedImage {
            reference: record.digests.first().cloned().unwrap_or_else(|| id.clone()),
            config: record.config.effective(),
            layers: record.layers.iter().rev().map(|layer| self.layer_dir(layer)).collect(),
            id,
        })
    }
}
