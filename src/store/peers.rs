//! The wall towards the other members: how they are reached, who they are, and what may be asked about the group.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::Revision;

/// Names a member for as long as the cluster exists. Never used again once its member was removed.
pub type MemberId = u64;

/// Names a cluster from its founding on, on disk and on the wire. Shown as 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClusterId(pub u128);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("a cluster id is 32 hexadecimal digits")]
pub struct ParseClusterIdError;

impl FromStr for ClusterId {
    type Err = ParseClusterIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(ParseClusterIdError);
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| ParseClusterIdError)
    }
}

/// A connection to another member.
pub trait PeerStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> PeerStream for T {}

/// How this member reaches others. The store brings its own framing; who may connect is decided here and where
/// [`crate::Store::serve_peer`] is called: the store trusts a stream that it is given.
pub trait Transport: Send + Sync + 'static {
    /// Opens an authenticated, encrypted byte stream to the member's server port at `address` (`host:port`). Dropping the
    /// future gives up; the store does so after [`Timing::connect_timeout`].
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn PeerStream>>>;
}

/// This member as the others know and reach it, and how it reaches them.
#[derive(Clone)]
pub struct Peer {
    /// The name that `mussel store status` shows: the node's.
    pub name: String,
    /// `host:port` of this member's server port. When it differs from what the group knows, the group is told.
    pub address: String,
    pub transport: Arc<dyn Transport>,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("name", &self.name).field("address", &self.address).finish_non_exhaustive()
    }
}

/// The group's clockwork. All members should have the same; the default fails over in about 1 s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often a leader with nothing to say says that it is there. An answer that takes longer does not count, so that this
    /// is also the longest round trip between members that a group bears.
    pub heartbeat_interval: Duration,
    /// A follower that heard nothing for `election_timeout_max` plus a random time between these two wants to lead.
    pub election_timeout_min: Duration,
    pub election_timeout_max: Duration,
    /// How long opening a stream to a member may take.
    pub connect_timeout: Duration,
    /// How long a commit or read waits for a leader, and a commit for its outcome.
    pub leader_timeout: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_millis(230),
            election_timeout_min: Duration::from_millis(300),
            election_timeout_max: Duration::from_millis(500),
            connect_timeout: Duration::from_secs(2),
            leader_timeout: Duration::from_secs(10),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Counts for majorities.
    Voter,
    /// Follows, and is promoted when it has caught up.
    Learner,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Voter => "voter",
            Role::Learner => "learner",
        })
    }
}

/// A member as the one that was asked sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    pub id: MemberId,
    /// Empty for a founder that never had a [`Peer`] configured, as `address`.
    pub name: String,
    pub address: String,
    pub role: Role,
    pub leader: bool,
    /// The last log index that the leader knows to be on its disk; `None` when the leader was not reached.
    pub matched_index: Option<u64>,
    /// How many log entries it lacks, by the leader's count.
    pub lag_entries: Option<u64>,
    /// Whether it answered lately: the leader's view if it was reached, else this member's own. `None`: not tried.
    pub reachable: Option<bool>,
}

/// What `mussel store status` shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub cluster: ClusterId,
    /// The member that was asked.
    pub member: MemberId,
    pub members: Vec<MemberStatus>,
    pub leader: Option<MemberId>,
    pub term: u64,
    /// The newest revision that this member has applied.
    pub revision: Revision,
    /// Over all keys, revisions and values at `revision`: equal on all members at equal revisions.
    pub digest: u64,
    pub keys: u64,
    pub applied_index: u64,
    /// The newest index that this member knows to be committed.
    pub committed_index: u64,
    /// The newest index that is no longer in this member's log: who lacks it needs a snapshot.
    pub purged_index: u64,
    /// The newest index in this member's log.
    pub last_log_index: u64,
    /// The newest index that is covered by this member's checkpoint.
    pub checkpoint_index: u64,
    pub db_bytes: u64,
    /// Why this member cannot write until a restart, if that is so.
    pub failed: Option<String>,
}

/// Why the group's membership was not changed as asked.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    #[error("no leader")]
    NoLeader,
    #[error("there is no member {0:016x}")]
    NoSuchMember(MemberId),
    #[error("member {0:016x} is the last voter")]
    LastVoter(MemberId),
    #[error("the group has {0} voters, which is the most it takes")]
    Full(usize),
    /// A member that was removed does not come back under its old identity.
    #[error("member {0:016x} was removed from the group")]
    Removed(MemberId),
    #[error("another change of the members is under way; try again")]
    Busy,
    #[error("no other voter has caught up enough to lead")]
    NoSuccessor,
    /// The outcome is unknown; the list of members tells.
    #[error("no answer in time")]
    Unknown,
    #[error("{0}")]
    Refused(String),
    #[error("store is stopped")]
    Stopped,
}

/// Why a member did not become a voter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// This member was removed from the group; join with an empty directory instead.
    #[error("this member was removed from the group")]
    Removed,
    #[error("the group has {0} voters, which is the most it takes")]
    Full(usize),
    /// The seeds' servers belong to another cluster, or speak no version of the protocol that this one does.
    #[error("{seed} refused: {reason}")]
    Refused { seed: String, reason: String },
    #[error("store is stopped")]
    Stopped,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_id_is_read_as_it_is_shown() {
        let id = ClusterId(0xabc0_0000_0000_0001);
        assert_eq!(id.to_string().parse::<ClusterId>().unwrap(), id);
        assert!("abc".parse::<ClusterId>().is_err());
        assert!("+0000000000000000000000000000001".parse::<ClusterId>().is_err());
    }
}
