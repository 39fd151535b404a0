//! How a fresh member becomes one of the group: it asks until it is a voter.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::JoinError;
use crate::disk::identity::Standing;
use crate::group::Group;
use crate::wire::hello::HelloError;
use crate::wire::link::{Chain, LinkError};
use crate::wire::message::{Answer, Failure, MemberFailure, Request};

/// How long the leader may take to add a learner.
const JOIN_TIMEOUT: Duration = Duration::from_secs(20);

/// Between rounds over all seeds that brought nothing.
const ROUND_PAUSE: Duration = Duration::from_millis(500);

/// A learner asks again after this long: a leader that was lost may have lost the request, too.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Redirections that are followed before the seeds' turn comes again.
const REDIRECTIONS_MAX: usize = 4;

pub(crate) type Joined = Option<Result<(), JoinError>>;

impl Group {
    /// Joins the group that the seeds belong to, and says so in `joined`. Ends with `stop`.
    pub(crate) async fn join(self: Arc<Self>, seeds: Vec<String>, joined: watch::Sender<Joined>) {
        // Noted on disk, so that a restart knows of it, too.
        let mut standing = self.noted.subscribe();
        let outcome = tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(JoinError::Stopped),
            reached = standing.wait_for(|standing| *standing != Standing::Joining) => match reached.as_deref() {
                Ok(Standing::Member) => Ok(()),
                Ok(_) => Err(JoinError::Removed),
                Err(_) => Err(JoinError::Stopped),
            },
            error = self.ask_to_join(&seeds) => Err(error),
        };
        match &outcome {
            Ok(()) => tracing::info!(member = format!("{:016x}", self.member()), "joined the group as a voter"),
            Err(JoinError::Stopped) => {}
            Err(error) => tracing::error!(error = %Chain(error), "this member does not join the group"),
        }
        joined.send_replace(Some(outcome));
    }

    /// Asks again and again, and returns only when that is hopeless.
    async fn ask_to_join(&self, seeds: &[String]) -> JoinError {
        loop {
            let mut addresses: VecDeque<String> = seeds.iter().cloned().collect();
            let mut redirections = 0;
            while let Some(address) = addresses.pop_front() {
                let Some(record) = self.record() else { return JoinError::Stopped };
                let request = Request::Join { name: record.name, address: record.address };
                match self.links.seed(&address).call(&request, JOIN_TIMEOUT).await {
                    Ok(Answer::Done) => {
                        tracing::info!(address, "a learner of the group; catching up");
                        tokio::time::sleep(ASK_AGAIN).await;
                    }
                    Ok(Answer::Failed(Failure::NotLeader(Some((_, leader))))) if redirections < REDIRECTIONS_MAX => {
                        redirections += 1;
                        addresses.push_front(leader);
                    }
                    Ok(Answer::Failed(Failure::Member(MemberFailure::Full(voters)))) => {
                        return JoinError::Full(voters as usize);
                    }
                    Ok(Answer::Failed(Failure::Removed | Failure::Member(MemberFailure::Removed(_)))) => {
                        return JoinError::Removed;
                    }
                    Ok(answer) => tracing::debug!(address, ?answer, "did not join yet"),
                    Err(LinkError::Hello { source, .. }) => match &*source {
                        HelloError::Removed(_) => return JoinError::Removed,
                        HelloError::Versions { .. } | HelloError::OtherCluster { .. } => {
                            return JoinError::Refused { seed: address, reason: source.to_string() };
                        }
                        HelloError::NotOurs | HelloError::OtherMember { .. } | HelloError::Io(_) => {
                            tracing::debug!(address, error = %Chain(&*source), "seed does not answer as a member");
                        }
                    },
                    Err(error) => tracing::debug!(address, error = %Chain(&error), "seed was not reached"),
                }
            }
            tokio::time::sleep(ROUND_PAUSE).await;
        }
    }
}
