//! What containers need to know of images. The image store implements it.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// An image that is here, unpacked.
#[derive(Debug, Clone, Default)]
pub struct ResolvedImage {
    /// Digest of the config: `sha256:…`. CRI's image id.
    pub id: String,
    /// What CRI calls the image reference: `name@sha256:…` when there is one, else the id.
    pub reference: String,
    pub config: ImageConfig,
    /// Unpacked layers, the topmost first, as overlayfs counts.
    pub layers: Vec<PathBuf>,
}

/// The part of an OCI image config that has an effect on containers.
#[derive(Debug, Clone, Default)]
pub struct ImageConfig {
    /// `user`, `uid`, `user:group`…; empty for root.
    pub user: String,
    /// `NAME=value`.
    pub env: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub working_dir: String,
    /// `SIGTERM`, `15`; empty for the default.
    pub stop_signal: String,
    pub volumes: Vec<String>,
    pub labels: BTreeMap<String, String>,
}

/// Why there is no such image.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    #[error("image {0} not found")]
    NotFound(String),
    #[error("read image {image}")]
    Io { image: String, source: std::io::Error },
    #[error("image {image} is not usable: {reason}")]
    Invalid { image: String, reason: String },
}

/// Where images come from.
#[async_trait::async_trait]
pub trait ImageSource: Send + Sync + 'static {
    /// Finds an image by reference, digest or id, and makes sure that it is unpacked.
    async fn resolve(&self, image: &str) -> Result<ResolvedImage, ResolveError>;
}
