//! What records look like on disk. Our own structs, each behind a version byte, never openraft's: a new openraft is an
//! upgrade of code and not of data.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use openraft::{EntryPayload, Membership, StoredMembership};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::raft::register::{Register, Session};
use crate::raft::{Batch, Entry, LeaderId, LogId, Member, MembershipOf, ProposalId, StoredMembershipOf, Vote};
use crate::{Precondition, Revision, Txn, Versioned};

const VERSION: u8 = 1;
/// Since members have names; version 1 is still read.
const CHECKPOINT_VERSION: u8 = 2;

/// A byte string that is written and read in one piece, not byte by byte.
pub(crate) struct Raw<'a>(pub(crate) &'a [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Raw<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Raw<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Raw<'de>, E> {
                Ok(Raw(bytes))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

impl Raw<'_> {
    /// A copy of its own: a slice of the record would keep the whole record in memory.
    pub(crate) fn to_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(self.0)
    }
}

#[derive(Serialize, Deserialize, Clone, Copy)]
pub(crate) struct LogIdRecord {
    term: u64,
    member: u64,
    index: u64,
}

impl From<LogId> for LogIdRecord {
    fn from(id: LogId) -> Self {
        Self { term: id.leader_id.term, member: id.leader_id.node_id, index: id.index }
    }
}

impl From<LogIdRecord> for LogId {
    fn from(record: LogIdRecord) -> Self {
        LogId { leader_id: LeaderId { term: record.term, node_id: record.member }, index: record.index }
    }
}

#[derive(Serialize, Deserialize)]
pub(crate) struct VoteRecord {
    term: u64,
    member: u64,
    committed: bool,
}

impl From<&Vote> for VoteRecord {
    fn from(vote: &Vote) -> Self {
        Self { term: vote.leader_id.term, member: vote.leader_id.node_id, committed: vote.committed }
    }
}

impl From<VoteRecord> for Vote {
    fn from(record: VoteRecord) -> Self {
        Vote { leader_id: LeaderId { term: record.term, node_id: record.member }, committed: record.committed }
    }
}

/// As the first version wrote it: members had no name. Only read.
#[derive(Serialize, Deserialize)]
struct NamelessMembershipRecord {
    configs: Vec<BTreeSet<u64>>,
    members: BTreeMap<u64, String>,
}

impl From<NamelessMembershipRecord> for MembershipRecord {
    fn from(record: NamelessMembershipRecord) -> Self {
        let member = |(id, address)| (id, MemberRecord { name: String::new(), address });
        Self { configs: record.configs, members: record.members.into_iter().map(member).collect() }
    }
}

#[derive(Serialize, Deserialize)]
struct MemberRecord {
    name: String,
    address: String,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct MembershipRecord {
    configs: Vec<BTreeSet<u64>>,
    members: BTreeMap<u64, MemberRecord>,
}

impl From<&MembershipOf> for MembershipRecord {
    fn from(membership: &MembershipOf) -> Self {
        let member = |(id, member): (&u64, &Member)| {
            (*id, MemberRecord { name: member.name.clone(), address: member.address.clone() })
        };
        Self { configs: membership.get_joint_config().clone(), members: membership.nodes().map(member).collect() }
    }
}

impl MembershipRecord {
    pub(crate) fn into_membership(self) -> io::Result<MembershipOf> {
        // An empty membership is what a member has before it is told of its cluster; openraft's constructor refuses it.
        if self.configs.is_empty() && self.members.is_empty() {
            return Ok(Membership::default());
        }
        let member = |(id, record): (u64, MemberRecord)| (id, Member { name: record.name, address: record.address });
        let members: BTreeMap<u64, Member> = self.members.into_iter().map(member).collect();
        Membership::new(self.configs, members).map_err(|e| corrupt(format!("membership: {e}")))
    }
}

#[derive(Serialize, Deserialize)]
enum PreconditionRecord<'a> {
    #[serde(borrow)]
    Absent(Raw<'a>),
    At(Raw<'a>, u64),
    Present(Raw<'a>),
}

#[derive(Serialize, Deserialize)]
pub(crate) struct TxnRecord<'a> {
    #[serde(borrow)]
    preconditions: Vec<PreconditionRecord<'a>>,
    puts: Vec<(Raw<'a>, Raw<'a>)>,
    deletes: Vec<Raw<'a>>,
}

impl<'a> From<&'a Txn> for TxnRecord<'a> {
    fn from(txn: &'a Txn) -> Self {
        let precondition = |p: &'a Precondition| match p {
            Precondition::Absent(key) => PreconditionRecord::Absent(Raw(key)),
            Precondition::At(key, revision) => PreconditionRecord::At(Raw(key), revision.0),
            Precondition::Present(key) => PreconditionRecord::Present(Raw(key)),
        };
        Self {
            preconditions: txn.preconditions.iter().map(precondition).collect(),
            puts: txn.puts.iter().map(|(key, value)| (Raw(key), Raw(value))).collect(),
            deletes: txn.deletes.iter().map(|key| Raw(key)).collect(),
        }
    }
}

