//! A network of members in one process: streams in memory, which can be cut.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use mussel_store::*;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

/// How long anything may take before a test gives up. Machines that run tests are slow.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Awaits with [`PATIENCE`].
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// Looks again and again, with [`PATIENCE`].
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    soon(what, async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

#[derive(Default)]
struct Wires {
    /// Who serves at which address.
    servers: HashMap<String, Store>,
    /// Connections that exist, by their two ends.
    open: Vec<(String, String, CancellationToken)>,
    cut: HashSet<String>,
}

/// Addresses and who answers there.
#[derive(Clone, Default)]
pub struct Net(Arc<Mutex<Wires>>);

impl Net {
    pub fn serve(&self, address: &str, store: &Store) {
        self.0.lock().unwrap().servers.insert(address.to_string(), store.clone());
    }

    /// Nobody answers at `address` from now on, and connections that exist end.
    pub fn stop_serving(&self, address: &str) {
        let mut wires = self.0.lock().unwrap();
        wires.servers.remove(address);
        Self::end(&mut wires, address);
    }

    /// Cuts `address` off: no byte goes either way, and nobody is told.
    pub fn cut(&self, address: &str) {
        self.0.lock().unwrap().cut.insert(address.to_string());
    }

    pub fn mend(&self, address: &str) {
        self.0.lock().unwrap().cut.remove(address);
    }

    fn end(wires: &mut Wires, address: &str) {
        wires.open.retain(|(from, to, stop)| {
            let ends = from == address || to == address;
            if ends {
                stop.cancel();
            }
            !ends
        });
    }

    pub fn end_connections(&self, address: &str) {
        Self::end(&mut self.0.lock().unwrap(), address);
    }

    fn is_cut(&self, from: &str, to: &str) -> bool {
        let wires = self.0.lock().unwrap();
        wires.cut.contains(from) || wires.cut.contains(to)
    }

    /// A stream to whoever serves at `to`, pumped by a task that obeys cuts.
    fn connect(&self, from: &str, to: &str) -> io::Result<Box<dyn PeerStream>> {
        if self.is_cut(from, to) {
            return Err(io::Error::from(io::ErrorKind::HostUnreachable));
        }
        let mut wires = self.0.lock().unwrap();
        let Some(server) = wires.servers.get(to).cloned() else {
            return Err(io::Error::from(io::ErrorKind::ConnectionRefused));
        };
        let stop = CancellationToken::new();
        wires.open.push((from.to_string(), to.to_string(), stop.clone()));
        drop(wires);
        let (near, near_inner) = tokio::io::duplex(64 << 10);
        let (far, far_inner) = tokio::io::duplex(64 << 10);
        let (near_read, near_write) = tokio::io::split(near_inner);
        let (far_read, far_write) = tokio::io::split(far_inner);
        for (mut reading, mut writing) in [(near_read, far_write), (far_read, near_write)] {
            let (net, stop, from, to) = (self.clone(), stop.clone(), from.to_string(), to.to_string());
            tokio::spawn(async move {
                let pump = async {
                    let mut buffer = vec![0; 16 << 10];
                    loop {
                        let read = reading.read(&mut buffer).await?;
                        while net.is_cut(&from, &to) {
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                        if read == 0 {
                            return io::Result::Ok(());
                        }
                        writing.write_all(&buffer[..read]).await?;
                    }
                };
                let _ = stop.run_until_cancelled(pump).await;
                let _ = writing.shutdown().await;
                stop.cancel();
            });
        }
        tokio::spawn(async move {
            let _ = server.serve_peer(far).await;
        });
        Ok(Box::new(near))
    }
}

struct InMemory {
    net: Net,
    own: String,
}

impl Transport for InMemory {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn PeerStream>>> {
        async move { self.net.connect(&self.own, address) }.boxed()
    }
}

/// One member, and where it lives.
pub struct Host {
    pub address: String,
    pub dir: TempDir,
    pub store: Option<Store>,
}

impl Host {
    pub fn store(&self) -> &Store {
        self.store.as_ref().expect("this member is not running")
    }
}

pub struct Lab {
    pub net: Net,
    pub hosts: Vec<Host>,
    pub adjust: fn(usize, Config) -> Config,
}

impl Lab {
    pub fn new() -> Self {
        Self { net: Net::default(), hosts: Vec::new(), adjust: |_, config| config }
    }

    /// `members` of them, all voters.
    pub async fn with(members: usize) -> Self {
        Self::adjusted(members, |_, config| config).await
    }

    pub async fn adjusted(members: usize, adjust: fn(usize, Config) -> Config) -> Self {
        let mut lab = Self { adjust, ..Self::new() };
        lab.found().await;
        for _ in 1..members {
            let host = lab.join().await;
            soon("joining", lab.hosts[host].store().joined()).await.unwrap();
        }
        lab
    }

    pub fn host(&mut self) -> usize {
        let address = format!("host-{}:6443", self.hosts.len());
        self.hosts.push(Host { address, dir: tempfile::tempdir().unwrap(), store: None });
        self.hosts.len() - 1
    }

    pub fn config(&self, host: usize) -> Config {
        let Host { address, dir, .. } = &self.hosts[host];
        let mut config = Config::new(dir.path());
        config.peer = Some(Peer {
            name: format!("node-{host}"),
            address: address.clone(),
            transport: Arc::new(InMemory { net: self.net.clone(), own: address.clone() }),
        });
        (self.adjust)(host, config)
    }

    pub fn runs(&mut self, host: usize, store: Store) {
        self.net.serve(&self.hosts[host].address, &store);
        self.hosts[host].store = Some(store);
    }

    pub async fn found(&mut self) -> usize {
        let host = self.host();
        let store = Store::open(self.config(host)).await.unwrap();
        self.runs(host, store);
        host
    }

    pub async fn join(&mut self) -> usize {
        let host = self.host();
        self.join_as(host).await;
        host
    }

    pub async fn join_as(&mut self, host: usize) {
        let running = self.hosts.iter().find_map(|host| host.store.as_ref());
        let cluster = running.expect("nobody runs").cluster_id();
        let others = self.hosts.iter().filter(|other| other.store.is_some());
        let seeds = others.map(|other| other.address.clone()).collect();
        let store = Store::join(self.config(host), cluster, seeds).await.unwrap();
        self.runs(host, store);
    }

    pub async fn start(&mut self, host: usize) {
        let store = Store::open(self.config(host)).await.unwrap();
        self.runs(host, store);
    }

    pub async fn stop(&mut self, host: usize) {
        let store = self.hosts[host].store.take().unwrap();
        soon("shutdown", store.shutdown()).await;
        self.net.stop_serving(&self.hosts[host].address);
    }

    /// Ends without a word to the others.
    pub async fn crash(&mut self, host: usize) {
        let store = self.hosts[host].store.take().unwrap();
        self.net.cut(&self.hosts[host].address);
        self.net.stop_serving(&self.hosts[host].address);
        soon("shutdown", store.shutdown()).await;
        self.net.mend(&self.hosts[host].address);
    }

    pub fn running(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.hosts.len()).filter(|host| self.hosts[*host].store.is_some())
    }

    pub fn store(&self, host: usize) -> &Store {
        self.hosts[host].store()
    }

    /// Who leads, by the word of a majority of those that run.
    pub async fn leader(&self) -> usize {
        self.leader_among(&self.running().collect::<Vec<_>>()).await
    }

    pub async fn leader_among(&self, hosts: &[usize]) -> usize {
        eventually("a leader", async || {
            hosts.iter().copied().find(|host| {
                let store = self.store(*host);
                *store.leader().borrow()
                    && hosts.iter().all(|other| {
                        let members = self.store(*other).members();
                        members.iter().any(|member| member.leader && member.id == store.member_id())
                    })
            })
        })
        .await
    }

    pub async fn follower(&self) -> usize {
        let leader = self.leader().await;
        self.running().find(|host| *host != leader).expect("nobody follows")
    }

    /// All that run have the same state, at the same revision.
    pub async fn agree(&self) {
        eventually("agreement", async || {
            let mut states = Vec::new();
            for host in self.running() {
                let status = self.store(host).status().await;
                states.push((status.revision, status.digest, status.keys));
            }
            states.iter().all(|state| *state == states[0]).then_some(())
        })
        .await;
    }
}

pub fn put(key: &str, value: impl Into<Bytes>) -> Txn {
    Txn { puts: vec![(Bytes::copy_from_slice(key.as_bytes()), value.into())], ..Txn::default() }
}

pub async fn get(store: &Store, key: &str, freshness: Freshness) -> Option<Bytes> {
    let snapshot = store.snapshot(freshness).await.unwrap();
    snapshot.get(key.as_bytes()).map(|versioned| versioned.value.clone())
}
