//! What a Node's status says.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeRuntimeHandler,
    NodeRuntimeHandlerFeatures, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use mussel_api::version;

use crate::eviction::Pressure;
use crate::machine::FsUsage;
use crate::shared::{RuntimeState, Shared};

/// The scheduler prefers nodes that have an image; more than these help nobody.
const IMAGES_MAX: usize = 50;
const NAMES_PER_IMAGE_MAX: usize = 5;

pub async fn compute(
    shared: &Shared,
    state: &RuntimeState,
    pressure: Pressure,
    old: Option<&NodeStatus>,
    images: Vec<ContainerImage>,
) -> NodeStatus {
    let config = &shared.config;
    let machine = &shared.machine;
    let disk = FsUsage::of(&config.root_dir).unwrap_or_default();
    let tuning = &config.tuning;
    let amounts = |milli_cpu: i64, memory_bytes: i64, disk_bytes: u64| {
        let cpu = if milli_cpu % 1000 == 0 { (milli_cpu / 1000).to_string() } else { format!("{milli_cpu}m") };
        BTreeMap::from([
            ("cpu".to_owned(), Quantity(cpu)),
            ("memory".to_owned(), Quantity(format!("{}Ki", memory_bytes / 1024))),
            ("pods".to_owned(), Quantity(tuning.pods_max.to_string())),
            ("ephemeral-storage".to_owned(), Quantity(format!("{}Ki", disk_bytes / 1024))),
            ("hugepages-1Gi".to_owned(), Quantity("0".into())),
            ("hugepages-2Mi".to_owned(), Quantity("0".into())),
        ])
    };
    let room = machine.room(tuning);
    let mut capacity = amounts(machine.cpus * 1000, machine.memory, disk.capacity);
    let mut allocatable = amounts(room.milli_cpu, room.memory, tuning.storage_for_pods(disk.capacity));
    // Extended resources that others announced on the Node stay.
    for (mine, theirs) in [
        (&mut capacity, old.and_then(|o| o.capacity.as_ref())),
        (&mut allocatable, old.and_then(|o| o.allocatable.as_ref())),
    ] {
        for (name, amount) in theirs.into_iter().flatten().filter(|(n, _)| n.contains('/')) {
            mine.insert(name.clone(), amount.clone());
        }
    }
    for (name, amount) in capacity.iter().filter(|(n, _)| n.contains('/')) {
        allocatable.entry(name.clone()).or_insert_with(|| amount.clone());
    }
    let mut addresses: Vec<NodeAddress> =
        config.node_ips.iter().map(|ip| NodeAddress { address: ip.to_string(), type_: "InternalIP".into() }).collect();
    addresses.extend(
        config.external_ips.iter().map(|ip| NodeAddress { address: ip.to_string(), type_: "ExternalIP".into() }),
    );
    addresses.push(NodeAddress { address: config.node_name.clone(), type_: "Hostname".into() });
    let port = config.server.as_ref().map_or(10250, |s| i32::from(s.listen.port()));
    let runtime = shared.runtime_version.get().map_or(version::KUBERNETES.trim_start_matches('v'), String::as_str);
    let handlers = handlers(shared).await;
    NodeStatus {
        capacity: Some(capacity),
        allocatable: Some(allocatable),
        addresses: Some(addresses),
        conditions: Some(conditions(state, pressure, old)),
        daemon_endpoints: Some(NodeDaemonEndpoints { kubelet_endpoint: Some(DaemonEndpoint { port }) }),
        images: (!images.is_empty()).then_some(images),
        node_info: Some(NodeSystemInfo {
            architecture: machine.architecture.to_owned(),
            boot_id: machine.boot_id.clone(),
            container_runtime_version: format!("{}://{}", shared.runtime_name(), runtime.trim_start_matches('v')),
            kernel_version: machine.kernel.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: version::GIT_VERSION.to_owned(),
            machine_id: machine.machine_id.clone(),
            operating_system: "linux".to_owned(),
            os_image: machine.os_image.clone(),
            swap: None,
            system_uuid: machine.system_uuid.clone(),
        }),
        runtime_handlers: handlers,
        ..Default::default()
    }
}

async fn handlers(shared: &Shared) -> Option<Vec<NodeRuntimeHandler>> {
    let answer = shared.cri.status().await.ok()?;
    let mut all: Vec<NodeRuntimeHandler> = answer
        .runtime_handlers
        .into_iter()
        .map(|h| NodeRuntimeHandler {
            name: Some(h.name),
            features: h.features.map(|f| NodeRuntimeHandlerFeatures {
                recursive_read_only_mounts: Some(f.recursive_read_only_mounts),
                user_namespaces: Some(f.user_namespaces),
            }),
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    (!all.is_empty()).then_some(all)
}

fn conditions(state: &RuntimeState, pressure: Pressure, old: Option<&NodeStatus>) -> Vec<NodeCondition> {
    let now = Timestamp::now();
    let pressed = |type_, is, reasons: (&'static str, &'static str), texts: (&str, &str)| {
        let (reason, text) = if is { (reasons.0, texts.0) } else { (reasons.1, texts.1) };
        (type_, is, reason, text.to_owned())
    };
    let ready = state.runtime && state.network;
    let ready_text = if ready { "kubelet is posting ready status".to_owned() } else { state.message.clone() };
    let all = [
        pressed(
            "MemoryPressure",
            pressure.memory,
            ("KubeletHasInsufficientMemory", "KubeletHasSufficientMemory"),
            ("kubelet has insufficient memory available", "kubelet has sufficient memory available"),
        ),
        pressed(
            "DiskPressure",
            pressure.disk,
            ("KubeletHasDiskPressure", "KubeletHasNoDiskPressure"),
            ("kubelet has disk pressure", "kubelet has no disk pressure"),
        ),
        pressed(
            "PIDPressure",
            pressure.pid,
            ("KubeletHasInsufficientPID", "KubeletHasSufficientPID"),
            ("kubelet has insufficient PID available", "kubelet has sufficient PID available"),
        ),
        ("Ready", ready, if ready { "KubeletReady" } else { "KubeletNotReady" }, ready_text),
    ];
    all.into_iter()
        .map(|(type_, is, reason, message)| {
            let status = if is { "True" } else { "False" };
            let before = old.and_then(|o| o.conditions.as_ref()?.iter().find(|c| c.type_ == type_));
            let since = before.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
            NodeCondition {
                type_: type_.into(),
                status: status.into(),
                reason: Some(reason.into()),
                message: Some(message),
                last_heartbeat_time: Some(Time(now)),
                last_transition_time: since.or(Some(Time(now))),
            }
        })
        .collect()
}

/// The images on this node, largest first, as the scheduler wants to know them.
pub async fn images(shared: &Shared) -> Vec<ContainerImage> {
    let mut images = match shared.cri.images().await {
        Ok(images) => images,
        Err(error) => {
            tracing::debug!(%error, "cannot list images");
            return Vec::new();
        }
    };
    images.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    images.truncate(IMAGES_MAX);
    images
        .into_iter()
        .map(|image| {
            let mut names = image.repo_digests;
            names.extend(image.repo_tags);
            names.truncate(NAMES_PER_IMAGE_MAX);
            ContainerImage { names: Some(names), size_bytes: i64::try_from(image.size).ok() }
        })
        .filter(|i| i.names.as_ref().is_some_and(|n| !n.is_empty()))
        .collect()
}
