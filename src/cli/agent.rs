//! An agent: a node that joins a cluster. With what it kept from before it starts at once, server or not, and is brought up
//! to date when one can be reached.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use mussel_apiserver::ServingCert;
use mussel_client::{ClientIdentity, ClusterTls, Informers, Recorder, over_cluster_tls};
use mussel_cluster::balancer::{self, Balancer};
use mussel_cluster::join::{AgentJoin, Identity, JoinError, Reasons};
use mussel_cluster::protocol::Certificate;
use mussel_cluster::token::Token;
use mussel_cluster::tunnel::TunnelClient;
use mussel_cluster::{expiry, files, kubeconfig};
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::args::{AgentArgs, NodeArgs};
use super::components::{self, KubeletArguments, Unused};
use super::node::{self, KUBELET_PORT, NodeConfig};
use super::node_address::OwnAddress;
use super::parts::{Parts, chain};
use super::{node_address, notify, preflight, process};

/// A server that can be reached answers within this; pods do not wait longer for one.
const HEAD_START: Duration = Duration::from_secs(3);
const JOIN_RETRY: Duration = Duration::from_secs(2);
/// Certificates live a year and are asked for anew this often, and at each start.
const RENEW_EVERY: Duration = Duration::from_secs(30 * 24 * 3600);

pub fn main(args: AgentArgs) -> anyhow::Result<()> {
    preflight::root()?;
    preflight::clock()?;
    process::block_on(run(args))
}

async fn run(args: AgentArgs) -> anyhow::Result<()> {
    let node_name = node_address::node_name(&args.node)?;
    let node_ip = node_address::node_ip(args.node.node_ip, args.node.flannel_iface.as_deref())?;
    let mut unused = Unused::default();
    let kubelet = components::node(&args.node, &mut unused)?;
    let server = balancer::server_address(&args.server).context("--server")?;
    let token = token(&args.node).await?;
    tracing::info!(version = super::args::VERSION, node = node_name, ip = %node_ip, server, "mussel agent");
    unused.log();
    let terminated = process::terminated()?;

    // First what refuses to start, before anything is written.
    preflight::writable(&args.node.local.data_dir)?;
    let local = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), args.lb_server_port);
    let listener = preflight::listen(local, "--lb-server-port").await?;

    let dir = args.node.local.data_dir.join("agent");
    let balancer = Balancer::open(server.clone(), &dir.join("etc/mussel-agent-load-balancer.json"));
    let join = AgentJoin {
        server,
        local,
        balancer: balancer.clone(),
        token,
        node_name,
        node_ips: vec![node_ip],
        password_file: args.node.node_password_file.clone(),
        dir,
    };
    let mut parts = Parts::new();
    parts.start_infallible("balancer", |stop| balancer.run(listener, stop));
    tokio::pin!(terminated);
    let started = tokio::select! {
        started = start(&args, &kubelet, join, &mut parts) => started.map(|()| true),
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
    parts.stop().await;
    outcome
}

async fn token(args: &NodeArgs) -> anyhow::Result<Option<Token>> {
    let text = process::secret(args.token.as_deref(), args.token_file.as_deref()).await?;
    text.map(|text| Token::parse(&text).context("--token")).transpose()
}

