//! What the group remembers beside the keys: which proposals were applied, and who is no member any more.
//!
//! Pure, and part of the replicated state: equal on all members after equal entries.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::raft::{MembershipOf, Outcome, ProposalId};
use crate::{MemberId, Revision};

/// Removed members that are remembered. The oldest are forgotten then; by that time nobody starts them any more.
const REMOVED_MAX: usize = 1024;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Register {
    /// Of each member the last proposal. It has one under way at a time, so that all before are settled.
    pub(crate) sessions: BTreeMap<MemberId, Arc<Session>>,
    pub(crate) removed: VecDeque<MemberId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) session: u64,
    pub(crate) number: u64,
    /// Per Txn the revision, if it was committed. A refused one changed nothing, so that it may be looked at again.
    pub(crate) committed: Vec<Option<Revision>>,
}

/// What to do with a proposal that is found in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Apply,
    /// It was applied before, with this outcome; its answer was lost.
    Repeat(Arc<Session>),
    /// A newer one of the same member was applied before, or its member is none any more: nobody waits for it.
    Stale,
}

impl Register {
    pub(crate) fn admit(&self, id: ProposalId, membership: &MembershipOf) -> Admission {
        if membership.get_node(&id.member).is_none() {
            return Admission::Stale;
        }
        let Some(last) = self.sessions.get(&id.member) else { return Admission::Apply };
        match (id.session, id.number).cmp(&(last.session, last.number)) {
            std::cmp::Ordering::Greater => Admission::Apply,
            std::cmp::Ordering::Equal => Admission::Repeat(last.clone()),
            std::cmp::Ordering::Less => Admission::Stale,
        }
    }

    pub(crate) fn remember(&mut self, id: ProposalId, outcomes: &[Outcome]) {
        let committed = outcomes
            .iter()
            .map(|outcome| match outcome {
                Outcome::Committed(revision) => Some(*revision),
                Outcome::Refused { .. } | Outcome::Stale => None,
            })
            .collect();
        self.sessions.insert(id.member, Arc::new(Session { session: id.session, number: id.number, committed }));
    }

    /// Takes note of who left between two memberships.
    pub(crate) fn follow(&mut self, before: &MembershipOf, now: &MembershipOf) {
        for (id, _) in before.nodes() {
            if now.get_node(id).is_none() && !self.removed.contains(id) {
                self.removed.push_back(*id);
            }
        }
        while self.removed.len() > REMOVED_MAX {
            self.removed.pop_front();
        }
        self.sessions.retain(|id, _| now.get_node(id).is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::Member;
    use std::collections::BTreeSet;

    fn members(ids: &[u64]) -> MembershipOf {
        let nodes: BTreeMap<_, _> = ids.iter().map(|id| (*id, Member::default())).collect();
        MembershipOf::new(vec![BTreeSet::from_iter(ids.iter().copied())], nodes).unwrap()
    }

    #[test]
    fn a_proposal_is_applied_once_and_only_by_members() {
        let group = members(&[1, 2]);
        let mut register = Register::default();
        let id = |member, session, number| ProposalId { member, session, number };
        assert_eq!(register.admit(id(1, 1, 1), &group), Admission::Apply);
        register
            .remember(id(1, 1, 1), &[Outcome::Committed(Revision(5)), Outcome::Refused { index: 0, current: None }]);
        match register.admit(id(1, 1, 1), &group) {
            Admission::Repeat(session) => assert_eq!(session.committed, [Some(Revision(5)), None]),
            other => panic!("{other:?}"),
        }
        assert_eq!(register.admit(id(1, 1, 2), &group), Admission::Apply);
        assert_eq!(register.admit(id(2, 1, 1), &group), Admission::Apply, "each member has its own numbers");
        register.remember(id(1, 2, 1), &[]);
        assert_eq!(register.admit(id(1, 1, 9), &group), Admission::Stale, "an older start of the same member");
        assert_eq!(register.admit(id(3, 1, 1), &group), Admission::Stale, "nobody's");

        register.follow(&group, &members(&[2, 3]));
        assert_eq!(register.removed, [1]);
        assert!(register.sessions.is_empty());
        assert_eq!(register.admit(id(1, 3, 1), &members(&[2, 3])), Admission::Stale);
    }
}
