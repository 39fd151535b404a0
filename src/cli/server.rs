//! A server: the control plane and, unless told otherwise, a node. Starts the parts in order and stops them in reverse.

mod certificates;
mod group;
mod signer;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use mussel_apiserver::{ApiServer, OldestTls, PeerTls, ServerTls};
use mussel_client::{Informers, LeaderGate, Recorder};
use mussel_cluster::addons::{Bundled, Deployer};
use mussel_cluster::bootstrap_data::BootstrapData;
use mussel_cluster::expiry::ExpirationSeconds;
use mussel_cluster::front::Front;
use mussel_cluster::key_vault::KeyVault;
use mussel_cluster::node_password::{self, OwnName};
use mussel_cluster::pki::{Leaf, Pki};
use mussel_cluster::roles::Role;
use mussel_cluster::servers::{Record, Servers};
use mussel_cluster::settings::ClusterSettings;
use mussel_cluster::supervisor::Supervisor;
use mussel_cluster::tunnel::Tunnels;
use mussel_cluster::{bootstrap_tokens, ca_rotation, expiry, token, token_rotation};
use mussel_store::Store;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time;
use tokio_util::sync::CancellationToken;

use certificates::{Certificates, renew, write_kubeconfig};
use group::Entry;
use signer::ApiSigner;

use super::args::ServerArgs;
use super::components::{self, KubeletArguments, ServerArguments, Unused};
use super::node::{self, NodeConfig};
use super::parts::Parts;
use super::snapshots::Snapshots;
use super::{admin, node_address, notify, preflight, process, reset, snapshots};

/// A group that has a majority has a leader within this.
const HEAD_START: Duration = Duration::from_secs(5);
/// Pods of one node get a network of this size: 254 addresses.
const NODE_CIDR_MASK: u8 = 24;
/// Names for `--disable` of parts that k3s brings as manifests and mussel has built in or not at all.
const COREDNS: &str = "coredns";
const SERVICE_LB: &str = "servicelb";
const LOCAL_STORAGE: &str = "local-storage";
const METRICS: &str = "metrics-server";
const DISABLEABLE: [&str; 6] = [COREDNS, SERVICE_LB, "traefik", LOCAL_STORAGE, METRICS, "runtimes"];

pub fn main(args: ServerArgs) -> anyhow::Result<()> {
    preflight::root()?;
    preflight::clock()?;
    process::block_on(run(args))
}

/// What the command line leaves open, settled.
#[derive(Clone)]
struct Settings {
    args: ServerArgs,
    node_name: String,
    node_ip: IpAddr,
    advertise: IpAddr,
    cluster: ClusterSettings,
    service_cidr: mussel_apiserver::Ipv4Cidr,
    arguments: ServerArguments,
    kubelet: KubeletArguments,
}

impl Settings {
    fn settle(args: ServerArgs, unused: &mut Unused) -> anyhow::Result<Self> {
        reset::check(&args)?;
        if args.disable_etcd {
            bail!(
                "--disable-etcd: every server keeps the store and has a vote in it. Leave the flag out, or run mussel agent here; \
                on servers that should only keep the store use --disable-apiserver, --disable-controller-manager, \
                --disable-scheduler and --disable-agent"
            );
        }
        let arguments = ServerArguments::read(&args, unused)?;
        let kubelet = components::node(&args.node, unused)?;
        let node_name = node_address::node_name(&args.node)?;
        let node_ip = node_address::node_ip(args.node.node_ip, args.node.flannel_iface.as_deref())?;
        let service_cidr: mussel_apiserver::Ipv4Cidr = args.service_cidr.parse().context("--service-cidr")?;
        let cluster_dns = match args.cluster_dns {
            Some(ip) => ip,
            None => IpAddr::V4(service_cidr.nth(10).context("--service-cidr has no 10th address for the cluster DNS")?),
        };
        let in_services = matches!(cluster_dns, IpAddr::V4(ip) if service_cidr.offset(ip).is_some());
        if !in_services {
            bail!("--cluster-dns {cluster_dns} is not in --service-cidr {}", args.service_cidr);
        }
        for part in &args.disable {
            if !DISABLEABLE.contains(&part.as_str()) {
                tracing::debug!(part, "--disable names no bundled part; taken as the name of a manifest");
            }
        }
        let advertise = args.advertise_address.unwrap_or(node_ip);
        let ports = arguments.api.node_port_range.unwrap_or(args.service_node_port_range);
        let cluster = ClusterSettings {
            cluster_cidr: args.cluster_cidr.clone(),
            service_cidr: args.service_cidr.clone(),
            cluster_dns,
            cluster_domain: args.cluster_domain.clone(),
            service_node_port_range: (ports.first, ports.last),
            serve_dns: !args.disable.iter().any(|part| part == COREDNS),
            flannel_backend: args.flannel_backend.as_str().to_owned(),
            flannel_external_ip: args.flannel_external_ip,
            disable_kube_proxy: args.disable_kube_proxy,
            disable_network_policy: args.disable_network_policy,
            disable_service_lb: args.disable.iter().any(|part| part == SERVICE_LB),
        };
        Ok(Self { args, node_name, node_ip, advertise, cluster, service_cidr, arguments, kubelet })
    }

