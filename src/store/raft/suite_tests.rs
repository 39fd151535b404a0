//! openraft's own suite, run on our log and state machine.

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use crate::disk::database::Database;
use crate::disk::engine::Engine;
use crate::disk::identity::{Identity, Standing};
use crate::disk::journal::{self, Journal, Place};
use crate::disk::lock::DirLock;
use crate::disk::thread::Disk;
use crate::raft::log::LogStore;
use crate::raft::machine::{Machine, StateMachine};
use crate::raft::{SimulatedRuntime, Types};
use crate::{Config, Metrics};

const IDENTITY: Identity = Identity { cluster: 1, member: 1 };

struct Builder;

impl StoreBuilder<Types, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<Types>> {
        let dir = tempfile::tempdir().unwrap();
        let lock = DirLock::take(dir.path()).unwrap();
        let (engine, _) = Engine::open(dir.path(), 1 << 20, lock).unwrap();
        let database = Database::Engine(Box::new(engine));
        let machine =
            Machine::open(&database, &Config::new(dir.path()), IDENTITY, Standing::Member, Metrics::default()).unwrap();
        journal::create(dir.path()).unwrap();
        let place = Place::Directory(dir.path().join(journal::DIRECTORY));
        // Segments that are full soon.
        let journal = Journal::open(place, IDENTITY, 2048, 0).unwrap();
        let disk =
            Disk::start(database, journal, machine.pace(), dir.path().to_path_buf(), Metrics::default()).unwrap();
        let log = LogStore::open(disk.clone(), machine.applied_index()).unwrap();
        Ok((dir, log, StateMachine { machine, disk }))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openrafts_suite_passes() {
    SimulatedRuntime::scope(1, Suite::test_all(Builder)).await.unwrap();
}
