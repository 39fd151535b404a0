//! The meaning of frames: requests and their answers, in an encoding of our own, so that openraft's next version is no new
//! protocol.
//!
//! New forms are added at the end of the enums below, and sent only to members that speak a version that has them.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use openraft::StoredMembership;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use serde::{Deserialize, Serialize};

use crate::disk::records::{self, LogIdRecord, MembershipRecord, ProposalIdRecord, Raw, TxnRecord, VoteRecord};
use crate::raft::register::Register;
use crate::raft::{Batch, LogId, Outcome, SnapshotMeta, Types, Vote};
use crate::{MemberError, MemberId, Revision, Txn, Versioned};

/// There is no version 2 yet. Tests of upgrades let members pretend that there is: its bodies begin with this byte.
const VERSION_2_MARK: u8 = 0xa2;

#[derive(Debug)]
pub(crate) enum Request {
    Append(AppendEntriesRequest<Types>),
    PreVote(VoteRequest<Types>),
    Vote(VoteRequest<Types>),
    TransferLeader(TransferLeaderRequest<Types>),
    SnapshotBegin(SnapshotHead),
    SnapshotPart(SnapshotPart),
    SnapshotEnd(SnapshotEnd),
    /// To the leader, as all below.
    Propose(Batch),
    ReadIndex,
    Join {
        name: String,
        address: String,
    },
    RemoveMember(MemberId),
    UpdateMember {
        name: String,
        address: String,
    },
    TransferLeadership(Option<MemberId>),
    Progress,
}

/// What a snapshot is of; its keys follow in parts.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotHead {
    pub(crate) vote: Vote,
    pub(crate) meta: SnapshotMeta,
    pub(crate) revision: Revision,
    pub(crate) keys: u64,
    pub(crate) register: Register,
}

/// Keys in order, see `transfer.rs`.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotPart {
    pub(crate) index: u64,
    pub(crate) checksum: u64,
    pub(crate) bytes: Bytes,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct SnapshotEnd {
    pub(crate) parts: u64,
    /// [`crate::Snapshot::digest`] of the whole.
    pub(crate) digest: u64,
}

/// How far a member has come, as the leader knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    pub(crate) member: MemberId,
    pub(crate) matched: Option<u64>,
    pub(crate) reachable: bool,
}

#[derive(Debug)]
pub(crate) enum Answer {
    Append(AppendEntriesResponse<Types>),
    Vote(VoteResponse<Types>),
    TransferLeader(TransferLeaderResponse<Types>),
    /// The receiver's vote.
    SnapshotInstalled(Vote),
    Outcomes(Vec<Outcome>),
    /// Who has applied this has seen all that was acknowledged before the question.
    ReadIndex(u64),
    /// The new leader.
    Leader(MemberId),
    Progress {
        last: u64,
        committed: u64,
        members: Vec<Progress>,
    },
    Done,
    Failed(Failure),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Nothing was done. The leader and its address, if known.
    NotLeader(Option<(MemberId, String)>),
    /// It may or may not have been done.
    Unknown,
    /// Nothing was done, for want of room or worse.
    Unwritable(String),
    /// The caller was removed from the group.
    Removed,
    Member(MemberFailure),
    /// The answering end could not make sense of it, or is stopping.
    Other(String),
}

/// [`MemberError`] on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum MemberFailure {
    NoSuchMember(MemberId),
    LastVoter(MemberId),
    Full(u32),
    Removed(MemberId),
    Busy,
    NoSuccessor,
    Unknown,
    Refused(String),
    Stopped,
    NoLeader,
}

impl From<MemberError> for MemberFailure {
    fn from(error: MemberError) -> Self {
        match error {
            MemberError::NoLeader => Self::NoLeader,
            MemberError::NoSuchMember(id) => Self::NoSuchMember(id),
            MemberError::LastVoter(id) => Self::LastVoter(id),
            MemberError::Full(voters) => Self::Full(voters.try_into().unwrap_or(u32::MAX)),
            MemberError::Removed(id) => Self::Removed(id),
            MemberError::Busy => Self::Busy,
            MemberError::NoSuccessor => Self::NoSuccessor,
            MemberError::Unknown => Self::Unknown,
            MemberError::Refused(why) => Self::Refused(why),
            MemberError::Stopped => Self::Stopped,
        }
    }
}

