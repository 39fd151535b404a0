//! How a store starts, once its directory is open: Raft, and the tasks beside it.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::{ReadPolicy, SnapshotPolicy};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::batch::Batcher;
use crate::disk::identity::Standing;
use crate::disk::scrub;
use crate::group::Group;
use crate::group::read::READS_MAX;
use crate::metrics::Metrics;
use crate::raft::machine::{StateMachine, checkpoint, give_memory_back};
use crate::raft::network::Network;
use crate::raft::{Member, Raft};
use crate::store::{Beginning, Opened, Shared, Store};
use crate::wire::link::Links;
use crate::wire::serve::Complaints;
use crate::{ClusterId, Config, OpenError, Timing};

/// Txns that wait to be put into an entry. Whoever comes then waits too.
const PROPOSALS_MAX: usize = 1024;

fn raft_config(timing: &Timing) -> openraft::Config {
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    openraft::Config {
        cluster_name: "mussel".to_string(),
        heartbeat_interval: milliseconds(timing.heartbeat_interval),
        election_timeout_min: milliseconds(timing.election_timeout_min),
        election_timeout_max: milliseconds(timing.election_timeout_max),
        // A lone member has nobody to hear from or to beat for; a tick would only wake the processor.
        enable_tick: false,
        enable_heartbeat: false,
        enable_pre_vote: Some(true),
        // A leader's state may be behind what it acknowledged until its new term's first entry is applied.
        enable_leader_restore: Some(false),
        // Checkpoints are ours to time, and so is what is purged from the log after them.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        ..openraft::Config::default()
    }
}

/// How the group knows this member.
fn own_record(config: &Config) -> Member {
    config
        .peer
        .as_ref()
        .map_or_else(Member::default, |peer| Member { name: peer.name.clone(), address: peer.address.clone() })
}

pub(crate) async fn start(
    config: Config,
    beginning: Beginning,
    metrics: Metrics,
    opened: Opened,
) -> Result<Store, OpenError> {
    let Opened { disk, closed, log, machine, identity, session } = opened;
    let failed = |detail: String| OpenError::Raft { detail };
    let raft_config = raft_config(&config.timing).validate().map_err(|e| failed(e.to_string()))?;
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let links = Links::new(
        ClusterId(identity.cluster),
        identity.member,
        config.wire_versions,
        config.peer.as_ref().map(|peer| peer.transport.clone()),
        config.timing.connect_timeout,
        tasks.clone(),
        stop.clone(),
        metrics.clone(),
    );
    let network = Network { own: identity.member, links: links.clone(), metrics: metrics.clone() };
    let state_machine = StateMachine { machine: machine.clone(), disk: disk.clone() };
    let raft = Raft::new(identity.member, Arc::new(raft_config), network, log, state_machine)
        .await
        .map_err(|e| failed(e.to_string()))?;
    let joining = *machine.standing().borrow() == Standing::Joining;
    if !joining && !raft.is_initialized().await.map_err(|e| failed(e.to_string()))? {
        let members = std::collections::BTreeMap::from([(identity.member, own_record(&config))]);
        raft.initialize(members).await.map_err(|e| failed(e.to_string()))?;
    }
    // Not from the metrics, which are a moment late.
    let lone = raft.with_raft_state(move |state| state.membership_state.effective().voter_ids().eq([identity.member]));
    let lone = lone.await.map_err(|e| failed(e.to_string()))?;
    if lone {
        if !raft.is_leader() {
            raft.trigger().elect(false).await.map_err(|e| failed(e.to_string()))?;
        }
        // The new term's first entry is applied after everything that was acknowledged in older terms.
        raft.wait(Some(Duration::from_secs(30)))
            .metrics(|m| m.current_leader == Some(identity.member), "leadership")
            .await
            .map_err(|e| failed(e.to_string()))?;
        raft.ensure_linearizable(ReadPolicy::ReadIndex).await.map_err(|e| failed(e.to_string()))?;
        // These are what the tasks below go by.
        let mut group = raft.server_metrics();
        while !(group.borrow_watched().state.is_leader() && group.borrow_watched().current_leader.is_some()) {
            group.changed().await.map_err(|_| failed("it ended".to_string()))?;
        }
    }

    let group = Arc::new(Group {
        identity,
        raft: raft.clone(),
        machine: machine.clone(),
        links,
        timing: config.timing,
        versions: config.wire_versions,
        metrics: metrics.clone(),
        dir: config.dir.clone(),
        free_bytes_min: config.free_bytes_min,
        failures: disk.failures(),
        record: Mutex::new(config.peer.is_some().then(|| own_record(&config))),
        changing: tokio::sync::Mutex::default(),
        sole_voter: AtomicBool::new(lone),
        noted: watch::Sender::new(if joining { Standing::Joining } else { Standing::Member }),
        heard: Mutex::new(tokio::time::Instant::now()),
        stop: stop.clone(),
    });
    let (proposals, proposed) = mpsc::channel(PROPOSALS_MAX);
    tasks.spawn(Batcher { proposals: proposed, group: group.clone(), session }.run());
    let (reads, asked) = mpsc::channel(READS_MAX);
    tasks.spawn(group.clone().answer_reads(asked));
    tasks.spawn(checkpoint(machine.clone(), raft.clone(), config.clone(), stop.clone()));
    tasks.spawn(scrub::run(disk.clone(), metrics.clone(), config.scrub_interval, stop.clone()));
    let (leads, leader) = watch::channel(lone);
    tasks.spawn(group.clone().keep(leads));
    tasks.spawn(group.clone().promote());
    tasks.spawn(group.clone().note_standing(disk.clone()));
    tasks.spawn(give_memory_back(machine.clone(), disk.clone(), stop.clone()));
    let (tell_joined, joined) = watch::channel((!joining).then_some(Ok(())));
    if joining && let Beginning::Join { seeds, .. } = beginning {
        tasks.spawn(group.clone().join(seeds, tell_joined));
    }
    if let Ok(bytes) = disk.bytes_on_disk() {
        metrics.db_bytes.set(bytes as i64);
    }
    tracing::info!(
        dir = %config.dir.display(),
        member = format!("{:016x}", identity.member),
        revision = machine.revision().0,
        keys = machine.newest().len(),
        "store is open"
    );
    Ok(Store {
        shared: Arc::new(Shared {
            group,
            machine,
            raft,
            disk: Mutex::new(Some(disk)),
            proposals,
            reads,
            leader,
            joined,
            complaints: Complaints::default(),
            leader_timeout: config.timing.leader_timeout,
            txn_bytes_max: config.txn_bytes_max,
            metrics,
            stop,
            tasks,
            closed: Mutex::new(Some(closed)),
        }),
    })
}
