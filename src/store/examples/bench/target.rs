//! What is measured: the store in this process, or an etcd that runs somewhere.

use super::etcd::Etcd;
use super::*;

#[derive(Clone)]
pub enum Target {
    Mussel(Store),
    Etcd(Etcd),
}

impl Target {
    pub async fn open(engine: &str, at: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        match engine {
            "mussel" => {
                let store = Store::open(Config::new(PathBuf::from(at))).await?;
                let Revision(revision) = store.revision();
                println!("revision {revision}, {} keys", store.snapshot(Freshness::Local).await?.len());
                Ok(Self::Mussel(store))
            }
            "etcd" => Ok(Self::Etcd(Etcd::connect(at).await?)),
            other => Err(format!("no such engine: {other}").into()),
        }
    }

    pub async fn put(&mut self, key: Bytes, value: Bytes) -> Outcome {
        match self {
            Self::Mussel(store) => {
                store.commit(Txn { puts: vec![(key, value)], ..Txn::default() }).await?;
            }
            Self::Etcd(etcd) => etcd.put(key, value).await?,
        }
        Ok(())
    }

    /// Of this process. For etcd, ask the system.
    pub fn resident_kib(&self) -> Result<u64, Box<dyn std::error::Error + Send + Sync>> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    pub async fn close(self) {
        if let Self::Mussel(store) = self {
            store.shutdown().await;
        }
    }
}
