//! As much of a runtime as a kubelet needs. Its containers run nothing; tests end them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::Stream;
use mussel_cri::v1;
use mussel_cri::v1::image_service_server::{ImageService, ImageServiceServer};
use mussel_cri::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

#[derive(Default)]
struct Inner {
    sandboxes: HashMap<String, v1::PodSandboxStatus>,
    containers: HashMap<String, (String, v1::ContainerConfig, v1::ContainerStatus)>,
    events: Vec<v1::ContainerEventResponse>,
    next: u64,
}

pub struct Runtime {
    inner: Mutex<Inner>,
    changed: watch::Sender<usize>,
    dir: PathBuf,
    /// The address that exec answers with.
    pub streams: Mutex<String>,
}

/// Cloneable face of the shared state: a type of this crate that the generated traits can be implemented for.
#[derive(Clone)]
pub struct Face(Arc<Runtime>);

impl Runtime {
    pub fn new(dir: &Path) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::default(),
            changed: watch::Sender::new(0),
            dir: dir.to_path_buf(),
            streams: Mutex::default(),
        })
    }

    pub fn runtime_server(self: Arc<Self>) -> RuntimeServiceServer<Face> {
        RuntimeServiceServer::new(Face(self))
    }

    pub fn image_server(self: Arc<Self>) -> ImageServiceServer<Face> {
        ImageServiceServer::new(Face(self))
    }

    /// The configuration of the newest container of that name.
    pub fn config(&self, name: &str) -> Option<v1::ContainerConfig> {
        let inner = self.inner.lock().unwrap();
        let named = inner.containers.values().filter(|(_, c, _)| c.metadata.as_ref().unwrap().name == name);
        named.max_by_key(|(_, _, s)| s.created_at).map(|(_, c, _)| c.clone())
    }

    /// How many containers were ever made.
    pub fn made(&self) -> u64 {
        self.inner.lock().unwrap().next
    }

    pub fn is_empty(&self) -> bool {
        let inner = self.inner.lock().unwrap();
        inner.sandboxes.is_empty() && inner.containers.is_empty()
    }

    /// Ends the running container of that name. Waits until there is one.
    pub async fn exit(&self, name: &str, code: i32) {
        let mut changed = self.changed.subscribe();
        loop {
            let running = {
                let inner = self.inner.lock().unwrap();
                let mut all = inner.containers.values();
                all.find(|(_, c, s)| {
                    c.metadata.as_ref().unwrap().name == name && s.state() == v1::ContainerState::ContainerRunning
                })
                .map(|(_, _, s)| s.id.clone())
            };
            if let Some(id) = running {
                self.end(&id, code);
                return;
            }
            tokio::time::timeout(Duration::from_secs(20), changed.changed()).await.unwrap().unwrap();
        }
    }

    fn end(&self, id: &str, code: i32) {
        let mut inner = self.inner.lock().unwrap();
        let time = now();
        if let Some((_, _, status)) = inner.containers.get_mut(id)
            && status.state() == v1::ContainerState::ContainerRunning
        {
            status.state = v1::ContainerState::ContainerExited.into();
            status.exit_code = code;
            status.finished_at = time;
            drop(inner);
            self.event(id, v1::ContainerEventType::ContainerStoppedEvent);
        }
    }

    fn event(&self, id: &str, kind: v1::ContainerEventType) {
        let mut inner = self.inner.lock().unwrap();
        let sandbox = inner.containers.get(id).and_then(|(s, ..)| inner.sandboxes.get(s)).cloned();
        inner.events.push(v1::ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind.into(),
            created_at: now(),
            pod_sandbox_status: sandbox,
            containers_statuses: Vec::new(),
        });
        let count = inner.events.len();
        drop(inner);
        self.changed.send_replace(count);
    }
}

fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap()
}

fn has(labels: &HashMap<String, String>, wanted: &HashMap<String, String>) -> bool {
    wanted.iter().all(|(k, v)| labels.get(k) == Some(v))
}

type Answer<T> = Result<Response<T>, Status>;

macro_rules! absent {
    ($($name:ident: $request:ident => $response:ident,)*) => {
        $(fn $name<'a, 'b>(
            &'a self,
            _: Request<v1::$request>,
        ) -> Pin<Box<dyn Future<Output = Answer<v1::$response>> + Send + 'b>>
        where
            'a: 'b,
            Self: 'b,
        {
            Box::pin(async { Err(Status::unimplemented("not in this fake")) })
        })*
    };
}

#[tonic::async_trait]
impl RuntimeService for Face {
    type GetContainerEventsStream = Pin<Box<dyn Stream<Item = Result<v1::ContainerEventResponse, Status>> + Send>>;

