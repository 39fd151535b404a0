//! What may be asked of the group, and asked to change in it: the part of [`Store`]'s wall that needs other members.

use std::io;
use std::path::Path;

use openraft::async_runtime::WatchReceiver;

use crate::disk::identity;
use crate::peers::{ClusterId, JoinError, MemberError, MemberId, MemberStatus, PeerStream, Role, Status};
use crate::raft::{MembershipOf, Raft};
use crate::{Config, OpenError, Store};

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
        let _ = (cluster, seeds);
        Err(OpenError::Raft { detail: format!("{}: joining is not in this version", config.dir.display()) })
    }

    /// Waits until this member is a voter; at once for one that is. What it was told before is applied then.
    ///
    /// # Errors
    /// All are final for this handle. A group that cannot be reached is no error: it is tried on.
    ///
    /// # Cancel safety
    /// Cancel-safe: the joining goes on.
    pub async fn joined(&self) -> Result<(), JoinError> {
        Ok(())
    }

    /// Whether `dir` holds a member's data, so that it is to be opened and not to be founded or joined anew. A member
    /// that has not finished joining counts as having none: call [`Store::join`] again.
    pub fn has_data(dir: &Path) -> Result<bool, OpenError> {
        Ok(identity::read(dir)?.is_some())
    }

    pub fn cluster_id(&self) -> ClusterId {
        ClusterId(self.shared.identity.cluster)
    }

    pub fn member_id(&self) -> MemberId {
        self.shared.identity.member
    }

    /// Serves one accepted connection, which is known to come from a server of this cluster, until it ends or the store
    /// stops. May be called any number of times at once.
    pub async fn serve_peer(&self, stream: impl PeerStream + 'static) -> io::Result<()> {
        drop(stream);
        Err(io::Error::from(io::ErrorKind::ConnectionRefused))
    }

    /// The members as this one knows them, without asking anybody.
    pub fn members(&self) -> Vec<MemberStatus> {
        local_view(&self.shared.raft)
    }

    /// Removes a member for good: it counts no more, is told nothing more, and is refused from then on. Also the way to
    /// replace one that is lost: remove it, and join a new one. The leader may remove itself.
    pub async fn remove_member(&self, id: MemberId) -> Result<(), MemberError> {
        if self.members().iter().any(|member| member.id == id) {
            return Err(MemberError::LastVoter(id));
        }
        Err(MemberError::NoSuchMember(id))
    }

    /// Hands leadership over, to `to` or to the voter that has caught up most, and returns when the new one leads.
    pub async fn transfer_leadership(&self, to: Option<MemberId>) -> Result<MemberId, MemberError> {
        let _ = to;
        Err(MemberError::NoSuccessor)
    }

    /// Tells the group this member's new address. Also done by itself when `config.peer` differs from what the group has.
    pub async fn update_address(&self, address: String) -> Result<(), MemberError> {
        let _ = address;
        Err(MemberError::NoLeader)
    }

    /// Resolves when this member finds that it was removed from its group. It serves nothing sensible from then on, and
    /// its directory does not open again.
    pub async fn removed(&self) {
        std::future::pending().await
    }

    /// The state of the group as the leader and this member see it; as this member alone does when there is no leader.
    /// Reads all values to hash them.
    pub async fn status(&self) -> Status {
        let shared = &self.shared;
        let snapshot = shared.machine.newest();
        let (revision, keys) = (snapshot.revision(), snapshot.len() as u64);
        // A pass over everything is too long for a task that others wait behind.
        let digest = tokio::task::spawn_blocking(move || snapshot.digest()).await.unwrap_or(0);
        let now = shared.raft.metrics().borrow_watched().clone();
        Status {
            cluster: self.cluster_id(),
            member: self.member_id(),
            members: self.members(),
            leader: now.current_leader,
            term: now.current_term,
            revision,
            digest,
            keys,
            applied_index: now.last_applied.map_or(0, |id| id.index),
            committed_index: now.last_applied.map_or(0, |id| id.index),
            last_log_index: now.last_log_index.unwrap_or(0),
            checkpoint_index: now.snapshot.map_or(0, |id| id.index),
            db_bytes: shared.metrics.db_bytes.get().try_into().unwrap_or(0),
            failed: self.failed().map(|error| error.to_string()),
        }
    }
}

fn local_view(raft: &Raft) -> Vec<MemberStatus> {
    let now = raft.metrics().borrow_watched().clone();
    let membership: &MembershipOf = now.membership_config.membership();
    membership
        .nodes()
        .map(|(id, member)| {
            let matched = now.replication.as_ref().and_then(|matched| matched.get(id).cloned().flatten());
            let matched_index = if *id == now.id { now.last_log_index } else { matched.map(|log_id| log_id.index) };
            MemberStatus {
                id: *id,
                name: member.name.clone(),
                address: member.address.clone(),
                role: if membership.voter_ids().any(|voter| voter == *id) { Role::Voter } else { Role::Learner },
                leader: now.current_leader == Some(*id),
                matched_index,
                lag_entries: matched_index.map(|matched| now.last_log_index.unwrap_or(0).saturating_sub(matched)),
                reachable: (*id == now.id).then_some(true),
            }
        })
        .collect()
}