impl From<MemberFailure> for MemberError {
    fn from(failure: MemberFailure) -> Self {
        match failure {
            // A member that stops no longer leads.
            MemberFailure::NoLeader | MemberFailure::Stopped => Self::NoLeader,
            MemberFailure::NoSuchMember(id) => Self::NoSuchMember(id),
            MemberFailure::LastVoter(id) => Self::LastVoter(id),
            MemberFailure::Full(voters) => Self::Full(voters as usize),
            MemberFailure::Removed(id) => Self::Removed(id),
            MemberFailure::Busy => Self::Busy,
            MemberFailure::NoSuccessor => Self::NoSuccessor,
            MemberFailure::Unknown => Self::Unknown,
            MemberFailure::Refused(why) => Self::Refused(why),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct VoteRequestRecord {
    vote: VoteRecord,
    last: Option<LogIdRecord>,
    transfer: bool,
}

#[derive(Serialize, Deserialize)]
enum RequestRecord<'a> {
    Append {
        vote: VoteRecord,
        previous: Option<LogIdRecord>,
        committed: Option<LogIdRecord>,
        /// Each as it is on disk, with its own version.
        #[serde(borrow)]
        entries: Vec<Raw<'a>>,
    },
    PreVote(VoteRequestRecord),
    Vote(VoteRequestRecord),
    TransferLeader {
        from: VoteRecord,
        to: u64,
        last: Option<LogIdRecord>,
    },
    SnapshotBegin {
        vote: VoteRecord,
        last: Option<LogIdRecord>,
        membership_id: Option<LogIdRecord>,
        membership: MembershipRecord,
        revision: u64,
        keys: u64,
        register: Raw<'a>,
    },
    SnapshotPart {
        index: u64,
        checksum: u64,
        bytes: Raw<'a>,
    },
    SnapshotEnd {
        parts: u64,
        digest: u64,
    },
    Propose {
        id: Option<ProposalIdRecord>,
        txns: Vec<TxnRecord<'a>>,
    },
    ReadIndex,
    Join {
        name: String,
        address: String,
    },
    RemoveMember(u64),
    UpdateMember {
        name: String,
        address: String,
    },
    TransferLeadership(Option<u64>),
    Progress,
}

#[derive(Serialize, Deserialize)]
enum OutcomeRecord<'a> {
    Committed(u64),
    Refused {
        index: u32,
        #[serde(borrow)]
        current: Option<(Raw<'a>, u64)>,
    },
    Stale,
}

#[derive(Serialize, Deserialize)]
enum AnswerRecord<'a> {
    Appended,
    AppendedPartly(Option<LogIdRecord>),
    Conflict,
    HigherVote(VoteRecord),
    Vote {
        vote: VoteRecord,
        granted: bool,
        last: Option<LogIdRecord>,
    },
    LeaderTransferred,
    VoteChanged {
        expected: VoteRecord,
        actual: VoteRecord,
    },
    LogNotFlushed {
        expected: Option<LogIdRecord>,
        actual: Option<LogIdRecord>,
    },
    SnapshotInstalled(VoteRecord),
    #[serde(borrow)]
    Outcomes(Vec<OutcomeRecord<'a>>),
    ReadIndex(u64),
    Leader(u64),
    Progress {
        last: u64,
        committed: u64,
        members: Vec<Progress>,
    },
    Done,
    NotLeader(Option<(u64, String)>),
    Unknown,
    Unwritable(String),
    Removed,
    Member(MemberFailure),
    Other(String),
}

fn invalid(detail: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("message: {detail}"))
}

fn encode<T: Serialize>(version: u16, record: &T) -> io::Result<Bytes> {
    let head = if version >= 2 { vec![VERSION_2_MARK] } else { Vec::new() };
    postcard::to_extend(record, head).map(Bytes::from).map_err(invalid)
}

fn decode<'a, T: Deserialize<'a>>(version: u16, bytes: &'a [u8]) -> io::Result<T> {
    let body = match bytes.split_first() {
        _ if version < 2 => bytes,
        Some((&VERSION_2_MARK, body)) => body,
        _ => return Err(invalid("not of the version agreed on")),
    };
    match postcard::take_from_bytes(body).map_err(invalid)? {
        (record, []) => Ok(record),
        _ => Err(invalid("more than the message says")),
    }
}

fn record(id: Option<LogId>) -> Option<LogIdRecord> {
    id.map(Into::into)
}

fn log_id(record: Option<LogIdRecord>) -> Option<LogId> {
    record.map(Into::into)
}

impl VoteRequestRecord {
    fn new(request: &VoteRequest<Types>) -> Self {
        Self { vote: (&request.vote).into(), last: record(request.last_log_id), transfer: request.leadership_transfer }
    }