    /// Where others reach this server.
    fn address(&self) -> SocketAddr {
        SocketAddr::new(self.advertise, self.args.advertise_port.unwrap_or(self.args.https_listen_port))
    }

    fn server_dir(&self) -> PathBuf {
        self.args.node.local.data_dir.join("server")
    }

    /// The names and addresses under which the API is reached.
    fn serving_leaf(&self) -> anyhow::Result<Leaf> {
        let first = self.service_cidr.nth(1).context("--service-cidr has no first address")?;
        let domain = &self.args.cluster_domain;
        let mut names: Vec<String> = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
            .into_iter()
            .map(str::to_owned)
            .chain([format!("kubernetes.default.svc.{domain}"), self.node_name.clone()])
            .collect();
        let mut ips = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V4(first), self.node_ip, self.advertise];
        ips.extend(self.args.node.node_external_ip);
        if !self.args.node.bind_address.is_unspecified() {
            ips.push(self.args.node.bind_address);
        }
        for san in self.args.tls_san.iter().map(|san| san.trim()).filter(|san| !san.is_empty()) {
            match san.parse::<IpAddr>() {
                Ok(ip) => ips.push(ip),
                Err(_) => names.push(san.to_owned()),
            }
        }
        names.sort();
        names.dedup();
        ips.sort();
        ips.dedup();
        Ok(Leaf::server("serving-kube-apiserver", "kube-apiserver", names, ips))
    }

    /// The names and addresses of servers. This node's own is guarded by its password.
    fn reserved(&self) -> anyhow::Result<Leaf> {
        let mut leaf = self.serving_leaf()?;
        leaf.dns_names.retain(|name| *name != self.node_name);
        Ok(leaf)
    }

    fn kubelet_leaf(&self) -> Leaf {
        let name = format!("system:node:{}", self.node_name);
        let names = vec![self.node_name.clone(), "localhost".to_owned()];
        Leaf::server("serving-kubelet", &name, names, vec![IpAddr::V4(Ipv4Addr::LOCALHOST), self.node_ip])
    }
}

fn admin_leaf() -> Leaf {
    Leaf::client("client-admin", "system:admin", &["system:masters"])
}

fn apiserver_leaf() -> Leaf {
    Leaf::client("client-kube-apiserver", "kube-apiserver-kubelet-client", &["system:masters"])
}

