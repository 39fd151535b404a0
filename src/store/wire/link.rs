//! The asking end: one connection to each other member, opened when it is needed and again when it broke.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;
use crate::peers::{PeerStream, Transport};
use crate::wire::frame::{self, Frame, Kind, Outgoing, SendError};
use crate::wire::hello::{self, Hello, HelloError, WireVersions};
use crate::wire::message::{Answer, Failure, Request};
use crate::{ClusterId, MemberId};

/// A member that was not reached is not tried again for this long.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);

/// A connection on which a question was not answered in time, and nothing was heard for this long, is given up.
const DEAD_AFTER: Duration = Duration::from_secs(2);

/// A member of which nothing was heard for this long, though it was asked, is not reached.
const SILENT_AFTER: Duration = Duration::from_secs(1);

/// Questions that may wait for their answer on one connection.
const WAITING_MAX: usize = 1024;

/// Why a question has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// The question was not sent.
    #[error("connect to {address}")]
    Connect { address: String, source: Arc<io::Error> },
    /// The question was not sent.
    #[error("{address} refused")]
    Hello { address: String, source: Arc<HelloError> },
    /// The question was not sent.
    #[error("this member has no way to others")]
    NoTransport,
    /// The question was not sent.
    #[error("too many questions wait for {0}")]
    Busy(String),
    /// The question was not sent.
    #[error("message cannot be sent")]
    Unsendable(#[source] Arc<io::Error>),
    /// The question may have arrived.
    #[error("connection to {0} broke")]
    Broken(String),
    /// The question may have arrived.
    #[error("no answer from {0} in time")]
    Timeout(String),
    /// The question has arrived.
    #[error("answer from {address}")]
    Answer { address: String, source: Arc<io::Error> },
}

impl LinkError {
    /// Whether the other end may have heard the question.
    pub(crate) fn sent(&self) -> bool {
        matches!(self, Self::Broken(_) | Self::Timeout(_) | Self::Answer { .. })
    }
}

/// Who asks, and what all links have in common.
pub(crate) struct Links {
    own: Own,
    links: Mutex<BTreeMap<MemberId, Arc<Link>>>,
}

#[derive(Clone)]
struct Own {
    cluster: ClusterId,
    member: MemberId,
    versions: WireVersions,
    transport: Option<Arc<dyn Transport>>,
    connect_timeout: Duration,
    tasks: TaskTracker,
    stop: CancellationToken,
    metrics: Metrics,
    /// Another member said that this one was removed.
    removed: Arc<watch::Sender<bool>>,
}

impl Links {
    pub(crate) fn new(
        cluster: ClusterId,
        member: MemberId,
        versions: WireVersions,
        transport: Option<Arc<dyn Transport>>,
        connect_timeout: Duration,
        tasks: TaskTracker,
        stop: CancellationToken,
        metrics: Metrics,
    ) -> Arc<Self> {
        let removed = Arc::new(watch::Sender::new(false));
        let own = Own { cluster, member, versions, transport, connect_timeout, tasks, stop, metrics, removed };
        Arc::new(Self { own, links: Mutex::default() })
    }

