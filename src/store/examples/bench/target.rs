//! What is measured: the store in this process, alone or as one of a group, or an etcd that runs somewhere.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use mussel_store::{Config, Freshness, Peer, PeerStream, Revision, Store, Transport, Txn};
use tokio::net::{TcpListener, TcpStream};

use crate::Failure;
use crate::etcd::{self, Etcd};

#[derive(Clone)]
pub enum Target {
    Mussel(Store),
    Etcd(Etcd),
}

/// Without TLS, as the etcd that it is compared with.
struct Tcp;

impl Transport for Tcp {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, std::io::Result<Box<dyn PeerStream>>> {
        async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn PeerStream>)
        }
        .boxed()
    }
}

impl Target {
    /// `mussel:DIR`, `member:DIR,ADDRESS` for the first of a group, `member:DIR,ADDRESS,CLUSTER,SEED` for another, or
    /// `etcd:URL`.
    pub async fn open(name: &str) -> Result<Self, Failure> {
        match name.split_once(':') {
            Some(("mussel", dir)) => Ok(Self::Mussel(Store::open(Config::new(PathBuf::from(dir))).await?)),
            Some(("member", words)) => {
                let words: Vec<_> = words.split(',').collect();
                Ok(Self::Mussel(member(&words).await?))
            }
            Some(("etcd", address)) => Ok(Self::Etcd(Etcd::connect(address).await?)),
            _ => Err(format!("no such target: {name}").into()),
        }
    }

    pub async fn put(&mut self, key: Bytes, value: Bytes) -> Result<(), Failure> {
        match self {
            Self::Mussel(store) => {
                store.commit(Txn { puts: vec![(key, value)], ..Txn::default() }).await?;
            }
            Self::Etcd(etcd) => etcd.put(key, value).await?,
        }
        Ok(())
    }

    /// Sees every write that was acknowledged before. The value's length.
    pub async fn get(&mut self, key: Bytes) -> Result<usize, Failure> {
        match self {
            Self::Mussel(store) => {
                let snapshot = store.snapshot(Freshness::Linearizable).await?;
                Ok(snapshot.get(&key).ok_or("no such key")?.value.len())
            }
            Self::Etcd(etcd) => etcd.get(key).await,
        }
    }

    /// One watch for each of `prefixes`. What it returns resolves after `events` events in all.
    pub async fn watch(
        &mut self,
        prefixes: Vec<Bytes>,
        events: u64,
    ) -> Result<BoxFuture<'static, Result<(), Failure>>, Failure> {
        match self {
            Self::Mussel(store) => {
                let Revision(now) = store.snapshot(Freshness::Linearizable).await?.revision();
                let watches: Result<Vec<_>, _> =
                    prefixes.into_iter().map(|prefix| store.watch(prefix, Revision(now))).collect();
                let seen = Arc::new(std::sync::atomic::AtomicU64::new(0));
                let done = Arc::new(tokio::sync::Notify::new());
                for mut watch in watches? {
                    let (seen, done) = (seen.clone(), done.clone());
                    tokio::spawn(async move {
                        while let Ok(commit) = watch.next().await {
                            let more = commit.events.len() as u64;
                            if seen.fetch_add(more, std::sync::atomic::Ordering::Relaxed) + more >= events {
                                done.notify_one();
                            }
                        }
                    });
                }
                Ok(async move {
                    done.notified().await;
                    Ok(())
                }
                .boxed())
            }
            Self::Etcd(etcd) => {
                let mut stream = etcd.watch(prefixes).await?;
                Ok(async move {
                    let mut seen = 0;
                    while seen < events {
                        let response = stream.message().await?.ok_or_else(etcd::ended)?;
                        if response.canceled {
                            return Err(etcd::ended().into());
                        }
                        seen += response.events.len() as u64;
                    }
                    Ok(())
                }
                .boxed())
            }
        }
    }

    pub async fn close(self) {
        if let Self::Mussel(store) = self {
            store.shutdown().await;
        }
    }
}

async fn member(words: &[&str]) -> Result<Store, Failure> {
    let [dir, address, join @ ..] = words else { return Err("a member needs a folder and an address".into()) };
    let listener = TcpListener::bind(address).await?;
    let mut config = Config::new(PathBuf::from(dir));
    config.peer = Some(Peer { name: address.to_string(), address: address.to_string(), transport: Arc::new(Tcp) });
    let store = match join {
        [] => Store::open(config).await?,
        [cluster, seed] => Store::join(config, cluster.parse()?, vec![seed.to_string()]).await?,
        _ => return Err("a member joins by a cluster and a seed".into()),
    };
    let serving = store.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let store = serving.clone();
            tokio::spawn(async move {
                stream.set_nodelay(true)?;
                store.serve_peer(stream).await
            });
        }
    });
    store.joined().await?;
    Ok(store)
}
