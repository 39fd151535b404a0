//! A network that delays, holds up, breaks and doubles connections. Bytes of one stream keep their order, as TCP's do;
//! streams overtake each other. What was said on a connection may be heard again later, in another order.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::sim::random::Random;
use crate::wire::frame;
use crate::wire::hello::{HELLO_BYTES, WireVersions};
use crate::wire::message::Request;
use crate::{PeerStream, Store, Transport};

/// What is kept of a connection, to be said again.
const HEARD_BYTES_MAX: usize = 256 << 10;

#[derive(Default)]
struct Wires {
    servers: BTreeMap<String, Store>,
    open: Vec<(String, String, CancellationToken)>,
    /// Ways, in this direction, on which nothing moves.
    held: BTreeSet<(String, String)>,
    latency_max: Duration,
}

#[derive(Clone)]
pub(crate) struct Net {
    wires: Arc<Mutex<Wires>>,
    changed: Arc<Notify>,
    random: Random,
}

impl Net {
    pub(crate) fn new(random: Random) -> Self {
        let wires = Wires { latency_max: Duration::from_millis(2), ..Wires::default() };
        Self { wires: Arc::new(Mutex::new(wires)), changed: Arc::default(), random }
    }

    pub(crate) fn serve(&self, address: &str, store: &Store) {
        self.wires.lock().unwrap().servers.insert(address.to_string(), store.clone());
    }

    pub(crate) fn stop_serving(&self, address: &str) {
        self.wires.lock().unwrap().servers.remove(address);
        self.break_connections(|from, to| from == address || to == address);
    }

    pub(crate) fn break_connections(&self, which: impl Fn(&str, &str) -> bool) {
        self.wires.lock().unwrap().open.retain(|(from, to, stop)| {
            let breaks = which(from, to);
            if breaks {
                stop.cancel();
            }
            !breaks
        });
    }

    /// Holds up what goes from `from` to `to`. Nobody is told.
    pub(crate) fn hold(&self, from: &str, to: &str) {
        self.wires.lock().unwrap().held.insert((from.to_string(), to.to_string()));
    }

    pub(crate) fn mend(&self) {
        let mut wires = self.wires.lock().unwrap();
        wires.held.clear();
        wires.latency_max = Duration::from_millis(2);
        drop(wires);
        self.changed.notify_waiters();
    }

    pub(crate) fn slow_down(&self, latency_max: Duration) {
        self.wires.lock().unwrap().latency_max = latency_max;
    }

    fn latency(&self) -> Duration {
        let max = self.wires.lock().unwrap().latency_max;
        self.random.between(Duration::from_micros(100), max)
    }

    async fn passes(&self, from: &str, to: &str) {
        loop {
            let mended = self.changed.notified();
            if !self.wires.lock().unwrap().held.contains(&(from.to_string(), to.to_string())) {
                return;
            }
            mended.await;
        }
    }

