//! The container runtime as the kubelet calls it: CRI, over a socket or in process.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use mussel_cri::v1;
use mussel_cri::v1::image_service_client::ImageServiceClient;
use mussel_cri::v1::runtime_service_client::RuntimeServiceClient;
use tonic::body::Body;
use tower::ServiceExt as _;
use tower::util::BoxCloneSyncService;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The request did not reach the runtime, or its answer did not come back.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct GrpcError(BoxError);

/// Any way to send a gRPC request: a channel, or a server of this process.
pub type Grpc = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, GrpcError>;

const CALL: Duration = Duration::from_secs(120);
/// Sandboxes wait for networks; upstream doubles its timeout for them too.
const SANDBOX_CALL: Duration = Duration::from_secs(240);

/// A call that the runtime refused. Displayed as gRPC clients display it, because these texts reach users.
#[derive(Debug, Clone, thiserror::Error)]
#[error("rpc error: code = {:?} desc = {}", .0.code(), .0.message())]
pub struct CriError(pub Box<tonic::Status>);

impl From<tonic::Status> for CriError {
    fn from(status: tonic::Status) -> Self {
        Self(Box::new(status))
    }
}

impl CriError {
    pub fn is_not_found(&self) -> bool {
        self.0.code() == tonic::Code::NotFound
    }

    pub fn message(&self) -> &str {
        self.0.message()
    }
}

pub type Result<T> = std::result::Result<T, CriError>;

#[derive(Clone)]
pub struct Cri {
    runtime: RuntimeServiceClient<Grpc>,
    images: ImageServiceClient<Grpc>,
}

impl Cri {
    /// Over a unix socket. Nothing is dialled before the first call.
    pub fn connect(socket: impl Into<PathBuf>) -> Self {
        let channel = mussel_cri::connect(socket);
        Self::new(channel.clone(), channel)
    }

    /// On any two gRPC services: generated servers of this process, or channels.
    pub fn new<R, I>(runtime: R, images: I) -> Self
    where
        R: tower::Service<http::Request<Body>, Response = http::Response<Body>> + Clone + Send + Sync + 'static,
        R::Error: Into<BoxError>,
        R::Future: Send + 'static,
        I: tower::Service<http::Request<Body>, Response = http::Response<Body>> + Clone + Send + Sync + 'static,
        I::Error: Into<BoxError>,
        I::Future: Send + 'static,
    {
        let max = mussel_cri::MESSAGE_BYTES_MAX;
        Self {
            runtime: RuntimeServiceClient::new(Grpc::new(runtime.map_err(|e| GrpcError(e.into()))))
                .max_decoding_message_size(max),
            images: ImageServiceClient::new(Grpc::new(images.map_err(|e| GrpcError(e.into()))))
                .max_decoding_message_size(max),
        }
    }
}

async fn within<T>(
    limit: Duration,
    call: impl Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(tonic::Status::deadline_exceeded("context deadline exceeded").into()),
    }
}

fn absent(what: &str) -> CriError {
    tonic::Status::internal(format!("runtime answered without {what}")).into()
}

/// Sandboxes.
impl Cri {
    pub async fn run_sandbox(&self, config: v1::PodSandboxConfig, handler: &str) -> Result<String> {
        let request = v1::RunPodSandboxRequest { config: Some(config), runtime_handler: handler.to_owned() };
        Ok(within(SANDBOX_CALL, self.runtime.clone().run_pod_sandbox(request)).await?.pod_sandbox_id)
    }

    pub async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        within(CALL, self.runtime.clone().stop_pod_sandbox(request)).await.map(drop)
    }

    pub async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        within(CALL, self.runtime.clone().remove_pod_sandbox(request)).await.map(drop)
    }

    pub async fn sandboxes(&self, labels: HashMap<String, String>) -> Result<Vec<v1::PodSandbox>> {
        let filter = v1::PodSandboxFilter { label_selector: labels, ..Default::default() };
        let request = v1::ListPodSandboxRequest { filter: Some(filter) };
        Ok(within(CALL, self.runtime.clone().list_pod_sandbox(request)).await?.items)
    }

    pub async fn sandbox_status(&self, id: &str) -> Result<v1::PodSandboxStatus> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let answer = within(CALL, self.runtime.clone().pod_sandbox_status(request)).await?;
        answer.status.ok_or_else(|| absent("a sandbox status"))
    }

    pub async fn sandbox_stats(&self) -> Result<Vec<v1::PodSandboxStats>> {
        let request = v1::ListPodSandboxStatsRequest { filter: None };
        Ok(within(CALL, self.runtime.clone().list_pod_sandbox_stats(request)).await?.stats)
    }

    pub async fn port_forward(&self, sandbox: &str, ports: Vec<i32>) -> Result<String> {
        let request = v1::PortForwardRequest { pod_sandbox_id: sandbox.to_owned(), port: ports };
        Ok(within(CALL, self.runtime.clone().port_forward(request)).await?.url)
    }
}

