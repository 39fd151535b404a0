//! A node: runtime, pod network, kubelet, service proxy and DNS.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use mussel_apiserver::ServingCert;
use mussel_client::event::EventType;
use mussel_client::informer::kept::keep;
use mussel_client::{Informers, Recorder};
use mussel_cluster::files;
use mussel_cluster::settings::ClusterSettings;
use mussel_dns::Dns;
use mussel_kubelet::{Cri, Kubelet};
use mussel_network::backend::Backend;
use mussel_network::cidr::Cidr;
use mussel_network::cni::{self, Cni};
use mussel_network::host;
use mussel_network::lent::LentPorts;
use mussel_network::peers::{self, Peers};
use mussel_network::pods::PodNetwork;
use mussel_network::policy::gate::Gate;
use mussel_network::policy::{self, Enforcer};
use mussel_network::proxy::{self, Proxy};
use mussel_network::uplink::Uplink;
use mussel_runtime::images::Images;
use mussel_runtime::images::folder::{self, Outcome};
use mussel_runtime::images::registries::Registries;
use mussel_runtime::{Runtime, prepare_host};
use tokio::sync::oneshot;
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::args::values::Taint;
use super::args::{DEFAULT_DATA_DIR, NodeArgs};
use super::components::KubeletArguments;
use super::node_config;
use super::parts::{Parts, chain};
use super::pod_network::{Adapter, CniAdapter};

pub const BRIDGE: &str = "cni0";
/// Where charts of pod networks put what they bring.
const CNI_CONF_DIR: &str = "/etc/cni/net.d";
const CNI_BIN_DIR: &str = "/opt/cni/bin";
/// Where Debian's package has them.
const CNI_BIN_DIR_OF_SYSTEM: &str = "/usr/lib/cni";
pub const KUBELET_PORT: u16 = 10250;
/// In the run folder.
const CRI_SOCKET: &str = "mussel.sock";
/// Archives in the images folder are imported before the first pod starts, but do not hold up the node for longer than this.
const IMPORT_HEAD_START: Duration = Duration::from_secs(30);
/// What tools that group machines by their kind look at, as k3s' nodes have it.
const INSTANCE_TYPE: &str = "node.kubernetes.io/instance-type";
/// In the agent's folder: the node's range as it was last.
const KEPT_POD_CIDR: &str = "network/pod-cidr";
const KEPT_SERVICES: &str = "network/services.json";
const KEPT_POLICIES: &str = "network/networkpolicies.json";
const PODNET_RETRY: Duration = Duration::from_secs(2);

pub struct NodeConfig<'a> {
    pub node_name: String,
    pub node_ip: IpAddr,
    pub cluster: &'a ClusterSettings,
    pub args: &'a NodeArgs,
    pub kubelet: &'a KubeletArguments,
    /// Acts as this node.
    pub client: kube::Client,
    pub informers: Informers,
    /// May read the pods of other nodes as well.
    pub all_pods: Informers,
    pub kubelet_certificate: Arc<ServingCert>,
    pub client_ca_pem: Vec<u8>,
}

/// Where a node keeps what.
struct Folders {
    agent: PathBuf,
    run: PathBuf,
}

