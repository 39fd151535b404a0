//! CRI's ImageService.

use std::path::Path;

use mussel_cri::v1;
use mussel_cri::v1::image_service_server::ImageService;
use tonic::{Request, Response, Status};

use super::index::Record;
use super::registries::Auth;
use super::{Images, ImportError, PullError};
use crate::error::chain;

/// An image "name" that stands for an archive on this machine: how the command line imports through the runtime's socket.
pub const ARCHIVE_SCHEME: &str = "mussel-archive:";

#[tonic::async_trait]
impl ImageService for Images {
    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        let wanted =
            request.into_inner().filter.and_then(|filter| filter.image).map(|spec| spec.image).unwrap_or_default();
        let images = match wanted.as_str() {
            "" => self.all(),
            name => self.find(name).into_iter().collect(),
        };
        let images = images.iter().map(|(id, record)| image(id, record)).collect();
        Ok(Response::new(v1::ListImagesResponse { images }))
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Result<Response<v1::ImageStatusResponse>, Status> {
        let request = request.into_inner();
        let name = request.image.unwrap_or_default().image;
        let found = self.find(&name);
        // Absent is an answer, not an error.
        let info = match &found {
            Some((_, record)) if request.verbose => {
                let config = serde_json::json!({"imageSpec": {"config": record.config}, "layers": record.layers});
                [("info".to_owned(), config.to_string())].into()
            }
            _ => Default::default(),
        };
        Ok(Response::new(v1::ImageStatusResponse { image: found.map(|(id, record)| image(&id, &record)), info }))
    }

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<v1::PullImageResponse>, Status> {
        let request = request.into_inner();
        let name = request.image.unwrap_or_default().image;
        if let Some(path) = name.strip_prefix(ARCHIVE_SCHEME) {
            let names = self.import(Path::new(path), false).await.map_err(|error| import_status(&error))?;
            return Ok(Response::new(v1::PullImageResponse { image_ref: names.join("\n") }));
        }
        let auth = request.auth.map(|auth| Auth {
            username: auth.username,
            password: auth.password,
            auth: auth.auth,
            identity_token: if auth.identity_token.is_empty() { auth.registry_token } else { auth.identity_token },
        });
        tracing::info!(image = name, "pulling");
        let id = self.pull(&name, auth).await.map_err(|error| pull_status(&error))?;
        Ok(Response::new(v1::PullImageResponse { image_ref: id }))
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        let (images, name) = (self.clone(), request.into_inner().image.unwrap_or_default().image);
        let removed = tokio::task::spawn_blocking(move || images.remove(&name)).await;
        removed
            .map_err(|error| Status::internal(error.to_string()))?
            .map_err(|error| Status::internal(format!("remove image: {error}")))?;
        Ok(Response::new(v1::RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _: Request<v1::ImageFsInfoRequest>,
    ) -> Result<Response<v1::ImageFsInfoResponse>, Status> {
        let used: u64 = {
            let index = self.0.index.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            index.layers().into_iter().map(|layer| self.layer_bytes(layer)).sum()
        };
        let usage = v1::FilesystemUsage {
            timestamp: i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX),
            fs_id: Some(v1::FilesystemIdentifier { mountpoint: self.0.dir.display().to_string() }),
            used_bytes: Some(v1::UInt64Value { value: used }),
            inodes_used: None,
        };
        let filesystems = vec![usage];
        Ok(Response::new(v1::ImageFsInfoResponse {
            image_filesystems: filesystems.clone(),
            container_filesystems: filesystems,
        }))
    }
}

fn image(id: &str, record: &Record) -> v1::Image {
    let user = record.config.user.clone().unwrap_or_default();
    let user = user.split(':').next().unwrap_or_default();
    // A number is a uid, anything else a name; no user is root.
    let uid = if user.is_empty() { Some(0) } else { user.parse().ok() };
    v1::Image {
        id: id.to_owned(),
        repo_tags: record.tags.iter().cloned().collect(),
        repo_digests: record.digests.iter().cloned().collect(),
        size: record.bytes.max(1),
        uid: uid.map(|value| v1::Int64Value { value }),
        username: if uid.is_none() { user.to_owned() } else { String::new() },
        spec: Some(v1::ImageSpec { image: id.to_owned(), ..Default::default() }),
        pinned: record.pinned,
    }
}

fn pull_status(error: &PullError) -> Status {
    let text = chain(error);
    match error {
        PullError::NotFound { .. } => Status::not_found(text),
        PullError::Denied { .. } => Status::permission_denied(text),
        PullError::Name(_) => Status::invalid_argument(text),
        PullError::Registry { .. } => Status::unavailable(text),
        _ => Status::unknown(text),
    }
}

fn import_status(error: &ImportError) -> Status {
    Status::invalid_argument(chain(error))
}