    /// Turns true for good when another member says that this one was removed.
    pub(crate) fn removed(&self) -> watch::Receiver<bool> {
        self.own.removed.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<MemberId, Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The link to `member`, which is at `address` now.
    pub(crate) fn to(&self, member: MemberId, address: &str) -> Arc<Link> {
        let mut links = self.lock();
        let link = links.entry(member).or_insert_with(|| Arc::new(Link::new(self.own.clone(), member, address)));
        link.move_to(address);
        link.clone()
    }

    /// A link that nobody else uses, to whoever answers at `address`.
    pub(crate) fn seed(&self, address: &str) -> Link {
        Link::new(self.own.clone(), hello::ANYBODY, address)
    }

    /// Forgets members that are none any more.
    pub(crate) fn retain(&self, is_member: impl Fn(MemberId) -> bool) {
        self.lock().retain(|member, _| is_member(*member));
    }

    /// Whether `member` was heard of lately, or answered the last question; `None` when it was not asked yet.
    pub(crate) fn reachable(&self, member: MemberId) -> Option<bool> {
        let link = self.lock().get(&member)?.clone();
        let state = link.state.borrow();
        match &*state {
            State::Idle => None,
            // A machine that is gone refuses nothing: most of the time somebody is being connected to it.
            State::Connecting { after_failure } => after_failure.then_some(false),
            State::Up(connection) => {
                let answers = connection.answers.load(Ordering::Acquire);
                let heard = *connection.heard.lock().unwrap_or_else(PoisonError::into_inner);
                // An answer may be late where packets get lost; a member that is gone says nothing at all.
                Some(!connection.closed.is_cancelled() && (answers || heard.elapsed() < SILENT_AFTER))
            }
            State::Down { .. } => Some(false),
        }
    }
}

pub(crate) struct Link {
    own: Own,
    member: MemberId,
    address: Mutex<String>,
    state: watch::Sender<State>,
    /// It was said that the member is not reached, and not yet that it is again.
    complained: Arc<AtomicBool>,
}

enum State {
    Idle,
    /// After a failure the member counts as not reached until it is.
    Connecting {
        after_failure: bool,
    },
    Up(Arc<Connection>),
    Down {
        at: Instant,
        error: LinkError,
    },
}

impl Link {
    fn new(own: Own, member: MemberId, address: &str) -> Self {
        let (address, state) = (Mutex::new(address.to_string()), watch::Sender::new(State::Idle));
        Self { own, member, address, state, complained: Arc::default() }
    }

