//! The answering end: hears the questions of one other member, and answers each when it can.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use openraft::raft::AppendEntriesResponse;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::MemberId;
use crate::group::{Group, Leader};
use crate::metrics::Metrics;
use crate::peers::PeerStream;
use crate::raft::Outcome;
use crate::wire::frame::{self, Frame, Kind, Outgoing};
use crate::wire::hello::{self, Agreed, Answerer};
use crate::wire::link::Chain;
use crate::wire::message::{Answer, Failure, Request};
use crate::wire::transfer::Incoming;

const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// Questions of one connection that are worked on at once, and their bytes. Whatever more comes waits in the network.
const AT_ONCE_MAX: usize = 256;
const AT_ONCE_KIB_MAX: usize = 48 << 10;

/// What refused Txns' current values may take up in one answer.
const CURRENT_BYTES_MAX: usize = 8 << 20;

/// Between two lines in the log about connections that are refused.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(30);

/// Says the first of many alike things, and how many there were since, now and then.
#[derive(Debug, Default)]
pub(crate) struct Complaints {
    last: Mutex<Option<Instant>>,
    unsaid: AtomicU64,
}

impl Complaints {
    fn about(&self, error: &dyn std::error::Error) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| last.elapsed() < COMPLAINT_PAUSE) {
            self.unsaid.fetch_add(1, Ordering::Relaxed);
            return;
        }
        *last = Some(Instant::now());
        let unsaid = self.unsaid.swap(0, Ordering::Relaxed);
        tracing::warn!(error = %Chain(error), more_since_last = unsaid, "refused a connection for the store");
    }
}

struct Counted<'a>(&'a Metrics);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.peer_connections.dec();
    }
}