async fn run(args: ServerArgs) -> anyhow::Result<()> {
    let mut unused = Unused::default();
    let settings = Settings::settle(args, &mut unused)?;
    tracing::info!(version = super::args::VERSION, node = settings.node_name, ip = %settings.node_ip, "mussel server");
    unused.log();
    let terminated = process::terminated()?;

    // First what refuses to start, before anything is written.
    preflight::writable(&settings.args.node.local.data_dir)?;
    let listener = preflight::listen(
        SocketAddr::new(settings.args.node.bind_address, settings.args.https_listen_port),
        "--https-listen-port",
    )
    .await?;
    if settings.args.backup.cluster_reset {
        let token =
            process::secret(settings.args.node.token.as_deref(), settings.args.node.token_file.as_deref()).await?;
        let snapshot = settings.args.backup.cluster_reset_restore_path.clone();
        return reset::run(snapshot, &settings.server_dir(), token.as_deref()).await;
    }
    let mut parts = Parts::new();
    let mut store = None;
    tokio::pin!(terminated);
    let started = tokio::select! {
        started = start(&settings, listener, &mut parts, &mut store) => started.map(|()| true),
        () = &mut terminated => Ok(false),
    };
    let outcome = match started {
        Ok(true) => tokio::select! {
            () = terminated => {
                tracing::info!("stopping; pods go on running");
                Ok(())
            }
            ended = parts.first_end() => Err(anyhow::Error::new(ended)),
        },
        Ok(false) => Ok(()),
        Err(error) => Err(error),
    };
    notify::stopping();
    if let Some(store) = &store {
        // Before the parts stop, so that nobody waits for an election, nor controllers for a leader.
        store.hand_over().await;
    }
    parts.stop().await;
    if let Some(store) = store {
        store.shutdown().await;
    }
    outcome
}