    async fn connect(&self, from: &str, to: &str) -> io::Result<Box<dyn PeerStream>> {
        tokio::time::sleep(self.latency()).await;
        self.passes(from, to).await;
        self.passes(to, from).await;
        let stop = CancellationToken::new();
        let server = {
            let mut wires = self.wires.lock().unwrap();
            let Some(server) = wires.servers.get(to).cloned() else {
                return Err(io::Error::from(io::ErrorKind::ConnectionRefused));
            };
            wires.open.push((from.to_string(), to.to_string(), stop.clone()));
            server
        };
        if self.random.chance(5) {
            // A connection of which only the server knows: the answer to its beginning was lost.
            let (near, far) = tokio::io::duplex(1024);
            let server = server.clone();
            tokio::spawn(async move { server.serve_peer(far).await });
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                drop(near);
            });
        }
        let (near, near_inner) = tokio::io::duplex(256 << 10);
        let (far, far_inner) = tokio::io::duplex(256 << 10);
        let (near_read, near_write) = tokio::io::split(near_inner);
        let (far_read, far_write) = tokio::io::split(far_inner);
        let is_heard_again = self.random.chance(20);
        for (mut reading, mut writing, from, to, mut heard) in
            [(near_read, far_write, from, to, is_heard_again.then(Vec::new)), (far_read, near_write, to, from, None)]
        {
            let (net, stop, from, to) = (self.clone(), stop.clone(), from.to_string(), to.to_string());
            tokio::spawn(async move {
                let pump = async {
                    let mut buffer = vec![0; 64 << 10];
                    loop {
                        let read = reading.read(&mut buffer).await?;
                        tokio::time::sleep(net.latency()).await;
                        net.passes(&from, &to).await;
                        if read == 0 {
                            return io::Result::Ok(());
                        }
                        writing.write_all(&buffer[..read]).await?;
                        if let Some(heard) = &mut heard
                            && heard.len() < HEARD_BYTES_MAX
                        {
                            heard.extend_from_slice(&buffer[..read]);
                        }
                    }
                };
                let _ = stop.run_until_cancelled(pump).await;
                let _ = writing.shutdown().await;
                stop.cancel();
                if let Some(heard) = heard {
                    net.say_again(&to, &heard).await;
                }
            });
        }
        tokio::spawn(async move { server.serve_peer(far).await });
        Ok(Box::new(near))
    }

    /// Has whoever is at `to` by then hear what was said on a connection that has ended: what Raft asks, and reads. All else a
    /// member says again by itself, when it means to.
    async fn say_again(&self, to: &str, heard: &[u8]) {
        let Some((hello, mut rest)) = heard.split_at_checked(HELLO_BYTES) else { return };
        let mut messages = Vec::new();
        // The last one may be cut off.
        while let Ok(Some(frame)) = frame::read(&mut rest).await {
            let request = Request::decode(WireVersions::NOW.newest, &frame.body).unwrap();
            let of_raft = matches!(
                request,
                Request::Append(_)
                    | Request::PreVote(_)
                    | Request::Vote(_)
                    | Request::TransferLeader(_)
                    | Request::SnapshotBegin(_)
                    | Request::SnapshotPart(_)
                    | Request::SnapshotEnd(_)
                    | Request::ReadIndex
            );
            if of_raft {
                messages.push(frame);
            }
        }
        let last = messages.len().saturating_sub(1 + self.random.below(40) as usize);
        let mut messages = messages.split_off(last);
        if self.random.chance(50) {
            for place in (1..messages.len()).rev() {
                messages.swap(place, self.random.below(place as u64 + 1) as usize);
            }
        }
        tokio::time::sleep(self.random.between(Duration::ZERO, Duration::from_secs(3))).await;
        let Some(server) = self.wires.lock().unwrap().servers.get(to).cloned() else { return };
        let (mut near, far) = tokio::io::duplex(256 << 10);
        tokio::spawn(async move { server.serve_peer(far).await });
        if near.write_all(hello).await.is_err() {
            return;
        }
        let (outgoing, frames) = frame::queue();
        let stop = CancellationToken::new();
        let (mut answers, writing) = tokio::io::split(near);
        let write = tokio::spawn(frame::write(writing, frames, stop.clone()));
        for message in messages {
            // The other end may hang up.
            let _ = outgoing.send(message).await;
        }
        // What is answered interests nobody.
        let mut nowhere = tokio::io::sink();
        let listen = tokio::io::copy(&mut answers, &mut nowhere);
        let _ = tokio::time::timeout(Duration::from_secs(1), listen).await;
        stop.cancel();
        let _ = write.await;
    }

    /// For one process at `own`; it connects to nobody once `dead` is cancelled.
    pub(crate) fn transport(&self, own: &str, dead: CancellationToken) -> Arc<dyn Transport> {
        Arc::new(From { net: self.clone(), own: own.to_string(), dead })
    }
}

struct From {
    net: Net,
    own: String,
    dead: CancellationToken,
}

impl Transport for From {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn PeerStream>>> {
        async move {
            match self.dead.run_until_cancelled(self.net.connect(&self.own, address)).await {
                Some(connected) if !self.dead.is_cancelled() => connected,
                _ => Err(io::Error::from(io::ErrorKind::NetworkDown)),
            }
        }
        .boxed()
    }
}