pub(crate) async fn serve(
    group: Arc<Group>,
    complaints: &Complaints,
    mut stream: impl PeerStream + 'static,
) -> io::Result<()> {
    let own = Answerer { versions: group.versions, cluster: group.cluster(), member: group.member() };
    let answering = hello::answer(&mut stream, own, |member| group.machine.is_removed(member));
    let agreed = match tokio::time::timeout(HELLO_TIMEOUT, answering).await {
        Ok(Ok(agreed)) => agreed,
        Ok(Err(error)) => {
            group.metrics.peer_refused.inc();
            complaints.about(&error);
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        Err(_) => {
            group.metrics.peer_refused.inc();
            return Err(io::Error::from(io::ErrorKind::TimedOut));
        }
    };
    group.metrics.peer_connections.inc();
    let _counted = Counted(&group.metrics);
    let (mut reading, writing) = tokio::io::split(stream);
    let (outgoing, frames) = frame::queue();
    let closed = group.stop.child_token();
    // Ends when this call does, however it ends.
    let _close = closed.clone().drop_guard();
    let mut work = JoinSet::new();
    work.spawn({
        let closed = closed.clone();
        async move {
            let _close = closed.clone().drop_guard();
            // The error shows at the reading end, too.
            let _ = closed.run_until_cancelled(frame::write(writing, frames, closed.clone())).await;
        }
    });
    let mut answering = Answering {
        group: group.clone(),
        agreed,
        outgoing,
        count: Arc::new(Semaphore::new(AT_ONCE_MAX)),
        kib: Arc::new(Semaphore::new(AT_ONCE_KIB_MAX)),
        work,
        incoming: None,
    };
    let answering = answering.run(&mut reading, &closed);
    let result = closed.run_until_cancelled(answering).await.unwrap_or(Ok(()));
    if let Err(error) = &result
        && error.kind() == io::ErrorKind::InvalidData
    {
        group.metrics.peer_refused.inc();
        complaints.about(error);
    }
    result
}

struct Answering {
    group: Arc<Group>,
    agreed: Agreed,
    outgoing: Outgoing,
    count: Arc<Semaphore>,
    kib: Arc<Semaphore>,
    /// Ends with the connection: nobody could hear the answers.
    work: JoinSet<()>,
    incoming: Option<(Instant, Incoming)>,
}

impl Answering {
    async fn run(
        &mut self,
        reading: &mut (impl tokio::io::AsyncRead + Unpin),
        closed: &CancellationToken,
    ) -> io::Result<()> {
        while let Some(frame) = frame::read(reading).await? {
            if frame.kind != Kind::Request {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer where nothing was asked"));
            }
            while self.work.try_join_next().is_some() {}
            let Frame { number, body, .. } = frame;
            let kib = u32::try_from(body.len() / 1024 + 1).unwrap_or(u32::MAX);
            // Never closed.
            let Ok(one) = self.count.clone().acquire_owned().await else { return Ok(()) };
            let Ok(kib) = self.kib.clone().acquire_many_owned(kib).await else { return Ok(()) };
            let request = Request::decode(self.agreed.version, &body)?;
            let body_bytes = body.len();
            drop(body);

            let from = self.agreed.member;
            if self.group.machine.is_removed(from) {
                self.answer(number, Answer::Failed(Failure::Removed)).await?;
                continue;
            }
            // A snapshot's parts in their order; all else as it comes.
            let request = match self.receive(request) {
                Received::Answer(answer) => {
                    self.answer(number, answer).await?;
                    continue;
                }
                Received::Install(start, incoming, end) => Work::Install(start, incoming, end),
                Received::Other(request) => Work::Answer(request),
            };
            let (group, outgoing, version) = (self.group.clone(), self.outgoing.clone(), self.agreed.version);
            let closed = closed.clone();
            self.work.spawn(async move {
                let _held = (one, kib);
                let answer = match request {
                    Work::Install(start, incoming, end) => install(&group, start, *incoming, end).await,
                    Work::Answer(request) => answer(&group, from, request, body_bytes).await,
                };
                if send(&outgoing, version, number, answer).await.is_err() {
                    closed.cancel();
                }
            });
        }
        Ok(())
    }

    async fn answer(&self, number: u32, answer: Answer) -> io::Result<()> {
        send(&self.outgoing, self.agreed.version, number, answer).await
    }

    fn receive(&mut self, request: Request) -> Received {
        let failed = |why: String| Received::Answer(Answer::Failed(Failure::Other(why)));
        match request {
            Request::SnapshotBegin(head) => {
                tracing::info!(
                    from = format!("{:016x}", self.agreed.member),
                    keys = head.keys,
                    revision = head.revision.0,
                    "receiving a snapshot"
                );
                self.incoming = Some((Instant::now(), Incoming::new(head)));
                Received::Answer(Answer::Done)
            }
            Request::SnapshotPart(part) => match &mut self.incoming {
                Some((_, incoming)) => match incoming.add(&part) {
                    Ok(()) => Received::Answer(Answer::Done),
                    Err(error) => {
                        tracing::warn!(%error, "a snapshot did not arrive whole");
                        self.incoming = None;
                        failed(error.to_string())
                    }
                },
                None => failed("no snapshot was begun".to_string()),
            },
            Request::SnapshotEnd(end) => match self.incoming.take() {
                Some((start, incoming)) => Received::Install(start, Box::new(incoming), end),
                None => failed("no snapshot was begun".to_string()),
            },
            other => Received::Other(other),
        }
    }
}

enum Received {
    Answer(Answer),
    Install(Instant, Box<Incoming>, crate::wire::message::SnapshotEnd),
    Other(Request),
}

enum Work {
    Install(Instant, Box<Incoming>, crate::wire::message::SnapshotEnd),
    Answer(Request),
}

async fn send(outgoing: &Outgoing, version: u16, number: u32, answer: Answer) -> io::Result<()> {
    let body: Bytes = shorten(answer).encode(version)?;
    outgoing.send(Frame { kind: Kind::Answer, number, body }).await.map_err(io::Error::other)
}

/// Values that refused Txns met may be too long together. Those that do not fit are given up: what became of their Txns is
/// then unknown to who asked, who may ask again.
fn shorten(mut answer: Answer) -> Answer {
    if let Answer::Outcomes(outcomes) = &mut answer {
        let mut bytes = 0;
        for outcome in outcomes {
            if let Outcome::Refused { current: Some(current), .. } = outcome {
                bytes += current.value.len();
                if bytes > CURRENT_BYTES_MAX {
                    *outcome = Outcome::Stale;
                }
            }
        }
    }
    answer
}

async fn install(group: &Group, start: Instant, incoming: Incoming, end: crate::wire::message::SnapshotEnd) -> Answer {
    let failed = |why: String| Answer::Failed(Failure::Other(why));
    let (vote, meta, state) = match incoming.finish(end) {
        Ok(whole) => whole,
        Err(error) => {
            tracing::warn!(%error, "a snapshot did not arrive whole");
            return failed(error.to_string());
        }
    };
    let keys = state.space().map.len();
    let revision = state.space().revision.0;
    let snapshot = openraft::Snapshot { meta, snapshot: state };
    match group.raft.install_full_snapshot(vote, snapshot).await {
        Ok(response) => {
            let took = start.elapsed();
            group.metrics.snapshot_receive_seconds.observe(took.as_secs_f64());
            tracing::info!(keys, revision, ?took, "snapshot installed");
            Answer::SnapshotInstalled(response.vote)
        }
        Err(error) => failed(error.to_string()),
    }
}

async fn answer(group: &Group, from: MemberId, request: Request, body_bytes: usize) -> Answer {
    let stopped = |error: &dyn std::error::Error| Answer::Failed(Failure::Other(error.to_string()));
    match request {
        Request::Append(request) => {
            // The leader comes again when there is room.
            if !request.entries.is_empty()
                && let Err(error) = group.writable(body_bytes)
            {
                tracing::warn!(%error, "entries of the leader are refused");
                return Answer::Failed(Failure::Unwritable(error.to_string()));
            }
            match group.raft.append_entries(request).await {
                Ok(response) => {
                    if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
                        group.hear();
                    }
                    Answer::Append(response)
                }
                Err(error) => stopped(&error),
            }
        }
        Request::PreVote(request) => match group.raft.pre_vote(request).await {
            Ok(response) => Answer::Vote(response),
            Err(error) => stopped(&error),
        },
        Request::Vote(request) => match group.raft.vote(request).await {
            Ok(response) => Answer::Vote(response),
            Err(error) => stopped(&error),
        },
        Request::TransferLeader(request) => match group.raft.handle_transfer_leader(request).await {
            Ok(response) => Answer::TransferLeader(response),
            Err(error) => stopped(&error),
        },
        Request::Propose(batch) => {
            if batch.id.is_none_or(|id| id.member != from) {
                return Answer::Failed(Failure::Other("a proposal of somebody else".to_string()));
            }
            if group.leader() != Leader::Here {
                return not_leader(group);
            }
            match group.lead_propose(batch).await {
                Ok(outcomes) => Answer::Outcomes(outcomes),
                Err(failure) => Answer::Failed(failure),
            }
        }
        Request::ReadIndex => match group.lead_read_index().await {
            Ok(index) => Answer::ReadIndex(index),
            Err(Failure::NotLeader(_)) => not_leader(group),
            Err(failure) => Answer::Failed(failure),
        },
        Request::Join { .. }
        | Request::RemoveMember(_)
        | Request::UpdateMember { .. }
        | Request::TransferLeadership(_)
        | Request::Progress => group.lead(from, &request).await,
        Request::SnapshotBegin(_) | Request::SnapshotPart(_) | Request::SnapshotEnd(_) => {
            Answer::Failed(Failure::Other("a snapshot out of turn".to_string()))
        }
    }
}

fn not_leader(group: &Group) -> Answer {
    Answer::Failed(Failure::NotLeader(match group.leader() {
        Leader::At(id, address) => Some((id, address)),
        Leader::Here | Leader::Unknown => None,
    }))
}
