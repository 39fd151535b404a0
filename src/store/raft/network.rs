//! openraft's questions to other members, over our links.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesOrdered;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{Backoff, RPCOption, RPCTypes};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{AnyError, RaftNetworkFactory, RaftNetworkV2};
use tokio::time::Instant;
use tracing::Instrument;

use crate::MemberId;
use crate::metrics::Metrics;
use crate::mvcc;
use crate::raft::machine::Frozen;
use crate::raft::{Member, SnapshotOf, Types, Vote};
use crate::wire::link::{Chain, Link, LinkError, Links};
use crate::wire::message::{Answer, Failure, Request, SnapshotEnd, SnapshotHead};
use crate::wire::transfer;

/// How long a member may take to put entries on its disk.
const APPEND_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a part of a snapshot may take, and how long its installation.
const PART_TIMEOUT: Duration = Duration::from_secs(20);
const INSTALL_TIMEOUT: Duration = Duration::from_secs(300);

/// Parts of a snapshot on their way at once.
const PARTS_AHEAD: usize = 4;

/// A member that was not reached is asked again after this long: long enough to cost nothing, short enough not to be
/// noticed when it is back.
const RETRY_PAUSE: Duration = Duration::from_millis(150);

#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) own: MemberId,
    pub(crate) links: Arc<Links>,
    pub(crate) metrics: Metrics,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: MemberId, node: &Member) -> Client {
        let link = self.links.to(target, &node.address);
        Client { own: self.own, target, link, metrics: self.metrics.clone() }
    }
}

/// The way to one member.
pub(crate) struct Client {
    own: MemberId,
    target: MemberId,
    link: Arc<Link>,
    metrics: Metrics,
}

/// An answer of the wrong kind, or none.
fn failed(answer: &Answer) -> AnyError {
    match answer {
        Answer::Failed(Failure::Removed) => AnyError::error("this member was removed from the group"),
        Answer::Failed(failure) => AnyError::error(format!("member answers: {failure:?}")),
        _ => AnyError::error("member answers another question"),
    }
}

impl Client {
    async fn ask(&self, kind: RPCTypes, request: &Request, timeout: Duration) -> Result<Answer, RPCError<Types>> {
        match self.link.call(request, timeout).await {
            // It was heard, but cannot be answered: by a member that stops, or one that removed us.
            Ok(answer @ Answer::Failed(_)) => Err(RPCError::Unreachable(Unreachable::new(&failed(&answer)))),
            Ok(answer) => Ok(answer),
            Err(LinkError::Timeout(_)) => {
                Err(RPCError::Timeout(Timeout { action: kind, id: self.own, target: self.target, timeout }))
            }
            Err(error) if error.sent() => Err(RPCError::Network(NetworkError::new(&error))),
            Err(error) => Err(RPCError::Unreachable(Unreachable::new(&error))),
        }
    }

    async fn send_snapshot(&self, vote: Vote, snapshot: SnapshotOf<Frozen>) -> Result<Vote, LinkError> {
        let state = snapshot.snapshot;
        let invalid = |answer: Answer| {
            let source = Arc::new(io::Error::other(failed(&answer).to_string()));
            LinkError::Answer { address: format!("member {:016x}", self.target), source }
        };
        let head = SnapshotHead {
            vote,
            meta: snapshot.meta,
            revision: state.space().revision,
            keys: state.space().map.len() as u64,
            register: state.register().clone(),
        };
        match self.link.call(&Request::SnapshotBegin(head), PART_TIMEOUT).await? {
            Answer::Done => {}
            answer => return Err(invalid(answer)),
        }
        let mut on_their_way = FuturesOrdered::new();
        let mut parts = 0;
        for part in transfer::parts(&state) {
            let part = part.map_err(|source| LinkError::Unsendable(Arc::new(source)))?;
            let bytes = part.bytes.len() as u64;
            let request = Request::SnapshotPart(part);
            on_their_way.push_back(async move { self.link.call(&request, PART_TIMEOUT).await });
            parts += 1;
            self.metrics.snapshot_sent_bytes.inc_by(bytes);
            if on_their_way.len() >= PARTS_AHEAD
                && let Some(answer) = on_their_way.next().await
            {
                match answer? {
                    Answer::Done => {}
                    answer => return Err(invalid(answer)),
                }
            }
        }
        while let Some(answer) = on_their_way.next().await {
            match answer? {
                Answer::Done => {}
                answer => return Err(invalid(answer)),
            }
        }
        let digest = mvcc::digest_in_steps(&state.content()).await;
        let end = Request::SnapshotEnd(SnapshotEnd { parts, digest });
        match self.link.call(&end, INSTALL_TIMEOUT).await? {
            Answer::SnapshotInstalled(vote) => Ok(vote),
            answer => Err(invalid(answer)),
        }
    }
}

impl RaftNetworkV2<Types> for Client {
    type SnapshotData = Frozen;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        // What has entries waits for a disk; what has none is a heartbeat.
        let timeout = if request.entries.is_empty() { option.hard_ttl() } else { APPEND_TIMEOUT };
        match self.ask(RPCTypes::AppendEntries, &Request::Append(request), timeout).await? {
            Answer::Append(response) => Ok(response),
            answer => Err(RPCError::Unreachable(Unreachable::new(&failed(&answer)))),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        match self.ask(RPCTypes::Vote, &Request::Vote(request), option.hard_ttl()).await? {
            Answer::Vote(response) => Ok(response),
            answer => Err(RPCError::Unreachable(Unreachable::new(&failed(&answer)))),
        }
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        match self.ask(RPCTypes::Vote, &Request::PreVote(request), option.hard_ttl()).await? {
            Answer::Vote(response) => Ok(response),
            answer => Err(RPCError::Unreachable(Unreachable::new(&failed(&answer)))),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<Frozen>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let start = Instant::now();
        let keys = snapshot.snapshot.space().map.len();
        let span = tracing::info_span!("send snapshot", to = format!("{:016x}", self.target), keys);
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = self.send_snapshot(vote, snapshot).instrument(span) => match sent {
                Ok(vote) => {
                    let took = start.elapsed();
                    self.metrics.snapshot_send_seconds.observe(took.as_secs_f64());
                    tracing::info!(to = format!("{:016x}", self.target), keys, ?took, "snapshot sent");
                    Ok(SnapshotResponse::new(vote))
                }
                Err(error) => {
                    self.metrics.snapshot_send_failures.inc();
                    tracing::warn!(to = format!("{:016x}", self.target), error = %Chain(&error), "snapshot was not sent");
                    // Tried anew after a pause, from the beginning, and from a newer state.
                    Err(StreamingError::Unreachable(Unreachable::new(&error)))
                }
            },
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        match self.ask(RPCTypes::TransferLeader, &Request::TransferLeader(request), option.hard_ttl()).await? {
            Answer::TransferLeader(response) => Ok(response),
            answer => Err(RPCError::Unreachable(Unreachable::new(&failed(&answer)))),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(RETRY_PAUSE)))
    }
}
