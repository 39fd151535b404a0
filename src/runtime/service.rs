//! The CRI RuntimeService, and the socket that serves it.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use mussel_cri::MESSAGE_BYTES_MAX;
use mussel_cri::v1::image_service_server::{ImageService, ImageServiceServer};
use mussel_cri::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use mussel_cri::v1::{self, runtime_service_client::RuntimeServiceClient};
use tokio::net::UnixListener;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tokio_stream::wrappers::{BroadcastStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::error::{Error, Result as RuntimeResult, Step};
use crate::events::{container_status, sandbox_status};
use crate::records::State;
use crate::runtime::Runtime;

/// Name of the runtime, as CRI and node status have it.
pub const RUNTIME_NAME: &str = "mussel";

type Answer<T> = Result<Response<T>, Status>;

/// Where the bytes of exec, attach and port-forward go: CRI answers with a URL, at which this server waits.
pub trait StreamingServer: Send + Sync + 'static {
    fn exec(&self, request: v1::ExecRequest) -> Result<String, Status>;
    fn attach(&self, request: v1::AttachRequest) -> Result<String, Status>;
    fn port_forward(&self, request: v1::PortForwardRequest) -> Result<String, Status>;
}

impl Runtime {
    /// The service, to be put behind a client of the same process or a listener.
    pub fn service(&self) -> RuntimeServiceServer<Runtime> {
        RuntimeServiceServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// A client of this runtime without a socket between.
    pub fn client(&self) -> RuntimeServiceClient<RuntimeServiceServer<Runtime>> {
        RuntimeServiceClient::new(self.service())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Serves CRI, both services, on a unix socket for root alone, until `stop`.
    pub async fn serve<I: ImageService>(&self, images: I, socket: &Path, stop: CancellationToken) -> RuntimeResult<()> {
        match fs::remove_file(socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).step(format!("remove old socket {}", socket.display()));
            }
            _ => {}
        }
        let listener = UnixListener::bind(socket).step(format!("listen on {}", socket.display()))?;
        fs::set_permissions(socket, fs::Permissions::from_mode(0o600)).step("protect the CRI socket")?;
        chown(socket, Some(0), Some(0)).step("protect the CRI socket")?;
        let images = ImageServiceServer::new(images)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let served = tonic::transport::Server::builder()
            .add_service(self.service())
            .add_service(images)
            // Not a graceful end: that would wait for streams of events, which have none.
            .serve_with_incoming(UnixListenerStream::new(listener));
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            result = served => result.map_err(std::io::Error::other).step("serve CRI"),
        }
    }

    fn streaming_url(
        &self,
        prepare: impl FnOnce(&dyn StreamingServer) -> Result<String, Status>,
    ) -> Result<String, Status> {
        match self.0.streaming.get() {
            Some(server) => prepare(server.as_ref()),
            None => Err(Error::Unimplemented("no streaming server is configured").into()),
        }
    }

    fn must_run(&self, id: &str) -> RuntimeResult<String> {
        let container = self.container(id)?;
        if container.record().state != State::Running {
            return Err(Error::State(format!("container {} is not running", container.id)));
        }
        Ok(container.id.clone())
    }
}

fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(seconds.max(0).unsigned_abs())
}

#[tonic::async_trait]
impl RuntimeService for Runtime {
    async fn version(&self, _: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
        Ok(Response::new(v1::VersionResponse {
            version: "0.1.0".into(),
            runtime_name: RUNTIME_NAME.into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
            runtime_api_version: "v1".into(),
        }))
    }