pub async fn start(config: NodeConfig<'_>, parts: &mut Parts) -> anyhow::Result<()> {
    let local = &config.args.local;
    let folders = Folders { agent: local.data_dir.join("agent"), run: local.run_dir.clone() };
    files::create_dir(&folders.agent, 0o755)?;
    files::create_dir(&folders.run, 0o755)?;
    keep_services(&config.informers, &folders, parts);
    prepare_host(&[&folders.agent, &folders.run]).context("prepare mount propagation")?;
    host::tune_kernel();

    let cluster_cidr: Cidr = config.cluster.cluster_cidr.parse().context("--cluster-cidr")?;
    let service_cidr: Cidr = config.cluster.service_cidr.parse().context("--service-cidr")?;
    let backend: Backend = config.cluster.flannel_backend.parse().context("--flannel-backend")?;
    let uplink =
        Uplink::find(config.args.flannel_iface.as_deref(), config.node_ip).await.context("find the node's uplink")?;
    let policies = (!config.cluster.disable_network_policy).then(|| Gate::new(config.all_pods.of()));
    let lent_ports = LentPorts::default();
    let pods = PodNetwork::open(mussel_network::pods::Config {
        run_dir: folders.run.join("network"),
        bridge: BRIDGE.to_owned(),
        mtu: backend.pod_mtu(uplink.mtu, uplink.ip),
        cluster_cidr,
        lent_ports: lent_ports.clone(),
        policies: policies.clone(),
    })?;
    let pods = Arc::new(pods);
    let dns: Vec<IpAddr> = config.cluster.serve_dns.then_some(config.cluster.cluster_dns).into_iter().collect();
    let serves = !config.cluster.disable_kube_proxy;
    host::prepare(pods.iptables(), service_cidr, &dns, serves).await.context("prepare the host's network")?;

    let resolv_conf = config.args.resolv_conf.clone().or_else(|| config.kubelet.resolv_conf.clone());
    let resolv_conf = resolv_conf.unwrap_or_else(host_resolv_conf);
    if config.cluster.serve_dns {
        let dns = Dns::bind(mussel_dns::Config {
            addresses: dns.clone(),
            port: 53,
            domain: config.cluster.cluster_domain.clone(),
            resolv_conf: resolv_conf.clone(),
            informers: config.informers.clone(),
        });
        let dns = dns.await?;
        parts.start("cluster dns", |stop| dns.run(stop));
    }
    // Without a backend, pods' networks are somebody else's, who may well call a bridge cni0, too.
    if backend != Backend::None {
        let (pods, informers) = (Arc::clone(&pods), config.informers.clone());
        let (name, kept) = (config.node_name.clone(), folders.agent.join(KEPT_POD_CIDR));
        parts.start_infallible("pod network", |stop| follow_pod_cidr(pods, informers, name, kept, stop));
    }
    let peers = Peers::new(
        peers::Config {
            node_name: config.node_name.clone(),
            backend,
            cluster_cidr,
            uplink,
            external_ip: config.args.node_external_ip.filter(|_| config.cluster.flannel_external_ip),
            kept: folders.agent.join("network/peers.json"),
        },
        config.informers.of(),
        config.client.clone(),
    );
    parts.start_infallible("other nodes", |stop| peers.run(stop));
    match policies {
        Some(gate) => {
            let (known, file) = (config.all_pods.of::<NetworkPolicy>(), folders.agent.join(KEPT_POLICIES));
            parts.start_infallible("policies on disk", |stop| keep(known, file, stop));
            let enforcer = Enforcer::new(policy::Config {
                node_name: config.node_name.clone(),
                dns: dns.clone(),
                iptables: pods.iptables().clone(),
                informers: config.all_pods.clone(),
                gate,
                kept_dir: folders.agent.join("network"),
            });
            parts.start_infallible("network policies", |stop| enforcer.run(stop));
        }
        // Of a time when they were to be enforced.
        None => policy::remove(pods.iptables()).await.context("take the rules for network policies away")?,
    }
    let proxy = Proxy::new(
        proxy::Config {
            node_name: config.node_name.clone(),
            cluster_cidr,
            local_addresses: dns.into_iter().collect(),
            lent_ports,
            node_addresses: [config.node_ip].into_iter().chain(config.args.node_external_ip).collect(),
            iptables: pods.iptables().clone(),
        },
        config.informers.of(),
        config.informers.of(),
    );
    if serves {
        parts.start_infallible("service proxy", |stop| proxy.run(stop));
    } else {
        // Of a time when Services were ours.
        host::remove_services(pods.iptables()).await.context("take the rules for Services away")?;
    }

    let socket = match &config.args.container_runtime_endpoint {
        Some(endpoint) => endpoint.trim_start_matches("unix://").to_owned(),
        None => folders.run.join(CRI_SOCKET).display().to_string(),
    };
    let crictl = format!("runtime-endpoint: unix://{socket}\nimage-endpoint: unix://{socket}\n");
    files::create_dir(&folders.agent.join("etc"), 0o755)?;
    files::write(&folders.agent.join("etc/crictl.yaml"), crictl.as_bytes(), 0o644)?;
    let cri = match &config.args.container_runtime_endpoint {
        Some(endpoint) => Cri::connect(endpoint.trim_start_matches("unix://")),
        None => {
            let network: Arc<dyn mussel_runtime::network::PodNetwork> = match backend {
                Backend::None => Arc::new(CniAdapter(Cni::new(cni::Config {
                    conf_dir: PathBuf::from(CNI_CONF_DIR),
                    bin_dirs: vec![PathBuf::from(CNI_BIN_DIR), PathBuf::from(CNI_BIN_DIR_OF_SYSTEM)],
                    kept_dir: folders.run.join("cni"),
                }))),
                Backend::Vxlan | Backend::HostGw => Arc::new(Adapter(Arc::clone(&pods))),
            };
            embedded_runtime(&config, &folders, network, pods, parts).await?
        }
    };
    start_kubelet(config, &folders, cri, resolv_conf, parts).await
}