    fn request(self) -> VoteRequest<Types> {
        let mut request = VoteRequest::new(self.vote.into(), log_id(self.last));
        request.leadership_transfer = self.transfer;
        request
    }
}

impl Request {
    pub(crate) fn encode(&self, version: u16) -> io::Result<Bytes> {
        let (entries, register);
        let body = match self {
            Self::Append(request) => {
                let encoded: io::Result<Vec<_>> = request.entries.iter().map(records::encode_entry).collect();
                entries = encoded?;
                RequestRecord::Append {
                    vote: (&request.vote).into(),
                    previous: record(request.prev_log_id),
                    committed: record(request.leader_commit),
                    entries: entries.iter().map(|entry| Raw(entry)).collect(),
                }
            }
            Self::PreVote(request) => RequestRecord::PreVote(VoteRequestRecord::new(request)),
            Self::Vote(request) => RequestRecord::Vote(VoteRequestRecord::new(request)),
            Self::TransferLeader(request) => RequestRecord::TransferLeader {
                from: request.from_leader().into(),
                to: *request.to_node_id(),
                last: record(request.last_log_id().copied()),
            },
            Self::SnapshotBegin(head) => {
                register = records::encode_register(&head.register)?;
                RequestRecord::SnapshotBegin {
                    vote: (&head.vote).into(),
                    last: record(head.meta.last_log_id),
                    membership_id: record(*head.meta.last_membership.log_id()),
                    membership: head.meta.last_membership.membership().into(),
                    revision: head.revision.0,
                    keys: head.keys,
                    register: Raw(&register),
                }
            }
            Self::SnapshotPart(part) => {
                RequestRecord::SnapshotPart { index: part.index, checksum: part.checksum, bytes: Raw(&part.bytes) }
            }
            Self::SnapshotEnd(end) => RequestRecord::SnapshotEnd { parts: end.parts, digest: end.digest },
            Self::Propose(batch) => RequestRecord::Propose {
                id: batch.id.map(Into::into),
                txns: batch.txns.iter().map(TxnRecord::from).collect(),
            },
            Self::ReadIndex => RequestRecord::ReadIndex,
            Self::Join { name, address } => RequestRecord::Join { name: name.clone(), address: address.clone() },
            Self::RemoveMember(id) => RequestRecord::RemoveMember(*id),
            Self::UpdateMember { name, address } => {
                RequestRecord::UpdateMember { name: name.clone(), address: address.clone() }
            }
            Self::TransferLeadership(to) => RequestRecord::TransferLeadership(*to),
            Self::Progress => RequestRecord::Progress,
        };
        encode(version, &body)
    }

    pub(crate) fn decode(version: u16, bytes: &[u8]) -> io::Result<Self> {
        Ok(match decode::<RequestRecord<'_>>(version, bytes)? {
            RequestRecord::Append { vote, previous, committed, entries } => {
                let entries: io::Result<Vec<_>> = entries.iter().map(|entry| records::decode_entry(entry.0)).collect();
                Self::Append(AppendEntriesRequest {
                    vote: vote.into(),
                    prev_log_id: log_id(previous),
                    entries: entries?,
                    leader_commit: log_id(committed),
                })
            }
            RequestRecord::PreVote(request) => Self::PreVote(request.request()),
            RequestRecord::Vote(request) => Self::Vote(request.request()),
            RequestRecord::TransferLeader { from, to, last } => {
                Self::TransferLeader(TransferLeaderRequest::new(from.into(), to, log_id(last)))
            }
            RequestRecord::SnapshotBegin { vote, last, membership_id, membership, revision, keys, register } => {
                Self::SnapshotBegin(SnapshotHead {
                    vote: vote.into(),
                    meta: SnapshotMeta {
                        last_log_id: log_id(last),
                        last_membership: StoredMembership::new(log_id(membership_id), membership.into_membership()?),
                    },
                    revision: Revision(revision),
                    keys,
                    register: records::decode_register(register.0)?,
                })
            }
            RequestRecord::SnapshotPart { index, checksum, bytes } => {
                Self::SnapshotPart(SnapshotPart { index, checksum, bytes: bytes.to_bytes() })
            }
            RequestRecord::SnapshotEnd { parts, digest } => Self::SnapshotEnd(SnapshotEnd { parts, digest }),
            RequestRecord::Propose { id, txns } => Self::Propose(Batch {
                id: id.map(Into::into),
                txns: Arc::new(txns.into_iter().map(Txn::from).collect()),
            }),
            RequestRecord::ReadIndex => Self::ReadIndex,
            RequestRecord::Join { name, address } => Self::Join { name, address },
            RequestRecord::RemoveMember(id) => Self::RemoveMember(id),
            RequestRecord::UpdateMember { name, address } => Self::UpdateMember { name, address },
            RequestRecord::TransferLeadership(to) => Self::TransferLeadership(to),
            RequestRecord::Progress => Self::Progress,
        })
    }
}

