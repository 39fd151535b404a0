//! A server: the control plane and, unless told otherwise, a node. Starts the parts in order and stops them in reverse.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use mussel_apiserver::{ApiServer, ServerTls, ServingCert};
use mussel_client::{Informers, LeaderGate};
use mussel_cluster::addons::{Bundled, Deployer};
use mussel_cluster::pki::{Leaf, Pki};
use mussel_cluster::{kubeconfig, token};
use mussel_store::Store;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::args::ServerArgs;
use super::node::{self, NodeConfig};
use super::parts::Parts;
use super::snapshots::Snapshots;
use super::{admin, node_address, notify, preflight, reset, snapshots};

/// Certificates are looked at this often; they are made anew when 120 of their 365 days are left.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(12 * 3600);
/// Pods of one node get a network of this size: 254 addresses.
const NODE_CIDR_MASK: u8 = 24;
/// Names for `--disable` of parts that k3s brings as manifests and mussel has built in or not at all.
const COREDNS: &str = "coredns";
const DISABLEABLE: [&str; 6] = [COREDNS, "servicelb", "traefik", "local-storage", "metrics-server", "runtimes"];

pub fn main(args: ServerArgs) -> anyhow::Result<()> {
    preflight::root()?;
    preflight::clock()?;
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        bail!("another TLS provider is installed already");
    }
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("mussel")
        // A small machine: what waits does not need a thread of its own.
        .worker_threads(std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 4))
        .max_blocking_threads(32)
        .thread_keep_alive(Duration::from_secs(2))
        .build()
        .context("start the async runtime")?
        .block_on(run(args))
}

/// What the command line leaves open, settled.
#[derive(Clone)]
struct Settings {
    args: ServerArgs,
    node_name: String,
    node_ip: IpAddr,
    advertise: IpAddr,
    cluster_dns: IpAddr,
    service_cidr: mussel_apiserver::Ipv4Cidr,
}

impl Settings {
    fn settle(args: ServerArgs) -> anyhow::Result<Self> {
        let node_name = node_address::node_name(args.node_name.as_deref())?;
        let node_ip = node_address::node_ip(args.node_ip)?;
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
        Ok(Self { args, node_name, node_ip, advertise, cluster_dns, service_cidr })
    }