/// Whether this machine has been a node of a cluster: then it has what it needs to go on as one while no server answers.
pub fn was_here(data_dir: &Path) -> bool {
    [KEPT_POD_CIDR, KEPT_SERVICES].iter().any(|kept| data_dir.join("agent").join(kept).exists())
}

/// For a start while no server answers: Services and their names go on as they were.
fn keep_services(informers: &Informers, folders: &Folders, parts: &mut Parts) {
    let (services, slices) = (informers.of::<Service>(), informers.of::<EndpointSlice>());
    let file = folders.agent.join(KEPT_SERVICES);
    parts.start_infallible("services on disk", |stop| keep(services, file, stop));
    let file = folders.agent.join("network/endpointslices.json");
    parts.start_infallible("endpoints on disk", |stop| keep(slices, file, stop));
}

/// The container runtime of this process, reached without a socket; foreign tools reach it by `<run-dir>/mussel.sock`.
async fn embedded_runtime(
    config: &NodeConfig<'_>,
    folders: &Folders,
    network: Arc<dyn mussel_runtime::network::PodNetwork>,
    pods: Arc<PodNetwork>,
    parts: &mut Parts,
) -> anyhow::Result<Cri> {
    let root_dir = folders.agent.join("runtime");
    let registries = Registries::load(&config.args.private_registry)?;
    let images = Images::open(&root_dir.join("images"), registries).context("open the images")?;
    let runtime = Runtime::open(mussel_runtime::Config {
        root_dir,
        run_dir: folders.run.clone(),
        // The running binary, also after a newer one has taken its place on disk.
        shim_exe: PathBuf::from("/proc/self/exe"),
        cgroup_root: config.args.local.cgroup_root.clone(),
        network,
        images: Arc::new(images.clone()),
    });
    let runtime = runtime.await.context("open the container runtime")?;
    let streaming =
        mussel_runtime::streaming::Server::bind(runtime.clone()).await.context("open the streaming server")?;
    runtime.set_streaming(streaming.handle());
    parts.start("streaming", |stop| streaming.run(stop));
    let live = runtime.sandbox_ids();
    pods.retain(|id| live.iter().any(|known| known == id)).await;

    let (imported, is_imported) = oneshot::channel();
    {
        let recorder = Recorder::new(config.client.clone(), "mussel", &config.node_name);
        let (informers, node) = (config.informers.clone(), config.node_name.clone());
        let (images, dir) = (images.clone(), folders.agent.join("images"));
        let report = move |outcome| report_import(&recorder, &informers, &node, outcome);
        let started = move || imported.send(()).unwrap_or_default();
        parts.start_infallible("image archives", |stop| folder::run(images, dir, report, started, stop));
    }
    {
        let (runtime, images, socket) = (runtime.clone(), images.clone(), folders.run.join(CRI_SOCKET));
        parts.start("cri", |stop| async move {
            let served = runtime.serve(images, &socket, stop).await;
            runtime.drain().await;
            served
        });
    }
    if time::timeout(IMPORT_HEAD_START, is_imported).await.is_err() {
        tracing::info!("archives are still being imported; the node starts meanwhile");
    }
    let images = mussel_cri::v1::image_service_server::ImageServiceServer::new(images);
    Ok(Cri::new(runtime.service(), images))
}

/// An event on the node, where people look when an image is missing.
fn report_import(recorder: &Recorder, informers: &Informers, node: &str, outcome: Outcome) {
    let (type_, reason, message) = match outcome {
        Outcome::Imported { archive, images } => {
            let message = format!("Imported {} from {}", images.join(", "), archive.display());
            (EventType::Normal, "ImagesImported", message)
        }
        Outcome::Failed { archive, reason } => {
            let message = format!("Failed to import {}: {reason}", archive.display());
            (EventType::Warning, "ImageImportFailed", message)
        }
    };
    let uid = informers.of::<Node>().get("", node).and_then(|node| node.metadata.uid.clone());
    let about = k8s_openapi::api::core::v1::ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: Some(node.to_owned()),
        uid,
        ..Default::default()
    };
    recorder.event(about, type_, reason, message);
}