impl Answer {
    pub(crate) fn encode(&self, version: u16) -> io::Result<Bytes> {
        let body = match self {
            Self::Append(AppendEntriesResponse::Success) => AnswerRecord::Appended,
            Self::Append(AppendEntriesResponse::PartialSuccess(id)) => AnswerRecord::AppendedPartly(record(*id)),
            Self::Append(AppendEntriesResponse::Conflict) => AnswerRecord::Conflict,
            Self::Append(AppendEntriesResponse::HigherVote(vote)) => AnswerRecord::HigherVote(vote.into()),
            Self::Vote(answer) => AnswerRecord::Vote {
                vote: (&answer.vote).into(),
                granted: answer.vote_granted,
                last: record(answer.last_log_id),
            },
            Self::TransferLeader(Ok(())) => AnswerRecord::LeaderTransferred,
            Self::TransferLeader(Err(TransferLeaderError::VoteChanged { expected, actual })) => {
                AnswerRecord::VoteChanged { expected: expected.into(), actual: actual.into() }
            }
            Self::TransferLeader(Err(TransferLeaderError::LogNotFlushed { expected, actual })) => {
                AnswerRecord::LogNotFlushed { expected: record(*expected), actual: record(*actual) }
            }
            Self::SnapshotInstalled(vote) => AnswerRecord::SnapshotInstalled(vote.into()),
            Self::Outcomes(outcomes) => AnswerRecord::Outcomes(
                outcomes
                    .iter()
                    .map(|outcome| match outcome {
                        Outcome::Committed(revision) => OutcomeRecord::Committed(revision.0),
                        Outcome::Refused { index, current } => OutcomeRecord::Refused {
                            index: u32::try_from(*index).unwrap_or(u32::MAX),
                            current: current.as_ref().map(|current| (Raw(&current.value), current.revision.0)),
                        },
                        Outcome::Stale => OutcomeRecord::Stale,
                    })
                    .collect(),
            ),
            Self::ReadIndex(index) => AnswerRecord::ReadIndex(*index),
            Self::Leader(id) => AnswerRecord::Leader(*id),
            Self::Progress { last, committed, members } => {
                AnswerRecord::Progress { last: *last, committed: *committed, members: members.clone() }
            }
            Self::Done => AnswerRecord::Done,
            Self::Failed(Failure::NotLeader(leader)) => AnswerRecord::NotLeader(leader.clone()),
            Self::Failed(Failure::Unknown) => AnswerRecord::Unknown,
            Self::Failed(Failure::Unwritable(why)) => AnswerRecord::Unwritable(why.clone()),
            Self::Failed(Failure::Removed) => AnswerRecord::Removed,
            Self::Failed(Failure::Member(failure)) => AnswerRecord::Member(failure.clone()),
            Self::Failed(Failure::Other(why)) => AnswerRecord::Other(why.clone()),
        };
        encode(version, &body)
    }

