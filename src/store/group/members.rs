//! Who belongs to the group: the changes that a leader makes, and the way to it from elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use tokio::time::Instant;

use crate::group::{Group, Leader};
use crate::raft::Member;
use crate::wire::hello::HelloError;
use crate::wire::link::LinkError;
use crate::wire::message::{Answer, Failure, Progress, Request};
use crate::{MemberError, MemberId};

/// More voters make writes slower and the group hardly safer.
pub(crate) const VOTERS_MAX: usize = 7;

/// How long a change of the members may take: two entries, each on a majority's disks.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(15);

/// How long the next leader may take to be one.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(3);

/// A voter that lacks more entries than this is no good leader yet.
const SUCCESSOR_LAG_ENTRIES: u64 = 1000;

impl Group {
    /// Asks the leader, wherever it is.
    pub(crate) async fn ask_leader(&self, request: Request) -> Result<Answer, MemberError> {
        let deadline = Instant::now() + CHANGE_TIMEOUT;
        loop {
            let leader = self.leader();
            let answer = match &leader {
                Leader::Unknown => None,
                Leader::Here => Some(self.lead(self.member(), &request).await),
                Leader::At(id, address) => {
                    let timeout = deadline.saturating_duration_since(Instant::now());
                    match self.links.to(*id, address).call(&request, timeout).await {
                        Ok(answer) => Some(answer),
                        Err(error) if error.sent() => return Err(MemberError::Unknown),
                        Err(_) => None,
                    }
                }
            };
            match answer {
                None | Some(Answer::Failed(Failure::NotLeader(_))) => {}
                Some(Answer::Failed(Failure::Member(failure))) => return Err(failure.into()),
                Some(Answer::Failed(Failure::Removed)) => return Err(MemberError::Removed(self.member())),
                Some(Answer::Failed(Failure::Unknown)) => return Err(MemberError::Unknown),
                Some(Answer::Failed(Failure::Other(why) | Failure::Unwritable(why))) => {
                    return Err(MemberError::Refused(why));
                }
                Some(answer) => return Ok(answer),
            }
            if self.stop.is_cancelled() {
                return Err(MemberError::Stopped);
            }
            if Instant::now() >= deadline {
                return Err(MemberError::NoLeader);
            }
            self.pause(&leader, deadline).await;
        }
    }

    /// Does as the leader what `from` asks for.
    pub(crate) async fn lead(&self, from: MemberId, request: &Request) -> Answer {
        let done = |result: Result<(), MemberError>| result.map(|()| Answer::Done);
        let answer = match request {
            Request::Join { name, address } => done(self.lead_join(from, name, address).await),
            Request::RemoveMember(id) => done(self.lead_remove(*id).await),
            Request::UpdateMember { name, address } => done(self.lead_update(from, name, address).await),
            Request::TransferLeadership(to) => self.lead_transfer(*to).await.map(Answer::Leader),
            Request::Progress => self.lead_progress().ok_or(MemberError::NoLeader),
            _ => Err(MemberError::Refused("not a question about members".to_string())),
        };
        match answer {
            Ok(answer) => answer,
            Err(MemberError::NoLeader) => Answer::Failed(Failure::NotLeader(match self.leader() {
                Leader::At(id, address) => Some((id, address)),
                Leader::Here | Leader::Unknown => None,
            })),
            Err(error) => Answer::Failed(Failure::Member(error.into())),
        }
    }