impl From<TxnRecord<'_>> for Txn {
    fn from(record: TxnRecord<'_>) -> Self {
        let precondition = |p: &PreconditionRecord<'_>| match p {
            PreconditionRecord::Absent(key) => Precondition::Absent(key.to_bytes()),
            PreconditionRecord::At(key, revision) => Precondition::At(key.to_bytes(), Revision(*revision)),
            PreconditionRecord::Present(key) => Precondition::Present(key.to_bytes()),
        };
        Self {
            preconditions: record.preconditions.iter().map(precondition).collect(),
            puts: record.puts.iter().map(|(key, value)| (key.to_bytes(), value.to_bytes())).collect(),
            deletes: record.deletes.iter().map(Raw::to_bytes).collect(),
        }
    }
}

/// New forms are added at the end, so that older ones stay readable.
#[derive(Serialize, Deserialize)]
enum PayloadRecord<'a> {
    Blank,
    /// Only read.
    #[serde(borrow)]
    Txns(Vec<TxnRecord<'a>>),
    /// Only read.
    NamelessMembership(NamelessMembershipRecord),
    Proposal(Option<ProposalIdRecord>, #[serde(borrow)] Vec<TxnRecord<'a>>),
    Membership(MembershipRecord),
}

#[derive(Serialize, Deserialize, Clone, Copy)]
pub(crate) struct ProposalIdRecord {
    member: u64,
    session: u64,
    number: u64,
}

impl From<ProposalId> for ProposalIdRecord {
    fn from(id: ProposalId) -> Self {
        Self { member: id.member, session: id.session, number: id.number }
    }
}

impl From<ProposalIdRecord> for ProposalId {
    fn from(record: ProposalIdRecord) -> Self {
        Self { member: record.member, session: record.session, number: record.number }
    }
}

#[derive(Serialize, Deserialize)]
struct EntryRecord<'a> {
    id: LogIdRecord,
    #[serde(borrow)]
    payload: PayloadRecord<'a>,
}

/// What the state tree as a whole stands for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Checkpoint {
    pub(crate) applied: Option<LogId>,
    pub(crate) membership: StoredMembershipOf,
    pub(crate) revision: Revision,
    /// How many keys there are, and their digest: a state tree that lost a page is noticed at open.
    pub(crate) keys: u64,
    pub(crate) digest: u64,
}

/// `M` is the form of the membership.
#[derive(Serialize, Deserialize)]
struct CheckpointRecord<M> {
    applied: Option<LogIdRecord>,
    membership_id: Option<LogIdRecord>,
    membership: M,
    revision: u64,
    keys: u64,
    digest: u64,
}

fn corrupt(detail: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, detail.into())
}

fn encode<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    encode_as(VERSION, value)
}

fn encode_as<T: Serialize>(version: u8, value: &T) -> io::Result<Vec<u8>> {
    postcard::to_extend(value, vec![version]).map_err(|e| corrupt(format!("encode record: {e}")))
}

fn decode<'a, T: Deserialize<'a>>(what: &str, bytes: &'a [u8]) -> io::Result<T> {
    decode_as(VERSION, what, bytes)
}

fn decode_as<'a, T: Deserialize<'a>>(version: u8, what: &str, bytes: &'a [u8]) -> io::Result<T> {
    match bytes.split_first() {
        Some((found, body)) if *found == version => {
            postcard::from_bytes(body).map_err(|e| corrupt(format!("{what}: {e}")))
        }
        Some((version, _)) => Err(corrupt(format!("{what}: record version {version} is not known"))),
        None => Err(corrupt(format!("{what}: empty record"))),
    }
}

/// Only tests write what the layout before had.
#[cfg(test)]
pub(crate) fn encode_log_id(id: LogId) -> io::Result<Vec<u8>> {
    encode(&LogIdRecord::from(id))
}

pub(crate) fn decode_log_id(bytes: &[u8]) -> io::Result<LogId> {
    decode::<LogIdRecord>("log id", bytes).map(LogId::from)
}

pub(crate) fn encode_vote(vote: &Vote) -> io::Result<Vec<u8>> {
    encode(&VoteRecord::from(vote))
}

