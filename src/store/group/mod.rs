//! This member as one of a group: what it asks the leader, what it does as the leader, and what keeps the group in order.
//!
//! `propose.rs` and `read.rs` are the ways of writes and reads, on whatever member they begin. `members.rs` changes who
//! belongs to the group, `keep.rs` has the tasks that follow it, `join.rs` makes a member of a fresh one, `wall.rs` is what
//! others may ask.

pub(crate) mod join;
pub(crate) mod keep;
pub(crate) mod members;
pub(crate) mod propose;
pub(crate) mod read;
mod wall;

use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::disk::identity::{Identity, Standing};
use crate::disk::thread::Failure;
use crate::metrics::Metrics;
use crate::peers::Timing;
use crate::raft::machine::Machine;
use crate::raft::{Member, MembershipOf, Raft};
use crate::wire::hello::WireVersions;
use crate::wire::link::Links;
use crate::{ClusterId, MemberId};

/// With no news of a leader, it is looked for again after this long: a leader that cannot take a write just now, for want
/// of a quorum's answer, says so without anything that would wake us later.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

pub(crate) struct Group {
    pub(crate) identity: Identity,
    pub(crate) raft: Raft,
    pub(crate) machine: Arc<Machine>,
    pub(crate) links: Arc<Links>,
    pub(crate) timing: Timing,
    pub(crate) versions: WireVersions,
    pub(crate) metrics: Metrics,
    pub(crate) dir: PathBuf,
    pub(crate) free_bytes_min: u64,
    /// Why the disk takes no writes, while that is so.
    pub(crate) failures: watch::Receiver<Failure>,
    /// How the group is to know this member; `None` for one without a way to others.
    pub(crate) record: Mutex<Option<Member>>,
    /// Held during a change of the members that this member makes as the leader.
    pub(crate) changing: tokio::sync::Mutex<()>,
    /// What of the member's standing is in the identity file.
    pub(crate) noted: watch::Sender<Standing>,
    /// This member is the only voter by the newest entries of its log. What it has applied may be older, for a while after
    /// a start.
    pub(crate) sole_voter: AtomicBool,
    /// When a leader was last heard.
    pub(crate) heard: Mutex<Instant>,
    pub(crate) stop: CancellationToken,
}

/// Who leads, as this member knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Leader {
    Here,
    At(MemberId, String),
    Unknown,
}

impl Group {
    pub(crate) fn member(&self) -> MemberId {
        self.identity.member
    }

    pub(crate) fn cluster(&self) -> ClusterId {
        ClusterId(self.identity.cluster)
    }

    pub(crate) fn record(&self) -> Option<Member> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A leader spoke to this member.
    pub(crate) fn hear(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// When a follower that hears nothing has no leader any more. What it knows of the last one stays: it may be cut off
    /// itself, and then nobody tells it of a new one.
    fn silent_at(&self) -> Instant {
        let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard + self.timing.election_timeout_max * 2
    }

    /// Whether there is a leader, as far as this member hears.
    pub(crate) fn is_led(&self) -> bool {
        match self.leader() {
            Leader::Here => true,
            Leader::At(..) => Instant::now() < self.silent_at(),
            Leader::Unknown => false,
        }
    }

    pub(crate) fn leader(&self) -> Leader {
        let metrics = self.raft.server_metrics();
        let now = metrics.borrow_watched();
        match now.current_leader {
            Some(id) if id == self.member() && now.state.is_leader() => Leader::Here,
            Some(id) => match now.membership_config.membership().get_node(&id) {
                Some(member) if id != self.member() => Leader::At(id, member.address.clone()),
                _ => Leader::Unknown,
            },
            None => Leader::Unknown,
        }
    }

    /// The members as of the newest entry of this member's log, committed or not.
    pub(crate) fn membership(&self) -> MembershipOf {
        let metrics = self.raft.server_metrics();
        let now = metrics.borrow_watched();
        now.membership_config.membership().clone()
    }

    /// Waits until the leader is another than `known`.
    async fn leader_other_than(&self, known: &Leader) {
        let mut changes = self.raft.server_metrics();
        while self.leader() == *known {
            // An error means that raft has stopped: there will be no other.
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Runs `attempt` unless the leader changes or time is up meanwhile.
    async fn while_leading<T>(
        &self,
        leader: &Leader,
        deadline: Instant,
        attempt: impl Future<Output = T>,
    ) -> Option<T> {
        tokio::select! {
            biased;
            done = attempt => Some(done),
            () = self.leader_other_than(leader) => None,
            () = tokio::time::sleep_until(deadline) => None,
        }
    }

    /// Waits for a reason to look for a leader again, but not beyond `deadline`.
    async fn pause(&self, known: &Leader, deadline: Instant) {
        let pause = Instant::now() + RETRY_PAUSE;
        tokio::select! {
            biased;
            () = self.stop.cancelled() => {}
            () = self.leader_other_than(known) => {}
            () = tokio::time::sleep_until(pause.min(deadline)) => {}
        }
    }
}
