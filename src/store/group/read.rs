//! The way of a linearizable read: the leader says up to where its log is committed, after a majority confirmed that it
//! still leads (ReadIndex); whoever has applied that has seen every write that was acknowledged before. No clock plays a
//! part, so that a machine that was suspended reads nothing old.
//!
//! Reads that wait together share one round.

use std::sync::Arc;

use openraft::ReadPolicy;
use openraft::errors::RaftError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::ReadError;
use crate::group::{Group, Leader};
use crate::wire::message::{Answer, Failure, Request};

/// Reads that wait for the next round. Whoever comes then waits too.
pub(crate) const READS_MAX: usize = 1024;

pub(crate) type ReadAnswer = oneshot::Sender<Result<(), ReadError>>;

impl Group {
    /// Answers reads, round by round. Ends with `stop`.
    pub(crate) async fn answer_reads(self: Arc<Self>, mut reads: mpsc::Receiver<ReadAnswer>) {
        loop {
            let first = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                // Cancel-safe: a read that was not taken stays queued.
                read = reads.recv() => match read {
                    Some(read) => read,
                    None => return,
                },
            };
            let mut round = vec![first];
            while round.len() < READS_MAX
                && let Ok(read) = reads.try_recv()
            {
                round.push(read);
            }
            let deadline = Instant::now() + self.timing.leader_timeout;
            let caught_up = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                caught_up = self.catch_up(deadline) => caught_up,
            };
            if caught_up.is_err() {
                self.metrics.reads_failed.inc_by(round.len() as u64);
            }
            for read in round {
                // Whoever gave up waiting does not need the answer.
                let _ = read.send(match &caught_up {
                    Ok(()) => Ok(()),
                    Err(ReadError::Stopped) => Err(ReadError::Stopped),
                    Err(_) => Err(ReadError::NoLeader),
                });
            }
        }
    }

    /// Returns when this member has applied what was committed when it was called.
    async fn catch_up(&self, deadline: Instant) -> Result<(), ReadError> {
        loop {
            let leader = self.leader();
            let index = match &leader {
                Leader::Unknown => None,
                Leader::Here => self.while_leading(&leader, deadline, self.lead_read_index()).await,
                Leader::At(id, address) => {
                    let link = self.links.to(*id, address);
                    let timeout = self.timing.election_timeout_max * 2;
                    let asking = link.call(&Request::ReadIndex, timeout);
                    match self.while_leading(&leader, deadline, asking).await {
                        Some(Ok(Answer::ReadIndex(index))) => Some(Ok(index)),
                        _ => None,
                    }
                }
            };
            match index {
                Some(Ok(index)) => {
                    let mut applied = self.machine.applied();
                    let applied = applied.wait_for(|applied| *applied >= index);
                    return match tokio::time::timeout_at(deadline, applied).await {
                        Ok(Ok(_)) => Ok(()),
                        Ok(Err(_)) => Err(ReadError::Stopped),
                        Err(_) => Err(ReadError::NoLeader),
                    };
                }
                Some(Err(Failure::Other(_))) => return Err(ReadError::Stopped),
                _ => {}
            }
            if Instant::now() >= deadline {
                return Err(ReadError::NoLeader);
            }
            self.pause(&leader, deadline).await;
        }
    }

    /// As the leader: up to where a reader must have applied to have seen everything acknowledged so far.
    pub(crate) async fn lead_read_index(&self) -> Result<u64, Failure> {
        match self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => Ok(linearizer.read_log_id().index()),
            Err(RaftError::APIError(_)) => Err(Failure::NotLeader(None)),
            Err(RaftError::Fatal(_)) => Err(Failure::Other("stopped".to_string())),
        }
    }
}
