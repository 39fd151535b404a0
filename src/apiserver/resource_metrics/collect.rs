//! Asks kubelets, the way that logs go, and keeps their last two answers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use http_body_util::{BodyExt as _, Limited};
use jiff::Timestamp;
use tokio::time::Instant;

use super::sample::{Interval, Sample};
use crate::api_server::Inner;
use crate::connect::forward;
use crate::encryption::Snapshot;
use crate::handler::Body;

/// No kubelet is asked more often.
const RESOLUTION: Duration = Duration::from_secs(15);
/// A sample that is older than this is no beginning of an interval: what is used now would drown in what was used then.
const WINDOW_MAX: Duration = Duration::from_secs(90);
/// Between the two samples of a first answer.
const FIRST_WINDOW: Duration = Duration::from_secs(2);
const SCRAPE_TIME: Duration = Duration::from_secs(5);
const SCRAPE_BYTES_MAX: usize = 16 * 1024 * 1024;

#[derive(Default)]
pub struct Meter {
    /// By node.
    known: Mutex<HashMap<String, Samples>>,
    /// Who finds something old asks while others wait, and then see what was found.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Samples {
    before: Option<Sample>,
    last: Sample,
}

impl Samples {
    fn interval(&self) -> Option<Interval> {
        Some(Interval { before: self.before.clone()?, last: self.last.clone() })
    }
}

impl Meter {
    /// The newest interval of each of these nodes, none for those that do not answer.
    pub(crate) async fn intervals(
        &self,
        server: &Arc<Inner>,
        snapshot: &Snapshot,
        nodes: &[String],
    ) -> HashMap<String, Interval> {
        if nodes.iter().any(|node| self.wants_asking(node)) {
            let _asking = self.asking.lock().await;
            let asked: Vec<&String> = nodes.iter().filter(|node| self.wants_asking(node)).collect();
            self.ask(server, snapshot, &asked).await;
            let first: Vec<&String> = asked.into_iter().filter(|node| self.lacks_a_beginning(node)).collect();
            if !first.is_empty() {
                tokio::time::sleep(FIRST_WINDOW).await;
                self.ask(server, snapshot, &first).await;
            }
        }
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |node: &String| {
            let interval = known.get(node).filter(|samples| samples.last.age() < WINDOW_MAX)?.interval()?;
            Some((node.clone(), interval))
        };
        nodes.iter().filter_map(fresh).collect()
    }

    fn wants_asking(&self, node: &str) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(node).is_none_or(|samples| samples.last.age() >= RESOLUTION || samples.before.is_none())
    }

    fn lacks_a_beginning(&self, node: &str) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(node).is_some_and(|samples| samples.before.is_none())
    }

    async fn ask(&self, server: &Arc<Inner>, snapshot: &Snapshot, nodes: &[&String]) {
        let answers = join_all(nodes.iter().map(|node| async move {
            let answer = tokio::time::timeout(SCRAPE_TIME, scrape(server, snapshot, node)).await;
            (*node, answer.unwrap_or_else(|_| Err("no answer in time".to_owned())))
        }));
        let answers = answers.await;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // Nodes that nobody asks about, or that have gone, are forgotten.
        known.retain(|_, samples| samples.last.age() < WINDOW_MAX);
        for (node, answer) in answers {
            match answer {
                Ok(last) => {
                    let before = known.remove(node).map(|samples| samples.last);
                    known.insert(node.clone(), Samples { before, last });
                }
                Err(why) => tracing::debug!(node, why, "a kubelet does not tell what is used"),
            }
        }
    }
}

async fn scrape(server: &Arc<Inner>, snapshot: &Snapshot, node: &str) -> Result<Sample, String> {
    let context = &server.context;
    let backend = server.kubelets.backend(snapshot, node).map_err(|status| status.message)?;
    let request = http::Request::new(Body::empty());
    let answer = forward(&backend, "/metrics/resource", request, None, &context.tasks, &context.stop).await;
    let answer = answer.map_err(|error| error.to_string())?;
    let (taken, time) = (Instant::now(), Timestamp::now());
    if !answer.status().is_success() {
        return Err(format!("status {}", answer.status()));
    }
    let body = Limited::new(answer.into_body(), SCRAPE_BYTES_MAX).collect().await;
    let body = body.map_err(|error| error.to_string())?.to_bytes();
    Ok(Sample::read(&String::from_utf8_lossy(&body), taken, time))
}
