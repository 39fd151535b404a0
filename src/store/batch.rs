//! Puts the Txns that wait into one Raft entry, so that they share one append and one fsync.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use openraft::errors::{ClientWriteError, RaftError};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::disk::space;
use crate::disk::thread::Disk;
use crate::raft::{Batch, Outcome, Raft};
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
    pub(crate) answer: oneshot::Sender<Answer>,
}

pub(crate) struct Batcher {
    pub(crate) proposals: mpsc::Receiver<Proposal>,
    pub(crate) raft: Raft,
    pub(crate) disk: Disk,
    pub(crate) dir: PathBuf,
    pub(crate) free_bytes_min: u64,
}

impl Batcher {
    /// Proposes one entry at a time: what arrives meanwhile makes up the next one. Ends with `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut left_over = None;
        let mut failures = self.disk.failures();
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
            let mut bytes = txn_bytes(&first.txn);
            let mut txns = vec![first.txn];
            let mut answers = vec![first.answer];
            while txns.len() < TXNS_PER_ENTRY_MAX
                && bytes < ENTRY_BYTES
                && let Ok(next) = self.proposals.try_recv()
            {
                bytes += txn_bytes(&next.txn);
                if bytes > ENTRY_BYTES {
                    left_over = Some(next);
                    break;
                }
                txns.push(next.txn);
                answers.push(next.answer);
            }
            if let Err(error) = self.writable(bytes) {
                refuse_all(answers, &Arc::new(error));
                continue;
            }
            let result = tokio::select! {
                biased;
                result = self.raft.client_write(Batch(Arc::new(txns))) => result,
                // The outcome is unknown then, and that is what a dropped answer says.
                () = stop.cancelled() => break,
                // So it is here: what is in flight is written once the disk works again.
                Ok(_) = failures.wait_for(Option::is_some) => continue,
            };
            self.answer(answers, result);
        }
        self.proposals.close();
    }

    /// Refuses what would have to wait for a disk that fails, or would fill it: a refusal is a clear answer, and what is
    /// in flight when the disk is full has none.
    fn writable(&self, bytes: usize) -> io::Result<()> {
        if let Some(error) = self.disk.failed() {
            return Err(io::Error::new(error.kind(), error.to_string()));
        }
        let free = space::free_bytes(&self.dir)?;
        if free < self.free_bytes_min.saturating_add(4 * bytes as u64) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        Ok(())
    }

    fn answer(
        &self,
        answers: Vec<oneshot::Sender<Answer>>,
        result: Result<
            openraft::raft::ClientWriteResponse<crate::raft::Types>,
            RaftError<crate::raft::Types, ClientWriteError<crate::raft::Types>>,
        >,
    ) {
        match result {
            Ok(response) => {
                for (answer, outcome) in answers.into_iter().zip(response.data.0) {
                    // Whoever gave up waiting does not need the answer.
                    let _ = answer.send(match outcome {
                        Outcome::Committed(revision) => Ok(revision),
                        Outcome::Refused { index, current } => Err(CommitError::Refused { index, current }),
                    });
                }
            }
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
                for answer in answers {
                    let _ = answer.send(Err(CommitError::NoLeader));
                }
            }
            // Dropped answers: the outcome is unknown.
            Err(error) => tracing::error!(%error, cause = ?self.disk.failed(), "commit failed"),
        }
    }
}

fn refuse_all(answers: Vec<oneshot::Sender<Answer>>, error: &Arc<io::Error>) {
    tracing::warn!(%error, "writes are refused");
    for answer in answers {
        let _ = answer.send(Err(CommitError::Unwritable(error.clone())));
    }
}
