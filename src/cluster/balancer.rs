//! An agent's own balancer: a port on loopback behind which some server answers, whichever lives.
//!
//! Connections go to one server and stay with it; another is taken when that one cannot be reached (failover, not
//! spreading, so that watches are not scattered). A server that goes bad loses its connections at once, and clients come
//! again. The list is kept on disk, so that an agent finds the cluster after its first server is gone for good.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use mussel_client::{Change, Informer, resolve};
use serde::{Deserialize, Serialize};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::files;

const DIAL_TIME: Duration = Duration::from_secs(2);
/// A machine that is gone does not say so. The kernel asks an idle connection's other end this often, and gives a
/// connection up when nothing is confirmed for [`SILENCE_MAX`].
const KEEPALIVE: Duration = Duration::from_secs(2);
const KEEPALIVE_AGAIN: Duration = Duration::from_secs(1);
const SILENCE_MAX: Duration = Duration::from_secs(3);
const CONNECTIONS_MAX: usize = 1024;
/// More servers than any cluster has.
const SERVERS_MAX: usize = 64;
/// The pause after a failed accept, which mostly means that file descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    #[error("{0:?} is not an https:// URL with a host, such as https://first:6443")]
    NotHttps(String),
}

/// `host:port` of an `https://` URL.
///
/// # Errors
/// When it is none, or has a path.
pub fn server_address(url: &str) -> Result<String, UrlError> {
    let wrong = || UrlError::NotHttps(url.to_owned());
    let uri: http::Uri = url.trim().parse().map_err(|_| wrong())?;
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(wrong)?;
    if uri.scheme_str() != Some("https") || !matches!(uri.path(), "" | "/") {
        return Err(wrong());
    }
    Ok(format!("{host}:{}", uri.port_u16().unwrap_or(443)))
}

#[derive(Clone)]
pub struct Balancer(Arc<Inner>);

struct Inner {
    /// As given on the command line; may be a balancer's or a DNS name.
    seed: String,
    kept: PathBuf,
    state: Mutex<State>,
    servers: watch::Sender<Vec<String>>,
}

struct State {
    /// The first one is tried first.
    servers: Vec<Server>,
    last_error: Option<String>,
}

struct Server {
    address: String,
    /// Tried last.
    bad: bool,
    /// Ends the connections to it.
    connections: CancellationToken,
}

impl Server {
    fn new(address: String) -> Self {
        Self { address, bad: false, connections: CancellationToken::new() }
    }
}

/// What is on disk.
#[derive(Serialize, Deserialize)]
struct Kept {
    server_addresses: Vec<String>,
}