pub(crate) fn decode_vote(bytes: &[u8]) -> io::Result<Vote> {
    decode::<VoteRecord>("vote", bytes).map(Vote::from)
}

pub(crate) fn encode_entry(entry: &Entry) -> io::Result<Vec<u8>> {
    let payload = match &entry.payload {
        EntryPayload::Blank => PayloadRecord::Blank,
        EntryPayload::Normal(batch) => {
            PayloadRecord::Proposal(batch.id.map(Into::into), batch.txns.iter().map(TxnRecord::from).collect())
        }
        EntryPayload::Membership(membership) => PayloadRecord::Membership(membership.into()),
    };
    encode(&EntryRecord { id: entry.log_id.into(), payload })
}

pub(crate) fn decode_entry(bytes: &[u8]) -> io::Result<Entry> {
    let record: EntryRecord<'_> = decode("log entry", bytes)?;
    let batch = |id: Option<ProposalIdRecord>, txns: Vec<TxnRecord<'_>>| {
        EntryPayload::Normal(Batch {
            id: id.map(Into::into),
            txns: Arc::new(txns.into_iter().map(Txn::from).collect()),
        })
    };
    let payload = match record.payload {
        PayloadRecord::Blank => EntryPayload::Blank,
        PayloadRecord::Txns(txns) => batch(None, txns),
        PayloadRecord::Proposal(id, txns) => batch(id, txns),
        PayloadRecord::NamelessMembership(membership) => {
            EntryPayload::Membership(MembershipRecord::from(membership).into_membership()?)
        }
        PayloadRecord::Membership(membership) => EntryPayload::Membership(membership.into_membership()?),
    };
    Ok(Entry { log_id: record.id.into(), payload })
}

/// The id of an encoded entry, without a look at the rest.
pub(crate) fn entry_id(bytes: &[u8]) -> io::Result<LogId> {
    let Some((&VERSION, body)) = bytes.split_first() else {
        // It says what is wrong with it.
        return decode_entry(bytes).map(|entry| entry.log_id);
    };
    let (id, _) = postcard::take_from_bytes::<LogIdRecord>(body).map_err(|e| corrupt(format!("log entry: {e}")))?;
    Ok(id.into())
}

pub(crate) fn encode_checkpoint(checkpoint: &Checkpoint) -> io::Result<Vec<u8>> {
    let record = CheckpointRecord::<MembershipRecord> {
        applied: checkpoint.applied.map(Into::into),
        membership_id: checkpoint.membership.log_id().map(Into::into),
        membership: checkpoint.membership.membership().into(),
        revision: checkpoint.revision.0,
        keys: checkpoint.keys,
        digest: checkpoint.digest,
    };
    encode_as(CHECKPOINT_VERSION, &record)
}

pub(crate) fn decode_checkpoint(bytes: &[u8]) -> io::Result<Checkpoint> {
    let record: CheckpointRecord<MembershipRecord> = match bytes.first() {
        Some(&CHECKPOINT_VERSION) => decode_as(CHECKPOINT_VERSION, "checkpoint", bytes)?,
        _ => {
            let record: CheckpointRecord<NamelessMembershipRecord> = decode("checkpoint", bytes)?;
            CheckpointRecord {
                applied: record.applied,
                membership_id: record.membership_id,
                membership: record.membership.into(),
                revision: record.revision,
                keys: record.keys,
                digest: record.digest,
            }
        }
    };
    Ok(Checkpoint {
        applied: record.applied.map(Into::into),
        membership: StoredMembership::new(record.membership_id.map(Into::into), record.membership.into_membership()?),
        revision: Revision(record.revision),
        keys: record.keys,
        digest: record.digest,
    })
}

#[derive(Serialize, Deserialize)]
struct RegisterRecord {
    sessions: BTreeMap<u64, SessionRecord>,
    removed: Vec<u64>,
}

#[derive(Serialize, Deserialize)]
struct SessionRecord {
    session: u64,
    number: u64,
    committed: Vec<Option<u64>>,
}

pub(crate) fn encode_register(register: &Register) -> io::Result<Vec<u8>> {
    let session = |(member, session): (&u64, &Arc<Session>)| {
        let committed = session.committed.iter().map(|revision| revision.map(|revision| revision.0)).collect();
        (*member, SessionRecord { session: session.session, number: session.number, committed })
    };
    encode(&RegisterRecord {
        sessions: register.sessions.iter().map(session).collect(),
        removed: register.removed.iter().copied().collect(),
    })
}

