//! The leader gate: work that only one server of the cluster may do runs while this server leads the store.

use std::future::Future;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Open while this server leads. No Lease is written for it: leadership is the store's own.
#[derive(Clone, Debug)]
pub struct LeaderGate(watch::Receiver<bool>);

impl LeaderGate {
    pub fn new(leading: watch::Receiver<bool>) -> Self {
        Self(leading)
    }

    /// A gate that is always open, for tests and tools.
    pub fn open() -> Self {
        Self(watch::channel(true).1)
    }

    /// Runs `work` with a child token whenever this server leads; cancels the token and waits for `work` to end when
    /// it does not any more. Returns when `stop` is cancelled, and when `work` ends by itself while leading.
    pub async fn run_while_leading<F, Fut>(&self, stop: CancellationToken, mut work: F)
    where
        F: FnMut(CancellationToken) -> Fut,
        Fut: Future<Output = ()>,
    {
        let mut leading = self.0.clone();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                gone = closed_or(&mut leading, true) => if gone { return },
            }
            let term = stop.child_token();
            let running = work(term.clone());
            tokio::pin!(running);
            let ended = tokio::select! {
                () = &mut running => true,
                gone = closed_or(&mut leading, false) => {
                    term.cancel();
                    running.await;
                    gone
                }
            };
            if ended || stop.is_cancelled() {
                return;
            }
        }
    }
}

/// Waits for the value. A sender that went away leaves the last value standing: true answers whether it can no
/// longer come.
async fn closed_or(leading: &mut watch::Receiver<bool>, wanted: bool) -> bool {
    let closed = leading.wait_for(|now| *now == wanted).await.is_err();
    if closed && !wanted {
        // Nobody can end this term any more; the stop token does.
        std::future::pending::<()>().await;
    }
    closed
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn work_follows_leadership() {
        let (lead, leading) = watch::channel(false);
        let stop = CancellationToken::new();
        let started = Arc::new(AtomicUsize::new(0));
        let (seen, mut news) = tokio::sync::mpsc::channel(8);
        let task = tokio::spawn({
            let (stop, started) = (stop.clone(), started.clone());
            async move {
                LeaderGate::new(leading)
                    .run_while_leading(stop, |term| {
                        let (started, seen) = (started.clone(), seen.clone());
                        async move {
                            started.fetch_add(1, Ordering::SeqCst);
                            seen.send("start").await.unwrap();
                            term.cancelled().await;
                            seen.send("end").await.unwrap();
                        }
                    })
                    .await;
            }
        });
        for (now, expected) in [(true, "start"), (false, "end"), (true, "start")] {
            lead.send(now).unwrap();
            assert_eq!(news.recv().await, Some(expected));
        }
        stop.cancel();
        assert_eq!(news.recv().await, Some("end"));
        task.await.unwrap();
        assert_eq!(started.load(Ordering::SeqCst), 2);
    }
}
