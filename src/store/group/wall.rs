//! What may be asked of the group, and asked to change in it: the part of [`Store`]'s wall that needs other members.

use std::io;
use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;

use crate::disk::identity::{self, Standing};
use crate::group::{Group, Leader};
use crate::mvcc;
use crate::peers::{ClusterId, JoinError, MemberError, MemberId, MemberStatus, PeerStream, Role, Status};
use crate::raft::Member;
use crate::store::Beginning;
use crate::wire::message::{Answer, Request};
use crate::wire::serve;
use crate::{Config, OpenError, Store};

/// How long the status waits for the leader's view.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);

impl Store {
    /// Opens a fresh directory as a new member of `cluster`. Seeds are addresses (`host:port`) of servers of it, tried in
    /// turn until one answers, now or later. A directory that has data of that cluster is opened as [`Store::open`] does,
    /// so that a repeat after a crash is right at any point.
    ///
    /// Returns as soon as [`Store::serve_peer`] can be called, which the group needs to reach this member: the joining
    /// itself goes on behind, and [`Store::joined`] tells of its end. Until then reads are empty or end with `NoLeader`.
    ///
    /// # Errors
    /// As `open`'s; `OtherCluster` when the directory has data of another cluster; `NoTransport` without `config.peer`.
    pub async fn join(config: Config, cluster: ClusterId, seeds: Vec<String>) -> Result<Store, OpenError> {
        Self::begin(config, Beginning::Join { cluster, seeds }).await
    }

    /// Waits until this member is a voter; at once for one that is. What it was told before is applied then.
    ///
    /// # Errors
    /// All are final for this handle. A group that cannot be reached is no error: it is tried on.
    ///
    /// # Cancel safety
    /// Cancel-safe: the joining goes on.
    pub async fn joined(&self) -> Result<(), JoinError> {
        let mut joined = self.shared.joined.clone();
        let joined = joined.wait_for(Option::is_some).await.map_err(|_| JoinError::Stopped)?;
        joined.clone().unwrap_or(Err(JoinError::Stopped))
    }

    /// Whether `dir` holds a member's data, so that it is to be opened and not to be founded or joined anew. A member
    /// that has not finished joining counts as having none: call [`Store::join`] again.
    pub fn has_data(dir: &Path) -> Result<bool, OpenError> {
        Ok(identity::read(dir)?.is_some_and(|marker| marker.standing != Standing::Joining))
    }

    pub fn cluster_id(&self) -> ClusterId {
        self.shared.group.cluster()
    }

    pub fn member_id(&self) -> MemberId {
        self.shared.group.member()
    }

    /// Serves one accepted connection, which is known to come from a server of this cluster, until it ends or the store
    /// stops. May be called any number of times at once.
    pub async fn serve_peer(&self, stream: impl PeerStream + 'static) -> io::Result<()> {
        serve::serve(self.shared.group.clone(), &self.shared.complaints, stream).await
    }

    /// The members as this one knows them, without asking anybody.
    pub fn members(&self) -> Vec<MemberStatus> {
        local_view(&self.shared.group)
    }

    /// Removes a member for good: it counts no more, is told nothing more, and is refused from then on. Also the way to
    /// replace one that is lost: remove it, and join a new one. The leader may remove itself.
    pub async fn remove_member(&self, id: MemberId) -> Result<(), MemberError> {
        self.shared.group.ask_leader(Request::RemoveMember(id)).await.map(drop)
    }

    /// Hands leadership over, to `to` or to the voter that has caught up most, and returns when the new one leads.
    pub async fn transfer_leadership(&self, to: Option<MemberId>) -> Result<MemberId, MemberError> {
        match self.shared.group.ask_leader(Request::TransferLeadership(to)).await? {
            Answer::Leader(id) => Ok(id),
            _ => Err(MemberError::Unknown),
        }
    }

    /// Tells the group this member's new address. Also done by itself when `config.peer` differs from what the group has.
    pub async fn update_address(&self, address: String) -> Result<(), MemberError> {
        let group = &self.shared.group;
        {
            let mut record = group.record.lock().unwrap_or_else(PoisonError::into_inner);
            let name = record.take().map_or_else(String::new, |record| record.name);
            *record = Some(Member { name, address });
        }
        group.announce().await
    }

    /// Resolves when this member finds that it was removed from its group. It serves nothing sensible from then on, and
    /// its directory does not open again.
    pub async fn removed(&self) {
        let mut standing = self.shared.group.noted.subscribe();
        if standing.wait_for(|standing| *standing == Standing::Removed).await.is_err() {
            std::future::pending().await
        }
    }

    /// The state of the group as the leader and this member see it; as this member alone does when there is no leader.
    /// Reads all values to hash them.
    pub async fn status(&self) -> Status {
        let shared = &self.shared;
        let snapshot = shared.machine.newest();
        let (revision, keys) = (snapshot.revision(), snapshot.len() as u64);
        let digest = mvcc::digest_in_steps(&snapshot).await;
        let mut members = self.members();
        let asking = shared.group.ask_leader(Request::Progress);
        if shared.group.leader() != Leader::Unknown
            && let Ok(Ok(Answer::Progress { last, members: progress, .. })) =
                tokio::time::timeout(STATUS_TIMEOUT, asking).await
        {
            for member in &mut members {
                let Some(progress) = progress.iter().find(|progress| progress.member == member.id) else { continue };
                member.matched_index = progress.matched;
                member.lag_entries = progress.matched.map(|matched| last.saturating_sub(matched));
                member.reachable = Some(progress.reachable);
            }
        }
        let db_bytes = self.db_bytes().await;
        let now = shared.raft.metrics().borrow_watched().clone();
        let committed = now.cluster_committed.max(now.last_applied);
        Status {
            cluster: self.cluster_id(),
            member: self.member_id(),
            members,
            leader: now.current_leader.filter(|_| shared.group.is_led()),
            term: now.current_term,
            revision,
            digest,
            keys,
            applied_index: now.last_applied.map_or(0, |id| id.index),
            committed_index: committed.map_or(0, |id| id.index),
            purged_index: now.purged.map_or(0, |id| id.index),
            last_log_index: now.last_log_index.unwrap_or(0),
            checkpoint_index: now.snapshot.map_or(0, |id| id.index),
            db_bytes,
            failed: self.failed().map(|error| error.to_string()),
        }
    }
}

fn local_view(group: &Group) -> Vec<MemberStatus> {
    let is_led = group.is_led();
    let metrics = group.raft.metrics();
    let now = metrics.borrow_watched();
    let membership = now.membership_config.membership();
    let member = |(id, member): (&MemberId, &Member)| {
        let own = *id == group.member();
        MemberStatus {
            id: *id,
            name: member.name.clone(),
            address: member.address.clone(),
            role: if membership.voter_ids().any(|voter| voter == *id) { Role::Voter } else { Role::Learner },
            leader: is_led && now.current_leader == Some(*id),
            matched_index: if own { now.last_log_index } else { None },
            lag_entries: None,
            reachable: if own { Some(true) } else { group.links.reachable(*id) },
        }
    };
    membership.nodes().map(member).collect()
}