pub(crate) fn decode_register(bytes: &[u8]) -> io::Result<Register> {
    let record: RegisterRecord = decode("register", bytes)?;
    let session = |(member, record): (u64, SessionRecord)| {
        let committed = record.committed.into_iter().map(|revision| revision.map(Revision)).collect();
        (member, Arc::new(Session { session: record.session, number: record.number, committed }))
    };
    Ok(Register {
        sessions: record.sessions.into_iter().map(session).collect(),
        removed: record.removed.into_iter().collect(),
    })
}

/// One key's value in the state tree. Written by hand: it is the bulk of the data.
pub(crate) fn encode_versioned(versioned: &Versioned) -> Vec<u8> {
    let mut record = Vec::with_capacity(9 + versioned.value.len());
    record.push(VERSION);
    record.extend_from_slice(&versioned.revision.0.to_le_bytes());
    record.extend_from_slice(&versioned.value);
    record
}

pub(crate) fn decode_versioned(bytes: &[u8]) -> io::Result<Versioned> {
    match bytes.split_first() {
        Some((&VERSION, body)) => {
            let (revision, value) = body.split_first_chunk().ok_or_else(|| corrupt("value: record is too short"))?;
            let revision = Revision(u64::from_le_bytes(*revision));
            Ok(Versioned { value: Bytes::copy_from_slice(value), revision })
        }
        Some((version, _)) => Err(corrupt(format!("value: record version {version} is not known"))),
        None => Err(corrupt("value: empty record")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn entries_survive_a_round_trip() {
        let txn = Txn {
            preconditions: vec![
                Precondition::Absent(key("a")),
                Precondition::At(key("b"), Revision(300)),
                Precondition::Present(key("")),
            ],
            puts: vec![(key("a"), Bytes::from(vec![7; 5000])), (key("b"), Bytes::new())],
            deletes: vec![key("c")],
        };
        let id = LogId { leader_id: LeaderId { term: 3, node_id: 1 }, index: 900 };
        let members =
            BTreeMap::from([(1, Member { name: "a".into(), address: "10.0.0.1:6443".into() }), (2, Member::default())]);
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(Batch { id: None, txns: Arc::new(vec![txn.clone(), Txn::default()]) }),
            EntryPayload::Normal(Batch {
                id: Some(ProposalId { member: 7, session: 2, number: 3 }),
                txns: Arc::new(vec![txn]),
            }),
            EntryPayload::Membership(Membership::new(vec![BTreeSet::from([1])], members).unwrap()),
        ] {
            let entry = Entry { log_id: id, payload };
            let encoded = encode_entry(&entry).unwrap();
            assert_eq!(decode_entry(&encoded).unwrap(), entry);
            assert_eq!(entry_id(&encoded).unwrap(), id);
        }
    }

    #[test]
    fn what_the_first_version_wrote_is_read() {
        let id = LogIdRecord { term: 1, member: 1, index: 4 };
        let membership = || NamelessMembershipRecord {
            configs: vec![BTreeSet::from([1])],
            members: BTreeMap::from([(1, "a:1".to_string())]),
        };
        let member = |membership: &MembershipOf| membership.get_node(&1).cloned();
        let expected = Some(Member { name: String::new(), address: "a:1".into() });

        let record = encode(&EntryRecord { id, payload: PayloadRecord::NamelessMembership(membership()) }).unwrap();
        let EntryPayload::Membership(read) = decode_entry(&record).unwrap().payload else { panic!() };
        assert_eq!(member(&read), expected);
        let record = encode(&EntryRecord { id, payload: PayloadRecord::Txns(vec![]) }).unwrap();
        assert!(matches!(decode_entry(&record).unwrap().payload, EntryPayload::Normal(Batch { id: None, .. })));

        let record = CheckpointRecord {
            applied: Some(id),
            membership_id: Some(id),
            membership: membership(),
            revision: 3,
            keys: 2,
            digest: 1,
        };
        let read = decode_checkpoint(&encode(&record).unwrap()).unwrap();
        assert_eq!((read.revision, member(read.membership.membership())), (Revision(3), expected));
        let again = decode_checkpoint(&encode_checkpoint(&read).unwrap()).unwrap();
        assert_eq!(again.membership, read.membership);
    }

    #[test]
    fn an_unknown_version_is_an_error() {
        let mut record = encode_versioned(&Versioned { value: key("v"), revision: Revision(1) });
        assert!(decode_versioned(&record).is_ok());
        record[0] = 9;
        assert!(decode_versioned(&record).is_err());
        assert!(decode_entry(&[]).is_err());
        assert!(decode_entry(&[VERSION, 200, 200]).is_err());
    }
}