    fn server_dir(&self) -> PathBuf {
        self.args.local.data_dir.join("server")
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
        if !self.args.bind_address.is_unspecified() {
            ips.push(self.args.bind_address);
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
    let settings = Settings::settle(args)?;
    tracing::info!(version = super::args::VERSION, node = settings.node_name, ip = %settings.node_ip, "mussel server");
    let terminated = terminated()?;

    // First what refuses to start, before anything is written.
    preflight::writable(&settings.args.local.data_dir)?;
    let listener =
        preflight::listen(SocketAddr::new(settings.args.bind_address, settings.args.https_listen_port)).await?;
    let db = settings.server_dir().join("db");
    if settings.args.backup.cluster_reset {
        return reset::run(&settings.args.backup, &settings.server_dir(), db).await;
    }
    let schedule = snapshots::schedule::settle(&settings.args.backup)?;
    let snapshots = Snapshots::open(&settings.args.backup, &settings.server_dir(), &settings.node_name)?;
    let store = Store::open(mussel_store::Config::new(db)).await?;
    reset::done(&settings.server_dir())?;

    let mut parts = Parts::new();
    let admin = admin::Admin { store: store.clone(), snapshots: snapshots.clone() };
    let started = match admin::listen(&settings.args.local.run_dir) {
        Ok(socket) => {
            parts.start("admin socket", |stop| admin.serve(socket, stop));
            if let Some(schedule) = schedule {
                let store = store.clone();
                parts.start_infallible("snapshots", |stop| snapshots::schedule::run(snapshots, schedule, store, stop));
            }
            start(&settings, store.clone(), listener, &mut parts).await
        }
        Err(error) => Err(error),
    };
    let outcome = match started {
        Ok(()) => tokio::select! {
            () = terminated => {
                tracing::info!("stopping; pods go on running");
                Ok(())
            }
            ended = parts.first_end() => Err(anyhow::Error::new(ended)),
        },
        Err(error) => Err(error),
    };
    notify::stopping();
    parts.stop().await;
    store.shutdown().await;
    outcome
}

/// Resolves when the service manager or a person asks us to end.
fn terminated() -> anyhow::Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

async fn start(settings: &Settings, store: Store, listener: TcpListener, parts: &mut Parts) -> anyhow::Result<()> {
    let args = &settings.args;
    let server_dir = settings.server_dir();
    let pki = Pki::ensure(&server_dir.join("tls"))?;
    let given_token = match &args.token_file {
        Some(path) => Some(std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?),
        None => args.token.clone(),
    };
    token::ensure(&server_dir, pki.server_ca.cert_pem(), given_token.as_deref())?;

    let certificates = Certificates::ensure(&pki, settings)?;
    let (kubelet_client, _) = pki.leaf(&apiserver_leaf())?;
    pki.auth_proxy()?;
    let config = mussel_apiserver::Config {
        cluster_domain: args.cluster_domain.clone(),
        service_cidr: settings.service_cidr,
        node_port_range: args.service_node_port_range.first..=args.service_node_port_range.last,
        advertise_address: settings.advertise,
        secure_port: args.https_listen_port,
        client_ca_pem: pki.client_ca.cert_pem().into(),
        request_header_ca_pem: Some(pki.request_header_ca.cert_pem().into()),
        request_header_allowed_names: vec!["system:auth-proxy".to_owned()],
        service_account_key_pem: pki.service_account_key_pem.clone().into_bytes(),
        kubelet_ca_pem: pki.server_ca.cert_pem().into(),
        kubelet_client_cert_pem: kubelet_client.cert_pem.into_bytes(),
        kubelet_client_key_pem: kubelet_client.key_pem.into_bytes(),
        ..mussel_apiserver::Config::default()
    };
    let client_ca_pem = config.client_ca_pem.clone();
    let api =
        ApiServer::start(config, store.clone(), CancellationToken::new()).await.context("start the API server")?;
    let tls = ServerTls::new(
        certificates.api.clone(),
        pki.client_ca.cert_pem().as_bytes(),
        Some(pki.request_header_ca.cert_pem().as_bytes()),
    )?;
    {
        let api = api.clone();
        parts.start_infallible("api server", |stop| async move {
            api.serve(listener, tls, stop).await;
            api.shutdown().await;
        });
    }
    write_kubeconfig(&pki, settings)?;
    let ca_pem = pki.server_ca.cert_pem().to_owned();
    {
        let (certificates, settings) = (certificates.clone(), settings.clone());
        parts.start_infallible("certificates", |stop| renew(pki, certificates, settings, stop));
    }

    // All that reads for this server shares these; who may write what is decided per client below.
    let informers_stop = CancellationToken::new();
    let informers = Informers::new(
        api.client("system:kube-controller-manager", &["system:masters", "system:authenticated"]),
        informers_stop.clone(),
    );
    parts.start_infallible("informers", |stop| async move {
        stop.cancelled().await;
        informers_stop.cancel();
    });
    api.ready().await;
    notify::ready();
    tracing::info!(port = args.https_listen_port, kubeconfig = %args.write_kubeconfig.display(), "API is up");

    let gate = LeaderGate::new(store.leader());
    let controllers = mussel_controllers::Context {
        informers: informers.clone(),
        config: mussel_controllers::Config {
            cluster_cidr: args.cluster_cidr.clone(),
            node_cidr_mask: NODE_CIDR_MASK,
            cluster_domain: args.cluster_domain.clone(),
            root_ca_pem: ca_pem.clone(),
        },
    };
    {
        let gate = gate.clone();
        parts.start_infallible("controllers", |stop| mussel_controllers::run(controllers, gate, stop));
    }
    let scheduler = mussel_scheduler::Context {
        client: api.client("system:kube-scheduler", &["system:authenticated"]),
        informers: informers.clone(),
    };
    parts.start_infallible("scheduler", |stop| mussel_scheduler::run(scheduler, gate, stop));

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

    if !args.disable_agent {
        let (of_node, name) = (informers.clone(), settings.node_name.clone());
        parts.start_infallible("node role", |stop| mussel_cluster::roles::run(of_node, name, stop));
        let node = NodeConfig {
            node_name: settings.node_name.clone(),
            node_ip: settings.node_ip,
            cluster_dns: settings.cluster_dns,
            serve_dns: !args.disable.iter().any(|part| part == COREDNS),
            args,
            client: api
                .client(&format!("system:node:{}", settings.node_name), &["system:nodes", "system:authenticated"]),
            informers,
            kubelet_certificate: certificates.kubelet,
            client_ca_pem,
        };
        node::start(node, parts).await?;
    }
    Ok(())
}

/// The certificates that are shown, replaceable under way.
#[derive(Clone)]
struct Certificates {
    api: Arc<ServingCert>,
    kubelet: Arc<ServingCert>,
}

impl Certificates {
    fn ensure(pki: &Pki, settings: &Settings) -> anyhow::Result<Self> {
        let (api, _) = pki.leaf(&settings.serving_leaf()?)?;
        let (kubelet, _) = pki.leaf(&settings.kubelet_leaf())?;
        Ok(Self {
            api: ServingCert::new(api.cert_pem.as_bytes(), api.key_pem.as_bytes())?,
            kubelet: ServingCert::new(kubelet.cert_pem.as_bytes(), kubelet.key_pem.as_bytes())?,
        })
    }

    fn renew(&self, pki: &Pki, settings: &Settings) -> anyhow::Result<()> {
        for (leaf, shown) in [(settings.serving_leaf()?, &self.api), (settings.kubelet_leaf(), &self.kubelet)] {
            let (pair, new) = pki.leaf(&leaf)?;
            if new {
                shown.replace(pair.cert_pem.as_bytes(), pair.key_pem.as_bytes())?;
            }
        }
        Ok(())
    }
}

fn write_kubeconfig(pki: &Pki, settings: &Settings) -> anyhow::Result<()> {
    let (admin, _) = pki.leaf(&admin_leaf())?;
    let host = match settings.args.bind_address {
        ip if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        ip => ip,
    };
    let server = format!("https://{}", SocketAddr::new(host, settings.args.https_listen_port));
    let text = kubeconfig::render("default", &server, pki.server_ca.cert_pem(), &admin);
    kubeconfig::write(&settings.args.write_kubeconfig, &text, settings.args.write_kubeconfig_mode)?;
    Ok(())
}

/// Renews certificates before they expire, for as long as the server runs.
async fn renew(pki: Pki, certificates: Certificates, settings: Settings, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = time::sleep(CERTIFICATE_CHECK) => {}
        }
        let renewed = certificates.renew(&pki, &settings).and_then(|()| write_kubeconfig(&pki, &settings));
        if let Err(error) = renewed {
            tracing::error!(error = format!("{error:#}"), "certificates are not renewed");
        }
    }
}

/// The manifests that every cluster starts with.
fn bundled(settings: &Settings) -> Vec<Bundled> {
    let dns = include_str!("manifests/coredns.yaml").replace("%CLUSTER_DNS%", &settings.cluster_dns.to_string());
    vec![Bundled { name: COREDNS, content: dns }]
}
