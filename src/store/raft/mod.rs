//! What openraft is told about us: the types, the log, the state machine and the network.

pub(crate) mod log;
pub(crate) mod machine;
pub(crate) mod network;
pub(crate) mod register;
#[cfg(test)]
mod suite_tests;

use std::fmt;
use std::sync::Arc;

use crate::{Revision, Txn, Versioned};

/// Names a proposal for good, so that one whose answer was lost can be proposed again and is applied once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProposalId {
    /// Whose proposal it is.
    pub(crate) member: u64,
    /// Which start of that member; later ones are greater.
    pub(crate) session: u64,
    /// Counts the session's proposals, one of which is under way at a time.
    pub(crate) number: u64,
}

/// One Raft entry: the Txns that were waiting when it was proposed. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) id: Option<ProposalId>,
    pub(crate) txns: Arc<Vec<Txn>>,
}

// The contents may be secret, and are long: only their number is printed.
impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} txns", self.txns.len())
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What became of one Txn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Committed(Revision),
    Refused {
        index: usize,
        current: Option<Versioned>,
    },
    /// Not looked at: nobody waits for it any more.
    Stale,
}

/// What became of the Txns of an entry, in their order. Empty for entries without Txns.
#[derive(Debug, Default)]
pub(crate) struct Outcomes(pub(crate) Vec<Outcome>);

/// A member of the Raft group, as the others reach it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Member {
    /// Its node's name, for people.
    pub(crate) name: String,
    /// `host:port`; empty for a lone member.
    pub(crate) address: String,
}

/// In tests of this crate's insides chance comes from a seed, so that a simulation can be repeated.
#[cfg(test)]
pub(crate) type SimulatedRuntime = openraft_rt::deterministic_rng::DeterministicRng<openraft::impls::TokioRuntime>;
#[cfg(test)]
pub(crate) type Runtime = SimulatedRuntime;
#[cfg(not(test))]
pub(crate) type Runtime = openraft::impls::TokioRuntime;

openraft::declare_raft_types!(
    pub(crate) Types:
        D = Batch,
        R = Outcomes,
        NodeId = u64,
        Node = Member,
        AsyncRuntime = Runtime,
);

pub(crate) type Raft = openraft::Raft<Types, machine::StateMachine>;
pub(crate) type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
pub(crate) type LogId = openraft::LogId<LeaderId>;
pub(crate) type Vote = openraft::Vote<LeaderId>;
pub(crate) type Payload = openraft::EntryPayload<Batch, u64, Member>;
pub(crate) type Entry = openraft::Entry<LeaderId, Payload>;
pub(crate) type MembershipOf = openraft::Membership<u64, Member>;
pub(crate) type StoredMembershipOf = openraft::StoredMembership<LeaderId, u64, Member>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<LeaderId, u64, Member>;
pub(crate) type SnapshotOf<D> = openraft::Snapshot<LeaderId, u64, Member, D>;
