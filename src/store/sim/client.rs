//! What clients do in a world, and what they note of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::sim::history::{Did, Operation, Value};
use crate::sim::random::Random;
use crate::sim::world::{Host, KEYS};
use crate::{CommitError, Freshness, Precondition, Revision, Snapshot, Store, Txn};

pub(super) fn put(key: &str, value: Value) -> Txn {
    Txn { puts: vec![(Bytes::copy_from_slice(key.as_bytes()), format!("{value}").into())], ..Txn::default() }
}

/// What a client does at most before it leaves: no key gets more operations than `history.rs` takes.
const OPERATIONS_PER_CLIENT: u64 = 60;

pub(super) struct Client {
    pub(super) number: u64,
    pub(super) random: Random,
    pub(super) hosts: Arc<Mutex<Vec<Host>>>,
    pub(super) history: Arc<Mutex<BTreeMap<u64, Vec<Operation>>>>,
    pub(super) acknowledged: Arc<Mutex<Vec<(Revision, u64, Value)>>>,
    pub(super) began: Instant,
    pub(super) verbose: bool,
}

pub(super) fn value(snapshot: &Snapshot, key: u64) -> (Value, Option<Revision>) {
    match snapshot.get(format!("/{key}").as_bytes()) {
        Some(found) => (String::from_utf8_lossy(&found.value).parse().unwrap(), Some(found.revision)),
        None => (0, None),
    }
}

impl Client {
    pub(super) async fn run(self, until: Instant) {
        for n in 1..=OPERATIONS_PER_CLIENT {
            if Instant::now() > until {
                return;
            }
            let pause = self.random.between(Duration::ZERO, Duration::from_millis(400));
            tokio::time::sleep(pause).await;
            let store = {
                let hosts = self.hosts.lock().unwrap();
                let running: Vec<_> = hosts.iter().filter_map(|host| host.running.as_ref()).collect();
                if running.is_empty() {
                    continue;
                }
                running[self.random.below(running.len() as u64) as usize].0.clone()
            };
            let key = self.random.below(KEYS);
            let new = n * 10 + self.number + 1;
            match self.random.below(3) {
                0 => self.read(&store, key).await,
                1 => self.write(&store, key, new).await,
                _ => self.swap(&store, key, new).await,
            }
        }
    }

    fn note(&self, key: u64, did: Did, from: Duration, ended: bool) {
        let to = ended.then(|| self.began.elapsed());
        if self.verbose {
            println!("{:>10.6} client {}: key {key} {did:?} {ended}", self.began.elapsed().as_secs_f64(), self.number);
        }
        self.history.lock().unwrap().entry(key).or_default().push(Operation { did, from, to });
    }

    async fn read(&self, store: &Store, key: u64) {
        let from = self.began.elapsed();
        if let Ok(snapshot) = store.snapshot(Freshness::Linearizable).await {
            self.note(key, Did::Read(value(&snapshot, key).0), from, true);
        }
    }

    async fn write(&self, store: &Store, key: u64, new: Value) {
        let from = self.began.elapsed();
        match store.commit(put(&format!("/{key}"), new)).await {
            Ok(revision) => {
                self.note(key, Did::Wrote(new), from, true);
                self.acknowledged.lock().unwrap().push((revision, key, new));
            }
            Err(CommitError::Unknown | CommitError::Stopped) => self.note(key, Did::Wrote(new), from, false),
            // Surely not applied, which is checked by its value never being read.
            Err(CommitError::NoLeader | CommitError::Unwritable(_)) => {}
            Err(error) => panic!("{error:?}"),
        }
    }

    async fn swap(&self, store: &Store, key: u64, new: Value) {
        // As old as it may be: the revision decides.
        let Ok(snapshot) = store.snapshot(Freshness::Local).await else { return };
        let (old, revision) = value(&snapshot, key);
        let name = format!("/{key}");
        let mut txn = put(&name, new);
        txn.preconditions.push(match revision {
            Some(revision) => Precondition::At(name.into(), revision),
            None => Precondition::Absent(name.into()),
        });
        let from = self.began.elapsed();
        match store.commit(txn).await {
            Ok(revision) => {
                self.note(key, Did::Swapped(old, new), from, true);
                self.acknowledged.lock().unwrap().push((revision, key, new));
            }
            Err(CommitError::Refused { current, .. }) => {
                let found = current.map_or(0, |current| String::from_utf8_lossy(&current.value).parse().unwrap());
                self.note(key, Did::Refused(old, found), from, true);
            }
            Err(CommitError::Unknown | CommitError::Stopped) => self.note(key, Did::Swapped(old, new), from, false),
            Err(CommitError::NoLeader | CommitError::Unwritable(_)) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}