    fn address(&self) -> String {
        self.address.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn move_to(&self, address: &str) {
        let mut current = self.address.lock().unwrap_or_else(PoisonError::into_inner);
        if *current != address {
            *current = address.to_string();
            if let State::Up(connection) = self.state.send_replace(State::Idle) {
                connection.closed.cancel();
            }
        }
    }

    /// Asks, and waits for the answer for at most `timeout`, without the time to connect.
    ///
    /// # Cancel safety
    /// A dropped call may have been heard. Its answer is thrown away.
    pub(crate) async fn call(&self, request: &Request, timeout: Duration) -> Result<Answer, LinkError> {
        let connection = self.connection().await?;
        let answer = connection.call(request, timeout, &self.own.metrics).await?;
        if matches!(answer, Answer::Failed(Failure::Removed)) {
            self.own.removed.send_replace(true);
        }
        Ok(answer)
    }

    /// Who is at the other end, after connecting.
    pub(crate) async fn peer(&self) -> Result<MemberId, LinkError> {
        Ok(self.connection().await?.peer)
    }

    async fn connection(&self) -> Result<Arc<Connection>, LinkError> {
        let mut changes = self.state.subscribe();
        loop {
            let connect = self.state.send_if_modified(|state| {
                let connect = match state {
                    State::Idle => true,
                    State::Connecting { .. } => false,
                    State::Up(connection) => connection.closed.is_cancelled(),
                    State::Down { at, .. } => at.elapsed() >= RECONNECT_PAUSE,
                };
                if connect {
                    *state = State::Connecting { after_failure: !matches!(state, State::Idle) };
                }
                connect
            });
            if connect {
                // Apart from this call, which may be given up before a slow handshake is through.
                let own = self.own.clone();
                let (member, address, state) = (self.member, self.address(), self.state.clone());
                let complained = self.complained.clone();
                self.own.tasks.spawn(async move {
                    let connected = own.connect(member, &address).await;
                    // Tried again and again, but said once.
                    match &connected {
                        Err(error) if !complained.swap(true, Ordering::AcqRel) && !own.stop.is_cancelled() => {
                            let member = format!("{member:016x}");
                            tracing::warn!(member, address, error = %Chain(error), "a member is not reached");
                        }
                        Ok(_) if complained.swap(false, Ordering::AcqRel) => {
                            let member = format!("{member:016x}");
                            tracing::info!(member, address, "a member is reached again");
                        }
                        _ => {}
                    }
                    if let Err(LinkError::Hello { source, .. }) = &connected
                        && matches!(**source, HelloError::Removed(_))
                    {
                        own.removed.send_replace(true);
                    }
                    state.send_modify(|state| match connected {
                        // Unless it was told of another address meanwhile.
                        Ok(connection) if matches!(state, State::Connecting { .. }) => *state = State::Up(connection),
                        Ok(connection) => connection.closed.cancel(),
                        Err(error) => *state = State::Down { at: Instant::now(), error },
                    });
                });
            }
            {
                let state = changes.borrow_and_update();
                match &*state {
                    State::Up(connection) if !connection.closed.is_cancelled() => return Ok(connection.clone()),
                    State::Down { error, .. } => return Err(error.clone()),
                    _ => {}
                }
            }
            // Cancel-safe. The sender is in `self`, so that it cannot be gone.
            if changes.changed().await.is_err() {
                return Err(LinkError::NoTransport);
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let State::Up(connection) = &*self.state.borrow() {
            connection.closed.cancel();
        }
    }
}

impl Own {
    async fn connect(&self, member: MemberId, address: &str) -> Result<Arc<Connection>, LinkError> {
        let transport = self.transport.as_ref().ok_or(LinkError::NoTransport)?;
        let failed = |source| LinkError::Connect { address: address.to_string(), source: Arc::new(source) };
        let connecting = async {
            let mut stream = transport.connect(address).await.map_err(failed)?;
            let hello = Hello { versions: self.versions, cluster: self.cluster, from: self.member, to: member };
            let agreed = hello::call(&mut stream, hello)
                .await
                .map_err(|source| LinkError::Hello { address: address.to_string(), source: Arc::new(source) })?;
            Ok((stream, agreed))
        };
        let connected = tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(failed(io::Error::from(io::ErrorKind::Interrupted))),
            connected = tokio::time::timeout(self.connect_timeout, connecting) => {
                connected.unwrap_or_else(|_| Err(failed(io::Error::from(io::ErrorKind::TimedOut))))
            }
        };
        let (stream, agreed) = connected?;
        tracing::debug!(member = agreed.member, address, version = agreed.version, "connected to member");
        Ok(self.start(stream, agreed, address))
    }

    fn start(&self, stream: Box<dyn PeerStream>, agreed: hello::Agreed, address: &str) -> Arc<Connection> {
        let (mut reading, writing) = tokio::io::split(stream);
        let (outgoing, frames) = frame::queue();
        let connection = Arc::new(Connection {
            peer: agreed.member,
            version: agreed.version,
            address: address.to_string(),
            outgoing,
            waiting: Mutex::default(),
            heard: Mutex::new(Instant::now()),
            answers: AtomicBool::new(true),
            closed: self.stop.child_token(),
        });
        let closed = connection.closed.clone();
        self.tasks.spawn({
            let closed = closed.clone();
            async move {
                let written = closed.run_until_cancelled(frame::write(writing, frames, closed.clone())).await;
                if let Some(Err(error)) = written {
                    tracing::debug!(%error, "connection to member broke while writing");
                }
                closed.cancel();
            }
        });
        self.tasks.spawn({
            let connection = connection.clone();
            async move {
                let reading = async {
                    while let Some(frame) = frame::read(&mut reading).await? {
                        connection.hear(frame);
                    }
                    io::Result::Ok(())
                };
                if let Some(Err(error)) = closed.run_until_cancelled(reading).await {
                    tracing::debug!(%error, "connection to member broke while reading");
                }
                closed.cancel();
                // Whoever waits hears of it by its sender being dropped.
                connection.lock().by_number.clear();
            }
        });
        connection
    }
}

struct Connection {
    peer: MemberId,
    version: u16,
    address: String,
    outgoing: Outgoing,
    waiting: Mutex<Waiting>,
    /// When the last frame arrived.
    heard: Mutex<Instant>,
    /// Whether the last question was answered in time.
    answers: AtomicBool,
    closed: CancellationToken,
}

#[derive(Default)]
struct Waiting {
    last_number: u32,
    by_number: HashMap<u32, oneshot::Sender<Bytes>>,
}

impl Connection {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, frame: Frame) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        if frame.kind == Kind::Answer
            && let Some(waiting) = self.lock().by_number.remove(&frame.number)
        {
            // Whoever gave up does not need the answer.
            let _ = waiting.send(frame.body);
        }
    }

