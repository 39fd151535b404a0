//! The tasks that follow the group: each acts on the newest state, whatever woke it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;
use tokio::sync::watch;

use crate::disk::engine::Writes;
use crate::disk::identity::Standing;
use crate::disk::thread::Disk;
use crate::group::members::VOTERS_MAX;
use crate::group::{Group, Leader};
use crate::wire::link::Chain;
use crate::wire::message::Request;

/// A learner that lacks no more than this has caught up: the rest comes while it is promoted.
const PROMOTION_LAG_ENTRIES: u64 = 100;

/// A change that did not succeed, for want of a quorum mostly, is tried again after this long.
const CHANGE_RETRY: Duration = Duration::from_secs(1);

impl Group {
    /// Keeps what this member does and shows in step with its group. Ends with `stop`.
    pub(crate) async fn keep(self: Arc<Self>, leads: watch::Sender<bool>) {
        let mut group = self.raft.server_metrics();
        let mut standing = self.machine.standing();
        let mut leader = None;
        let mut role = None;
        loop {
            let mut record_differs = false;
            let mut silent_at = None;
            {
                let now = group.borrow_and_update();
                let removed = *standing.borrow_and_update() == Standing::Removed;
                let own = self.member();
                let membership = now.membership_config.membership();
                // A lone member has nobody to hear from or to beat for; a tick would only wake the processor.
                let ticks = membership.nodes().count() > 1 && !removed;
                let timers = self.raft.runtime_config();
                timers.tick(ticks);
                timers.heartbeat(ticks);
                timers.elect(ticks);
                self.links.retain(|member| membership.get_node(&member).is_some());
                for (id, member) in membership.nodes().filter(|(id, _)| **id != own) {
                    self.links.to(*id, &member.address);
                }
                let leading = now.current_leader == Some(own) && now.state.is_leader();
                // Before it is said to lead.
                self.sole_voter.store(membership.voter_ids().eq([own]), Ordering::Release);
                leads.send_if_modified(|leads| std::mem::replace(leads, leading) != leading);
                let metrics = &self.metrics;
                let known = now.current_leader.is_some();
                let silent = !leading && ticks && tokio::time::Instant::now() >= self.silent_at();
                metrics.has_leader.set((known && !silent).into());
                if known && !leading && ticks {
                    silent_at = Some(if silent { None } else { Some(self.silent_at()) });
                }
                metrics.is_leader.set(leading.into());
                metrics.is_learner.set((!membership.voter_ids().any(|voter| voter == own)).into());
                let part = (now.state, now.vote.leader_id.term);
                if role.replace(part) != Some(part) {
                    tracing::debug!(role = ?part.0, term = part.1, "this member's part in the group");
                }
                if now.current_leader.is_some() && now.current_leader != leader {
                    leader = now.current_leader;
                    metrics.leader_changes.inc();
                    tracing::info!(leader = leader.map(|leader| format!("{leader:016x}")), "the group has a leader");
                }
                if let (Some(record), Some(known)) = (self.record(), membership.get_node(&own)) {
                    record_differs = record != *known && now.current_leader.is_some();
                }
            }
            let update = async {
                if !record_differs {
                    return std::future::pending().await;
                }
                if let Err(error) = self.announce().await {
                    tracing::debug!(error = %Chain(&error), "the group was not told of this member's address");
                }
                tokio::time::sleep(CHANGE_RETRY).await;
            };
            // The leader may fall silent, or speak again, without any other change.
            let silence = async {
                match silent_at {
                    None => std::future::pending().await,
                    Some(Some(at)) => tokio::time::sleep_until(at).await,
                    Some(None) => tokio::time::sleep(self.timing.election_timeout_max).await,
                }
            };
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = silence => {}
                // Cancel-safe: a change that was not seen stays unseen.
                changed = group.changed() => if changed.is_err() {
                    leads.send_replace(false);
                    return;
                },
                // Cancel-safe, too. The sender lives as long as the machine.
                _ = standing.changed() => {}
                // Given up, it is begun anew.
                () = update => {}
            }
        }
    }

    /// Tells the group how it is to know this member.
    pub(crate) async fn announce(&self) -> Result<(), crate::MemberError> {
        let Some(record) = self.record() else { return Ok(()) };
        self.ask_leader(Request::UpdateMember { name: record.name, address: record.address }).await.map(drop)
    }

    /// As the leader: promotes learners that have caught up, and finishes changes that an earlier leader began. Ends with
    /// `stop`.
    pub(crate) async fn promote(self: Arc<Self>) {
        let mut group = self.raft.server_metrics();
        let mut progress = self.raft.data_metrics();
        loop {
            group.borrow_and_update();
            progress.borrow_and_update();
            let step = self.next_step();
            let waits = step != Step::Nothing;
            let mut failed = false;
            if let Step::Promote(_) | Step::Finish = step {
                failed = self.take(step).await.is_err();
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                changed = group.changed() => if changed.is_err() {
                    return;
                },
                // How far learners have come; nobody looks when there are none.
                changed = progress.changed(), if waits && !failed => if changed.is_err() {
                    return;
                },
                () = tokio::time::sleep(CHANGE_RETRY), if waits => {}
            }
        }
    }

    fn next_step(&self) -> Step {
        if self.leader() != Leader::Here {
            return Step::Nothing;
        }
        let metrics = self.raft.metrics();
        let now = metrics.borrow_watched();
        let membership = now.membership_config.membership();
        if membership.get_joint_config().len() > 1 {
            return Step::Finish;
        }
        let learners: Vec<_> = membership.learner_ids().collect();
        if learners.is_empty() || membership.voter_ids().count() >= VOTERS_MAX {
            return Step::Nothing;
        }
        let last = now.last_log_index.unwrap_or(0);
        let caught_up = learners.into_iter().find(|id| {
            let matched = now.replication.as_ref().and_then(|matched| matched.get(id)?.as_ref());
            matched.is_some_and(|matched| matched.index + PROMOTION_LAG_ENTRIES >= last)
                && self.links.reachable(*id) == Some(true)
        });
        caught_up.map_or(Step::Wait, Step::Promote)
    }

    async fn take(&self, step: Step) -> Result<(), crate::MemberError> {
        let _changing = self.changing.lock().await;
        // What was under way has ended: look again.
        let voters = match self.next_step() {
            Step::Promote(id) => BTreeSet::from([id]),
            Step::Finish => BTreeSet::new(),
            Step::Nothing | Step::Wait => return Ok(()),
        };
        let changed = self.change(ChangeMembers::AddVoterIds(voters)).await;
        if let Err(error) = &changed {
            tracing::warn!(?step, error = %Chain(error), "the members were not changed; trying again");
        }
        changed
    }

    /// Writes to the identity file what this member is to its group, so that a removed one does not open again. Ends with
    /// `stop`.
    pub(crate) async fn note_standing(self: Arc<Self>, disk: Disk) {
        let mut standing = self.machine.standing();
        let mut removed = self.links.removed();
        let mut told = false;
        loop {
            // Once: it changes the standing, which begins this anew.
            if *removed.borrow_and_update() && *standing.borrow() != Standing::Removed {
                self.machine.stands(Standing::Removed);
            }
            let marker = self.machine.marker();
            let noted = *standing.borrow_and_update();
            if let Err(error) = disk.write(Writes::default(), Some(marker)).await {
                tracing::warn!(%error, "what this member is to its group was not noted");
            } else {
                self.noted.send_replace(noted);
            }
            if noted == Standing::Removed && !std::mem::replace(&mut told, true) {
                tracing::warn!(
                    member = format!("{:016x}", self.member()),
                    "this member was removed from its group; its directory will not open again"
                );
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                _ = standing.changed() => {}
                _ = removed.changed() => {}
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    /// There are learners that have not caught up.
    Wait,
    Promote(crate::MemberId),
    /// The members are between two configurations.
    Finish,
}