impl Balancer {
    /// `kept` is the file that holds the list over restarts.
    pub fn open(seed: String, kept: &Path) -> Self {
        let text = files::read(kept).unwrap_or_else(|error| {
            tracing::warn!(%error, "the servers known before cannot be read");
            None
        });
        let known: Option<Kept> = text.and_then(|text| serde_json::from_str(&text).ok());
        let mut known = known.map(|kept| kept.server_addresses).unwrap_or_default();
        known.truncate(SERVERS_MAX);
        let servers = known.iter().cloned().map(Server::new).collect();
        Self(Arc::new(Inner {
            seed,
            kept: kept.to_owned(),
            state: Mutex::new(State { servers, last_error: None }),
            servers: watch::Sender::new(known),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The servers' addresses, as they change.
    pub fn servers(&self) -> watch::Receiver<Vec<String>> {
        self.0.servers.subscribe()
    }

    /// Why no server could be reached the last time.
    pub fn last_error(&self) -> Option<String> {
        self.lock().last_error.clone()
    }

    /// Takes over what the cluster says. An empty list is taken for a mistake. Connections to servers that are not in it
    /// any more are ended.
    pub fn set_servers(&self, mut addresses: Vec<String>) {
        addresses.sort();
        addresses.dedup();
        addresses.truncate(SERVERS_MAX);
        if addresses.is_empty() {
            return;
        }
        {
            let mut state = self.lock();
            state.servers.retain(|server| {
                let stays = addresses.contains(&server.address);
                if !stays {
                    server.connections.cancel();
                }
                stays
            });
            for address in &addresses {
                if !state.servers.iter().any(|server| server.address == *address) {
                    state.servers.push(Server::new(address.clone()));
                }
            }
        }
        let changed = self.0.servers.send_if_modified(|known| {
            let differs = *known != addresses;
            if differs {
                known.clone_from(&addresses);
            }
            differs
        });
        if changed {
            tracing::info!(servers = addresses.join(","), "servers of the cluster");
            let kept = serde_json::to_vec(&Kept { server_addresses: addresses }).unwrap_or_default();
            if let Err(error) = files::write(&self.0.kept, &kept, 0o600) {
                tracing::warn!(%error, "the list of servers is not kept for the next start");
            }
        }
    }

    /// The server is not to be trusted with new connections while there is another; those it has are ended.
    pub fn mark_bad(&self, address: &str, reason: &str) {
        let mut state = self.lock();
        if let Some(server) = state.servers.iter_mut().find(|server| server.address == address) {
            server.connections.cancel();
            server.connections = CancellationToken::new();
            if !server.bad {
                server.bad = true;
                tracing::info!(server = address, reason, "server is taken out of rotation");
            }
        }
    }

    pub fn mark_good(&self, address: &str) {
        let mut state = self.lock();
        if let Some(server) = state.servers.iter_mut().find(|server| server.address == address) {
            server.bad = false;
        }
    }

    /// In the order in which to try them: what worked last, the other good ones, the seed, the bad ones.
    fn candidates(&self) -> Vec<(String, CancellationToken)> {
        let state = self.lock();
        let of = |bad: bool| {
            let servers = state.servers.iter().filter(move |server| server.bad == bad);
            servers.map(|server| (server.address.clone(), server.connections.clone()))
        };
        let mut all: Vec<_> = of(false).collect();
        if !state.servers.iter().any(|server| server.address == self.0.seed) {
            all.push((self.0.seed.clone(), CancellationToken::new()));
        }
        all.extend(of(true));
        all
    }

    async fn dial(&self) -> Option<(TcpStream, CancellationToken)> {
        for (address, connections) in self.candidates() {
            let dialled = time::timeout(DIAL_TIME, connect(&address)).await;
            match dialled.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer"))) {
                Ok(stream) => {
                    let mut state = self.lock();
                    state.last_error = None;
                    if let Some(at) = state.servers.iter().position(|server| server.address == address) {
                        state.servers[at].bad = false;
                        let server = state.servers.remove(at);
                        state.servers.insert(0, server);
                    }
                    return Some((stream, connections));
                }
                Err(error) => {
                    self.mark_bad(&address, &error.to_string());
                    self.lock().last_error = Some(format!("{address}: {error}"));
                }
            }
        }
        None
    }

    /// Serves connections until `stop`.
    pub async fn run(self, listener: TcpListener, stop: CancellationToken) {
        let connections = TaskTracker::new();
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let accepted = async {
                let slot = Arc::clone(&slots).acquire_owned().await.map_err(io::Error::other)?;
                let (stream, _) = listener.accept().await?;
                Ok::<_, io::Error>((stream, slot))
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                accepted = accepted => match accepted {
                    Ok((stream, slot)) => {
                        let (balancer, stop) = (self.clone(), stop.clone());
                        connections.spawn(async move {
                            balancer.carry(stream, stop).await;
                            drop(slot);
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        connections.close();
        connections.wait().await;
    }

    /// Carries one connection to a server and back.
    async fn carry(&self, mut client: TcpStream, stop: CancellationToken) {
        let dialled = tokio::select! {
            () = stop.cancelled() => return,
            dialled = self.dial() => dialled,
        };
        let Some((mut server, gone_bad)) = dialled else { return };
        // A failure costs latency only.
        let _ = client.set_nodelay(true);
        tokio::select! {
            () = stop.cancelled() => {}
            () = gone_bad.cancelled() => {}
            // How a connection ends is the two ends' affair.
            _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
        }
    }

    /// Takes over the endpoints of `default/kubernetes` until `stop`.
    pub async fn follow(self, slices: Informer<EndpointSlice>, stop: CancellationToken) {
        let mut changes = slices.changes();
        loop {
            let changed = tokio::select! {
                () = stop.cancelled() => return,
                change = changes.next() => match change {
                    None => return stop.cancelled().await,
                    Some(Change::Applied { new, .. }) => is_kubernetes(&new),
                    Some(Change::Deleted(_)) => false,
                    Some(Change::Resync) => true,
                },
            };
            if changed && let Some(slice) = slices.get("default", "kubernetes") {
                self.set_servers(api_servers(&slice));
            }
        }
    }
}

fn is_kubernetes(slice: &EndpointSlice) -> bool {
    slice.metadata.namespace.as_deref() == Some("default") && slice.metadata.name.as_deref() == Some("kubernetes")
}

/// `host:port` of every API server in the endpoints of `default/kubernetes`.
pub fn api_servers(slice: &EndpointSlice) -> Vec<String> {
    let ports = slice.ports.iter().flatten();
    let port = ports.filter(|port| port.name.as_deref() == Some("https")).find_map(|port| port.port).unwrap_or(6443);
    let Ok(port) = u16::try_from(port) else { return Vec::new() };
    let ready = slice
        .endpoints
        .iter()
        .flatten()
        .filter(|endpoint| endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true));
    let addresses = ready.flat_map(|endpoint| &endpoint.addresses);
    addresses.filter_map(|ip| ip.parse::<IpAddr>().ok()).map(|ip| SocketAddr::new(ip, port).to_string()).collect()
}

/// A connection to `host:port` on which silence is noticed.
pub async fn connect(address: &str) -> io::Result<TcpStream> {
    let (host, port) = address.rsplit_once(':').ok_or_else(|| io::Error::other(format!("{address}: no port")))?;
    let port: u16 = port.parse().map_err(io::Error::other)?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
    for ip in resolve(host.trim_start_matches('[').trim_end_matches(']')).await? {
        match TcpStream::connect(SocketAddr::new(ip, port)).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                let socket = SockRef::from(&stream);
                let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_AGAIN);
                socket.set_tcp_keepalive(&keepalive)?;
                socket.set_tcp_user_timeout(Some(SILENCE_MAX))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// A server that says its name to every connection and then holds it.
    async fn server(name: &'static str) -> (String, CancellationToken) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let stop = CancellationToken::new();
        let until = stop.clone();
        tokio::spawn(async move {
            let mut held = Vec::new();
            loop {
                tokio::select! {
                    () = until.cancelled() => return,
                    accepted = listener.accept() => {
                        let (mut stream, _) = accepted.unwrap();
                        stream.write_all(name.as_bytes()).await.unwrap();
                        held.push(stream);
                    }
                }
            }
        });
        (address, stop)
    }

    struct Lab {
        balancer: Balancer,
        port: SocketAddr,
        dir: tempfile::TempDir,
    }

    async fn lab(seed: &str) -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let balancer = Balancer::open(seed.to_owned(), &dir.path().join("lb.json"));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap();
        tokio::spawn(balancer.clone().run(listener, CancellationToken::new()));
        Lab { balancer, port, dir }
    }

    async fn ask(port: SocketAddr) -> (String, TcpStream) {
        let mut stream = TcpStream::connect(port).await.unwrap();
        let mut name = [0; 1];
        let read = stream.read(&mut name).await.unwrap_or(0);
        (String::from_utf8_lossy(&name[..read]).into_owned(), stream)
    }

    #[tokio::test]
    async fn another_server_takes_over() {
        let (a, stop_a) = server("a").await;
        let (b, _stop_b) = server("b").await;
        let lab = lab(&a).await;
        assert_eq!(ask(lab.port).await.0, "a", "the seed, before anything is known");
        lab.balancer.set_servers(vec![a.clone(), b.clone()]);
        let (first, mut held) = ask(lab.port).await;
        assert_eq!(ask(lab.port).await.0, first, "it stays with one");
        stop_a.cancel();
        lab.balancer.mark_bad(&a, "test");
        assert_eq!(ask(lab.port).await.0, "b");
        if first == "a" {
            assert_eq!(held.read(&mut [0; 1]).await.unwrap_or(0), 0, "connections to a bad server end");
        }
        lab.balancer.set_servers(vec![b.clone()]);
        assert_eq!(ask(lab.port).await.0, "b");
    }

    #[tokio::test]
    async fn a_dead_server_is_passed_over_and_the_list_survives() {
        let (dead, stop) = server("x").await;
        stop.cancel();
        let (b, _stop_b) = server("b").await;
        let lab = lab(&dead).await;
        lab.balancer.set_servers(vec![dead.clone(), b.clone()]);
        wait_refused(&dead).await;
        assert_eq!(ask(lab.port).await.0, "b");
        let again = Balancer::open(dead.clone(), &lab.dir.path().join("lb.json"));
        let mut expected = vec![dead, b];
        expected.sort();
        assert_eq!(*again.servers().borrow(), expected);
        again.set_servers(Vec::new());
        assert_eq!(*again.servers().borrow(), expected, "an empty list is a mistake");
    }

    /// The listener of a stopped server goes a moment later.
    async fn wait_refused(address: &str) {
        let refused = async {
            while TcpStream::connect(address).await.is_ok() {
                tokio::task::yield_now().await
            }
        };
        time::timeout(Duration::from_secs(10), refused).await.unwrap();
    }

    #[tokio::test]
    async fn nobody_there_is_said() {
        let (dead, stop) = server("x").await;
        stop.cancel();
        wait_refused(&dead).await;
        let lab = lab(&dead).await;
        assert_eq!(ask(lab.port).await.0, "");
        assert!(lab.balancer.last_error().unwrap().contains(&dead));
    }

    #[test]
    fn urls_name_host_and_port() {
        let of = |url: &str| server_address(url).ok();
        assert_eq!(of("https://first:6443").as_deref(), Some("first:6443"));
        assert_eq!(of("https://10.0.0.1").as_deref(), Some("10.0.0.1:443"));
        assert_eq!(of("https://[fd00::1]:6443/").as_deref(), Some("[fd00::1]:6443"));
        for wrong in ["http://first:6443", "first:6443", "https://", "https://first/path"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }
}