async fn start(
    args: &AgentArgs,
    kubelet_arguments: &KubeletArguments,
    join: AgentJoin,
    parts: &mut Parts,
) -> anyhow::Result<()> {
    let (identity, is_new) = identity(&join).await?;
    let shown = Shown::new(&identity)?;
    let local = join.local.to_string();
    let ca = identity.server_ca_pem.as_bytes();
    let kubelet_tls = ClusterTls::new(ca, Some(Arc::clone(&shown.kubelet)))?;
    let proxy_tls = ClusterTls::new(ca, Some(Arc::clone(&shown.proxy)))?;
    let client = over_cluster_tls(&local, &kubelet_tls)?;
    write_kubeconfigs(&join)?;

    // Services, endpoints and nodes are read as the proxy, pods as the node they are on.
    let informers_stop = CancellationToken::new();
    let informers =
        Informers::with_other::<Pod>(over_cluster_tls(&local, &proxy_tls)?, client.clone(), informers_stop.clone());
    // All pods, for network policies; read from the first policy on.
    let all_pods = Informers::new(over_cluster_tls(&local, &proxy_tls)?, informers_stop.clone());
    parts.start_infallible("informers", |stop| async move {
        stop.cancelled().await;
        informers_stop.cancel();
    });
    {
        let (balancer, slices) = (join.balancer.clone(), informers.of::<EndpointSlice>());
        parts.start_infallible("server list", |stop| balancer.follow(slices, stop));
    }
    let kubelet = match args.node.bind_address {
        ip if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        ip => ip,
    };
    let tunnels = TunnelClient {
        balancer: join.balancer.clone(),
        tls: kubelet_tls,
        kubelet: SocketAddr::new(kubelet, KUBELET_PORT),
    };
    parts.start_infallible("tunnels", |stop| tunnels.run(stop));

    let recorder = Recorder::new(client.clone(), "mussel", &join.node_name);
    let (node_name, nodes) = (join.node_name.clone(), informers.of());
    let node = NodeConfig {
        node_name: join.node_name.clone(),
        node_ip: join.node_ips[0],
        cluster: &identity.settings,
        args: &args.node,
        kubelet: kubelet_arguments,
        client,
        informers,
        all_pods,
        kubelet_certificate: Arc::clone(&shown.serving),
        client_ca_pem: identity.client_ca_pem.clone().into_bytes(),
    };
    node::start(node, parts).await?;
    notify::ready();
    let (ip, interface) = (args.node.node_ip, args.node.flannel_iface.clone());
    let own_ip = move || node_address::node_ip(ip, interface.as_deref());
    parts.start("certificates", |stop| renew(own_ip, join, identity, shown, is_new, stop));
    let certificates = args.node.local.data_dir.join("agent");
    parts.start_infallible("expiry", |stop| expiry::watch(certificates, recorder, node_name, nodes, stop));
    Ok(())
}

/// Who this node is, and whether the cluster has just said so. A node that has been part of the cluster needs nobody's leave
/// to run its pods; but a server that is there may say that another machine has taken its place.
async fn identity(join: &AgentJoin) -> anyhow::Result<(Identity, bool)> {
    let Some(kept) = Identity::load(&join.dir)? else { return Ok((joined(join).await, true)) };
    if let Some(before) = kept.node_name().filter(|before| *before != join.node_name) {
        tracing::info!(before, now = join.node_name, "this machine has another name; it joins as another node");
        Identity::forget(&join.dir)?;
        return Ok((joined(join).await, true));
    }
    match time::timeout(HEAD_START, join.attempt()).await {
        Ok(Ok(joined)) => Ok((joined.identity, true)),
        Ok(Err(error @ JoinError::NameTaken { .. })) => {
            tracing::error!("{}", chain(&error));
            Identity::forget(&join.dir)?;
            Ok((joined(join).await, true))
        }
        Ok(Err(error)) => {
            tracing::warn!("starting with what is known from before: {}", chain(&error));
            Ok((kept, false))
        }
        Err(_) => {
            tracing::warn!("starting with what is known from before: no server answers");
            Ok((kept, false))
        }
    }
}

/// Tries until the cluster takes this machine.
async fn joined(join: &AgentJoin) -> Identity {
    let mut reasons = Reasons::default();
    loop {
        match join.attempt().await {
            Ok(joined) => {
                tracing::info!(server = join.server, "joined the cluster");
                return joined.identity;
            }
            Err(error) => reasons.tell(&chain(&error)),
        }
        time::sleep(JOIN_RETRY).await;
    }
}