    pub(crate) fn decode(version: u16, bytes: &[u8]) -> io::Result<Self> {
        Ok(match decode::<AnswerRecord<'_>>(version, bytes)? {
            AnswerRecord::Appended => Self::Append(AppendEntriesResponse::Success),
            AnswerRecord::AppendedPartly(id) => Self::Append(AppendEntriesResponse::PartialSuccess(log_id(id))),
            AnswerRecord::Conflict => Self::Append(AppendEntriesResponse::Conflict),
            AnswerRecord::HigherVote(vote) => Self::Append(AppendEntriesResponse::HigherVote(vote.into())),
            AnswerRecord::Vote { vote, granted, last } => {
                Self::Vote(VoteResponse::new(Vote::from(vote), log_id(last), granted))
            }
            AnswerRecord::LeaderTransferred => Self::TransferLeader(Ok(())),
            AnswerRecord::VoteChanged { expected, actual } => {
                Self::TransferLeader(Err(TransferLeaderError::VoteChanged {
                    expected: expected.into(),
                    actual: actual.into(),
                }))
            }
            AnswerRecord::LogNotFlushed { expected, actual } => {
                Self::TransferLeader(Err(TransferLeaderError::LogNotFlushed {
                    expected: log_id(expected),
                    actual: log_id(actual),
                }))
            }
            AnswerRecord::SnapshotInstalled(vote) => Self::SnapshotInstalled(vote.into()),
            AnswerRecord::Outcomes(outcomes) => Self::Outcomes(
                outcomes
                    .into_iter()
                    .map(|outcome| match outcome {
                        OutcomeRecord::Committed(revision) => Outcome::Committed(Revision(revision)),
                        OutcomeRecord::Refused { index, current } => Outcome::Refused {
                            index: index as usize,
                            current: current.map(|(value, revision)| Versioned {
                                value: value.to_bytes(),
                                revision: Revision(revision),
                            }),
                        },
                        OutcomeRecord::Stale => Outcome::Stale,
                    })
                    .collect(),
            ),
            AnswerRecord::ReadIndex(index) => Self::ReadIndex(index),
            AnswerRecord::Leader(id) => Self::Leader(id),
            AnswerRecord::Progress { last, committed, members } => Self::Progress { last, committed, members },
            AnswerRecord::Done => Self::Done,
            AnswerRecord::NotLeader(leader) => Self::Failed(Failure::NotLeader(leader)),
            AnswerRecord::Unknown => Self::Failed(Failure::Unknown),
            AnswerRecord::Unwritable(why) => Self::Failed(Failure::Unwritable(why)),
            AnswerRecord::Removed => Self::Failed(Failure::Removed),
            AnswerRecord::Member(failure) => Self::Failed(Failure::Member(failure)),
            AnswerRecord::Other(why) => Self::Failed(Failure::Other(why)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::LeaderId;

    fn id(index: u64) -> LogId {
        LogId { leader_id: LeaderId { term: 3, node_id: 1 }, index }
    }

    #[test]
    fn messages_survive_a_round_trip_in_the_version_agreed_on() {
        let vote = Vote { leader_id: LeaderId { term: 4, node_id: 2 }, committed: true };
        let txn = Txn { puts: vec![("a".into(), "b".into())], ..Txn::default() };
        let batch = Batch { id: None, txns: Arc::new(vec![txn]) };
        let entry = crate::raft::Entry { log_id: id(8), payload: crate::raft::Payload::Normal(batch.clone()) };
        let requests = [
            Request::Append(AppendEntriesRequest {
                vote,
                prev_log_id: Some(id(7)),
                entries: vec![entry],
                leader_commit: None,
            }),
            Request::PreVote(VoteRequest::new(vote, Some(id(3)))),
            Request::TransferLeader(TransferLeaderRequest::new(vote, 2, None)),
            Request::SnapshotPart(SnapshotPart { index: 1, checksum: 2, bytes: Bytes::from_static(b"abc") }),
            Request::Propose(batch),
            Request::Join { name: "n".into(), address: "a:1".into() },
            Request::Progress,
        ];
        let answers = [
            Answer::Append(AppendEntriesResponse::HigherVote(vote)),
            Answer::Vote(VoteResponse::new(vote, Some(id(1)), true)),
            Answer::Outcomes(vec![
                Outcome::Committed(Revision(3)),
                Outcome::Refused { index: 1, current: Some(Versioned { value: "v".into(), revision: Revision(2) }) },
                Outcome::Stale,
            ]),
            Answer::Failed(Failure::NotLeader(Some((3, "c:1".into())))),
        ];
        for version in [1, 2] {
            for request in &requests {
                let bytes = request.encode(version).unwrap();
                assert_eq!(format!("{:?}", Request::decode(version, &bytes).unwrap()), format!("{request:?}"));
                assert!(Request::decode(3 - version, &bytes).is_err(), "{request:?} in the other version");
            }
            for answer in &answers {
                let bytes = answer.encode(version).unwrap();
                assert_eq!(format!("{:?}", Answer::decode(version, &bytes).unwrap()), format!("{answer:?}"));
            }
        }
    }

    #[test]
    fn garbage_is_an_error() {
        for length in 0..64 {
            for byte in [0u8, 1, 0x7f, 0x80, 0xff] {
                // Some short ones happen to mean something; none may do more than that.
                let _ = Request::decode(1, &vec![byte; length]);
                let _ = Answer::decode(1, &vec![byte; length]);
            }
        }
        assert!(Request::decode(1, &[0xff; 64]).is_err());
        assert!(Request::decode(1, &[]).is_err());
        let mut trailing = Request::ReadIndex.encode(1).unwrap().to_vec();
        trailing.push(0);
        assert!(Request::decode(1, &trailing).is_err());
    }
}