/// Starts all parts. The store is left in `opened`, to be closed after them.
async fn start(
    settings: &Settings,
    listener: TcpListener,
    parts: &mut Parts,
    opened: &mut Option<Store>,
) -> anyhow::Result<()> {
    let args = &settings.args;
    let server_dir = settings.server_dir();
    let token = process::secret(args.node.token.as_deref(), args.node.token_file.as_deref()).await?;
    let agent_token = process::secret(args.agent_token.as_deref(), args.agent_token_file.as_deref()).await?;
    let schedule = snapshots::schedule::settle(&args.backup)?;
    let snapshots = Snapshots::open(&args.backup, &server_dir, &settings.node_name)?;
    let password_file = (!args.disable_agent).then_some(args.node.node_password_file.as_path());
    let entry = group::enter(
        args.server.as_deref(),
        token.as_deref(),
        &settings.cluster,
        &server_dir,
        &settings.node_name,
        password_file,
    )
    .await?;
    let agent_token = match &entry {
        Entry::Join(bootstrap) => agent_token.or_else(|| bootstrap.agent_token.clone()),
        Entry::Open => agent_token,
    };
    let pki = Arc::new(Pki::ensure(&server_dir.join("tls"))?);
    let secrets = token::ensure(&server_dir, pki.server_ca.cert_pem(), token.as_deref(), agent_token.as_deref())?;
    let secrets = Arc::new(ArcSwap::from_pointee(secrets));

    let certificates = Certificates::ensure(&pki, settings)?;
    let (kubelet_client, _) = pki.leaf(&apiserver_leaf())?;
    let (auth_proxy, _) = pki.auth_proxy()?;
    let tunnels = Tunnels::default();
    let supervisor = Supervisor::new(mussel_cluster::supervisor::Config {
        pki: Arc::clone(&pki),
        settings: settings.cluster.clone(),
        secrets: Arc::clone(&secrets),
        tunnels: tunnels.clone(),
        reserved: settings.reserved()?,
        server_dir: server_dir.clone(),
    });
    // The port first: a group reaches a member that joins only there.
    let front = Front::new(supervisor, !args.disable_apiserver);
    let tls = ServerTls::with_peers(
        certificates.api.clone(),
        pki.client_ca.cert_pem().as_bytes(),
        Some(pki.request_header_ca.cert_pem().as_bytes()),
        Some(PeerTls { certificate: certificates.peer.clone(), ca_pem: pki.peer_ca.cert_pem().as_bytes() }),
        if settings.arguments.api.tls13_only { OldestTls::V13 } else { OldestTls::V12 },
    )?;
    {
        let front = Arc::new(front.clone());
        parts.start_infallible("port", |stop| mussel_apiserver::server::serve(listener, tls, front, stop));
    }
    let address = settings.address();
    let identity = certificates.peer_client.clone();
    let store =
        group::open(&entry, &server_dir, &settings.node_name, address, settings.arguments.timing, &pki, identity)
            .await?;
    *opened = Some(store.clone());
    front.attach_store(store.clone());
    let encryption = Arc::new(OnceLock::new());
    {
        let (store, snapshots) = (store.clone(), snapshots.clone());
        let admin = admin::Admin { store, snapshots, encryption: Arc::clone(&encryption) };
        let socket = admin::listen(&args.node.local.run_dir)?;
        parts.start("admin socket", |stop| admin.serve(socket, stop));
    }
    store.joined().await.context("join the group")?;
    if let Some(schedule) = schedule {
        let store = store.clone();
        parts.start_infallible("snapshots", |stop| snapshots::schedule::run(snapshots, schedule, store, stop));
    }
    {
        let store = store.clone();
        parts.start("membership", |stop| async move {
            tokio::select! {
                () = stop.cancelled() => Ok(()),
                () = store.removed() => Err(RemovedFromGroup),
            }
        });
    }

    let (given, defaults) = (&settings.arguments.api, mussel_apiserver::Config::default());
    let config = mussel_apiserver::Config {
        cluster_domain: args.cluster_domain.clone(),
        service_cidr: settings.service_cidr,
        node_port_range: settings.cluster.service_node_port_range.0..=settings.cluster.service_node_port_range.1,
        advertise_address: address.ip(),
        secure_port: address.port(),
        client_ca_pem: pki.client_ca.cert_pem().into(),
        request_header_ca_pem: Some(pki.request_header_ca.cert_pem().into()),
        request_header_allowed_names: vec!["system:auth-proxy".to_owned()],
        proxy_client_cert_pem: auth_proxy.cert_pem.into_bytes(),
        proxy_client_key_pem: auth_proxy.key_pem.into_bytes(),
        service_account_key_pem: pki.service_account_key_pem.clone().into_bytes(),
        service_account_verify_pems: pki.service_account_old_pems.iter().map(|pem| pem.clone().into_bytes()).collect(),
        kubelet_ca_pem: pki.server_ca.cert_pem().into(),
        kubelet_client_cert_pem: kubelet_client.cert_pem.into_bytes(),
        kubelet_client_key_pem: kubelet_client.key_pem.into_bytes(),
        kubelet_dialer: Some(Arc::new(tunnels.clone())),
        resource_metrics: !args.disable.iter().any(|part| part == METRICS),
        vault: Some(Arc::new(KeyVault::new(Arc::clone(&secrets), &server_dir))),
        secrets_encryption: args.secrets_encryption,
        anonymous_auth: given.anonymous_auth.unwrap_or(defaults.anonymous_auth),
        api_audiences: given.audiences.clone(),
        disable_admission: given.disable_admission.clone(),
        mutating_in_flight_max: given.mutating_in_flight_max.unwrap_or(defaults.mutating_in_flight_max),
        read_only_in_flight_max: given.read_only_in_flight_max.unwrap_or(defaults.read_only_in_flight_max),
        not_ready_seconds: given.not_ready_seconds.unwrap_or(defaults.not_ready_seconds),
        unreachable_seconds: given.unreachable_seconds.unwrap_or(defaults.unreachable_seconds),
        event_ttl: given.event_ttl.unwrap_or(defaults.event_ttl),
        extend_tokens: given.extend_tokens.unwrap_or(defaults.extend_tokens),
    };
    let client_ca_pem = config.client_ca_pem.clone();
    let api =
        ApiServer::start(config, store.clone(), CancellationToken::new()).await.context("start the API server")?;
    let certificates_left = ExpirationSeconds { folder: server_dir.join("tls") };
    api.context().metrics.register(|registry| registry.register_collector(Box::new(certificates_left)));
    // A second call there is not.
    let _ = encryption.set(api.encryption().clone());
    {
        let api = api.clone();
        parts.start_infallible("api server", |stop| async move {
            stop.cancelled().await;
            api.shutdown().await;
        });
    }
    write_kubeconfig(&pki, settings)?;
    let ca_pem = pki.server_ca.cert_pem().to_owned();
    let signer = Arc::new(ApiSigner(Arc::clone(&pki)));
    {
        let (certificates, settings) = (certificates.clone(), settings.clone());
        parts.start_infallible("certificates", |stop| renew(pki, certificates, settings, stop));
    }

    // All that reads for this server shares these; who may write what is decided per client below.
    let informers_stop = CancellationToken::new();
    let informers =
        Informers::new(api.client("system:kube-controller-manager", &["system:authenticated"]), informers_stop.clone());
    parts.start_infallible("informers", |stop| async move {
        stop.cancelled().await;
        informers_stop.cancel();
    });
    let own_node = OwnNode { settings, api: &api, informers: &informers, certificates: &certificates, client_ca_pem };
    // A majority that is there answers within this; the pods of this machine do not wait longer for one.
    let on_its_own = !args.disable_agent
        && node::was_here(&args.node.local.data_dir)
        && time::timeout(HEAD_START, api.ready()).await.is_err();
    if on_its_own {
        tracing::warn!("the group has no leader yet; the node starts with what is known from before");
        own_node.start(parts).await?;
    }
    api.ready().await;
    // Not before this server knows as much as the group does: it would show what was so at its last checkpoint.
    front.attach_api(api.clone());
    notify::ready();
    tracing::info!(port = args.https_listen_port, kubeconfig = %args.write_kubeconfig.display(), "API is up");

    let gate = LeaderGate::new(store.leader());
    let servers = Servers {
        store: store.clone(),
        client: api.client("system:mussel:servers", &["system:masters"]),
        nodes: informers.of(),
        records: informers.of_fields(&Servers::selector()),
        gate: gate.clone(),
        name: settings.node_name.clone(),
        record: Record {
            address: address.to_string(),
            api_server: !args.disable_apiserver,
            controllers: !args.disable_controller_manager && !args.disable_scheduler,
            version: super::args::VERSION.to_owned(),
        },
    };
    parts.start_infallible("servers", |stop| servers.run(stop));
    let given = &settings.arguments.controllers;
    let controllers = mussel_controllers::Config {
        cluster_cidr: args.cluster_cidr.clone(),
        node_cidr_mask: given.node_cidr_mask.unwrap_or(NODE_CIDR_MASK),
        node_monitor_grace_period: given.node_monitor_grace_period,
        terminated_pods_max: given.terminated_pods_max,
        cluster_domain: args.cluster_domain.clone(),
        service_lb: mussel_controllers::service_lb::Config {
            enabled: !settings.cluster.disable_service_lb,
            reserved: vec![args.https_listen_port, node::KUBELET_PORT],
        },
        root_ca_pem: ca_pem.clone(),
        signer,
        signing_duration: given.signing_duration,
        local_storage: !args.disable.iter().any(|part| part == LOCAL_STORAGE),
    };
    let clients = api.clone();
    let clients = Arc::new(move |controller: &str| clients.controller_client(controller));
    let controllers = mussel_controllers::Context::new(informers.clone(), controllers, clients);
    if !args.disable_controller_manager {
        let gate = gate.clone();
        parts.start_infallible("controllers", |stop| mussel_controllers::run(controllers, gate, stop));
    }
    let scheduler = mussel_scheduler::Context {
        client: api.client("system:kube-scheduler", &["system:authenticated"]),
        informers: informers.clone(),
    };
    if !args.disable_scheduler {
        let gate = gate.clone();
        parts.start_infallible("scheduler", |stop| mussel_scheduler::run(scheduler, gate, stop));
    }

    let bundled = bundled(settings);
    let disabled: Vec<String> = args.disable.clone();
    let manifests = server_dir.join("manifests");
    let deployer = Deployer::new(
        api.client("system:mussel:addons", &["system:masters", "system:authenticated"]),
        manifests,
        &bundled,
        disabled,
    )?;
    parts.start_infallible("manifests", |stop| deployer.run(stop));

    {
        let client = api.client("system:mussel:node-passwords", &["system:masters"]);
        let (nodes, gate) = (informers.of(), gate.clone());
        parts.start_infallible("node passwords", |stop| node_password::clean(client, nodes, gate, stop));
    }
    {
        let client = api.controller_client("token-cleaner");
        let (tokens, gate) = (informers.of_fields(&bootstrap_tokens::selector()), gate.clone());
        parts.start_infallible("token cleaner", |stop| bootstrap_tokens::clean(client, tokens, gate, stop));
        let kept = informers.of_fields(&token_rotation::selector());
        let (dir, ca_pem) = (server_dir.clone(), ca_pem.clone());
        let used = Arc::clone(&secrets);
        let taken_over = Arc::new(Notify::new());
        let data = BootstrapData {
            api: api.clone(),
            leader: store.leader(),
            settings: settings.cluster.clone(),
            cluster: store.cluster_id().to_string(),
            secrets: Arc::clone(&secrets),
            server_dir: server_dir.clone(),
            changed: Arc::clone(&taken_over),
        };
        parts.start_infallible("bootstrap data", |stop| data.run(stop));
        {
            let taken_over = Arc::clone(&taken_over);
            parts.start_infallible("token", |stop| token_rotation::follow(kept, used, dir, ca_pem, taken_over, stop));
        }
        let (kept, dir) = (informers.of_fields(&ca_rotation::selector()), server_dir.clone());
        parts.start_infallible("authorities", |stop| ca_rotation::follow(kept, secrets, dir, taken_over, stop));
    }
    if !args.disable_agent {
        let own = OwnName {
            client: api.client("system:mussel:node-passwords", &["system:masters"]),
            node: settings.node_name.clone(),
            password_file: args.node.node_password_file.clone(),
            succeeds: reset::succeeds(&server_dir)?,
        };
        own.claim().await?;
        reset::done(&server_dir)?;
        let (of_node, name) = (informers.clone(), settings.node_name.clone());
        let role = if args.disable_apiserver { Role::Etcd } else { Role::ControlPlane };
        let client = api.client("system:mussel:node-role", &["system:masters"]);
        parts.start_infallible("node role", |stop| mussel_cluster::roles::run(client, of_node, name, role, stop));
        let recorder =
            Recorder::new(api.client("system:mussel:expiry", &["system:masters"]), "mussel", &settings.node_name);
        let (certificates, name, nodes) = (server_dir.join("tls"), settings.node_name.clone(), informers.of());
        parts.start_infallible("expiry", |stop| expiry::watch(certificates, recorder, name, nodes, stop));
        if !on_its_own {
            own_node.start(parts).await?;
        }
    }
    reset::done(&server_dir)?;
    Ok(())
}