/// The certificates in use, replaceable under way.
struct Shown {
    serving: Arc<ServingCert>,
    kubelet: Arc<ClientIdentity>,
    proxy: Arc<ClientIdentity>,
}

impl Shown {
    fn new(identity: &Identity) -> anyhow::Result<Self> {
        let (serving, client, proxy) = (&identity.serving_kubelet, &identity.client_kubelet, &identity.client_proxy);
        Ok(Self {
            serving: ServingCert::new(serving.cert_pem.as_bytes(), serving.key_pem.as_bytes())?,
            kubelet: ClientIdentity::new(client.cert_pem.as_bytes(), client.key_pem.as_bytes())?,
            proxy: ClientIdentity::new(proxy.cert_pem.as_bytes(), proxy.key_pem.as_bytes())?,
        })
    }

    fn replace(&self, identity: &Identity) -> anyhow::Result<()> {
        let (serving, client, proxy) = (&identity.serving_kubelet, &identity.client_kubelet, &identity.client_proxy);
        self.serving.replace(serving.cert_pem.as_bytes(), serving.key_pem.as_bytes())?;
        self.kubelet.replace(client.cert_pem.as_bytes(), client.key_pem.as_bytes())?;
        self.proxy.replace(proxy.cert_pem.as_bytes(), proxy.key_pem.as_bytes())?;
        Ok(())
    }
}

/// Asks for new certificates: now, unless they are new, then every [`RENEW_EVERY`], and when this machine gets another address.
///
/// # Errors
/// When another machine has this node's name: two kubelets must not act as one node.
async fn renew(
    own_ip: impl Fn() -> anyhow::Result<IpAddr>,
    mut join: AgentJoin,
    identity: Identity,
    shown: Shown,
    is_new: bool,
    stop: CancellationToken,
) -> Result<(), JoinError> {
    let mut wait = if is_new { RENEW_EVERY } else { Duration::ZERO };
    let mut reasons = Reasons::default();
    let mut addresses = OwnAddress::watch(join.node_ips[0]);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = time::sleep(wait) => {}
            ip = addresses.changed(&own_ip) => join.node_ips = vec![ip],
        }
        let attempt = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            attempt = join.attempt() => attempt,
        };
        wait = match attempt {
            Ok(joined) => {
                tracing::info!("certificates of this node are renewed");
                if let Err(error) = shown.replace(&joined.identity).and_then(|()| write_kubeconfigs(&join)) {
                    tracing::error!(
                        error = format!("{error:#}"),
                        "new certificates are not used before the next start"
                    );
                }
                if joined.identity.settings != identity.settings
                    || joined.identity.server_ca_pem != identity.server_ca_pem
                    || joined.identity.client_ca_pem != identity.client_ca_pem
                {
                    tracing::warn!("the cluster's settings or CAs changed; restart this agent to use them");
                }
                RENEW_EVERY
            }
            Err(error @ JoinError::NameTaken { .. }) => {
                Identity::forget(&join.dir)?;
                return Err(error);
            }
            Err(error) => {
                reasons.tell(&chain(&error));
                JOIN_RETRY
            }
        };
    }
}

/// For tools on this machine, as k3s has them.
fn write_kubeconfigs(join: &AgentJoin) -> anyhow::Result<()> {
    let file = |name: String| -> PathBuf { join.dir.join(name) };
    for (name, certificate) in
        [("kubelet.kubeconfig", Certificate::ClientKubelet), ("kubeproxy.kubeconfig", Certificate::ClientProxy)]
    {
        let text = kubeconfig::render_files(
            &format!("https://{}", join.local),
            &file("server-ca.crt".to_owned()),
            &file(format!("{}.crt", certificate.file())),
            &file(format!("{}.key", certificate.file())),
        );
        kubeconfig::write(&file(name.to_owned()), &text, 0o600)?;
    }
    files::create_dir(&join.dir, 0o755)?;
    Ok(())
}
