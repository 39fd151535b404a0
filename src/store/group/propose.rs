//! The way of a write: to the leader, wherever that is, until its outcome is known or time is up.
//!
//! A proposal has an id that the replicated state remembers. So one whose answer was lost, by a broken connection or a
//! change of leaders, is simply proposed again: it is applied once, and the second answer is the first one's.

use std::io;

use openraft::errors::{ClientWriteError, RaftError};
use tokio::time::Instant;

use crate::disk::space;
use crate::group::{Group, Leader};
use crate::raft::{Batch, Outcome};
use crate::wire::link::LinkError;
use crate::wire::message::{Answer, Failure, Request};

#[derive(Debug)]
pub(crate) enum ProposeError {
    /// Nothing was proposed.
    NoLeader,
    /// It may or may not be applied, now or a little later.
    Unknown,
    /// Nothing was proposed.
    Unwritable(io::Error),
    /// As `Unknown`; nothing more will come of this store.
    Stopped,
}

/// What became of one attempt.
enum Attempt {
    Done(Vec<Outcome>),
    /// It was not proposed.
    Not,
    Unwritable(io::Error),
    /// It may have been.
    Lost,
    Stopped,
}

impl Group {
    /// Proposes `batch` until `deadline`. There must be no other of this member under way.
    pub(crate) async fn propose(&self, batch: &Batch, deadline: Instant) -> Result<Vec<Outcome>, ProposeError> {
        let mut lost = false;
        loop {
            let leader = self.leader();
            let attempt = match &leader {
                Leader::Unknown => Attempt::Not,
                // Given up, it was proposed.
                Leader::Here | Leader::At(..) => {
                    let attempt = self.attempt(&leader, batch, deadline);
                    self.while_leading(&leader, deadline, attempt).await.unwrap_or(Attempt::Lost)
                }
            };
            match attempt {
                Attempt::Done(outcomes) if outcomes.len() == batch.txns.len() => return Ok(outcomes),
                Attempt::Done(_) | Attempt::Lost => lost = true,
                Attempt::Not => {}
                Attempt::Unwritable(error) if !lost => return Err(ProposeError::Unwritable(error)),
                Attempt::Unwritable(_) => {}
                Attempt::Stopped => return Err(ProposeError::Stopped),
            }
            if self.stop.is_cancelled() {
                return Err(ProposeError::Stopped);
            }
            if Instant::now() >= deadline {
                return Err(if lost { ProposeError::Unknown } else { ProposeError::NoLeader });
            }
            self.pause(&leader, deadline).await;
        }
    }

    async fn attempt(&self, leader: &Leader, batch: &Batch, deadline: Instant) -> Attempt {
        let Leader::At(id, address) = leader else {
            return match self.lead_propose(batch.clone()).await {
                Ok(outcomes) => Attempt::Done(outcomes),
                Err(Failure::NotLeader(_)) => Attempt::Not,
                Err(Failure::Unwritable(why)) => Attempt::Unwritable(io::Error::new(io::ErrorKind::StorageFull, why)),
                Err(Failure::Unknown) => Attempt::Lost,
                Err(_) => Attempt::Stopped,
            };
        };
        let timeout = deadline.saturating_duration_since(Instant::now());
        match self.links.to(*id, address).call(&Request::Propose(batch.clone()), timeout).await {
            Ok(Answer::Outcomes(outcomes)) => Attempt::Done(outcomes),
            Ok(Answer::Failed(Failure::NotLeader(_) | Failure::Removed)) => Attempt::Not,
            Ok(Answer::Failed(Failure::Unwritable(why))) => {
                Attempt::Unwritable(io::Error::new(io::ErrorKind::StorageFull, why))
            }
            Ok(_) => Attempt::Lost,
            Err(LinkError::Unsendable(source)) => Attempt::Unwritable(io::Error::new(source.kind(), source)),
            Err(error) if error.sent() => Attempt::Lost,
            Err(_) => Attempt::Not,
        }
    }

    /// Proposes as the leader, and waits for the outcome.
    pub(crate) async fn lead_propose(&self, batch: Batch) -> Result<Vec<Outcome>, Failure> {
        let bytes = batch.txns.iter().map(crate::batch::txn_bytes).sum();
        self.writable(bytes).map_err(|error| Failure::Unwritable(error.to_string()))?;
        match self.raft.client_write(batch).await {
            Ok(response) => Ok(response.data.0),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(leader))) => {
                let leader = leader.leader_id.zip(leader.leader_node.map(|member| member.address));
                Err(Failure::NotLeader(leader))
            }
            Err(RaftError::APIError(_)) => Err(Failure::Unknown),
            Err(RaftError::Fatal(error)) => {
                tracing::error!(%error, "raft has stopped");
                Err(Failure::Other("stopped".to_string()))
            }
        }
    }

    /// Refuses what would have to wait for a disk that fails, or would fill it: a refusal is a clear answer, and what is
    /// in flight when the disk is full has none.
    pub(crate) fn writable(&self, bytes: usize) -> io::Result<()> {
        if let Some(error) = self.failures.borrow().as_ref() {
            return Err(io::Error::new(error.kind(), error.to_string()));
        }
        let free = space::free_bytes(&self.dir)?;
        if free < self.free_bytes_min.saturating_add(4 * bytes as u64) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        Ok(())
    }
}