    async fn version(&self, _: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
        let version =
            v1::VersionResponse { runtime_name: "fake".into(), runtime_version: "1.0".into(), ..Default::default() };
        Ok(Response::new(version))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        let condition = |name: &str| v1::RuntimeCondition { r#type: name.into(), status: true, ..Default::default() };
        let conditions = vec![condition("RuntimeReady"), condition("NetworkReady")];
        Ok(Response::new(v1::StatusResponse { status: Some(v1::RuntimeStatus { conditions }), ..Default::default() }))
    }

    async fn runtime_config(&self, _: Request<v1::RuntimeConfigRequest>) -> Answer<v1::RuntimeConfigResponse> {
        let linux = v1::LinuxRuntimeConfiguration { cgroup_driver: v1::CgroupDriver::Cgroupfs.into() };
        Ok(Response::new(v1::RuntimeConfigResponse { linux: Some(linux) }))
    }

    async fn update_runtime_config(
        &self,
        _: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Answer<v1::UpdateRuntimeConfigResponse> {
        Ok(Response::new(v1::UpdateRuntimeConfigResponse {}))
    }

    async fn run_pod_sandbox(&self, request: Request<v1::RunPodSandboxRequest>) -> Answer<v1::RunPodSandboxResponse> {
        let config = request.into_inner().config.unwrap();
        let mut inner = self.0.inner.lock().unwrap();
        let id = format!("sandbox{}", inner.sandboxes.len());
        let status = v1::PodSandboxStatus {
            id: id.clone(),
            metadata: config.metadata,
            created_at: now(),
            network: Some(v1::PodSandboxNetworkStatus { ip: "10.42.0.7".into(), ..Default::default() }),
            labels: config.labels,
            annotations: config.annotations,
            ..Default::default()
        };
        inner.sandboxes.insert(id.clone(), status);
        Ok(Response::new(v1::RunPodSandboxResponse { pod_sandbox_id: id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Answer<v1::StopPodSandboxResponse> {
        let mut inner = self.0.inner.lock().unwrap();
        if let Some(sandbox) = inner.sandboxes.get_mut(&request.into_inner().pod_sandbox_id) {
            sandbox.state = v1::PodSandboxState::SandboxNotready.into();
        }
        Ok(Response::new(v1::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Answer<v1::RemovePodSandboxResponse> {
        self.0.inner.lock().unwrap().sandboxes.remove(&request.into_inner().pod_sandbox_id);
        Ok(Response::new(v1::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Answer<v1::PodSandboxStatusResponse> {
        let inner = self.0.inner.lock().unwrap();
        let status = inner.sandboxes.get(&request.into_inner().pod_sandbox_id).cloned();
        let status = Some(status.ok_or_else(|| Status::not_found("no such sandbox"))?);
        Ok(Response::new(v1::PodSandboxStatusResponse { status, ..Default::default() }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Answer<v1::ListPodSandboxResponse> {
        let wanted = request.into_inner().filter.unwrap_or_default().label_selector;
        let inner = self.0.inner.lock().unwrap();
        let items = inner
            .sandboxes
            .values()
            .filter(|s| has(&s.labels, &wanted))
            .map(|s| v1::PodSandbox {
                id: s.id.clone(),
                metadata: s.metadata.clone(),
                state: s.state,
                created_at: s.created_at,
                labels: s.labels.clone(),
                ..Default::default()
            })
            .collect();
        Ok(Response::new(v1::ListPodSandboxResponse { items }))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Answer<v1::CreateContainerResponse> {
        let request = request.into_inner();
        let config = request.config.unwrap();
        let mut inner = self.0.inner.lock().unwrap();
        inner.next += 1;
        let id = format!("container{}", inner.next);
        let logs = request.sandbox_config.unwrap().log_directory;
        let status = v1::ContainerStatus {
            id: id.clone(),
            metadata: config.metadata.clone(),
            created_at: now(),
            image: config.image.clone(),
            image_ref: "sha256:1".into(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            mounts: config.mounts.clone(),
            log_path: format!("{logs}/{}", config.log_path),
            ..Default::default()
        };
        inner.containers.insert(id.clone(), (request.pod_sandbox_id, config, status));
        Ok(Response::new(v1::CreateContainerResponse { container_id: id }))
    }

    async fn start_container(&self, request: Request<v1::StartContainerRequest>) -> Answer<v1::StartContainerResponse> {
        let id = request.into_inner().container_id;
        {
            let mut inner = self.0.inner.lock().unwrap();
            let (_, _, status) = inner.containers.get_mut(&id).ok_or_else(|| Status::not_found("no such container"))?;
            status.state = v1::ContainerState::ContainerRunning.into();
            status.started_at = now();
        }
        self.0.event(&id, v1::ContainerEventType::ContainerStartedEvent);
        Ok(Response::new(v1::StartContainerResponse {}))
    }

    async fn stop_container(&self, request: Request<v1::StopContainerRequest>) -> Answer<v1::StopContainerResponse> {
        self.0.end(&request.into_inner().container_id, 143);
        Ok(Response::new(v1::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Answer<v1::RemoveContainerResponse> {
        self.0.inner.lock().unwrap().containers.remove(&request.into_inner().container_id);
        Ok(Response::new(v1::RemoveContainerResponse {}))
    }

    async fn list_containers(&self, request: Request<v1::ListContainersRequest>) -> Answer<v1::ListContainersResponse> {
        let wanted = request.into_inner().filter.unwrap_or_default().label_selector;
        let inner = self.0.inner.lock().unwrap();
        let containers = inner
            .containers
            .values()
            .filter(|(_, _, s)| has(&s.labels, &wanted))
            .map(|(sandbox, _, s)| v1::Container {
                id: s.id.clone(),
                pod_sandbox_id: sandbox.clone(),
                metadata: s.metadata.clone(),
                state: s.state,
                created_at: s.created_at,
                labels: s.labels.clone(),
                annotations: s.annotations.clone(),
                ..Default::default()
            })
            .collect();
        Ok(Response::new(v1::ListContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Answer<v1::ContainerStatusResponse> {
        let inner = self.0.inner.lock().unwrap();
        let status = inner.containers.get(&request.into_inner().container_id).map(|(_, _, s)| s.clone());
        let status = Some(status.ok_or_else(|| Status::not_found("no such container"))?);
        Ok(Response::new(v1::ContainerStatusResponse { status, ..Default::default() }))
    }

    async fn get_container_events(&self, _: Request<v1::GetEventsRequest>) -> Answer<Self::GetContainerEventsStream> {
        let runtime = self.0.clone();
        let changed = runtime.changed.subscribe();
        let from = *changed.borrow();
        let stream = futures::stream::unfold((runtime, changed, from), |(runtime, mut changed, at)| async move {
            loop {
                let event = runtime.inner.lock().unwrap().events.get(at).cloned();
                if let Some(event) = event {
                    return Some((Ok(event), (runtime, changed, at + 1)));
                }
                changed.changed().await.ok()?;
            }
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Answer<v1::ExecResponse> {
        let url = format!("{}/exec/{}", self.0.streams.lock().unwrap(), request.into_inner().cmd.join("-"));
        Ok(Response::new(v1::ExecResponse { url }))
    }

    absent! {
        update_container_resources: UpdateContainerResourcesRequest => UpdateContainerResourcesResponse,
        reopen_container_log: ReopenContainerLogRequest => ReopenContainerLogResponse,
        exec_sync: ExecSyncRequest => ExecSyncResponse,
        attach: AttachRequest => AttachResponse,
        port_forward: PortForwardRequest => PortForwardResponse,
        container_stats: ContainerStatsRequest => ContainerStatsResponse,
        list_container_stats: ListContainerStatsRequest => ListContainerStatsResponse,
        pod_sandbox_stats: PodSandboxStatsRequest => PodSandboxStatsResponse,
        list_pod_sandbox_stats: ListPodSandboxStatsRequest => ListPodSandboxStatsResponse,
        update_pod_sandbox_resources: UpdatePodSandboxResourcesRequest => UpdatePodSandboxResourcesResponse,
        checkpoint_container: CheckpointContainerRequest => CheckpointContainerResponse,
        list_metric_descriptors: ListMetricDescriptorsRequest => ListMetricDescriptorsResponse,
        list_pod_sandbox_metrics: ListPodSandboxMetricsRequest => ListPodSandboxMetricsResponse,
    }
}

#[tonic::async_trait]
impl ImageService for Face {
    async fn list_images(&self, _: Request<v1::ListImagesRequest>) -> Answer<v1::ListImagesResponse> {
        Ok(Response::new(v1::ListImagesResponse::default()))
    }

    async fn image_status(&self, request: Request<v1::ImageStatusRequest>) -> Answer<v1::ImageStatusResponse> {
        let name = request.into_inner().image.unwrap_or_default().image;
        let image = (!name.contains("missing")).then(|| v1::Image { id: "sha256:1".into(), ..Default::default() });
        Ok(Response::new(v1::ImageStatusResponse { image, ..Default::default() }))
    }

    async fn pull_image(&self, request: Request<v1::PullImageRequest>) -> Answer<v1::PullImageResponse> {
        if request.into_inner().image.unwrap_or_default().image.contains("missing") {
            return Err(Status::not_found("no such image"));
        }
        Ok(Response::new(v1::PullImageResponse { image_ref: "sha256:1".into() }))
    }

    async fn remove_image(&self, _: Request<v1::RemoveImageRequest>) -> Answer<v1::RemoveImageResponse> {
        Ok(Response::new(v1::RemoveImageResponse {}))
    }

    async fn image_fs_info(&self, _: Request<v1::ImageFsInfoRequest>) -> Answer<v1::ImageFsInfoResponse> {
        let usage = v1::FilesystemUsage {
            fs_id: Some(v1::FilesystemIdentifier { mountpoint: self.0.dir.display().to_string() }),
            ..Default::default()
        };
        Ok(Response::new(v1::ImageFsInfoResponse { image_filesystems: vec![usage], ..Default::default() }))
    }
}
