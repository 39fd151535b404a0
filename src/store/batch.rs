//! Puts the Txns that wait into one Raft entry, so that they share one append and one fsync.

use std::io;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::Instrument;

use crate::group::Group;
use crate::group::propose::ProposeError;
use crate::raft::{Batch, Outcome, ProposalId};
use crate::{CommitError, Precondition, Revision, Txn};

const TXNS_PER_ENTRY_MAX: usize = 512;
/// An entry is closed when it has grown to this; one large Txn may make it longer.
const ENTRY_BYTES: usize = 256 << 10;

/// All keys and values of `txn`.
pub(crate) fn txn_bytes(txn: &Txn) -> usize {
    let preconditions = txn.preconditions.iter().map(|precondition| match precondition {
        Precondition::Absent(key) | Precondition::At(key, _) | Precondition::Present(key) => key.len(),
    });
    let puts = txn.puts.iter().map(|(key, value)| key.len() + value.len());
    let deletes = txn.deletes.iter().map(|key| key.len());
    preconditions.chain(puts).chain(deletes).sum()
}

pub(crate) type Answer = Result<Revision, CommitError>;

#[derive(Debug)]
pub(crate) struct Proposal {
    pub(crate) txn: Txn,
    /// When its caller no longer cares to wait.
    pub(crate) deadline: Instant,
    pub(crate) answer: oneshot::Sender<Answer>,
}

pub(crate) struct Batcher {
    pub(crate) proposals: mpsc::Receiver<Proposal>,
    pub(crate) group: Arc<Group>,
    /// Which start of this member it is.
    pub(crate) session: u64,
}

impl Batcher {
    /// Proposes one entry at a time: what arrives meanwhile makes up the next one. Ends with the group's stop.
    pub(crate) async fn run(mut self) {
        let stop = self.group.stop.clone();
        let mut left_over = None;
        let mut number = 0;
        loop {
            let first = match left_over.take() {
                Some(proposal) => proposal,
                None => tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    // Cancel-safe: a proposal that was not taken stays queued.
                    proposal = self.proposals.recv() => match proposal {
                        Some(proposal) => proposal,
                        None => break,
                    },
                },
            };
            let Some(first) = in_time(first) else { continue };
            let deadline = first.deadline;
            let mut bytes = txn_bytes(&first.txn);
            let mut txns = vec![first.txn];
            let mut answers = vec![first.answer];
            while txns.len() < TXNS_PER_ENTRY_MAX
                && bytes < ENTRY_BYTES
                && let Ok(next) = self.proposals.try_recv()
            {
                let Some(next) = in_time(next) else { continue };
                bytes += txn_bytes(&next.txn);
                if bytes > ENTRY_BYTES {
                    left_over = Some(next);
                    break;
                }
                txns.push(next.txn);
                answers.push(next.answer);
            }
            number += 1;
            let id = ProposalId { member: self.group.member(), session: self.session, number };
            let span = tracing::debug_span!("commit", number, txns = txns.len(), bytes);
            let batch = Batch { id: Some(id), txns: Arc::new(txns) };
            let result = tokio::select! {
                biased;
                result = self.group.propose(&batch, deadline).instrument(span) => result,
                // The outcome is unknown then, and that is what a dropped answer says.
                () = stop.cancelled() => break,
            };
            answer(answers, result);
        }
        self.proposals.close();
    }
}

/// `None` for a proposal that waited so long that its caller is told, or has gone.
fn in_time(proposal: Proposal) -> Option<Proposal> {
    if proposal.answer.is_closed() {
        return None;
    }
    if Instant::now() >= proposal.deadline {
        let _ = proposal.answer.send(Err(CommitError::NoLeader));
        return None;
    }
    Some(proposal)
}

fn answer(answers: Vec<oneshot::Sender<Answer>>, result: Result<Vec<Outcome>, ProposeError>) {
    // Whoever gave up waiting does not need the answer.
    let all = |answers: Vec<oneshot::Sender<Answer>>, error: &dyn Fn() -> CommitError| {
        for answer in answers {
            let _ = answer.send(Err(error()));
        }
    };
    match result {
        Ok(outcomes) => {
            for (answer, outcome) in answers.into_iter().zip(outcomes) {
                let _ = answer.send(match outcome {
                    Outcome::Committed(revision) => Ok(revision),
                    Outcome::Refused { index, current } => Err(CommitError::Refused { index, current }),
                    Outcome::Stale => Err(CommitError::Unknown),
                });
            }
        }
        Err(ProposeError::NoLeader) => all(answers, &|| CommitError::NoLeader),
        Err(ProposeError::Unknown) => all(answers, &|| CommitError::Unknown),
        Err(ProposeError::Unwritable(error)) => {
            tracing::warn!(%error, "writes are refused");
            let error: Arc<io::Error> = Arc::new(error);
            all(answers, &|| CommitError::Unwritable(error.clone()));
        }
        Err(ProposeError::Stopped) => all(answers, &|| CommitError::Stopped),
    }
}