    async fn run_pod_sandbox(&self, request: Request<v1::RunPodSandboxRequest>) -> Answer<v1::RunPodSandboxResponse> {
        // On a task of its own: a caller that gives up must not leave half a sandbox.
        let (runtime, request) = (self.clone(), request.into_inner());
        let made = self.0.tasks.spawn(async move { Runtime::run_pod_sandbox(&runtime, request).await });
        let pod_sandbox_id = made.await.map_err(|_| Status::internal("running the sandbox panicked"))??;
        Ok(Response::new(v1::RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Answer<v1::StopPodSandboxResponse> {
        let (runtime, id) = (self.clone(), request.into_inner().pod_sandbox_id);
        let done = self.0.tasks.spawn(async move { Runtime::stop_pod_sandbox(&runtime, &id).await });
        done.await.map_err(|_| Status::internal("stopping the sandbox panicked"))??;
        Ok(Response::new(v1::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Answer<v1::RemovePodSandboxResponse> {
        let (runtime, id) = (self.clone(), request.into_inner().pod_sandbox_id);
        let done = self.0.tasks.spawn(async move { Runtime::remove_pod_sandbox(&runtime, &id).await });
        done.await.map_err(|_| Status::internal("removing the sandbox panicked"))??;
        Ok(Response::new(v1::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Answer<v1::PodSandboxStatusResponse> {
        let request = request.into_inner();
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        let mut info = HashMap::new();
        if request.verbose {
            let record = sandbox.record();
            let text = serde_json::json!({
                "pid": record.shim_pid,
                "processStatus": if record.ready { "running" } else { "stopped" },
                "netNSPath": record.netns,
                "runningContainers": self.has_running(&sandbox),
            });
            info.insert("info".to_owned(), text.to_string());
        }
        Ok(Response::new(v1::PodSandboxStatusResponse {
            status: Some(sandbox_status(&sandbox)),
            info,
            containers_statuses: self.containers_of(&sandbox.id).iter().map(|one| container_status(one)).collect(),
            timestamp: crate::runtime::now(),
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Answer<v1::ListPodSandboxResponse> {
        Ok(Response::new(v1::ListPodSandboxResponse { items: self.list_pod_sandboxes(request.into_inner().filter) }))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Answer<v1::CreateContainerResponse> {
        let (runtime, request) = (self.clone(), request.into_inner());
        let made = self.0.tasks.spawn(async move { Runtime::create_container(&runtime, request).await });
        let container_id = made.await.map_err(|_| Status::internal("creating the container panicked"))??;
        Ok(Response::new(v1::CreateContainerResponse { container_id }))
    }

    async fn start_container(&self, request: Request<v1::StartContainerRequest>) -> Answer<v1::StartContainerResponse> {
        let (runtime, id) = (self.clone(), request.into_inner().container_id);
        let done = self.0.tasks.spawn(async move { Runtime::start_container(&runtime, &id).await });
        done.await.map_err(|_| Status::internal("starting the container panicked"))??;
        Ok(Response::new(v1::StartContainerResponse {}))
    }

    async fn stop_container(&self, request: Request<v1::StopContainerRequest>) -> Answer<v1::StopContainerResponse> {
        let request = request.into_inner();
        Runtime::stop_container(self, &request.container_id, seconds(request.timeout)).await?;
        Ok(Response::new(v1::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Answer<v1::RemoveContainerResponse> {
        let (runtime, id) = (self.clone(), request.into_inner().container_id);
        let done = self.0.tasks.spawn(async move { Runtime::remove_container(&runtime, &id).await });
        done.await.map_err(|_| Status::internal("removing the container panicked"))??;
        Ok(Response::new(v1::RemoveContainerResponse {}))
    }

    async fn list_containers(&self, request: Request<v1::ListContainersRequest>) -> Answer<v1::ListContainersResponse> {
        Ok(Response::new(v1::ListContainersResponse {
            containers: Runtime::list_containers(self, request.into_inner().filter),
        }))
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Answer<v1::ContainerStatusResponse> {
        let request = request.into_inner();
        let container = self.container(&request.container_id)?;
        let mut info = HashMap::new();
        if request.verbose {
            let record = container.record();
            let spec = fs::read_to_string(self.bundle(&container.id).join("config.json")).unwrap_or_default();
            let spec = serde_json::from_str(&spec).unwrap_or(serde_json::Value::Null);
            let text = serde_json::json!({
                "sandboxID": record.sandbox,
                "pid": record.pid.unwrap_or(0),
                "runtimeSpec": spec,
            });
            info.insert("info".to_owned(), text.to_string());
        }
        Ok(Response::new(v1::ContainerStatusResponse { status: Some(container_status(&container)), info }))
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Answer<v1::UpdateContainerResourcesResponse> {
        Runtime::update_container_resources(self, request.into_inner()).await?;
        Ok(Response::new(v1::UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Answer<v1::ReopenContainerLogResponse> {
        Runtime::reopen_container_log(self, &request.into_inner().container_id).await?;
        Ok(Response::new(v1::ReopenContainerLogResponse {}))
    }

    async fn exec_sync(&self, request: Request<v1::ExecSyncRequest>) -> Answer<v1::ExecSyncResponse> {
        let request = request.into_inner();
        let timeout = seconds(request.timeout);
        let (stdout, stderr, exit_code) =
            Runtime::exec_sync(self, &request.container_id, &request.cmd, timeout).await?;
        Ok(Response::new(v1::ExecSyncResponse { stdout, stderr, exit_code }))
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Answer<v1::ExecResponse> {
        let mut request = request.into_inner();
        request.container_id = self.must_run(&request.container_id)?;
        let url = self.streaming_url(|server| server.exec(request))?;
        Ok(Response::new(v1::ExecResponse { url }))
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Answer<v1::AttachResponse> {
        let mut request = request.into_inner();
        request.container_id = self.must_run(&request.container_id)?;
        let url = self.streaming_url(|server| server.attach(request))?;
        Ok(Response::new(v1::AttachResponse { url }))
    }

    async fn port_forward(&self, request: Request<v1::PortForwardRequest>) -> Answer<v1::PortForwardResponse> {
        let mut request = request.into_inner();
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        if !sandbox.record().ready {
            return Err(Error::State(format!("sandbox {} is not running", sandbox.id)).into());
        }
        request.pod_sandbox_id = sandbox.id.clone();
        let url = self.streaming_url(|server| server.port_forward(request))?;
        Ok(Response::new(v1::PortForwardResponse { url }))
    }

    async fn container_stats(&self, request: Request<v1::ContainerStatsRequest>) -> Answer<v1::ContainerStatsResponse> {
        let container = self.container(&request.into_inner().container_id)?;
        let stats = Runtime::container_stats(self, container).await;
        Ok(Response::new(v1::ContainerStatsResponse { stats: Some(stats) }))
    }

    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Answer<v1::ListContainerStatsResponse> {
        let stats = Runtime::list_container_stats(self, request.into_inner().filter).await;
        Ok(Response::new(v1::ListContainerStatsResponse { stats }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<v1::PodSandboxStatsRequest>,
    ) -> Answer<v1::PodSandboxStatsResponse> {
        let sandbox = self.sandbox(&request.into_inner().pod_sandbox_id)?;
        Ok(Response::new(v1::PodSandboxStatsResponse { stats: Some(self.sandbox_stats(&sandbox).await?) }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Answer<v1::ListPodSandboxStatsResponse> {
        let stats = self.list_sandbox_stats(request.into_inner().filter).await;
        Ok(Response::new(v1::ListPodSandboxStatsResponse { stats }))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<v1::UpdatePodSandboxResourcesResponse> {
        let request = request.into_inner();
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        // The pod's cgroup is the caller's; we only remember.
        self.update_sandbox(&sandbox, |record| {
            let linux = record.config.0.linux.get_or_insert_default();
            linux.overhead = request.overhead.or(linux.overhead.take());
            linux.resources = request.resources.or(linux.resources.take());
        });
        Ok(Response::new(v1::UpdatePodSandboxResourcesResponse {}))
    }

    async fn update_runtime_config(
        &self,
        request: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Answer<v1::UpdateRuntimeConfigResponse> {
        let network = request.into_inner().runtime_config.and_then(|config| config.network_config);
        if let (Some(network), Ok(mut cidr)) = (network, self.0.pod_cidr.write()) {
            *cidr = network.pod_cidr;
        }
        Ok(Response::new(v1::UpdateRuntimeConfigResponse {}))
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        let condition = |kind: &str, result: Result<(), String>, reason: &str| v1::RuntimeCondition {
            r#type: kind.to_owned(),
            status: result.is_ok(),
            reason: if result.is_ok() { String::new() } else { reason.to_owned() },
            message: result.err().unwrap_or_default(),
        };
        let network = self.0.config.network.status().await;
        let mut info = HashMap::new();
        if request.into_inner().verbose {
            let config = &self.0.config;
            let text = serde_json::json!({"rootDir": config.root_dir, "runDir": config.run_dir, "cgroupRoot": config.cgroup_root});
            info.insert("config".to_owned(), text.to_string());
        }
        Ok(Response::new(v1::StatusResponse {
            status: Some(v1::RuntimeStatus {
                conditions: vec![
                    condition("RuntimeReady", Ok(()), ""),
                    condition("NetworkReady", network, "NetworkPluginNotReady"),
                ],
            }),
            info,
            runtime_handlers: vec![v1::RuntimeHandler {
                name: String::new(),
                features: Some(v1::RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces: false }),
            }],
            features: Some(v1::RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: false,
            }),
        }))
    }

    async fn checkpoint_container(
        &self,
        _: Request<v1::CheckpointContainerRequest>,
    ) -> Answer<v1::CheckpointContainerResponse> {
        Err(Error::Unimplemented("checkpoints are not supported").into())
    }

    type GetContainerEventsStream = Pin<Box<dyn Stream<Item = Result<v1::ContainerEventResponse, Status>> + Send>>;

    async fn get_container_events(&self, _: Request<v1::GetEventsRequest>) -> Answer<Self::GetContainerEventsStream> {
        let events = BroadcastStream::new(self.listen()).map(|event| {
            event.map_err(|BroadcastStreamRecvError::Lagged(missed)| {
                Status::data_loss(format!("{missed} events were missed; list again"))
            })
        });
        Ok(Response::new(Box::pin(events)))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Answer<v1::ListMetricDescriptorsResponse> {
        Ok(Response::new(v1::ListMetricDescriptorsResponse { descriptors: crate::metrics::descriptors() }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Answer<v1::ListPodSandboxMetricsResponse> {
        let stats = self.list_sandbox_stats(None).await;
        let pod_metrics = stats.iter().map(crate::metrics::of_sandbox).collect();
        Ok(Response::new(v1::ListPodSandboxMetricsResponse { pod_metrics }))
    }

    async fn runtime_config(&self, _: Request<v1::RuntimeConfigRequest>) -> Answer<v1::RuntimeConfigResponse> {
        let linux = v1::LinuxRuntimeConfiguration { cgroup_driver: v1::CgroupDriver::Cgroupfs.into() };
        Ok(Response::new(v1::RuntimeConfigResponse { linux: Some(linux) }))
    }
}