    /// Changes the members. The caller holds `changing`.
    pub(crate) async fn change(&self, change: ChangeMembers<MemberId, Member>) -> Result<(), MemberError> {
        tracing::info!(%change, "changing the members");
        let changing = self.raft.change_membership(change, false);
        match tokio::time::timeout(CHANGE_TIMEOUT, changing).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => Err(MemberError::NoLeader),
            Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(
                ChangeMembershipError::InProgress(_),
            )))) => Err(MemberError::Busy),
            Ok(Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)))) | Err(_) => Err(MemberError::Unknown),
            Ok(Err(RaftError::APIError(error))) => Err(MemberError::Refused(error.to_string())),
            Ok(Err(RaftError::Fatal(_))) => Err(MemberError::Stopped),
        }
    }

    fn ensure_leader(&self) -> Result<(), MemberError> {
        if self.leader() == Leader::Here { Ok(()) } else { Err(MemberError::NoLeader) }
    }

    async fn lead_join(&self, id: MemberId, name: &str, address: &str) -> Result<(), MemberError> {
        self.ensure_leader()?;
        let _changing = self.changing.lock().await;
        if self.machine.is_removed(id) {
            return Err(MemberError::Removed(id));
        }
        let record = Member { name: name.to_string(), address: address.to_string() };
        let members = self.membership();
        if let Some(known) = members.get_node(&id) {
            if *known == record {
                return Ok(());
            }
            return self.change(ChangeMembers::SetNodes(BTreeMap::from([(id, record)]))).await;
        }
        if let Some((replaced, _)) = members.nodes().find(|(_, member)| member.address == address) {
            self.replace(*replaced, id, address).await?;
        }
        if self.membership().voter_ids().count() >= VOTERS_MAX {
            return Err(MemberError::Full(VOTERS_MAX));
        }
        self.change(ChangeMembers::AddNodes(BTreeMap::from([(id, record)]))).await
    }

    /// Removes `old`, in whose place `new` answers now: its directory was lost and it joins anew. Nobody but the new one
    /// answers at its address any more, which is checked.
    async fn replace(&self, old: MemberId, new: MemberId, address: &str) -> Result<(), MemberError> {
        match self.links.seed(address).peer().await {
            Ok(found) if found == new => {}
            Ok(found) => {
                return Err(MemberError::Refused(format!("member {found:016x} answers at {address}")));
            }
            // It is us who answers there.
            Err(LinkError::Hello { source, .. }) if matches!(*source, HelloError::OtherMember { .. }) => {
                return Err(MemberError::Refused(format!("{address} is this member's own address")));
            }
            Err(_) => return Err(MemberError::Refused(format!("the new member was not reached at {address}"))),
        }
        tracing::info!(member = format!("{old:016x}"), address, "a new member answers in place of this one");
        self.remove(old).await
    }

    async fn lead_remove(&self, id: MemberId) -> Result<(), MemberError> {
        self.ensure_leader()?;
        let _changing = self.changing.lock().await;
        self.remove(id).await
    }

    async fn remove(&self, id: MemberId) -> Result<(), MemberError> {
        let members = self.membership();
        if members.get_node(&id).is_none() {
            let removed = self.machine.is_removed(id);
            return Err(if removed { MemberError::Removed(id) } else { MemberError::NoSuchMember(id) });
        }
        let voters: BTreeSet<_> = members.voter_ids().collect();
        if !voters.contains(&id) {
            return self.change(ChangeMembers::RemoveNodes(BTreeSet::from([id]))).await;
        }
        if voters.len() == 1 {
            return Err(MemberError::LastVoter(id));
        }
        self.change(ChangeMembers::RemoveVoters(BTreeSet::from([id]))).await
    }

    async fn lead_update(&self, id: MemberId, name: &str, address: &str) -> Result<(), MemberError> {
        self.ensure_leader()?;
        let _changing = self.changing.lock().await;
        let record = Member { name: name.to_string(), address: address.to_string() };
        match self.membership().get_node(&id) {
            None => Err(MemberError::NoSuchMember(id)),
            Some(known) if *known == record => Ok(()),
            Some(_) => self.change(ChangeMembers::SetNodes(BTreeMap::from([(id, record)]))).await,
        }
    }

    /// Hands leadership over, and returns when the new leader is one.
    pub(crate) async fn lead_transfer(&self, to: Option<MemberId>) -> Result<MemberId, MemberError> {
        self.ensure_leader()?;
        // Not in the middle of a change, which would be left to the next leader to finish.
        let _changing = self.changing.lock().await;
        let own = self.member();
        let (voters, last, matched) = {
            let metrics = self.raft.metrics();
            let now = metrics.borrow_watched();
            let voters: BTreeSet<_> = now.membership_config.voter_ids().collect();
            (voters, now.last_log_index.unwrap_or(0), now.replication.clone().unwrap_or_default())
        };
        if let Some(to) = to {
            if to == own {
                return Ok(own);
            }
            if !voters.contains(&to) {
                return Err(MemberError::NoSuchMember(to));
            }
        }
        let matched = |id: &MemberId| matched.get(id).and_then(|id| id.as_ref()).map_or(0, |id| id.index);
        let able = |id: &&MemberId| {
            **id != own
                && to.is_none_or(|to| to == **id)
                && self.links.reachable(**id) == Some(true)
                && matched(id) + SUCCESSOR_LAG_ENTRIES >= last
        };
        let Some(to) = voters.iter().filter(able).max_by_key(|id| matched(id)).copied() else {
            return Err(MemberError::NoSuccessor);
        };
        self.raft.trigger().transfer_leader(to).await.map_err(|_| MemberError::Stopped)?;
        let waiting = self.raft.wait(Some(TRANSFER_TIMEOUT));
        let another = waiting.metrics(|now| now.current_leader.is_some_and(|leader| leader != own), "another leads");
        match another.await {
            Ok(now) => Ok(now.current_leader.unwrap_or(to)),
            Err(_) => Err(MemberError::Unknown),
        }
    }

    /// How far each member has come, if this one leads.
    pub(crate) fn lead_progress(&self) -> Option<Answer> {
        if self.leader() != Leader::Here {
            return None;
        }
        let metrics = self.raft.metrics();
        let now = metrics.borrow_watched();
        let last = now.last_log_index.unwrap_or(0);
        let matched = now.replication.as_ref();
        let members = now.membership_config.membership().nodes().map(|(id, _)| {
            let own = *id == self.member();
            let matched = matched.and_then(|matched| matched.get(id)?.as_ref()).map(|id| id.index);
            Progress {
                member: *id,
                matched: if own { Some(last) } else { matched },
                reachable: own || self.links.reachable(*id) == Some(true),
            }
        });
        let committed = now.cluster_committed.map_or(0, |id| id.index);
        Some(Answer::Progress { last, committed, members: members.collect() })
    }
}
