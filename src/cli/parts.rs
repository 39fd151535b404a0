//! The long-lived parts of the process: started in order, watched, stopped in reverse.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time;
use tokio_util::sync::CancellationToken;

/// How long all parts together may take to stop. Pods do not notice either way.
const GRACE: Duration = Duration::from_secs(10);

/// A part that ended although nobody asked it to.
#[derive(Debug, thiserror::Error)]
pub enum PartEnded {
    #[error("{name} ended")]
    Early { name: &'static str },
    #[error("{name} failed: {reason}")]
    Failed { name: &'static str, reason: String },
}

struct Part {
    name: &'static str,
    stop: CancellationToken,
    task: JoinHandle<Result<(), String>>,
}

pub struct Parts {
    running: Vec<Part>,
    /// Cancelled when any part has ended.
    ended: CancellationToken,
}

impl Parts {
    pub fn new() -> Self {
        Self { running: Vec::new(), ended: CancellationToken::new() }
    }

    /// Starts a part. It has to run until its token is cancelled; when it ends before, the process does.
    pub fn start<F, E>(&mut self, name: &'static str, part: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::error::Error + 'static,
    {
        let stop = CancellationToken::new();
        let future = part(stop.clone());
        let ended = self.ended.clone();
        let task = tokio::spawn(async move {
            // Also when the part panics.
            let _tell = ended.drop_guard();
            future.await.map_err(|error| chain(&error))
        });
        self.running.push(Part { name, stop, task });
    }

    /// As [`Parts::start`], for a part that cannot fail.
    pub fn start_infallible<F>(&mut self, name: &'static str, part: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.start(name, |stop| {
            let future = part(stop);
            async move {
                future.await;
                Ok::<(), std::convert::Infallible>(())
            }
        });
    }

    /// Waits until some part has ended by itself, and says which and why.
    pub async fn first_end(&mut self) -> PartEnded {
        self.ended.cancelled().await;
        for part in &mut self.running {
            // Finished tasks answer at once; those still running do not.
            if let Ok(joined) = time::timeout(Duration::from_millis(10), &mut part.task).await {
                return match joined {
                    Ok(Ok(())) => PartEnded::Early { name: part.name },
                    Ok(Err(reason)) => PartEnded::Failed { name: part.name, reason },
                    Err(error) => PartEnded::Failed { name: part.name, reason: error.to_string() },
                };
            }
        }
        PartEnded::Early { name: "a part" }
    }

    /// Stops all parts, the last one first.
    pub async fn stop(mut self) {
        let deadline = time::Instant::now() + GRACE;
        while let Some(mut part) = self.running.pop() {
            if part.task.is_finished() {
                continue;
            }
            tracing::debug!(part = part.name, "stopping");
            part.stop.cancel();
            if time::timeout_at(deadline, &mut part.task).await.is_err() {
                tracing::warn!(part = part.name, "did not stop in time");
                part.task.abort();
            }
        }
    }
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn parts_stop_in_reverse_order() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut parts = Parts::new();
        for name in ["store", "api", "node"] {
            let order = Arc::clone(&order);
            parts.start_infallible(name, |stop| async move {
                stop.cancelled().await;
                order.lock().unwrap().push(name);
            });
        }
        parts.stop().await;
        assert_eq!(*order.lock().unwrap(), ["node", "api", "store"]);
    }

    #[tokio::test]
    async fn an_early_end_is_named() {
        let mut parts = Parts::new();
        parts.start_infallible("steady", |stop| async move { stop.cancelled().await });
        parts.start("brittle", |_| async { Err(std::io::Error::other("disk gone")) });
        let end = parts.first_end().await;
        assert_eq!(end.to_string(), "brittle failed: disk gone");
        parts.stop().await;
    }
}