    async fn call(
        self: &Arc<Self>,
        request: &Request,
        timeout: Duration,
        metrics: &Metrics,
    ) -> Result<Answer, LinkError> {
        let body = request.encode(self.version).map_err(|source| LinkError::Unsendable(Arc::new(source)))?;
        let (tell, told) = oneshot::channel();
        let number = {
            let mut waiting = self.lock();
            if waiting.by_number.len() >= WAITING_MAX {
                return Err(LinkError::Busy(self.address.clone()));
            }
            waiting.last_number = waiting.last_number.wrapping_add(1);
            let number = waiting.last_number;
            waiting.by_number.insert(number, tell);
            number
        };
        let _forget = Forget { connection: self, number };
        let start = Instant::now();
        let asking = async {
            let sent = self.outgoing.send(Frame { kind: Kind::Request, number, body }).await;
            match sent {
                Ok(()) => {}
                Err(SendError::Closed) => return Err(LinkError::Broken(self.address.clone())),
                Err(error @ SendError::TooLong { .. }) => {
                    let source = io::Error::new(io::ErrorKind::InvalidInput, error);
                    return Err(LinkError::Unsendable(Arc::new(source)));
                }
            }
            told.await.map_err(|_| LinkError::Broken(self.address.clone()))
        };
        let answer = tokio::select! {
            biased;
            answer = asking => answer?,
            () = self.closed.cancelled() => return Err(LinkError::Broken(self.address.clone())),
            () = tokio::time::sleep(timeout) => {
                self.answers.store(false, Ordering::Release);
                let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
                if heard.elapsed() >= DEAD_AFTER {
                    self.closed.cancel();
                }
                return Err(LinkError::Timeout(self.address.clone()));
            }
        };
        self.answers.store(true, Ordering::Release);
        metrics.peer_round_trip_seconds.observe(start.elapsed().as_secs_f64());
        Answer::decode(self.version, &answer).map_err(|source| {
            // Whatever comes next would be no better.
            self.closed.cancel();
            LinkError::Answer { address: self.address.clone(), source: Arc::new(source) }
        })
    }
}

/// Forgets a question whose asker has gone.
struct Forget<'a> {
    connection: &'a Connection,
    number: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.connection.lock().by_number.remove(&self.number);
    }
}

/// An error with all its causes.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures::future::BoxFuture;

    use super::*;

    /// As a machine that is gone: a connection is neither taken nor refused.
    struct Silence;

    impl Transport for Silence {
        fn connect<'a>(&'a self, _address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn PeerStream>>> {
            Box::pin(std::future::pending())
        }
    }

    #[test]
    fn a_silent_member_stays_unreached_while_it_is_tried_again() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (connect_timeout, tasks) = (Duration::from_secs(2), TaskTracker::new());
            let links = Links::new(
                ClusterId(7),
                1,
                WireVersions::NOW,
                Some(Arc::new(Silence)),
                connect_timeout,
                tasks,
                CancellationToken::new(),
                Metrics::default(),
            );
            let link = links.to(2, "there:1");
            assert_eq!(links.reachable(2), None, "it was not tried");
            assert!(link.peer().await.is_err());
            for _ in 0..20 {
                assert_eq!(links.reachable(2), Some(false));
                let _ = tokio::time::timeout(connect_timeout / 7, link.peer()).await;
            }
        });
    }
}