/// Containers.
impl Cri {
    pub async fn create_container(
        &self,
        sandbox: &str,
        config: v1::ContainerConfig,
        sandbox_config: v1::PodSandboxConfig,
    ) -> Result<String> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        Ok(within(CALL, self.runtime.clone().create_container(request)).await?.container_id)
    }

    pub async fn start_container(&self, id: &str) -> Result<()> {
        let request = v1::StartContainerRequest { container_id: id.to_owned() };
        within(CALL, self.runtime.clone().start_container(request)).await.map(drop)
    }

    /// Returns when the container has ended: after `grace` the runtime kills it.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        let seconds = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        let request = v1::StopContainerRequest { container_id: id.to_owned(), timeout: seconds };
        within(grace.saturating_add(CALL), self.runtime.clone().stop_container(request)).await.map(drop)
    }

    pub async fn remove_container(&self, id: &str) -> Result<()> {
        let request = v1::RemoveContainerRequest { container_id: id.to_owned() };
        within(CALL, self.runtime.clone().remove_container(request)).await.map(drop)
    }

    pub async fn containers(&self, labels: HashMap<String, String>) -> Result<Vec<v1::Container>> {
        let filter = v1::ContainerFilter { label_selector: labels, ..Default::default() };
        let request = v1::ListContainersRequest { filter: Some(filter) };
        Ok(within(CALL, self.runtime.clone().list_containers(request)).await?.containers)
    }

    pub async fn container_status(&self, id: &str) -> Result<v1::ContainerStatus> {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer = within(CALL, self.runtime.clone().container_status(request)).await?;
        answer.status.ok_or_else(|| absent("a container status"))
    }

    pub async fn update_resources(&self, id: &str, linux: v1::LinuxContainerResources) -> Result<()> {
        let request = v1::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(linux),
            ..Default::default()
        };
        within(CALL, self.runtime.clone().update_container_resources(request)).await.map(drop)
    }

    pub async fn reopen_log(&self, id: &str) -> Result<()> {
        let request = v1::ReopenContainerLogRequest { container_id: id.to_owned() };
        within(CALL, self.runtime.clone().reopen_container_log(request)).await.map(drop)
    }

    pub async fn container_stats(&self) -> Result<Vec<v1::ContainerStats>> {
        let request = v1::ListContainerStatsRequest { filter: None };
        Ok(within(CALL, self.runtime.clone().list_container_stats(request)).await?.stats)
    }

    /// Runs `command` to its end. `limit` of zero means as long as it takes.
    pub async fn exec_sync(&self, id: &str, command: Vec<String>, limit: Duration) -> Result<v1::ExecSyncResponse> {
        let seconds = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX);
        let request = v1::ExecSyncRequest { container_id: id.to_owned(), cmd: command, timeout: seconds };
        let mut call = self.runtime.clone();
        if limit.is_zero() {
            return Ok(call.exec_sync(request).await?.into_inner());
        }
        // The runtime ends the command itself at its limit; ours only guards against a runtime that hangs.
        within(limit.saturating_add(Duration::from_secs(5)), call.exec_sync(request)).await
    }

    pub async fn exec(&self, request: v1::ExecRequest) -> Result<String> {
        Ok(within(CALL, self.runtime.clone().exec(request)).await?.url)
    }

    pub async fn attach(&self, request: v1::AttachRequest) -> Result<String> {
        Ok(within(CALL, self.runtime.clone().attach(request)).await?.url)
    }

    pub async fn events(&self) -> Result<tonic::Streaming<v1::ContainerEventResponse>> {
        let mut runtime = self.runtime.clone();
        within(CALL, runtime.get_container_events(v1::GetEventsRequest {})).await
    }
}

/// The runtime itself.
impl Cri {
    pub async fn version(&self) -> Result<v1::VersionResponse> {
        let request = v1::VersionRequest { version: "0.1.0".into() };
        within(CALL, self.runtime.clone().version(request)).await
    }

    pub async fn status(&self) -> Result<v1::StatusResponse> {
        within(CALL, self.runtime.clone().status(v1::StatusRequest { verbose: false })).await
    }

    pub async fn set_pod_cidr(&self, pod_cidr: &str) -> Result<()> {
        let network = v1::NetworkConfig { pod_cidr: pod_cidr.to_owned() };
        let request = v1::UpdateRuntimeConfigRequest {
            runtime_config: Some(v1::RuntimeConfig { network_config: Some(network) }),
        };
        within(CALL, self.runtime.clone().update_runtime_config(request)).await.map(drop)
    }

    /// Whether the runtime names cgroups as systemd does.
    pub async fn systemd_cgroups(&self) -> bool {
        let answer = within(CALL, self.runtime.clone().runtime_config(v1::RuntimeConfigRequest {})).await;
        matches!(answer, Ok(v1::RuntimeConfigResponse { linux: Some(linux) }) if linux.cgroup_driver() == v1::CgroupDriver::Systemd)
    }
}

/// Images.
impl Cri {
    pub async fn images(&self) -> Result<Vec<v1::Image>> {
        Ok(within(CALL, self.images.clone().list_images(v1::ListImagesRequest { filter: None })).await?.images)
    }

    /// `None` when the runtime does not have it.
    pub async fn image(&self, image: &str) -> Result<Option<v1::Image>> {
        let request = v1::ImageStatusRequest { image: Some(image_spec(image)), verbose: false };
        match within(CALL, self.images.clone().image_status(request)).await {
            Ok(answer) => Ok(answer.image),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Returns the image's reference in the runtime. Pulls may be slow; they have no limit of ours.
    pub async fn pull(
        &self,
        image: &str,
        auth: Option<v1::AuthConfig>,
        sandbox: Option<v1::PodSandboxConfig>,
    ) -> Result<String> {
        let request = v1::PullImageRequest { image: Some(image_spec(image)), auth, sandbox_config: sandbox };
        Ok(self.images.clone().pull_image(request).await?.into_inner().image_ref)
    }

    pub async fn remove_image(&self, id: &str) -> Result<()> {
        let request = v1::RemoveImageRequest { image: Some(image_spec(id)) };
        within(CALL, self.images.clone().remove_image(request)).await.map(drop)
    }

    pub async fn image_fs(&self) -> Result<v1::ImageFsInfoResponse> {
        within(CALL, self.images.clone().image_fs_info(v1::ImageFsInfoRequest {})).await
    }
}

pub fn image_spec(image: &str) -> v1::ImageSpec {
    v1::ImageSpec { image: image.to_owned(), user_specified_image: image.to_owned(), ..Default::default() }
}