/// Hands the pod network this node's range: the one it had before, at once; then what the Node object says.
async fn follow_pod_cidr(
    pods: Arc<PodNetwork>,
    informers: Informers,
    node: String,
    kept: PathBuf,
    stop: CancellationToken,
) {
    let mut current: Option<Cidr> = None;
    if let Ok(Some(text)) = files::read(&kept)
        && let Ok(cidr) = text.trim().parse()
        && set_pod_cidr(&pods, cidr, &stop).await
    {
        current = Some(cidr);
    }
    let nodes = informers.of::<Node>();
    let mut changes = nodes.changes();
    loop {
        let cidr = nodes.get("", &node).and_then(|node| node.spec.as_ref()?.pod_cidr.as_ref()?.parse::<Cidr>().ok());
        if let Some(cidr) = cidr
            && current != Some(cidr)
        {
            if !set_pod_cidr(&pods, cidr, &stop).await {
                return;
            }
            if let Err(error) = files::write(&kept, cidr.to_string().as_bytes(), 0o644) {
                tracing::warn!(error = chain(&error), "this node's pod CIDR is not kept for the next start");
            }
            current = Some(cidr);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            change = changes.next() => if change.is_none() { return stop.cancelled().await },
        }
    }
}

/// Tries until it holds; `false` when stopped before.
async fn set_pod_cidr(pods: &PodNetwork, cidr: Cidr, stop: &CancellationToken) -> bool {
    loop {
        match pods.set_pod_cidr(cidr).await {
            Ok(()) => return true,
            Err(error) => tracing::error!(%cidr, error = chain(&error), "pod network is not ready"),
        }
        tokio::select! {
            () = stop.cancelled() => return false,
            () = time::sleep(PODNET_RETRY) => {}
        }
    }
}

async fn start_kubelet(
    config: NodeConfig<'_>,
    folders: &Folders,
    cri: Cri,
    resolv_conf: PathBuf,
    parts: &mut Parts,
) -> anyhow::Result<()> {
    let (args, given) = (config.args, config.kubelet);
    // Log shippers look in /var/log/pods; a second node on the machine must not meet the first one's there.
    let logs_dir = match args.local.data_dir == Path::new(DEFAULT_DATA_DIR) {
        true => PathBuf::from("/var/log"),
        false => folders.agent.join("log"),
    };
    let mut taints: Vec<&Taint> = args.node_taint.iter().chain(&given.taints).collect();
    let uninitialized = Taint::uninitialized();
    if given.cloud_provider_external {
        taints.push(&uninitialized);
    }
    let taints = taints.into_iter().map(|taint| k8s_openapi::api::core::v1::Taint {
        key: taint.key.clone(),
        value: Some(taint.value.clone()).filter(|value| !value.is_empty()),
        effect: taint.effect.clone(),
        time_added: None,
    });
    let annotations = node_config::annotations(&config.node_name, config.node_ip, args.node_external_ip);
    // Another program says which machine this is.
    let provider_id = match given.cloud_provider_external {
        true => given.provider_id.clone(),
        false => given.provider_id.clone().or_else(|| Some(format!("mussel://{}", config.node_name))),
    };
    let mut labels = BTreeMap::from([(INSTANCE_TYPE.to_owned(), "mussel".to_owned())]);
    if given.cloud_provider_external {
        labels.clear();
    }
    labels.extend(given.labels.clone());
    labels.extend(args.node_label.iter().cloned());
    let kubelet = Kubelet::new(mussel_kubelet::Config {
        provider_id,
        node_name: config.node_name,
        node_ips: vec![config.node_ip],
        external_ips: args.node_external_ip.into_iter().collect(),
        labels,
        annotations,
        taints: taints.collect(),
        root_dir: folders.agent.join("kubelet"),
        pod_logs_dir: logs_dir.join("pods"),
        container_logs_dir: logs_dir.join("containers"),
        pod_manifests_dir: folders.agent.join("pod-manifests"),
        run_dir: folders.run.clone(),
        cgroup_root: args.local.cgroup_root.clone(),
        cluster_dns: given.cluster_dns.clone().unwrap_or_else(|| vec![config.cluster.cluster_dns]),
        cluster_domain: given.cluster_domain.clone().unwrap_or_else(|| config.cluster.cluster_domain.clone()),
        resolv_conf,
        tuning: given.tuning.clone(),
        client: config.client,
        informers: config.informers,
        cri,
        server: Some(mussel_kubelet::ServerConfig {
            listen: SocketAddr::new(args.bind_address, KUBELET_PORT),
            certificate: config.kubelet_certificate,
            client_ca_pem: config.client_ca_pem,
        }),
    });
    parts.start("kubelet", |stop| kubelet.run(stop));
    Ok(())
}

/// systemd-resolved's stub is of no use inside pods; what stands behind it is.
fn host_resolv_conf() -> PathBuf {
    let host = PathBuf::from("/etc/resolv.conf");
    let stub = std::fs::read_to_string(&host)
        .is_ok_and(|text| text.lines().any(|line| line.trim() == "nameserver 127.0.0.53"));
    let resolved = PathBuf::from("/run/systemd/resolve/resolv.conf");
    if stub && resolved.exists() { resolved } else { host }
}