/// What this machine's node is started with.
struct OwnNode<'a> {
    settings: &'a Settings,
    api: &'a ApiServer,
    informers: &'a Informers,
    certificates: &'a Certificates,
    client_ca_pem: Vec<u8>,
}

impl OwnNode<'_> {
    async fn start(&self, parts: &mut Parts) -> anyhow::Result<()> {
        let node_name = &self.settings.node_name;
        let client = self.api.client(&format!("system:node:{node_name}"), &["system:nodes", "system:authenticated"]);
        let node = NodeConfig {
            node_name: node_name.clone(),
            node_ip: self.settings.node_ip,
            cluster: &self.settings.cluster,
            args: &self.settings.args.node,
            kubelet: &self.settings.kubelet,
            client,
            informers: self.informers.clone(),
            all_pods: self.informers.clone(),
            kubelet_certificate: Arc::clone(&self.certificates.kubelet),
            client_ca_pem: self.client_ca_pem.clone(),
        };
        node::start(node, parts).await
    }
}

/// This server was removed while it ran.
#[derive(Debug, thiserror::Error)]
#[error(
    "this server was removed from the cluster; to join again, remove <data-dir>/server/db and start it with --server"
)]
struct RemovedFromGroup;

/// The manifests that every cluster starts with.
fn bundled(settings: &Settings) -> Vec<Bundled> {
    let dns =
        include_str!("manifests/coredns.yaml").replace("%CLUSTER_DNS%", &settings.cluster.cluster_dns.to_string());
    let root = settings.args.default_local_storage_path.clone();
    let root = root.unwrap_or_else(|| settings.args.node.local.data_dir.join("storage"));
    // Within a block of YAML, as JSON: any path may stand there.
    let root = serde_json::json!(root.to_string_lossy()).to_string();
    let storage = include_str!("manifests/local-storage.yaml").replace("%DEFAULT_LOCAL_STORAGE_PATH%", &root);
    vec![Bundled { name: COREDNS, content: dns }, Bundled { name: LOCAL_STORAGE, content: storage }]
}
