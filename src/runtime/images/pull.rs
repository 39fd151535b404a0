//! Pulls images from registries.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::{StreamExt, TryStreamExt};
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::{OciDescriptor, OciImageManifest};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference as OciReference};
use sha2::{Digest, Sha256};

use super::index::Record;
use super::platform::{self, DOCUMENT_BYTES_MAX, Descriptor, ImageConfiguration, Platform};
use super::reference::{Reference, ReferenceError, is_digest};
use super::registries::{Auth, Endpoint};
use super::unpack::hex;
use super::{Images, LayerError};

/// Layers of one image on their way at once.
const LAYERS_AT_ONCE: usize = 3;
const CONNECT_TIME: Duration = Duration::from_secs(15);
/// Without a byte for this long, a download is dead.
const READ_TIME: Duration = Duration::from_secs(60);
/// A broken download goes on where it stopped, this often.
const RESUMES_MAX: u32 = 5;

#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error(transparent)]
    Name(#[from] ReferenceError),
    /// The registry has no such image, or does not say so to strangers.
    #[error("failed to resolve image: {image}: not found")]
    NotFound { image: String },
    #[error("pull access denied for {image}: {reason}")]
    Denied { image: String, reason: String },
    #[error("pull {image} from {endpoint}: {reason}")]
    Registry { image: String, endpoint: String, reason: String },
    #[error("{image} from {endpoint} is not a usable image: {reason}")]
    Invalid { image: String, endpoint: String, reason: String },
    #[error("no certificate in {}", path.display())]
    Certificate { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Layer(#[from] LayerError),
    #[error("keep the image")]
    Keep(#[from] io::Error),
    #[error("the pull was interrupted")]
    Interrupted,
}

impl Images {
    /// Pulls an image and returns its id. One that is here already costs a question to the registry.
    pub async fn pull(&self, text: &str, auth: Option<Auth>) -> Result<String, PullError> {
        let reference = Reference::parse(text)?;
        let claim = self.claim(&reference.to_string());
        let _turn = claim.lock.lock().await;
        if let (Some(digest), Some((id, _))) = (&reference.digest, self.find(&reference.to_string())) {
            tracing::debug!(image = text, digest, "image of this digest is here");
            return Ok(id);
        }
        let mut first_error = None;
        for endpoint in self.0.registries.endpoints(&reference.registry) {
            let pulled = Pull { images: self, reference: &reference, endpoint: &endpoint };
            match pulled.run(auth.clone()).await {
                Ok(id) => return Ok(id),
                Err(error) => {
                    tracing::debug!(image = text, endpoint = endpoint.host, %error, "endpoint did not deliver");
                    // The registry itself is asked last and knows best, unless it could not be asked at all.
                    let better = !matches!(error, PullError::Registry { .. }) || first_error.is_none();
                    if better {
                        first_error = Some(error);
                    }
                }
            }
        }
        Err(first_error.unwrap_or(PullError::NotFound { image: text.to_owned() }))
    }

    /// A client for one pull. It remembers who was the first to ask its registry, so another pod, which may bring other
    /// credentials or none, must not get the same one.
    fn client(&self, endpoint: &Endpoint) -> Result<Client, PullError> {
        let tls = self.0.registries.config(&endpoint.host).and_then(|config| config.tls.clone());
        let mut config = ClientConfig {
            protocol: if endpoint.plain_http { ClientProtocol::Http } else { ClientProtocol::Https },
            platform_resolver: Some(Box::new(|entries| {
                let descriptors: Vec<Descriptor> = entries
                    .iter()
                    .map(|entry| Descriptor {
                        digest: entry.digest.clone(),
                        platform: entry.platform.as_ref().map(|platform| Platform {
                            os: platform.os.to_string(),
                            architecture: platform.architecture.to_string(),
                            variant: platform.variant.clone(),
                        }),
                        annotations: BTreeMap::new(),
                    })
                    .collect();
                platform::choose(&descriptors).map(|chosen| chosen.digest.clone())
            })),
            connect_timeout: Some(CONNECT_TIME),
            read_timeout: Some(READ_TIME),
            user_agent: "mussel",
            ..ClientConfig::default()
        };
        if let Some(tls) = tls {
            config.accept_invalid_certificates = tls.insecure_skip_verify;
            if let Some(path) = tls.ca_file {
                let data = fs::read(&path).map_err(|source| PullError::Certificate { path, source })?;
                config.extra_root_certificates.push(Certificate { encoding: CertificateEncoding::Pem, data });
            }
        }
        Ok(Client::new(config))
    }
}

/// One attempt at one endpoint.
struct Pull<'a> {
    images: &'a Images,
    reference: &'a Reference,
    endpoint: &'a Endpoint,
}

impl Pull<'_> {
    async fn run(&self, auth: Option<Auth>) -> Result<String, PullError> {
        let client = self.images.client(self.endpoint)?;
        // What a pod brings is for the registry that it names. A mirror has its own in registries.yaml.
        let auth = auth.filter(|_| !self.endpoint.is_mirror);
        let auth = auth.or_else(|| self.images.0.registries.config(&self.endpoint.host)?.auth.clone());
        let auth = auth.map_or(RegistryAuth::Anonymous, credentials);
        let source = self.source();
        let pulled = client.pull_image_manifest_and_list_digest(&source, &auth).await;
        let (manifest, manifest_digest, list_digest) = pulled.map_err(|error| self.refused(&error))?;
        let digest = list_digest.unwrap_or(manifest_digest);
        if self.reference.digest.as_ref().is_some_and(|wanted| *wanted != digest) && !is_digest(&digest) {
            return Err(self.invalid(format!("its digest is {digest}")));
        }
        let id = manifest.config.digest.clone();
        let configuration = self.configuration(&client, &source, &manifest).await?;
        let layers = configuration.rootfs.diff_ids;
        if layers.len() != manifest.layers.len() {
            return Err(self.invalid("manifest and configuration name different numbers of layers".to_owned()));
        }
        let mut fetches = Vec::new();
        for (diff_id, layer) in layers.iter().zip(&manifest.layers) {
            if !self.images.has_layer(diff_id) {
                fetches.push(self.layer(&client, &source, diff_id, layer));
            }
        }
        futures::stream::iter(fetches).buffer_unordered(LAYERS_AT_ONCE).try_collect::<()>().await?;
        let record = Record {
            tags: self.reference.tagged().filter(|_| self.reference.digest.is_none()).into_iter().collect(),
            digests: [self.reference.with_digest(self.reference.digest.as_ref().unwrap_or(&digest))].into(),
            layers,
            config: configuration.config.unwrap_or_default(),
            ..Record::default()
        };
        let (images, kept) = (self.images.clone(), id.clone());
        let kept = tokio::task::spawn_blocking(move || images.add_image(&kept, record)).await;
        kept.map_err(|_| PullError::Interrupted)??;
        Ok(id)
    }

    /// The image's name as this endpoint knows it.
    fn source(&self) -> OciReference {
        let repository = self.endpoint.repository(&self.reference.repository);
        let registry = match self.endpoint.is_mirror {
            true => self.reference.registry.clone(),
            false => self.endpoint.host.clone(),
        };
        let mut source = match (&self.reference.digest, &self.reference.tag) {
            (Some(digest), _) => OciReference::with_digest(registry, repository, digest.clone()),
            (None, Some(tag)) => OciReference::with_tag(registry, repository, tag.clone()),
            (None, None) => OciReference::with_tag(registry, repository, "latest".to_owned()),
        };
        if self.endpoint.is_mirror {
            source.set_mirror_registry(self.endpoint.host.clone());
        }
        source
    }

    async fn configuration(
        &self,
        client: &Client,
        source: &OciReference,
        manifest: &OciImageManifest,
    ) -> Result<ImageConfiguration, PullError> {
        if u64::try_from(manifest.config.size).unwrap_or(u64::MAX) > DOCUMENT_BYTES_MAX
            || !is_digest(&manifest.config.digest)
        {
            return Err(self.invalid("its configuration is no configuration".to_owned()));
        }
        let mut bytes = Vec::new();
        client.pull_blob(source, &manifest.config, &mut bytes).await.map_err(|error| self.refused(&error))?;
        let configuration: ImageConfiguration =
            serde_json::from_slice(&bytes).map_err(|error| self.invalid(format!("its configuration: {error}")))?;
        match configuration.rootfs.diff_ids.iter().find(|layer| !is_digest(layer)) {
            Some(wrong) => Err(self.invalid(format!("{wrong:?} is not a digest"))),
            None => Ok(configuration),
        }
    }

    async fn layer(
        &self,
        client: &Client,
        source: &OciReference,
        diff_id: &str,
        layer: &OciDescriptor,
    ) -> Result<(), PullError> {
        // Images share layers: another pull may be at this one.
        let claim = self.images.claim(diff_id);
        let _turn = claim.lock.lock().await;
        if self.images.has_layer(diff_id) {
            return Ok(());
        }
        let blob = Aside(self.images.aside());
        self.download(client, source, layer, &blob.0).await?;
        let (images, diff_id) = (self.images.clone(), diff_id.to_owned());
        let unpacked = tokio::task::spawn_blocking(move || {
            let file = File::open(&blob.0)?;
            Ok::<_, PullError>(images.add_layer(&diff_id, file)?)
        });
        unpacked.await.map_err(|_| PullError::Interrupted)?
    }

    /// Fetches a blob into a file, going on where a broken connection left off.
    async fn download(
        &self,
        client: &Client,
        source: &OciReference,
        layer: &OciDescriptor,
        path: &Path,
    ) -> Result<(), PullError> {
        let size = u64::try_from(layer.size).unwrap_or(0);
        let mut hash = Sha256::new();
        let mut file = File::create(path)?;
        let mut received: u64 = 0;
        let mut resumes = 0;
        loop {
            let mut stream = if received == 0 {
                client.pull_blob_stream(source, layer).await.map_err(|error| self.refused(&error))?.stream
            } else {
                let partial = client.pull_blob_stream_partial(source, layer, received, None).await;
                match partial.map_err(|error| self.refused(&error))? {
                    oci_client::client::BlobResponse::Partial(stream) => stream.stream,
                    oci_client::client::BlobResponse::Full(stream) => {
                        // A registry without ranges begins again.
                        (hash, received) = (Sha256::new(), 0);
                        file = File::create(path)?;
                        stream.stream
                    }
                }
            };
            let broken = loop {
                match stream.next().await {
                    None => break None,
                    Some(Err(error)) => break Some(error),
                    Some(Ok(bytes)) => {
                        received += bytes.len() as u64;
                        if size > 0 && received > size {
                            return Err(self.invalid(format!("layer {} is longer than it says", layer.digest)));
                        }
                        hash.update(&bytes);
                        file.write_all(&bytes)?;
                    }
                }
            };
            match broken {
                None => break,
                Some(error) if resumes >= RESUMES_MAX || received == 0 => {
                    return Err(self.registry(error.to_string()));
                }
                Some(error) => {
                    tracing::debug!(layer = layer.digest, received, %error, "download broke; going on");
                    resumes += 1;
                }
            }
        }
        let found = format!("sha256:{}", hex(&hash.finalize()));
        if found != layer.digest {
            return Err(self.invalid(format!("layer {} arrived as {found}", layer.digest)));
        }
        Ok(())
    }

    fn invalid(&self, reason: String) -> PullError {
        PullError::Invalid { image: self.reference.to_string(), endpoint: self.endpoint.host.clone(), reason }
    }

    fn registry(&self, reason: String) -> PullError {
        PullError::Registry { image: self.reference.to_string(), endpoint: self.endpoint.host.clone(), reason }
    }

    fn refused(&self, error: &OciDistributionError) -> PullError {
        let image = self.reference.to_string();
        match error {
            OciDistributionError::ImageManifestNotFoundError(_)
            | OciDistributionError::ServerError { code: 404, .. } => PullError::NotFound { image },
            OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
                PullError::Denied { image, reason: "authorization failed".to_owned() }
            }
            OciDistributionError::ServerError { code: 401 | 403, .. } => {
                PullError::Denied { image, reason: "authorization failed".to_owned() }
            }
            OciDistributionError::RegistryError { envelope, .. } => {
                let codes: Vec<_> = envelope.errors.iter().map(|error| &error.code).collect();
                let is = |wanted: &[OciErrorCode]| codes.iter().any(|code| wanted.contains(code));
                if is(&[OciErrorCode::ManifestUnknown, OciErrorCode::NameUnknown, OciErrorCode::NotFound]) {
                    PullError::NotFound { image }
                } else if is(&[OciErrorCode::Unauthorized, OciErrorCode::Denied]) {
                    PullError::Denied { image, reason: "authorization failed".to_owned() }
                } else {
                    self.registry(super::super::error::chain(error))
                }
            }
            other => self.registry(super::super::error::chain(other)),
        }
    }
}

fn credentials(auth: Auth) -> RegistryAuth {
    if !auth.username.is_empty() {
        return RegistryAuth::Basic(auth.username, auth.password);
    }
    let decoded = STANDARD.decode(auth.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    if let Some((user, password)) = decoded.as_deref().and_then(|text| text.split_once(':')) {
        return RegistryAuth::Basic(user.to_owned(), password.trim_end_matches('\0').to_owned());
    }
    match auth.identity_token.as_str() {
        "" => RegistryAuth::Anonymous,
        token => RegistryAuth::Bearer(token.to_owned()),
    }
}

/// A file that goes when it is no longer needed, whatever happens.
struct Aside(PathBuf);

impl Drop for Aside {
    fn drop(&mut self) {
        // Else it goes at the next start.
        let _ = fs::remove_file(&self.0);
    }
}
